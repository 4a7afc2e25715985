/* resample.h - Pillow's antialiased bilinear resize of 8-bit images, bit for bit, one window of it.
 *
 * A resize is two one-dimensional weighted sums: along rows, rounded to 8 bits, then along columns. The
 * weights of an axis depend only on its two sizes. Any output pixel can be computed alone, so only the
 * rows and columns of a window are. */

#ifndef RESNETD_MODEL_RESAMPLE_H
#define RESNETD_MODEL_RESAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    RESAMPLE_BATCH = 4,    /* rows that one horizontal call may take */
    RESAMPLE_OVERREAD = 16 /* bytes that it may read past the end of a source row */
};

/* The weights of outputs [first, first + count) of an axis that is scaled from in to out samples.
 * Output i is the sum of `length[i]` source samples from `start[i]` on, times weights + i * stride. */
struct resample_axis {
    int in, out, first, count;
    size_t stride;           /* weights an output has room for, a multiple of 4; those past its length are 0 */
    int32_t *weights;        /* count * stride, in units of 2^-22; borrowed memory */
    int32_t *start, *length; /* count each; start rises monotonically */
};

/* Weights that one output has room for, and bytes for `count` outputs with their starts and lengths
 * (UINT64_MAX on overflow). */
size_t resample_stride(int in, int out);
uint64_t resample_axis_bytes(int in, int out, int count);

/* Fill `axis` for in -> out, keeping its weights in `memory` (resample_axis_bytes of it, 4-byte aligned). */
void resample_axis_init(struct resample_axis *axis, int in, int out, int first, int count, void *memory);

/* Rows of interleaved channels along the horizontal axis: for each of `rows` (1..RESAMPLE_BATCH) rows,
 * to[r][0 .. count * channels) from from[r].
 *   from   each readable for RESAMPLE_OVERREAD bytes past its last pixel
 *   to     each with room for 1 byte past its last pixel */
typedef void (*resample_horizontal_fn)(const struct resample_axis *axis, int channels, int rows,
                                       const uint8_t *const *from, uint8_t *const *to);

/* One output row: `bytes` sums over `length` rows with `weights`. */
typedef void (*resample_vertical_fn)(const uint8_t *const *rows, const int32_t *weights, int length, uint8_t *to,
                                     size_t bytes);

struct resample_kernels {
    const char *name;
    resample_horizontal_fn horizontal;
    resample_vertical_fn vertical;
};

/* Plain C, the specification; and the best for this CPU, with the same results. */
extern const struct resample_kernels resample_plain;
const struct resample_kernels *resample_best(void);

#endif
