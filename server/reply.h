/* reply.h - the JSON of the replies: results, errors, models, summaries. */

#ifndef RESNETD_SERVER_REPLY_H
#define RESNETD_SERVER_REPLY_H

#include <stdbool.h>
#include <stdint.h>

#include "../model/classify.h"
#include "../model/plan.h"
#include "errors.h"
#include "json.h"

struct reply_timing {
    uint64_t queue_ns, decode_ns, preprocess_ns, inference_ns, total_ns;
};

/* The members image, input, predictions and, unless left out, stages of an object that is open.
 *   indent  columns at which members start their lines */
void reply_write_result(struct json *json, const struct model *model, const struct classify_result *result, bool stages,
                        int indent);

/* "timing_ms": {...} */
void reply_write_timing(struct json *json, const struct reply_timing *timing);

/* The same for the header Server-Timing; cut at `size`. */
void reply_server_timing(const struct reply_timing *timing, char *out, size_t size);

/* "error": {"code": ..., "message": ...}. The message of our own failures is replaced by a general one. */
void reply_write_error(struct json *json, enum api_error error, const char *message);

/* One element of the list of models; `more` adds what only the model's own page shows: modules, labels. */
void reply_write_model(struct json *json, const struct model *model, bool is_default, bool more);

/* {"model": name, "input", "rows", "totals"} */
void reply_write_summary(struct json *json, const char *name, const struct plan *plan);

#endif
