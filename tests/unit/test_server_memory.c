/* test_server_memory.c - a whole server in this process, in which each allocation of a request fails in turn:
 * the answer is 503, a closed connection or, where the memory was not needed, 200; never 500, and nothing
 * leaks. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../server/app.h"
#include "../../server/log.h"
#include "../../server/routes.h"
#include "fail_alloc.h"

/* An 8x8 grey PNG. */
static const uint8_t png[] = {
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52, 0x00, 0x00, 0x00,
    0x08, 0x00, 0x00, 0x00, 0x08, 0x08, 0x00, 0x00, 0x00, 0x00, 0xe1, 0x64, 0xe1, 0x57, 0x00, 0x00, 0x00, 0x4c, 0x49,
    0x44, 0x41, 0x54, 0x78, 0x9c, 0x05, 0xc1, 0x31, 0x0a, 0x80, 0x30, 0x0c, 0x05, 0xd0, 0xaf, 0x64, 0x51, 0x32, 0x54,
    0x28, 0xa4, 0x4b, 0xee, 0x7f, 0x25, 0xc1, 0xa1, 0x42, 0x96, 0x76, 0x2b, 0x54, 0xba, 0x7e, 0xdf, 0xdb, 0xde, 0xe8,
    0x13, 0x6a, 0x2e, 0x51, 0x63, 0xf0, 0x5a, 0x90, 0x1e, 0x4f, 0x63, 0xe1, 0x29, 0x73, 0xb4, 0x9b, 0xc8, 0x73, 0x07,
    0x49, 0x10, 0x10, 0x4d, 0x05, 0x2c, 0x49, 0xc5, 0x16, 0x32, 0x92, 0x9b, 0x38, 0x8e, 0x0f, 0x6a, 0xfe, 0x03, 0x1c,
    0xe0, 0x1d, 0x10, 0xa3, 0x03, 0x92, 0x65, 0x00, 0x00, 0x00, 0x00, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82,
};

struct fixture {
    struct config config;
    struct app app;
    struct http_app callbacks;
    struct http_settings settings;
    int port;
};

static void no_note(void *arg, const char *text)
{
    (void)arg;
    (void)text;
}

static int start(void **state)
{
    static char host[] = "127.0.0.1", none[] = "";
    struct fixture *f = calloc(1, sizeof *f);
    const struct model_options options = {.description_path = "config/models/demo64.json",
                                          .weights_path = "config/weights/demo64.safetensors",
                                          .threads = 2};
    struct model_options with_kernels = options;
    struct rn_error error;

    assert_non_null(f);
    log_configure(LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
    f->config.server.host = host;
    f->config.server.cors_origin = none;
    f->config.limits.max_body_bytes = f->config.limits.max_body_memory_bytes = 1 << 20;
    f->config.limits.max_image_pixels = f->config.limits.max_native_pixels = 1 << 20;
    f->config.limits.max_request_bytes = 512u << 20;
    f->config.limits.max_files = 4;
    f->config.limits.queue_length = 4;
    f->app.config = &f->config;
    f->app.worker_count = 2;
    f->app.metrics.routes = routes_names(&f->app.metrics.route_count);
    assert_int_equal(kernels_choose("auto", "auto", &with_kernels.kernels, no_note, NULL, &error), RN_OK);
    assert_int_equal(model_open(&with_kernels, &f->app.models[0], &error), RN_OK);
    f->app.model_count = 1;
    assert_true(queue_init(&f->app.queue, 4));
    assert_int_equal(workers_start(2, &f->app.queue, routes_run_job, &f->app, &f->app.workers, &error), RN_OK);
    f->callbacks = (struct http_app){&f->app, routes_begin, routes_finish, routes_done};
    f->settings = (struct http_settings){.host = host,
                                         .threads = 1,
                                         .max_connections = 16,
                                         .idle_timeout_ms = 600000,
                                         .max_body_bytes = 1 << 20,
                                         .max_body_memory_bytes = 1 << 20,
                                         .cors_origin = none};
    assert_int_equal(http_start(&f->settings, &f->callbacks, &f->app.http, &error), RN_OK);
    f->port = atoi(strrchr(http_url(f->app.http), ':') + 1);
    *state = f;
    return 0;
}

static int stop(void **state)
{
    struct fixture *f = *state;

    workers_stop(f->app.workers);
    http_stop(f->app.http);
    queue_destroy(&f->app.queue);
    model_close(f->app.models[0]);
    free(f);
    return 0;
}

/* Send a request and read what comes until the connection is closed. Returns the status, 0 for none. */
static int ask(const struct fixture *f, const char *head, const uint8_t *body, size_t size)
{
    const struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)f->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char text[1024], answer[16] = "", more[4096];
    size_t length = 0;
    ssize_t got;
    int fd = socket(AF_INET, SOCK_STREAM, 0), status = 0;

    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof address), 0);
    (void)snprintf(text, sizeof text,
                   "%s HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %zu\r\n"
                   "Content-Type: multipart/form-data; boundary=B\r\n\r\n",
                   head, size);
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
    if (size > 0)
        (void)send(fd, body, size, MSG_NOSIGNAL); /* may be refused already */
    while (length < sizeof answer - 1 && (got = recv(fd, answer + length, sizeof answer - 1 - length, 0)) > 0)
        length += (size_t)got;
    while (recv(fd, more, sizeof more, 0) > 0)
        continue;
    (void)close(fd);
    while (http_active(f->app.http) > 0)
        (void)usleep(100); /* the log line and the freeing come after the answer */
    if (strncmp(answer, "HTTP/1.1 ", 9) == 0)
        status = atoi(answer + 9);
    return status;
}

static void each_allocation_fails(const struct fixture *f, const char *head, const uint8_t *body, size_t size)
{
    int refused = 0;

    assert_int_equal(ask(f, head, body, size), 200); /* plans and passes are made */
    for (long n = 0;; n++) {
        int status;
        fail_alloc_at(n);
        status = ask(f, head, body, size);
        if (!fail_alloc_fired()) {
            assert_int_equal(status, 200);
            break;
        }
        assert_true(status == 200 || status == 503 || status == 0);
        refused += status != 200;
    }
    fail_alloc_at(-1);
    assert_true(refused > 0);
    assert_int_equal(http_body_memory(f->app.http), 0);
    assert_int_equal(ask(f, head, body, size), 200);
}

static void pages(void **state)
{
    each_allocation_fails(*state, "GET /v1/models", NULL, 0);
    each_allocation_fails(*state, "GET /v1/models/demo64", NULL, 0);
    each_allocation_fails(*state, "GET /v1/models/demo64/summary?height=33&width=65", NULL, 0);
    each_allocation_fails(*state, "GET /metrics", NULL, 0);
    each_allocation_fails(*state, "GET /healthz/ready", NULL, 0);
}

static void classify(void **state)
{
    static const char part[] = "--B\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\n";
    uint8_t body[1024];
    size_t size = 0;

    for (int files = 1; files <= 3; files++) {
        memcpy(body + size, part, sizeof part - 1);
        size += sizeof part - 1;
        memcpy(body + size, png, sizeof png);
        size += sizeof png;
        memcpy(body + size, "\r\n--B--\r\n", 9);
        each_allocation_fails(*state, "POST /v1/classify?size=native", body, size + 9);
        size += 2; /* the next part goes after the line's end */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages),
        cmocka_unit_test(classify),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
