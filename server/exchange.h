/* exchange.h - one request on its way through the routes: what was asked, the images in it, what came of them.
 *
 * routes.c answers everything that needs no worker; exchange.c does POST /v1/classify:
 *
 *   exchange_classify_begin  headers: refuse early, or ask for the body
 *   exchange_classify_finish body: find the files in it, one job for each, into the queue
 *   exchange_run_job         a worker, for each image; the last one builds the reply and resumes the request */

#ifndef RESNETD_SERVER_EXCHANGE_H
#define RESNETD_SERVER_EXCHANGE_H

#include <stdatomic.h>

#include "../model/classify.h"
#include "app.h"
#include "query.h"
#include "reply.h"

struct exchange;

/* One image file of a request. */
struct exchange_item {
    struct job job; /* first: the queue's link */
    struct exchange *exchange;
    const uint8_t *data; /* in the request's body */
    size_t size;
    const char *filename; /* in the request's body, not NUL-terminated; NULL without one */
    size_t filename_length;
    enum api_error error;
    struct rn_error text;
    struct classify_result result;
    uint64_t queue_ns;
};

struct exchange {
    struct app *app;
    struct http_request *request;
    int route;
    struct query query;
    enum api_error error; /* of the whole request; API_OK when there is none */
    char detail[240];     /* of our own failure, for the log */

    /* What was asked of POST /v1/classify. */
    struct model *model;
    struct classify_request options; /* without data */
    bool stages;

    struct exchange_item *items;
    int item_count;
    bool many; /* answered as {"results": [...]} */
    atomic_int pending;
    struct reply_timing timing; /* sums over the images; total is wall time */
};

/* Answer with an error; `message` is one sentence for the client. */
void exchange_fail(struct exchange *exchange, enum api_error error, const char *message, ...)
    __attribute__((format(printf, 3, 4)));

/* Answer that memory ran out, which takes none. */
void exchange_reply_no_memory(struct http_reply *reply);

/* Answer with what `json` holds. */
void exchange_reply_json(struct exchange *exchange, unsigned status, struct json *json);

/* The configured model called `name`, the default for NULL, or NULL. */
struct model *exchange_find_model(const struct app *app, const char *name, size_t length);

void exchange_classify_begin(struct exchange *exchange);
void exchange_classify_finish(struct exchange *exchange);
void exchange_run_job(struct job *job, struct pass *pass);

/* Free what the exchange owns. */
void exchange_free(struct exchange *exchange);

#endif
