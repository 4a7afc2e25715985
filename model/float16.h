/* float16.h - IEEE half precision and bfloat16 to float32.
 *
 * Exact for every bit pattern: subnormals, infinities, and NaNs with sign and payload (a signalling NaN stays one).
 * Free of branches, so that the compiler vectorises loops over it, and of subnormal arithmetic, so that a
 * processor that flushes subnormals to zero does not matter. */

#ifndef RESNETD_MODEL_FLOAT16_H
#define RESNETD_MODEL_FLOAT16_H

#include <stdint.h>
#include <string.h>

static inline float float32_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float float16_to_float32(uint16_t half)
{
    const uint32_t two_to_minus_14 = (127u - 14u) << 23;
    uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13; /* exponent and fraction where float32 has them */
    uint32_t exponent = magnitude & (0x1fu << 23);
    uint32_t bits = magnitude + ((127u - 15u) << 23);

    /* Infinity and NaN: the largest exponent again. */
    bits += exponent == (0x1fu << 23) ? (128u - 16u) << 23 : 0;

    /* Subnormal: fraction * 2^-24, as the difference of two normal numbers, which is exact. */
    float fraction = float32_from_bits(magnitude + two_to_minus_14) - float32_from_bits(two_to_minus_14);
    uint32_t fraction_bits;
    memcpy(&fraction_bits, &fraction, sizeof fraction_bits);
    bits = exponent == 0 ? fraction_bits : bits;

    return float32_from_bits(bits | (uint32_t)(half & 0x8000) << 16);
}

static inline float bfloat16_to_float32(uint16_t bfloat)
{
    return float32_from_bits((uint32_t)bfloat << 16);
}

#endif
