/* kernels.h - the arithmetic of the network behind one table of function pointers per CPU family.
 *
 * Activations are dense, in the table's activation type. Of one with C channels and P = N * H * W pixels, channel c of
 * pixel p = (n * H + y) * W + x is element
 *     (c / b * Q + p) * b + c % b
 * where b is the table's `channel_block` if it has one that divides C, else C: then that is NHWC. Q is P or, for some
 * P, a little more (activation_plane). Batch norm is already folded into weights and bias when a kernel sees them.
 *
 * Every operation is a number of independent tasks. One thread or many run tasks 0 .. tasks - 1 in any
 * order; each running thread passes its own scratch. A kernel returns void, allocates nothing, asserts
 * its preconditions, handles every tail, and writes no byte outside its output.
 *
 * A table is chosen once, before threads start, from what the CPU and the operating system allow. */

#ifndef RESNETD_MODEL_KERNELS_H
#define RESNETD_MODEL_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "network.h"
#include "status.h"

enum activation_type { ACTIVATION_F32, ACTIVATION_BF16 };

/* Bytes of one activation element: 4 or 2. */
size_t activation_bytes(enum activation_type type);

/* All buffers that kernels see (activations, packed weights, scratch) are aligned to this many bytes,
 * and may be read (not written) up to this many bytes past their last element. */
enum { KERNEL_ALIGNMENT = 64 };

/* A convolution with everything fused into it, independent of the input size:
 *   out = act(conv(in, weight) + conv(branch input, branch weight) + bias + residual) */
struct conv {
    struct conv_params params;
    bool relu;         /* act is ReLU */
    bool has_residual; /* the residual has the output's shape and type */
    bool linear;       /* a Linear layer: in_h = in_w = 1, so weights are read for a few pixels only; a hint */
    bool output_f32;   /* the output is float32 whatever the activation type (the network's logits); then no residual */
    bool has_branch;   /* a second convolution of another input is added ("downsample"); only where adds_branch */
    struct conv_params branch; /* kernel 1x1, no padding, no groups; as many outputs */
};

/* One convolution at one input size. Linear is a 1x1 convolution with in_h = in_w = 1. */
struct conv_geometry {
    int n, in_h, in_w, out_h, out_w;
    int branch_h, branch_w; /* of the branch's input */
};

/* How a kernel divides one convolution; filled by conv_kernel.plan, private to the kernel but for
 * `tasks` and `scratch_bytes`. */
struct conv_work {
    int tasks;            /* >= 1 */
    size_t scratch_bytes; /* per running thread; may be 0 */
    int tile[8];          /* the kernel's own numbers */
};

struct conv_buffers {
    const void *input;    /* [n, in_h, in_w, in], activation type */
    const void *packed;   /* from conv_kernel.pack */
    const void *residual; /* [n, out_h, out_w, out], activation type; NULL without one. May be `output` itself */
    const void *branch;   /* [n, branch_h, branch_w, branch.in], activation type; NULL without one */
    void *output;         /* [n, out_h, out_w, out], activation type; with output_f32 NHWC */

    /* A hint: the packed weights of the convolution that runs next, for fetching them early; NULL for none. */
    const void *upcoming;
    size_t upcoming_bytes;
};

struct conv_kernel {
    const char *name; /* "gemm_1x1__avx512" */

    /* Whether this kernel computes `conv`; asked about one with a branch only if it adds those. */
    bool adds_branch;
    bool (*supports)(const struct conv *conv);

    /* Bytes that `pack` writes; the caller allocates them with KERNEL_ALIGNMENT. */
    size_t (*packed_bytes)(const struct conv *conv);

    /* weight: [out, in / groups, kernel_h, kernel_w] float32, batch norm folded, and behind it with a branch
     * [out, branch.in]; bias: [out] float32, never NULL. */
    void (*pack)(const struct conv *conv, const float *weight, const float *bias, void *packed);

    /* Choose the division into tasks for `threads` running threads (1 or more). */
    void (*plan)(const struct conv *conv, const struct conv_geometry *geometry, int threads, struct conv_work *work);

    void (*run)(const struct conv *conv, const struct conv_geometry *geometry, const struct conv_work *work,
                const struct conv_buffers *buffers, int task, void *scratch);
};

/* MaxPool2d, AvgPool2d and AdaptiveAvgPool2d. A task is one output row of one image: task = n * out_h + y. */
struct pool {
    const struct pool_params *params; /* NULL for AdaptiveAvgPool2d, whose bins follow from the sizes */
    int n, channels, in_h, in_w, out_h, out_w;
    const void *input;
    void *output;
};

struct kernels {
    const char *name;       /* "ref", "openblas", "avx2", "avx512", "amx" */
    const char *precision;  /* "fp32" or "bf16" */
    const char *arithmetic; /* one phrase for the metadata: "bf16 inputs, fp32 accumulation" */
    enum activation_type activation;
    int channel_block; /* of activations, see above; 0 for none */

    /* Whether this machine can run the table. When it cannot, `why` (may be NULL) gets the reason.
     * Called once, before threads start; may ask the kernel for permission (AMX). */
    bool (*available)(char *why, size_t why_size);

    /* The convolutions, most specific first; the first that supports() is used. NULL-terminated, the
     * last one supports everything. */
    const struct conv_kernel *const *convs;

    /* Pooling in the activation type; one task (output row) per call. */
    void (*max_pool)(const struct pool *pool, int task);
    void (*avg_pool)(const struct pool *pool, int task);
    void (*adaptive_avg_pool)(const struct pool *pool, int task);

    /* Conversion between float32 and the activation type, `count` elements. */
    void (*from_f32)(const float *in, void *out, size_t count);
    void (*to_f32)(const void *in, float *out, size_t count);
};

/* From one block of channels to the next, in pixels. A multiple of 64 lines would put all blocks into the same few sets
 * of the first-level cache, so that they displace one another (on Sapphire Rapids 512 channels at 768 pixels took 1.25
 * to 1.3 times as long as at 772 to 784): such sizes are rounded up to 8 lines more than one. */
size_t activation_plane(size_t pixels);

/* Elements of an activation, with what lies between blocks of channels. */
size_t activation_elements(const struct kernels *kernels, size_t channels, size_t pixels);

/* Where channel `c` of pixel `pixel` of an activation lies, as a number of elements. */
size_t activation_index(const struct kernels *kernels, size_t channels, size_t pixels, size_t pixel, size_t c);

/* Convert pixels [first, first + count) of an activation of `pixels` pixels; `values` is float32 [count][channels]. */
void activation_from_f32(const struct kernels *kernels, const float *values, void *activation, size_t channels,
                         size_t pixels, size_t first, size_t count);
void activation_to_f32(const struct kernels *kernels, const void *activation, float *values, size_t channels,
                       size_t pixels, size_t first, size_t count);

/* The first of the table's convolutions that supports `conv`; NULL only if it has a branch and none adds it. */
const struct conv_kernel *kernels_conv(const struct kernels *kernels, const struct conv *conv);

extern const struct kernels kernels_ref;
extern const struct kernels kernels_openblas;

/* Every table that was compiled in, fastest last; NULL-terminated. */
extern const struct kernels *const kernels_all[];

/* Choose the table.
 *   name       "auto", or a table's name
 *   precision  "auto", "fp32", "bf16"
 * `auto` takes the fastest available table of the precision that agrees with `ref` (kernels_check); what
 * was passed over and why goes to `note` (may be NULL), one call per table. A table that is named but not
 * available or wrong is an error, RN_ERR_KERNELS. Call before threads start. */
RN_MUST_CHECK enum rn_status kernels_choose(const char *name, const char *precision, const struct kernels **out,
                                            void (*note)(void *arg, const char *text), void *arg,
                                            struct rn_error *error);

/* Run small convolutions and pools through `kernels` and `ref` and compare.
 * Returns RN_OK or RN_ERR_KERNELS with the kernel's name and the difference. */
RN_MUST_CHECK enum rn_status kernels_check(const struct kernels *kernels, struct rn_error *error);

#endif
