/* test_sizes_status.c - sizes that overflow are reported; errors carry their code and never overrun. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "../../model/sizes.h"
#include "../../model/status.h"

static void multiplication(void **state)
{
    (void)state;
    size_t out = 7;
    assert_true(size_mul(3, 5, &out));
    assert_int_equal(out, 15);
    assert_true(size_mul(0, SIZE_MAX, &out));
    assert_int_equal(out, 0);
    assert_true(size_mul(1, SIZE_MAX, &out));
    assert_true(out == SIZE_MAX);
    out = 7;
    assert_false(size_mul(2, SIZE_MAX / 2 + 1, &out));
    assert_false(size_mul(SIZE_MAX, SIZE_MAX, &out));
    assert_int_equal(out, 7); /* left alone */
}

static void addition(void **state)
{
    (void)state;
    size_t out = 7;
    assert_true(size_add(3, 5, &out));
    assert_int_equal(out, 8);
    assert_true(size_add(SIZE_MAX, 0, &out));
    assert_true(out == SIZE_MAX);
    out = 7;
    assert_false(size_add(SIZE_MAX, 1, &out));
    assert_int_equal(out, 7);
}

static void rounding(void **state)
{
    (void)state;
    assert_int_equal(size_round_up(0, 64), 0);
    assert_int_equal(size_round_up(1, 64), 64);
    assert_int_equal(size_round_up(64, 64), 64);
    assert_int_equal(size_round_up(65, 64), 128);
}

static void failure_fills_the_error(void **state)
{
    (void)state;
    struct rn_error error = {0};
    assert_int_equal(rn_fail(&error, RN_ERR_WEIGHTS, "tensor %s has %d values", "fc.bias", 3), RN_ERR_WEIGHTS);
    assert_int_equal(error.code, RN_ERR_WEIGHTS);
    assert_string_equal(error.text, "tensor fc.bias has 3 values");
    assert_int_equal(rn_fail(NULL, RN_ERR_IO, "nobody listens"), RN_ERR_IO);
}

static void long_text_is_cut(void **state)
{
    (void)state;
    struct {
        struct rn_error error;
        char guard[16];
    } memory;
    char text[1000];
    memset(&memory, 0x5a, sizeof memory);
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    rn_fail(&memory.error, RN_ERR_CONFIG, "%s", text);
    assert_int_equal(strlen(memory.error.text), sizeof memory.error.text - 1);
    for (size_t i = 0; i < sizeof memory.guard; i++)
        assert_int_equal(memory.guard[i], 0x5a);
}

static void out_of_memory_says_what_for(void **state)
{
    (void)state;
    struct rn_error error = {0};
    assert_int_equal(rn_fail_nomem(&error, "the labels"), RN_ERR_NOMEM);
    assert_int_equal(error.code, RN_ERR_NOMEM);
    assert_non_null(strstr(error.text, "the labels"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(multiplication),   cmocka_unit_test(addition),
        cmocka_unit_test(rounding),         cmocka_unit_test(failure_fills_the_error),
        cmocka_unit_test(long_text_is_cut), cmocka_unit_test(out_of_memory_says_what_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
