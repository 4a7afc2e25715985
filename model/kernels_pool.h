/* kernels_pool.h - pooling on float32 activations in plain C: the specification, and what a fp32 table
 * uses where it has nothing faster. Contracts as in struct kernels (kernels.h). */

#ifndef RESNETD_MODEL_KERNELS_POOL_H
#define RESNETD_MODEL_KERNELS_POOL_H

#include "kernels.h"

void pool_max_f32(const struct pool *pool, int task);
void pool_avg_f32(const struct pool *pool, int task);
void pool_adaptive_avg_f32(const struct pool *pool, int task);

/* Bin `index` of AdaptiveAvgPool2d covers [floor(index * in / out), ceil((index + 1) * in / out)). */
static inline int adaptive_bin_begin(int index, int in, int out)
{
    return (int)((int64_t)index * in / out);
}
static inline int adaptive_bin_end(int index, int in, int out)
{
    return (int)(((int64_t)(index + 1) * in + out - 1) / out);
}

/* For tables whose activations are float32: the conversions are copies. */
void copy_from_f32(const float *in, void *out, size_t count);
void copy_to_f32(const void *in, float *out, size_t count);

#endif
