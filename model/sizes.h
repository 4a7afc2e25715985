/* sizes.h - arithmetic on sizes that come from outside: overflow is reported, never wrapped.
 *
 * Each function stores the result in *out and returns true, or returns false on overflow and leaves
 * *out alone. */

#ifndef RESNETD_MODEL_SIZES_H
#define RESNETD_MODEL_SIZES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

__attribute__((warn_unused_result)) static inline bool size_mul(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

__attribute__((warn_unused_result)) static inline bool size_add(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

/* `n` rounded up to a multiple of `unit` (a power of two). The caller knows that it fits. */
static inline size_t size_round_up(size_t n, size_t unit)
{
    return (n + unit - 1) & ~(unit - 1);
}

/* Of numbers that are known to fit. */
static inline int min_int(int a, int b)
{
    return a < b ? a : b;
}

static inline int max_int(int a, int b)
{
    return a > b ? a : b;
}

/* a / b (a >= 0, b > 0), rounded up. */
static inline int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* The first item of part `part` when `count` items are divided into `parts` of equal size, give or take one. */
static inline int part_start(int count, int parts, int part)
{
    return (int)((int64_t)count * part / parts);
}

#endif
