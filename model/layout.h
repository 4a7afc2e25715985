/* layout.h - where every value of a program lies in memory for one input size, by liveness: two values
 * share bytes unless both are needed at the same time.
 *
 * program + plan (shapes) -> [place values, divide work] -> layout -> forward.h */

#ifndef RESNETD_MODEL_LAYOUT_H
#define RESNETD_MODEL_LAYOUT_H

#include "plan.h"
#include "program.h"
#include "status.h"

struct layout {
    const struct program *program; /* borrowed */
    const struct plan *plan;       /* borrowed */
    size_t *offsets;               /* of every value in the activations; [value_count] */
    size_t input_offset;           /* of the float32 input; value 0 itself when activations are float32 */
    size_t activation_bytes;       /* all of it */
    size_t scratch_bytes;          /* of one thread */
    struct conv_work *works;       /* [op_count]; for operations other than OP_CONV only `tasks` counts */
};

/* `threads`: the most threads that will share one pass. Returns RN_OK or RN_ERR_NOMEM. */
RN_MUST_CHECK enum rn_status layout_init(struct layout *out, const struct program *program, const struct plan *plan,
                                         int threads, struct rn_error *error);
void layout_free(struct layout *layout);

/* The sizes of an operation as a convolution's; meant for OP_CONV. */
struct conv_geometry layout_conv_geometry(const struct plan *plan, const struct op *op);

/* Whether OP_FLATTEN `op` leaves the order of its elements alone at this size. */
bool layout_flatten_is_free(const struct layout *layout, const struct op *op);

#endif
