/* test_preprocess.c - geometry, memory and the way from pixels to floats. That resized pixels are Pillow's is
 * the conformance tests' business (tests/conformance/pixels). */

#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../model/preprocess.h"
#include "fail_alloc.h"

static const struct input_spec imagenet = {
    .channels = 3,
    .mean = {0.485f, 0.456f, 0.406f},
    .std = {0.229f, 0.224f, 0.225f},
    .resize = 256,
    .crop = 224,
    .fit = 288,
    .size = INPUT_SIZE_NATIVE,
};
enum { MILLION = 1048576 };

static void test_names(void **state)
{
    enum input_size size;
    (void)state;
    for (int i = INPUT_SIZE_NATIVE; i <= INPUT_SIZE_CROP; i++) {
        assert_true(input_size_parse(input_size_name((enum input_size)i), &size));
        assert_int_equal(size, i);
    }
    assert_false(input_size_parse("", &size));
    assert_false(input_size_parse("Crop", &size));
    assert_false(input_size_parse("native ", &size));
}

static struct preprocess_geometry plan(enum input_size size, uint64_t max, int width, int height)
{
    struct preprocess_geometry g;
    struct rn_error error = {0};
    assert_int_equal(preprocess_plan(&imagenet, size, max, width, height, &g, &error), RN_OK);
    assert_true(g.width >= 1 && g.height >= 1 && g.left >= 0 && g.top >= 0);
    assert_true(g.left + g.width <= g.resized_width && g.top + g.height <= g.resized_height);
    return g;
}

static void test_crop(void **state)
{
    static const struct {
        int width, height, resized_width, resized_height, left, top;
    } cases[] = {
        {256, 256, 256, 256, 16, 16},      {500, 375, 341, 256, 58, 16},   {375, 500, 256, 341, 16, 58},
        {343, 256, 343, 256, 60, 16},      {1, 1, 256, 256, 16, 16},       {1, 500, 256, 128000, 16, 63888},
        {3000, 20, 38400, 256, 19088, 16}, {2000, 1500, 341, 256, 58, 16}, {256, 257, 256, 257, 16, 16},
        {259, 256, 259, 256, 18, 16},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct preprocess_geometry g = plan(INPUT_SIZE_CROP, 1, cases[i].width, cases[i].height);
        assert_int_equal(g.resized_width, cases[i].resized_width);
        assert_int_equal(g.resized_height, cases[i].resized_height);
        assert_int_equal(g.left, cases[i].left); /* (341 - 224) / 2 = 58.5 -> 58, (343 - 224) / 2 = 59.5 -> 60 */
        assert_int_equal(g.top, cases[i].top);
        assert_int_equal(g.width, 224);
        assert_int_equal(g.height, 224);
        assert_false(g.scaled);
    }
}

static void test_crop_refused(void **state)
{
    struct input_spec spec = imagenet;
    struct preprocess_geometry g;
    struct rn_error error;
    (void)state;
    spec.resize = 200;
    assert_int_equal(preprocess_plan(&spec, INPUT_SIZE_CROP, MILLION, 300, 300, &g, &error), RN_ERR_INPUT_SIZE);
    assert_non_null(strstr(error.text, "224"));
    assert_int_equal(preprocess_plan(&imagenet, INPUT_SIZE_CROP, MILLION, 1, INT_MAX, &g, &error),
                     RN_ERR_IMAGE_TOO_LARGE);
    assert_int_equal(preprocess_plan(&imagenet, INPUT_SIZE_CROP, MILLION, INT_MAX, 1, &g, &error),
                     RN_ERR_IMAGE_TOO_LARGE);
}

static void test_native_and_fit(void **state)
{
    static const struct {
        enum input_size size;
        uint64_t max;
        int width, height, to_width, to_height;
        bool scaled;
    } cases[] = {
        {INPUT_SIZE_NATIVE, MILLION, 1, 1, 1, 1, false},
        {INPUT_SIZE_NATIVE, MILLION, 500, 375, 500, 375, false},
        {INPUT_SIZE_NATIVE, MILLION, 1024, 1024, 1024, 1024, false},
        {INPUT_SIZE_NATIVE, MILLION, 1025, 1024, 1023, 1023, true},
        {INPUT_SIZE_NATIVE, MILLION, 4000, 3000, 1181, 886, true},
        {INPUT_SIZE_NATIVE, MILLION, 3000, 4000, 886, 1181, true},
        {INPUT_SIZE_NATIVE, MILLION, 1, 65500, 1, 65500, false},
        {INPUT_SIZE_NATIVE, MILLION, 1, INT_MAX, 1, MILLION, true},
        {INPUT_SIZE_NATIVE, MILLION, INT_MAX, INT_MAX, 1024, 1024, true},
        {INPUT_SIZE_NATIVE, 1, 500, 375, 1, 1, true},
        {INPUT_SIZE_NATIVE, 0, 500, 375, 1, 1, true},
        {INPUT_SIZE_NATIVE, 187500, 500, 375, 500, 375, false},
        {INPUT_SIZE_NATIVE, 187499, 500, 375, 498, 374, true},
        {INPUT_SIZE_NATIVE, UINT64_MAX, INT_MAX, INT_MAX, INT_MAX, INT_MAX, false},
        {INPUT_SIZE_FIT, MILLION, 500, 375, 384, 288, false},
        {INPUT_SIZE_FIT, MILLION, 375, 500, 288, 384, false},
        {INPUT_SIZE_FIT, MILLION, 288, 288, 288, 288, false},
        {INPUT_SIZE_FIT, MILLION, 10, 10, 288, 288, false},
        {INPUT_SIZE_FIT, MILLION, 3000, 20, 12450, 83, true},
        {INPUT_SIZE_FIT, MILLION, 1, 65500, 4, 262000, true},
        {INPUT_SIZE_FIT, MILLION, INT_MAX, 1, MILLION, 1, true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct preprocess_geometry g = plan(cases[i].size, cases[i].max, cases[i].width, cases[i].height);
        assert_int_equal(g.width, cases[i].to_width);
        assert_int_equal(g.height, cases[i].to_height);
        assert_int_equal(g.resized_width, g.width);
        assert_int_equal(g.resized_height, g.height);
        assert_int_equal(g.scaled, cases[i].scaled);
        assert_int_equal(g.left, 0);
        assert_int_equal(g.top, 0);
        assert_true((uint64_t)g.width * (uint64_t)g.height <= (cases[i].max ? cases[i].max : 1));
    }
}

/* Under any limit: at most that many pixels, and the sides' order kept. */
static void test_area_is_bounded(void **state)
{
    uint32_t seed = 7;
    (void)state;
    for (int i = 0; i < 20000; i++) {
        uint32_t random[3];
        for (int k = 0; k < 3; k++)
            random[k] = seed = seed * 1664525U + 1013904223U;
        int width = (int)(random[0] >> (1 + (random[0] >> 4) % 30)), height = (int)(random[1] >> (1 + i % 30));
        uint64_t max = 1 + (random[2] >> i % 31);
        width = width ? width : 1;
        height = height ? height : 1;
        for (int size = INPUT_SIZE_NATIVE; size <= INPUT_SIZE_FIT; size++) {
            struct preprocess_geometry g = plan((enum input_size)size, max, width, height);
            assert_true((uint64_t)g.width * (uint64_t)g.height <= max);
            assert_true((g.width <= g.height) == (width <= height) || g.width == g.height);
        }
    }
}

/* A picture in memory of exactly its size. */
static struct image make_image(int width, int height, int channels)
{
    size_t size = (size_t)width * (size_t)height * (size_t)channels;
    struct image image = {.width = width,
                          .height = height,
                          .channels = channels,
                          .stride = (size_t)(width * channels),
                          .pixels = malloc(size)};
    uint32_t seed = (uint32_t)(width * 7 + height);
    assert_non_null(image.pixels);
    for (size_t i = 0; i < size; i++) {
        seed = seed * 1664525U + 1013904223U;
        image.pixels[i] = (uint8_t)(seed >> 24);
    }
    return image;
}

static float *run(const struct input_spec *spec, const struct preprocess_geometry *g, const struct image *image)
{
    size_t bytes = (size_t)g->width * (size_t)g->height * (size_t)spec->channels * sizeof(float);
    float *out = malloc(bytes);
    struct rn_error error;
    assert_non_null(out);
    assert_int_equal(preprocess_run(spec, g, image, out, &error), RN_OK);
    return out;
}

static void test_normalise(void **state)
{
    (void)state;
    for (int channels = 1; channels <= 3; channels += 2) {
        struct input_spec spec = imagenet;
        struct image image = make_image(40, 30, channels);
        spec.channels = channels;
        struct preprocess_geometry g = plan(INPUT_SIZE_NATIVE, MILLION, 40, 30);
        float *out = run(&spec, &g, &image);
        for (int i = 0; i < 40 * 30 * channels; i++) {
            float expected = ((float)image.pixels[i] / 255.0f - spec.mean[i % channels]) / spec.std[i % channels];
            assert_memory_equal(&out[i], &expected, sizeof expected);
        }
        free(out);
        image_free(&image);
    }
}

/* A window is the same floats as that part of the whole, whatever is skipped around it; and a resize of tiny
 * images does not read past them (the sanitizer looks). */
static void test_windows(void **state)
{
    static const int sizes[][4] = {{50, 40, 90, 70}, {50, 40, 20, 15}, {50, 40, 50, 15}, {50, 40, 90, 40},
                                   {1, 1, 9, 9},     {2, 1, 7, 9},     {1, 30, 5, 4},    {30, 1, 4, 5},
                                   {3, 3, 2, 2},     {6, 50, 5, 50},   {4, 9, 3, 9}};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int channels = 1; channels <= 3; channels += 2) {
            struct input_spec spec = imagenet;
            spec.channels = channels;
            struct image image = make_image(sizes[i][0], sizes[i][1], channels);
            const int width = sizes[i][2], height = sizes[i][3];
            struct preprocess_geometry all = {width, height, 0, 0, width, height, false};
            float *whole = run(&spec, &all, &image);
            for (int left = 0; left < width; left += 1 + width / 3)
                for (int top = 0; top < height; top += 1 + height / 3)
                    for (int part = 1; part <= 2; part++) {
                        struct preprocess_geometry g = all;
                        g.left = left;
                        g.top = top;
                        g.width = part == 1 ? 1 : width - left;
                        g.height = part == 1 ? 1 : height - top;
                        float *window = run(&spec, &g, &image);
                        for (int y = 0; y < g.height; y++)
                            assert_memory_equal(window + y * g.width * channels,
                                                whole + ((top + y) * width + left) * channels,
                                                (size_t)(g.width * channels) * sizeof *whole);
                        free(window);
                    }
            free(whole);
            image_free(&image);
        }
}

/* A constant image stays constant at any scale. */
static void test_constant(void **state)
{
    (void)state;
    for (int value = 0; value <= 255; value += 51) {
        struct image image = make_image(301, 97, 3);
        memset(image.pixels, value, image.stride * (size_t)image.height);
        struct preprocess_geometry g = plan(INPUT_SIZE_CROP, MILLION, 301, 97);
        float *out = run(&imagenet, &g, &image);
        for (int i = 0; i < 224 * 224 * 3; i++)
            assert_true(fabsf(out[i] * imagenet.std[i % 3] + imagenet.mean[i % 3] - (float)value / 255) < 1e-6f);
        free(out);
        image_free(&image);
    }
}

static void test_scratch(void **state)
{
    struct preprocess_geometry g = plan(INPUT_SIZE_NATIVE, MILLION, 500, 375);
    (void)state;
    assert_true(preprocess_scratch_bytes(&g, 500, 375, 3) < 4096);
    g = plan(INPUT_SIZE_CROP, MILLION, 500, 375);
    assert_true(preprocess_scratch_bytes(&g, 500, 375, 3) < 64 * 1024);
    g = plan(INPUT_SIZE_CROP, MILLION, 1, 65500); /* scaled: 256x16768000 */
    assert_true(preprocess_scratch_bytes(&g, 1, 65500, 3) < 64 * 1024);
    g = plan(INPUT_SIZE_CROP, MILLION, 65500, 65500);
    assert_true(preprocess_scratch_bytes(&g, 65500, 65500, 3) < 4 * 1024 * 1024);
    g = (struct preprocess_geometry){INT_MAX - 1, INT_MAX - 1, 0, 0, INT_MAX - 1, INT_MAX - 1, false};
    assert_true(preprocess_scratch_bytes(&g, INT_MAX, INT_MAX, 3) > (uint64_t)1 << 33);
    g.resized_width = g.resized_height = 1;
    assert_int_equal(preprocess_scratch_bytes(&g, INT_MAX, INT_MAX, 3), UINT64_MAX);
}

static void test_allocations(void **state)
{
    struct image image = make_image(60, 50, 3);
    struct preprocess_geometry g = plan(INPUT_SIZE_CROP, MILLION, 60, 50);
    float *out = malloc(224 * 224 * 3 * sizeof *out);
    struct rn_error error;
    (void)state;
    assert_non_null(out);
    for (long n = 0;; n++) {
        fail_alloc_at(n);
        enum rn_status status = preprocess_run(&imagenet, &g, &image, out, &error);
        bool fired = fail_alloc_fired();
        fail_alloc_at(-1);
        assert_int_equal(status, fired ? RN_ERR_NOMEM : RN_OK);
        if (!fired)
            break;
    }
    free(out);
    image_free(&image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),           cmocka_unit_test(test_crop),
        cmocka_unit_test(test_crop_refused),    cmocka_unit_test(test_native_and_fit),
        cmocka_unit_test(test_area_is_bounded), cmocka_unit_test(test_normalise),
        cmocka_unit_test(test_windows),         cmocka_unit_test(test_constant),
        cmocka_unit_test(test_scratch),         cmocka_unit_test(test_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
