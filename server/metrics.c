/* metrics.c - Prometheus's text format. */

#include "metrics.h"

#include <assert.h>
#include <inttypes.h>
#include <time.h>
#include <unistd.h>

/* Upper bounds in nanoseconds: 100 us to 10 s, about 2.2 apart. */
static const uint64_t bounds[METRICS_BUCKETS] = {
    100000,   250000,    500000,    1000000,   2500000,    5000000,    10000000,   25000000,
    50000000, 100000000, 250000000, 500000000, 1000000000, 2500000000, 5000000000, 10000000000,
};

/* Every status that the server sends; the first stands for any other. */
static const unsigned statuses[METRICS_STATUSES] = {0,   200, 204, 400, 404, 405, 413, 415, 422, METRICS_STATUS_ABORTED,
                                                    500, 503, 304, 406, 431, 501};

static const char *const stage_names[STAGE_COUNT] = {"queue", "decode", "preprocess", "inference", "total"};

static void add(atomic_uint_least64_t *counter, uint64_t value)
{
    atomic_fetch_add_explicit(counter, value, memory_order_relaxed);
}

static uint64_t get(const atomic_uint_least64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void observe(struct metrics_histogram *histogram, uint64_t ns)
{
    int i = 0;
    while (i < METRICS_BUCKETS && ns > bounds[i])
        i++;
    add(&histogram->buckets[i], 1);
    add(&histogram->sum_ns, ns);
}

void metrics_count_request(struct metrics *metrics, int route, unsigned status, uint64_t received_bytes,
                           uint64_t sent_bytes, uint64_t duration_ns)
{
    int i = METRICS_STATUSES - 1;

    assert(route >= 0 && route < metrics->route_count);
    while (i > 0 && statuses[i] != status)
        i--;
    add(&metrics->requests[route][i], 1);
    add(&metrics->received_bytes, received_bytes);
    add(&metrics->sent_bytes, sent_bytes);
    observe(&metrics->requests_duration, duration_ns);
}

void metrics_count_image(struct metrics *metrics, enum api_error outcome)
{
    add(&metrics->images[outcome], 1);
}

void metrics_observe(struct metrics *metrics, enum metrics_stage stage, uint64_t ns)
{
    observe(&metrics->stages[stage], ns);
}

static void head(FILE *out, const char *name, const char *type, const char *help)
{
    (void)fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* `label` is `stage="queue"` or "". */
static void write_histogram(FILE *out, const char *name, const char *label, const struct metrics_histogram *histogram)
{
    const char *comma = *label ? "," : "";
    uint64_t count = 0;

    for (int i = 0; i < METRICS_BUCKETS; i++) {
        count += get(&histogram->buckets[i]);
        (void)fprintf(out, "%s_bucket{%s%sle=\"%g\"} %" PRIu64 "\n", name, label, comma, (double)bounds[i] / 1e9,
                      count);
    }
    count += get(&histogram->buckets[METRICS_BUCKETS]);
    (void)fprintf(out, "%s_bucket{%s%sle=\"+Inf\"} %" PRIu64 "\n", name, label, comma, count);
    if (*label) {
        (void)fprintf(out, "%s_sum{%s} %.9f\n%s_count{%s} %" PRIu64 "\n", name, label,
                      (double)get(&histogram->sum_ns) / 1e9, name, label, count);
    } else {
        (void)fprintf(out, "%s_sum %.9f\n%s_count %" PRIu64 "\n", name, (double)get(&histogram->sum_ns) / 1e9, name,
                      count);
    }
}

void metrics_write_gauge(FILE *out, const char *name, const char *help, const char *labels, double value)
{
    head(out, name, "gauge", help);
    (void)fprintf(out, "%s%s %.17g\n", name, labels ? labels : "", value);
}

void metrics_write_label(FILE *out, const char *value)
{
    for (; *value; value++) {
        if (*value == '\n') {
            (void)fputs("\\n", out);
        } else {
            if (*value == '"' || *value == '\\')
                (void)fputc('\\', out);
            (void)fputc(*value, out);
        }
    }
}

/* Pages of resident memory, from /proc/self/statm; 0 when it cannot be read. */
static double resident_bytes(void)
{
    unsigned long long size, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");

    if (!file)
        return 0;
    if (fscanf(file, "%llu %llu", &size, &resident) != 2)
        resident = 0;
    (void)fclose(file);
    return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

static double peak_resident_bytes(void)
{
    char line[128];
    unsigned long long kib = 0;
    FILE *file = fopen("/proc/self/status", "re");

    if (!file)
        return 0;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "VmHWM: %llu kB", &kib) == 1)
            break;
    (void)fclose(file);
    return (double)kib * 1024;
}

static double clock_seconds(clockid_t clock)
{
    struct timespec now = {0};
    (void)clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

void metrics_write(const struct metrics *metrics, FILE *out)
{
    head(out, "resnetd_requests_total", "counter",
         "Requests that are over, by route and status; 499: the client went away.");
    for (int route = 0; route < metrics->route_count; route++) {
        for (int i = 0; i < METRICS_STATUSES; i++) {
            uint64_t count = get(&metrics->requests[route][i]);
            if (count == 0)
                continue;
            if (statuses[i] == 0)
                (void)fprintf(out, "resnetd_requests_total{route=\"%s\",status=\"other\"} %" PRIu64 "\n",
                              metrics->routes[route], count);
            else
                (void)fprintf(out, "resnetd_requests_total{route=\"%s\",status=\"%u\"} %" PRIu64 "\n",
                              metrics->routes[route], statuses[i], count);
        }
    }

    head(out, "resnetd_images_total", "counter", "Images that a worker took, by outcome.");
    for (int i = 0; i < API_ERROR_COUNT; i++) {
        uint64_t count = get(&metrics->images[i]);
        if (count > 0 || i == API_OK)
            (void)fprintf(out, "resnetd_images_total{outcome=\"%s\"} %" PRIu64 "\n",
                          api_error_info((enum api_error)i)->code, count);
    }

    head(out, "resnetd_received_bytes_total", "counter", "Bytes of request bodies.");
    (void)fprintf(out, "resnetd_received_bytes_total %" PRIu64 "\n", get(&metrics->received_bytes));
    head(out, "resnetd_sent_bytes_total", "counter", "Bytes of reply bodies.");
    (void)fprintf(out, "resnetd_sent_bytes_total %" PRIu64 "\n", get(&metrics->sent_bytes));

    head(out, "resnetd_stage_seconds", "histogram",
         "Time of each stage of an image; total is from the last byte received to the reply built.");
    for (int i = 0; i < STAGE_COUNT; i++) {
        char label[32];
        (void)snprintf(label, sizeof label, "stage=\"%s\"", stage_names[i]);
        write_histogram(out, "resnetd_stage_seconds", label, &metrics->stages[i]);
    }
    head(out, "resnetd_request_seconds", "histogram",
         "Time of a request from its first line to the end of the answer.");
    write_histogram(out, "resnetd_request_seconds", "", &metrics->requests_duration);

    metrics_write_gauge(out, "process_resident_memory_bytes", "Resident memory.", NULL, resident_bytes());
    metrics_write_gauge(out, "resnetd_peak_resident_memory_bytes", "Largest resident memory so far.", NULL,
                        peak_resident_bytes());
    head(out, "process_cpu_seconds_total", "counter", "CPU time, user and system.");
    (void)fprintf(out, "process_cpu_seconds_total %.6f\n", clock_seconds(CLOCK_PROCESS_CPUTIME_ID));
}
