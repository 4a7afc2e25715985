/* test_activation.c - how activations lie in memory, with and without blocks of channels. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../model/kernels.h"

/* As `ref`, but with blocks. */
static struct kernels blocked(int block)
{
    struct kernels kernels = kernels_ref;
    kernels.channel_block = block;
    return kernels;
}

static void without_blocks_it_is_nhwc(void **state)
{
    const struct kernels kernels = blocked(32);
    size_t at = 0;

    (void)state;
    for (size_t pixel = 0; pixel < 64; pixel++)
        for (size_t c = 0; c < 33; c++, at++) {
            assert_int_equal(activation_index(&kernels_ref, 33, 64, pixel, c), at);
            assert_int_equal(activation_index(&kernels, 33, 64, pixel, c), at); /* 32 does not divide 33 */
        }
    assert_int_equal(activation_elements(&kernels_ref, 33, 64), at);
    assert_int_equal(activation_elements(&kernels, 33, 64), at);
}

static void with_blocks_they_follow_one_another(void **state)
{
    const struct kernels kernels = blocked(4);

    (void)state;
    assert_int_equal(activation_index(&kernels, 12, 5, 0, 3), 3);
    assert_int_equal(activation_index(&kernels, 12, 5, 1, 0), 4);
    assert_int_equal(activation_index(&kernels, 12, 5, 0, 4), 20);
    assert_int_equal(activation_index(&kernels, 12, 5, 4, 11), 59);
    assert_int_equal(activation_elements(&kernels, 12, 5), 60);
}

/* Blocks do not begin near a multiple of 64 lines from one another, and little is lost for that. */
static void blocks_keep_apart(void **state)
{
    (void)state;
    assert_int_equal(activation_plane(3136), 3144);
    assert_int_equal(activation_plane(784), 784);
    for (size_t pixels = 1; pixels < 5000; pixels++) {
        const size_t plane = activation_plane(pixels);
        assert_in_range(plane, pixels, pixels + 11);
        if (pixels >= 61)
            assert_in_range(plane % 64, 4, 60);
        else
            assert_int_equal(plane, pixels);
    }
}

static void every_element_has_a_place_of_its_own(void **state)
{
    static const size_t sizes[][3] = {{64, 49, 32}, {96, 64, 32}, {8, 127, 4}, {32, 1, 32}, {40, 20, 32}};

    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const size_t channels = sizes[i][0], pixels = sizes[i][1];
        const struct kernels kernels = blocked((int)sizes[i][2]);
        const size_t elements = activation_elements(&kernels, channels, pixels);
        uint8_t *taken = calloc(elements, 1);
        assert_non_null(taken);
        for (size_t pixel = 0; pixel < pixels; pixel++)
            for (size_t c = 0; c < channels; c++) {
                const size_t at = activation_index(&kernels, channels, pixels, pixel, c);
                assert_true(at < elements);
                assert_int_equal(taken[at]++, 0);
            }
        free(taken);
    }
}

/* Some pixels in the middle, there and back, and nothing else is touched. */
static void conversion_keeps_to_its_pixels(void **state)
{
    enum { CHANNELS = 64, PIXELS = 64, FIRST = 5, COUNT = 17 };
    static float values[COUNT * CHANNELS], back[COUNT * CHANNELS];

    (void)state;
    for (size_t i = 0; i < COUNT * CHANNELS; i++)
        values[i] = (float)i + 1.0f;
    for (int block = 0; block <= 32; block += 16) {
        const struct kernels kernels = blocked(block);
        const size_t elements = activation_elements(&kernels, CHANNELS, PIXELS);
        float *activation = calloc(elements, sizeof *activation);
        size_t written = 0;
        assert_non_null(activation);
        activation_from_f32(&kernels, values, activation, CHANNELS, PIXELS, FIRST, COUNT);
        for (size_t i = 0; i < COUNT * CHANNELS; i++)
            assert_true(activation[activation_index(&kernels, CHANNELS, PIXELS, FIRST + i / CHANNELS, i % CHANNELS)] ==
                        values[i]);
        for (size_t i = 0; i < elements; i++)
            written += activation[i] != 0.0f;
        assert_int_equal(written, COUNT * CHANNELS);
        memset(back, 0, sizeof back);
        activation_to_f32(&kernels, activation, back, CHANNELS, PIXELS, FIRST, COUNT);
        assert_memory_equal(back, values, sizeof values);
        free(activation);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_blocks_it_is_nhwc),
        cmocka_unit_test(with_blocks_they_follow_one_another),
        cmocka_unit_test(blocks_keep_apart),
        cmocka_unit_test(every_element_has_a_place_of_its_own),
        cmocka_unit_test(conversion_keeps_to_its_pixels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
