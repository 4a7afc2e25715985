/* routes.c - the table of routes, and the answers that need no worker. */

#include "routes.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "exchange.h"
#include "clock.h"
#include "embed.h"
#include "log.h"

enum { SUMMARY_MAX_SIDE = 65535 };

enum route {
    ROUTE_OTHER,
    ROUTE_CLASSIFY,
    ROUTE_MODELS,
    ROUTE_MODEL,
    ROUTE_SUMMARY,
    ROUTE_LIVE,
    ROUTE_READY,
    ROUTE_METRICS,
    ROUTE_OPENAPI,
    ROUTE_PAGE,
    ROUTE_COUNT
};

static const char *const route_names[ROUTE_COUNT] = {
    [ROUTE_OTHER] = "other",
    [ROUTE_CLASSIFY] = "/v1/classify",
    [ROUTE_MODELS] = "/v1/models",
    [ROUTE_MODEL] = "/v1/models/{name}",
    [ROUTE_SUMMARY] = "/v1/models/{name}/summary",
    [ROUTE_LIVE] = "/healthz/live",
    [ROUTE_READY] = "/healthz/ready",
    [ROUTE_METRICS] = "/metrics",
    [ROUTE_OPENAPI] = "/openapi.json",
    [ROUTE_PAGE] = "/",
};

static void answer_models(struct exchange *exchange);
static void answer_model(struct exchange *exchange);
static void answer_summary(struct exchange *exchange);
static void answer_live(struct exchange *exchange);
static void answer_ready(struct exchange *exchange);
static void answer_metrics(struct exchange *exchange);
static void answer_openapi(struct exchange *exchange);
static void answer_page(struct exchange *exchange);

#define PARAMETER(p) (1u << QUERY_##p)

struct route_entry {
    bool post; /* POST; otherwise GET and HEAD */
    unsigned parameters;
    void (*answer)(struct exchange *exchange); /* with the headers; sets the reply, or asks for the body */
};

static const struct route_entry table[ROUTE_COUNT] = {
    [ROUTE_CLASSIFY] = {true,
                        PARAMETER(TOP_K) | PARAMETER(SIZE) | PARAMETER(ORIENT) | PARAMETER(MODEL) | PARAMETER(STAGES),
                        exchange_classify_begin},
    [ROUTE_MODELS] = {false, 0, answer_models},
    [ROUTE_MODEL] = {false, 0, answer_model},
    [ROUTE_SUMMARY] = {false, PARAMETER(HEIGHT) | PARAMETER(WIDTH), answer_summary},
    [ROUTE_LIVE] = {false, 0, answer_live},
    [ROUTE_READY] = {false, 0, answer_ready},
    [ROUTE_METRICS] = {false, 0, answer_metrics},
    [ROUTE_OPENAPI] = {false, 0, answer_openapi},
    [ROUTE_PAGE] = {false, 0, answer_page},
};

const char *const *routes_names(int *count)
{
    *count = ROUTE_COUNT;
    return route_names;
}

static const char models_prefix[] = "/v1/models/", summary_suffix[] = "/summary";

/* The part of /v1/models/NAME[/summary] that is the name. */
static const char *model_in_path(const char *path, size_t *length)
{
    const char *name = path + sizeof models_prefix - 1;
    *length = strcspn(name, "/");
    return name;
}

static enum route find_route(const char *path)
{
    size_t length;
    const char *name;

    for (int i = ROUTE_OTHER + 1; i < ROUTE_COUNT; i++)
        if (strcmp(path, route_names[i]) == 0 && i != ROUTE_MODEL && i != ROUTE_SUMMARY)
            return (enum route)i;
    if (strncmp(path, models_prefix, sizeof models_prefix - 1) != 0)
        return ROUTE_OTHER;
    name = model_in_path(path, &length);
    if (length == 0)
        return ROUTE_OTHER;
    if (name[length] == '\0')
        return ROUTE_MODEL;
    return strcmp(name + length, summary_suffix) == 0 ? ROUTE_SUMMARY : ROUTE_OTHER;
}

/* --- the three steps of a request ----------------------------------------------------------------------- */

static void answer_options(struct exchange *exchange, const char *allow)
{
    exchange->request->reply =
        (struct http_reply){.status = 204, .allow = allow, .preflight = true, .body_is_static = true};
}

void routes_begin(void *arg, struct http_request *request)
{
    struct exchange *exchange = calloc(1, sizeof *exchange);
    const char *transfer = http_header(request, "Transfer-Encoding"), *allow, *method = request->method;
    const struct route_entry *entry;
    bool is_get = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0, is_post = strcmp(method, "POST") == 0;

    if (!exchange) {
        exchange_reply_no_memory(&request->reply);
        return;
    }
    request->user = exchange;
    exchange->app = arg;
    exchange->request = request;
    exchange->route = find_route(request->path);
    entry = &table[exchange->route];
    exchange->query.allowed = entry->parameters;

    if (strcmp(method, "OPTIONS") == 0 && strcmp(request->path, "*") == 0) {
        answer_options(exchange, "GET, HEAD, POST, OPTIONS");
        return;
    }
    if (exchange->route == ROUTE_OTHER) {
        exchange_fail(exchange, API_UNKNOWN_ROUTE,
                      "there is nothing at this path: GET /openapi.json describes the routes");
        return;
    }
    allow = entry->post ? "POST, OPTIONS" : "GET, HEAD, OPTIONS";
    if (strcmp(method, "OPTIONS") == 0) {
        answer_options(exchange, allow);
        return;
    }
    if (entry->post ? !is_post : !is_get) {
        exchange_fail(exchange, API_METHOD_NOT_ALLOWED, "this path takes %s", allow);
        request->reply.allow = allow;
        return;
    }
    if (transfer && strcasecmp(transfer, "chunked") != 0) {
        exchange_fail(exchange, API_BAD_REQUEST, "the only Transfer-Encoding is chunked");
        return;
    }
    http_each_parameter(request, query_add, &exchange->query);
    if (exchange->query.error != API_OK) {
        exchange_fail(exchange, exchange->query.error, "%s", exchange->query.text.text);
        return;
    }
    entry->answer(exchange);
}

void routes_finish(void *arg, struct http_request *request)
{
    (void)arg;
    exchange_classify_finish(request->user); /* the only route that waits for a body */
}

void routes_run_job(void *arg, struct job *job, struct pass *pass)
{
    (void)arg;
    exchange_run_job(job, pass);
}

void routes_done(void *arg, struct http_request *request)
{
    struct app *app = arg;
    struct exchange *exchange = request->user;
    const uint64_t duration_ns = clock_now_ns() - request->begun_ns;
    const unsigned status = request->aborted ? METRICS_STATUS_ABORTED : request->reply.status;
    struct log_request line = {
        .id = request->id,
        .remote = request->remote,
        .method = request->method ? request->method : "-",
        .target = request->target,
        .status = status,
        .bytes_in = request->bytes_in,
        .bytes_out = request->aborted ? 0 : request->reply.size,
        .receive_ms = request->received_ns ? clock_ms(request->received_ns - request->begun_ns) : -1,
        .answer_ms = clock_ms(duration_ns),
    };

    if (exchange) {
        line.error = exchange->error != API_OK ? api_error_info(exchange->error)->code : NULL;
        line.detail = exchange->detail[0] ? exchange->detail : NULL;
        line.model = exchange->model ? model_name(exchange->model) : NULL;
        line.images = exchange->timing.total_ns > 0 ? exchange->item_count : 0;
        line.queue_ms = clock_ms(exchange->timing.queue_ns);
        line.decode_ms = clock_ms(exchange->timing.decode_ns);
        line.preprocess_ms = clock_ms(exchange->timing.preprocess_ns);
        line.inference_ms = clock_ms(exchange->timing.inference_ns);
        line.total_ms = clock_ms(exchange->timing.total_ns);
    }
    metrics_count_request(&app->metrics, exchange ? exchange->route : ROUTE_OTHER, status, request->bytes_in,
                          line.bytes_out, duration_ns);
    log_request(status == 500 ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO, &line);
    exchange_free(exchange);
    request->user = NULL;
}

/* --- answers -------------------------------------------------------------------------------------------- */

/* Whether the client wants text/plain rather than JSON: it lists it, and no other type that would fit before. */
static bool wants_text(const struct http_request *request)
{
    const char *accept = http_header(request, "Accept"), *text, *json, *any;

    if (!accept || !(text = strcasestr(accept, "text/plain")))
        return false;
    json = strcasestr(accept, "application/json");
    any = strstr(accept, "*/*");
    return (!json || text < json) && (!any || text < any);
}

/* Answer with what was written to `out`, which open_memstream opened on *text and *size. */
static void reply_text(struct exchange *exchange, FILE *out, char **text, const size_t *size, const char *content_type)
{
    if (!out || fclose(out) != 0) {
        free(out ? *text : NULL);
        exchange_fail(exchange, API_OUT_OF_MEMORY, "the server is short of memory, try again later");
        return;
    }
    exchange->request->reply =
        (struct http_reply){.status = 200, .content_type = content_type, .body = *text, .size = *size};
}

static void reply_static(struct exchange *exchange, const char *content_type, const char *body, size_t size)
{
    exchange->request->reply = (struct http_reply){
        .status = 200, .content_type = content_type, .body = body, .size = size, .body_is_static = true};
}

static void answer_models(struct exchange *exchange)
{
    const struct app *app = exchange->app;
    struct json json = {0};

    json_open(&json, NULL, '{');
    json_open(&json, "models", '[');
    for (int i = 0; i < app->model_count; i++)
        reply_write_model(&json, app->models[i], i == 0, false);
    json_close(&json, ']');
    if (app->config->default_note) {
        json_line(&json, 1);
        json_string(&json, "note", app->config->default_note);
    }
    json_close(&json, '}');
    exchange_reply_json(exchange, 200, &json);
}

/* The model that the path names. Returns false with the reply set. */
static bool find_model(struct exchange *exchange)
{
    size_t length;
    const char *name = model_in_path(exchange->request->path, &length);

    exchange->model = exchange_find_model(exchange->app, name, length);
    if (!exchange->model)
        exchange_fail(exchange, API_UNKNOWN_MODEL, "there is no model of that name: GET /v1/models lists them");
    return exchange->model != NULL;
}

static void answer_model(struct exchange *exchange)
{
    struct json json = {0};
    char *text = NULL;
    size_t size;
    FILE *out;

    if (!find_model(exchange))
        return;
    if (wants_text(exchange->request)) {
        out = open_memstream(&text, &size);
        if (out)
            network_print(model_network(exchange->model), out);
        reply_text(exchange, out, &text, &size, "text/plain; charset=utf-8");
        return;
    }
    reply_write_model(&json, exchange->model, exchange->model == exchange->app->models[0], true);
    exchange_reply_json(exchange, 200, &json);
}

static void answer_summary(struct exchange *exchange)
{
    struct query *query = &exchange->query;
    struct json json = {0};
    struct plan plan;
    struct rn_error error;
    enum rn_status status;
    int height, width, crop;
    char *text = NULL;
    size_t size;
    FILE *out;

    if (!find_model(exchange))
        return;
    crop = model_network(exchange->model)->input.crop;
    height = (int)query_integer(query, QUERY_HEIGHT, 1, SUMMARY_MAX_SIDE, crop);
    width = (int)query_integer(query, QUERY_WIDTH, 1, SUMMARY_MAX_SIDE, crop);
    if (query->error != API_OK) {
        exchange_fail(exchange, query->error, "%s", query->text.text);
        return;
    }
    status = plan_init(&plan, model_network(exchange->model), 1, height, width, &error);
    if (status != RN_OK) {
        exchange_fail(exchange, api_error_from_status(status), "%s", error.text);
        return;
    }
    if (wants_text(exchange->request)) {
        out = open_memstream(&text, &size);
        if (out)
            plan_print_summary(&plan, out);
        reply_text(exchange, out, &text, &size, "text/plain; charset=utf-8");
    } else {
        reply_write_summary(&json, model_name(exchange->model), &plan);
        exchange_reply_json(exchange, 200, &json);
    }
    plan_free(&plan);
}

static void answer_live(struct exchange *exchange)
{
    static const char body[] = "{\"status\": \"live\"}\n";
    reply_static(exchange, "application/json", body, sizeof body - 1);
}

static void answer_ready(struct exchange *exchange)
{
    static const char ready[] = "{\"status\": \"ready\"}\n", draining[] = "{\"status\": \"draining\"}\n";

    if (atomic_load(&exchange->app->state) == APP_SERVING) {
        reply_static(exchange, "application/json", ready, sizeof ready - 1);
    } else {
        reply_static(exchange, "application/json", draining, sizeof draining - 1);
        exchange->request->reply.status = 503;
    }
}

static void write_model_info(const struct app *app, FILE *out)
{
    (void)fputs("# HELP resnetd_model_info The models that are served.\n# TYPE resnetd_model_info gauge\n", out);
    for (int i = 0; i < app->model_count; i++) {
        const struct kernels *kernels = model_kernels(app->models[i]);
        (void)fputs("resnetd_model_info{model=\"", out);
        metrics_write_label(out, model_name(app->models[i]));
        (void)fprintf(out, "\",kernels=\"%s\",precision=\"%s\",weights_sha256=\"%s\"} 1\n", kernels->name,
                      kernels->precision, model_weights_sha256(app->models[i]));
    }
}

static void answer_metrics(struct exchange *exchange)
{
    const struct app *app = exchange->app;
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    if (out) {
        metrics_write(&app->metrics, out);
        metrics_write_gauge(out, "resnetd_queue_depth", "Images that wait for a worker.", NULL,
                            (double)queue_depth(&app->queue));
        metrics_write_gauge(out, "resnetd_queue_limit", "Images that may wait.", NULL, (double)app->queue.limit);
        metrics_write_gauge(out, "resnetd_workers", "Worker threads.", NULL, app->worker_count);
        metrics_write_gauge(out, "resnetd_workers_busy", "Workers that have an image in hand.", NULL,
                            (double)workers_busy(app->workers));
        metrics_write_gauge(out, "resnetd_requests_in_flight", "Requests that have begun and are not over.", NULL,
                            (double)http_active(app->http));
        metrics_write_gauge(out, "resnetd_body_memory_bytes", "Request bodies in memory.", NULL,
                            (double)http_body_memory(app->http));
        metrics_write_gauge(out, "resnetd_ready", "1 while readiness succeeds.", NULL,
                            atomic_load(&app->state) == APP_SERVING);
        metrics_write_gauge(out, "process_start_time_seconds", "Start of the process, Unix time.", NULL,
                            app->start_time);
        metrics_write_gauge(out, "resnetd_build_info", "The version.", "{version=\"" RESNETD_VERSION "\"}", 1);
        write_model_info(app, out);
    }
    reply_text(exchange, out, &text, &size, "text/plain; version=0.0.4; charset=utf-8");
}

static void answer_openapi(struct exchange *exchange)
{
    reply_static(exchange, "application/json", exchange->app->openapi, strlen(exchange->app->openapi));
}

static void answer_page(struct exchange *exchange)
{
    reply_static(exchange, "text/html; charset=utf-8", embed_page, embed_page_size);
    exchange->request->reply.policy =
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'";
}
