/* resample.c - Pillow's two-pass bilinear resize: weights, and the two passes.
 *
 * The weights are computed in double in Pillow's order of operations (this file is compiled without
 * fused multiply-adds) and rounded to 22 bits of fraction. From there on everything is integer sums,
 * which have no order: the vector versions give the same bytes. */

#include "resample.h"

#include <assert.h>
#include <math.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { WEIGHT_BITS = 22, HALF = 1 << (WEIGHT_BITS - 1) };

/* Source samples on either side of an output's centre. */
static double filter_support(int in, int out)
{
    double scale = (double)in / out;
    return scale > 1.0 ? scale : 1.0;
}

size_t resample_stride(int in, int out)
{
    double widest = ceil(filter_support(in, out)) * 2 + 1;
    if (widest > in)
        widest = in;
    return ((size_t)widest + 3) / 4 * 4;
}

uint64_t resample_axis_bytes(int in, int out, int count)
{
    uint64_t bytes, each = (resample_stride(in, out) + 2) * sizeof(int32_t);
    return __builtin_mul_overflow(each, (uint64_t)count, &bytes) ? UINT64_MAX : bytes;
}

static double triangle(double t)
{
    t = fabs(t);
    return t < 1.0 ? 1.0 - t : 0.0;
}

void resample_axis_init(struct resample_axis *axis, int in, int out, int first, int count, void *memory)
{
    const double scale = (double)in / out, support = filter_support(in, out), inverse = 1.0 / support;
    const size_t stride = resample_stride(in, out);
    int32_t *start = memory, *length = start + count, *weights = length + count;

    *axis = (struct resample_axis){in, out, first, count, stride, weights, start, length};
    for (int i = 0; i < count; i++, weights += stride) {
        double center = (first + i + 0.5) * scale;
        int64_t begin = (int64_t)(center - support + 0.5), end = (int64_t)(center + support + 0.5);
        int from = begin < 0 ? 0 : (int)begin, to = end > in ? in : (int)end, n = to - from;
        assert(n >= 0 && (size_t)n <= stride);

        /* Twice the same terms rather than a buffer of doubles. */
        double sum = 0.0;
        for (int k = 0; k < n; k++)
            sum += triangle((k + from - center + 0.5) * inverse);
        for (int k = 0; k < n; k++) {
            double w = triangle((k + from - center + 0.5) * inverse);
            if (sum != 0.0)
                w /= sum;
            weights[k] = (int32_t)(0.5 + w * (1 << WEIGHT_BITS));
        }
        for (size_t k = (size_t)n; k < stride; k++)
            weights[k] = 0;
        start[i] = from;
        length[i] = n;
    }
}

/* Weights are not negative, so only the upper end can be passed, by the weights' own rounding. */
static uint8_t to_byte(int32_t sum)
{
    sum >>= WEIGHT_BITS;
    return (uint8_t)(sum > 255 ? 255 : sum);
}

static void horizontal_plain(const struct resample_axis *axis, int channels, int rows, const uint8_t *const *from,
                             uint8_t *const *to)
{
    for (int r = 0; r < rows; r++) {
        uint8_t *out = to[r];
        for (int i = 0; i < axis->count; i++) {
            const int32_t *w = axis->weights + (size_t)i * axis->stride;
            const uint8_t *p = from[r] + (size_t)axis->start[i] * (size_t)channels;
            for (int c = 0; c < channels; c++) {
                int32_t sum = HALF;
                for (int k = 0; k < axis->length[i]; k++)
                    sum += p[k * channels + c] * w[k];
                *out++ = to_byte(sum);
            }
        }
    }
}

static void vertical_plain(const uint8_t *const *rows, const int32_t *weights, int length, uint8_t *to, size_t bytes)
{
    enum { BLOCK = 64 };
    int32_t sums[BLOCK];

    for (size_t x = 0; x < bytes; x += BLOCK) {
        size_t n = bytes - x < BLOCK ? bytes - x : BLOCK;
        for (size_t i = 0; i < n; i++)
            sums[i] = HALF;
        for (int k = 0; k < length; k++) {
            const uint8_t *p = rows[k] + x;
            const int32_t w = weights[k];
            for (size_t i = 0; i < n; i++)
                sums[i] += p[i] * w;
        }
        for (size_t i = 0; i < n; i++)
            to[x + i] = to_byte(sums[i]);
    }
}

const struct resample_kernels resample_plain = {"plain", horizontal_plain, vertical_plain};

#if defined(__x86_64__)

/* A weight of up to 23 bits times a byte does not fit the 16-bit multiply-add, the fastest there is; its
 * low and high 11 bits each do: sum(p * w) = sum(p * low(w)) + (sum(p * high(w)) << 11), exactly. */
enum { LOW_BITS = 11, LOW_MASK = (1 << LOW_BITS) - 1 };

#define AVX2 __attribute__((target("avx2")))

AVX2 static inline __m256i round_sums(__m256i sums)
{
    return _mm256_srai_epi32(_mm256_add_epi32(sums, _mm256_set1_epi32(HALF)), WEIGHT_BITS);
}

AVX2 static inline __m256i join(__m256i low, __m256i high)
{
    return round_sums(_mm256_add_epi32(low, _mm256_slli_epi32(high, LOW_BITS)));
}

/* The sum of a's two halves in the lower half, of b's in the upper, rounded. */
AVX2 static inline __m256i fold(__m256i a, __m256i b)
{
    return round_sums(_mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31)));
}

/* RGB only. Four taps a step: 12 source bytes become 16-bit pairs (r0 r1)(g0 g1)(b0 b1) in the lower half,
 * taps 2 and 3 in the upper; rows share the weights. */
AVX2 static void horizontal_avx2(const struct resample_axis *axis, int channels, int rows, const uint8_t *const *from,
                                 uint8_t *const *to)
{
    if (channels != 3) {
        horizontal_plain(axis, channels, rows, from, to);
        return;
    }
    const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, /* taps 0, 1 */
                                           6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const __m256i pick_low = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    const __m256i pick_high = _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3);
    const __m128i mask = _mm_set1_epi32(LOW_MASK);
    const uint8_t *source[RESAMPLE_BATCH];
    uint8_t *out[RESAMPLE_BATCH];

    static_assert(RESAMPLE_BATCH == 4, "the sums of four rows are packed together");
    for (int r = 0; r < RESAMPLE_BATCH; r++) { /* absent rows repeat the last */
        source[r] = from[r < rows ? r : rows - 1];
        out[r] = to[r < rows ? r : rows - 1];
    }
    for (int i = 0; i < axis->count; i++) {
        const int32_t *w = axis->weights + (size_t)i * axis->stride;
        size_t at = (size_t)axis->start[i] * 3;
        __m256i low[RESAMPLE_BATCH], high[RESAMPLE_BATCH];
        for (int r = 0; r < RESAMPLE_BATCH; r++)
            low[r] = high[r] = _mm256_setzero_si256();

        for (int k = 0; k < axis->length[i]; k += 4, at += 12) {
            __m128i whole = _mm_loadu_si128((const __m128i *)(const void *)(w + k));
            /* 16-bit: low 0 1 2 3, high 0 1 2 3 */
            __m256i split =
                _mm256_castsi128_si256(_mm_packs_epi32(_mm_and_si128(whole, mask), _mm_srai_epi32(whole, LOW_BITS)));
            __m256i w_low = _mm256_permutevar8x32_epi32(split, pick_low);
            __m256i w_high = _mm256_permutevar8x32_epi32(split, pick_high);
            for (int r = 0; r < RESAMPLE_BATCH; r++) {
                __m256i p =
                    _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(source[r] + at)));
                p = _mm256_shuffle_epi8(p, pairs);
                low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(p, w_low));
                high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(p, w_high));
            }
        }
        /* Four rows at once: add the weights' halves, then the vectors' halves, which puts two rows in one. */
        for (int r = 0; r < RESAMPLE_BATCH; r++)
            low[r] = _mm256_add_epi32(low[r], _mm256_slli_epi32(high[r], LOW_BITS));
        __m256i packed = _mm256_packs_epi32(fold(low[0], low[1]), fold(low[2], low[3]));
        packed = _mm256_packus_epi16(packed, packed); /* rows 0, 2 | 1, 3 */
        __m128i even = _mm256_castsi256_si128(packed), odd = _mm256_extracti128_si256(packed, 1);
        /* The fourth byte of each is overwritten by the next pixel. */
        _mm_storeu_si32(out[0] + (size_t)i * 3, even);
        _mm_storeu_si32(out[1] + (size_t)i * 3, odd);
        _mm_storeu_si32(out[2] + (size_t)i * 3, _mm_srli_si128(even, 4));
        _mm_storeu_si32(out[3] + (size_t)i * 3, _mm_srli_si128(odd, 4));
    }
}

/* 32 columns, two rows a step. Unpacking and packing both work within 128-bit halves, so the order of the
 * bytes comes out as it went in. */
AVX2 static void vertical_avx2(const uint8_t *const *rows, const int32_t *weights, int length, uint8_t *to,
                               size_t bytes)
{
    const __m256i zero = _mm256_setzero_si256();
    size_t x = 0;

    for (; x + 32 <= bytes; x += 32) {
        __m256i low[4], high[4];
        for (int q = 0; q < 4; q++)
            low[q] = high[q] = zero;
        for (int k = 0; k < length; k += 2) {
            bool both = k + 1 < length;
            int32_t w0 = weights[k], w1 = both ? weights[k + 1] : 0;
            __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)(rows[k] + x));
            __m256i b = both ? _mm256_loadu_si256((const __m256i *)(const void *)(rows[k + 1] + x)) : zero;
            __m256i w_low = _mm256_set1_epi32((w0 & LOW_MASK) | (w1 & LOW_MASK) << 16);
            __m256i w_high = _mm256_set1_epi32((w0 >> LOW_BITS) | (w1 >> LOW_BITS) << 16);
            __m256i ab[2] = {_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)};
            for (int q = 0; q < 4; q++) {
                __m256i p = q % 2 ? _mm256_unpackhi_epi8(ab[q / 2], zero) : _mm256_unpacklo_epi8(ab[q / 2], zero);
                low[q] = _mm256_add_epi32(low[q], _mm256_madd_epi16(p, w_low));
                high[q] = _mm256_add_epi32(high[q], _mm256_madd_epi16(p, w_high));
            }
        }
        __m256i first = _mm256_packs_epi32(join(low[0], high[0]), join(low[1], high[1]));
        __m256i second = _mm256_packs_epi32(join(low[2], high[2]), join(low[3], high[3]));
        _mm256_storeu_si256((__m256i *)(void *)(to + x), _mm256_packus_epi16(first, second));
    }
    for (; x < bytes; x++) {
        int32_t sum = HALF;
        for (int k = 0; k < length; k++)
            sum += rows[k][x] * weights[k];
        to[x] = to_byte(sum);
    }
}

static const struct resample_kernels resample_avx2 = {"avx2", horizontal_avx2, vertical_avx2};

#endif

const struct resample_kernels *resample_best(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return &resample_avx2;
#endif
    return &resample_plain;
}
