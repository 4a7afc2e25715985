/* metrics.h - counters and histograms of the server, in Prometheus's text format.
 *
 * Recording is lock-free and may be done from any thread; a scrape reads each number by itself, so sums
 * may be off by what happens meanwhile. */

#ifndef RESNETD_SERVER_METRICS_H
#define RESNETD_SERVER_METRICS_H

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>

#include "errors.h"

enum metrics_stage { STAGE_QUEUE, STAGE_DECODE, STAGE_PREPROCESS, STAGE_INFERENCE, STAGE_TOTAL, STAGE_COUNT };

enum { METRICS_BUCKETS = 16, METRICS_STATUSES = 16, METRICS_ROUTES = 16 };

struct metrics_histogram {
    atomic_uint_least64_t buckets[METRICS_BUCKETS + 1]; /* each counts its own range; the last is +Inf */
    atomic_uint_least64_t sum_ns;
};

/* A zeroed struct is ready. */
struct metrics {
    const char *const *routes; /* [route_count], the names behind the indices; set before threads start */
    int route_count;           /* <= METRICS_ROUTES */
    atomic_uint_least64_t requests[METRICS_ROUTES][METRICS_STATUSES];
    atomic_uint_least64_t images[API_ERROR_COUNT]; /* by outcome */
    atomic_uint_least64_t received_bytes, sent_bytes;
    struct metrics_histogram stages[STAGE_COUNT];
    struct metrics_histogram requests_duration;
};

/* The status that stands for "the client went away before an answer could be sent". */
enum { METRICS_STATUS_ABORTED = 499 };

void metrics_count_request(struct metrics *metrics, int route, unsigned status, uint64_t received_bytes,
                           uint64_t sent_bytes, uint64_t duration_ns);
void metrics_count_image(struct metrics *metrics, enum api_error outcome);
void metrics_observe(struct metrics *metrics, enum metrics_stage stage, uint64_t ns);

/* Write what `metrics` holds and what the system says of this process (memory, CPU time, start). */
void metrics_write(const struct metrics *metrics, FILE *out);

/* One gauge, for numbers that live elsewhere. `labels` is NULL or "{...}" already escaped. */
void metrics_write_gauge(FILE *out, const char *name, const char *help, const char *labels, double value);

/* `value` as the inside of a label's quotes. */
void metrics_write_label(FILE *out, const char *value);

#endif
