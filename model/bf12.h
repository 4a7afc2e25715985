/* bf12.h - bfloat16 weights in 12 bits, for layers that wait for their weights.
 *
 * bfloat16 spends 8 bits on an exponent of which the weights of a layer use few. Here four neighbouring output channels
 * share the place where exponents begin (`base`), and a value is a code
 *     sign (bit 11), exponent - 2 * base (bits 10 .. 7), mantissa (bits 6 .. 0)
 * whose upper four bits stand for the upper eight of the bfloat16: that is one lookup in 16 bytes. The lower eight bits
 * are the same in both.
 *
 * Exponents 0 and 1 of a code are zero (a bfloat16 below 2^-125, which tiles take for zero) unless base is 0. What is
 * smaller than the smallest code becomes that or zero, whichever is nearer: it is smaller than 2^-12 of the
 * group's largest value, and off by no more than 2^-13 of it, where rounding to bfloat16 allows 2^-9. All others are
 * exact. */

#ifndef RESNETD_MODEL_BF12_H
#define RESNETD_MODEL_BF12_H

#include "bf16.h"

enum { BF12_LOOKUP = 16 };

/* For a group of values of which `largest` has the largest magnitude. */
static inline unsigned bf12_base(bf16 largest)
{
    const unsigned upper = (largest & 0x7fffu) >> 8;
    return upper > 7 ? upper - 7 : 0;
}

/* The upper byte of the bfloat16 for the upper four bits of a code. */
static inline uint8_t bf12_upper(unsigned base, unsigned upper)
{
    return (uint8_t)((upper >> 3) << 7 | (upper & 7 ? base + (upper & 7) : 0));
}

static inline unsigned bf12_from_bf16(bf16 value, unsigned base)
{
    const unsigned sign = (value & 0x8000u) >> 4, magnitude = value & 0x7fffu;
    const unsigned smallest = (base + 1) << 8;

    if (base == 0)
        return sign | magnitude;
    if (magnitude >= smallest)
        return sign | (magnitude - (base << 8));
    return magnitude >= smallest - 0x80u ? sign | 0x100u : sign;
}

static inline bf16 bf12_to_bf16(unsigned code, unsigned base)
{
    return (bf16)((unsigned)bf12_upper(base, code >> 8) << 8 | (code & 0xffu));
}

#endif
