/* kernels_simd.h - the float32 convolutions and pools over vectors of any width; a template, included once by
 * each table's .c after it has defined LANES, BLOCK_ROWS, BLOCK_VECTORS, BLOCK_ROW_LIST, TABLE, `vec`, `vec_mask`,
 * the v_* functions and simd_available.
 *
 * Everything rests on one register block: up to BLOCK_ROWS output pixels by BLOCK_VECTORS * LANES output
 * channels, summed over `taps` runs of `depth` contiguous inputs. Each pixel of each tap has a pointer of its
 * own, so 1x1, strided, padded and dilated convolutions all read the activations where they are, without
 * im2col; a tap in the padding points to zeros. Weights are packed in panels as wide as the block, in the order
 * in which the block reads them.
 *
 *   gemm_conv      any convolution: blocks over pixels and panels
 *   winograd_3x3   3x3, stride 1: kernels_winograd.h
 *
 * No include guard: the types differ per includer. */

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels_pool.h"
#include "sizes.h"

enum { PANEL = BLOCK_VECTORS * LANES, UNROLL = 4, LINE = 64 / sizeof(float) };

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* ---- the register block ---- */

struct block {
    const float *const *rows; /* [taps][BLOCK_ROWS], `depth` floats each */
    int taps, depth;
    const float *weights; /* [taps * depth][vectors * LANES] */
    const float *fetch;   /* what will be read soon: `fetch_lines` cache lines are fetched in every step */
    int fetch_lines;
    const float *bias;     /* [vectors * LANES] */
    const float *residual; /* as `out`; NULL for none */
    float *out;            /* rows are `stride` floats apart */
    size_t stride;
    int tail;    /* channels in the last vector when it is not full, else 0 */
    float floor; /* 0 for ReLU, -INFINITY for none */
};

/* The accumulators are named variables, not an array, so that they live in registers at any optimisation. The
 * empty asm keeps the compiler from turning one index into BLOCK_ROWS incremented pointers. */
#define BLOCK_DECLARE(i)                                                                                               \
    const float *p##i = NULL;                                                                                          \
    vec x##i = bias0, y##i = bias1;
#define BLOCK_POINT(i)                                                                                                 \
    if (rows > i)                                                                                                      \
        p##i = pointers[i];
#define BLOCK_MULTIPLY(i)                                                                                              \
    if (rows > i) {                                                                                                    \
        const vec a = v_set(p##i[k + u]);                                                                              \
        x##i = v_fma(a, b0, x##i);                                                                                     \
        if (vectors > 1)                                                                                               \
            y##i = v_fma(a, b1, y##i);                                                                                 \
    }
#define BLOCK_RESIDUAL(i)                                                                                              \
    if (rows > i) {                                                                                                    \
        const float *r = residual + i * stride;                                                                        \
        const float *last = r + (vectors - 1) * LANES;                                                                 \
        const vec last_residual = tail ? v_load_masked(last, mask) : v_load(last);                                     \
        x##i = v_add(x##i, vectors > 1 ? v_load(r) : last_residual);                                                   \
        y##i = v_add(y##i, last_residual);                                                                             \
    }
#define BLOCK_STORE(i)                                                                                                 \
    if (rows > i) {                                                                                                    \
        float *o = out + i * stride;                                                                                   \
        const vec last = v_max(floor, vectors > 1 ? y##i : x##i);                                                      \
        if (vectors > 1)                                                                                               \
            v_store(o, v_max(floor, x##i));                                                                            \
        if (tail)                                                                                                      \
            v_store_masked(o + (vectors - 1) * LANES, mask, last);                                                     \
        else                                                                                                           \
            v_store(o + (vectors - 1) * LANES, last);                                                                  \
    }

/* Bring the line into the cache for writing (a no-op on CPUs without the instruction). */
static inline void fetch_to_write(const float *p)
{
    __asm__ volatile("prefetchw %0" ::"m"(*p));
}

ALWAYS_INLINE void block_run(const struct block *t, const int rows, const int vectors)
{
    const int fetch_lines = t->fetch_lines;
    const float *fetch = t->fetch;
    const ptrdiff_t to_residual = t->residual ? t->residual - t->out : 0;
    const float *touch = t->out, *const touch_end = touch + (size_t)rows * t->stride;
    const size_t width = (size_t)vectors * LANES;
    const vec bias0 = v_load(t->bias), bias1 = vectors > 1 ? v_load(t->bias + LANES) : bias0;
    const float *w = t->weights;
    const float *const *pointers = t->rows;
    const size_t depth = (size_t)t->depth;
    BLOCK_ROW_LIST(BLOCK_DECLARE)
    for (int tap = t->taps; tap > 0; tap--, pointers += BLOCK_ROWS) {
        BLOCK_ROW_LIST(BLOCK_POINT)
        size_t k = 0;
        for (; k + UNROLL <= depth; k += UNROLL, w += UNROLL * width) {
            for (int line = 0; line < fetch_lines; line++, fetch += LINE)
                _mm_prefetch((const char *)fetch, _MM_HINT_T1);
            if (touch != touch_end) {
                fetch_to_write(touch);
                fetch_to_write(touch + width - 1);
                if (to_residual) {
                    _mm_prefetch((const char *)(touch + to_residual), _MM_HINT_T0);
                    _mm_prefetch((const char *)(touch + to_residual + width - 1), _MM_HINT_T0);
                }
                touch += t->stride;
            }
#pragma GCC unroll 4
            for (size_t u = 0; u < UNROLL; u++) {
                const vec b0 = v_load(w + u * width), b1 = vectors > 1 ? v_load(w + u * width + LANES) : b0;
                BLOCK_ROW_LIST(BLOCK_MULTIPLY)
            }
            __asm__("" : "+r"(k));
        }
        for (; k < depth; k++, w += width) {
            const size_t u = 0;
            const vec b0 = v_load(w), b1 = vectors > 1 ? v_load(w + LANES) : b0;
            BLOCK_ROW_LIST(BLOCK_MULTIPLY)
            __asm__("" : "+r"(k));
        }
    }
    const int tail = t->tail;
    const vec_mask mask = v_mask(tail);
    const vec floor = v_set(t->floor);
    const float *residual = t->residual;
    float *out = t->out;
    const size_t stride = t->stride;
    if (residual) {
        BLOCK_ROW_LIST(BLOCK_RESIDUAL)
    }
    BLOCK_ROW_LIST(BLOCK_STORE)
}

#define BLOCK_DEFINE(i)                                                                                                \
    static void block_##i##_1(const struct block *t)                                                                   \
    {                                                                                                                  \
        block_run(t, i + 1, 1);                                                                                        \
    }                                                                                                                  \
    static void block_##i##_2(const struct block *t)                                                                   \
    {                                                                                                                  \
        block_run(t, i + 1, 2);                                                                                        \
    }
BLOCK_ROW_LIST(BLOCK_DEFINE)

/* By [rows - 1][vectors - 1]. */
#define BLOCK_ENTRY(i) {block_##i##_1, block_##i##_2},
static void (*const block_kernels[BLOCK_ROWS][BLOCK_VECTORS])(const struct block *t) = {BLOCK_ROW_LIST(BLOCK_ENTRY)};

/* Let block `index` of `count` that run one after the other fetch its share of `bytes` at `from`. The shares are
 * equal, so that the memory is asked evenly; more than FETCH_LINES a step would only queue up. */
static inline void block_fetch(struct block *t, const float *from, size_t bytes, int index, int count)
{
    enum { FETCH_LINES = 8 };
    const size_t steps = (size_t)t->taps * ((size_t)t->depth / UNROLL), lines = bytes / (LINE * sizeof(float));
    const size_t need = steps ? (lines + steps * (size_t)count - 1) / (steps * (size_t)count) : 0;
    const size_t a_step = need < FETCH_LINES ? need : FETCH_LINES, first = steps * a_step * (size_t)index;
    t->fetch = from + first * LINE;
    t->fetch_lines = first < lines ? (int)a_step : 0;
}

/* ---- panels: output channels in groups of PANEL, the last one as many whole vectors as it needs ---- */

struct panel {
    int first;   /* output channel */
    int vectors; /* 1 .. BLOCK_VECTORS */
    int tail;    /* as in struct block */
};

static inline struct panel panel_at(int channels, int index)
{
    const int first = index * PANEL, left = min_int(PANEL, channels - first);
    return (struct panel){first, ceil_div(left, LANES), left % LANES};
}

/* Floats of one row (one input's weights for all channels) over all panels. */
static inline size_t panels_width(int channels)
{
    return size_round_up((size_t)channels, LANES);
}

/* ---- packing: bias per group, padded to whole vectors; then per group and panel [tap][input][width] ---- */

static inline size_t packed_bias_floats(const struct conv_params *p)
{
    return size_round_up((size_t)p->groups * panels_width(p->out / p->groups), KERNEL_ALIGNMENT / sizeof(float));
}

static size_t gemm_packed_bytes(const struct conv *conv)
{
    const struct conv_params *p = &conv->params;
    const size_t depth = (size_t)p->kernel[0] * (size_t)p->kernel[1] * (size_t)(p->in / p->groups);
    return (packed_bias_floats(p) + (size_t)p->groups * depth * panels_width(p->out / p->groups)) * sizeof(float);
}

static void pack_bias(const struct conv_params *p, const float *bias, float *packed)
{
    const int group_out = p->out / p->groups;
    memset(packed, 0, packed_bias_floats(p) * sizeof(float));
    for (int group = 0; group < p->groups; group++)
        memcpy(packed + (size_t)group * panels_width(group_out), bias + (size_t)group * (size_t)group_out,
               (size_t)group_out * sizeof(float));
}

static void gemm_pack_panels(const struct conv_params *p, const float *weight, float *out)
{
    const int group_in = p->in / p->groups, group_out = p->out / p->groups;
    const size_t area = (size_t)p->kernel[0] * (size_t)p->kernel[1], filter = (size_t)group_in * area;
    for (int group = 0; group < p->groups; group++) {
        for (int index = 0; index < ceil_div(group_out, PANEL); index++) {
            const struct panel panel = panel_at(group_out, index);
            const int width = panel.vectors * LANES, valid = min_int(width, group_out - panel.first);
            const float *from = weight + (size_t)(group * group_out + panel.first) * filter;
            /* Reads run along a filter, so that a large matrix is read page by page. */
            for (int o = 0; o < valid; o++, from += filter)
                for (size_t c = 0; c < (size_t)group_in; c++)
                    for (size_t tap = 0; tap < area; tap++)
                        out[(tap * (size_t)group_in + c) * (size_t)width + (size_t)o] = from[c * area + tap];
            for (size_t k = 0; k < filter && valid < width; k++)
                memset(out + k * (size_t)width + valid, 0, (size_t)(width - valid) * sizeof(float));
            out += filter * (size_t)width;
        }
    }
}

static void gemm_pack(const struct conv *conv, const float *weight, const float *bias, void *packed)
{
    pack_bias(&conv->params, bias, packed);
    gemm_pack_panels(&conv->params, weight, (float *)packed + packed_bias_floats(&conv->params));
}

/* ---- gemm_conv: any convolution, as blocks over pixels and panels ---- */

/* conv_work.tile: a task is a range of pixels, counted over all images, by a range of panels; panels are taken
 * in runs whose weights stay in the second-level cache while the task's pixels pass by. */
enum { GEMM_PIXEL_PARTS, GEMM_PANEL_PARTS, GEMM_PANEL_RUN, GEMM_THREADS };

enum { CACHE_WEIGHT_BYTES = 768 * 1024, CACHE_INPUT_BYTES = 1024 * 1024 };

static bool gemm_supports(const struct conv *conv)
{
    (void)conv;
    return true;
}

static inline int gemm_taps(const struct conv_params *p)
{
    return p->kernel[0] * p->kernel[1];
}

static inline int gemm_panels(const struct conv_params *p)
{
    return p->groups * ceil_div(p->out / p->groups, PANEL);
}

/* Scratch: the pointers of one block [taps][BLOCK_ROWS], then zeros for a tap in the padding. */
static inline size_t gemm_pointer_bytes(int taps)
{
    return size_round_up((size_t)taps * BLOCK_ROWS * sizeof(float *), KERNEL_ALIGNMENT);
}

static inline size_t gemm_zero_bytes(const struct conv_params *p)
{
    return size_round_up((size_t)(p->in / p->groups) * sizeof(float), KERNEL_ALIGNMENT);
}

static inline int64_t conv_pixels(const struct conv_geometry *g)
{
    return (int64_t)g->n * g->out_h * g->out_w;
}

static void gemm_plan(const struct conv *conv, const struct conv_geometry *g, int threads, struct conv_work *work)
{
    const struct conv_params *p = &conv->params;
    const int panels = gemm_panels(p);
    const int64_t depth = (int64_t)gemm_taps(p) * (p->in / p->groups);
    const int64_t panel_bytes = depth * PANEL * (int64_t)sizeof(float);
    const int64_t input_bytes = (int64_t)g->n * g->in_h * g->in_w * p->in * (int64_t)sizeof(float);
    const int64_t blocks = (conv_pixels(g) + BLOCK_ROWS - 1) / BLOCK_ROWS;
    /* Where weights are the traffic, tasks share them out; else, the pixels. A few tasks a thread even out a core
     * that is shared; more would wait more often for their first weights. */
    const bool share_weights = input_bytes < panels * panel_bytes;
    const int parts = threads == 1 ? 1 : 4 * threads;
    const int pixel_parts = share_weights ? 1 : blocks < parts ? (int)blocks : parts;
    const int panel_parts = share_weights ? min_int(panels, threads == 1 ? 1 : 2 * threads) : 1;
    *work = (struct conv_work){.tasks = pixel_parts * panel_parts,
                               .scratch_bytes = gemm_pointer_bytes(gemm_taps(p)) + gemm_zero_bytes(p)};
    work->tile[GEMM_PIXEL_PARTS] = pixel_parts;
    work->tile[GEMM_PANEL_PARTS] = panel_parts;
    work->tile[GEMM_THREADS] = threads;
    /* Inputs that stay in the cache may be read once a panel; else as many panels as stay there take turns. */
    const int most = input_bytes / pixel_parts < CACHE_INPUT_BYTES && panels * panel_bytes > CACHE_WEIGHT_BYTES
                         ? 1
                         : max_int(1, (int)(CACHE_WEIGHT_BYTES / panel_bytes));
    const int panels_in_task = ceil_div(panels, panel_parts);
    work->tile[GEMM_PANEL_RUN] = ceil_div(panels_in_task, ceil_div(panels_in_task, most));
}

/* Whether output pixel i reads exactly input pixel i. */
static inline bool is_pointwise(const struct conv_params *p)
{
    for (int d = 0; d < 2; d++)
        if (p->kernel[d] != 1 || p->stride[d] != 1 || p->padding[d] != 0)
            return false;
    return true;
}

/* Fill the pointers of `rows` output pixels from `pixel` on. */
static void gemm_point(const struct conv_params *p, const struct conv_geometry *g, const float *input,
                       const float *zeros, int64_t pixel, int rows, const float **pointers)
{
    if (is_pointwise(p)) {
        for (int i = 0; i < rows; i++)
            pointers[i] = input + (size_t)(pixel + i) * (size_t)p->in;
        return;
    }
    const int area = g->out_h * g->out_w, at = (int)(pixel % area);
    int n = (int)(pixel / area), y = at / g->out_w, x = at % g->out_w;
    for (int i = 0; i < rows; i++) {
        const float **to = pointers + i;
        for (int ky = 0; ky < p->kernel[0]; ky++) {
            const int in_y = y * p->stride[0] - p->padding[0] + ky * p->dilation[0];
            const bool row_inside = in_y >= 0 && in_y < g->in_h;
            for (int kx = 0; kx < p->kernel[1]; kx++, to += BLOCK_ROWS) {
                const int in_x = x * p->stride[1] - p->padding[1] + kx * p->dilation[1];
                const bool inside = row_inside && in_x >= 0 && in_x < g->in_w;
                *to = inside ? input + (((ptrdiff_t)n * g->in_h + in_y) * g->in_w + in_x) * p->in : zeros;
            }
        }
        if (++x == g->out_w) {
            x = 0;
            if (++y == g->out_h) {
                y = 0;
                n++;
            }
        }
    }
}

/* `weights`: the packed panels; the packed bias is where buffers->packed begins. */
static void gemm_run_panels(const struct conv *conv, const struct conv_geometry *g, const struct conv_work *work,
                            const struct conv_buffers *buffers, const float *weights, int task, void *scratch)
{
    const struct conv_params *p = &conv->params;
    const int group_in = p->in / p->groups, group_out = p->out / p->groups, taps = gemm_taps(p);
    const int pixel_parts = work->tile[GEMM_PIXEL_PARTS], panel_parts = work->tile[GEMM_PANEL_PARTS];
    const int panel_run = work->tile[GEMM_PANEL_RUN], panels = gemm_panels(p), group_panels = panels / p->groups;
    assert(task >= 0 && task < work->tasks);
    const int first_panel = part_start(panels, panel_parts, task / pixel_parts);
    const int end_panel = part_start(panels, panel_parts, task / pixel_parts + 1);
    const int64_t pixels = conv_pixels(g), blocks = (pixels + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int64_t first_pixel = blocks * (task % pixel_parts) / pixel_parts * BLOCK_ROWS;
    const int64_t limit = blocks * (task % pixel_parts + 1) / pixel_parts * BLOCK_ROWS;
    const int64_t end_pixel = limit < pixels ? limit : pixels;

    const float **pointers = scratch;
    float *zeros = (float *)((char *)scratch + gemm_pointer_bytes(taps));
    memset(zeros, 0, gemm_zero_bytes(p));
    const int blocks_in_task = ceil_div((int)(end_pixel - first_pixel), BLOCK_ROWS);
    const size_t panel_bytes = (size_t)taps * (size_t)group_in * PANEL * sizeof(float);
    const bool pointwise = p->groups == 1 && is_pointwise(p);
    const float *packed = buffers->packed;
    const size_t depth = (size_t)taps * (size_t)group_in, group_width = panels_width(group_out);
    struct block t = {.rows = (const float *const *)pointers,
                      .taps = taps,
                      .depth = group_in,
                      .stride = (size_t)p->out,
                      .floor = conv->relu ? 0.0f : -INFINITY};
    for (int run = first_panel; run < end_panel; run += panel_run) {
        int left = blocks_in_task, block = 0; /* blocks have nearly equal rows */
        for (int64_t pixel = first_pixel; left > 0; left--, block++) {
            const int rows = ceil_div((int)(end_pixel - pixel), left);
            int group = -1;
            for (int index = run; index < min_int(run + panel_run, end_panel); index++) {
                const struct panel panel = panel_at(group_out, index % group_panels);
                if (group != index / group_panels) {
                    group = index / group_panels;
                    gemm_point(p, g, (const float *)buffers->input + group * group_in, zeros, pixel, rows, pointers);
                }
                const size_t at = (size_t)pixel * (size_t)p->out + (size_t)(group * group_out + panel.first);
                t.weights = weights + ((size_t)group * group_width + (size_t)panel.first) * depth;
                /* The panel after this one: of this task, or of the one that this thread probably takes next. */
                const int next = index + 1 < end_panel
                                     ? index + 1
                                     : part_start(panels, panel_parts, task + work->tile[GEMM_THREADS]);
                if (panel_run == 1 && next < panels)
                    block_fetch(&t, t.weights + (ptrdiff_t)(next - index) * PANEL * (ptrdiff_t)depth, panel_bytes,
                                block, blocks_in_task);
                else if (pointwise && left > 1)
                    block_fetch(&t, (const float *)buffers->input + (size_t)(pixel + rows) * (size_t)p->in,
                                (size_t)p->in * BLOCK_ROWS * sizeof(float), index - run,
                                min_int(panel_run, end_panel - run));
                else
                    t.fetch_lines = 0;
                t.bias = packed + (size_t)group * group_width + panel.first;
                t.residual = conv->has_residual ? (const float *)buffers->residual + at : NULL;
                t.out = (float *)buffers->output + at;
                t.tail = panel.tail;
                block_kernels[rows - 1][panel.vectors - 1](&t);
            }
            pixel += rows;
        }
    }
}

static void gemm_run(const struct conv *conv, const struct conv_geometry *g, const struct conv_work *work,
                     const struct conv_buffers *buffers, int task, void *scratch)
{
    const float *weights = (const float *)buffers->packed + packed_bias_floats(&conv->params);
    gemm_run_panels(conv, g, work, buffers, weights, task, scratch);
}

static const struct conv_kernel gemm_conv = {
    .name = "gemm_conv__" TABLE,
    .supports = gemm_supports,
    .packed_bytes = gemm_packed_bytes,
    .pack = gemm_pack,
    .plan = gemm_plan,
    .run = gemm_run,
};

/* ---- strip_conv: few input channels (the stem). A kernel row is one run of kernel_w * in floats, contiguous in
 * NHWC once the input rows stand in scratch with their padding. Packed as gemm_conv: the order is the same. ---- */

/* conv_work.tile: a task is a range of output rows, counted over all images. */
enum { STRIP_PARTS };

enum { STRIP_MAX_IN = 8, STRIP_BYTES = 64 * 1024 };

static bool strip_supports(const struct conv *conv)
{
    const struct conv_params *p = &conv->params;
    return p->groups == 1 && p->in <= STRIP_MAX_IN && p->kernel[1] > 1 && p->dilation[1] == 1;
}

static inline size_t strip_row_floats(const struct conv_params *p, const struct conv_geometry *g)
{
    return (size_t)((g->out_w - 1) * p->stride[1] + p->kernel[1]) * (size_t)p->in;
}

static inline int strip_rows(const struct conv_params *p, int out_rows)
{
    return (out_rows - 1) * p->stride[0] + (p->kernel[0] - 1) * p->dilation[0] + 1;
}

static void strip_plan(const struct conv *conv, const struct conv_geometry *g, int threads, struct conv_work *work)
{
    const struct conv_params *p = &conv->params;
    const int rows = g->n * g->out_h;
    const size_t step_bytes = strip_row_floats(p, g) * (size_t)p->stride[0] * sizeof(float);
    const int task_rows = max_int(4, (int)(STRIP_BYTES / step_bytes));
    const int parts = min_int(rows, max_int(threads == 1 ? 1 : 4 * threads, ceil_div(rows, task_rows)));
    const size_t strip_floats = strip_row_floats(p, g) * (size_t)strip_rows(p, ceil_div(rows, parts));
    *work = (struct conv_work){.tasks = parts,
                               .scratch_bytes = gemm_pointer_bytes(p->kernel[0]) +
                                                size_round_up(strip_floats * sizeof(float), KERNEL_ALIGNMENT)};
    work->tile[STRIP_PARTS] = parts;
}

/* Copy what output rows y0 .. y0 + out_rows - 1 of one image need into `strip`, with zeros for the padding. */
static void strip_fill(const struct conv_params *p, const struct conv_geometry *g, const float *image, int y0,
                       int out_rows, float *strip)
{
    const size_t row_floats = strip_row_floats(p, g), left = (size_t)p->padding[1] * (size_t)p->in;
    const size_t in_floats = (size_t)g->in_w * (size_t)p->in;
    const size_t copied = left >= row_floats ? 0 : (row_floats - left < in_floats ? row_floats - left : in_floats);
    for (int row = 0; row < strip_rows(p, out_rows); row++, strip += row_floats) {
        const int in_y = y0 * p->stride[0] - p->padding[0] + row;
        if (in_y < 0 || in_y >= g->in_h || copied == 0) {
            memset(strip, 0, row_floats * sizeof(float));
            continue;
        }
        memset(strip, 0, left * sizeof(float));
        memcpy(strip + left, image + (size_t)in_y * in_floats, copied * sizeof(float));
        memset(strip + left + copied, 0, (row_floats - left - copied) * sizeof(float));
    }
}

static void strip_run(const struct conv *conv, const struct conv_geometry *g, const struct conv_work *work,
                      const struct conv_buffers *buffers, int task, void *scratch)
{
    const struct conv_params *p = &conv->params;
    const int taps = p->kernel[0], depth = p->kernel[1] * p->in;
    const int end_row = part_start(g->n * g->out_h, work->tile[STRIP_PARTS], task + 1);
    const size_t row_floats = strip_row_floats(p, g);
    const float **pointers = scratch;
    float *strip = (float *)((char *)scratch + gemm_pointer_bytes(taps));
    const float *packed = buffers->packed, *weights = packed + packed_bias_floats(p);
    assert(task >= 0 && task < work->tasks);
    struct block t = {.rows = (const float *const *)pointers,
                      .taps = taps,
                      .depth = depth,
                      .stride = (size_t)p->out,
                      .floor = conv->relu ? 0.0f : -INFINITY};
    int row = part_start(g->n * g->out_h, work->tile[STRIP_PARTS], task);
    while (row < end_row) {
        const int n = row / g->out_h, y0 = row % g->out_h, out_rows = min_int(end_row - row, g->out_h - y0);
        strip_fill(p, g, (const float *)buffers->input + (size_t)n * (size_t)g->in_h * (size_t)g->in_w * (size_t)p->in,
                   y0, out_rows, strip);
        const int pixels = out_rows * g->out_w;
        int left = ceil_div(pixels, BLOCK_ROWS), y = 0, x = 0;
        for (int pixel = 0; left > 0; left--) {
            const int rows = ceil_div(pixels - pixel, left);
            for (int i = 0; i < rows; i++) {
                const float *from = strip + (size_t)(y * p->stride[0]) * row_floats + x * p->stride[1] * p->in;
                for (int tap = 0; tap < taps; tap++)
                    pointers[tap * BLOCK_ROWS + i] = from + (size_t)(tap * p->dilation[0]) * row_floats;
                if (++x == g->out_w) {
                    x = 0;
                    y++;
                }
            }
            for (int index = 0; index < ceil_div(p->out, PANEL); index++) {
                const struct panel panel = panel_at(p->out, index);
                const size_t at =
                    ((size_t)row * (size_t)g->out_w + (size_t)pixel) * (size_t)p->out + (size_t)panel.first;
                t.weights = weights + (size_t)panel.first * (size_t)taps * (size_t)depth;
                t.bias = packed + panel.first;
                t.residual = conv->has_residual ? (const float *)buffers->residual + at : NULL;
                t.out = (float *)buffers->output + at;
                t.tail = panel.tail;
                block_kernels[rows - 1][panel.vectors - 1](&t);
            }
            pixel += rows;
        }
        row += out_rows;
    }
}

static const struct conv_kernel strip_conv = {
    .name = "strip_conv__" TABLE,
    .supports = strip_supports,
    .packed_bytes = gemm_packed_bytes,
    .pack = gemm_pack,
    .plan = strip_plan,
    .run = strip_run,
};

#include "kernels_winograd.h"

static const struct conv_kernel *const simd_convs[] = {&winograd_3x3, &strip_conv, &gemm_conv, NULL};

/* ---- pools: a task is one output row ---- */

static void simd_max_pool(const struct pool *pool, int task)
{
    const struct pool_params *p = pool->params;
    const int n = task / pool->out_h, y = task % pool->out_h;
    const size_t channels = (size_t)pool->channels;
    const float *image = (const float *)pool->input + (size_t)n * (size_t)pool->in_h * (size_t)pool->in_w * channels;
    float *out = (float *)pool->output + (size_t)task * (size_t)pool->out_w * channels;
    for (int x = 0; x < pool->out_w; x++, out += channels) {
        for (size_t c = 0; c < channels; c += LANES) {
            const int valid = channels - c < LANES ? (int)(channels - c) : LANES;
            vec most = v_set(-INFINITY);
            for (int ky = 0; ky < p->kernel[0]; ky++) {
                const int in_y = y * p->stride[0] - p->padding[0] + ky * p->dilation[0];
                if (in_y < 0 || in_y >= pool->in_h)
                    continue;
                for (int kx = 0; kx < p->kernel[1]; kx++) {
                    const int in_x = x * p->stride[1] - p->padding[1] + kx * p->dilation[1];
                    if (in_x < 0 || in_x >= pool->in_w)
                        continue;
                    const float *from = image + ((size_t)in_y * (size_t)pool->in_w + (size_t)in_x) * channels + c;
                    most = v_max(most, valid == LANES ? v_load(from) : v_load_masked(from, v_mask(valid)));
                }
            }
            if (valid == LANES)
                v_store(out + c, most);
            else
                v_store_masked(out + c, v_mask(valid), most);
        }
    }
}

/* out[0 .. channels - 1] = sum of the window's pixels / divisor. */
static void average_window(const float *image, int in_w, size_t channels, int y0, int y1, int x0, int x1, float divisor,
                           float *out)
{
    for (size_t c = 0; c < channels; c += LANES) {
        const int valid = channels - c < LANES ? (int)(channels - c) : LANES;
        vec sum = v_set(0.0f);
        for (int y = y0; y < y1; y++) {
            for (int x = x0; x < x1; x++) {
                const float *from = image + ((size_t)y * (size_t)in_w + (size_t)x) * channels + c;
                sum = v_add(sum, valid == LANES ? v_load(from) : v_load_masked(from, v_mask(valid)));
            }
        }
        sum = v_div(sum, v_set(divisor));
        if (valid == LANES)
            v_store(out + c, sum);
        else
            v_store_masked(out + c, v_mask(valid), sum);
    }
}

static void simd_avg_pool(const struct pool *pool, int task)
{
    const struct pool_params *p = pool->params;
    const int n = task / pool->out_h, y = task % pool->out_h;
    const size_t channels = (size_t)pool->channels;
    const float *image = (const float *)pool->input + (size_t)n * (size_t)pool->in_h * (size_t)pool->in_w * channels;
    float *out = (float *)pool->output + (size_t)task * (size_t)pool->out_w * channels;
    const int top = y * p->stride[0] - p->padding[0], bottom = min_int(top + p->kernel[0], pool->in_h + p->padding[0]);
    const int y0 = max_int(top, 0), y1 = min_int(bottom, pool->in_h);
    for (int x = 0; x < pool->out_w; x++, out += channels) {
        const int left = x * p->stride[1] - p->padding[1],
                  right = min_int(left + p->kernel[1], pool->in_w + p->padding[1]);
        const int x0 = max_int(left, 0), x1 = min_int(right, pool->in_w);
        const int divisor = p->divisor_override    ? p->divisor_override
                            : p->count_include_pad ? (bottom - top) * (right - left)
                                                   : (y1 - y0) * (x1 - x0);
        average_window(image, pool->in_w, channels, y0, y1, x0, x1, (float)divisor, out);
    }
}

static void simd_adaptive_avg_pool(const struct pool *pool, int task)
{
    const int n = task / pool->out_h, y = task % pool->out_h;
    const size_t channels = (size_t)pool->channels;
    const float *image = (const float *)pool->input + (size_t)n * (size_t)pool->in_h * (size_t)pool->in_w * channels;
    float *out = (float *)pool->output + (size_t)task * (size_t)pool->out_w * channels;
    const int y0 = adaptive_bin_begin(y, pool->in_h, pool->out_h), y1 = adaptive_bin_end(y, pool->in_h, pool->out_h);
    for (int x = 0; x < pool->out_w; x++, out += channels) {
        const int x0 = adaptive_bin_begin(x, pool->in_w, pool->out_w),
                  x1 = adaptive_bin_end(x, pool->in_w, pool->out_w);
        average_window(image, pool->in_w, channels, y0, y1, x0, x1, (float)((y1 - y0) * (x1 - x0)), out);
    }
}

#define SIMD_TABLE                                                                                                     \
    {                                                                                                                  \
        .name = TABLE, .precision = "fp32", .arithmetic = "float32, direct and Winograd convolution, " TABLE,          \
        .activation = ACTIVATION_F32, .available = simd_available, .convs = simd_convs, .max_pool = simd_max_pool,     \
        .avg_pool = simd_avg_pool, .adaptive_avg_pool = simd_adaptive_avg_pool, .from_f32 = copy_from_f32,             \
        .to_f32 = copy_to_f32                                                                                          \
    }
