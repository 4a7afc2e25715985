/* log.h - the log: one line an event on standard error, as text or as JSON.
 *
 * A line is written by one write(), so lines of several threads do not mix. Text from outside is always
 * escaped: no request can break or forge a line. */

#ifndef RESNETD_SERVER_LOG_H
#define RESNETD_SERVER_LOG_H

#include <stdint.h>

#include "config.h"

/* Set once, before threads start. Until then: text, level info. */
void log_configure(enum log_format format, enum log_level level);

/* One event. `message` is printf-like. */
void log_write(enum log_level level, const char *message, ...) __attribute__((format(printf, 2, 3)));

/* What is known of one request when it is over; NULL and negative values are left out. */
struct log_request {
    const char *id, *remote, *method, *target;
    const char *model;
    const char *error;  /* the JSON code */
    const char *detail; /* of our own failures, which the client is not told */
    unsigned status;
    uint64_t bytes_in, bytes_out;
    int images;
    double queue_ms, decode_ms, preprocess_ms, inference_ms, total_ms; /* sums over the images; total is wall time */
    double receive_ms, answer_ms; /* until the last byte came; until the answer was sent */
};

void log_request(enum log_level level, const struct log_request *request);

#endif
