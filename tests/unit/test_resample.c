/* test_resample.c - the resize's weights and passes: against numbers from Pillow, and the CPU's version
 * against plain C over odd shapes, with canaries past the ends. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../model/resample.h"

static uint32_t seed = 1;

static uint32_t next_random(void)
{
    seed = seed * 1664525U + 1013904223U;
    return seed >> 8;
}

/* Extremes are as frequent as noise: sums then reach both ends of their range. */
static void fill(uint8_t *to, size_t size)
{
    for (size_t i = 0; i < size; i++)
        to[i] = (uint8_t)(next_random() % 4 == 0 ? 255 : next_random() % 4 == 0 ? 0 : next_random());
}

static void *make_axis(struct resample_axis *axis, int in, int out, int first, int count)
{
    void *memory = malloc((size_t)resample_axis_bytes(in, out, count));
    assert_non_null(memory);
    resample_axis_init(axis, in, out, first, count, memory);
    return memory;
}

/* Image.fromarray(...).resize(..., BILINEAR) of Pillow 9.4. */
static void test_pillow_numbers(void **state)
{
    uint8_t squares[40 + RESAMPLE_OVERREAD];
    const struct {
        int in, out;
        const uint8_t *from;
        uint8_t expected[8];
    } cases[] = {
        {5, 3, (const uint8_t[5 + RESAMPLE_OVERREAD]){0, 10, 200, 255, 30}, {4, 170, 126}},
        {3, 7, (const uint8_t[3 + RESAMPLE_OVERREAD]){0, 255, 100}, {0, 36, 146, 255, 189, 122, 100}},
        {40, 4, squares, {41, 118, 114, 116}},
    };
    (void)state;
    for (int i = 0; i < 40; i++)
        squares[i] = (uint8_t)(i * i);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct resample_axis axis;
        uint8_t out[16], *to = out;
        void *memory = make_axis(&axis, cases[i].in, cases[i].out, 0, cases[i].out);
        resample_plain.horizontal(&axis, 1, 1, &cases[i].from, &to);
        assert_memory_equal(out, cases[i].expected, (size_t)cases[i].out);
        for (int y = 0; y < axis.count; y++) { /* the same down a column */
            const uint8_t *rows[64];
            for (int k = 0; k < axis.length[y]; k++)
                rows[k] = cases[i].from + axis.start[y] + k;
            resample_plain.vertical(rows, axis.weights + (size_t)y * axis.stride, axis.length[y], out, 1);
            assert_int_equal(out[0], cases[i].expected[y]);
        }
        free(memory);
    }
}

static void test_weights(void **state)
{
    static const int sizes[] = {1, 2, 3, 7, 63, 64, 65, 224, 500, 1000, 5000};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    (void)state;
    for (int a = 0; a < SIZES; a++)
        for (int b = 0; b < SIZES; b++) {
            struct resample_axis whole, window;
            int in = sizes[a], out = sizes[b], first = out / 3, count = out - first - out / 4;
            void *all = make_axis(&whole, in, out, 0, out), *some = make_axis(&window, in, out, first, count);
            assert_int_equal(whole.stride % 4, 0);
            for (int i = 0; i < out; i++) {
                const int32_t *w = whole.weights + (size_t)i * whole.stride;
                int64_t sum = 0;
                assert_true(whole.start[i] >= 0 && whole.length[i] >= 1 && (size_t)whole.length[i] <= whole.stride);
                assert_true(whole.start[i] + whole.length[i] <= in);
                assert_true(i == 0 || whole.start[i] >= whole.start[i - 1]);
                /* The ring of rows relies on it: no source row between two outputs is left out. */
                assert_true(i == 0 || whole.start[i] <= whole.start[i - 1] + whole.length[i - 1]);
                for (int k = 0; k < (int)whole.stride; k++) {
                    sum += w[k];
                    assert_true(k < whole.length[i] ? w[k] >= 0 : w[k] == 0);
                }
                assert_true(llabs(sum - (1 << 22)) <= whole.length[i]);
                if (in == out) {
                    assert_int_equal(w[i - whole.start[i]], 1 << 22);
                }
            }
            /* A window has the weights that the whole has there. */
            assert_memory_equal(window.start, whole.start + first, (size_t)count * sizeof *window.start);
            assert_memory_equal(window.length, whole.length + first, (size_t)count * sizeof *window.length);
            assert_memory_equal(window.weights, whole.weights + (size_t)first * whole.stride,
                                (size_t)count * window.stride * sizeof *window.weights);
            free(all);
            free(some);
        }
}

static void test_axis_bytes(void **state)
{
    (void)state;
    assert_true(resample_axis_bytes(INT32_MAX, 1, INT32_MAX) == UINT64_MAX);
    assert_true(resample_axis_bytes(INT32_MAX, 1, 1) > (uint64_t)1 << 33);
    assert_int_equal(resample_stride(1, 1000), 4);
    assert_int_equal(resample_axis_bytes(1, 1000, 10), 10 * 6 * 4);
    assert_true(resample_stride(65500, 256) >= 2 * 256 + 1);
}

enum { CANARY = 0xA5 };

static void check_horizontal(const struct resample_kernels *kernels, int in, int out, int first, int count,
                             int channels)
{
    struct resample_axis axis;
    void *memory = make_axis(&axis, in, out, first, count);
    const size_t from_size = (size_t)(in * channels) + RESAMPLE_OVERREAD, to_size = (size_t)(count * channels);
    uint8_t *source[RESAMPLE_BATCH], *expected[RESAMPLE_BATCH], *got[RESAMPLE_BATCH];

    for (int r = 0; r < RESAMPLE_BATCH; r++) {
        source[r] = malloc(from_size); /* exactly what may be read, for the sanitizer */
        expected[r] = malloc(to_size);
        got[r] = malloc(to_size + 16);
        assert_true(source[r] && expected[r] && got[r]);
        fill(source[r], from_size);
    }
    for (int rows = 1; rows <= RESAMPLE_BATCH; rows++) {
        for (int r = 0; r < RESAMPLE_BATCH; r++)
            memset(got[r], CANARY, to_size + 16);
        resample_plain.horizontal(&axis, channels, rows, (const uint8_t *const *)source, expected);
        kernels->horizontal(&axis, channels, rows, (const uint8_t *const *)source, got);
        for (int r = 0; r < RESAMPLE_BATCH; r++) {
            if (r < rows)
                assert_memory_equal(got[r], expected[r], to_size);
            else
                assert_int_equal(got[r][0], CANARY);
            for (size_t i = to_size + 1; i < to_size + 16; i++) /* one byte past the end may be written */
                assert_int_equal(got[r][i], CANARY);
        }
    }
    for (int r = 0; r < RESAMPLE_BATCH; r++) {
        free(source[r]);
        free(expected[r]);
        free(got[r]);
    }
    free(memory);
}

static void check_vertical(const struct resample_kernels *kernels, int in, int out, size_t bytes)
{
    struct resample_axis axis;
    void *memory = make_axis(&axis, in, out, 0, out);
    uint8_t **rows = malloc((size_t)in * sizeof *rows), *expected = malloc(bytes), *got = malloc(bytes + 64);

    assert_true(rows && expected && got);
    for (int y = 0; y < in; y++) {
        rows[y] = malloc(bytes);
        assert_non_null(rows[y]);
        fill(rows[y], bytes);
    }
    for (int y = 0; y < out; y++) {
        const uint8_t *const *from = (const uint8_t *const *)rows + axis.start[y];
        const int32_t *weights = axis.weights + (size_t)y * axis.stride;
        memset(got, CANARY, bytes + 64);
        resample_plain.vertical(from, weights, axis.length[y], expected, bytes);
        kernels->vertical(from, weights, axis.length[y], got, bytes);
        assert_memory_equal(got, expected, bytes);
        for (size_t i = bytes; i < bytes + 64; i++)
            assert_int_equal(got[i], CANARY);
    }
    for (int y = 0; y < in; y++)
        free(rows[y]);
    free(rows);
    free(expected);
    free(got);
    free(memory);
}

static void test_best_equals_plain(void **state)
{
    static const int sizes[] = {1, 2, 3, 5, 16, 31, 33, 97, 224, 300, 2000};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    const struct resample_kernels *best = resample_best();
    (void)state;
    if (best == &resample_plain) {
        print_message("no vector version for this CPU: only plain C was tested\n");
        skip();
    }
    for (int a = 0; a < SIZES; a++)
        for (int b = 0; b < SIZES; b++) {
            int in = sizes[a], out = sizes[b];
            for (int channels = 1; channels <= 3; channels += 2) {
                check_horizontal(best, in, out, 0, out, channels);
                check_horizontal(best, in, out, out / 2, 1, channels);
            }
            if (out <= 300)
                check_vertical(best, in, out, (size_t)sizes[(a + b) % SIZES]);
        }
    for (size_t bytes = 1; bytes <= 100; bytes++)
        check_vertical(best, 9, 4, bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pillow_numbers),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_axis_bytes),
        cmocka_unit_test(test_best_equals_plain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
