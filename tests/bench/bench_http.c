/* bench_http.c - a load of POST requests with one image, and what they took.
 *
 *   bench_http --port N --target PATH --file IMAGE --clients N --seconds S [--rate R]
 *
 * Without a rate every client sends its next request when the reply to the last has come (closed loop). With
 * one, requests arrive at random moments, R a second on average, whatever the server does (open loop), and a
 * request's time counts from its arrival, also while it waits for a free client. Prints one JSON object:
 * percentiles in milliseconds, images per second, and, when the replies carry timing_ms, the medians of its
 * parts and the overhead: latency - decode - preprocess - inference. */

#include <arpa/inet.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../model/clock.h"

enum { MAX_CLIENTS = 1024, MAX_SAMPLES = 1 << 20, REPLY_SIZE = 256 * 1024, HEAD_SIZE = 512, PARTS = 5 };

static const char *const PART_NAMES[PARTS] = {"queue", "decode", "preprocess", "inference", "total"};

struct sample {
    double latency_ms, parts[PARTS];
    bool has_parts;
};

struct load {
    const char *request; /* head and body */
    size_t request_size;
    int port;
    uint64_t start_ns, until_ns;
    const uint64_t *arrivals; /* of the open loop, ascending; NULL: closed loop */
    int arrival_count;
    _Atomic int next_arrival, sample_count, failures;
    _Atomic uint64_t last_ns; /* the latest reply */
    struct sample *samples;   /* [MAX_SAMPLES] */
};

_Noreturn static void fail(const char *what)
{
    printf("{\"error\": \"%s\"}\n", what);
    exit(1);
}

static void *must(void *memory)
{
    if (!memory)
        fail("out of memory");
    return memory;
}

static int connect_to(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address)) {
        if (fd >= 0)
            (void)close(fd);
        return -1;
    }
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static bool send_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        data += sent;
        size -= (size_t)sent;
    }
    return true;
}

/* Read one reply with a Content-Length into `reply`, NUL-terminated; its body, or NULL when the connection or
 * the server failed, which leaves reply[0] at 0 when not a byte came. */
static const char *read_reply(int fd, char *reply, bool *is_ok)
{
    size_t size = 0, needed = 0;
    char *body = NULL;

    reply[0] = 0;
    while (!body || size < needed) {
        ssize_t got = size < REPLY_SIZE - 1 ? recv(fd, reply + size, REPLY_SIZE - 1 - size, 0) : 0;
        if (got <= 0)
            return NULL;
        size += (size_t)got;
        reply[size] = 0;
        if (!body && (body = strstr(reply, "\r\n\r\n"))) {
            const char *length = strcasestr(reply, "\r\nContent-Length:");
            if (!length || length > body)
                return NULL;
            body += 4;
            needed = (size_t)(body - reply) + strtoul(length + sizeof "\r\nContent-Length:" - 1, NULL, 10);
        }
    }
    *is_ok = strncmp(reply, "HTTP/1.1 200", 12) == 0;
    return body;
}

static void read_parts(const char *body, struct sample *sample)
{
    const char *timing = strstr(body, "\"timing_ms\"");

    sample->has_parts = timing != NULL;
    for (int i = 0; i < PARTS && sample->has_parts; i++) {
        char key[24];
        (void)snprintf(key, sizeof key, "\"%s\":", PART_NAMES[i]);
        const char *at = strstr(timing, key);
        sample->has_parts = at != NULL;
        if (at)
            sample->parts[i] = strtod(at + strlen(key), NULL);
    }
}

/* When the next request starts to count, after waiting for that moment; 0 when there is none. */
static uint64_t next_start(struct load *load)
{
    if (!load->arrivals) {
        uint64_t now = clock_now_ns();
        return now < load->until_ns ? now : 0;
    }
    int i = atomic_fetch_add(&load->next_arrival, 1);
    if (i >= load->arrival_count)
        return 0;
    const struct timespec at = {.tv_sec = (time_t)(load->arrivals[i] / 1000000000u),
                                .tv_nsec = (long)(load->arrivals[i] % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL))
        ;
    return load->arrivals[i];
}

/* One request on a connection that is kept in *fd (-1: none). The server may have closed it while it was idle;
 * then, as every client does, once more on a new one. */
static const char *exchange(const struct load *load, int *fd, char *reply, bool *is_ok)
{
    const char *body = NULL;
    bool reused;

    do {
        reused = *fd >= 0;
        reply[0] = 0;
        if (!reused && (*fd = connect_to(load->port)) < 0)
            return NULL;
        if (send_all(*fd, load->request, load->request_size))
            body = read_reply(*fd, reply, is_ok);
        if (!body) {
            (void)close(*fd);
            *fd = -1;
        }
    } while (!body && reused && !reply[0]);
    return body;
}

static void *run_client(void *arg)
{
    struct load *load = arg;
    char *reply = must(malloc(REPLY_SIZE));
    int fd = -1;
    uint64_t start;

    while ((start = next_start(load))) {
        bool is_ok = false;
        const char *body = exchange(load, &fd, reply, &is_ok);
        uint64_t now = clock_now_ns();
        if (!body || !is_ok) {
            atomic_fetch_add(&load->failures, 1);
            (void)usleep(1000);
            continue;
        }
        int i = atomic_fetch_add(&load->sample_count, 1);
        if (i >= MAX_SAMPLES)
            break;
        load->samples[i].latency_ms = (double)(now - start) / 1e6;
        read_parts(body, &load->samples[i]);
        uint64_t last = atomic_load(&load->last_ns);
        while (now > last && !atomic_compare_exchange_weak(&load->last_ns, &last, now))
            ;
    }
    if (fd >= 0)
        (void)close(fd);
    free(reply);
    return NULL;
}

/* Seeded exponential intervals: the same moments in every run. */
static uint64_t *make_arrivals(uint64_t start_ns, double seconds, double rate, int *count)
{
    uint64_t *arrivals = must(calloc(MAX_SAMPLES, sizeof *arrivals)), state = 88172645463325252u;
    double at = 0;

    for (*count = 0; *count < MAX_SAMPLES && at < seconds; (*count)++) {
        arrivals[*count] = start_ns + (uint64_t)(at * 1e9);
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        at -= log(((double)(state >> 11) + 0.5) / 9007199254740992.0) / rate;
    }
    return arrivals;
}

static char *make_request(const char *target, const char *path, int port, size_t *size)
{
    FILE *file = fopen(path, "rb");
    long body;

    if (!file || fseek(file, 0, SEEK_END) || (body = ftell(file)) < 0 || fseek(file, 0, SEEK_SET))
        fail("the image cannot be read");
    char *request = must(malloc(HEAD_SIZE + (size_t)body));
    int head = snprintf(request, HEAD_SIZE,
                        "POST %s HTTP/1.1\r\nHost: localhost:%d\r\nContent-Type: image/jpeg\r\n"
                        "Content-Length: %ld\r\n\r\n",
                        target, port, body);
    if (head < 0 || head >= HEAD_SIZE || fread(request + head, 1, (size_t)body, file) != (size_t)body)
        fail("the image cannot be read");
    (void)fclose(file);
    *size = (size_t)head + (size_t)body;
    return request;
}

static int compare_double(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double percentile(const double *sorted, int count, double share)
{
    return sorted[(int)((double)(count - 1) * share + 0.5)];
}

static void print_samples(const struct load *load, int count)
{
    double *values = must(calloc((size_t)count + 1, sizeof *values)), sum = 0;
    bool has_parts = count > 0;

    for (int i = 0; i < count; i++) {
        values[i] = load->samples[i].latency_ms;
        sum += values[i];
        has_parts = has_parts && load->samples[i].has_parts;
    }
    qsort(values, (size_t)count, sizeof *values, compare_double);
    printf(", \"mean_ms\": %.3f, \"p50_ms\": %.3f, \"p90_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f", sum / count,
           percentile(values, count, 0.5), percentile(values, count, 0.9), percentile(values, count, 0.99),
           values[count - 1]);
    for (int part = 0; part < PARTS && has_parts; part++) {
        for (int i = 0; i < count; i++)
            values[i] = load->samples[i].parts[part];
        qsort(values, (size_t)count, sizeof *values, compare_double);
        printf(", \"%s_ms\": %.3f", PART_NAMES[part], percentile(values, count, 0.5));
    }
    for (int i = 0; i < count && has_parts; i++) {
        const struct sample *s = &load->samples[i];
        values[i] = s->latency_ms - s->parts[1] - s->parts[2] - s->parts[3];
    }
    if (has_parts) {
        qsort(values, (size_t)count, sizeof *values, compare_double);
        printf(", \"overhead_p50_ms\": %.3f, \"overhead_p99_ms\": %.3f", percentile(values, count, 0.5),
               percentile(values, count, 0.99));
    }
    free(values);
}

int main(int argc, char **argv)
{
    struct load load = {0};
    const char *target = "/", *file = NULL;
    pthread_t threads[MAX_CLIENTS];
    int clients = 1, started = 0;
    double seconds = 1, rate = 0;
    uint64_t *arrivals = NULL;

    for (int i = 1; i + 1 < argc; i += 2) {
        const char *flag = argv[i], *value = argv[i + 1];
        if (!strcmp(flag, "--port"))
            load.port = atoi(value);
        else if (!strcmp(flag, "--target"))
            target = value;
        else if (!strcmp(flag, "--file"))
            file = value;
        else if (!strcmp(flag, "--clients"))
            clients = atoi(value);
        else if (!strcmp(flag, "--seconds"))
            seconds = strtod(value, NULL);
        else if (!strcmp(flag, "--rate"))
            rate = strtod(value, NULL);
        else
            fail("unknown option");
    }
    if (!file || load.port < 1 || clients < 1 || clients > MAX_CLIENTS || !(seconds > 0))
        fail("usage: bench_http --port N --target PATH --file IMAGE --clients N --seconds S [--rate R]");
    char *request = make_request(target, file, load.port, &load.request_size);
    load.request = request;
    load.samples = must(calloc(MAX_SAMPLES, sizeof *load.samples));
    load.start_ns = clock_now_ns();
    load.until_ns = load.start_ns + (uint64_t)(seconds * 1e9);
    if (rate > 0)
        load.arrivals = arrivals = make_arrivals(load.start_ns, seconds, rate, &load.arrival_count);
    for (; started < clients; started++)
        if (pthread_create(&threads[started], NULL, run_client, &load))
            fail("a thread cannot be started");
    while (started > 0)
        (void)pthread_join(threads[--started], NULL);
    const int count = load.sample_count < MAX_SAMPLES ? load.sample_count : MAX_SAMPLES;
    const double elapsed = count ? (double)(load.last_ns - load.start_ns) / 1e9 : seconds;
    printf("{\"clients\": %d, \"rate\": %.2f, \"requests\": %d, \"failures\": %d, \"seconds\": %.2f, "
           "\"images_per_s\": %.3f",
           clients, rate, count, load.failures, elapsed, count / elapsed);
    if (count)
        print_samples(&load, count);
    printf("}\n");
    free(load.samples);
    free(arrivals);
    free(request);
    return 0;
}
