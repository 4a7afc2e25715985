/* http.h - HTTP over libmicrohttpd: moves bytes, knows no route. Its .c is the only file that includes
 * microhttpd.h.
 *
 *   headers -> app->begin -> [body] -> app->finish -> (suspended: a worker -> http_resume) -> reply -> app->done
 *
 * A request belongs to the HTTP thread of its connection, but for the time between http_suspend and
 * http_resume, when it belongs to whoever works on it: the HTTP thread leaves it alone, even when the
 * client goes away. So it is freed exactly once, by its HTTP thread, after app->done. */

#ifndef RESNETD_SERVER_HTTP_H
#define RESNETD_SERVER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../model/status.h"
#include "request_id.h"

struct http;

struct http_reply {
    unsigned status;          /* 0: no reply yet */
    const char *content_type; /* static */
    const char *body;         /* NULL: empty */
    size_t size;
    bool body_is_static;     /* else malloc'ed; http frees it */
    const char *allow;       /* the Allow header, static; or NULL */
    const char *policy;      /* Content-Security-Policy, static; or NULL */
    unsigned retry_after_s;  /* 0: none */
    bool preflight;          /* the answer to OPTIONS: says what a browser may send */
    char server_timing[192]; /* "" for none */
};

enum http_body_state {
    HTTP_BODY_OK,
    HTTP_BODY_TOO_LARGE, /* more bytes came than http_settings.max_body_bytes */
    HTTP_BODY_NO_MEMORY, /* max_body_memory_bytes is in use, or malloc failed */
};

enum { HTTP_TARGET_SIZE = 256, HTTP_REMOTE_SIZE = 64 };

struct http_request {
    char id[REQUEST_ID_SIZE];
    char target[HTTP_TARGET_SIZE]; /* as sent, cut for the log */
    char remote[HTTP_REMOTE_SIZE]; /* the peer's address */
    const char *method;            /* NULL when the request broke off before its headers were complete */
    const char *path;              /* percent-decoded */
    uint64_t content_length;       /* as declared; UINT64_MAX when unknown */
    bool chunked;                  /* a body whose length is not declared */

    /* Set by app->begin: keep the body; otherwise it is read and thrown away. */
    bool wants_body;
    uint8_t *body;
    size_t body_size;
    enum http_body_state body_state;

    uint64_t begun_ns;    /* the first line was read */
    uint64_t received_ns; /* the last byte of the body was read */
    uint64_t bytes_in;    /* of the body, kept or not */
    struct http_reply reply;
    bool aborted; /* the reply could not be sent as a whole; known in app->done */
    void *user;   /* the application's; freed in app->done */

    struct http_connection *connection; /* http's own state */
};

struct http_app {
    void *arg;

    /* The headers are complete. May set a reply at once: then the body, if any, is read and dropped first,
     * so that the client reads the answer instead of a broken connection. */
    void (*begin)(void *arg, struct http_request *request);

    /* The body is complete and no reply is set. Either set one and return, or call http_suspend and hand
     * the request over. After http_suspend the request may be gone at any time: do not touch it once it
     * was handed over. */
    void (*finish)(void *arg, struct http_request *request);

    /* The request is over, answered or not. */
    void (*done)(void *arg, struct http_request *request);
};

struct http_settings {
    const char *host;
    int port; /* 0: the system chooses */
    int threads;
    int max_connections;
    int idle_timeout_ms;
    uint64_t max_body_bytes;
    uint64_t max_body_memory_bytes; /* all bodies together */
    const char *cors_origin;        /* "" for none */
};

/* Listen and start the HTTP threads. `settings` and `app` are borrowed until http_stop.
 * RN_OK, RN_ERR_IO (with the address), RN_ERR_NOMEM; *out is NULL on failure. */
RN_MUST_CHECK enum rn_status http_start(const struct http_settings *settings, const struct http_app *app,
                                        struct http **out, struct rn_error *error);

/* "http://127.0.0.1:8080", with the real port. */
const char *http_url(const struct http *http);

/* Requests whose headers are complete and that are not over. */
size_t http_active(const struct http *http);

/* Bytes of request bodies in memory. */
uint64_t http_body_memory(const struct http *http);

/* From now on every reply closes its connection. */
void http_set_closing(struct http *http);

/* Break off what is left, join the threads and free. No request may be suspended. NULL is fine. */
void http_stop(struct http *http);

/* In app->finish, before the request is handed over. */
void http_suspend(struct http_request *request);

/* From any thread, exactly once after http_suspend, with the reply set. The request is not the caller's any more. */
void http_resume(struct http_request *request);

/* Free the body early, once nothing points into it any more. */
void http_drop_body(struct http_request *request);

/* A request header's value, or NULL. Only in begin and finish before http_suspend. */
const char *http_header(const struct http_request *request, const char *name);

/* Call `each` for every query parameter, percent-decoded, until it returns false. `value` is "" for a
 * parameter without `=`; `name` and `value` may hold any byte. */
void http_each_parameter(const struct http_request *request,
                         bool (*each)(void *arg, const char *name, size_t name_length, const char *value,
                                      size_t value_length),
                         void *arg);

#endif
