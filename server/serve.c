/* serve.c - from configuration to a running server, and back.
 *
 * models -> queue -> workers -> HTTP; signal -> not ready -> draining -> the same in reverse */

#include "serve.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../model/kernels.h"
#include "app.h"
#include "clock.h"
#include "embed.h"
#include "log.h"
#include "routes.h"

/* How often a draining server looks whether its last request is over. */
enum { DRAIN_POLL_MS = 5 };

static void on_kernels_note(void *arg, const char *text)
{
    (void)arg;
    log_write(LOG_LEVEL_INFO, "kernels: %s", text);
}

static enum rn_status open_models(struct app *app, struct rn_error *error)
{
    const struct config *config = app->config;
    const struct kernels *kernels;
    enum rn_status status =
        kernels_choose(config->engine.kernels, config->engine.precision, &kernels, on_kernels_note, NULL, error);

    if (status != RN_OK)
        return status;
    log_write(LOG_LEVEL_INFO, "kernel table %s (%s: %s), %d worker%s", kernels->name, kernels->precision,
              kernels->arithmetic, app->worker_count, app->worker_count == 1 ? "" : "s");
    for (int i = 0; i < config->model_count; i++) {
        const struct model_options options = {
            .name = config->models[i].name,
            .description_path = config->models[i].description,
            .weights_path = config->models[i].weights,
            .labels_path = config->models[i].labels,
            .kernels = kernels,
            .threads = app->worker_count,
        };
        const struct model *model;
        status = model_open(&options, &app->models[i], error);
        if (status != RN_OK)
            return status;
        model = app->models[app->model_count++];
        for (int j = 0; j < i; j++)
            if (strcmp(model_name(app->models[j]), model_name(model)) == 0)
                return rn_fail(error, RN_ERR_CONFIG, "two models are called \"%s\": give one another \"name\"",
                               model_name(model));
        log_write(LOG_LEVEL_INFO, "model %s: %d classes, %.1f million parameters, weights %s (%s)%s", model_name(model),
                  model_network(model)->classes, (double)model_parameters(model) / 1e6, model_weights_path(model),
                  model_weights_format(model), i == 0 ? ", the default" : "");
    }
    if (config->default_note)
        log_write(LOG_LEVEL_WARN, "%s", config->default_note);
    return RN_OK;
}

/* The document of the API with this server's version in it. */
static enum rn_status make_openapi(struct app *app, struct rn_error *error)
{
    static const char mark[] = "@VERSION@";
    const size_t size = embed_openapi_size;
    const char *at = memmem(embed_openapi, size, mark, sizeof mark - 1);
    size_t before;

    assert(at);
    before = (size_t)(at - embed_openapi);
    app->openapi = malloc(size + sizeof RESNETD_VERSION);
    if (!app->openapi)
        return rn_fail_nomem(error, "the API's description");
    (void)sprintf(app->openapi, "%.*s%s%.*s", (int)before, embed_openapi, RESNETD_VERSION,
                  (int)(size - before - (sizeof mark - 1)), at + sizeof mark - 1);
    return RN_OK;
}

/* Every connection is a file descriptor: allow as many as the system lets us. */
static void raise_file_limit(int max_connections)
{
    const rlim_t wanted = (rlim_t)max_connections + 64;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted)
        return;
    limit.rlim_cur = limit.rlim_max == RLIM_INFINITY || limit.rlim_max >= wanted ? wanted : limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < wanted)
        log_write(LOG_LEVEL_WARN, "the system allows %llu open files, fewer than server.max_connections = %d needs",
                  (unsigned long long)limit.rlim_cur, max_connections);
}

/* Signals arrive here as bytes. A handler rather than sigwait: a library's thread (OpenBLAS starts some when
 * it is loaded) may have SIGTERM unblocked, and would take it with its default action. */
static int signal_pipe[2];

static void on_signal(int signal_number)
{
    const char byte = (char)signal_number;
    const int saved = errno;

    (void)!write(signal_pipe[1], &byte, 1);
    errno = saved;
}

static enum rn_status catch_signals(struct rn_error *error)
{
    const struct sigaction catch = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

    if (pipe2(signal_pipe, O_CLOEXEC | O_NONBLOCK) != 0 || sigaction(SIGTERM, &catch, NULL) != 0 ||
        sigaction(SIGINT, &catch, NULL) != 0 || signal(SIGPIPE, SIG_IGN) == SIG_ERR)
        return rn_fail(error, RN_ERR_IO, "cannot catch signals: %s", strerror(errno));
    return RN_OK;
}

/* Wait up to `ms`, -1 for ever, for a signal. Returns it, or 0. */
static int wait_signal(int ms)
{
    const uint64_t until = clock_now_ns() + (ms < 0 ? 0 : (uint64_t)ms * 1000000);
    struct pollfd readable = {.fd = signal_pipe[0], .events = POLLIN};
    char byte;

    for (;;) {
        const uint64_t now = clock_now_ns();
        if (poll(&readable, 1,
                 ms < 0         ? -1
                 : now >= until ? 0
                                : (int)((until - now + 999999) / 1000000)) > 0 &&
            read(signal_pipe[0], &byte, 1) == 1)
            return byte;
        if (ms >= 0 && clock_now_ns() >= until)
            return 0;
    }
}

static _Noreturn void quit_at_once(int signal_number)
{
    log_write(LOG_LEVEL_WARN, "second signal (%s): exiting at once", strsignal(signal_number));
    _exit(1);
}

/* After the first signal: let what was accepted be answered. A second signal ends the process. */
static void drain(struct app *app)
{
    const struct config *config = app->config;
    uint64_t until;
    size_t active;
    int again;

    atomic_store(&app->state, APP_NOT_READY);
    log_write(LOG_LEVEL_INFO, "not ready from now on, draining in %d ms", config->server.drain_delay_ms);
    again = wait_signal(config->server.drain_delay_ms);
    if (again)
        quit_at_once(again);

    atomic_store(&app->state, APP_DRAINING);
    http_set_closing(app->http);
    log_write(LOG_LEVEL_INFO, "draining: %zu requests in flight, at most %d ms", http_active(app->http),
              config->server.drain_timeout_ms);
    until = clock_now_ns() + (uint64_t)config->server.drain_timeout_ms * 1000000;
    while ((active = http_active(app->http)) > 0) {
        if (clock_now_ns() >= until) {
            /* A worker cannot be taken off an image, and libmicrohttpd cannot be stopped before it is done. */
            log_write(LOG_LEVEL_WARN, "%zu requests were not over after %d ms: exiting without them", active,
                      config->server.drain_timeout_ms);
            _exit(0);
        }
        again = wait_signal(DRAIN_POLL_MS);
        if (again)
            quit_at_once(again);
    }
    log_write(LOG_LEVEL_INFO, "drained");
}

static int serve(struct app *app)
{
    const struct config *config = app->config;
    const uint64_t begun_ns = clock_now_ns();
    const struct http_app callbacks = {app, routes_begin, routes_finish, routes_done};
    const struct http_settings settings = {
        .host = config->server.host,
        .port = config->server.port,
        .threads = config->server.http_threads,
        .max_connections = config->server.max_connections,
        .idle_timeout_ms = config->server.idle_timeout_ms,
        .max_body_bytes = config->limits.max_body_bytes,
        .max_body_memory_bytes = config->limits.max_body_memory_bytes,
        .cors_origin = config->server.cors_origin,
    };
    bool have_queue = false;
    struct rn_error error = {0};
    enum rn_status status = make_openapi(app, &error);

    if (status == RN_OK)
        status = catch_signals(&error);
    if (status == RN_OK)
        status = open_models(app, &error);
    if (status == RN_OK) {
        have_queue = queue_init(&app->queue, (size_t)config->limits.queue_length);
        if (!have_queue)
            status = rn_fail_nomem(&error, "the queue");
    }
    if (status == RN_OK)
        status = workers_start(app->worker_count, &app->queue, routes_run_job, app, &app->workers, &error);
    if (status == RN_OK)
        status = http_start(&settings, &callbacks, &app->http, &error);
    if (status == RN_OK) {
        log_write(LOG_LEVEL_INFO, "listening on %s, ready after %.0f ms", http_url(app->http),
                  clock_ms(clock_now_ns() - begun_ns));
        log_write(LOG_LEVEL_INFO, "signal: %s", strsignal(wait_signal(-1)));
        drain(app);
    } else {
        log_write(LOG_LEVEL_ERROR, "%s", error.text);
    }

    /* HTTP last but one: a worker that still has a request would resume it. */
    workers_stop(app->workers);
    http_stop(app->http);
    if (have_queue)
        queue_destroy(&app->queue);
    for (int i = 0; i < app->model_count; i++)
        model_close(app->models[i]);
    free(app->openapi);
    return status == RN_OK ? 0 : 1;
}

int serve_run(const struct config *config)
{
    struct app *app = calloc(1, sizeof *app);
    struct timespec now;
    int exit_status;

    log_configure(config->log.format, config->log.level);
    if (!app) {
        log_write(LOG_LEVEL_ERROR, "out of memory for the server");
        return 1;
    }
    raise_file_limit(config->server.max_connections);

    (void)clock_gettime(CLOCK_REALTIME, &now);
    app->start_time = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
    app->config = config;
    app->worker_count = config->engine.workers > 0 ? config->engine.workers : config_cpu_count();
    app->metrics.routes = routes_names(&app->metrics.route_count);
    atomic_store(&app->state, APP_SERVING);
    exit_status = serve(app);
    if (exit_status == 0)
        log_write(LOG_LEVEL_INFO, "bye");
    free(app);
    return exit_status;
}
