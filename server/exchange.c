/* exchange.c - POST /v1/classify, from headers to reply. */

#include "exchange.h"

#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "clock.h"
#include "log.h"
#include "multipart.h"

static const char *const orient_words[] = {"exif", "ignore", NULL};
static const char *const stages_words[] = {"0", "1", NULL};
static const char *const size_words[] = {"native", "fit", "crop", NULL};
static const enum input_size sizes[] = {INPUT_SIZE_NATIVE, INPUT_SIZE_FIT, INPUT_SIZE_CROP};

enum { DEFAULT_TOP_K = 5 };

/* --- answers -------------------------------------------------------------------------------------------- */

void exchange_reply_no_memory(struct http_reply *reply)
{
    static const char body[] = "{\"error\": {\"code\": \"out_of_memory\", "
                               "\"message\": \"the server is short of memory, try again later\"}}\n";
    const struct api_error_info *info = api_error_info(API_OUT_OF_MEMORY);

    *reply = (struct http_reply){.status = info->status,
                                 .content_type = "application/json",
                                 .body = body,
                                 .size = sizeof body - 1,
                                 .body_is_static = true,
                                 .retry_after_s = info->retry_after_s};
}

void exchange_reply_json(struct exchange *exchange, unsigned status, struct json *json)
{
    struct http_reply *reply = &exchange->request->reply;
    size_t size;
    char *text;

    json_bytes(json, "\n", 1);
    text = json_take(json, &size);
    if (!text) {
        exchange->error = API_OUT_OF_MEMORY;
        exchange_reply_no_memory(reply);
        return;
    }
    *reply = (struct http_reply){.status = status,
                                 .content_type = "application/json",
                                 .body = text,
                                 .size = size,
                                 .allow = reply->allow,
                                 .retry_after_s = reply->retry_after_s};
}

static void fail_with(struct exchange *exchange, enum api_error error, const char *message)
{
    struct json json = {0};

    if (error == API_INTERNAL)
        (void)snprintf(exchange->detail, sizeof exchange->detail, "%s", message);
    exchange->error = error;
    json_open(&json, NULL, '{');
    reply_write_error(&json, error, message);
    json_string(&json, "request_id", exchange->request->id);
    json_close(&json, '}');
    exchange->request->reply.retry_after_s = api_error_info(error)->retry_after_s;
    exchange_reply_json(exchange, api_error_info(error)->status, &json);
}

void exchange_fail(struct exchange *exchange, enum api_error error, const char *message, ...)
{
    char text[320];
    va_list args;

    va_start(args, message);
    (void)vsnprintf(text, sizeof text, message, args);
    va_end(args);
    fail_with(exchange, error, text);
}

void exchange_free(struct exchange *exchange)
{
    if (!exchange)
        return;
    for (int i = 0; i < exchange->item_count; i++)
        classify_result_free(exchange->model, &exchange->items[i].result);
    free(exchange->items);
    free(exchange);
}

/* --- what was asked ------------------------------------------------------------------------------------- */

struct model *exchange_find_model(const struct app *app, const char *name, size_t length)
{
    if (!name)
        return app->models[0];
    for (int i = 0; i < app->model_count; i++)
        if (strlen(model_name(app->models[i])) == length && memcmp(model_name(app->models[i]), name, length) == 0)
            return app->models[i];
    return NULL;
}

/* Read the parameters into model, options and stages. Returns false with the reply set. */
static bool read_options(struct exchange *exchange)
{
    struct query *query = &exchange->query;
    const struct config *config = exchange->app->config;
    const char *name = query_get(query, QUERY_MODEL);
    int classes, size;

    if (query->error != API_OK) {
        exchange_fail(exchange, query->error, "%s", query->text.text);
        return false;
    }
    exchange->model = exchange_find_model(exchange->app, name, name ? strlen(name) : 0);
    if (!exchange->model) {
        exchange_fail(exchange, API_UNKNOWN_MODEL, "there is no model of that name: GET /v1/models lists them");
        return false;
    }
    classes = model_network(exchange->model)->classes;
    size = query_word(query, QUERY_SIZE, size_words, -1);
    exchange->options = (struct classify_request){
        .size_given = size >= 0,
        .input_size = size >= 0 ? sizes[size] : INPUT_SIZE_NATIVE,
        .ignore_orientation = query_word(query, QUERY_ORIENT, orient_words, 0) == 1,
        .top_k = (int)query_integer(query, QUERY_TOP_K, 1, classes, classes < DEFAULT_TOP_K ? classes : DEFAULT_TOP_K),
        .limits = {.max_image_pixels = config->limits.max_image_pixels,
                   .max_native_pixels = config->limits.max_native_pixels,
                   .max_request_bytes = config->limits.max_request_bytes},
    };
    exchange->stages = query_word(query, QUERY_STAGES, stages_words, 1) == 1;
    if (query->error != API_OK) {
        exchange_fail(exchange, query->error, "%s", query->text.text);
        return false;
    }
    return true;
}

void exchange_classify_begin(struct exchange *exchange)
{
    struct http_request *request = exchange->request;
    const uint64_t max = exchange->app->config->limits.max_body_bytes;
    const char *encoding = http_header(request, "Content-Encoding");

    if (atomic_load(&exchange->app->state) == APP_DRAINING) {
        exchange_fail(exchange, API_DRAINING, "the server is shutting down, send the image to another one");
    } else if (encoding && *encoding && strcasecmp(encoding, "identity") != 0) {
        exchange_fail(exchange, API_UNSUPPORTED_ENCODING,
                      "the body has a Content-Encoding: send the image file as it is");
    } else if (request->content_length != UINT64_MAX && request->content_length > max) {
        exchange_fail(exchange, API_BODY_TOO_LARGE, "the body has %llu bytes, at most %llu are accepted",
                      (unsigned long long)request->content_length, (unsigned long long)max);
    } else if (read_options(exchange)) {
        request->wants_body = true;
    }
}

/* --- the images of a body ------------------------------------------------------------------------------- */

/* Append a file to exchange->items. Returns false with the reply set. */
static bool add_item(struct exchange *exchange, const uint8_t *data, size_t size, const char *filename,
                     size_t filename_length)
{
    const int max = exchange->app->config->limits.max_files;

    if (exchange->item_count == max) {
        exchange_fail(exchange, API_TOO_MANY_FILES, "the form has more than %d files, send them in several requests",
                      max);
        return false;
    }
    if ((exchange->item_count & (exchange->item_count - 1)) == 0) { /* 0, 1, 2, 4, ...: full */
        size_t capacity = exchange->item_count == 0 ? 1 : 2 * (size_t)exchange->item_count;
        struct exchange_item *items = realloc(exchange->items, capacity * sizeof *items);
        if (!items) {
            exchange_fail(exchange, API_OUT_OF_MEMORY, "the server is short of memory, try again later");
            return false;
        }
        exchange->items = items;
    }
    exchange->items[exchange->item_count++] = (struct exchange_item){
        .exchange = exchange, .data = data, .size = size, .filename = filename, .filename_length = filename_length};
    return true;
}

/* A part with a file name is a file, and so is one that holds an image (`curl -F 'image=<cat.jpg'`); any
 * other is a parameter. Browsers send an empty part for a file field in which nothing was chosen. */
static bool take_part(struct exchange *exchange, const struct multipart_part *part)
{
    if (part->filename ? part->filename_length == 0 && part->size == 0 : false)
        return true;
    if (part->filename || (!query_knows(&exchange->query, part->name, part->name_length) &&
                           image_sniff(part->data, part->size) != IMAGE_FORMAT_UNKNOWN))
        return add_item(exchange, part->data, part->size, part->filename, part->filename_length);
    if (query_add(&exchange->query, part->name, part->name_length, (const char *)part->data, part->size))
        return true;
    exchange_fail(exchange, exchange->query.error, "%s", exchange->query.text.text);
    return false;
}

/* Find the files of a form. Returns false with the reply set. */
static bool read_form(struct exchange *exchange, const char *content_type)
{
    struct http_request *request = exchange->request;
    struct multipart multipart;
    struct multipart_part part;
    struct rn_error error;
    bool more;
    enum rn_status status = multipart_open(&multipart, content_type, request->body, request->body_size, &error);

    while (status == RN_OK) {
        status = multipart_next(&multipart, &part, &more, &error);
        if (status == RN_OK && !more)
            break;
        if (status == RN_OK && !take_part(exchange, &part))
            return false;
    }
    if (status != RN_OK) {
        exchange_fail(exchange, API_MALFORMED_MULTIPART, "%s", error.text);
        return false;
    }
    if (exchange->item_count == 0) {
        exchange_fail(exchange, API_NO_FILE, "the form has no file, send one as in: curl -F image=@cat.jpg");
        return false;
    }
    exchange->many = exchange->item_count > 1;
    return read_options(exchange); /* again, with the form's fields */
}

static bool read_body(struct exchange *exchange)
{
    struct http_request *request = exchange->request;
    const struct config *config = exchange->app->config;
    const char *content_type = http_header(request, "Content-Type");

    switch (request->body_state) {
    case HTTP_BODY_OK:
        break;
    case HTTP_BODY_TOO_LARGE:
        exchange_fail(exchange, API_BODY_TOO_LARGE, "the body has more than %llu bytes",
                      (unsigned long long)config->limits.max_body_bytes);
        return false;
    case HTTP_BODY_NO_MEMORY:
        exchange_fail(exchange, API_OUT_OF_MEMORY, "the server holds too many uploads, try again later");
        return false;
    }
    if (request->body_size == 0) {
        exchange_fail(exchange, API_EMPTY_BODY, "the body is empty, send the bytes of an image file");
        return false;
    }
    if (multipart_is_form(content_type))
        return read_form(exchange, content_type);
    return add_item(exchange, request->body, request->body_size, NULL, 0);
}

void exchange_classify_finish(struct exchange *exchange)
{
    struct http_request *request = exchange->request;
    const int deadline_ms = exchange->app->config->limits.deadline_ms;

    if (!read_body(exchange)) {
        http_drop_body(request);
        return;
    }
    if (deadline_ms > 0)
        exchange->options.deadline_ns = request->received_ns + (uint64_t)deadline_ms * 1000000;
    atomic_store(&exchange->pending, exchange->item_count);
    for (int i = 0; i + 1 < exchange->item_count; i++)
        exchange->items[i].job.next = &exchange->items[i + 1].job;

    http_suspend(request);
    if (queue_push(&exchange->app->queue, &exchange->items[0].job, (size_t)exchange->item_count))
        return; /* the workers' from here on, perhaps answered already */
    http_drop_body(request);
    exchange_fail(exchange, API_QUEUE_FULL, "all workers are busy and the queue is full, try again later");
    http_resume(request);
}

/* --- in a worker ---------------------------------------------------------------------------------------- */

static void add_timing(struct reply_timing *sum, const struct exchange_item *item)
{
    sum->queue_ns += item->queue_ns;
    sum->decode_ns += item->result.decode_ns;
    sum->preprocess_ns += item->result.preprocess_ns;
    sum->inference_ns += item->result.inference_ns;
}

static void reply_one(struct exchange *exchange)
{
    const struct exchange_item *item = &exchange->items[0];
    struct json json = {0};

    if (item->error != API_OK) {
        fail_with(exchange, item->error, item->text.text);
        return;
    }
    json_open(&json, NULL, '{');
    json_string(&json, "model", model_name(exchange->model));
    reply_write_result(&json, exchange->model, &item->result, exchange->stages, 1);
    json_line(&json, 1);
    reply_write_timing(&json, &exchange->timing);
    json_line(&json, 1);
    json_string(&json, "request_id", exchange->request->id);
    json_close(&json, '}');
    exchange_reply_json(exchange, api_error_info(API_OK)->status, &json);
}

static void reply_many(struct exchange *exchange)
{
    struct json json = {0};

    json_open(&json, NULL, '{');
    json_string(&json, "model", model_name(exchange->model));
    json_line(&json, 1);
    json_open(&json, "results", '[');
    for (int i = 0; i < exchange->item_count; i++) {
        const struct exchange_item *item = &exchange->items[i];
        json_line(&json, 12);
        json_open(&json, NULL, '{');
        if (item->filename)
            json_string_n(&json, "filename", item->filename, item->filename_length);
        if (item->error == API_OK)
            reply_write_result(&json, exchange->model, &item->result, exchange->stages, 13);
        else
            reply_write_error(&json, item->error, item->text.text);
        json_close(&json, '}');
    }
    json_close(&json, ']');
    json_line(&json, 1);
    reply_write_timing(&json, &exchange->timing);
    json_line(&json, 1);
    json_string(&json, "request_id", exchange->request->id);
    json_close(&json, '}');
    exchange_reply_json(exchange, api_error_info(API_OK)->status, &json);
}

/* The last image is done: build the reply and give the request back to its HTTP thread. */
static void answer(struct exchange *exchange)
{
    struct http_request *request = exchange->request;

    for (int i = 0; i < exchange->item_count; i++)
        add_timing(&exchange->timing, &exchange->items[i]);
    exchange->timing.total_ns = clock_now_ns() - request->received_ns;
    if (exchange->many)
        reply_many(exchange);
    else
        reply_one(exchange);
    if (request->reply.status == api_error_info(API_OK)->status)
        reply_server_timing(&exchange->timing, request->reply.server_timing, sizeof request->reply.server_timing);
    for (int i = 0; i < exchange->item_count; i++)
        classify_result_free(exchange->model, &exchange->items[i].result);
    http_drop_body(request);
    metrics_observe(&exchange->app->metrics, STAGE_TOTAL, exchange->timing.total_ns);
    http_resume(request);
}

void exchange_run_job(struct job *job, struct pass *pass)
{
    struct exchange_item *item = (struct exchange_item *)job;
    struct exchange *exchange = item->exchange;
    struct metrics *metrics = &exchange->app->metrics;
    struct classify_request image = exchange->options;
    const uint64_t now = clock_now_ns();

    item->queue_ns = now - exchange->request->received_ns;
    metrics_observe(metrics, STAGE_QUEUE, item->queue_ns);
    if (image.deadline_ns != 0 && now > image.deadline_ns) {
        item->error = API_DEADLINE;
        (void)rn_fail(&item->text, RN_ERR_DEADLINE, "the image waited longer than the deadline, try again later");
    } else {
        image.data = item->data;
        image.size = item->size;
        item->error = api_error_from_status(classify_image(exchange->model, pass, &image, &item->result, &item->text));
    }
    if (item->error == API_OK) {
        metrics_observe(metrics, STAGE_DECODE, item->result.decode_ns);
        metrics_observe(metrics, STAGE_PREPROCESS, item->result.preprocess_ns);
        metrics_observe(metrics, STAGE_INFERENCE, item->result.inference_ns);
    } else if (item->error == API_INTERNAL) {
        log_write(LOG_LEVEL_ERROR, "request %s failed: %s", exchange->request->id, item->text.text);
    }
    metrics_count_image(metrics, item->error);
    if (atomic_fetch_sub(&exchange->pending, 1) == 1)
        answer(exchange);
}
