/* kernels_amx_input.c - how the bf16 table's convolutions find their input in memory. */

#include "kernels_amx_internal.h"

#if defined(__x86_64__)

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
        v.row_bytes = v.pixel_stride = (size_t)p->in * sizeof(bf16);
        v.chunk_stride = LINE;
        v.tiles = ceil_div(v.strip_rows, TILE);
        v.m = ceil_div(v.strip_rows, v.tiles);
        break;
    case SOURCE_PLANES: {
        const int planes = phases_used(p, 0) * phases_used(p, 1);
        v.plane_w = v.width + reach_x / p->stride[1];
        v.plane_rows = v.strip_rows + reach_y / p->stride[0];
        v.row_bytes = (size_t)planes * (size_t)v.plane_w * (size_t)f->chunks * LINE;
        v.pixel_stride = LINE;
        v.chunk_stride = (size_t)planes * (size_t)v.plane_rows * (size_t)v.plane_w * LINE;
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
        v.branch_pixel_stride = (size_t)conv->branch.in * sizeof(bf16);
        v.branch_chunk_stride = LINE;
    } else if (f->branch_chunks) {
        v.branch_pixel_stride = LINE;
        v.branch_chunk_stride = (size_t)v.tiles * (size_t)v.m * LINE;
        v.branch_bytes = (size_t)f->branch_chunks * v.branch_chunk_stride;
    }
    v.row_bytes += (size_t)v.width * (size_t)f->branch_chunks * LINE;
    return v;
}

/* Copy `channels` values and fill up to whole lines with zeros, each line `stride` bytes after the other. */
ALWAYS_INLINE void copy_pixel(const bf16 *from, int channels, char *to, size_t stride)
{
    int c = 0;
    for (; c + CHUNK <= channels; c += CHUNK, to += stride)
        _mm512_store_si512(to, _mm512_loadu_si512(from + c));
    if (c < channels) {
        const __mmask32 mask = (__mmask32)((1u << (channels - c)) - 1u);
        _mm512_store_si512(to, _mm512_maskz_loadu_epi16(mask, from + c));
    }
}

static void clear_pixels(char *to, int count, int chunks, size_t stride)
{
    for (int chunk = 0; chunk < chunks; chunk++)
        memset(to + (size_t)chunk * stride, 0, (size_t)count * LINE);
}

/* Copy what output rows [first, first + view->strip_rows) of one image need. */
void amx_gather_planes(const struct conv_params *p, const struct amx_form *f, const struct conv_geometry *g,
                       const struct amx_view *v, const bf16 *image, int first, char *to)
{
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
                if (y < 0 || y >= g->in_h) {
                    clear_pixels(to, v->plane_w, f->chunks, v->chunk_stride);
                    continue;
                }
                const bf16 *line = image + (size_t)y * (size_t)g->in_w * (size_t)p->in;
                clear_pixels(to, left, f->chunks, v->chunk_stride);
                for (int x = left; x < right; x++)
                    copy_pixel(line + (size_t)(x * sx + shift) * (size_t)p->in, p->in, to + (size_t)x * LINE,
                               v->chunk_stride);
                clear_pixels(to + (size_t)right * LINE, v->plane_w - right, f->chunks, v->chunk_stride);
            }
        }
    }
}

void amx_gather_runs(const struct conv_params *p, const struct conv_geometry *g, const struct amx_view *v,
                     const bf16 *image, int first, char *to)
{
    const int in_rows = (v->strip_rows - 1) * p->stride[0] + (p->kernel[0] - 1) * p->dilation[0] + 1;
    const int left = min_int(p->padding[1], v->plane_w), count = max_int(0, min_int(g->in_w, v->plane_w - left));
    const size_t pixel = (size_t)p->in * sizeof(bf16), row_bytes = (size_t)v->plane_w * pixel;
    const char *end = to + v->input_bytes;

    for (int row = 0; row < in_rows; row++, to += row_bytes) {
        const int y = first * p->stride[0] + row - p->padding[0];
        if (y < 0 || y >= g->in_h) {
            memset(to, 0, row_bytes);
            continue;
        }
        memset(to, 0, (size_t)left * pixel);
        memcpy(to + (size_t)left * pixel, image + (size_t)y * (size_t)g->in_w * (size_t)p->in, (size_t)count * pixel);
        memset(to + (size_t)(left + count) * pixel, 0, row_bytes - (size_t)(left + count) * pixel);
    }
    memset(to, 0, (size_t)(end - to));
}

/* Copy the branch's input for a strip: output position `i` of the tiles reads pixel i of each chunk. */
void amx_gather_branch(const struct conv_params *branch, const struct conv_geometry *g, const struct amx_view *v,
                       const bf16 *input, size_t first_pixel, char *to)
{
    const size_t width = (size_t)g->out_w, height = (size_t)g->out_h;
    /* Whole rows leave room for the halo between them; pixels without one follow one another. */
    const size_t gap = v->plane_w ? (size_t)(v->plane_w - v->width) : 0;
    size_t x = first_pixel % width, y = first_pixel / width % height, n = first_pixel / width / height;

    for (int i = 0; i < v->strip_rows * v->width; i++, to += LINE) {
        const size_t at = (n * (size_t)g->branch_h + y * (size_t)branch->stride[0]) * (size_t)g->branch_w +
                          x * (size_t)branch->stride[1];
        copy_pixel(input + at * (size_t)branch->in, branch->in, to, v->branch_chunk_stride);
        if (++x == width) {
            x = 0;
            to += gap * LINE;
            if (++y == height) {
                y = 0;
                n++;
            }
        }
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

/* Where tiles read and where their rows are written: `out_stride` bytes from an output pixel to the next; rows that
 * are no output go to `sink`. */
void amx_fill_tiles(const struct conv_params *p, const struct amx_form *f, const struct amx_view *v, size_t out_stride,
                    ptrdiff_t sink, size_t *offset, ptrdiff_t *target)
{
    int y = 0, x = 0; /* of the next position; in runs, of the next tile */

    for (int tile = 0; tile < v->tiles; tile++, target += v->m) {
        switch (f->source) {
        case SOURCE_DIRECT: { /* the last tile overlaps its predecessor rather than the end */
            const int begin = tile * v->m, at = min_int(begin, v->strip_rows - v->m);
            offset[tile] = (size_t)at * v->pixel_stride;
            for (int i = 0; i < v->m; i++)
                target[i] = at + i < begin ? sink : (ptrdiff_t)((size_t)(at + i) * out_stride);
            break;
        }
        case SOURCE_PLANES:
            offset[tile] = (size_t)(tile * v->m) * LINE;
            for (int i = 0; i < v->m; i++) {
                target[i] =
                    y < v->strip_rows && x < v->width ? (ptrdiff_t)((size_t)(y * v->width + x) * out_stride) : sink;
                if (++x == v->plane_w) {
                    x = 0;
                    y++;
                }
            }
            break;
        case SOURCE_RUNS:
            offset[tile] = ((size_t)(y * p->stride[0]) * (size_t)v->plane_w + (size_t)(x * p->stride[1])) *
                           (size_t)p->in * sizeof(bf16);
            for (int i = 0; i < v->m; i++)
                target[i] = x + i < v->width ? (ptrdiff_t)((size_t)(y * v->width + x + i) * out_stride) : sink;
            x += v->m;
            if (x >= v->width) {
                x = 0;
                y++;
            }
            break;
        }
    }
    for (int i = 0; i < AHEAD; i++)
        target[i] = sink;
}

#endif
