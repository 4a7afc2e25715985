/* kernels_amx_internal.h - what the files of the bf16 table share.
 *
 *   kernels_amx_input.c  how a convolution's input lies in memory, and copying it there
 *   kernels_amx_conv.c   packing weights, multiplying, finishing outputs
 *   kernels_amx.c        grouped convolutions, pooling, conversion, the table
 *
 * A pixel tile holds `m` <= 16 output pixels x 32 inputs. It is loaded straight from memory with a constant
 * distance from a pixel to the next, so the pixels of a tile must lie equally spaced for every tap. Three
 * ways to get there:
 *   direct  1x1, stride 1: the activations as they are
 *   planes  the input is copied with its zero border into stride_y * stride_x planes (one per phase of the
 *           stride), each [chunk of 32 channels][row][column][32]. Every tap then is a constant offset, and
 *           output pixel (y, x) is position y * plane_w + x; the few positions between x = out_w and the next
 *           row are multiplied and thrown away. The zeros at the end of a row are those that begin the next
 *   runs    few input channels: rows are copied with their border, and one run of 32 elements covers several
 *           columns of the kernel; tiles do not cross output rows
 *
 * All offsets, strides and sizes named *_stride, *_bytes, offset and target are in bytes. */

#ifndef RESNETD_MODEL_KERNELS_AMX_INTERNAL_H
#define RESNETD_MODEL_KERNELS_AMX_INTERNAL_H

#if defined(__x86_64__)

#include <immintrin.h>

#include "bf16.h"
#include "kernels.h"
#include "sizes.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum {
    TILE = 16,               /* rows of a tile; float32 columns of one */
    CHUNK = 32,              /* inputs of one tile multiplication */
    BLOCK = 32,              /* output channels of a block: two tiles */
    LINE = 64,               /* bytes of a tile's row */
    STEP_BYTES = 2048,       /* weights of one step: two tiles */
    SUM_FLOATS = 32 * BLOCK, /* finished sums of two pixel tiles, or of four by one channel tile */

    TALL = 4,                      /* pixel tiles of a tall block */
    TALL_LOW_BYTES = TILE * CHUNK, /* of a packed weight tile: [16 pairs][16 outputs][2] lower bytes of the codes, */
    TALL_STEP_BYTES = TILE * CHUNK * 3 / 2, /* then [4][16 outputs][2] words, each with the upper bits of four pairs */
    TALL_LOOKUP_BYTES = LINE,               /* in front of each tall block: one bf12 lookup for each four outputs */
    TALL_AHEAD = 2,                         /* how many steps before its use a weight tile is unpacked */
    TALL_RING = 4 /* unpacked weight tiles in memory where there is one group of pixel tiles */
};

/* From how many bytes of bfloat16 weights on blocks are tall: below, the second-level cache holds them and what comes
 * before and after. */
enum { TALL_WEIGHT_BYTES = 1536 * 1024 };

static inline size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

ALWAYS_INLINE __m512 widen(__m256i x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

/* The first `count` of 32 lanes, all when there are more. */
ALWAYS_INLINE __mmask32 first_lanes32(int count)
{
    return count >= 32 ? (__mmask32)-1 : (__mmask32)((1u << count) - 1u);
}

/* How an activation of this table lies in memory: bytes from a pixel to the next, and from 32 channels to the next 32.
 * Whole chunks lie as [chunk][pixel][32] over all pixels of all images (kernels.h: channel_block), so that tiles are
 * read, and outputs written, line after line. */
struct amx_strides {
    size_t pixel, chunk;
};

static inline struct amx_strides amx_strides_of(int channels, size_t pixels)
{
    if (channels % CHUNK == 0)
        return (struct amx_strides){LINE, activation_plane(pixels) * LINE};
    return (struct amx_strides){(size_t)channels * sizeof(bf16), LINE};
}

/* Bytes from the beginning to channel `c` of pixel `pixel`. */
static inline size_t amx_offset(struct amx_strides strides, size_t pixel, int c)
{
    return pixel * strides.pixel + (size_t)(c / CHUNK) * strides.chunk + (size_t)(c % CHUNK) * sizeof(bf16);
}

/* The convolution by tiles (kernels_amx_conv.c). */
extern const struct conv_kernel amx_conv_tiles;

/* ---- what follows from the convolution alone ---- */

enum amx_source { SOURCE_DIRECT, SOURCE_PLANES, SOURCE_RUNS };

struct amx_form {
    enum amx_source source;
    int chunks, taps; /* steps of a block: chunks * taps, then branch_chunks */
    int branch_chunks;
    bool branch_direct; /* the branch's input is read where it lies; else it is copied, pixel by output pixel */
    int blocks;         /* of output channels */
    bool tall;          /* blocks of 16 channels with weights in 12 bits */
};

struct amx_form amx_form_of(const struct conv *conv);

/* ---- what follows from the input size: a strip of rows of one image ---- */

/* How many rows ahead an output line is asked for. */
enum { AHEAD = 8 };

/* How one strip's input lies in memory. */
struct amx_view {
    int images, rows, width;           /* what is cut into strips: `rows` rows of `width` output pixels in each image */
    int strip_rows;                    /* of this strip */
    int m, tiles;                      /* pixel tiles of the strip and rows of each */
    int row_tiles;                     /* runs: tiles of one row */
    int plane_rows, plane_w;           /* planes: rows and columns of one; runs: plane_w is columns of a padded row */
    size_t row_bytes;                  /* of input, for one output row */
    size_t pixel_stride, chunk_stride; /* bytes */
    size_t input_bytes;                /* of the copy */
    size_t branch_pixel_stride, branch_chunk_stride, branch_bytes; /* likewise, of the branch's input */
};

/* The view of a strip of `strip_rows` rows; 0 for a whole image. */
struct amx_view amx_view_of(const struct conv *conv, const struct amx_form *f, const struct conv_geometry *g,
                            int strip_rows);

/* Copy what output rows [first, first + view->strip_rows) of image `image` need, to [view->input_bytes]. */
void amx_gather_planes(const struct conv_params *p, const struct amx_form *f, const struct conv_geometry *g,
                       const struct amx_view *v, const char *input, int image, int first, char *to);
void amx_gather_runs(const struct conv_params *p, const struct conv_geometry *g, const struct amx_view *v,
                     const char *input, int image, int first, char *to);

/* Copy the branch's input for a strip, to [view->branch_bytes]: output position `i` of the tiles reads pixel i of each
 * chunk. */
void amx_gather_branch(const struct conv_params *branch, const struct conv_geometry *g, const struct amx_view *v,
                       const char *input, size_t first_pixel, char *to);

/* offset[chunks * taps]: where the steps read, relative to a tile's offset: tap by tap, chunk by chunk. */
void amx_fill_steps(const struct conv_params *p, const struct amx_form *f, const struct amx_view *v, size_t *offset);

/* In a target: the row is no output. What is left is the offset of one nearby that is. */
enum { NO_OUTPUT = 1 };

/* offset[tiles], target[tiles * m + AHEAD]: where tiles read and where their rows are written, `out_stride` bytes from
 * an output pixel to the next. */
void amx_fill_tiles(const struct conv_params *p, const struct amx_form *f, const struct amx_view *v, size_t out_stride,
                    size_t *offset, size_t *target);

#endif
#endif
