/* kernels_amx_conv.c - convolutions in bf16 by tile multiplications, with float32 accumulation. The only file that
 * touches tiles.
 *
 * One kernel computes every ungrouped convolution as
 *     gather (copy the task's input rows into scratch, unless they can be read in place; kernels_amx_input.c)
 *     -> multiply (pairs of pixel tiles by pairs of channel tiles)
 *     -> epilogue (residual, ReLU, rounding, one full cache line a pixel)
 *
 * Weights are packed per block of 32 output channels in the order in which they are used:
 * [block][chunk][tap][2 tiles][16 pairs of inputs][16 outputs][2], and then the bias (float32, padded to blocks); a
 * branch (a block's downsample, added to its last convolution) is more chunks of one tap behind each block's others.
 *
 * Large weights (tall blocks) are what a convolution waits for. They are packed in 12 bits (bf12.h), per block of 16
 * channels, by which four pixel tiles are multiplied: vectors unpack a weight tile for a step to come while tiles work,
 * and each is used as often as there are pixel tiles.
 *
 * Tiles and vectors work side by side: the sums of one block of tiles are stored in the first step of the next block,
 * and turned into outputs between its multiplications. */

#include "kernels_amx_internal.h"

#if defined(__x86_64__)

#include <assert.h>
#include <math.h>
#include <string.h>

#include "bf12.h"
#include "fetch_order.h"

/* ---- packing ---- */

static int block_steps(const struct amx_form *f)
{
    return f->chunks * f->taps + f->branch_chunks;
}

static size_t block_bytes(const struct amx_form *f)
{
    if (f->tall)
        return (size_t)(BLOCK / TILE) * (TALL_LOOKUP_BYTES + (size_t)block_steps(f) * TALL_STEP_BYTES);
    return (size_t)block_steps(f) * STEP_BYTES;
}

static size_t bias_bytes(const struct amx_form *f)
{
    return (size_t)f->blocks * BLOCK * sizeof(float);
}

static bool amx_supports(const struct conv *conv)
{
    return conv->params.groups == 1 && !(conv->has_branch && amx_form_of(conv).source == SOURCE_RUNS);
}

static size_t amx_packed_bytes(const struct conv *conv)
{
    const struct amx_form f = amx_form_of(conv);
    return bias_bytes(&f) + (size_t)f.blocks * block_bytes(&f);
}

/* The weight that input `k` (0 .. 31) of a chunk and tap meets for output `o`; 0 outside. */
static float weight_at(const struct conv_params *p, const struct amx_form *f, const float *weight, int o, int chunk,
                       int tap, int k)
{
    int c = chunk * CHUNK + k, area_index = tap;
    if (f->source == SOURCE_RUNS) {
        const int column = c / p->in;
        if (column >= p->kernel[1])
            return 0.0f;
        c %= p->in;
        area_index = tap * p->kernel[1] + column;
    }
    if (o >= p->out || c >= p->in)
        return 0.0f;
    return weight[((size_t)o * (size_t)p->in + (size_t)c) * (size_t)(p->kernel[0] * p->kernel[1]) + (size_t)area_index];
}

/* Likewise, in the branch. */
static float branch_weight_at(const struct conv_params *branch, const float *weight, int o, int chunk, int k)
{
    const int c = chunk * CHUNK + k;
    return o < branch->out && c < branch->in ? weight[(size_t)o * (size_t)branch->in + (size_t)c] : 0.0f;
}

/* The bf16 weights of output `o` and input `k` (0 .. 31) of a step. */
static bf16 step_weight(const struct conv *conv, const struct amx_form *f, const float *weight, int o, int step, int k)
{
    const struct conv_params *p = &conv->params;
    const int branch_step = step - f->chunks * f->taps;
    const float *branch_weight = weight + (size_t)p->out * (size_t)p->in * (size_t)(p->kernel[0] * p->kernel[1]);

    return bf16_from_f32(branch_step < 0 ? weight_at(p, f, weight, o, step / f->taps, step % f->taps, k)
                                         : branch_weight_at(&conv->branch, branch_weight, o, branch_step, k));
}

/* The largest magnitude among `count` weights, rounded. */
static bf16 largest_of(const float *weight, size_t count)
{
    float largest = 0.0f;
    for (size_t i = 0; i < count; i++)
        largest = fabsf(weight[i]) > largest ? fabsf(weight[i]) : largest;
    return bf16_from_f32(largest);
}

/* The bf12 base of output channels [first, first + 4). */
static unsigned group_base(const struct conv *conv, const float *weight, int first)
{
    const struct conv_params *p = &conv->params;
    const size_t row = (size_t)p->in * (size_t)(p->kernel[0] * p->kernel[1]), branch_row = (size_t)conv->branch.in;
    const size_t count = (size_t)max_int(0, min_int(4, p->out - first));
    bf16 largest = 0;

    if (count)
        largest = largest_of(weight + (size_t)first * row, count * row);
    if (count && conv->has_branch) {
        const bf16 other = largest_of(weight + (size_t)p->out * row + (size_t)first * branch_row, count * branch_row);
        largest = other > largest ? other : largest;
    }
    return bf12_base(largest);
}

static void pack_tall_block(const struct conv *conv, const struct amx_form *f, const float *weight, int block,
                            uint8_t *to)
{
    unsigned base[TILE / 4];

    for (int group = 0; group < TILE / 4; group++) {
        base[group] = group_base(conv, weight, block * TILE + group * 4);
        for (unsigned i = 0; i < BF12_LOOKUP; i++)
            *to++ = bf12_upper(base[group], i);
    }
    for (int step = 0; step < block_steps(f); step++, to += TALL_STEP_BYTES)
        for (int quad = 0; quad < TILE / 4; quad++) {
            uint16_t upper[CHUNK] = {0};
            for (int row = 0; row < 4; row++)
                for (int i = 0; i < CHUNK; i++) {
                    const int pair = quad * 4 + row, channel = i / 2;
                    const bf16 w = step_weight(conv, f, weight, block * TILE + channel, step, pair * 2 + i % 2);
                    const unsigned code = bf12_from_bf16(w, base[channel / 4]);
                    to[pair * CHUNK + i] = (uint8_t)code;
                    upper[i] = (uint16_t)(upper[i] | code >> 8 << 4 * row);
                }
            memcpy(to + TALL_LOW_BYTES + (size_t)quad * sizeof upper, upper, sizeof upper);
        }
}

static void amx_pack(const struct conv *conv, const float *weight, const float *bias, void *packed)
{
    const struct conv_params *p = &conv->params;
    const struct amx_form f = amx_form_of(conv);
    bf16 *to = packed;
    char *const end = (char *)packed + (size_t)f.blocks * block_bytes(&f);

    memset(end, 0, bias_bytes(&f));
    memcpy(end, bias, (size_t)p->out * sizeof(float));
    if (f.tall) {
        for (int block = 0; block < f.blocks * (BLOCK / TILE); block++)
            pack_tall_block(conv, &f, weight, block,
                            (uint8_t *)packed + (size_t)block * (block_bytes(&f) / (BLOCK / TILE)));
        return;
    }
    for (int block = 0; block < f.blocks; block++)
        for (int step = 0; step < block_steps(&f); step++)
            for (int tile = 0; tile < BLOCK / TILE; tile++)
                for (int pair = 0; pair < CHUNK / 2; pair++)
                    for (int i = 0; i < 2 * TILE; i++) {
                        const int o = block * BLOCK + tile * TILE + i / 2, k = pair * 2 + i % 2;
                        *to++ = step_weight(conv, &f, weight, o, step, k);
                    }
}

/* ---- what follows from the input size: a task is a strip of rows of one image by a range of blocks ---- */

/* conv_work.tile */
enum { WORK_STRIPS, WORK_RANGES };

/* Bytes of input that one strip may bring into the second-level cache: fewer where it is copied many times over,
 * more where each strip would read large weights again. */
enum { STRIP_BYTES = 512 * 1024, RUNS_STRIP_BYTES = 256 * 1024, HEAVY_STRIP_BYTES = 1536 * 1024 };
enum { HEAVY_WEIGHT_BYTES = 1024 * 1024 };

/* Weights that every thread may read whole, so that threads can share out the rows. */
enum { SHARED_WEIGHT_BYTES = 1280 * 1024 };

/* Bytes of input that stay in the first-level cache while all blocks of weights pass by, and how large the weights
 * may be for that; bytes of a block that stays there while tiles pass by. */
enum { GROUP_BYTES = 16 * 1024, GROUPED_WEIGHT_BYTES = 640 * 1024, STAYING_BYTES = 15 * 1024 };

/* Bytes of the next convolution's weights that are fetched ahead of it. */
enum { HEAD_BYTES = 384 * 1024 };

/* Scratch: sums of a block of tiles, an output pixel for what is thrown away, offsets of steps, maps of tiles,
 * input, unpacked weights. */
struct scratch {
    float *sums;
    char *sink;
    size_t *step_offset; /* [chunks * taps], bytes: where a step's pixels lie, from the tile's offset on */
    size_t *tile_offset; /* [tiles], bytes */
    size_t *target;      /* [tiles * m + AHEAD], bytes from the strip's first output pixel to that of each tile row */
    char *input, *branch;
    char *unpacked; /* tall: weight tiles */
    size_t bytes;
};

static int tall_groups(const struct amx_view *v)
{
    return ceil_div(v->tiles, TALL);
}

/* Unpacked weight tiles in memory: those of a block where groups of pixel tiles share them. */
static size_t tall_slots(const struct amx_form *f, const struct amx_view *v)
{
    return tall_groups(v) > 1 ? (size_t)block_steps(f) : TALL_RING;
}

static struct scratch scratch_layout(const struct amx_form *f, const struct amx_view *v, void *base)
{
    struct scratch s = {0};
    const size_t sums = 0, sink = sums + SUM_FLOATS * sizeof(float);
    const size_t steps = sink + BLOCK * sizeof(float);
    const size_t tiles = steps + size_round_up((size_t)(f->chunks * f->taps) * sizeof(size_t), LINE);
    const size_t targets = tiles + size_round_up((size_t)v->tiles * sizeof(size_t), LINE);
    const size_t input = targets + size_round_up(((size_t)v->tiles * TILE + AHEAD) * sizeof(size_t), LINE);
    const size_t branch = input + v->input_bytes;
    const size_t unpacked = branch + v->branch_bytes;
    s.bytes = unpacked + (f->tall ? tall_slots(f, v) * TILE * LINE : 0);
    if (base) {
        s.sums = (float *)((char *)base + sums);
        s.sink = (char *)base + sink;
        s.step_offset = (size_t *)((char *)base + steps);
        s.tile_offset = (size_t *)((char *)base + tiles);
        s.target = (size_t *)((char *)base + targets);
        s.input = (char *)base + input;
        s.branch = (char *)base + branch;
        s.unpacked = (char *)base + unpacked;
    }
    return s;
}

static void amx_plan(const struct conv *conv, const struct conv_geometry *g, int threads, struct conv_work *work)
{
    const struct amx_form f = amx_form_of(conv);
    const struct amx_view whole = amx_view_of(conv, &f, g, 0);
    const size_t weights = (size_t)f.blocks * block_bytes(&f), input = (size_t)whole.rows * whole.row_bytes;
    const int unit = f.source == SOURCE_DIRECT ? 2 * TILE : 1; /* rows that should stay together */
    const int most = ceil_div(whole.rows, unit);

    const size_t limit = f.source == SOURCE_RUNS        ? RUNS_STRIP_BYTES
                         : weights > HEAVY_WEIGHT_BYTES ? HEAVY_STRIP_BYTES
                                                        : STRIP_BYTES;

    /* Threads share out the rows, so that each finds what it wrote itself, unless weights are what they read most. */
    int strips = min_int(most, (int)((input + limit - 1) / limit));
    if ((weights <= 2 * input || weights <= SHARED_WEIGHT_BYTES) && whole.images * strips % threads != 0)
        strips = min_int(most, strips + threads - strips % threads);
    const int rows = min_int(whole.rows, ceil_div(most, strips) * unit);
    strips = ceil_div(whole.rows, rows);
    const int ranges = whole.images * strips % threads == 0 ? 1 : min_int(f.blocks, threads);

    *work = (struct conv_work){.tasks = whole.images * strips * ranges};
    work->tile[WORK_STRIPS] = strips;
    work->tile[WORK_RANGES] = ranges;
    for (int strip = 0; strip < strips; strip++) {
        const int first = part_start(whole.rows, strips, strip), end = part_start(whole.rows, strips, strip + 1);
        const struct amx_view v = amx_view_of(conv, &f, g, end - first);
        const size_t bytes = scratch_layout(&f, &v, NULL).bytes;
        if (bytes > work->scratch_bytes)
            work->scratch_bytes = bytes;
    }
}

/* ---- multiply ---- */

/* Tiles: 0 .. 3 sums (pixel tile 0 and 1 by channel tile 0 and 1), 4 and 5 pixels, 6 and 7 weights. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static void tiles_configure(int m)
{
    struct tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = LINE;
        config.rows[i] = (uint8_t)(i < 6 ? m : TILE);
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

/* How finished sums become outputs: all 32 channels rounded to bf16, without a residual or with one that stands in
 * the output's place; or whatever else a convolution may want. */
enum ending { ENDING_PLAIN, ENDING_RESIDUAL, ENDING_GENERAL, ENDING_COUNT };

/* Finished sums on their way to the output. */
struct pending {
    float *sums;          /* where they are to be stored: rows of BLOCK floats */
    const size_t *target; /* [rows + AHEAD], the last AHEAD to be prefetched only */
    int rows;
    enum ending ending;
    uintptr_t out;      /* address of the strip's first output pixel, at the block's first channel */
    uintptr_t residual; /* likewise */
    __mmask32 mask;     /* of channels that exist */
};

struct job {
    size_t pixel_stride;
    const size_t *step_offset;
    int steps, m;
    int branch_steps;
    size_t branch_pixel_stride, branch_chunk_stride;
    int share;     /* rows to finish at each step, or in each quarter of one (spread) */
    __m512i floor; /* ReLU on bf16 as 16-bit integers: 0, or the smallest of all */
    char *sink;
    bool relu, residual, output_f32;
};

/* Where a row is written. */
ALWAYS_INLINE char *row_output(uintptr_t out, size_t target, char *sink)
{
    return target & NO_OUTPUT ? sink : (char *)(out + target);
}

ALWAYS_INLINE void prefetch_for_writing(const char *line)
{
    __asm__ volatile("prefetchw %0" : : "m"(*line));
}

/* The sums of one tile row become an output pixel: bf16 in all channels. */
ALWAYS_INLINE void finish_row(const float *sums, char *out, __m512i floor, const bool residual)
{
    __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + TILE);
    if (residual) {
        low = _mm512_add_ps(low, widen(_mm256_loadu_si256((const __m256i *)out)));
        high = _mm512_add_ps(high, widen(_mm256_loadu_si256((const __m256i *)out + 1)));
    }
    _mm512_storeu_si512(out, _mm512_max_epi16((__m512i)_mm512_cvtne2ps_pbh(high, low), floor));
}

/* Likewise, of a tall block: 16 channels. */
ALWAYS_INLINE void finish_tall_row(const float *sums, char *out, __m512i floor, const bool residual)
{
    __m512 x = _mm512_load_ps(sums);
    if (residual)
        x = _mm512_add_ps(x, widen(_mm256_loadu_si256((const __m256i *)out)));
    _mm256_storeu_si256((__m256i *)out,
                        _mm256_max_epi16((__m256i)_mm512_cvtneps_pbh(x), _mm512_castsi512_si256(floor)));
}

static void finish_tall_row_general(const struct job *job, const struct pending *p, int row)
{
    __m512 x = _mm512_load_ps(p->sums + (size_t)row * TILE);
    char *out = row_output(p->out, p->target[row], job->sink);
    const __mmask16 mask = (__mmask16)p->mask;

    if (job->residual && out != job->sink) {
        const char *residual = (const char *)(p->residual + (uintptr_t)p->target[row]);
        x = _mm512_add_ps(x, widen(_mm256_maskz_loadu_epi16(mask, residual)));
    }
    if (job->output_f32)
        _mm512_mask_storeu_ps(out, mask, job->relu ? _mm512_max_ps(x, _mm512_setzero_ps()) : x);
    else
        _mm256_mask_storeu_epi16(out, mask,
                                 _mm256_max_epi16((__m256i)_mm512_cvtneps_pbh(x), _mm512_castsi512_si256(job->floor)));
}

/* Likewise, whatever the convolution. */
static void finish_row_general(const struct job *job, const struct pending *p, int row)
{
    const float *sums = p->sums + (size_t)row * BLOCK;
    char *out = row_output(p->out, p->target[row], job->sink);
    __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + TILE);

    if (job->residual && out != job->sink) {
        const char *residual = (const char *)(p->residual + (uintptr_t)p->target[row]);
        const __m512i r = _mm512_maskz_loadu_epi16(p->mask, residual);
        low = _mm512_add_ps(low, widen(_mm512_castsi512_si256(r)));
        high = _mm512_add_ps(high, widen(_mm512_extracti64x4_epi64(r, 1)));
    }
    if (job->output_f32) {
        if (job->relu) {
            low = _mm512_max_ps(low, _mm512_setzero_ps());
            high = _mm512_max_ps(high, _mm512_setzero_ps());
        }
        _mm512_mask_storeu_ps(out, (__mmask16)p->mask, low);
        _mm512_mask_storeu_ps(out + LINE, (__mmask16)(p->mask >> TILE), high);
    } else {
        _mm512_mask_storeu_epi16(out, p->mask, _mm512_max_epi16((__m512i)_mm512_cvtne2ps_pbh(high, low), job->floor));
    }
}

/* Weights on their way into the second-level cache, run by run: what of this convolution's is not there yet, then the
 * first of the next one's; `lines` at each step, so that they arrive at an even rate. */
struct fetch {
    const struct fetch_run *run, *end; /* the current one and behind the last; borrowed */
    size_t next;                       /* its next line */
    size_t lines;
};

static struct fetch fetch_begin(const struct fetch_run *runs, size_t count, int64_t steps)
{
    struct fetch f = {.run = runs, .end = runs + count};
    size_t lines = 0;

    for (size_t i = 0; i < count; i++)
        lines += runs[i].lines;
    f.lines = (lines + (size_t)steps - 1) / (size_t)steps;
    return f;
}

/* Before a call of `steps` steps: on to the next run when one is all under way. Returns how many lines of it each step
 * asks for. */
static size_t fetch_advance(struct fetch *f, int steps)
{
    while (f->run < f->end && f->next >= f->run->lines) {
        f->run++;
        f->next = 0;
    }
    if (f->run == f->end)
        return 0;
    return min_size(f->lines, (f->run->lines - f->next + (size_t)steps - 1) / (size_t)steps);
}

/* Ask for `lines` more lines of a run. */
ALWAYS_INLINE void fetch_lines(const struct fetch_run *run, size_t *next, size_t lines)
{
    for (const size_t end = *next + lines; *next < end; ++*next)
        _mm_prefetch(fetch_line(run, *next), _MM_HINT_T1);
}

/* What one call multiplies: pixel tiles at a0 and a1 by the 32 channels at b. */
struct operands {
    const char *a0, *a1, *b;
    const char *branch0, *branch1; /* the same pixels in the branch's input */
    const float *bias;
};

/* What is left to do of a pending block, in registers. */
struct finishing {
    const float *sums;
    const size_t *target, *end;
    uintptr_t out;
    char *sink;
    __m512i floor;
};

/* Finish up to `rows` more rows. */
ALWAYS_INLINE void finish_rows(struct finishing *f, ptrdiff_t rows, const struct job *job,
                               const struct pending *pending, const enum ending ending)
{
    const size_t *const stop = f->end - f->target > rows ? f->target + rows : f->end;
    for (; f->target < stop; f->target++, f->sums += BLOCK) {
        if (ending == ENDING_GENERAL) {
            finish_row_general(job, pending, (int)(f->target - pending->target));
            continue;
        }
        prefetch_for_writing((const char *)(f->out + (uintptr_t)f->target[AHEAD]));
        finish_row(f->sums, row_output(f->out, *f->target, f->sink), f->floor, ending == ENDING_RESIDUAL);
    }
}

/* How weights are loaded and pending rows finished. Weights that do not stay in the first-level cache until their
 * next use are loaded as a stream, which displaces less. Where steps are few, rows are spread among the four
 * multiplications of a step: a core looks only some 500 instructions ahead for one that can run beside them. */
enum mode { MODE_SPREAD, MODE_STREAM, MODE_COUNT };

/* One step: two channel tiles of weights by `tiles` (1 or 2) pixel tiles. The first step of a block also stores the
 * sums of the block before, tile by tile, and gives the tiles the bias to begin with: so the multiplications of one
 * block need not wait until all those of the other are through. */
ALWAYS_INLINE void multiply_step(const struct job *job, const int tiles, const enum mode mode, const enum ending ending,
                                 const bool first, const char *a0, const char *a1, const char *b, size_t stride,
                                 ptrdiff_t share, const float *bias, const struct pending *pending, struct finishing *f)
{
    float *const sums = pending->sums, *const sums1 = sums + job->m * BLOCK;
    const bool spread = mode == MODE_SPREAD;

    _tile_loadd(4, a0, stride);
    if (spread)
        _tile_loadd(6, b, LINE);
    else
        _tile_stream_loadd(6, b, LINE);
    if (first) {
        _tile_stored(0, sums, BLOCK * sizeof(float));
        _tile_loadd(0, bias, 0);
    }
    _tile_dpbf16ps(0, 4, 6);
    if (spread && !first)
        finish_rows(f, share, job, pending, ending);
    if (spread)
        _tile_loadd(7, b + STEP_BYTES / 2, LINE);
    else
        _tile_stream_loadd(7, b + STEP_BYTES / 2, LINE);
    if (first) {
        _tile_stored(1, sums + TILE, BLOCK * sizeof(float));
        _tile_loadd(1, bias + TILE, 0);
    }
    _tile_dpbf16ps(1, 4, 7);
    if (first) {
        _tile_stored(2, sums1, BLOCK * sizeof(float));
        _tile_stored(3, sums1 + TILE, BLOCK * sizeof(float));
    }
    if (spread)
        finish_rows(f, share, job, pending, ending);
    if (tiles > 1) {
        _tile_loadd(5, a1, stride);
        if (first)
            _tile_loadd(2, bias, 0);
        _tile_dpbf16ps(2, 5, 6);
        if (spread)
            finish_rows(f, share, job, pending, ending);
        if (first)
            _tile_loadd(3, bias + TILE, 0);
        _tile_dpbf16ps(3, 5, 7);
        if (spread)
            finish_rows(f, first ? 2 * share : share, job, pending, ending);
    } else if (spread) {
        finish_rows(f, first ? 3 * share : 2 * share, job, pending, ending);
    }
    if (!spread)
        finish_rows(f, share, job, pending, ending);
}

/* Multiply `tiles` (1 or 2) pixel tiles; meanwhile finish the block before. The sums stay in the tiles until the next
 * block stores them. */
ALWAYS_INLINE void multiply(const struct job *job, const int tiles, const enum mode mode, const enum ending ending,
                            const struct operands *o, const struct pending *pending, struct fetch *fetch)
{
    /* Copies: what is stored through pointers cannot change them, so they stay in registers. */
    const size_t stride = job->pixel_stride, lines = fetch_advance(fetch, job->steps + job->branch_steps);
    const char *const a0 = o->a0, *const a1 = o->a1, *b = o->b;
    const size_t *step = job->step_offset, *const steps_end = step + job->steps;
    const struct fetch_run run = lines ? *fetch->run : (struct fetch_run){0};
    const ptrdiff_t share = job->share;
    size_t next = fetch->next;
    struct finishing f = {pending->sums, pending->target, pending->target + pending->rows,
                          pending->out,  job->sink,       job->floor};

    multiply_step(job, tiles, mode, ending, true, a0 + *step, a1 + *step, b, stride, share, o->bias, pending, &f);
    for (;;) {
        fetch_lines(&run, &next, lines);
        if (++step == steps_end)
            break;
        b += STEP_BYTES;
        multiply_step(job, tiles, mode, ending, false, a0 + *step, a1 + *step, b, stride, share, NULL, pending, &f);
    }
    const char *branch0 = o->branch0, *branch1 = o->branch1;
    for (int left = job->branch_steps; left > 0; left--) {
        b += STEP_BYTES;
        multiply_step(job, tiles, mode, ending, false, branch0, branch1, b, job->branch_pixel_stride, share, NULL,
                      pending, &f);
        branch0 += job->branch_chunk_stride;
        branch1 += job->branch_chunk_stride;
        fetch_lines(&run, &next, lines);
    }
    fetch->next = next;
}

/* Store the sums of the last block and finish it. */
static void finish_last(const struct job *job, const struct pending *pending)
{
    float *const sums = pending->sums, *const sums1 = sums + job->m * BLOCK;

    _tile_stored(0, sums, BLOCK * sizeof(float));
    _tile_stored(1, sums + TILE, BLOCK * sizeof(float));
    _tile_stored(2, sums1, BLOCK * sizeof(float));
    _tile_stored(3, sums1 + TILE, BLOCK * sizeof(float));
    for (int row = 0; row < pending->rows; row++)
        finish_row_general(job, pending, row);
}

typedef void multiply_function(const struct job *job, const struct operands *o, const struct pending *pending,
                               struct fetch *fetch);
#define MULTIPLY(name, tiles, mode, ending)                                                                            \
    static void name(const struct job *job, const struct operands *o, const struct pending *pending,                   \
                     struct fetch *fetch)                                                                              \
    {                                                                                                                  \
        multiply(job, tiles, mode, ending, o, pending, fetch);                                                         \
    }
#define MULTIPLY_ENDINGS(name, tiles, mode)                                                                            \
    MULTIPLY(name##_plain, tiles, mode, ENDING_PLAIN)                                                                  \
    MULTIPLY(name##_residual, tiles, mode, ENDING_RESIDUAL)                                                            \
    MULTIPLY(name##_general, tiles, mode, ENDING_GENERAL)
#define MULTIPLY_ENTRY(name)                                                                                           \
    {                                                                                                                  \
        name##_plain, name##_residual, name##_general                                                                  \
    }
MULTIPLY_ENDINGS(multiply_1_spread, 1, MODE_SPREAD)
MULTIPLY_ENDINGS(multiply_1_stream, 1, MODE_STREAM)
MULTIPLY_ENDINGS(multiply_2_spread, 2, MODE_SPREAD)
MULTIPLY_ENDINGS(multiply_2_stream, 2, MODE_STREAM)

/* By [pixel tiles - 1][mode][ending]. */
static multiply_function *const multiply_functions[2][MODE_COUNT][ENDING_COUNT] = {
    {MULTIPLY_ENTRY(multiply_1_spread), MULTIPLY_ENTRY(multiply_1_stream)},
    {MULTIPLY_ENTRY(multiply_2_spread), MULTIPLY_ENTRY(multiply_2_stream)},
};

/* ---- multiply, tall ---- */

struct tall_operands {
    const char *a[TALL], *branch[TALL]; /* as in operands */
    const char *b, *next;               /* this block's packed weights and those of the one that follows */
    const float *bias;
    bool unpack;      /* this block's weights, but for the first TALL_AHEAD tiles */
    bool unpack_next; /* the first TALL_AHEAD tiles of the next block's */
};

/* Unpacked weight tiles: a ring, in which the next step's is at `slot`. */
struct ring {
    char *tiles;
    size_t slots, slot;
};

/* Unpack four of a weight tile's sixteen rows. */
ALWAYS_INLINE void unpack_quad(const char *packed, const int quad, __m512i lookup, char *to)
{
    const __mmask64 upper_bytes = 0xaaaaaaaaaaaaaaaau;
    const __m512i upper = _mm512_load_si512(packed + TALL_LOW_BYTES + quad * LINE);
    const __m512i at_eight[4] = {_mm512_slli_epi16(upper, 8), _mm512_slli_epi16(upper, 4), upper,
                                 _mm512_srli_epi16(upper, 4)};
    for (int i = 0; i < 4; i++) {
        const int row = 4 * quad + i;
        const __m512i low = _mm512_cvtepu8_epi16(_mm256_load_si256((const __m256i *)(packed + row * CHUNK)));
        const __m512i code =
            _mm512_ternarylogic_epi64(at_eight[i], _mm512_set1_epi16(0x0f00), low, 0xea); /* a & b | c */
        _mm512_store_si512(to + row * LINE, _mm512_mask_shuffle_epi8(code, upper_bytes, lookup, code));
    }
}

static void unpack_tile(const char *packed, __m512i lookup, char *to)
{
    unpack_quad(packed, 0, lookup, to);
    unpack_quad(packed, 1, lookup, to);
    unpack_quad(packed, 2, lookup, to);
    unpack_quad(packed, 3, lookup, to);
}

ALWAYS_INLINE void finish_tall_rows(struct finishing *f, ptrdiff_t rows, const struct job *job,
                                    const struct pending *pending, const enum ending ending)
{
    const size_t *const stop = f->end - f->target > rows ? f->target + rows : f->end;
    for (; f->target < stop; f->target++, f->sums += TILE) {
        if (ending == ENDING_GENERAL) {
            finish_tall_row_general(job, pending, (int)(f->target - pending->target));
            continue;
        }
        prefetch_for_writing((const char *)(f->out + (uintptr_t)f->target[AHEAD]));
        finish_tall_row(f->sums, row_output(f->out, *f->target, f->sink), f->floor, ending == ENDING_RESIDUAL);
    }
}

/* What a step does besides multiplying: unpack a weight tile, ask for lines. */
struct beside {
    const char *from; /* NULL for nothing */
    char *to;
    __m512i lookup;
    struct fetch_run run;
    size_t next, lines;
};

/* A quarter of it. */
ALWAYS_INLINE void work_beside(struct beside *beside, const int quarter)
{
    if (beside->from)
        unpack_quad(beside->from, quarter, beside->lookup, beside->to);
    fetch_lines(&beside->run, &beside->next, (beside->lines + (size_t)quarter) / 4);
}

/* One step: one channel tile of weights, unpacked at b, by `tiles` (1 to 4) pixel tiles. `first` as in
 * multiply_step. */
ALWAYS_INLINE void tall_step(const struct job *job, const int tiles, const enum ending ending, const bool first,
                             const char *a0, const char *a1, const char *a2, const char *a3, const char *b,
                             size_t stride, ptrdiff_t share, const float *bias, const struct pending *pending,
                             struct finishing *f, struct beside *beside)
{
    float *const sums = pending->sums;
    const int tile = job->m * TILE;

    _tile_loadd(6, b, LINE);
    _tile_loadd(4, a0, stride);
    if (first) {
        _tile_stored(0, sums, LINE);
        _tile_loadd(0, bias, 0);
    }
    _tile_dpbf16ps(0, 4, 6);
    work_beside(beside, 0);
    if (first)
        _tile_stored(1, sums + tile, LINE);
    if (tiles > 1) {
        _tile_loadd(5, a1, stride);
        if (first)
            _tile_loadd(1, bias, 0);
        _tile_dpbf16ps(1, 5, 6);
    }
    work_beside(beside, 1);
    if (first)
        _tile_stored(2, sums + 2 * tile, LINE);
    if (tiles > 2) {
        _tile_loadd(4, a2, stride);
        if (first)
            _tile_loadd(2, bias, 0);
        _tile_dpbf16ps(2, 4, 6);
    }
    work_beside(beside, 2);
    if (first)
        _tile_stored(3, sums + 3 * tile, LINE);
    if (tiles > 3) {
        _tile_loadd(5, a3, stride);
        if (first)
            _tile_loadd(3, bias, 0);
        _tile_dpbf16ps(3, 5, 6);
    }
    work_beside(beside, 3);
    finish_tall_rows(f, share, job, pending, ending);
}

/* As multiply(), by one block of 16 channels. Unpacks the weights of a step TALL_AHEAD steps before it, in the last
 * steps the first of the next block's. */
ALWAYS_INLINE void multiply_tall(const struct job *job, const int tiles, const enum ending ending,
                                 const struct tall_operands *o, const struct pending *pending, struct fetch *fetch,
                                 struct ring *ring)
{
    const size_t lines = fetch_advance(fetch, job->steps + job->branch_steps), slots = ring->slots;
    char *const tiles_at = ring->tiles;
    const size_t *const step = job->step_offset;
    const ptrdiff_t share = job->share;
    const int steps = job->steps, all_steps = steps + job->branch_steps;
    struct finishing f = {pending->sums, pending->target, pending->target + pending->rows,
                          pending->out,  job->sink,       job->floor};
    struct beside beside = {.from = o->unpack ? o->b + TALL_LOOKUP_BYTES + TALL_AHEAD * TALL_STEP_BYTES : NULL,
                            .lookup = _mm512_load_si512(o->b),
                            .run = lines ? *fetch->run : (struct fetch_run){0},
                            .next = fetch->next,
                            .lines = lines};
    size_t slot = ring->slot, ahead = (slot + TALL_AHEAD) % slots;

    for (int i = 0; i < all_steps; i++) {
        const char *a0, *a1, *a2, *a3;
        const size_t stride = i < steps ? job->pixel_stride : job->branch_pixel_stride;
        if (i < steps) {
            const size_t at = step[i];
            a0 = o->a[0] + at, a1 = o->a[1] + at, a2 = o->a[2] + at, a3 = o->a[3] + at;
        } else {
            const size_t at = (size_t)(i - steps) * job->branch_chunk_stride;
            a0 = o->branch[0] + at, a1 = o->branch[1] + at, a2 = o->branch[2] + at, a3 = o->branch[3] + at;
        }
        if (i == all_steps - TALL_AHEAD) {
            beside.from = o->unpack_next ? o->next + TALL_LOOKUP_BYTES : NULL;
            beside.lookup = _mm512_load_si512(o->next);
        }
        beside.to = tiles_at + ahead * TILE * LINE;
        const char *b = tiles_at + slot * TILE * LINE;
        if (i == 0)
            tall_step(job, tiles, ending, true, a0, a1, a2, a3, b, stride, share, o->bias, pending, &f, &beside);
        else
            tall_step(job, tiles, ending, false, a0, a1, a2, a3, b, stride, share, NULL, pending, &f, &beside);
        if (beside.from)
            beside.from += TALL_STEP_BYTES;
        slot = slot + 1 == slots ? 0 : slot + 1;
        ahead = ahead + 1 == slots ? 0 : ahead + 1;
    }
    fetch->next = beside.next;
    ring->slot = slot;
}

/* Store the sums of the last tall block and finish it. */
static void finish_last_tall(const struct job *job, const struct pending *pending)
{
    float *const sums = pending->sums;
    const int tile = job->m * TILE;

    _tile_stored(0, sums, LINE);
    _tile_stored(1, sums + tile, LINE);
    _tile_stored(2, sums + 2 * tile, LINE);
    _tile_stored(3, sums + 3 * tile, LINE);
    for (int row = 0; row < pending->rows; row++)
        finish_tall_row_general(job, pending, row);
}

typedef void multiply_tall_function(const struct job *job, const struct tall_operands *o, const struct pending *pending,
                                    struct fetch *fetch, struct ring *ring);
#define MULTIPLY_TALL(name, tiles, ending)                                                                             \
    static void name(const struct job *job, const struct tall_operands *o, const struct pending *pending,              \
                     struct fetch *fetch, struct ring *ring)                                                           \
    {                                                                                                                  \
        multiply_tall(job, tiles, ending, o, pending, fetch, ring);                                                    \
    }
#define MULTIPLY_TALL_ENDINGS(name, tiles)                                                                             \
    MULTIPLY_TALL(name##_plain, tiles, ENDING_PLAIN)                                                                   \
    MULTIPLY_TALL(name##_residual, tiles, ENDING_RESIDUAL)                                                             \
    MULTIPLY_TALL(name##_general, tiles, ENDING_GENERAL)
MULTIPLY_TALL_ENDINGS(multiply_tall_1, 1)
MULTIPLY_TALL_ENDINGS(multiply_tall_2, 2)
MULTIPLY_TALL_ENDINGS(multiply_tall_3, 3)
MULTIPLY_TALL_ENDINGS(multiply_tall_4, 4)

/* By [pixel tiles - 1][ending]. */
static multiply_tall_function *const multiply_tall_functions[TALL][ENDING_COUNT] = {
    MULTIPLY_ENTRY(multiply_tall_1),
    MULTIPLY_ENTRY(multiply_tall_2),
    MULTIPLY_ENTRY(multiply_tall_3),
    MULTIPLY_ENTRY(multiply_tall_4),
};

/* ---- one task ---- */

/* What all blocks of a task have in common. */
struct task {
    const struct amx_form *form;
    const struct amx_view *view;
    const struct scratch *scratch;
    const char *input, *branch, *weights;
    const float *bias;
    int channels;               /* of the convolution's output */
    size_t element;             /* bytes of one */
    size_t out_chunk;           /* bytes from 32 channels to the next in output and residual */
    uintptr_t out, residual;    /* addresses of the strip's first pixel */
    int first_block, end_block; /* of 32 channels */
    enum ending ending;         /* of a block whose channels all exist */
};

/* What is left to do for `rows` tile rows from tile `tile` on, in channels [channel, channel + most) as far as they
 * exist. */
static struct pending pending_of(const struct task *t, int tile, int rows, int channel, int most)
{
    const int channels = max_int(0, min_int(most, t->channels - channel));
    const size_t at = (size_t)(channel / CHUNK) * t->out_chunk + (size_t)(channel % CHUNK) * t->element;

    return (struct pending){
        .sums = t->scratch->sums,
        .target = t->scratch->target + tile * t->view->m,
        .rows = rows,
        .ending = channels == most ? t->ending : ENDING_GENERAL,
        .out = t->out + at,
        .residual = t->residual + at,
        .mask = first_lanes32(channels),
    };
}

/* The branch's input for a tile whose own is at `offset`. */
static const char *branch_at(const struct task *t, size_t offset)
{
    return t->branch ? t->branch + offset / t->view->pixel_stride * t->view->branch_pixel_stride : NULL;
}

/* Groups of pixel tiles by blocks of 16 channels. Groups follow one another within a block, so that its weights are
 * unpacked once. */
static void run_tall(const struct task *t, const struct job *job, struct fetch *fetch)
{
    const struct amx_view *v = t->view;
    const size_t block_size = block_bytes(t->form) / (BLOCK / TILE);
    const int groups = tall_groups(v);
    const int first = t->first_block * (BLOCK / TILE), end = t->end_block * (BLOCK / TILE);
    const char *const begin = t->weights + (size_t)first * block_size;
    struct ring ring = {t->scratch->unpacked, tall_slots(t->form, v), 0};
    struct pending pending = pending_of(t, 0, 0, 0, TILE);

    for (int i = 0; i < TALL_AHEAD; i++)
        unpack_tile(begin + TALL_LOOKUP_BYTES + i * TALL_STEP_BYTES, _mm512_load_si512(begin),
                    ring.tiles + i * TILE * LINE);
    for (int block = first; block < end; block++) {
        const char *const b = t->weights + (size_t)block * block_size;
        for (int group = 0; group < groups; group++) {
            const int tile = part_start(v->tiles, groups, group),
                      count = part_start(v->tiles, groups, group + 1) - tile;
            const bool last = group == groups - 1;
            struct tall_operands o = {
                .b = b,
                .next = last && block < end - 1 ? b + block_size : b,
                .bias = t->bias + block * TILE,
                .unpack = group == 0,
                .unpack_next = last && block < end - 1,
            };
            for (int i = 0; i < TALL; i++) {
                const size_t offset = t->scratch->tile_offset[tile + min_int(i, count - 1)];
                o.a[i] = t->input + offset;
                o.branch[i] = branch_at(t, offset);
            }
            multiply_tall_functions[count - 1][pending.ending](job, &o, &pending, fetch, &ring);
            pending = pending_of(t, tile, count * v->m, block * TILE, TILE);
        }
    }
    finish_last_tall(job, &pending);
}

/* Pairs of pixel tiles by blocks of 32 channels. All blocks of weights pass by a group of tiles whose input stays in
 * the first-level cache; but weights that do not stay in the second are used up block by block. */
static void run_pairs(const struct task *t, const struct job *job, enum mode mode, struct fetch *fetch)
{
    const struct amx_form *f = t->form;
    const struct amx_view *v = t->view;
    struct pending pending = pending_of(t, 0, 0, 0, BLOCK);
    int group = v->tiles;

    if ((size_t)(t->end_block - t->first_block) * block_bytes(f) <= GROUPED_WEIGHT_BYTES)
        group = max_int(1, (int)(GROUP_BYTES / ((size_t)v->m * (size_t)(f->chunks + f->branch_chunks) * LINE) / 2)) * 2;
    for (int begin = 0; begin < v->tiles; begin += group) {
        const int stop = min_int(v->tiles, begin + group);
        for (int block = t->first_block; block < t->end_block; block++)
            for (int tile = begin; tile < stop; tile += 2) {
                const int count = min_int(2, stop - tile);
                const size_t offset0 = t->scratch->tile_offset[tile],
                             offset1 = t->scratch->tile_offset[tile + count - 1];
                const struct operands o = {
                    .a0 = t->input + offset0,
                    .a1 = t->input + offset1,
                    .branch0 = branch_at(t, offset0),
                    .branch1 = branch_at(t, offset1),
                    .b = t->weights + (size_t)block * block_bytes(f),
                    .bias = t->bias + block * BLOCK,
                };
                multiply_functions[count - 1][mode][pending.ending](job, &o, &pending, fetch);
                pending = pending_of(t, tile, count * v->m, block * BLOCK, BLOCK);
            }
    }
    finish_last(job, &pending);
}

static void amx_run(const struct conv *conv, const struct conv_geometry *g, const struct conv_work *work,
                    const struct conv_buffers *buffers, int task, void *scratch)
{
    const struct conv_params *p = &conv->params;
    const struct amx_form f = amx_form_of(conv);
    const int strips = work->tile[WORK_STRIPS], ranges = work->tile[WORK_RANGES];
    const int range = task % ranges, strip = task / ranges % strips, image = task / ranges / strips;
    const int rows = amx_view_of(conv, &f, g, 0).rows;
    const int first = part_start(rows, strips, strip), end = part_start(rows, strips, strip + 1);
    const struct amx_view v = amx_view_of(conv, &f, g, end - first);
    const struct scratch s = scratch_layout(&f, &v, scratch);
    const size_t element = conv->output_f32 ? sizeof(float) : sizeof(bf16);
    const size_t first_pixel = ((size_t)image * (size_t)v.rows + (size_t)first) * (size_t)v.width;
    const char *input = buffers->input;
    const char *weights = buffers->packed;
    const float *bias = (const float *)(const void *)(weights + (size_t)f.blocks * block_bytes(&f));

    for (size_t at = 0; at < bias_bytes(&f); at += LINE)
        _mm_prefetch((const char *)bias + at, _MM_HINT_T1);
    assert(task >= 0 && task < work->tasks && s.bytes <= work->scratch_bytes);
    assert(!conv->has_residual || (buffers->residual && !conv->output_f32));
    assert(!conv->has_branch || buffers->branch);

    const struct amx_strides strides = conv->output_f32
                                           ? (struct amx_strides){(size_t)p->out * sizeof(float), CHUNK * sizeof(float)}
                                           : amx_strides_of(p->out, (size_t)g->n * (size_t)g->out_h * (size_t)g->out_w);
    const uintptr_t out = (uintptr_t)buffers->output + first_pixel * strides.pixel;
    const uintptr_t residual = conv->has_residual ? (uintptr_t)buffers->residual + first_pixel * strides.pixel : 0;
    amx_fill_steps(p, &f, &v, s.step_offset);
    amx_fill_tiles(p, &f, &v, strides.pixel, s.tile_offset, s.target);
    if (f.source == SOURCE_DIRECT) {
        input += first_pixel * v.pixel_stride;
    } else {
        if (f.source == SOURCE_PLANES)
            amx_gather_planes(p, &f, g, &v, input, image, first, s.input);
        else
            amx_gather_runs(p, g, &v, input, image, first, s.input);
        input = s.input;
    }
    const char *branch = buffers->branch;
    if (f.branch_direct) {
        branch += first_pixel * v.branch_pixel_stride;
    } else if (f.branch_chunks) {
        amx_gather_branch(&conv->branch, g, &v, buffers->branch, first_pixel, s.branch);
        branch = s.branch;
    }
    __asm__ volatile("" : : : "memory"); /* tile loads do not say what they read */

    const int steps = block_steps(&f), share = ceil_div((f.tall ? TALL : 2) * v.m, steps);
    const enum mode mode = block_bytes(&f) <= STAYING_BYTES ? MODE_SPREAD : MODE_STREAM;
    const struct job job = {
        .pixel_stride = v.pixel_stride,
        .step_offset = s.step_offset,
        .steps = f.chunks * f.taps,
        .m = v.m,
        .branch_steps = f.branch_chunks,
        .branch_pixel_stride = v.branch_pixel_stride,
        .branch_chunk_stride = v.branch_chunk_stride,
        .share = mode == MODE_STREAM || f.tall ? share : ceil_div(share, 4),
        .floor = _mm512_set1_epi16(conv->relu ? 0 : INT16_MIN),
        .sink = s.sink,
        .relu = conv->relu,
        .residual = conv->has_residual,
        .output_f32 = conv->output_f32,
    };
    const int first_block = part_start(f.blocks, ranges, range), end_block = part_start(f.blocks, ranges, range + 1);
    const size_t range_bytes = (size_t)(end_block - first_block) * block_bytes(&f);
    const struct task t = {
        .form = &f,
        .view = &v,
        .scratch = &s,
        .input = input,
        .branch = branch,
        .weights = weights,
        .bias = bias,
        .channels = p->out,
        .element = element,
        .out_chunk = strides.chunk,
        .out = out,
        .residual = residual,
        .first_block = first_block,
        .end_block = end_block,
        .ending = conv->output_f32 || (residual && residual != out) ? ENDING_GENERAL
                  : residual                                        ? ENDING_RESIDUAL
                                                                    : ENDING_PLAIN,
    };

    /* The predecessor has fetched the first of the weights if it was told to. */
    const int64_t calls =
        (int64_t)(end_block - first_block) * (f.tall ? tall_groups(&v) * (BLOCK / TILE) : ceil_div(v.tiles, 2));
    const char *const range_begin = weights + (size_t)first_block * block_bytes(&f);
    const size_t head = min_size(HEAD_BYTES, range_bytes);
    const size_t then_bytes = min_size(buffers->upcoming_bytes / (size_t)ranges, HEAD_BYTES);
    struct fetch_run runs[4];
    const size_t run_count = buffers->upcoming ? 4 : 2;
    fetch_pages(range_begin + head, range_bytes - head, runs);
    if (buffers->upcoming)
        fetch_pages((const char *)buffers->upcoming + buffers->upcoming_bytes / (size_t)ranges * (size_t)range,
                    then_bytes, runs + 2);
    struct fetch fetch = fetch_begin(runs, run_count, calls * steps);

    tiles_configure(v.m);
    if (f.tall)
        run_tall(&t, &job, &fetch);
    else
        run_pairs(&t, &job, mode, &fetch);
    _tile_release();
}

const struct conv_kernel amx_conv_tiles = {
    .name = "tiles__amx_bf16",
    .adds_branch = true,
    .supports = amx_supports,
    .packed_bytes = amx_packed_bytes,
    .pack = amx_pack,
    .plan = amx_plan,
    .run = amx_run,
};

#endif
