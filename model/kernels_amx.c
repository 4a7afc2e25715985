/* kernels_amx.c - the bf16 table for CPUs with AMX (Sapphire Rapids and later): all but the convolutions by tiles,
 * which are in kernels_amx_conv.c. */

#include "kernels_amx_internal.h"

#if defined(__x86_64__)

#include <assert.h>
#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels_pool.h"

/* ---- grouped convolutions, plainly: one output row a task, vectorised by the compiler over outputs ---- */

/* Packed: bias[out], then weight[kernel_h][kernel_w][in / groups][out] as float32 that bf16 can hold. */

static bool grouped_supports(const struct conv *conv)
{
    (void)conv;
    return true;
}

static size_t grouped_packed_bytes(const struct conv *conv)
{
    const struct conv_params *p = &conv->params;
    return (size_t)p->out * (1 + (size_t)(p->in / p->groups) * (size_t)p->kernel[0] * (size_t)p->kernel[1]) *
           sizeof(float);
}

static void grouped_pack(const struct conv *conv, const float *weight, const float *bias, void *packed)
{
    const struct conv_params *p = &conv->params;
    const size_t in = (size_t)(p->in / p->groups), taps = (size_t)p->kernel[0] * (size_t)p->kernel[1];
    const size_t out = (size_t)p->out;
    float *to = packed;

    memcpy(to, bias, out * sizeof(float));
    to += out;
    for (size_t o = 0; o < out; o++)
        for (size_t i = 0; i < in; i++)
            for (size_t t = 0; t < taps; t++)
                to[(t * in + i) * out + o] = bf16_to_f32(bf16_from_f32(weight[(o * in + i) * taps + t]));
}

static void grouped_plan(const struct conv *conv, const struct conv_geometry *g, int threads, struct conv_work *work)
{
    (void)threads;
    *work = (struct conv_work){.tasks = g->n * g->out_h, .scratch_bytes = (size_t)conv->params.out * sizeof(float)};
}

static float bf16_at(const void *base, size_t offset)
{
    return bf16_to_f32(*(const bf16 *)(const void *)((const char *)base + offset));
}

static void grouped_run(const struct conv *conv, const struct conv_geometry *g, const struct conv_work *work,
                        const struct conv_buffers *buffers, int task, void *scratch)
{
    const struct conv_params *p = &conv->params;
    const int in_group = p->in / p->groups, out_group = p->out / p->groups;
    const int n = task / g->out_h, y = task % g->out_h;
    const float *bias = buffers->packed, *weight = bias + p->out;
    const size_t in_pixels = (size_t)g->in_h * (size_t)g->in_w, out_pixels = (size_t)g->out_h * (size_t)g->out_w;
    const struct amx_strides in = amx_strides_of(p->in, (size_t)g->n * in_pixels);
    const struct amx_strides out = amx_strides_of(p->out, (size_t)g->n * out_pixels);
    float *sum = scratch;

    assert(task >= 0 && task < work->tasks);
    for (int x = 0; x < g->out_w; x++) {
        const size_t at = (size_t)task * (size_t)g->out_w + (size_t)x;
        memcpy(sum, bias, (size_t)p->out * sizeof(float));
        for (int ky = 0; ky < p->kernel[0]; ky++) {
            const int in_y = y * p->stride[0] - p->padding[0] + ky * p->dilation[0];
            if (in_y < 0 || in_y >= g->in_h)
                continue;
            for (int kx = 0; kx < p->kernel[1]; kx++) {
                const int in_x = x * p->stride[1] - p->padding[1] + kx * p->dilation[1];
                if (in_x < 0 || in_x >= g->in_w)
                    continue;
                const size_t pixel = (size_t)n * in_pixels + (size_t)in_y * (size_t)g->in_w + (size_t)in_x;
                const float *w = weight + (size_t)(ky * p->kernel[1] + kx) * (size_t)in_group * (size_t)p->out;
                for (int i = 0; i < in_group; i++, w += p->out)
                    for (int group = 0; group < p->groups; group++) {
                        const float value = bf16_at(buffers->input, amx_offset(in, pixel, group * in_group + i));
                        float *s = sum + group * out_group;
                        for (int o = 0; o < out_group; o++)
                            s[o] += value * w[group * out_group + o];
                    }
            }
        }
        for (int o = 0; o < p->out; o++) {
            const size_t offset = amx_offset(out, at, o);
            float value = sum[o];
            if (conv->has_residual)
                value += bf16_at(buffers->residual, offset);
            if (conv->relu && !(value > 0.0f))
                value = 0.0f;
            if (conv->output_f32)
                ((float *)buffers->output)[at * (size_t)p->out + (size_t)o] = value;
            else
                *(bf16 *)(void *)((char *)buffers->output + offset) = bf16_from_f32(value);
        }
    }
}

static const struct conv_kernel conv_grouped = {
    .name = "grouped__bf16",
    .supports = grouped_supports,
    .packed_bytes = grouped_packed_bytes,
    .pack = grouped_pack,
    .plan = grouped_plan,
    .run = grouped_run,
};

/* ---- pooling ---- */

static struct amx_strides input_strides(const struct pool *pool)
{
    return amx_strides_of(pool->channels, (size_t)pool->n * (size_t)pool->in_h * (size_t)pool->in_w);
}

static struct amx_strides output_strides(const struct pool *pool)
{
    return amx_strides_of(pool->channels, (size_t)pool->n * (size_t)pool->out_h * (size_t)pool->out_w);
}

/* The first `count` of 16 lanes, all when there are more. */
ALWAYS_INLINE __mmask16 first_lanes16(int count)
{
    return (__mmask16)(count >= 16 ? 0xffffu : (1u << count) - 1u);
}

/* bf16 <-> a 16-bit integer of the same order; its own inverse. */
ALWAYS_INLINE __m512i ordered(__m512i x)
{
    return _mm512_xor_si512(x, _mm512_and_si512(_mm512_srai_epi16(x, 15), _mm512_set1_epi16(0x7fff)));
}

static void bf16_max_pool(const struct pool *pool, int task)
{
    const struct pool_params *p = pool->params;
    const int n = task / pool->out_h, y = task % pool->out_h;
    const __m512i lowest = ordered(_mm512_set1_epi16((short)0xff80)); /* minus infinity */

    /* The kernel's rows inside the input. */
    int row = y * p->stride[0] - p->padding[0], rows = 0;
    for (; row < 0; row += p->dilation[0])
        rows++;
    rows = min_int(p->kernel[0] - rows, ceil_div(pool->in_h - row, p->dilation[0]));
    const struct amx_strides in_strides = input_strides(pool), out_strides = output_strides(pool);
    const size_t first_in = ((size_t)n * (size_t)pool->in_h + (size_t)row) * (size_t)pool->in_w;
    const size_t row_stride = (size_t)p->dilation[0] * (size_t)pool->in_w * in_strides.pixel;

    for (int c = 0; c < pool->channels; c += 32) {
        const __mmask32 mask = first_lanes32(pool->channels - c);
        const char *line = (const char *)pool->input + amx_offset(in_strides, first_in, c);
        char *out = (char *)pool->output + amx_offset(out_strides, (size_t)task * (size_t)pool->out_w, c);
        __m512i column = lowest; /* the largest of column `column_x`; neighbouring kernels share columns */
        int column_x = -1;
        for (int x = 0; x < pool->out_w; x++, out += out_strides.pixel) {
            __m512i best = lowest;
            for (int kx = 0; kx < p->kernel[1]; kx++) {
                const int in_x = x * p->stride[1] - p->padding[1] + kx * p->dilation[1];
                if (in_x < 0 || in_x >= pool->in_w)
                    continue;
                if (in_x != column_x) {
                    const char *in = line + (size_t)in_x * in_strides.pixel;
                    column = lowest;
                    for (int ky = 0; ky < rows; ky++, in += row_stride)
                        column = _mm512_max_epi16(column, ordered(_mm512_maskz_loadu_epi16(mask, in)));
                    column_x = in_x;
                }
                best = _mm512_max_epi16(best, column);
            }
            _mm512_mask_storeu_epi16(out, mask, ordered(best));
        }
    }
}

/* Output pixel `x` of a task is the sum of image n's pixels in [y0, y1) x [x0, x1), divided by `divisor`. */
static void average(const struct pool *pool, int n, int y0, int y1, int x0, int x1, float divisor, int task, int x)
{
    const struct amx_strides in_strides = input_strides(pool), out_strides = output_strides(pool);
    const size_t first_in = (size_t)n * (size_t)pool->in_h * (size_t)pool->in_w;
    char *out = (char *)pool->output + ((size_t)task * (size_t)pool->out_w + (size_t)x) * out_strides.pixel;

    for (int c = 0; c < pool->channels; c += 16) {
        const __mmask16 mask = first_lanes16(pool->channels - c);
        const char *in = (const char *)pool->input + amx_offset(in_strides, first_in, c);
        __m512 sum = _mm512_setzero_ps();
        for (int y = y0; y < y1; y++)
            for (size_t i = (size_t)y * (size_t)pool->in_w + (size_t)x0;
                 i < (size_t)y * (size_t)pool->in_w + (size_t)x1; i++)
                sum = _mm512_add_ps(sum, widen(_mm256_maskz_loadu_epi16(mask, in + i * in_strides.pixel)));
        sum = _mm512_div_ps(sum, _mm512_set1_ps(divisor));
        _mm256_mask_storeu_epi16(out + amx_offset(out_strides, 0, c), mask, (__m256i)_mm512_cvtneps_pbh(sum));
    }
}

static void bf16_avg_pool(const struct pool *pool, int task)
{
    const struct pool_params *p = pool->params;
    const int n = task / pool->out_h, y = task % pool->out_h;
    const int y0 = y * p->stride[0] - p->padding[0], y1 = min_int(y0 + p->kernel[0], pool->in_h + p->padding[0]);
    const int in_y0 = max_int(y0, 0), in_y1 = min_int(y1, pool->in_h);

    for (int x = 0; x < pool->out_w; x++) {
        const int x0 = x * p->stride[1] - p->padding[1], x1 = min_int(x0 + p->kernel[1], pool->in_w + p->padding[1]);
        const int in_x0 = max_int(x0, 0), in_x1 = min_int(x1, pool->in_w);
        const int count = p->divisor_override    ? p->divisor_override
                          : p->count_include_pad ? (y1 - y0) * (x1 - x0)
                                                 : (in_y1 - in_y0) * (in_x1 - in_x0);
        average(pool, n, in_y0, in_y1, in_x0, in_x1, (float)count, task, x);
    }
}

static void bf16_adaptive_avg_pool(const struct pool *pool, int task)
{
    const int n = task / pool->out_h, y = task % pool->out_h;
    const int y0 = adaptive_bin_begin(y, pool->in_h, pool->out_h), y1 = adaptive_bin_end(y, pool->in_h, pool->out_h);

    for (int x = 0; x < pool->out_w; x++) {
        const int x0 = adaptive_bin_begin(x, pool->in_w, pool->out_w);
        const int x1 = adaptive_bin_end(x, pool->in_w, pool->out_w);
        average(pool, n, y0, y1, x0, x1, (float)((y1 - y0) * (x1 - x0)), task, x);
    }
}

/* ---- conversion ---- */

static void bf16_from_floats(const float *in, void *out, size_t count)
{
    bf16 *to = out;
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 mask = count - i >= 16 ? (__mmask16)0xffff : first_lanes16((int)(count - i));
        const __m512 x = _mm512_maskz_loadu_ps(mask, in + i);
        _mm256_mask_storeu_epi16(to + i, mask, (__m256i)_mm512_cvtneps_pbh(x));
    }
}

static void bf16_to_floats(const void *in, float *out, size_t count)
{
    const bf16 *from = in;
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 mask = count - i >= 16 ? (__mmask16)0xffff : first_lanes16((int)(count - i));
        _mm512_mask_storeu_ps(out + i, mask, widen(_mm256_maskz_loadu_epi16(mask, from + i)));
    }
}

/* ---- the table ---- */

static uint64_t enabled_states(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static bool refuse(char *why, size_t why_size, const char *reason)
{
    if (why && why_size)
        (void)snprintf(why, why_size, "%s", reason);
    return false;
}

static bool amx_available(char *why, size_t why_size)
{
    enum { GET_FEATURES = 7, OSXSAVE = 1 << 27 };
    enum { STATE_AVX512 = 0xe6, STATE_TILES = 0x60000 };
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };              /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    uint32_t a, b, c, d, bf16_a = 0, unused;

    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE) || !__get_cpuid_count(GET_FEATURES, 0, &a, &b, &c, &d))
        return refuse(why, why_size, "the CPU has no AVX-512");
    if ((b & avx512) != avx512)
        return refuse(why, why_size, "the CPU has no AVX-512 with F, BW, DQ and VL");
    if (!(d & 1u << 24) || !(d & 1u << 22))
        return refuse(why, why_size, "the CPU has no AMX tiles with bf16");
    if (a < 1 || !__get_cpuid_count(GET_FEATURES, 1, &bf16_a, &unused, &unused, &unused) || !(bf16_a & 1u << 5))
        return refuse(why, why_size, "the CPU has no AVX-512 BF16");
    if ((enabled_states() & (STATE_AVX512 | STATE_TILES)) != (STATE_AVX512 | STATE_TILES))
        return refuse(why, why_size, "the operating system has not enabled AMX tile state");
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) {
        if (why && why_size)
            (void)snprintf(why, why_size, "the operating system refused AMX tile state: %s", strerror(errno));
        return false;
    }
    return true;
}

static const struct conv_kernel *const amx_convs[] = {&amx_conv_tiles, &conv_grouped, NULL};

extern const struct kernels kernels_amx;
const struct kernels kernels_amx = {
    .name = "amx",
    .precision = "bf16",
    .arithmetic = "bf16 inputs, fp32 accumulation",
    .activation = ACTIVATION_BF16,
    .channel_block = CHUNK,
    .available = amx_available,
    .convs = amx_convs,
    .max_pool = bf16_max_pool,
    .avg_pool = bf16_avg_pool,
    .adaptive_avg_pool = bf16_adaptive_avg_pool,
    .from_f32 = bf16_from_floats,
    .to_f32 = bf16_to_floats,
};

#endif
