/* http.c - libmicrohttpd's threads, connections and buffers.
 *
 * libmicrohttpd calls on_uri when the first line is read, on_access once with the headers, once per piece
 * of body and once more when the body is complete, and on_completed when the request is over in whatever
 * way. A suspended connection is not looked at until it is resumed: a client that goes away meanwhile is
 * noticed afterwards, when the reply is sent. */

#include "http.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../model/sizes.h"
#include "clock.h"
#include "log.h"

enum {
    CONNECTION_MEMORY = 64 * 1024, /* per connection: headers, and the pieces in which a body arrives */
    BODY_FIRST_BYTES = 256 * 1024, /* a larger body gets its memory while it arrives, not when it is announced */
    LISTEN_BACKLOG = 1024,
};

/* Bytes of a refused body that are read and dropped, so that the client gets to read the refusal. */
static const uint64_t discard_bytes = 256u << 20;

struct http {
    struct MHD_Daemon *daemon;
    const struct http_settings *settings;
    const struct http_app *app;
    char url[NI_MAXHOST + 32];
    atomic_size_t active;
    atomic_uint_least64_t body_memory;
    atomic_bool closing;
};

enum phase {
    PHASE_HEADERS,   /* on_access was not called yet */
    PHASE_BODY,      /* receiving */
    PHASE_SUSPENDED, /* a worker has it, or is done with it */
    PHASE_QUEUED,    /* the reply is libmicrohttpd's */
};

struct http_connection {
    struct http_request request;
    struct http *http;
    struct MHD_Connection *mhd;
    enum phase phase;
    bool last;        /* what follows on this connection would be the body that was not read */
    bool nul_in_path; /* "%00" would end the decoded path early and make it look like another one */
    size_t capacity;  /* of request.body */
};

/* --- body ----------------------------------------------------------------------------------------------- */

static bool body_reserve(struct http_connection *c, size_t capacity)
{
    struct http *http = c->http;
    size_t more = capacity - c->capacity;
    uint8_t *body;

    if (atomic_fetch_add(&http->body_memory, more) + more > http->settings->max_body_memory_bytes) {
        atomic_fetch_sub(&http->body_memory, more);
        return false;
    }
    body = realloc(c->request.body, capacity);
    if (!body) {
        atomic_fetch_sub(&http->body_memory, more);
        return false;
    }
    c->request.body = body;
    c->capacity = capacity;
    return true;
}

void http_drop_body(struct http_request *request)
{
    struct http_connection *c = request->connection;

    free(request->body);
    atomic_fetch_sub(&c->http->body_memory, c->capacity);
    request->body = NULL;
    request->body_size = 0;
    c->capacity = 0;
}

static void body_append(struct http_connection *c, const char *data, size_t size)
{
    struct http_request *request = &c->request;
    const uint64_t max = c->http->settings->max_body_bytes;
    size_t needed;

    if (!request->wants_body || request->body_state != HTTP_BODY_OK || request->reply.status != 0)
        return;
    if (!size_add(request->body_size, size, &needed) || needed > max) {
        request->body_state = HTTP_BODY_TOO_LARGE;
    } else if (needed > c->capacity) {
        uint64_t capacity = c->capacity > 0 ? 2 * (uint64_t)c->capacity : BODY_FIRST_BYTES;
        if (capacity > request->content_length)
            capacity = request->content_length;
        if (capacity > max)
            capacity = max;
        if (capacity < needed)
            capacity = needed;
        if (!body_reserve(c, (size_t)capacity))
            request->body_state = HTTP_BODY_NO_MEMORY;
    }
    if (request->body_state != HTTP_BODY_OK) {
        http_drop_body(request);
        return;
    }
    memcpy(request->body + request->body_size, data, size);
    request->body_size = needed;
}

/* --- replies -------------------------------------------------------------------------------------------- */

static void add_header(struct MHD_Response *response, const char *name, const char *value)
{
    (void)MHD_add_response_header(response, name, value); /* out of memory only: the reply goes without it */
}

static enum MHD_Result queue_reply(struct http_connection *c)
{
    static char nothing[1];
    struct http_request *request = &c->request;
    struct http_reply *reply = &request->reply;
    const char *origin = c->http->settings->cors_origin;
    struct MHD_Response *response;
    enum MHD_Result result;

    assert(reply->status != 0);
    response = MHD_create_response_from_buffer(reply->size, reply->body ? (void *)(uintptr_t)reply->body : nothing,
                                               reply->body && !reply->body_is_static ? MHD_RESPMEM_MUST_FREE
                                                                                     : MHD_RESPMEM_PERSISTENT);
    if (!response)
        return MHD_NO;            /* out of memory: the connection is closed */
    reply->body_is_static = true; /* the response frees it now */

    if (reply->content_type)
        add_header(response, "Content-Type", reply->content_type);
    add_header(response, "X-Request-Id", request->id);
    add_header(response, "X-Content-Type-Options", "nosniff");
    if (reply->server_timing[0] != '\0')
        add_header(response, "Server-Timing", reply->server_timing);
    if (reply->allow)
        add_header(response, "Allow", reply->allow);
    if (reply->policy)
        add_header(response, "Content-Security-Policy", reply->policy);
    if (reply->retry_after_s > 0) {
        char text[16];
        (void)snprintf(text, sizeof text, "%u", reply->retry_after_s);
        add_header(response, "Retry-After", text);
    }
    if (*origin) {
        add_header(response, "Access-Control-Allow-Origin", origin);
        if (strcmp(origin, "*") != 0)
            add_header(response, "Vary", "Origin");
        add_header(response, "Access-Control-Expose-Headers", "Server-Timing, X-Request-Id, Retry-After");
        if (reply->preflight) {
            add_header(response, "Access-Control-Allow-Methods", reply->allow ? reply->allow : "");
            add_header(response, "Access-Control-Allow-Headers", "Content-Type, Accept, X-Request-Id");
            add_header(response, "Access-Control-Max-Age", "86400");
        }
    }
    if (c->last || atomic_load_explicit(&c->http->closing, memory_order_relaxed))
        add_header(response, "Connection", "close");

    c->phase = PHASE_QUEUED;
    result = MHD_queue_response(c->mhd, reply->status, response);
    MHD_destroy_response(response); /* the connection holds its own reference */
    return result;
}

/* --- libmicrohttpd's callbacks -------------------------------------------------------------------------- */

static void read_remote(struct http_connection *c)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(c->mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    socklen_t length;

    if (!info || !info->client_addr)
        return;
    length = info->client_addr->sa_family == AF_INET6 ? (socklen_t)sizeof(struct sockaddr_in6)
                                                      : (socklen_t)sizeof(struct sockaddr_in);
    if (getnameinfo(info->client_addr, length, c->request.remote, sizeof c->request.remote, NULL, 0, NI_NUMERICHOST) !=
        0)
        c->request.remote[0] = '\0';
}

static void *on_uri(void *cls, const char *uri, struct MHD_Connection *mhd)
{
    struct http *http = cls;
    struct http_connection *c = calloc(1, sizeof *c);
    const char *nul = strstr(uri, "%00");

    if (!c)
        return NULL; /* on_access will close the connection */
    c->http = http;
    c->mhd = mhd;
    c->nul_in_path = nul && nul < uri + strcspn(uri, "?");
    c->request.connection = c;
    c->request.begun_ns = clock_now_ns();
    if (strlen(uri) < sizeof c->request.target)
        (void)strcpy(c->request.target, uri);
    else
        (void)snprintf(c->request.target, sizeof c->request.target, "%.*s...", HTTP_TARGET_SIZE - 4, uri);
    request_id_new(c->request.id);
    return c;
}

static void begin(struct http_connection *c, const char *method, const char *path)
{
    struct http_request *request = &c->request;
    const char *length = http_header(request, "Content-Length"), *id = http_header(request, "X-Request-Id");

    atomic_fetch_add(&c->http->active, 1);
    request->method = method;
    request->path = c->nul_in_path ? "" : path;
    request->chunked = http_header(request, "Transfer-Encoding") != NULL;
    request->content_length = request->chunked ? UINT64_MAX : length ? strtoull(length, NULL, 10) : 0;
    if (!request->chunked && request->content_length == UINT64_MAX)
        request->content_length--; /* absurd, but known */
    if (id && request_id_valid(id))
        (void)strcpy(request->id, id);
    read_remote(c);
    c->phase = PHASE_BODY;
    c->http->app->begin(c->http->app->arg, request);
}

/* Whether a reply that is already known should be sent without reading the body: the client waits for a
 * permission to send, or the body is too large even to drop, or it has no end that libmicrohttpd sees. */
static bool skips_body(const struct http_connection *c)
{
    const struct http_request *request = &c->request;
    const char *expect = http_header(request, "Expect"), *transfer = http_header(request, "Transfer-Encoding");

    if (request->reply.status == 0)
        return false;
    if (transfer && strcasecmp(transfer, "chunked") != 0)
        return true;
    if (expect && strcasecmp(expect, "100-continue") == 0)
        return request->chunked || request->content_length > 0;
    return !request->chunked && request->content_length > discard_bytes;
}

/* Whether the client has closed its side in the middle of the body. libmicrohttpd takes a short read for the
 * end of what epoll announced, and so misses a close that came together with the last bytes: the request
 * would stay until the idle timeout, and hold up a shutdown. */
static bool is_cut_off(const struct http_connection *c)
{
    const struct http_request *request = &c->request;
    const union MHD_ConnectionInfo *info;
    char byte;

    if (request->chunked || request->bytes_in >= request->content_length)
        return false; /* the end of a chunked body may wait in libmicrohttpd's buffer */
    info = MHD_get_connection_info(c->mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info && recv(info->connect_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

static enum MHD_Result on_access(void *cls, struct MHD_Connection *mhd, const char *url, const char *method,
                                 const char *version, const char *upload, size_t *upload_size, void **context)
{
    struct http_connection *c = *context;
    struct http_request *request;

    (void)cls;
    (void)mhd;
    (void)version;
    if (!c)
        return MHD_NO; /* there was no memory for the request */
    request = &c->request;
    switch (c->phase) {
    case PHASE_HEADERS:
        begin(c, method, url);
        c->last = skips_body(c);
        return c->last ? queue_reply(c) : MHD_YES;

    case PHASE_BODY:
        if (*upload_size > 0) {
            request->bytes_in += *upload_size;
            body_append(c, upload, *upload_size);
            *upload_size = 0;
            if (request->body_size == 0 && request->bytes_in > discard_bytes)
                return MHD_NO; /* an endless body that is being dropped */
            return is_cut_off(c) ? MHD_NO : MHD_YES;
        }
        request->received_ns = clock_now_ns();
        if (request->reply.status == 0) {
            c->http->app->finish(c->http->app->arg, request);
            if (c->phase == PHASE_SUSPENDED)
                return MHD_YES; /* called again after http_resume */
        }
        return queue_reply(c);

    case PHASE_SUSPENDED:
        return queue_reply(c);

    case PHASE_QUEUED:
        break;
    }
    return MHD_NO;
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **context, enum MHD_RequestTerminationCode code)
{
    struct http *http = cls;
    struct http_connection *c = *context;

    (void)mhd;
    if (!c)
        return;
    *context = NULL;
    c->request.aborted = code != MHD_REQUEST_TERMINATED_COMPLETED_OK || c->phase != PHASE_QUEUED;
    http->app->done(http->app->arg, &c->request);
    http_drop_body(&c->request);
    if (!c->request.reply.body_is_static)
        free((void *)(uintptr_t)c->request.reply.body);
    if (c->request.method)
        atomic_fetch_sub(&http->active, 1);
    free(c);
}

static void on_log(void *cls, const char *format, va_list args) __attribute__((format(printf, 2, 0)));
static void on_log(void *cls, const char *format, va_list args)
{
    char text[256];

    (void)cls;
    (void)vsnprintf(text, sizeof text, format, args);
    text[strcspn(text, "\n")] = '\0';
    log_write(LOG_LEVEL_DEBUG, "libmicrohttpd: %s", text);
}

/* --- requests ------------------------------------------------------------------------------------------- */

void http_suspend(struct http_request *request)
{
    request->connection->phase = PHASE_SUSPENDED;
    MHD_suspend_connection(request->connection->mhd);
}

void http_resume(struct http_request *request)
{
    assert(request->reply.status != 0);
    MHD_resume_connection(request->connection->mhd);
}

const char *http_header(const struct http_request *request, const char *name)
{
    return MHD_lookup_connection_value(request->connection->mhd, MHD_HEADER_KIND, name);
}

struct each {
    bool (*call)(void *arg, const char *name, size_t name_length, const char *value, size_t value_length);
    void *arg;
};

static enum MHD_Result on_parameter(void *cls, enum MHD_ValueKind kind, const char *name, size_t name_length,
                                    const char *value, size_t value_length)
{
    const struct each *each = cls;

    (void)kind;
    return each->call(each->arg, name, name_length, value ? value : "", value ? value_length : 0) ? MHD_YES : MHD_NO;
}

void http_each_parameter(const struct http_request *request,
                         bool (*each)(void *arg, const char *name, size_t name_length, const char *value,
                                      size_t value_length),
                         void *arg)
{
    struct each call = {each, arg};
    (void)MHD_get_connection_values_n(request->connection->mhd, MHD_GET_ARGUMENT_KIND, on_parameter, &call);
}

/* --- the server ----------------------------------------------------------------------------------------- */

static int listen_on(const struct addrinfo *address)
{
    const int on = 1, off = 0;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address->ai_family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off); /* "::" takes IPv4 too */
    if (bind(fd, address->ai_addr, address->ai_addrlen) != 0 || listen(fd, LISTEN_BACKLOG) != 0) {
        int saved = errno;
        (void)close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

/* A listening socket in *fd, and where it is as an URL. */
static enum rn_status open_socket(const struct http_settings *settings, int *fd, char *url, size_t url_size,
                                  struct rn_error *error)
{
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    struct sockaddr_storage bound;
    socklen_t length = sizeof bound;
    char port[16], host[NI_MAXHOST];
    int failure;

    (void)snprintf(port, sizeof port, "%d", settings->port);
    failure = getaddrinfo(settings->host, port, &hints, &list);
    if (failure != 0)
        return rn_fail(error, RN_ERR_IO, "cannot listen on \"%s\": %s", settings->host, gai_strerror(failure));
    *fd = -1;
    for (const struct addrinfo *a = list; a && *fd < 0; a = a->ai_next)
        *fd = listen_on(a);
    failure = errno;
    freeaddrinfo(list);
    if (*fd < 0)
        return rn_fail(error, RN_ERR_IO, "cannot listen on %s port %d: %s", settings->host, settings->port,
                       strerror(failure));
    if (getsockname(*fd, (struct sockaddr *)&bound, &length) != 0 ||
        getnameinfo((struct sockaddr *)&bound, length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        (void)close(*fd);
        return rn_fail(error, RN_ERR_IO, "cannot tell which port was opened");
    }
    (void)snprintf(url, url_size, strchr(host, ':') ? "http://[%s]:%s" : "http://%s:%s", host, port);
    return RN_OK;
}

enum rn_status http_start(const struct http_settings *settings, const struct http_app *app, struct http **out,
                          struct rn_error *error)
{
    struct http *http = calloc(1, sizeof *http);
    struct MHD_OptionItem options[] = {
        {MHD_OPTION_EXTERNAL_LOGGER, (intptr_t)on_log, NULL},
        {MHD_OPTION_URI_LOG_CALLBACK, (intptr_t)on_uri, http},
        {MHD_OPTION_NOTIFY_COMPLETED, (intptr_t)on_completed, http},
        {MHD_OPTION_CONNECTION_LIMIT, settings->max_connections, NULL},
        {MHD_OPTION_CONNECTION_TIMEOUT, (settings->idle_timeout_ms + 999) / 1000, NULL},
        {MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_MEMORY, NULL},
        {MHD_OPTION_LISTEN_BACKLOG_SIZE, LISTEN_BACKLOG, NULL},
        {MHD_OPTION_LISTEN_SOCKET, -1, NULL},
        {MHD_OPTION_END, 0, NULL}, /* MHD_OPTION_THREAD_POOL_SIZE */
        {MHD_OPTION_END, 0, NULL},
    };
    enum { LISTEN_SOCKET = 7, THREAD_POOL = 8 };
    enum rn_status status;
    int fd = -1;

    *out = NULL;
    if (!http)
        return rn_fail_nomem(error, "the HTTP server");
    http->settings = settings;
    http->app = app;
    status = open_socket(settings, &fd, http->url, sizeof http->url, error);
    if (status != RN_OK) {
        free(http);
        return status;
    }
    options[LISTEN_SOCKET].value = fd;
    if (settings->threads > 1)
        options[THREAD_POOL] = (struct MHD_OptionItem){MHD_OPTION_THREAD_POOL_SIZE, settings->threads, NULL};
    *out = http; /* before the threads start: the first request may come at once and look for it */
    http->daemon = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0,
                                    NULL, NULL, on_access, http, MHD_OPTION_ARRAY, options, MHD_OPTION_END);
    if (!http->daemon) {
        (void)close(fd);
        free(http);
        *out = NULL;
        return rn_fail(error, RN_ERR_IO, "cannot start the HTTP threads");
    }
    return RN_OK;
}

const char *http_url(const struct http *http)
{
    return http->url;
}

size_t http_active(const struct http *http)
{
    return atomic_load(&http->active);
}

uint64_t http_body_memory(const struct http *http)
{
    return atomic_load(&http->body_memory);
}

void http_set_closing(struct http *http)
{
    atomic_store(&http->closing, true);
}

void http_stop(struct http *http)
{
    if (!http)
        return;
    MHD_stop_daemon(http->daemon);
    free(http);
}
