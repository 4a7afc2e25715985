/* kernels_avx512.c - the float32 table for CPUs with AVX-512 (F, BW, DQ, VL): kernels_simd.h with 16 lanes
 * and a block of 12 pixels x 32 channels, 24 of the 32 registers. */

#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <stdio.h>

enum { LANES = 16, BLOCK_ROWS = 12, BLOCK_VECTORS = 2 };
#define BLOCK_ROW_LIST(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define TABLE             "avx512"

typedef __m512 vec;
typedef __mmask16 vec_mask;

static inline vec v_set(float x)
{
    return _mm512_set1_ps(x);
}

static inline vec v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void v_store(float *p, vec x)
{
    _mm512_storeu_ps(p, x);
}

/* The first `count` lanes. */
static inline vec_mask v_mask(int count)
{
    return (vec_mask)((1u << count) - 1u);
}

static inline vec v_load_masked(const float *p, vec_mask mask)
{
    return _mm512_maskz_loadu_ps(mask, p);
}

static inline void v_store_masked(float *p, vec_mask mask, vec x)
{
    _mm512_mask_storeu_ps(p, mask, x);
}

static inline vec v_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}

static inline vec v_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}

static inline vec v_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}

static inline vec v_div(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}

/* `b` where either is NaN. */
static inline vec v_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

/* a * b + c */
static inline vec v_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* c - a * b */
static inline vec v_fnma(vec a, vec b, vec c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

static bool simd_available(char *why, size_t why_size)
{
    __builtin_cpu_init(); /* asks XGETBV too: a feature whose registers the system does not save is absent */
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        return true;
    if (why)
        snprintf(why, why_size, "the CPU or the operating system has no AVX-512 (F, BW, DQ, VL)");
    return false;
}

#include "kernels_simd.h"

const struct kernels kernels_avx512 = SIMD_TABLE;

#endif
