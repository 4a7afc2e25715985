/* program.h - a network lowered to fused operations with packed weights, independent of the input size.
 *
 * network (calls) + weights -> [fuse, fold batch norm, pack] -> program -> placed by layout.h for one size
 *
 * Fusion: Conv2d or Linear takes along the BatchNorm2d, the residual add and the ReLU that follow it, as
 * long as nobody else reads the values in between; where the kernels can, also the 1x1 convolution whose output is
 * added to its own (a block's downsample). What cannot be fused is an operation of its own.
 * Immutable once built. */

#ifndef RESNETD_MODEL_PROGRAM_H
#define RESNETD_MODEL_PROGRAM_H

#include "kernels.h"
#include "network.h"
#include "status.h"
#include "weights.h"

enum op_kind {
    OP_CONV, /* Conv2d or Linear, with all that was fused */
    OP_MAX_POOL,
    OP_AVG_POOL,
    OP_ADAPTIVE_AVG_POOL,
    OP_FLATTEN, /* to PyTorch's feature order; nothing to do for one pixel, mostly for one channel */
    OP_BATCHNORM,
    OP_ADD,
    OP_RELU,
    OP_SOFTMAX,
};

struct op {
    enum op_kind kind;
    const struct call *call;     /* the first call of the fused chain; names the operation */
    int input, residual, output; /* values; residual is -1 without one */
    bool relu;                   /* OP_CONV, OP_ADD: fused */

    struct conv conv; /* OP_CONV */
    const struct conv_kernel *kernel;
    const struct call *batchnorm; /* folded into the weights; or NULL */
    int branch;                   /* value that the convolution added to this one reads; -1 without one */
    const struct call *branch_call, *branch_batchnorm;
    void *packed; /* in the program's memory, KERNEL_ALIGNMENT */
    size_t packed_bytes;

    float *scale, *shift; /* OP_BATCHNORM: [features] each, one allocation */
};

struct program {
    const struct network *network; /* borrowed */
    const struct kernels *kernels;
    struct op *ops;
    size_t op_count;
    int *alias;          /* value -> the value whose memory it is (Dropout); [network->value_count] */
    bool *is_f32;        /* values held in float32 whatever the activation type; [network->value_count] */
    void *packed;        /* the weights of all operations, one after the other */
    size_t packed_bytes; /* of all of it */
};

/* Returns RN_OK, RN_ERR_WEIGHTS (naming the tensor), RN_ERR_NOMEM. `out` is zeroed on failure. */
RN_MUST_CHECK enum rn_status program_build(const struct network *network, const struct weights *weights,
                                           const struct kernels *kernels, struct program *out, struct rn_error *error);
void program_free(struct program *program);

#endif
