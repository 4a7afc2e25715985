/* kernels_avx2.c - the float32 table for CPUs with AVX2 and FMA: kernels_simd.h with 8 lanes and a block of
 * 6 pixels x 16 channels, 12 of the 16 registers. */

#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <stdio.h>

enum { LANES = 8, BLOCK_ROWS = 6, BLOCK_VECTORS = 2 };
#define BLOCK_ROW_LIST(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define TABLE             "avx2"

typedef __m256 vec;
typedef __m256i vec_mask;

static inline vec v_set(float x)
{
    return _mm256_set1_ps(x);
}

static inline vec v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

static inline void v_store(float *p, vec x)
{
    _mm256_storeu_ps(p, x);
}

/* The first `count` lanes. */
static inline vec_mask v_mask(int count)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vec v_load_masked(const float *p, vec_mask mask)
{
    return _mm256_maskload_ps(p, mask);
}

static inline void v_store_masked(float *p, vec_mask mask, vec x)
{
    _mm256_maskstore_ps(p, mask, x);
}

static inline vec v_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}

static inline vec v_sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}

static inline vec v_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}

static inline vec v_div(vec a, vec b)
{
    return _mm256_div_ps(a, b);
}

/* `b` where either is NaN. */
static inline vec v_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

/* a * b + c */
static inline vec v_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

/* c - a * b */
static inline vec v_fnma(vec a, vec b, vec c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

static bool simd_available(char *why, size_t why_size)
{
    __builtin_cpu_init(); /* asks XGETBV too: a feature whose registers the system does not save is absent */
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return true;
    if (why)
        snprintf(why, why_size, "the CPU or the operating system has no AVX2 with FMA");
    return false;
}

#include "kernels_simd.h"

const struct kernels kernels_avx2 = SIMD_TABLE;

#endif
