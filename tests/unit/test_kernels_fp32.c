/* test_kernels_fp32.c - the avx2 and avx512 tables against `ref`: odd channels, sizes, strides, paddings,
 * dilations and groups, any number of threads in the plan, and no byte written past outputs and scratch. */

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

#if defined(__x86_64__)

extern const struct kernels kernels_avx2, kernels_avx512;

/* Relative to the largest value of the output: sums of up to 4608 terms in another order, and Winograd's
 * transforms, stay well below. A wrong tap or tail is wrong by 1e-1. */
static const double tolerance = 2e-5;

enum { CANARY_BYTES = 256, CANARY = 0xa5 };

struct guarded {
    unsigned char *memory;
    size_t bytes;
};

/* `bytes` of uninitialised memory, aligned and followed by a canary. The contents are NaNs until written. */
static struct guarded guarded_alloc(size_t bytes)
{
    struct guarded g = {.bytes = bytes};
    g.memory = aligned_alloc(KERNEL_ALIGNMENT, size_round_up(bytes + CANARY_BYTES, KERNEL_ALIGNMENT));
    assert_non_null(g.memory);
    memset(g.memory, 0xff, bytes);
    memset(g.memory + bytes, CANARY, CANARY_BYTES);
    return g;
}

static void guarded_free(struct guarded *g)
{
    for (size_t i = 0; i < CANARY_BYTES; i++)
        assert_int_equal(g->memory[g->bytes + i], CANARY);
    free(g->memory);
}

static void fill(float *values, size_t count, uint32_t seed)
{
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)(seed >> 8) * (1.0f / 8388608.0f) - 1.0f;
    }
}

static const struct kernels *table_or_skip(void **state)
{
    const struct kernels *table = *(const struct kernels **)*state;
    char why[160] = "";
    if (!table->available(why, sizeof why)) {
        print_message("SKIPPED: table %s: %s\n", table->name, why);
        skip();
    }
    return table;
}

static void run_conv(const struct kernels *table, const struct conv *conv, const struct conv_geometry *g, int threads,
                     const float *input, const float *weight, const float *bias, const float *residual, float *output)
{
    const struct conv_kernel *kernel = kernels_conv(table, conv);
    const size_t bytes = (size_t)g->n * (size_t)g->out_h * (size_t)g->out_w * (size_t)conv->params.out * sizeof(float);
    struct conv_work work;
    kernel->plan(conv, g, threads, &work);
    assert_true(work.tasks >= 1);
    struct guarded packed = guarded_alloc(kernel->packed_bytes(conv));
    struct guarded scratch = guarded_alloc(work.scratch_bytes);
    struct guarded out = guarded_alloc(bytes);
    if (residual) /* in place, as the engine may do it */
        memcpy(out.memory, residual, bytes);
    kernel->pack(conv, weight, bias, packed.memory);
    const struct conv_buffers buffers = {
        .input = input, .packed = packed.memory, .residual = residual ? out.memory : NULL, .output = out.memory};
    for (int task = work.tasks - 1; task >= 0; task--) /* any order */
        kernel->run(conv, g, &work, &buffers, task, scratch.memory);
    memcpy(output, out.memory, bytes);
    guarded_free(&out);
    guarded_free(&scratch);
    guarded_free(&packed);
}

struct conv_case {
    int in, out, kernel[2], stride[2], padding[2], dilation[2], groups;
    int n, height, width;
    bool relu, residual;
};

static void check_case(const struct kernels *table, const struct conv_case *c, int threads)
{
    struct conv conv = {.relu = c->relu, .has_residual = c->residual};
    conv.params = (struct conv_params){.in = c->in, .out = c->out, .groups = c->groups};
    for (int d = 0; d < 2; d++) {
        conv.params.kernel[d] = c->kernel[d];
        conv.params.stride[d] = c->stride[d];
        conv.params.padding[d] = c->padding[d];
        conv.params.dilation[d] = c->dilation[d];
    }
    struct conv_geometry g = {.n = c->n, .in_h = c->height, .in_w = c->width};
    g.out_h = (c->height + 2 * c->padding[0] - c->dilation[0] * (c->kernel[0] - 1) - 1) / c->stride[0] + 1;
    g.out_w = (c->width + 2 * c->padding[1] - c->dilation[1] * (c->kernel[1] - 1) - 1) / c->stride[1] + 1;
    const size_t inputs = (size_t)c->n * (size_t)c->height * (size_t)c->width * (size_t)c->in;
    const size_t outputs = (size_t)c->n * (size_t)g.out_h * (size_t)g.out_w * (size_t)c->out;
    const size_t weights = (size_t)c->out * (size_t)(c->in / c->groups) * (size_t)c->kernel[0] * (size_t)c->kernel[1];
    float *input =
        aligned_alloc(KERNEL_ALIGNMENT, size_round_up(inputs * sizeof(float) + KERNEL_ALIGNMENT, KERNEL_ALIGNMENT));
    float *weight = malloc(weights * sizeof(float)), *bias = malloc((size_t)c->out * sizeof(float));
    float *residual = malloc(outputs * sizeof(float)), *expected = malloc(outputs * sizeof(float));
    float *actual = malloc(outputs * sizeof(float));
    assert_true(input && weight && bias && residual && expected && actual);
    fill(input, inputs, 1);
    memset(input + inputs, 0xff, KERNEL_ALIGNMENT); /* what may be read past the end must not matter */
    fill(weight, weights, 2);
    fill(bias, (size_t)c->out, 3);
    fill(residual, outputs, 4);
    run_conv(&kernels_ref, &conv, &g, 1, input, weight, bias, c->residual ? residual : NULL, expected);
    run_conv(table, &conv, &g, threads, input, weight, bias, c->residual ? residual : NULL, actual);
    double largest = 1e-6;
    for (size_t i = 0; i < outputs; i++)
        largest = fmax(largest, fabs((double)expected[i]));
    for (size_t i = 0; i < outputs; i++) {
        const double d = fabs((double)expected[i] - (double)actual[i]) / largest;
        if (!(d <= tolerance))
            fail_msg(
                "%s: %d -> %d channels, kernel %dx%d, stride %d, padding %d, dilation %d, groups %d, input %dx%dx%d, "
                "%d threads: element %zu is %g, not %g",
                kernels_conv(table, &conv)->name, c->in, c->out, c->kernel[0], c->kernel[1], c->stride[0],
                c->padding[0], c->dilation[0], c->groups, c->n, c->height, c->width, threads, i, (double)actual[i],
                (double)expected[i]);
    }
    free(actual);
    free(expected);
    free(residual);
    free(bias);
    free(weight);
    free(input);
}

static const int odd_channels[] = {1, 3, 5, 8, 16, 17, 31, 33, 64, 65};
static const int odd_sizes[][2] = {{1, 1}, {1, 2}, {2, 1}, {3, 5}, {4, 4}, {7, 7}, {9, 6}, {13, 17}};

enum { CHANNEL_COUNT = sizeof odd_channels / sizeof *odd_channels, SIZE_COUNT = sizeof odd_sizes / sizeof *odd_sizes };

/* Every pair of channels at every size for one square kernel. */
static void check_grid(const struct kernels *table, int kernel, int stride, int padding, int dilation)
{
    for (int i = 0; i < CHANNEL_COUNT; i++) {
        for (int o = 0; o < CHANNEL_COUNT; o++) {
            for (int s = 0; s < SIZE_COUNT; s++) {
                const int reach = dilation * (kernel - 1) + 1;
                if (odd_sizes[s][0] + 2 * padding < reach || odd_sizes[s][1] + 2 * padding < reach)
                    continue;
                const struct conv_case c = {odd_channels[i],
                                            odd_channels[o],
                                            {kernel, kernel},
                                            {stride, stride},
                                            {padding, padding},
                                            {dilation, dilation},
                                            1,
                                            1 + (s + i) % 2,
                                            odd_sizes[s][0],
                                            odd_sizes[s][1],
                                            (i + o + s) % 2 == 0,
                                            (i + s) % 3 == 0};
                check_case(table, &c, 1 + (i + o) % 3);
            }
        }
    }
}

static void test_pointwise(void **state)
{
    const struct kernels *table = table_or_skip(state);
    check_grid(table, 1, 1, 0, 1);
    check_grid(table, 1, 2, 0, 1);
    check_grid(table, 1, 1, 1, 1); /* padding around a 1x1: a border of bias */
}

static void test_3x3(void **state)
{
    const struct kernels *table = table_or_skip(state);
    check_grid(table, 3, 1, 1, 1);
    check_grid(table, 3, 1, 0, 1);
    check_grid(table, 3, 1, 2, 1);
    check_grid(table, 3, 2, 1, 1);
    check_grid(table, 3, 1, 2, 2);
}

static void test_large_kernels(void **state)
{
    const struct kernels *table = table_or_skip(state);
    check_grid(table, 7, 2, 3, 1);
    check_grid(table, 5, 1, 2, 1);
    check_grid(table, 2, 3, 1, 1);
    check_grid(table, 11, 4, 5, 1);
}

/* What the grids leave out: rectangles, groups, depthwise, and the networks' own shapes. */
static const struct conv_case single_cases[] = {
    {3, 20, {1, 7}, {1, 2}, {0, 3}, {1, 1}, 1, 1, 5, 9, true, false},
    {20, 33, {7, 1}, {2, 1}, {3, 0}, {1, 1}, 1, 2, 9, 5, false, true},
    {16, 18, {3, 2}, {1, 1}, {0, 1}, {2, 3}, 1, 1, 11, 8, true, true},
    {2, 7, {3, 5}, {2, 1}, {1, 4}, {3, 1}, 1, 2, 10, 3, true, false},
    {24, 36, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 4, 1, 6, 7, true, false},
    {34, 34, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 34, 1, 5, 5, false, false},
    {64, 128, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 32, 2, 7, 6, true, true},
    {4, 4, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 2, 1, 1, 1, false, false},
    {3, 64, {7, 7}, {2, 2}, {3, 3}, {1, 1}, 1, 1, 61, 67, true, false},
    {3, 64, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 2, 23, 30, true, false},
    {64, 64, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 1, 56, 56, true, false},
    {64, 256, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1, 1, 56, 56, true, true},
    {256, 512, {1, 1}, {2, 2}, {0, 0}, {1, 1}, 1, 1, 55, 57, false, false},
    {128, 128, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1, 1, 56, 55, true, false},
    {128, 128, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 2, 28, 27, true, true},
    {256, 256, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 1, 14, 14, true, false},
    {256, 256, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 1, 24, 32, true, false},
    {512, 512, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 1, 7, 7, true, false},
    {512, 512, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 1, 19, 14, true, true},
    {128, 131, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 1, 1, 1, true, false},
    {129, 140, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 2, 5, 7, true, true},
    {144, 128, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 1, 14, 13, false, false},
    {128, 150, {3, 3}, {1, 1}, {2, 0}, {1, 1}, 1, 1, 6, 11, true, true},
    {512, 513, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 1, 1, 2, true, false},
    {520, 512, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1, 2, 3, 10, false, true},
    {512, 2048, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1, 1, 7, 7, true, true},
    {2048, 512, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1, 1, 7, 7, true, false},
    {2048, 1000, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1, 1, 1, 1, false, false},
    {2048, 1000, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1, 9, 1, 1, false, false},
    {48, 80, {12, 12}, {1, 1}, {0, 0}, {1, 1}, 1, 1, 12, 13, true, false},
};

static void test_single_cases(void **state)
{
    const struct kernels *table = table_or_skip(state);
    for (size_t i = 0; i < sizeof single_cases / sizeof *single_cases; i++)
        for (int threads = 1; threads <= 5; threads += 2)
            check_case(table, &single_cases[i], threads);
}

static void check_pool(const struct kernels *table, struct pool pool)
{
    static void (*const ref[])(const struct pool *, int) = {pool_max_f32, pool_avg_f32, pool_adaptive_avg_f32};
    void (*const run[])(const struct pool *, int) = {table->max_pool, table->avg_pool, table->adaptive_avg_pool};
    const size_t inputs = (size_t)pool.n * (size_t)pool.in_h * (size_t)pool.in_w * (size_t)pool.channels;
    const size_t outputs = (size_t)pool.n * (size_t)pool.out_h * (size_t)pool.out_w * (size_t)pool.channels;
    float *input = malloc(inputs * sizeof(float) + KERNEL_ALIGNMENT);
    assert_non_null(input);
    fill(input, inputs, 7);
    memset(input + inputs, 0xff, KERNEL_ALIGNMENT);
    pool.input = input;
    for (int kind = pool.params ? 0 : 2; kind < (pool.params ? 2 : 3); kind++) {
        struct guarded expected = guarded_alloc(outputs * sizeof(float)),
                       actual = guarded_alloc(outputs * sizeof(float));
        for (int task = 0; task < pool.n * pool.out_h; task++) {
            pool.output = expected.memory;
            ref[kind](&pool, task);
            pool.output = actual.memory;
            run[kind](&pool, task);
        }
        for (size_t i = 0; i < outputs; i++) {
            const double want = (double)((float *)expected.memory)[i], got = (double)((float *)actual.memory)[i];
            if (!(fabs(want - got) <= 1e-6))
                fail_msg("pool %d, %d channels, %dx%d -> %dx%d: element %zu is %g, not %g", kind, pool.channels,
                         pool.in_h, pool.in_w, pool.out_h, pool.out_w, i, got, want);
        }
        guarded_free(&actual);
        guarded_free(&expected);
    }
    free(input);
}

static void test_pools(void **state)
{
    const struct kernels *table = table_or_skip(state);
    static const struct pool_params params[] = {
        {.kernel = {3, 3}, .stride = {2, 2}, .padding = {1, 1}, .dilation = {1, 1}, .count_include_pad = true},
        {.kernel = {2, 2}, .stride = {2, 2}, .dilation = {1, 1}},
        {.kernel = {3, 2}, .stride = {1, 3}, .padding = {1, 0}, .dilation = {1, 1}},
        {.kernel = {2, 2}, .stride = {1, 1}, .dilation = {1, 1}, .divisor_override = 3},
    };
    for (int c = 0; c < CHANNEL_COUNT; c++) {
        for (int s = 0; s < SIZE_COUNT; s++) {
            struct pool pool = {
                .n = 1 + c % 2, .channels = odd_channels[c], .in_h = odd_sizes[s][0], .in_w = odd_sizes[s][1]};
            for (size_t i = 0; i < sizeof params / sizeof *params; i++) {
                pool.params = &params[i];
                pool.out_h = (pool.in_h + 2 * params[i].padding[0] - params[i].kernel[0]) / params[i].stride[0] + 1;
                pool.out_w = (pool.in_w + 2 * params[i].padding[1] - params[i].kernel[1]) / params[i].stride[1] + 1;
                if (pool.in_h + 2 * params[i].padding[0] >= params[i].kernel[0] &&
                    pool.in_w + 2 * params[i].padding[1] >= params[i].kernel[1])
                    check_pool(table, pool);
            }
            pool.params = NULL;
            for (int out = 1; out <= 7; out += 3) {
                pool.out_h = out;
                pool.out_w = out + 1;
                check_pool(table, pool);
            }
            pool.out_h = pool.out_w = 1;
            check_pool(table, pool);
        }
    }
}

static void test_self_check(void **state)
{
    const struct kernels *table = table_or_skip(state);
    struct rn_error error;
    if (kernels_check(table, &error))
        fail_msg("%s", error.text);
}

static const struct kernels *tables[] = {&kernels_avx2, &kernels_avx512};

#define TABLE_TESTS(table)                                                                                             \
    {#table ": pointwise", test_pointwise, NULL, NULL, &tables[table]},                                                \
        {#table ": 3x3", test_3x3, NULL, NULL, &tables[table]},                                                        \
        {#table ": large kernels", test_large_kernels, NULL, NULL, &tables[table]},                                    \
        {#table ": single cases", test_single_cases, NULL, NULL, &tables[table]},                                      \
        {#table ": pools", test_pools, NULL, NULL, &tables[table]},                                                    \
    {                                                                                                                  \
#table ": self-check", test_self_check, NULL, NULL, &tables[table]                                             \
    }

#endif

int main(void)
{
#if defined(__x86_64__)
    enum { avx2, avx512 };
    const struct CMUnitTest tests[] = {TABLE_TESTS(avx2), TABLE_TESTS(avx512)};
    return cmocka_run_group_tests(tests, NULL, NULL);
#else
    printf("SKIPPED: the avx2 and avx512 tables are for x86-64\n");
    return 0;
#endif
}
