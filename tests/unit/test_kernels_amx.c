/* test_kernels_amx.c - the bf16 table against `ref` on the same rounded inputs and weights: odd shapes, every way
 * in which the convolution reads its input, NaNs around and canaries behind every buffer. */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../model/bf16.h"
#include "../../model/kernels.h"
#include "../../model/sizes.h"

#if defined(__x86_64__)
extern const struct kernels kernels_amx;
static const struct kernels *const table = &kernels_amx;
#else
static const struct kernels *const table = NULL;
#endif

/* With equal factors only two things differ: the order of float32 sums, and one rounding to 8 bits. */
static const double SUM_TOLERANCE = 2e-6;      /* of the largest sum of magnitudes */
static const double ROUND_TOLERANCE = 0.00391; /* 2^-8: half a unit in the last place, and a tie turned over */

enum { CANARY_BYTES = 256, CANARY = 0xa5, NAN_BYTE = 0xff };

static bool absent;

static int set_up(void **state)
{
    char why[200] = "not an x86-64 machine";
    (void)state;
    absent = !table || !table->available(why, sizeof why);
    if (absent)
        print_message("SKIPPING EVERY AMX TEST: %s\n", why);
    return 0;
}

static uint32_t seed = 1;

static float next_value(void)
{
    seed = seed * 1664525u + 1013904223u;
    return bf16_to_f32(bf16_from_f32((float)(seed >> 8) * (1.0f / 8388608.0f) - 1.0f));
}

static float *values(size_t count)
{
    float *v = malloc((count + 1) * sizeof *v);
    assert_non_null(v);
    for (size_t i = 0; i < count; i++)
        v[i] = next_value();
    return v;
}

/* A 64-byte aligned buffer of `bytes`, with `byte` in it and around it. */
static uint8_t *buffer(size_t bytes, int byte)
{
    uint8_t *b = aligned_alloc(64, size_round_up(bytes + 2 * CANARY_BYTES, 64));
    assert_non_null(b);
    memset(b, byte, size_round_up(bytes + 2 * CANARY_BYTES, 64));
    return b + CANARY_BYTES;
}

static void release(uint8_t *b)
{
    free(b - CANARY_BYTES);
}

static void check_canaries(const uint8_t *b, size_t bytes, int byte)
{
    for (int i = 0; i < CANARY_BYTES; i++) {
        assert_int_equal(b[-1 - i], byte);
        assert_int_equal(b[bytes + (size_t)i], byte);
    }
}

static uint8_t *to_bf16(const float *v, int channels, size_t pixels)
{
    uint8_t *b = buffer(activation_elements(table, (size_t)channels, pixels) * sizeof(bf16), NAN_BYTE);
    activation_from_f32(table, v, b, (size_t)channels, pixels, 0, pixels);
    return b;
}

/* An output as float32 NHWC, and nothing written in it that is not an element. */
static float *to_floats(const uint8_t *out, int channels, size_t pixels, bool f32)
{
    const size_t count = (size_t)channels * pixels;
    const size_t bytes = activation_elements(table, (size_t)channels, pixels) * sizeof(bf16);
    float *v = malloc((count + 1) * sizeof *v);
    uint8_t *written;

    assert_non_null(v);
    if (f32) {
        memcpy(v, out, count * sizeof *v);
        return v;
    }
    activation_to_f32(table, out, v, (size_t)channels, pixels, 0, pixels);
    written = buffer(bytes, CANARY);
    activation_from_f32(table, v, written, (size_t)channels, pixels, 0, pixels);
    assert_memory_equal(out, written, bytes);
    release(written);
    return v;
}

static void run_ref(const struct conv *conv, const struct conv_geometry *g, const float *input, const float *weight,
                    const float *bias, const float *residual, float *output)
{
    const struct conv_kernel *kernel = kernels_conv(&kernels_ref, conv);
    struct conv_work work;
    kernel->plan(conv, g, 1, &work);
    void *packed = malloc(kernel->packed_bytes(conv)), *scratch = malloc(work.scratch_bytes + 1);
    assert_true(packed && scratch);
    kernel->pack(conv, weight, bias, packed);
    const struct conv_buffers b = {.input = input, .packed = packed, .residual = residual, .output = output};
    for (int task = 0; task < work.tasks; task++)
        kernel->run(conv, g, &work, &b, task, scratch);
    free(scratch);
    free(packed);
}

static int out_size(const struct conv_params *p, int dimension, int in)
{
    return (in + 2 * p->padding[dimension] - p->dilation[dimension] * (p->kernel[dimension] - 1) - 1) /
               p->stride[dimension] +
           1;
}

/* residual += what the branch gives. */
static void add_branch(const struct conv *conv, const struct conv_geometry *g, const float *input, const float *weight,
                       float *residual)
{
    const struct conv branch = {.params = conv->branch};
    const struct conv_geometry geometry = {
        .n = g->n, .in_h = g->branch_h, .in_w = g->branch_w, .out_h = g->out_h, .out_w = g->out_w};
    const size_t outputs = (size_t)g->n * (size_t)g->out_h * (size_t)g->out_w * (size_t)conv->params.out;
    float *zeros = calloc((size_t)conv->params.out, sizeof *zeros), *sums = malloc(outputs * sizeof *sums);
    assert_true(zeros && sums);
    run_ref(&branch, &geometry, input, weight, zeros, NULL, sums);
    for (size_t i = 0; i < outputs; i++)
        residual[i] = (conv->has_residual ? residual[i] : 0.0f) + sums[i];
    free(sums);
    free(zeros);
}

/* The largest input that a 1x1 convolution of this stride turns into `out`. */
static int branch_size(int out, int stride)
{
    return (out - 1) * stride + stride;
}

/* One convolution at one size through both tables, for several numbers of threads. */
static void compare(const struct conv *conv, int n, int height, int width)
{
    const struct conv_params *p = &conv->params, *branch = &conv->branch;
    const int out_h = out_size(p, 0, height), out_w = out_size(p, 1, width);
    const struct conv_geometry g = {.n = n,
                                    .in_h = height,
                                    .in_w = width,
                                    .out_h = out_h,
                                    .out_w = out_w,
                                    .branch_h = branch_size(out_h, branch->stride[0]),
                                    .branch_w = branch_size(out_w, branch->stride[1])};
    const size_t branch_pixels = (size_t)n * (size_t)g.branch_h * (size_t)g.branch_w;
    const size_t in_pixels = (size_t)n * (size_t)height * (size_t)width, inputs = in_pixels * (size_t)p->in;
    const size_t out_pixels = (size_t)n * (size_t)g.out_h * (size_t)g.out_w, outputs = out_pixels * (size_t)p->out;
    const size_t weights = (size_t)p->out * (size_t)(p->in / p->groups) * (size_t)(p->kernel[0] * p->kernel[1]);
    const size_t out_bytes = conv->output_f32 ? outputs * sizeof(float)
                                              : activation_elements(table, (size_t)p->out, out_pixels) * sizeof(bf16);
    const struct conv_kernel *kernel = kernels_conv(table, conv);
    float *input = values(inputs), *bias = values((size_t)p->out),
          *branch_input = values(branch_pixels * (size_t)branch->in);
    float *weight = values(weights + (size_t)p->out * (size_t)branch->in);
    float *residual = values(outputs), *own_residual = values(outputs), *expected = values(outputs);
    uint8_t *in = to_bf16(input, p->in, in_pixels), *other = to_bf16(residual, p->out, out_pixels);
    uint8_t *packed = buffer(kernel->packed_bytes(conv), CANARY);
    uint8_t *branch_in = to_bf16(branch_input, branch->in, branch_pixels);
    struct conv plain = *conv;

    memcpy(own_residual, residual, outputs * sizeof *residual);
    if (conv->has_branch) {
        add_branch(conv, &g, branch_input, weight + weights, residual);
        plain.has_branch = false;
        plain.has_residual = true;
    }
    run_ref(&plain, &g, input, weight, bias, plain.has_residual ? residual : NULL, expected);
    kernel->pack(conv, weight, bias, packed);
    check_canaries(packed, kernel->packed_bytes(conv), CANARY);
    for (int threads = 1; threads <= 5; threads++) {
        const bool alias = conv->has_residual && threads % 2 == 0;
        struct conv_work work;
        kernel->plan(conv, &g, threads, &work);
        assert_true(work.tasks >= 1);
        uint8_t *scratch = buffer(work.scratch_bytes, NAN_BYTE);
        uint8_t *out = buffer(out_bytes, CANARY);
        if (alias)
            activation_from_f32(table, own_residual, out, (size_t)p->out, out_pixels, 0, out_pixels);
        const struct conv_buffers b = {.input = in,
                                       .packed = packed,
                                       .output = out,
                                       .branch = conv->has_branch ? branch_in : NULL,
                                       .residual = !conv->has_residual ? NULL
                                                   : alias             ? out
                                                                       : other};
        for (int task = work.tasks; task-- > 0;)
            kernel->run(conv, &g, &work, &b, task, scratch);
        check_canaries(out, out_bytes, CANARY);
        check_canaries(scratch, work.scratch_bytes, NAN_BYTE);
        float *actual = to_floats(out, p->out, out_pixels, conv->output_f32);
        const double sums = SUM_TOLERANCE * (double)(weights / (size_t)p->out + (size_t)branch->in);
        for (size_t i = 0; i < outputs; i++) {
            const double e = (double)expected[i], a = (double)actual[i];
            const double allowed = sums + (conv->output_f32 ? 0 : ROUND_TOLERANCE * fabs(e));
            if (!(fabs(e - a) <= allowed))
                fail_msg("%s: %d -> %d, kernel %dx%d stride %d, %dx%dx%d, %d threads, element %zu: %g, not %g",
                         kernel->name, p->in, p->out, p->kernel[0], p->kernel[1], p->stride[0], n, height, width,
                         threads, i, a, e);
        }
        free(actual);
        release(out);
        release(scratch);
    }
    release(branch_in);
    release(packed);
    release(other);
    release(in);
    free(branch_input);
    free(expected);
    free(own_residual);
    free(residual);
    free(bias);
    free(weight);
    free(input);
}

static struct conv conv_of(int in, int out, int kernel, int stride, int padding)
{
    return (struct conv){.params = {in, out, {kernel, kernel}, {stride, stride}, {padding, padding}, {1, 1}, 1}};
}

static void test_pointwise(void **state)
{
    static const int channels[][2] = {{32, 32}, {64, 256}, {256, 64}, {64, 1},    {96, 33},   {512, 70},
                                      {33, 64}, {1, 1},    {31, 95},  {2048, 40}, {1024, 512}};
    static const int sizes[][3] = {{1, 1, 1},  {1, 7, 7},   {3, 5, 3}, {1, 14, 14},
                                   {1, 33, 1}, {2, 13, 29}, {1, 8, 8}, {2, 9, 7}};
    (void)state;
    if (absent)
        skip();
    for (size_t c = 0; c < sizeof channels / sizeof *channels; c++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            struct conv conv = conv_of(channels[c][0], channels[c][1], 1, 1, 0);
            compare(&conv, sizes[s][0], sizes[s][1], sizes[s][2]);
            conv.relu = true;
            conv.has_residual = true;
            compare(&conv, sizes[s][0], sizes[s][1], sizes[s][2]);
        }
}

static void test_strided_pointwise(void **state)
{
    (void)state;
    if (absent)
        skip();
    for (int size = 1; size <= 29; size += 4) {
        const struct conv conv = conv_of(64, 96, 1, 2, 0), odd = conv_of(37, 40, 1, 3, 0);
        compare(&conv, 2, size, 15);
        compare(&odd, 1, 15, size);
    }
}

static void test_3x3(void **state)
{
    static const int channels[][2] = {{64, 64}, {128, 32}, {32, 33}, {19, 37}, {8, 8}, {512, 64}, {16, 100}};
    static const int sizes[][3] = {{1, 1, 1},  {1, 7, 7},   {2, 3, 5}, {1, 14, 14},
                                   {1, 2, 57}, {1, 31, 30}, {3, 8, 1}, {2, 8, 16}};
    (void)state;
    if (absent)
        skip();
    for (size_t c = 0; c < sizeof channels / sizeof *channels; c++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (int stride = 1; stride <= 2; stride++) {
                struct conv conv = conv_of(channels[c][0], channels[c][1], 3, stride, 1);
                conv.relu = stride == 1;
                conv.has_residual = s % 2 == 0;
                compare(&conv, sizes[s][0], sizes[s][1], sizes[s][2]);
            }
}

/* Weights large enough to be packed in 12 bits, by one pixel tile to many, with tails in channels and pixels. */
static void test_large_weights(void **state)
{
    static const struct {
        int in, out, kernel, stride;
    } cases[] = {{512, 256, 3, 1}, {320, 310, 3, 2}, {513, 190, 3, 1}, {129, 260, 5, 3}};
    static const int sizes[][3] = {{1, 1, 1}, {1, 7, 7}, {1, 12, 9}, {2, 5, 8}};
    (void)state;
    if (absent)
        skip();
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            struct conv conv =
                conv_of(cases[c].in, cases[c].out, cases[c].kernel, cases[c].stride, cases[c].kernel / 2);
            conv.relu = s % 2 == 0;
            conv.has_residual = (c + s) % 2 == 0;
            conv.output_f32 = !conv.has_residual && c == 3;
            compare(&conv, sizes[s][0], sizes[s][1], sizes[s][2]);
        }
    struct conv joined = conv_of(512, 192, 3, 1, 1);
    joined.relu = true;
    joined.has_branch = true;
    joined.branch = (struct conv_params){256, 192, {1, 1}, {2, 2}, {0, 0}, {1, 1}, 1};
    compare(&joined, 1, 7, 7);
    compare(&joined, 2, 9, 10);
}

/* The stems of the families, one to a few input channels, and shapes that no network has. */
static void test_odd_kernels(void **state)
{
    static const struct conv convs[] = {
        {.params = {3, 64, {7, 7}, {2, 2}, {3, 3}, {1, 1}, 1}, .relu = true},
        {.params = {1, 6, {5, 5}, {1, 1}, {2, 2}, {1, 1}, 1}},
        {.params = {6, 16, {5, 5}, {1, 1}, {0, 0}, {1, 1}, 1}, .relu = true},
        {.params = {3, 96, {11, 11}, {4, 4}, {1, 1}, {1, 1}, 1}, .relu = true},
        {.params = {3, 64, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, .relu = true, .output_f32 = true},
        {.params = {40, 24, {3, 3}, {1, 1}, {2, 2}, {2, 2}, 1}, .has_residual = true},
        {.params = {40, 24, {3, 3}, {2, 2}, {3, 3}, {3, 3}, 1}},
        {.params = {32, 40, {1, 7}, {1, 2}, {0, 3}, {1, 1}, 1}, .relu = true},
        {.params = {32, 40, {5, 2}, {3, 1}, {2, 1}, {1, 2}, 1}, .output_f32 = true},
        {.params = {5, 40, {2, 4}, {2, 3}, {1, 2}, {3, 1}, 1}, .has_residual = true},
        {.params = {64, 64, {1, 1}, {1, 1}, {1, 1}, {1, 1}, 1}},
        {.params = {48, 64, {6, 6}, {5, 5}, {1, 1}, {1, 1}, 1}, .output_f32 = true},
    };
    (void)state;
    if (absent)
        skip();
    for (size_t i = 0; i < sizeof convs / sizeof *convs; i++) {
        compare(&convs[i], 1, 29, 31);
        compare(&convs[i], 2, 10, 12);
        compare(&convs[i], 1, 11, 67);
    }
}

/* The last convolution of a block with its downsample: every way to read the first by every way to read the second,
 * tails in both. */
static void test_branch(void **state)
{
    static const struct {
        int in, out, kernel, stride, branch_in, branch_stride;
    } cases[] = {{64, 256, 1, 1, 64, 1},   {128, 512, 1, 1, 256, 2}, {64, 64, 3, 1, 32, 2}, {512, 96, 3, 1, 256, 2},
                 {1024, 70, 1, 1, 512, 2}, {32, 33, 1, 1, 37, 1},    {40, 64, 1, 1, 64, 3}, {64, 40, 3, 2, 96, 1}};
    (void)state;
    if (absent)
        skip();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct conv conv = conv_of(cases[i].in, cases[i].out, cases[i].kernel, cases[i].stride, cases[i].kernel / 2);
        const int stride = cases[i].branch_stride;
        conv.has_branch = true;
        conv.branch =
            (struct conv_params){cases[i].branch_in, cases[i].out, {1, 1}, {stride, stride}, {0, 0}, {1, 1}, 1};
        for (int variant = 0; variant < 4; variant++) {
            conv.relu = variant == 1;
            conv.has_residual = variant == 2;
            conv.output_f32 = variant == 3;
            compare(&conv, 1, 14, 14);
            compare(&conv, 3, 5, 1);
            compare(&conv, 2, 1, 29);
            compare(&conv, 1, 31, 27);
        }
    }
    /* Few input channels have no form for it, and the last table says so. */
    struct conv stem = conv_of(3, 64, 7, 2, 3);
    stem.has_branch = true;
    stem.branch = (struct conv_params){3, 64, {1, 1}, {2, 2}, {0, 0}, {1, 1}, 1};
    assert_null(kernels_conv(table, &stem));
}

static void test_grouped(void **state)
{
    static const struct conv convs[] = {
        {.params = {32, 32, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 4}, .relu = true, .has_residual = true},
        {.params = {20, 40, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 20}},
        {.params = {12, 18, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 6}, .output_f32 = true},
    };
    (void)state;
    if (absent)
        skip();
    for (size_t i = 0; i < sizeof convs / sizeof *convs; i++)
        compare(&convs[i], 2, 9, 7);
}

/* Linear with float32 output, as the last layer of a network. */
static void test_linear(void **state)
{
    struct conv conv = conv_of(2048, 1000, 1, 1, 0);
    (void)state;
    if (absent)
        skip();
    conv.output_f32 = true;
    compare(&conv, 1, 1, 1);
    compare(&conv, 8, 1, 1);
    conv.relu = true;
    compare(&conv, 17, 1, 1);

    conv.linear = true; /* its weights are packed in 12 bits */
    compare(&conv, 1, 1, 1);
    compare(&conv, 17, 1, 1);
    compare(&conv, 70, 1, 1);
    conv.output_f32 = false;
    conv.has_residual = true;
    compare(&conv, 3, 1, 1);
}

/* Large enough to be cut into strips. */
static void test_strips(void **state)
{
    const struct conv conv = conv_of(64, 64, 3, 1, 1), strided = conv_of(128, 32, 3, 2, 1),
                      pointwise = conv_of(256, 64, 1, 1, 0), stem = conv_of(3, 64, 7, 2, 3);
    (void)state;
    if (absent)
        skip();
    compare(&conv, 1, 75, 81);
    compare(&strided, 2, 60, 70);
    compare(&pointwise, 1, 61, 59);
    compare(&stem, 1, 225, 223);
}

static void compare_pool(void (*ref)(const struct pool *, int), void (*run)(const struct pool *, int), struct pool pool)
{
    const size_t in_pixels = (size_t)pool.n * (size_t)pool.in_h * (size_t)pool.in_w;
    const size_t out_pixels = (size_t)pool.n * (size_t)pool.out_h * (size_t)pool.out_w;
    const size_t outputs = out_pixels * (size_t)pool.channels;
    const size_t out_bytes = activation_elements(table, (size_t)pool.channels, out_pixels) * sizeof(bf16);
    float *input = values(in_pixels * (size_t)pool.channels), *expected = values(outputs), *actual;
    uint8_t *in = to_bf16(input, pool.channels, in_pixels), *out = buffer(out_bytes, CANARY);

    for (int task = 0; task < pool.n * pool.out_h; task++) {
        pool.input = input;
        pool.output = expected;
        ref(&pool, task);
        pool.input = in;
        pool.output = out;
        run(&pool, task);
    }
    check_canaries(out, out_bytes, CANARY);
    actual = to_floats(out, pool.channels, out_pixels, false);
    for (size_t i = 0; i < outputs; i++) {
        const double e = (double)expected[i], a = (double)actual[i];
        assert_true(fabs(e - a) <= 1e-6 + ROUND_TOLERANCE * fabs(e));
    }
    release(out);
    release(in);
    free(actual);
    free(expected);
    free(input);
}

static void test_pools(void **state)
{
    static const struct pool_params params[] = {
        {{3, 3}, {2, 2}, {1, 1}, {1, 1}, false, true, 0},
        {{2, 2}, {2, 2}, {0, 0}, {1, 1}, false, false, 0},
        {{3, 2}, {1, 3}, {1, 0}, {1, 1}, false, false, 5},
    };
    static const int channels[] = {1, 15, 16, 33, 64, 100};
    (void)state;
    if (absent)
        skip();
    for (size_t c = 0; c < sizeof channels / sizeof *channels; c++) {
        for (size_t i = 0; i < sizeof params / sizeof *params; i++) {
            const struct pool_params *p = &params[i];
            const struct pool pool = {.params = p,
                                      .n = 2,
                                      .channels = channels[c],
                                      .in_h = 11,
                                      .in_w = 8,
                                      .out_h = (11 + 2 * p->padding[0] - p->kernel[0]) / p->stride[0] + 1,
                                      .out_w = (8 + 2 * p->padding[1] - p->kernel[1]) / p->stride[1] + 1};
            compare_pool(kernels_ref.max_pool, table->max_pool, pool);
            compare_pool(kernels_ref.avg_pool, table->avg_pool, pool);
        }
        const struct pool adaptive = {.n = 2, .channels = channels[c], .in_h = 9, .in_w = 7, .out_h = 4, .out_w = 1};
        compare_pool(kernels_ref.adaptive_avg_pool, table->adaptive_avg_pool, adaptive);
    }
}

static void test_conversion(void **state)
{
    static const float special[] = {0.0f,          -0.0f,   1.0f,     -1.0f,     1.00390625f,    1.01171875f,
                                    3.3895314e38f, 3.4e38f, INFINITY, -INFINITY, 1.1754944e-38f, 123.456f};
    (void)state;
    assert_int_equal(bf16_from_f32(1.00390625f), 0x3f80); /* a tie goes to even, down */
    assert_int_equal(bf16_from_f32(1.01171875f), 0x3f82); /* and up */
    assert_int_equal(bf16_from_f32(3.4e38f), 0x7f80);
    assert_true(isnan(bf16_to_f32(bf16_from_f32(NAN))));
    if (absent)
        skip();
    for (size_t count = 0; count < 70; count++) {
        float *in = values(count), *back = malloc((count + 1) * sizeof *back);
        uint8_t *out = buffer(count * sizeof(bf16), CANARY);
        assert_non_null(back);
        for (size_t i = 0; i < count; i++)
            in[i] = i < sizeof special / sizeof *special ? special[i] : in[i] * 1.0017f;
        table->from_f32(in, out, count);
        check_canaries(out, count * sizeof(bf16), CANARY);
        back[count] = 7.0f;
        table->to_f32(out, back, count);
        assert_true(back[count] == 7.0f);
        for (size_t i = 0; i < count; i++) {
            assert_int_equal(((bf16 *)(void *)out)[i], bf16_from_f32(in[i]));
            assert_true(back[i] == bf16_to_f32(bf16_from_f32(in[i])));
        }
        release(out);
        free(back);
        free(in);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conversion),
        cmocka_unit_test(test_pointwise),
        cmocka_unit_test(test_strided_pointwise),
        cmocka_unit_test(test_3x3),
        cmocka_unit_test(test_large_weights),
        cmocka_unit_test(test_odd_kernels),
        cmocka_unit_test(test_branch),
        cmocka_unit_test(test_grouped),
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_strips),
        cmocka_unit_test(test_pools),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
