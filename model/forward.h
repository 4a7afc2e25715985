/* forward.h - running a program on one input: nothing is allocated, nothing can fail.
 *
 * input (float32 NHWC at layout->input_offset) -> operations, each shared by the team -> logits */

#ifndef RESNETD_MODEL_FORWARD_H
#define RESNETD_MODEL_FORWARD_H

#include "layout.h"
#include "team.h"

/* Called after each operation with its duration; for measuring. */
typedef void forward_report(void *arg, const struct op *op, uint64_t nanoseconds);

/*   activations  layout->activation_bytes, 64-byte aligned, the input already in place
 *   team         scratch of layout->scratch_bytes reserved for each thread; the caller leads it
 *   logits       float32, the output value's elements in PyTorch's order
 *   report       NULL, or called after each operation */
void forward_run(const struct layout *layout, void *activations, struct team *team, float *logits,
                 forward_report *report, void *arg);

#endif
