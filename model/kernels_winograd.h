/* kernels_winograd.h - 3x3 convolutions with stride 1 by Winograd's F(4x4, 3x3), F(3x3, 3x3) and F(2x2, 3x3);
 * part of the template kernels_simd.h.
 *
 * An m x m tile of the output comes from an (m + 2) x (m + 2) tile of the input:
 *   Y = A' [ sum over channels of (G g G') * (B' d B) ] A
 * so that (m + 2)^2 products do the work of 9 m^2: 4, 3.2 and 2.25 times fewer for m = 4, 3 and 2, while the
 * weights grow 4, 2.8 and 1.8 times. Which one wins is a question of how many pixels share the weights; the packed
 * form holds what could win for the layer's channels, and plan() decides by geometry.
 *
 * A task: transform a block of input tiles, for each panel multiply (m + 2)^2 small matrices with the register
 * block, transform the products back, add bias and residual, apply ReLU.
 *
 * The points of F(4x4) are 0, +-1/sqrt(2), +-sqrt(2) and infinity: their products are balanced around 1, and the
 * error is a sixth of what the usual 0, +-1, +-2 give. Those of F(3x3) are 0, +-1/sqrt(2), 2 and infinity, of
 * F(2x2) 0, +-1 and infinity. */

enum {
    WINOGRAD_FORM = 7, /* in conv_work.tile: 4, 3, 2, or 0 for gemm_conv, whose numbers are the first ones */
    WINOGRAD_TILE_PARTS = 0,
    WINOGRAD_PANEL_PARTS,
    WINOGRAD_BLOCK_TILES,              /* tiles that are transformed together */
    WINOGRAD_INPUT_BYTES = 512 * 1024, /* of transformed tiles; twice that where the weights come from memory anyway */
    WINOGRAD_CACHED_BYTES = 3 * 1024 * 1024,
};

static const float root = 1.41421356237309505f;

/* ---- one-dimensional transforms of m + 2 values, results `step` floats apart ---- */

ALWAYS_INLINE void winograd4_input(vec d0, vec d1, vec d2, vec d3, vec d4, vec d5, float *out, size_t step)
{
    const vec two = v_set(2.0f), half = v_set(0.5f), sum = v_set(2.5f), a = v_set(root / 2), b = v_set(root);
    const vec even_a = v_fnma(two, d2, d4), odd_a = v_fnma(two, d1, d3);
    const vec even_b = v_fnma(half, d2, d4), odd_b = v_fnma(half, d1, d3);
    v_store(out, v_fnma(sum, d2, v_add(d0, d4)));
    v_store(out + step, v_fma(a, odd_a, even_a));
    v_store(out + 2 * step, v_fnma(a, odd_a, even_a));
    v_store(out + 3 * step, v_fma(b, odd_b, even_b));
    v_store(out + 4 * step, v_fnma(b, odd_b, even_b));
    v_store(out + 5 * step, v_fnma(sum, d3, v_add(d1, d5)));
}

ALWAYS_INLINE void winograd3_input(vec d0, vec d1, vec d2, vec d3, vec d4, float *out, size_t step)
{
    const vec two = v_set(2.0f), half = v_set(0.5f), a = v_set(root / 2);
    const vec at_c = v_fnma(half, d1, d3), even_a = v_fnma(two, d2, d3), odd_a = v_fnma(two, d1, d2);
    v_store(out, v_fnma(two, v_fnma(half, d0, d2), at_c));
    v_store(out + step, v_fma(a, odd_a, even_a));
    v_store(out + 2 * step, v_fnma(a, odd_a, even_a));
    v_store(out + 3 * step, at_c);
    v_store(out + 4 * step, v_fnma(two, at_c, v_fnma(half, d2, d4)));
}

ALWAYS_INLINE void winograd2_input(vec d0, vec d1, vec d2, vec d3, float *out, size_t step)
{
    v_store(out, v_sub(d0, d2));
    v_store(out + step, v_add(d1, d2));
    v_store(out + 2 * step, v_sub(d2, d1));
    v_store(out + 3 * step, v_sub(d1, d3));
}

ALWAYS_INLINE void winograd4_weight(vec g0, vec g1, vec g2, float *out, size_t step)
{
    const vec ka = v_set(-2.0f / 3), kb = v_set(1.0f / 6);
    const vec even_a = v_mul(ka, v_fma(v_set(0.5f), g2, g0)), odd_a = v_mul(v_set(-root / 3), g1);
    const vec even_b = v_mul(kb, v_fma(v_set(2.0f), g2, g0)), odd_b = v_mul(v_set(root / 6), g1);
    v_store(out, g0);
    v_store(out + step, v_add(even_a, odd_a));
    v_store(out + 2 * step, v_sub(even_a, odd_a));
    v_store(out + 3 * step, v_add(even_b, odd_b));
    v_store(out + 4 * step, v_sub(even_b, odd_b));
    v_store(out + 5 * step, g2);
}

ALWAYS_INLINE void winograd3_weight(vec g0, vec g1, vec g2, float *out, size_t step)
{
    const vec even_a = v_fma(v_set(0.5f), g2, g0), odd_a = v_mul(v_set(root / 2), g1);
    const vec at_c = v_fma(v_set(4.0f), g2, v_fma(v_set(2.0f), g1, g0));
    v_store(out, g0);
    v_store(out + step, v_mul(v_set(1 / (root / 2 - 2)), v_add(even_a, odd_a)));
    v_store(out + 2 * step, v_mul(v_set(-1 / (root / 2 + 2)), v_sub(even_a, odd_a)));
    v_store(out + 3 * step, v_mul(v_set(1.0f / 7), at_c));
    v_store(out + 4 * step, g2);
}

ALWAYS_INLINE void winograd2_weight(vec g0, vec g1, vec g2, float *out, size_t step)
{
    const vec half = v_set(0.5f), even = v_mul(half, v_add(g0, g2)), odd = v_mul(half, g1);
    v_store(out, g0);
    v_store(out + step, v_add(even, odd));
    v_store(out + 2 * step, v_sub(even, odd));
    v_store(out + 3 * step, g2);
}

/* m + 2 products, `step` floats apart, to m outputs. */
ALWAYS_INLINE void winograd4_output(const float *in, size_t step, vec out[4])
{
    const vec m1 = v_load(in + step), m2 = v_load(in + 2 * step), m3 = v_load(in + 3 * step),
              m4 = v_load(in + 4 * step);
    const vec even_a = v_add(m1, m2), odd_a = v_sub(m1, m2), even_b = v_add(m3, m4), odd_b = v_sub(m3, m4);
    out[0] = v_add(v_add(v_load(in), even_a), even_b);
    out[1] = v_fma(v_set(root), odd_b, v_mul(v_set(root / 2), odd_a));
    out[2] = v_fma(v_set(2.0f), even_b, v_mul(v_set(0.5f), even_a));
    out[3] = v_fma(v_set(2 * root), odd_b, v_fma(v_set(root / 4), odd_a, v_load(in + 5 * step)));
}

ALWAYS_INLINE void winograd3_output(const float *in, size_t step, vec out[4])
{
    const vec m1 = v_load(in + step), m2 = v_load(in + 2 * step), m3 = v_load(in + 3 * step);
    const vec even_a = v_add(m1, m2), odd_a = v_sub(m1, m2);
    out[0] = v_add(v_add(v_load(in), even_a), m3);
    out[1] = v_fma(v_set(2.0f), m3, v_mul(v_set(root / 2), odd_a));
    out[2] = v_fma(v_set(4.0f), m3, v_fma(v_set(0.5f), even_a, v_load(in + 4 * step)));
}

ALWAYS_INLINE void winograd2_output(const float *in, size_t step, vec out[4])
{
    const vec m1 = v_load(in + step), m2 = v_load(in + 2 * step);
    out[0] = v_add(v_add(v_load(in), m1), m2);
    out[1] = v_sub(v_sub(m1, m2), v_load(in + 3 * step));
}

/* ---- two-dimensional transforms of one tile, one vector of channels ---- */

/* pixels: (m + 2)^2 pointers in rows; the results are `step` floats apart. */
ALWAYS_INLINE void winograd_input_tile(const int m, const float *const *pixels, size_t channel, float *out, size_t step)
{
    enum { MAX_SIDE = 6 };
    _Alignas(64) float half[MAX_SIDE * MAX_SIDE * LANES];
#define AT(i, j)   v_load(pixels[(i) * (m + 2) + (j)] + channel)
#define HALF(i, j) v_load(half + ((i) * (m + 2) + (j)) * LANES)
#pragma GCC unroll 1
    for (int j = 0; j < m + 2; j++) {
        float *to = half + j * LANES;
        if (m == 4)
            winograd4_input(AT(0, j), AT(1, j), AT(2, j), AT(3, j), AT(4, j), AT(5, j), to, (size_t)(m + 2) * LANES);
        else if (m == 3)
            winograd3_input(AT(0, j), AT(1, j), AT(2, j), AT(3, j), AT(4, j), to, (size_t)(m + 2) * LANES);
        else
            winograd2_input(AT(0, j), AT(1, j), AT(2, j), AT(3, j), to, (size_t)(m + 2) * LANES);
    }
#pragma GCC unroll 1
    for (int i = 0; i < m + 2; i++, out += (size_t)(m + 2) * step) {
        for (int j = 0; j < m + 2; j++)
            fetch_to_write(out + (size_t)j * step + LANES);
        if (m == 4)
            winograd4_input(HALF(i, 0), HALF(i, 1), HALF(i, 2), HALF(i, 3), HALF(i, 4), HALF(i, 5), out, step);
        else if (m == 3)
            winograd3_input(HALF(i, 0), HALF(i, 1), HALF(i, 2), HALF(i, 3), HALF(i, 4), out, step);
        else
            winograd2_input(HALF(i, 0), HALF(i, 1), HALF(i, 2), HALF(i, 3), out, step);
    }
#undef AT
#undef HALF
}

/* Where one tile of outputs goes. */
struct winograd_target {
    float *out;            /* its first pixel and channel */
    const float *residual; /* the same place in the residual, or NULL */
    size_t row, column;    /* floats between rows and between pixels */
    int height, width;     /* pixels inside the image, 1 .. m */
};

ALWAYS_INLINE void winograd_output_tile(const int m, const float *products, size_t step, vec bias, vec floor, int tail,
                                        const struct winograd_target *t)
{
    enum { MAX_M = 4, MAX_SIDE = 6 };
    _Alignas(64) float half[MAX_M * MAX_SIDE * LANES];
    vec out[MAX_M];
#pragma GCC unroll 1
    for (int j = 0; j < m + 2; j++) {
        if (m == 4)
            winograd4_output(products + (size_t)j * step, (size_t)(m + 2) * step, out);
        else if (m == 3)
            winograd3_output(products + (size_t)j * step, (size_t)(m + 2) * step, out);
        else
            winograd2_output(products + (size_t)j * step, (size_t)(m + 2) * step, out);
        for (int i = 0; i < m; i++)
            v_store(half + (i * (m + 2) + j) * LANES, out[i]);
    }
    const vec_mask mask = v_mask(tail);
#pragma GCC unroll 1
    for (int i = 0; i < t->height; i++) {
        for (int j = 0; j < m; j++)
            fetch_to_write(t->out + (size_t)i * t->row + (size_t)(j + m) * t->column);
        if (m == 4)
            winograd4_output(half + i * (m + 2) * LANES, LANES, out);
        else if (m == 3)
            winograd3_output(half + i * (m + 2) * LANES, LANES, out);
        else
            winograd2_output(half + i * (m + 2) * LANES, LANES, out);
        for (int j = 0; j < m; j++) {
            if (j >= t->width)
                break;
            const size_t at = (size_t)i * t->row + (size_t)j * t->column;
            vec y = v_add(out[j], bias);
            if (t->residual)
                y = v_add(y, tail ? v_load_masked(t->residual + at, mask) : v_load(t->residual + at));
            y = v_max(floor, y);
            if (tail)
                v_store_masked(t->out + at, mask, y);
            else
                v_store(t->out + at, y);
        }
    }
}

/* ---- packing: bias; then the forms from F(4x4) down, each per panel [(m + 2)^2][in][width]; then gemm_conv's
 * panels ---- */

static bool winograd_supports(const struct conv *conv)
{
    const struct conv_params *p = &conv->params;
    for (int d = 0; d < 2; d++)
        if (p->kernel[d] != 3 || p->stride[d] != 1 || p->dilation[d] != 1)
            return false;
    return p->groups == 1 && p->in >= 16 && p->out >= 16;
}

/* Which forms are packed: those that win at some size, weighed against memory. F(4x4) is for many pixels, and takes
 * 38 MB at 512 x 512 channels; F(3x3) is for fewer; for large layers F(2x2), and the plain form for very few. */
static inline bool winograd_has(const struct conv_params *p, int m)
{
    const int64_t size = (int64_t)p->in * p->out;
    const bool large = size > 256 * 512;
    return m == 4 ? !large : m == 3 ? !large && size >= 128 * 128 : m == 2 ? large : m == 0 && size >= 128 * 128;
}

/* Floats of one form, 0 if it is not packed. */
static inline size_t winograd_form_floats(const struct conv_params *p, int m)
{
    const size_t products = m ? (size_t)(m + 2) * (size_t)(m + 2) : 9;
    return winograd_has(p, m) ? products * (size_t)p->in * panels_width(p->out) : 0;
}

/* Floats before a form; for -1, all. */
static inline size_t winograd_form_offset(const struct conv_params *p, int m)
{
    size_t offset = packed_bias_floats(p);
    for (int before = 4; before > m; before--)
        offset += winograd_form_floats(p, before);
    return offset;
}

static size_t winograd_packed_bytes(const struct conv *conv)
{
    return winograd_form_offset(&conv->params, -1) * sizeof(float);
}

/* filter: [9][LANES] of one input channel. out: the products' first weights, `step` floats apart. */
ALWAYS_INLINE void winograd_weight_tile(const int m, const float *filter, float *out, size_t step)
{
    enum { MAX_SIDE = 6 };
    _Alignas(64) float half[MAX_SIDE * 3 * LANES];
    for (int j = 0; j < 3; j++) {
        const vec g0 = v_load(filter + j * LANES), g1 = v_load(filter + (3 + j) * LANES);
        const vec g2 = v_load(filter + (6 + j) * LANES);
        if (m == 4)
            winograd4_weight(g0, g1, g2, half + j * LANES, 3 * LANES);
        else if (m == 3)
            winograd3_weight(g0, g1, g2, half + j * LANES, 3 * LANES);
        else
            winograd2_weight(g0, g1, g2, half + j * LANES, 3 * LANES);
    }
    for (int i = 0; i < m + 2; i++, out += (size_t)(m + 2) * step) {
        const float *row = half + i * 3 * LANES;
        if (m == 4)
            winograd4_weight(v_load(row), v_load(row + LANES), v_load(row + 2 * LANES), out, step);
        else if (m == 3)
            winograd3_weight(v_load(row), v_load(row + LANES), v_load(row + 2 * LANES), out, step);
        else
            winograd2_weight(v_load(row), v_load(row + LANES), v_load(row + 2 * LANES), out, step);
    }
}

static void winograd_weights(int m, const float *filter, float *out, size_t step)
{
    if (m == 4)
        winograd_weight_tile(4, filter, out, step);
    else if (m == 3)
        winograd_weight_tile(3, filter, out, step);
    else
        winograd_weight_tile(2, filter, out, step);
}

static void winograd_pack(const struct conv *conv, const float *weight, const float *bias, void *packed)
{
    const struct conv_params *p = &conv->params;
    float *out = packed;
    if (winograd_has(p, 0))
        gemm_pack_panels(p, weight, out + winograd_form_offset(p, 0));
    pack_bias(p, bias, out);
    for (int first = 0; first < p->out; first += LANES) {
        const struct panel panel = panel_at(p->out, first / PANEL);
        const size_t width = (size_t)panel.vectors * LANES, step = (size_t)p->in * width;
        const int valid = min_int(LANES, p->out - first);
        _Alignas(64) float filter[9 * LANES] = {0};
        for (int c = 0; c < p->in; c++) {
            for (int o = 0; o < valid; o++)
                for (int tap = 0; tap < 9; tap++)
                    filter[tap * LANES + o] =
                        weight[((size_t)(first + o) * (size_t)p->in + (size_t)c) * 9 + (size_t)tap];
            const size_t at = (size_t)c * width + (size_t)(first - panel.first);
            for (int m = 2; m <= 4; m++)
                if (winograd_has(p, m))
                    winograd_weights(m, filter,
                                     out + winograd_form_offset(p, m) +
                                         (size_t)panel.first * (size_t)p->in * (size_t)((m + 2) * (m + 2)) + at,
                                     step);
        }
    }
}

/* ---- planning ---- */

static inline int64_t winograd_tiles(const struct conv_geometry *g, int m)
{
    return (int64_t)g->n * ceil_div(g->out_h, m) * ceil_div(g->out_w, m);
}

/* Floats from one transformed tile to the next; not a power of two, so that a block's rows spread over the
 * cache's sets. */
static inline size_t winograd_depth(const struct conv_params *p)
{
    return size_round_up((size_t)p->in, LANES) + LANES;
}

/* Scratch: pointers [products][tiles], zeros for the padding, transformed input [tiles][products][depth],
 * products [tiles][products][PANEL]: a tile's transform stays within few pages. */
static inline size_t winograd_pointer_bytes(int products, int tiles)
{
    return size_round_up((size_t)(products * (tiles + BLOCK_ROWS)) * sizeof(float *), KERNEL_ALIGNMENT);
}

static inline size_t winograd_zero_floats(const struct conv_params *p)
{
    return size_round_up((size_t)max_int(PANEL, p->in), LANES);
}

/* About how many cycles a form takes: multiplying and streaming its weights from memory overlap in part, the
 * transforms come on top. Measured: about 5 bytes of weights a cycle, 3 cycles for a vector of a transform; a
 * block needs 4 rows to hide the latency of its multiply-adds. */
static int64_t winograd_cost(const struct conv_params *p, const struct conv_geometry *g, int m)
{
    const int64_t rows = m ? winograd_tiles(g, m) : conv_pixels(g), products = m ? (int64_t)(m + 2) * (m + 2) : 9;
    const int64_t multiply = (rows > 4 ? rows : 4) * products * p->in * p->out / (2 * LANES);
    const int64_t stream = products * p->in * p->out * (int64_t)sizeof(float) / 5;
    const int64_t transform = m ? rows * products * (p->in + p->out) / LANES * 3 : 0;
    return (multiply > stream ? multiply + stream / 4 : stream + multiply / 4) + transform;
}

/* The packed form that takes least. */
static int winograd_choose(const struct conv_params *p, const struct conv_geometry *g)
{
    int best = -1;
    for (int m = 0; m <= 4; m++)
        if (winograd_has(p, m) && (best < 0 || winograd_cost(p, g, m) < winograd_cost(p, g, best)))
            best = m;
    return best;
}

static void winograd_plan(const struct conv *conv, const struct conv_geometry *g, int threads, struct conv_work *work)
{
    const struct conv_params *p = &conv->params;
    const int m = winograd_choose(p, g);
    if (m == 0) {
        gemm_plan(conv, g, threads, work);
        work->tile[WINOGRAD_FORM] = 0;
        return;
    }
    const int products = (m + 2) * (m + 2), panels = ceil_div(p->out, PANEL);
    const int64_t tiles = winograd_tiles(g, m);
    const size_t tile_bytes = (size_t)products * winograd_depth(p) * sizeof(float);
    const bool cached = winograd_form_floats(p, m) * sizeof(float) <= WINOGRAD_CACHED_BYTES;
    const int64_t most = max_int(BLOCK_ROWS, (int)((cached ? 1u : 2u) * WINOGRAD_INPUT_BYTES / tile_bytes));
    int64_t tile_parts = (tiles + most - 1) / most;
    int panel_parts = 1;
    if (threads > 1) {
        if (tiles >= (int64_t)4 * BLOCK_ROWS * threads)
            tile_parts = (tile_parts + 2 * threads - 1) / (2 * threads) * 2 * threads;
        else
            panel_parts = min_int(panels, threads);
    }
    const int block_tiles = (int)((tiles + tile_parts - 1) / tile_parts);
    *work = (struct conv_work){.tasks = (int)tile_parts * panel_parts};
    work->tile[WINOGRAD_FORM] = m;
    work->tile[WINOGRAD_TILE_PARTS] = (int)tile_parts;
    work->tile[WINOGRAD_PANEL_PARTS] = panel_parts;
    work->tile[WINOGRAD_BLOCK_TILES] = block_tiles;
    work->scratch_bytes =
        winograd_pointer_bytes(products, block_tiles) +
        (winograd_zero_floats(p) + (size_t)products * (size_t)block_tiles * (winograd_depth(p) + PANEL)) *
            sizeof(float);
}

/* ---- running ---- */

struct winograd_place {
    int n, y, x; /* image, first output row and column */
};

static inline struct winograd_place winograd_place(const struct conv_geometry *g, int m, int64_t tile)
{
    const int across = ceil_div(g->out_w, m), down = ceil_div(g->out_h, m);
    const int in_image = (int)(tile % ((int64_t)across * down));
    return (struct winograd_place){(int)(tile / ((int64_t)across * down)), in_image / across * m,
                                   in_image % across * m};
}

ALWAYS_INLINE void winograd_run_form(const int m, const struct conv *conv, const struct conv_geometry *g,
                                     const struct conv_work *work, const struct conv_buffers *buffers, int task,
                                     void *scratch)
{
    const struct conv_params *p = &conv->params;
    const int products = (m + 2) * (m + 2), panels = ceil_div(p->out, PANEL);
    const int tile_parts = work->tile[WINOGRAD_TILE_PARTS], panel_parts = work->tile[WINOGRAD_PANEL_PARTS];
    const int64_t tiles = winograd_tiles(g, m);
    const int64_t first = tiles * (task % tile_parts) / tile_parts, end = tiles * (task % tile_parts + 1) / tile_parts;
    const int count = (int)(end - first);
    const int first_panel = part_start(panels, panel_parts, task / tile_parts);
    const int end_panel = part_start(panels, panel_parts, task / tile_parts + 1);
    const size_t depth = winograd_depth(p);
    assert(task >= 0 && task < work->tasks && count <= work->tile[WINOGRAD_BLOCK_TILES]);

    const float **pointers = scratch;
    float *zeros = (float *)((char *)scratch + winograd_pointer_bytes(products, work->tile[WINOGRAD_BLOCK_TILES]));
    float *transformed = zeros + winograd_zero_floats(p);
    float *summed = transformed + (size_t)products * (size_t)count * depth;
    memset(zeros, 0, winograd_zero_floats(p) * sizeof(float));

    for (int i = 0; i < count; i++) {
        const struct winograd_place at = winograd_place(g, m, first + i);
        const float *pixels[36];
        for (int dy = 0; dy < m + 2; dy++) {
            for (int dx = 0; dx < m + 2; dx++) {
                const int y = at.y - p->padding[0] + dy, x = at.x - p->padding[1] + dx;
                const bool inside = y >= 0 && y < g->in_h && x >= 0 && x < g->in_w;
                pixels[dy * (m + 2) + dx] =
                    inside ? (const float *)buffers->input + (((ptrdiff_t)at.n * g->in_h + y) * g->in_w + x) * p->in
                           : zeros;
            }
        }
        for (size_t c = 0; c < (size_t)p->in; c += LANES)
            winograd_input_tile(m, pixels, c, transformed + (size_t)(i * products) * depth + c, depth);
    }
    for (int product = 0; product < products; product++)
        for (int i = 0; i < count; i++)
            pointers[product * count + i] = transformed + (size_t)(i * products + product) * depth;

    const float *packed = buffers->packed, *weights = packed + winograd_form_offset(p, m);
    struct block t = {.taps = 1, .depth = p->in, .bias = zeros, .stride = (size_t)products * PANEL, .floor = -INFINITY};
    const vec floor = v_set(conv->relu ? 0.0f : -INFINITY);
    for (int index = first_panel; index < end_panel; index++) {
        const struct panel panel = panel_at(p->out, index);
        const size_t width = (size_t)panel.vectors * LANES;
        t.weights = weights + (size_t)products * (size_t)p->in * (size_t)panel.first;
        for (int product = 0; product < products; product++, t.weights += (size_t)p->in * width) {
            const int blocks = ceil_div(count, BLOCK_ROWS);
            int left = blocks, block = 0;
            for (int i = 0; left > 0; left--, block++) {
                const int rows = ceil_div(count - i, left);
                t.rows = pointers + product * count + i;
                block_fetch(&t, t.weights + (size_t)p->in * width, (size_t)p->in * width * sizeof(float), block,
                            blocks);
                t.out = summed + (size_t)(i * products + product) * PANEL;
                block_kernels[rows - 1][panel.vectors - 1](&t);
                i += rows;
            }
        }
        for (int i = 0; i < count; i++) {
            const struct winograd_place at = winograd_place(g, m, first + i);
            const size_t offset =
                (((size_t)at.n * (size_t)g->out_h + (size_t)at.y) * (size_t)g->out_w + (size_t)at.x) * (size_t)p->out +
                (size_t)panel.first;
            for (int v = 0; v < panel.vectors; v++) {
                const size_t channel = offset + (size_t)v * LANES;
                const struct winograd_target target = {
                    .out = (float *)buffers->output + channel,
                    .residual = conv->has_residual ? (const float *)buffers->residual + channel : NULL,
                    .row = (size_t)g->out_w * (size_t)p->out,
                    .column = (size_t)p->out,
                    .height = min_int(m, g->out_h - at.y),
                    .width = min_int(m, g->out_w - at.x),
                };
                winograd_output_tile(m, summed + (size_t)(i * products) * PANEL + v * LANES, PANEL,
                                     v_load(packed + panel.first + v * LANES), floor,
                                     v == panel.vectors - 1 ? panel.tail : 0, &target);
            }
        }
    }
}

static void winograd_run(const struct conv *conv, const struct conv_geometry *g, const struct conv_work *work,
                         const struct conv_buffers *buffers, int task, void *scratch)
{
    if (work->tile[WINOGRAD_FORM] == 4)
        winograd_run_form(4, conv, g, work, buffers, task, scratch);
    else if (work->tile[WINOGRAD_FORM] == 3)
        winograd_run_form(3, conv, g, work, buffers, task, scratch);
    else if (work->tile[WINOGRAD_FORM] == 2)
        winograd_run_form(2, conv, g, work, buffers, task, scratch);
    else
        gemm_run_panels(conv, g, work, buffers, (const float *)buffers->packed + winograd_form_offset(&conv->params, 0),
                        task, scratch);
}

static const struct conv_kernel winograd_3x3 = {
    .name = "winograd_3x3__" TABLE,
    .supports = winograd_supports,
    .packed_bytes = winograd_packed_bytes,
    .pack = winograd_pack,
    .plan = winograd_plan,
    .run = winograd_run,
};
