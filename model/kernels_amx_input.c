/* kernels_amx_input.c - how the bf16 table's convolutions find their input in memory. */

#include "kernels_amx_internal.h"

#if defined(__x86_64__)

#include <assert.h>
#include <string.h>

struct amx_form amx_form_of(const struct conv *conv)
{
    const struct conv_params *p = &conv->params, *branch = &conv->branch;
    const int channel_chunks = ceil_div(p->in, CHUNK), run_chunks = ceil_div(p->kernel[1] * p->in, CHUNK);
    struct amx_form f = {.source = SOURCE_PLANES, .chunks = channel_chunks, .taps = p->kernel[0] * p->kernel[1]};
    const bool unit = f.taps == 1 && p->stride[0] == 1 && p->stride[1] == 1 && p->padding[0] == 0 && p->padding[1] == 0;

    if (unit && p->in % CHUNK == 0) {
        f.source = SOURCE_DIRECT;
    } else if (p->dilation[1] == 1 && run_chunks * 10 <= p->kernel[1] * channel_chunks * 7) {
        f.source = SOURCE_RUNS;
        f.chunks = run_chunks;
        f.taps = p->kernel[0];
    }
    f.blocks = ceil_div(p->out, BLOCK);
    if (conv->has_branch) {
        f.branch_chunks = ceil_div(branch->in, CHUNK);
        f.branch_direct =
            f.source == SOURCE_DIRECT && branch->stride[0] == 1 && branch->stride[1] == 1 && branch->in % CHUNK == 0;
    }
    /* Where a pixel is read for one tap only, four tiles of them instead of two cost more than weights save. */
    const int steps = f.chunks * f.taps + f.branch_chunks;
    f.tall = f.source != SOURCE_RUNS && (f.taps > 1 || conv->linear) && steps >= TALL_RING &&
             (size_t)f.blocks * (size_t)steps * STEP_BYTES >= TALL_WEIGHT_BYTES;
    return f;
}

/* Which residue of the stride a dimension's taps use. */
static bool phase_used(const struct conv_params *p, int dimension, int phase)
{
    for (int k = 0; k < p->kernel[dimension]; k++)
        if (k * p->dilation[dimension] % p->stride[dimension] == phase)
            return true;
    return false;
}

static int phases_used(const struct conv_params *p, int dimension)
{
    int used = 0;
    for (int phase = 0; phase < p->stride[dimension]; phase++)
        used += phase_used(p, dimension, phase);
    return used;
}

/* Columns of zeros that end one row of a plane and begin the next. */
static int shared_columns(const struct conv_params *p)
{
    return p->stride[1] == 1 ? min_int(p->padding[1], (p->kernel[1] - 1) * p->dilation[1]) : 0;
}

static size_t input_pixels(const struct conv_geometry *g)
{
    return (size_t)g->n * (size_t)g->in_h * (size_t)g->in_w;
}

static size_t branch_pixels(const struct conv_geometry *g)
{
    return (size_t)g->n * (size_t)g->branch_h * (size_t)g->branch_w;
}

/* The view of a strip of `strip_rows` rows; 0 for a whole image. */
struct amx_view amx_view_of(const struct conv *conv, const struct amx_form *f, const struct conv_geometry *g,
                            int strip_rows)
{
    const struct conv_params *p = &conv->params;
    struct amx_view v = {.images = g->n, .rows = g->out_h, .width = g->out_w};
    const int reach_y = (p->kernel[0] - 1) * p->dilation[0], reach_x = (p->kernel[1] - 1) * p->dilation[1];

    if (f->source == SOURCE_DIRECT) {
        v.images = 1;
        v.rows = g->n * g->out_h * g->out_w;
        v.width = 1;
    }
    v.strip_rows = strip_rows ? strip_rows : v.rows;
    switch (f->source) {
    case SOURCE_DIRECT:
        v.row_bytes = (size_t)p->in * sizeof(bf16);
        v.pixel_stride = LINE;
        v.chunk_stride = amx_strides_of(p->in, input_pixels(g)).chunk;
        v.tiles = ceil_div(v.strip_rows, TILE);
        v.m = ceil_div(v.strip_rows, v.tiles);
        break;
    case SOURCE_PLANES: {
        const int planes = phases_used(p, 0) * phases_used(p, 1);
        v.plane_w = v.width + reach_x / p->stride[1] - shared_columns(p);
        v.plane_rows = v.strip_rows + reach_y / p->stride[0];
        v.row_bytes = (size_t)planes * (size_t)v.plane_w * (size_t)f->chunks * LINE;
        v.pixel_stride = LINE;
        v.chunk_stride = ((size_t)planes * (size_t)v.plane_rows * (size_t)v.plane_w + (size_t)shared_columns(p)) * LINE;
        const int positions = (v.strip_rows - 1) * v.plane_w + v.width;
        v.tiles = ceil_div(positions, TILE);
        v.m = ceil_div(positions, v.tiles);
        v.input_bytes = (size_t)f->chunks * v.chunk_stride + TILE * LINE;
        break;
    }
    case SOURCE_RUNS: {
        const int in_rows = (v.strip_rows - 1) * p->stride[0] + reach_y + 1;
        v.plane_w = (v.width - 1) * p->stride[1] + p->kernel[1];
        v.row_bytes = (size_t)v.plane_w * (size_t)p->in * (size_t)p->stride[0] * sizeof(bf16);
        v.pixel_stride = (size_t)p->stride[1] * (size_t)p->in * sizeof(bf16);
        v.chunk_stride = LINE;
        v.row_tiles = ceil_div(v.width, TILE);
        v.m = ceil_div(v.width, v.row_tiles);
        v.tiles = v.strip_rows * v.row_tiles;
        /* The last tiles read past the end of a row, the last runs past the end of the last pixel. */
        v.input_bytes = size_round_up((size_t)in_rows * (size_t)v.plane_w * (size_t)p->in * sizeof(bf16) +
                                          TILE * v.pixel_stride + (size_t)f->chunks * LINE,
                                      LINE);
        break;
    }
    }
    if (f->branch_direct) {
        v.branch_pixel_stride = LINE;
        v.branch_chunk_stride = amx_strides_of(conv->branch.in, branch_pixels(g)).chunk;
    } else if (f->branch_chunks) {
        v.branch_pixel_stride = LINE;
        v.branch_chunk_stride = (size_t)v.tiles * (size_t)v.m * LINE;
        v.branch_bytes = (size_t)f->branch_chunks * v.branch_chunk_stride;
    }
    v.row_bytes += (size_t)v.width * (size_t)f->branch_chunks * LINE;
    return v;
}

/* Copy `count` pixels of a chunk, `step` bytes apart, to consecutive lines; channels outside `mask` become zeros. */
ALWAYS_INLINE void copy_lines(const char *from, size_t step, int count, __mmask32 mask, char *to)
{
    for (int i = 0; i < count; i++, from += step, to += LINE)
        _mm512_store_si512(to, _mm512_maskz_loadu_epi16(mask, from));
}

/* Copy what output rows [first, first + view->strip_rows) of one image need. */
void amx_gather_planes(const struct conv_params *p, const struct amx_form *f, const struct conv_geometry *g,
                       const struct amx_view *v, const char *input, int image, int first, char *to)
{
    const struct amx_strides strides = amx_strides_of(p->in, input_pixels(g));
    const size_t first_pixel = (size_t)image * (size_t)g->in_h * (size_t)g->in_w;

    for (int phase_y = 0; phase_y < p->stride[0]; phase_y++) {
        if (!phase_used(p, 0, phase_y))
            continue;
        for (int phase_x = 0; phase_x < p->stride[1]; phase_x++) {
            if (!phase_used(p, 1, phase_x))
                continue;
            /* Columns [left, right) of the plane come from the image. */
            const int shift = phase_x - p->padding[1], sx = p->stride[1];
            const int left = min_int(v->plane_w, shift < 0 ? ceil_div(-shift, sx) : 0);
            const int right = max_int(left, min_int(v->plane_w, g->in_w > shift ? ceil_div(g->in_w - shift, sx) : 0));
            for (int row = 0; row < v->plane_rows; row++, to += (size_t)v->plane_w * LINE) {
                const int y = (first + row) * p->stride[0] + phase_y - p->padding[0];
                const bool outside = y < 0 || y >= g->in_h || left == right;
                const size_t pixel =
                    outside ? 0 : first_pixel + (size_t)y * (size_t)g->in_w + (size_t)(left * sx + shift);
                const char *from = input + pixel * strides.pixel;
                char *line = to;
                for (int chunk = 0; chunk < f->chunks; chunk++, line += v->chunk_stride, from += strides.chunk) {
                    if (outside) {
                        memset(line, 0, (size_t)v->plane_w * LINE);
                        continue;
                    }
                    memset(line, 0, (size_t)left * LINE);
                    copy_lines(from, (size_t)sx * strides.pixel, right - left, first_lanes32(p->in - chunk * CHUNK),
                               line + (size_t)left * LINE);
                    memset(line + (size_t)right * LINE, 0, (size_t)(v->plane_w - right) * LINE);
                }
            }
        }
    }
    for (int chunk = 0; chunk < f->chunks; chunk++) /* the last row's */
        memset(to + (size_t)chunk * v->chunk_stride, 0, (size_t)shared_columns(p) * LINE);
}

void amx_gather_runs(const struct conv_params *p, const struct conv_geometry *g, const struct amx_view *v,
                     const char *input, int image, int first, char *to)
{
    const int in_rows = (v->strip_rows - 1) * p->stride[0] + (p->kernel[0] - 1) * p->dilation[0] + 1;
    const int left = min_int(p->padding[1], v->plane_w), count = max_int(0, min_int(g->in_w, v->plane_w - left));
    const size_t pixel = (size_t)p->in * sizeof(bf16), row_bytes = (size_t)v->plane_w * pixel;
    const char *end = to + v->input_bytes;

    assert(p->in % CHUNK != 0); /* pixel by pixel in memory */
    input += (size_t)image * (size_t)g->in_h * (size_t)g->in_w * pixel;
    for (int row = 0; row < in_rows; row++, to += row_bytes) {
        const int y = first * p->stride[0] + row - p->padding[0];
        if (y < 0 || y >= g->in_h) {
            memset(to, 0, row_bytes);
            continue;
        }
        memset(to, 0, (size_t)left * pixel);
        memcpy(to + (size_t)left * pixel, input + (size_t)y * (size_t)g->in_w * pixel, (size_t)count * pixel);
        memset(to + (size_t)(left + count) * pixel, 0, row_bytes - (size_t)(left + count) * pixel);
    }
    memset(to, 0, (size_t)(end - to));
}

/* Copy the branch's input for a strip: output position `i` of the tiles reads pixel i of each chunk. */
void amx_gather_branch(const struct conv_params *branch, const struct conv_geometry *g, const struct amx_view *v,
                       const char *input, size_t first_pixel, char *to)
{
    const size_t width = (size_t)g->out_w, height = (size_t)g->out_h;
    const struct amx_strides strides = amx_strides_of(branch->in, branch_pixels(g));
    /* Whole rows leave room for the halo between them; pixels without one follow one another. */
    const size_t gap = v->plane_w ? (size_t)(v->plane_w - v->width) : 0;
    size_t left = (size_t)v->strip_rows * (size_t)v->width;

    for (size_t pixel = first_pixel; left;) {
        const size_t x = pixel % width, y = pixel / width % height, n = pixel / width / height;
        const size_t count = min_size(left, width - x);
        const size_t at = (n * (size_t)g->branch_h + y * (size_t)branch->stride[0]) * (size_t)g->branch_w +
                          x * (size_t)branch->stride[1];
        for (int chunk = 0; chunk * CHUNK < branch->in; chunk++)
            copy_lines(input + amx_offset(strides, at, chunk * CHUNK), (size_t)branch->stride[1] * strides.pixel,
                       (int)count, first_lanes32(branch->in - chunk * CHUNK),
                       to + (size_t)chunk * v->branch_chunk_stride);
        to += (count + gap) * LINE;
        pixel += count;
        left -= count;
    }
}

/* Where the steps read, relative to a tile's offset: tap by tap, chunk by chunk. */
void amx_fill_steps(const struct conv_params *p, const struct amx_form *f, const struct amx_view *v, size_t *offset)
{
    const size_t plane_bytes = (size_t)v->plane_rows * (size_t)v->plane_w * LINE;
    const size_t row_bytes = (size_t)v->plane_w * (size_t)p->in * sizeof(bf16);
    const size_t *const first = offset;

    for (int tap = 0; tap < f->taps; tap++) {
        if (f->source != SOURCE_PLANES) { /* runs: a tap is a row; direct has one, at 0 */
            *offset++ = (size_t)(tap * p->dilation[0]) * row_bytes;
            continue;
        }
        const int y = tap / p->kernel[1] * p->dilation[0], x = tap % p->kernel[1] * p->dilation[1];
        int plane = 0; /* rank of the used phase */
        for (int phase = 0; phase < y % p->stride[0]; phase++)
            plane += phase_used(p, 0, phase) ? phases_used(p, 1) : 0;
        for (int phase = 0; phase < x % p->stride[1]; phase++)
            plane += phase_used(p, 1, phase);
        *offset++ = (size_t)plane * plane_bytes +
                    ((size_t)(y / p->stride[0]) * (size_t)v->plane_w + (size_t)(x / p->stride[1])) * LINE;
    }
    for (int i = f->taps; i < f->chunks * f->taps; i++)
        *offset++ = first[i - f->taps] + v->chunk_stride;
}

/* Where tiles read and where their rows are written: `out_stride` bytes from an output pixel to the next. */
void amx_fill_tiles(const struct conv_params *p, const struct amx_form *f, const struct amx_view *v, size_t out_stride,
                    size_t *offset, size_t *target)
{
    const size_t pixels = (size_t)v->strip_rows * (size_t)v->width;
    size_t pixel = 0; /* the next that is an output */
    int y = 0, x = 0; /* of the next position; in runs, of the next tile */

    for (int tile = 0; tile < v->tiles; tile++, target += v->m) {
        switch (f->source) {
        case SOURCE_DIRECT: { /* the last tile overlaps its predecessor rather than the end */
            const size_t at = min_size(pixel, pixels - (size_t)v->m);
            offset[tile] = at * v->pixel_stride;
            for (int i = 0; i < v->m; i++)
                target[i] = at + (size_t)i < pixel ? pixel * out_stride | NO_OUTPUT : (at + (size_t)i) * out_stride;
            pixel = at + (size_t)v->m;
            break;
        }
        case SOURCE_PLANES:
            offset[tile] = (size_t)(tile * v->m) * LINE;
            for (int i = 0; i < v->m; i++) {
                if (y < v->strip_rows && x < v->width)
                    target[i] = pixel++ * out_stride;
                else
                    target[i] = min_size(pixel, pixels - 1) * out_stride | NO_OUTPUT;
                if (++x == v->plane_w) {
                    x = 0;
                    y++;
                }
            }
            break;
        case SOURCE_RUNS:
            offset[tile] = ((size_t)(y * p->stride[0]) * (size_t)v->plane_w + (size_t)(x * p->stride[1])) *
                           (size_t)p->in * sizeof(bf16);
            for (int i = 0; i < v->m; i++, x++) {
                if (x < v->width)
                    target[i] = pixel++ * out_stride;
                else
                    target[i] = min_size(pixel, pixels - 1) * out_stride | NO_OUTPUT;
            }
            if (x >= v->width) {
                x = 0;
                y++;
            }
            break;
        }
    }
    for (int i = 0; i < AHEAD; i++)
        target[i] = (pixels - 1) * out_stride | NO_OUTPUT;
}

#endif
