/* test_bf12.c - every bfloat16 in every group through 12 bits and back. */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../model/bf12.h"

static float value_of(unsigned bits)
{
    return bf16_to_f32((bf16)bits);
}

static void test_every_value_of_every_group(void **state)
{
    (void)state;
    for (unsigned largest = 0; largest < 0x7f80; largest += largest < 0x400 ? 1 : 37) {
        const unsigned base = bf12_base((bf16)largest);
        const float limit = value_of(largest);
        for (unsigned bits = 0; bits <= largest; bits++)
            for (unsigned sign = 0; sign <= 0x8000; sign += 0x8000) {
                const unsigned code = bf12_from_bf16((bf16)(bits | sign), base);
                const bf16 back = bf12_to_bf16(code, base);
                assert_true(code < 1u << 12);
                if (back == (bits | sign))
                    continue;
                /* Not exact: then small, and near. */
                assert_true(value_of(bits) < ldexpf(limit, -12));
                assert_true(fabsf(value_of(back) - value_of(bits | sign)) <= ldexpf(limit, -13));
                assert_int_equal(back & 0x8000, sign);
            }
    }
}

static void test_zero_stays_zero(void **state)
{
    (void)state;
    for (unsigned largest = 0; largest < 0x7f80; largest++) {
        const unsigned base = bf12_base((bf16)largest);
        assert_int_equal(bf12_to_bf16(bf12_from_bf16(0, base), base), 0);
        assert_int_equal(bf12_to_bf16(bf12_from_bf16(0x8000, base), base), 0x8000);
        assert_int_equal(bf12_to_bf16(bf12_from_bf16((bf16)largest, base), base), largest);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_value_of_every_group),
        cmocka_unit_test(test_zero_stays_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
