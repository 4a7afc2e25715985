/* kernels.c - choosing the kernel table, and proving it against `ref` before it is used. */

#include "kernels.h"

#include "sizes.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
extern const struct kernels kernels_avx2, kernels_avx512, kernels_amx;
#endif

const struct kernels *const kernels_all[] = {
    &kernels_ref,  &kernels_openblas,
#if defined(__x86_64__)
    &kernels_avx2, &kernels_avx512,   &kernels_amx,
#endif
    NULL,
};

size_t activation_bytes(enum activation_type type)
{
    return type == ACTIVATION_BF16 ? 2 : 4;
}

static size_t channel_block(const struct kernels *kernels, size_t channels)
{
    const size_t block = (size_t)kernels->channel_block;
    return block && channels % block == 0 ? block : channels;
}

size_t activation_plane(size_t pixels)
{
    enum { SETS = 64, NEAR = 3, APART = 8 };
    const size_t over = (pixels + NEAR) % SETS; /* 0 .. 2 * NEAR around a multiple */

    return pixels + NEAR >= SETS && over <= 2 * NEAR ? pixels + NEAR - over + APART : pixels;
}

size_t activation_elements(const struct kernels *kernels, size_t channels, size_t pixels)
{
    return channel_block(kernels, channels) == channels ? channels * pixels : channels * activation_plane(pixels);
}

size_t activation_index(const struct kernels *kernels, size_t channels, size_t pixels, size_t pixel, size_t c)
{
    const size_t block = channel_block(kernels, channels);
    return c / block * block * activation_plane(pixels) + pixel * block + c % block;
}

void activation_from_f32(const struct kernels *kernels, const float *values, void *activation, size_t channels,
                         size_t pixels, size_t first, size_t count)
{
    const size_t block = channel_block(kernels, channels), element = activation_bytes(kernels->activation);
    char *to = activation;

    if (block == channels) {
        kernels->from_f32(values, to + first * channels * element, count * channels);
        return;
    }
    for (size_t i = 0; i < count; i++)
        for (size_t c = 0; c < channels; c += block)
            kernels->from_f32(values + i * channels + c,
                              to + activation_index(kernels, channels, pixels, first + i, c) * element, block);
}

void activation_to_f32(const struct kernels *kernels, const void *activation, float *values, size_t channels,
                       size_t pixels, size_t first, size_t count)
{
    const size_t block = channel_block(kernels, channels), element = activation_bytes(kernels->activation);
    const char *from = activation;

    if (block == channels) {
        kernels->to_f32(from + first * channels * element, values, count * channels);
        return;
    }
    for (size_t i = 0; i < count; i++)
        for (size_t c = 0; c < channels; c += block)
            kernels->to_f32(from + activation_index(kernels, channels, pixels, first + i, c) * element,
                            values + i * channels + c, block);
}

const struct conv_kernel *kernels_conv(const struct kernels *kernels, const struct conv *conv)
{
    const struct conv_kernel *const *kernel = kernels->convs;

    while (*kernel && ((conv->has_branch && !(*kernel)->adds_branch) || !(*kernel)->supports(conv)))
        kernel++;
    assert(*kernel || conv->has_branch);
    return *kernel;
}

/* ---- the check at start ---- */

/* The largest difference from `ref`, relative to the largest value of the output, that still counts as
 * agreement. fp32: 4096-term sums in another order differ by about 1e-6, Winograd's transforms by 1e-5; a
 * wrong kernel is wrong by 1e-1. bf16 keeps 8 bits of each factor: about 4e-3 each, less on average. */
static double tolerance(const struct kernels *kernels)
{
    return kernels->activation == ACTIVATION_BF16 ? 2e-2 : 1e-4;
}

struct check_case {
    struct conv conv;
    int height, width;
};

/* One of each shape of work that the networks have: the stem, pointwise, 3x3, strided, grouped, tails,
 * weights of some megabytes. */
static const struct check_case check_cases[] = {
    {{.params = {3, 64, {7, 7}, {2, 2}, {3, 3}, {1, 1}, 1}, .relu = true}, 29, 31},
    {{.params = {64, 64, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}, .relu = true}, 14, 15},
    {{.params = {64, 256, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}, .relu = true, .has_residual = true}, 9, 13},
    {{.params = {256, 64, {1, 1}, {2, 2}, {0, 0}, {1, 1}, 1}}, 13, 9},
    {{.params = {64, 64, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, .relu = true}, 15, 14},
    {{.params = {64, 48, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1}, .relu = true}, 14, 11},
    {{.params = {19, 37, {3, 3}, {1, 1}, {2, 2}, {2, 2}, 1}, .has_residual = true}, 8, 7},
    {{.params = {32, 32, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 4}, .relu = true}, 7, 7},
    {{.params = {512, 70, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}, .output_f32 = true}, 1, 1},
    {{.params = {3072, 256, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}, .relu = true, .linear = true}, 1, 1},
    {{.params = {64, 96, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},
      .relu = true,
      .has_branch = true,
      .branch = {48, 96, {1, 1}, {2, 2}, {0, 0}, {1, 1}, 1}},
     7,
     5},
};

/* Small reproducible values in [-1, 1). */
static void fill(float *values, size_t count, uint32_t *seed)
{
    for (size_t i = 0; i < count; i++) {
        *seed = *seed * 1664525u + 1013904223u;
        values[i] = (float)(*seed >> 8) * (1.0f / 8388608.0f) - 1.0f;
    }
}

/* Full of NaNs, as memory that was used before may be: nothing that was not written may matter. */
static void *aligned(size_t bytes)
{
    void *memory = aligned_alloc(KERNEL_ALIGNMENT, size_round_up(bytes + KERNEL_ALIGNMENT, KERNEL_ALIGNMENT));

    if (memory)
        memset(memory, 0xff, bytes + KERNEL_ALIGNMENT);
    return memory;
}

/* Run one convolution through one table; float32 in and out. False without memory. */
static bool run_conv(const struct kernels *kernels, const struct conv *conv, const struct conv_geometry *g,
                     const float *input, const float *branch, const float *weight, const float *bias,
                     const float *residual, float *output)
{
    const struct conv_kernel *kernel = kernels_conv(kernels, conv);
    const size_t in_channels = (size_t)conv->params.in, out_channels = (size_t)conv->params.out;
    const size_t in_pixels = (size_t)g->n * (size_t)g->in_h * (size_t)g->in_w;
    const size_t out_pixels = (size_t)g->n * (size_t)g->out_h * (size_t)g->out_w;
    const size_t branch_channels = conv->has_branch ? (size_t)conv->branch.in : 0;
    const size_t branch_pixels = (size_t)g->n * (size_t)g->branch_h * (size_t)g->branch_w;
    const size_t out_count = out_pixels * out_channels;
    struct conv_work work;
    void *side = aligned(branch_pixels * branch_channels * sizeof(float));
    void *in = aligned(in_pixels * in_channels * sizeof(float)), *out = aligned(out_count * sizeof(float));
    void *other = aligned(out_count * sizeof(float)), *packed = aligned(kernel->packed_bytes(conv)), *scratch;
    bool ok;

    kernel->plan(conv, g, 2, &work);
    scratch = aligned(work.scratch_bytes);
    ok = side && in && out && other && packed && scratch;
    if (ok) {
        const struct conv_buffers buffers = {.input = in,
                                             .packed = packed,
                                             .residual = conv->has_residual ? other : NULL,
                                             .branch = conv->has_branch ? side : NULL,
                                             .output = out};
        activation_from_f32(kernels, input, in, in_channels, in_pixels, 0, in_pixels);
        if (conv->has_branch)
            activation_from_f32(kernels, branch, side, branch_channels, branch_pixels, 0, branch_pixels);
        if (conv->has_residual)
            activation_from_f32(kernels, residual, other, out_channels, out_pixels, 0, out_pixels);
        kernel->pack(conv, weight, bias, packed);
        for (int task = 0; task < work.tasks; task++)
            kernel->run(conv, g, &work, &buffers, task, scratch);
        if (conv->output_f32)
            memcpy(output, out, out_count * sizeof(float));
        else
            activation_to_f32(kernels, out, output, out_channels, out_pixels, 0, out_pixels);
    }
    free(scratch);
    free(packed);
    free(other);
    free(out);
    free(in);
    free(side);
    return ok;
}

/* Largest difference relative to the largest value of `expected`; infinite for a NaN. */
static double difference(const float *expected, const float *actual, size_t count)
{
    double largest = 1e-6, worst = 0;

    for (size_t i = 0; i < count; i++)
        largest = fmax(largest, fabs((double)expected[i]));
    for (size_t i = 0; i < count; i++) {
        const double d = fabs((double)expected[i] - (double)actual[i]);
        if (!(d <= worst))
            worst = isnan(d) ? (double)INFINITY : d;
    }
    return worst / largest;
}

static enum rn_status judge(const struct kernels *kernels, const char *what, double d, struct rn_error *error)
{
    return d <= tolerance(kernels)
               ? RN_OK
               : rn_fail(error, RN_ERR_KERNELS, "kernel table %s: %s differs from ref by %.2g of the range",
                         kernels->name, what, d);
}

/* What `ref` gives for `conv`; a branch is computed first and becomes the residual. */
static bool run_ref(const struct conv *conv, const struct conv_geometry *g, const float *input, const float *branch,
                    const float *weight, const float *branch_weight, const float *bias, float *residual, float *output)
{
    struct conv plain = *conv;

    if (conv->has_branch) {
        const struct conv alone = {.params = conv->branch};
        const struct conv_geometry geometry = {
            .n = g->n, .in_h = g->branch_h, .in_w = g->branch_w, .out_h = g->out_h, .out_w = g->out_w};
        float *zeros = calloc((size_t)conv->params.out, sizeof *zeros);
        const bool ok =
            zeros && run_conv(&kernels_ref, &alone, &geometry, branch, NULL, branch_weight, zeros, NULL, residual);
        free(zeros);
        if (!ok)
            return false;
        plain.has_branch = false;
        plain.has_residual = true;
    }
    return run_conv(&kernels_ref, &plain, g, input, NULL, weight, bias, residual, output);
}

static enum rn_status check_conv(const struct kernels *kernels, const struct check_case *c, struct rn_error *error)
{
    const struct conv_params *p = &c->conv.params, *branch = &c->conv.branch;
    const struct conv_geometry g = {
        .n = 1,
        .in_h = c->height,
        .in_w = c->width,
        .out_h = (c->height + 2 * p->padding[0] - p->dilation[0] * (p->kernel[0] - 1) - 1) / p->stride[0] + 1,
        .out_w = (c->width + 2 * p->padding[1] - p->dilation[1] * (p->kernel[1] - 1) - 1) / p->stride[1] + 1,
        .branch_h = c->height * branch->stride[0],
        .branch_w = c->width * branch->stride[1],
    };
    const size_t branch_inputs = (size_t)g.branch_h * (size_t)g.branch_w * (size_t)branch->in;
    const size_t branch_weights = (size_t)p->out * (size_t)branch->in;
    const size_t inputs = (size_t)g.in_h * (size_t)g.in_w * (size_t)p->in;
    const size_t outputs = (size_t)g.out_h * (size_t)g.out_w * (size_t)p->out;
    const size_t weights = (size_t)p->out * (size_t)(p->in / p->groups) * (size_t)p->kernel[0] * (size_t)p->kernel[1];
    const size_t given = inputs + weights + branch_weights + branch_inputs + (size_t)p->out + outputs;
    float *values = malloc((given + 2 * outputs) * sizeof *values);
    float *input = values, *weight = input + inputs, *branch_weight = weight + weights;
    float *branch_input = branch_weight + branch_weights, *bias = branch_input + branch_inputs;
    float *residual = bias + p->out, *expected = residual + outputs, *actual = expected + outputs;
    uint32_t seed = 1;
    enum rn_status status;

    if (!values)
        return rn_fail_nomem(error, "the kernel check");
    fill(values, given, &seed);
    if (run_ref(&c->conv, &g, input, branch_input, weight, branch_weight, bias, residual, expected) &&
        run_conv(kernels, &c->conv, &g, input, branch_input, weight, bias, residual, actual))
        status = judge(kernels, kernels_conv(kernels, &c->conv)->name, difference(expected, actual, outputs), error);
    else
        status = rn_fail_nomem(error, "the kernel check");
    free(values);
    return status;
}

/* Run all rows of one pool through one table; float32 in and out. False without memory. */
static bool run_pool(const struct kernels *kernels, void (*run)(const struct pool *, int), struct pool pool,
                     const float *input, float *output)
{
    const size_t in_pixels = (size_t)pool.in_h * (size_t)pool.in_w, channels = (size_t)pool.channels;
    const size_t out_pixels = (size_t)pool.out_h * (size_t)pool.out_w;
    void *in = aligned(in_pixels * channels * sizeof(float)), *out = aligned(out_pixels * channels * sizeof(float));

    if (in && out) {
        activation_from_f32(kernels, input, in, channels, in_pixels, 0, in_pixels);
        pool.input = in;
        pool.output = out;
        for (int task = 0; task < pool.n * pool.out_h; task++)
            run(&pool, task);
        activation_to_f32(kernels, out, output, channels, out_pixels, 0, out_pixels);
    }
    free(out);
    free(in);
    return in && out;
}

static enum rn_status check_pools(const struct kernels *kernels, struct rn_error *error)
{
    enum { CHANNELS = 67, SIDE = 13, OUT = 7 };
    static const struct pool_params params = {
        .kernel = {3, 3}, .stride = {2, 2}, .padding = {1, 1}, .dilation = {1, 1}, .count_include_pad = true};
    const struct pool pool = {
        .params = &params, .n = 1, .channels = CHANNELS, .in_h = SIDE, .in_w = SIDE, .out_h = OUT, .out_w = OUT};
    const struct pool adaptive = {.n = 1, .channels = CHANNELS, .in_h = SIDE, .in_w = SIDE, .out_h = 5, .out_w = 3};
    const struct {
        const char *name;
        void (*ref)(const struct pool *, int);
        void (*run)(const struct pool *, int);
        const struct pool *pool;
    } cases[] = {
        {"max_pool", kernels_ref.max_pool, kernels->max_pool, &pool},
        {"avg_pool", kernels_ref.avg_pool, kernels->avg_pool, &pool},
        {"adaptive_avg_pool", kernels_ref.adaptive_avg_pool, kernels->adaptive_avg_pool, &adaptive},
    };
    const size_t inputs = (size_t)SIDE * SIDE * CHANNELS, outputs = (size_t)OUT * OUT * CHANNELS;
    float *input = malloc((inputs + 2 * outputs) * sizeof *input);
    float *expected = input + inputs, *actual = expected + outputs;
    uint32_t seed = 2;
    enum rn_status status = RN_OK;

    if (!input)
        return rn_fail_nomem(error, "the kernel check");
    fill(input, inputs, &seed);
    for (size_t i = 0; i < sizeof cases / sizeof *cases && !status; i++) {
        const struct pool *p = cases[i].pool;
        if (run_pool(&kernels_ref, cases[i].ref, *p, input, expected) &&
            run_pool(kernels, cases[i].run, *p, input, actual))
            status = judge(kernels, cases[i].name,
                           difference(expected, actual, (size_t)p->out_h * (size_t)p->out_w * CHANNELS), error);
        else
            status = rn_fail_nomem(error, "the kernel check");
    }
    free(input);
    return status;
}

enum rn_status kernels_check(const struct kernels *kernels, struct rn_error *error)
{
    enum rn_status status;

    for (size_t i = 0; i < sizeof check_cases / sizeof *check_cases; i++)
        if (kernels_conv(kernels, &check_cases[i].conv) && /* not every table adds branches */
            (status = check_conv(kernels, &check_cases[i], error)))
            return status;
    return check_pools(kernels, error);
}

/* ---- the choice ---- */

static bool precision_fits(const struct kernels *kernels, const char *precision)
{
    return strcmp(precision, "auto") == 0 || strcmp(precision, kernels->precision) == 0;
}

static enum rn_status try_table(const struct kernels *kernels, struct rn_error *error)
{
    char why[120] = "";

    if (!kernels->available(why, sizeof why))
        return rn_fail(error, RN_ERR_KERNELS, "kernel table %s cannot run here: %s", kernels->name, why);
    return kernels_check(kernels, error);
}

enum rn_status kernels_choose(const char *name, const char *precision, const struct kernels **out,
                              void (*note)(void *arg, const char *text), void *arg, struct rn_error *error)
{
    const bool any = strcmp(name, "auto") == 0;
    size_t count = 0;
    struct rn_error reason;

    *out = NULL;
    if (strcmp(precision, "auto") && strcmp(precision, "fp32") && strcmp(precision, "bf16"))
        return rn_fail(error, RN_ERR_KERNELS, "precision must be auto, fp32 or bf16, not \"%.40s\"", precision);
    while (kernels_all[count])
        count++;
    if (!any) {
        for (size_t i = 0; i < count; i++)
            if (strcmp(kernels_all[i]->name, name) == 0) {
                if (!precision_fits(kernels_all[i], precision))
                    return rn_fail(error, RN_ERR_KERNELS, "kernel table %s computes in %s, not %s", name,
                                   kernels_all[i]->precision, precision);
                if (try_table(kernels_all[i], &reason))
                    return rn_fail(error, RN_ERR_KERNELS, "%s", reason.text);
                *out = kernels_all[i];
                return RN_OK;
            }
        return rn_fail(error, RN_ERR_KERNELS, "there is no kernel table called \"%.40s\"", name);
    }
    for (size_t i = count; i-- > 0;) {
        if (!precision_fits(kernels_all[i], precision))
            continue;
        if (!try_table(kernels_all[i], &reason)) {
            *out = kernels_all[i];
            return RN_OK;
        }
        if (note)
            note(arg, reason.text);
    }
    return rn_fail(error, RN_ERR_KERNELS, "no kernel table of this machine computes in %s", precision);
}
