/* plan.h - everything that follows from a network and one input size, without running anything:
 * the output shape of every call, parameters, multiply-adds, bytes.
 *
 * It is the one description of shapes: the stages of a reply, the summary, the memory budget and the
 * mismatch error all read it. Spatial sizes follow PyTorch:
 *   floor((in + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1   (ceil in ceil_mode)
 * A struct plan is immutable and may be shared by threads. */

#ifndef RESNETD_MODEL_PLAN_H
#define RESNETD_MODEL_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "network.h"
#include "status.h"

/* [n, c, h, w], or [n, c] when flat (then h = w = 1). */
struct shape {
    int n, c, h, w;
    bool flat;
};

size_t shape_elements(const struct shape *shape);
size_t shape_pixels(const struct shape *shape); /* n * h * w */

/* "[1, 64, 112, 112]" or "[1, 2048]" into `text`; returns `text`. */
enum { SHAPE_TEXT_SIZE = 64 };
const char *shape_text(const struct shape *shape, char text[SHAPE_TEXT_SIZE]);

struct plan_row {
    const struct call *call;
    struct shape shape;     /* of the call's output */
    uint64_t parameters;    /* of the module itself */
    uint64_t multiply_adds; /* Conv2d and Linear; others count 0 */
};

struct plan {
    const struct network *network; /* borrowed; outlives the plan */
    struct shape input;
    struct shape *values;  /* shape of every value, [network->value_count] */
    struct plan_row *rows; /* one per call */
    size_t row_count;
    uint64_t parameters, trainable_parameters, multiply_adds;
};

/* The totals of a summary, as torchsummary computes them (float32, forward and backward, MiB). */
struct plan_totals {
    double input_mib, forward_backward_mib, parameters_mib, total_mib;
};

/* Derive the plan for an n x channels x height x width input.
 * Returns RN_OK; RN_ERR_INPUT_SIZE when the network cannot take the size, with the numbers
 * ("fc1 expects 400 features, a 64x64 input gives 16x13x13 = 2704"); RN_ERR_NOMEM. */
RN_MUST_CHECK enum rn_status plan_init(struct plan *out, const struct network *network, int n, int height, int width,
                                       struct rn_error *error);
void plan_free(struct plan *plan);

/* Whether a row is one of torchsummary's table: every module call but Sequential containers, and not
 * functions. */
bool plan_row_in_summary(const struct plan_row *row);

/* Whether a row is one of a reply's stages: a top-level module. */
bool plan_row_is_stage(const struct plan_row *row);

struct plan_totals plan_totals(const struct plan *plan);

/* Write the summary table as torchsummary lays it out, with multiply-adds as an extra column. */
void plan_print_summary(const struct plan *plan, FILE *out);

#endif
