/* test_pool.c - pooling of every kernel table against values that PyTorch 1.13 gave for the same input, and against
 * the definition written out in double. Tables that this machine cannot run are skipped by name. */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../model/kernels.h"
#include "../../model/kernels_pool.h"
#include "../../model/sizes.h"

enum { CANARY_BYTES = 128, CANARY = 0xa5, IMAGES = 2 };

static const struct kernels *table_or_skip(void **state)
{
    const struct kernels *table = *(const struct kernels *const *)*state;
    char why[160] = "";

    if (!table->available(why, sizeof why)) {
        print_message("SKIPPED: table %s: %s\n", table->name, why);
        skip();
    }
    return table;
}

/* Averages are rounded to the activation type once; small whole numbers are exact in both. */
static double tolerance(const struct kernels *table)
{
    return table->activation == ACTIVATION_BF16 ? 1.0 / 256 : 1e-6;
}

typedef void pool_run(const struct pool *pool, int task);

/* Run `pool` (sizes set) on float32 NHWC `input`, tasks in reverse, with NaNs and canaries around; float32 out. */
static void run_pool(const struct kernels *table, pool_run *run, struct pool pool, const float *input, float *output)
{
    const size_t element = activation_bytes(table->activation);
    const size_t channels = (size_t)pool.channels, in_pixels = (size_t)(pool.n * pool.in_h * pool.in_w);
    const size_t out_pixels = (size_t)(pool.n * pool.out_h * pool.out_w);
    const size_t inputs = activation_elements(table, channels, in_pixels);
    const size_t outputs = activation_elements(table, channels, out_pixels);
    const size_t in_bytes = size_round_up(inputs * element + KERNEL_ALIGNMENT, KERNEL_ALIGNMENT);
    const size_t out_bytes = size_round_up(outputs * element + CANARY_BYTES, KERNEL_ALIGNMENT);
    unsigned char *in = aligned_alloc(KERNEL_ALIGNMENT, in_bytes), *out = aligned_alloc(KERNEL_ALIGNMENT, out_bytes);

    assert_true(in && out);
    memset(in, 0xff, in_bytes);
    memset(out, 0xff, outputs * element);
    memset(out + outputs * element, CANARY, out_bytes - outputs * element);
    activation_from_f32(table, input, in, channels, in_pixels, 0, in_pixels);
    pool.input = in;
    pool.output = out;
    for (int task = pool.n * pool.out_h - 1; task >= 0; task--)
        run(&pool, task);
    activation_to_f32(table, out, output, channels, out_pixels, 0, out_pixels);
    for (size_t i = outputs * element; i < out_bytes; i++)
        assert_int_equal(out[i], CANARY);
    free(out);
    free(in);
}

/* ---- PyTorch's values ---- */

enum { HEIGHT = 4, WIDTH = 5 };
static const float image[HEIGHT * WIDTH] = {-4, -1, 2, 5, -3, 3, -4, 0, 4, -3, -1, 4, -2, -2, 3, 6, 1, 2, -3, -2};

enum kind { MAX, AVG, ADAPTIVE };

struct known {
    enum kind kind;
    struct pool_params params;
    int out_h, out_w;
    double out[42];
};

/* All as floating-point tensors of PyTorch printed them, to six places. */
static const struct known known_values[] = {
    {MAX, {{3, 3}, {2, 2}, {1, 1}, {1, 1}, false, false, 0}, 2, 3, {3, 5, 5, 6, 4, 4}},
    {MAX, {{2, 2}, {2, 2}, {0, 0}, {1, 1}, true, false, 0}, 2, 3, {3, 5, -3, 6, 2, 3}},
    {MAX,
     {{2, 2}, {1, 1}, {1, 1}, {2, 3}, false, false, 0},
     4,
     4,
     {0, 4, -3, 0, 2, 5, 4, 2, 2, 6, 1, 2, -2, -1, 4, -2}},
    {MAX, {{3, 2}, {1, 3}, {1, 0}, {1, 1}, false, false, 0}, 4, 2, {3, 5, 4, 5, 6, 4, 6, 3}},
    {AVG, {{3, 3}, {2, 2}, {1, 1}, {1, 1}, false, true, 0}, 2, 3, {-0.666667, 0.666667, 0.333333, 1, 0, -0.333333}},
    {AVG, {{3, 3}, {2, 2}, {1, 1}, {1, 1}, false, false, 0}, 2, 3, {-1.5, 1, 0.75, 1.5, 0, -0.5}},
    {AVG, {{2, 2}, {2, 2}, {0, 0}, {1, 1}, true, true, 0}, 2, 3, {-1.5, 2.75, -3, 2.5, -1.25, 0.5}},
    {AVG,
     {{3, 3}, {2, 2}, {1, 1}, {1, 1}, true, true, 0},
     3,
     3,
     {-0.666667, 0.666667, 0.333333, 1, 0, -0.333333, 1.166667, 0, -0.833333}},
    {AVG, {{3, 3}, {2, 2}, {1, 1}, {1, 1}, true, false, 0}, 3, 3, {-1.5, 1, 0.75, 1.5, 0, -0.5, 3.5, 0, -2.5}},
    {AVG,
     {{2, 2}, {1, 1}, {0, 0}, {1, 1}, false, true, 3},
     3,
     4,
     {-2, -1, 3.666667, 1, 0.666667, -0.666667, 0, 0.666667, 3.333333, 1.666667, -1.666667, -1.333333}},
    {AVG, {{3, 3}, {2, 2}, {1, 1}, {1, 1}, true, true, 5}, 3, 3, {-1.2, 1.2, 0.6, 1.8, 0, -0.6, 1.4, 0, -1}},
    {.kind = ADAPTIVE, .out_h = 1, .out_w = 1, .out = {0.25}},
    {.kind = ADAPTIVE, .out_h = 3, .out_w = 2, .out = {-0.666667, 0.833333, 0, 0, 1.666667, -0.666667}},
    {.kind = ADAPTIVE, .out_h = 6, .out_w = 7, .out = {-4,   -2.5, 0.5, 2,   3.5,  1,  -3,   -0.5, -1.5, -0.75, 1,
                                                       2.75, 0.75, -3,  3,   -0.5, -2, 0,    2,    0.5,  -3,    -1,
                                                       1.5,  1,    -2,  -2,  0.5,  3,  2.5,  2.5,  1.25, 0,     -1.25,
                                                       -1,   0.5,  6,   3.5, 1.5,  2,  -0.5, -2.5, -2}},
};

static pool_run *run_of(const struct kernels *table, enum kind kind)
{
    return kind == MAX ? table->max_pool : kind == AVG ? table->avg_pool : table->adaptive_avg_pool;
}

/* Every channel and image holds the same picture times a small number of its own. */
static float factor(int n, int c)
{
    return (float)(1 + (n * 2 + c) % 4);
}

static void test_known_values(void **state)
{
    const struct kernels *table = table_or_skip(state);
    static const int channel_counts[] = {1, 3, 16, 17, 64, 65};

    for (size_t k = 0; k < sizeof known_values / sizeof *known_values; k++)
        for (size_t i = 0; i < sizeof channel_counts / sizeof *channel_counts; i++) {
            const struct known *known = &known_values[k];
            const int channels = channel_counts[i], pixels = HEIGHT * WIDTH, outputs = known->out_h * known->out_w;
            const struct pool pool = {.params = known->kind == ADAPTIVE ? NULL : &known->params,
                                      .n = IMAGES,
                                      .channels = channels,
                                      .in_h = HEIGHT,
                                      .in_w = WIDTH,
                                      .out_h = known->out_h,
                                      .out_w = known->out_w};
            float input[IMAGES * HEIGHT * WIDTH * 65], output[IMAGES * 42 * 65];
            for (int j = 0; j < IMAGES * pixels * channels; j++)
                input[j] = image[j / channels % pixels] * factor(j / (channels * pixels), j % channels);
            run_pool(table, run_of(table, known->kind), pool, input, output);
            for (int j = 0; j < IMAGES * outputs * channels; j++) {
                const double scale = (double)factor(j / (channels * outputs), j % channels);
                const double expected = known->out[j / channels % outputs] * scale;
                if (!(fabs((double)output[j] - expected) <= tolerance(table) * fabs(expected) + 4e-6))
                    fail_msg("%s, case %zu, %d channels: element %d is %g, not %g", table->name, k, channels, j,
                             (double)output[j], expected);
            }
        }
}

/* ---- the definition ---- */

/* One output of a window that begins at (y0, x0); taps outside the image do not count, or count as zero. */
static double window(const struct pool *pool, const float *input, enum kind kind, int n, int c, int y, int x)
{
    const struct pool_params *p = pool->params;
    const int y0 = y * p->stride[0] - p->padding[0], x0 = x * p->stride[1] - p->padding[1];
    double largest = -(double)INFINITY, sum = 0;
    int inside = 0, padded = 0;

    for (int ky = 0; ky < p->kernel[0]; ky++)
        for (int kx = 0; kx < p->kernel[1]; kx++) {
            const int in_y = y0 + ky * p->dilation[0], in_x = x0 + kx * p->dilation[1];
            padded += in_y < pool->in_h + p->padding[0] && in_x < pool->in_w + p->padding[1];
            if (in_y < 0 || in_x < 0 || in_y >= pool->in_h || in_x >= pool->in_w)
                continue;
            const double v = (double)input[((n * pool->in_h + in_y) * pool->in_w + in_x) * pool->channels + c];
            largest = v > largest ? v : largest;
            sum += v;
            inside++;
        }
    return kind == MAX ? largest
                       : sum / (p->divisor_override    ? p->divisor_override
                                : p->count_include_pad ? padded
                                                       : inside);
}

static double adaptive(const struct pool *pool, const float *input, int n, int c, int y, int x)
{
    const int y0 = y * pool->in_h / pool->out_h, x0 = x * pool->in_w / pool->out_w;
    double sum = 0;
    int count = 0;

    for (int in_y = y0; in_y * pool->out_h < (y + 1) * pool->in_h; in_y++)
        for (int in_x = x0; in_x * pool->out_w < (x + 1) * pool->in_w; in_x++, count++)
            sum += (double)input[((n * pool->in_h + in_y) * pool->in_w + in_x) * pool->channels + c];
    return sum / count;
}

static void compare(const struct kernels *table, enum kind kind, const struct pool *pool)
{
    const int inputs = pool->n * pool->in_h * pool->in_w * pool->channels;
    const int outputs = pool->n * pool->out_h * pool->out_w * pool->channels;
    float *input = malloc((size_t)inputs * sizeof *input), *output = malloc((size_t)outputs * sizeof *output);
    uint32_t seed = 3;

    assert_true(input && output);
    for (int i = 0; i < inputs; i++) {
        seed = seed * 1664525u + 1013904223u;
        input[i] = (float)((int)(seed >> 24) - 128); /* exact in bf16 */
    }
    run_pool(table, run_of(table, kind), *pool, input, output);
    for (int i = 0; i < outputs; i++) {
        const int c = i % pool->channels, x = i / pool->channels % pool->out_w;
        const int y = i / pool->channels / pool->out_w % pool->out_h,
                  n = i / pool->channels / pool->out_w / pool->out_h;
        const double expected =
            kind == ADAPTIVE ? adaptive(pool, input, n, c, y, x) : window(pool, input, kind, n, c, y, x);
        if (!((double)output[i] == expected || fabs((double)output[i] - expected) <= 128 * tolerance(table)))
            fail_msg("%s, kind %d, %dx%dx%dx%d -> %dx%d: element %d is %g, not %g", table->name, (int)kind, pool->n,
                     pool->in_h, pool->in_w, pool->channels, pool->out_h, pool->out_w, i, (double)output[i], expected);
    }
    free(output);
    free(input);
}

static int outputs_of(int in, const struct pool_params *p, int d)
{
    const int room =
        in + 2 * p->padding[d] - p->dilation[d] * (p->kernel[d] - 1) - 1 + (p->ceil_mode ? p->stride[d] - 1 : 0);
    int out = room < 0 ? 0 : room / p->stride[d] + 1;

    if (p->ceil_mode && (out - 1) * p->stride[d] >= in + p->padding[d])
        out--;
    return out;
}

static void test_definition(void **state)
{
    const struct kernels *table = table_or_skip(state);
    static const struct pool_params params[] = {
        {{3, 3}, {2, 2}, {1, 1}, {1, 1}, false, true, 0}, {{3, 3}, {2, 2}, {1, 1}, {1, 1}, true, true, 0},
        {{2, 2}, {2, 2}, {0, 0}, {1, 1}, true, false, 0}, {{3, 3}, {2, 2}, {1, 1}, {1, 1}, true, false, 0},
        {{2, 2}, {3, 3}, {1, 1}, {1, 1}, true, false, 0}, {{2, 3}, {1, 2}, {1, 0}, {1, 1}, false, false, 0},
        {{5, 1}, {1, 1}, {2, 0}, {1, 1}, false, true, 7}, {{3, 2}, {1, 1}, {1, 1}, {2, 3}, false, false, 0},
        {{7, 7}, {1, 1}, {0, 0}, {1, 1}, false, true, 0}, {{1, 1}, {2, 2}, {0, 0}, {1, 1}, false, true, 0},
    };
    static const int sizes[][2] = {{1, 1}, {1, 9}, {2, 2}, {3, 1}, {7, 7}, {8, 5}, {13, 21}};
    static const int bins[][2] = {{1, 1}, {2, 3}, {7, 7}, {9, 1}};
    static const int channel_counts[] = {1, 5, 17, 64, 67};

    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t c = 0; c < sizeof channel_counts / sizeof *channel_counts; c++) {
            struct pool pool = {
                .n = 1 + (int)c % 2, .channels = channel_counts[c], .in_h = sizes[s][0], .in_w = sizes[s][1]};
            for (size_t i = 0; i < sizeof params / sizeof *params; i++) {
                pool.params = &params[i];
                pool.out_h = outputs_of(pool.in_h, pool.params, 0);
                pool.out_w = outputs_of(pool.in_w, pool.params, 1);
                if (pool.out_h < 1 || pool.out_w < 1)
                    continue;
                compare(table, MAX, &pool);
                if (params[i].dilation[0] == 1 && params[i].dilation[1] == 1)
                    compare(table, AVG, &pool);
            }
            pool.params = NULL;
            for (size_t i = 0; i < sizeof bins / sizeof *bins; i++) {
                pool.out_h = bins[i][0];
                pool.out_w = bins[i][1];
                compare(table, ADAPTIVE, &pool);
            }
        }
}

static void test_bins_of_large_inputs(void **state)
{
    (void)state;
    assert_int_equal(adaptive_bin_begin(4095, 1 << 24, 4096), 4095 * 4096);
    assert_int_equal(adaptive_bin_end(4095, 1 << 24, 4096), 1 << 24);
    assert_int_equal(adaptive_bin_begin(0, 1, 4096), 0);
    assert_int_equal(adaptive_bin_end(4095, 1, 4096), 1);
}

int main(void)
{
    struct CMUnitTest tests[32] = {cmocka_unit_test(test_bins_of_large_inputs)};
    char names[32][64];
    size_t count = 1;

    for (size_t i = 0; kernels_all[i]; i++) {
        (void)snprintf(names[count], sizeof names[count], "%s: PyTorch's values", kernels_all[i]->name);
        tests[count] = (struct CMUnitTest){names[count], test_known_values, NULL, NULL, (void *)&kernels_all[i]};
        count++;
        (void)snprintf(names[count], sizeof names[count], "%s: the definition", kernels_all[i]->name);
        tests[count] = (struct CMUnitTest){names[count], test_definition, NULL, NULL, (void *)&kernels_all[i]};
        count++;
    }
    return _cmocka_run_group_tests("test_pool", tests, count, NULL, NULL);
}
