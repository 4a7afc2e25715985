/* test_kernels_tables.c - `ref` against the definition in double, every other table against `ref`, tasks run by
 * several threads at once, the check at start with tables that are wrong on purpose, and the choice of a table.
 * A table that this machine cannot run is skipped by name. */

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../model/bf16.h"
#include "../../model/kernels.h"
#include "../../model/sizes.h"
#include "fail_alloc.h"

enum { CANARY_BYTES = 256, CANARY = 0xa5 };

/* Relative to the largest value of the output. Sums in another order differ by 1e-6, Winograd's by 1e-5; bf16 rounds
 * the output to 8 bits (inputs and weights are chosen so that they are exact). A wrong tap is wrong by 1e-1. */
static double tolerance(const struct kernels *table)
{
    return table->activation == ACTIVATION_BF16 ? 5e-3 : 2e-5;
}

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

/* `bytes` of NaNs between canaries. */
static unsigned char *guarded_alloc(size_t bytes)
{
    unsigned char *memory = aligned_alloc(KERNEL_ALIGNMENT, size_round_up(bytes + 2 * CANARY_BYTES, KERNEL_ALIGNMENT));

    assert_non_null(memory);
    memset(memory, CANARY, bytes + 2 * CANARY_BYTES);
    memset(memory + CANARY_BYTES, 0xff, bytes);
    return memory + CANARY_BYTES;
}

static void guarded_free(unsigned char *memory, size_t bytes)
{
    for (size_t i = 0; i < CANARY_BYTES; i++)
        if (memory[-1 - (ptrdiff_t)i] != CANARY || memory[bytes + i] != CANARY)
            fail_msg("byte %zu outside of %zu bytes was written", i, bytes);
    free(memory - CANARY_BYTES);
}

/* Values in [-1, 1) that bf16 holds exactly. */
static void fill(float *values, size_t count, uint32_t seed)
{
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = bf16_to_f32(bf16_from_f32((float)(seed >> 8) * (1.0f / 8388608.0f) - 1.0f));
    }
}

struct problem {
    struct conv conv;
    struct conv_geometry g;
    size_t inputs, weights, outputs;
    float *input, *weight, *bias, *residual;
    double *expected;
};

static void problem_init(struct problem *p, const struct conv *conv, int n, int height, int width)
{
    const struct conv_params *c = &conv->params;

    *p = (struct problem){.conv = *conv, .g = {.n = n, .in_h = height, .in_w = width}};
    p->g.out_h = (height + 2 * c->padding[0] - c->dilation[0] * (c->kernel[0] - 1) - 1) / c->stride[0] + 1;
    p->g.out_w = (width + 2 * c->padding[1] - c->dilation[1] * (c->kernel[1] - 1) - 1) / c->stride[1] + 1;
    p->inputs = (size_t)(n * height * width * c->in);
    p->outputs = (size_t)(n * p->g.out_h * p->g.out_w * c->out);
    p->weights = (size_t)(c->out * (c->in / c->groups) * c->kernel[0] * c->kernel[1]);
    p->input = malloc(p->inputs * sizeof(float));
    p->weight = malloc(p->weights * sizeof(float));
    p->bias = malloc((size_t)c->out * sizeof(float));
    p->residual = malloc(p->outputs * sizeof(float));
    p->expected = malloc(p->outputs * sizeof(double));
    assert_true(p->input && p->weight && p->bias && p->residual && p->expected);
    fill(p->input, p->inputs, 1);
    fill(p->weight, p->weights, 2);
    fill(p->bias, (size_t)c->out, 3);
    fill(p->residual, p->outputs, 4);
}

static void problem_free(struct problem *p)
{
    free(p->input);
    free(p->weight);
    free(p->bias);
    free(p->residual);
    free(p->expected);
}

/* out[n, y, x, o] = act(bias[o] + sum over ky, kx, i of weight[o, i, ky, kx] * in[n, y', x', group of o + i] +
 * residual) */
static void define(struct problem *p)
{
    const struct conv_params *c = &p->conv.params;
    const int in_group = c->in / c->groups, out_group = c->out / c->groups;
    size_t at = 0;

    for (int n = 0; n < p->g.n; n++)
        for (int y = 0; y < p->g.out_h; y++)
            for (int x = 0; x < p->g.out_w; x++)
                for (int o = 0; o < c->out; o++, at++) {
                    double sum = (double)p->bias[o] + (p->conv.has_residual ? (double)p->residual[at] : 0.0);
                    for (int ky = 0; ky < c->kernel[0]; ky++)
                        for (int kx = 0; kx < c->kernel[1]; kx++) {
                            const int in_y = y * c->stride[0] - c->padding[0] + ky * c->dilation[0];
                            const int in_x = x * c->stride[1] - c->padding[1] + kx * c->dilation[1];
                            if (in_y < 0 || in_y >= p->g.in_h || in_x < 0 || in_x >= p->g.in_w)
                                continue;
                            for (int i = 0; i < in_group; i++)
                                sum += (double)p->input[((n * p->g.in_h + in_y) * p->g.in_w + in_x) * c->in +
                                                        o / out_group * in_group + i] *
                                       (double)p->weight[((o * in_group + i) * c->kernel[0] + ky) * c->kernel[1] + kx];
                        }
                    p->expected[at] = p->conv.relu && sum < 0 ? 0 : sum;
                }
}

/* What one table makes of a problem, ready to run its tasks. */
struct running {
    const struct kernels *table;
    const struct conv_kernel *kernel;
    const struct problem *problem;
    struct conv_work work;
    size_t in_bytes, out_bytes, packed_bytes, residual_bytes;
    unsigned char *in, *out, *packed, *residual;
};

static void running_init(struct running *r, const struct kernels *table, const struct problem *p, int threads,
                         bool in_place)
{
    const size_t element = activation_bytes(table->activation);
    const size_t in_channels = (size_t)p->conv.params.in, out_channels = (size_t)p->conv.params.out;
    const size_t in_pixels = p->inputs / in_channels, out_pixels = p->outputs / out_channels;

    *r = (struct running){.table = table, .kernel = kernels_conv(table, &p->conv), .problem = p};
    r->kernel->plan(&p->conv, &p->g, threads, &r->work);
    assert_true(r->work.tasks >= 1);
    r->in_bytes = activation_elements(table, in_channels, in_pixels) * element;
    r->residual_bytes = activation_elements(table, out_channels, out_pixels) * element;
    r->out_bytes = p->conv.output_f32 ? p->outputs * sizeof(float) : r->residual_bytes;
    r->packed_bytes = r->kernel->packed_bytes(&p->conv);
    r->in = guarded_alloc(r->in_bytes);
    r->out = guarded_alloc(r->out_bytes);
    r->packed = guarded_alloc(r->packed_bytes);
    r->residual = guarded_alloc(r->residual_bytes);
    activation_from_f32(table, p->input, r->in, in_channels, in_pixels, 0, in_pixels);
    if (p->conv.has_residual)
        activation_from_f32(table, p->residual, in_place ? r->out : r->residual, out_channels, out_pixels, 0,
                            out_pixels);
    r->kernel->pack(&p->conv, p->weight, p->bias, r->packed);
    if (in_place)
        memcpy(r->residual, r->out, r->residual_bytes);
}

static void running_task(const struct running *r, int task, void *scratch, bool in_place)
{
    const struct conv_buffers buffers = {.input = r->in,
                                         .packed = r->packed,
                                         .residual = !r->problem->conv.has_residual ? NULL
                                                     : in_place                     ? r->out
                                                                                    : r->residual,
                                         .output = r->out};

    r->kernel->run(&r->problem->conv, &r->problem->g, &r->work, &buffers, task, scratch);
}

/* Compare the output with problem->expected, and free. */
static void running_finish(struct running *r)
{
    const struct problem *p = r->problem;
    const struct conv_params *c = &p->conv.params;
    float *actual = malloc(p->outputs * sizeof *actual);
    double largest = 1e-6;

    assert_non_null(actual);
    if (p->conv.output_f32)
        memcpy(actual, r->out, p->outputs * sizeof *actual);
    else
        activation_to_f32(r->table, r->out, actual, (size_t)c->out, p->outputs / (size_t)c->out, 0,
                          p->outputs / (size_t)c->out);
    for (size_t i = 0; i < p->outputs; i++)
        largest = fmax(largest, fabs(p->expected[i]));
    for (size_t i = 0; i < p->outputs; i++)
        if (!(fabs(p->expected[i] - (double)actual[i]) <= tolerance(r->table) * largest))
            fail_msg("%s: %d -> %d channels, kernel %dx%d, stride %d, padding %d, dilation %d, groups %d, input "
                     "%dx%dx%d: element %zu is %g, not %g",
                     r->kernel->name, c->in, c->out, c->kernel[0], c->kernel[1], c->stride[0], c->padding[0],
                     c->dilation[0], c->groups, p->g.n, p->g.in_h, p->g.in_w, i, (double)actual[i], p->expected[i]);
    free(actual);
    guarded_free(r->in, r->in_bytes);
    guarded_free(r->out, r->out_bytes);
    guarded_free(r->packed, r->packed_bytes);
    guarded_free(r->residual, r->residual_bytes);
}

static void run_serially(const struct kernels *table, const struct problem *p, int threads, bool in_place)
{
    struct running r;
    unsigned char *scratch;

    running_init(&r, table, p, threads, in_place);
    scratch = guarded_alloc(r.work.scratch_bytes);
    for (int task = r.work.tasks - 1; task >= 0; task--)
        running_task(&r, task, scratch, in_place);
    guarded_free(scratch, r.work.scratch_bytes);
    running_finish(&r);
}

/* ---- odd shapes ---- */

static const int channel_counts[] = {1, 3, 5, 17, 64, 65};
static const int sizes[][2] = {{1, 1}, {1, 6}, {5, 1}, {4, 3}, {7, 7}, {9, 10}};

struct window {
    int kernel[2], stride[2], padding[2], dilation[2];
};

static const struct window windows[] = {
    {{1, 1}, {1, 1}, {0, 0}, {1, 1}}, {{1, 1}, {2, 2}, {0, 0}, {1, 1}}, {{3, 3}, {1, 1}, {1, 1}, {1, 1}},
    {{3, 3}, {2, 2}, {1, 1}, {1, 1}}, {{3, 3}, {1, 1}, {2, 2}, {2, 2}}, {{2, 3}, {3, 1}, {1, 2}, {1, 3}},
    {{7, 7}, {2, 2}, {3, 3}, {1, 1}}, {{1, 1}, {1, 1}, {2, 1}, {1, 1}},
};

static bool fits(const struct window *w, int height, int width)
{
    return height + 2 * w->padding[0] > w->dilation[0] * (w->kernel[0] - 1) &&
           width + 2 * w->padding[1] > w->dilation[1] * (w->kernel[1] - 1);
}

static struct conv make_conv(int in, int out, const struct window *w, int groups)
{
    struct conv conv = {.params = {.in = in, .out = out, .groups = groups}};

    memcpy(conv.params.kernel, w->kernel, sizeof w->kernel);
    memcpy(conv.params.stride, w->stride, sizeof w->stride);
    memcpy(conv.params.padding, w->padding, sizeof w->padding);
    memcpy(conv.params.dilation, w->dilation, sizeof w->dilation);
    return conv;
}

/* One shape with one of the epilogues, chosen by `turn`: plain, relu, residual, in place, float32 output. */
static void check_shape(const struct kernels *table, struct conv conv, int n, int height, int width, int turn)
{
    const bool in_place = turn % 6 == 3 || turn % 6 == 4;
    struct problem p;

    conv.relu = turn % 6 == 1 || turn % 6 == 3;
    conv.has_residual = in_place || turn % 6 == 2;
    conv.output_f32 = turn % 6 == 5;
    problem_init(&p, &conv, n, height, width);
    define(&p);
    run_serially(table, &p, 1 + turn % 4, in_place);
    problem_free(&p);
}

/* The tables with tests of their own take every fifth shape; few are enough under ThreadSanitizer, which is slow and
 * has nothing to find in one thread. */
#if defined(__SANITIZE_THREAD__)
enum { STEP_OF_FIRST = 41, STEP_OF_OTHERS = 41 };
#else
enum { STEP_OF_FIRST = 1, STEP_OF_OTHERS = 5 };
#endif

static int step_of(const struct kernels *table)
{
    return table == &kernels_ref || table == &kernels_openblas ? STEP_OF_FIRST : STEP_OF_OTHERS;
}

static void test_odd_shapes(void **state)
{
    const struct kernels *table = table_or_skip(state);
    const int step = step_of(table);
    int turn = 0;

    for (size_t w = 0; w < sizeof windows / sizeof *windows; w++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (size_t i = 0; i < sizeof channel_counts / sizeof *channel_counts; i++)
                for (size_t o = 0; o < sizeof channel_counts / sizeof *channel_counts; o++, turn++)
                    if (turn % step == 0 && fits(&windows[w], sizes[s][0], sizes[s][1]))
                        check_shape(table, make_conv(channel_counts[i], channel_counts[o], &windows[w], 1),
                                    1 + turn / step % 2, sizes[s][0], sizes[s][1], turn / step);
}

static void test_groups(void **state)
{
    const struct kernels *table = table_or_skip(state);
    static const int cases[][3] = {{6, 9, 3}, {5, 5, 5}, {64, 64, 32}, {34, 17, 17}, {64, 128, 2}, {3, 12, 3}};
    const int step = step_of(table);
    int turn = 0;

    for (size_t w = 0; w < sizeof windows / sizeof *windows; w++)
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
            for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++, turn++)
                if (turn % step == 0 && fits(&windows[w], sizes[s][0], sizes[s][1]))
                    check_shape(table, make_conv(cases[c][0], cases[c][1], &windows[w], cases[c][2]),
                                1 + turn / step % 2, sizes[s][0], sizes[s][1], turn / step);
}

/* The shape of Linear, and of an image that is one row or one column: work has few rows, or one. */
static void test_extreme_shapes(void **state)
{
    const struct kernels *table = table_or_skip(state);

    for (int turn = 0; turn < 6; turn++) {
        check_shape(table, make_conv(300, 515, &windows[0], 1), 1, 1, 1, turn);
        check_shape(table, make_conv(300, 131, &windows[0], 1), 5, 1, 1, turn);
        check_shape(table, make_conv(3, 16, &windows[6], 1), 1, 1, 700, turn);
        check_shape(table, make_conv(3, 16, &windows[6], 1), 2, 700, 1, turn);
        check_shape(table, make_conv(33, 129, &windows[2], 1), 1, 2, 90, turn);
        check_shape(table, make_conv(16, 256, &windows[2], 1), 1, 5, 5, turn);
    }
}

/* ---- several threads ---- */

enum { THREADS = 4 };

struct crew {
    const struct running *running;
    atomic_int next;
};

static void *take_tasks(void *arg)
{
    struct crew *crew = arg;
    const size_t bytes = crew->running->work.scratch_bytes;
    unsigned char *scratch = guarded_alloc(bytes);
    int task;

    while ((task = atomic_fetch_add(&crew->next, 1)) < crew->running->work.tasks)
        running_task(crew->running, task, scratch, false);
    guarded_free(scratch, bytes);
    return NULL;
}

/* The tasks of one operation, and two operations at once, on threads of their own: as workers do it. A library
 * underneath that is not thread-safe shows here. */
static void test_threads(void **state)
{
    const struct kernels *table = table_or_skip(state);
    static const struct {
        int in, out, window, height, width;
    } cases[] = {{64, 64, 2, 28, 28}, {64, 256, 0, 14, 14}, {3, 64, 6, 60, 60}, {512, 700, 0, 1, 1}};

    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct conv conv = make_conv(cases[c].in, cases[c].out, &windows[cases[c].window], 1);
        struct problem p;
        problem_init(&p, &conv, 1, cases[c].height, cases[c].width);
        define(&p);
        for (int round = 0; round < 20; round++) {
            struct running runs[2];
            struct crew crews[2];
            pthread_t threads[THREADS];
            for (int i = 0; i < 2; i++) {
                running_init(&runs[i], table, &p, THREADS, false);
                crews[i].running = &runs[i];
                atomic_init(&crews[i].next, 0);
            }
            for (int i = 0; i < THREADS; i++)
                assert_int_equal(pthread_create(&threads[i], NULL, take_tasks, &crews[i % 2]), 0);
            for (int i = 0; i < THREADS; i++)
                assert_int_equal(pthread_join(threads[i], NULL), 0);
            for (int i = 0; i < 2; i++)
                running_finish(&runs[i]);
        }
        problem_free(&p);
    }
}

/* ---- the check at start ---- */

static void test_self_check(void **state)
{
    const struct kernels *table = table_or_skip(state);
    struct rn_error error;

    if (kernels_check(table, &error))
        fail_msg("%s", error.text);
}

static void copy_packed(const struct conv *conv, const float *weight, const float *bias, void *packed)
{
    kernels_ref.convs[0]->pack(conv, weight, bias, packed);
}

static void pack_swapped(const struct conv *conv, const float *weight, const float *bias, void *packed)
{
    float *to = packed;

    copy_packed(conv, weight, bias, packed);
    if (conv->params.kernel[0] == 3 && conv->params.stride[0] == 2) { /* one weight of one kind of convolution */
        const float first = to[conv->params.out];
        to[conv->params.out] = to[conv->params.out + 1];
        to[conv->params.out + 1] = first;
    }
}

static void run_without_relu(const struct conv *conv, const struct conv_geometry *g, const struct conv_work *work,
                             const struct conv_buffers *buffers, int task, void *scratch)
{
    struct conv plain = *conv;

    plain.relu = false;
    kernels_ref.convs[0]->run(&plain, g, work, buffers, task, scratch);
}

static void run_without_residual(const struct conv *conv, const struct conv_geometry *g, const struct conv_work *work,
                                 const struct conv_buffers *buffers, int task, void *scratch)
{
    struct conv plain = *conv;

    plain.has_residual = false;
    kernels_ref.convs[0]->run(&plain, g, work, buffers, task, scratch);
}

/* Leaves the last task out, as a tail that was forgotten: what was in memory before stays. */
static void run_all_but_last(const struct conv *conv, const struct conv_geometry *g, const struct conv_work *work,
                             const struct conv_buffers *buffers, int task, void *scratch)
{
    if (task + 1 < work->tasks)
        kernels_ref.convs[0]->run(conv, g, work, buffers, task, scratch);
}

static void pool_nothing(const struct pool *pool, int task)
{
    (void)pool;
    (void)task;
}

static void max_without_padding_rule(const struct pool *pool, int task)
{
    kernels_ref.max_pool(pool, task);
    if (task == 0)
        ((float *)pool->output)[3] = 0.0f;
}

static void expect_caught(const struct kernels *table, const char *name)
{
    struct rn_error error;

    assert_int_equal(kernels_check(table, &error), RN_ERR_KERNELS);
    if (!strstr(error.text, name) || !strstr(error.text, "kernel table wrong"))
        fail_msg("%s", error.text);
}

static void test_wrong_tables_are_caught(void **state)
{
    struct conv_kernel kernel = *kernels_ref.convs[0];
    const struct conv_kernel *const convs[] = {&kernel, NULL};
    struct kernels wrong = kernels_ref;

    (void)state;
    wrong.name = "wrong";
    wrong.convs = convs;
    kernel.name = "broken";
    assert_int_equal(kernels_check(&wrong, NULL), RN_OK); /* not yet */

    kernel.pack = pack_swapped;
    expect_caught(&wrong, "broken");
    kernel.pack = copy_packed;
    kernel.run = run_without_relu;
    expect_caught(&wrong, "broken");
    kernel.run = run_without_residual;
    expect_caught(&wrong, "broken");
    kernel.run = run_all_but_last;
    expect_caught(&wrong, "broken");
    kernel.run = kernels_ref.convs[0]->run;
    assert_int_equal(kernels_check(&wrong, NULL), RN_OK);

    wrong.avg_pool = pool_nothing;
    expect_caught(&wrong, "avg_pool");
    wrong.avg_pool = kernels_ref.avg_pool;
    wrong.adaptive_avg_pool = pool_nothing;
    expect_caught(&wrong, "adaptive_avg_pool");
    wrong.adaptive_avg_pool = kernels_ref.adaptive_avg_pool;
    wrong.max_pool = max_without_padding_rule;
    expect_caught(&wrong, "max_pool");
}

static void test_check_without_memory(void **state)
{
    struct rn_error error;

    (void)state;
    for (long n = 0;; n++) {
        enum rn_status status;
        fail_alloc_at(n);
        status = kernels_check(&kernels_ref, &error);
        if (!fail_alloc_fired()) {
            assert_int_equal(status, RN_OK);
            break;
        }
        assert_int_equal(status, RN_ERR_NOMEM);
    }
    fail_alloc_at(-1);
}

/* ---- the choice ---- */

static void note_text(void *arg, const char *text)
{
    assert_non_null(strstr(text, "kernel table "));
    ++*(int *)arg;
}

static const struct kernels *fastest(const char *precision, int *passed_over)
{
    size_t count = 0;

    *passed_over = 0;
    while (kernels_all[count])
        count++;
    while (count-- > 0) {
        if (strcmp(precision, "auto") && strcmp(precision, kernels_all[count]->precision))
            continue;
        if (kernels_all[count]->available(NULL, 0))
            return kernels_all[count];
        ++*passed_over;
    }
    return NULL;
}

static void test_automatic_choice(void **state)
{
    static const char *const precisions[] = {"auto", "fp32", "bf16"};

    (void)state;
    for (int i = 0; i < 3; i++) {
        const struct kernels *chosen = NULL, *expected;
        struct rn_error error;
        int notes = 0, passed_over;
        const enum rn_status status = kernels_choose("auto", precisions[i], &chosen, note_text, &notes, &error);
        expected = fastest(precisions[i], &passed_over);
        assert_ptr_equal(chosen, expected);
        assert_int_equal(notes, passed_over);
        assert_int_equal(status, expected ? RN_OK : RN_ERR_KERNELS);
        if (expected)
            print_message("%s: %s\n", precisions[i], expected->name);
    }
}

static void test_named_choice(void **state)
{
    const struct kernels *chosen;
    struct rn_error error;

    (void)state;
    for (size_t i = 0; kernels_all[i]; i++) {
        char why[160] = "";
        const enum rn_status status = kernels_choose(kernels_all[i]->name, "auto", &chosen, NULL, NULL, &error);
        if (kernels_all[i]->available(why, sizeof why)) {
            assert_int_equal(status, RN_OK);
            assert_ptr_equal(chosen, kernels_all[i]);
        } else {
            assert_int_equal(status, RN_ERR_KERNELS);
            assert_null(chosen);
            assert_non_null(strstr(error.text, why));
        }
    }
    assert_int_equal(kernels_choose("ref", "bf16", &chosen, NULL, NULL, &error), RN_ERR_KERNELS);
    assert_string_equal(error.text, "kernel table ref computes in fp32, not bf16");
    assert_int_equal(kernels_choose("sse", "auto", &chosen, NULL, NULL, &error), RN_ERR_KERNELS);
    assert_string_equal(error.text, "there is no kernel table called \"sse\"");
    assert_int_equal(kernels_choose("", "auto", &chosen, NULL, NULL, &error), RN_ERR_KERNELS);
    assert_int_equal(kernels_choose("ref", "fp16", &chosen, NULL, NULL, &error), RN_ERR_KERNELS);
    assert_string_equal(error.text, "precision must be auto, fp32 or bf16, not \"fp16\"");
    assert_null(chosen);
}

int main(void)
{
    static const struct {
        const char *name;
        CMUnitTestFunction function;
    } each[] = {{"odd shapes", test_odd_shapes},
                {"groups", test_groups},
                {"extreme shapes", test_extreme_shapes},
                {"threads", test_threads},
                {"self-check", test_self_check}};
    struct CMUnitTest tests[48] = {
        cmocka_unit_test(test_wrong_tables_are_caught),
        cmocka_unit_test(test_check_without_memory),
        cmocka_unit_test(test_automatic_choice),
        cmocka_unit_test(test_named_choice),
    };
    static char names[48][64];
    size_t count = 4;

    for (size_t i = 0; kernels_all[i]; i++)
        for (size_t j = 0; j < sizeof each / sizeof *each; j++, count++) {
            assert(count < sizeof tests / sizeof *tests);
            (void)snprintf(names[count], sizeof names[count], "%s: %s", kernels_all[i]->name, each[j].name);
            tests[count] = (struct CMUnitTest){names[count], each[j].function, NULL, NULL, (void *)&kernels_all[i]};
        }
    return _cmocka_run_group_tests("test_kernels_tables", tests, count, NULL, NULL);
}
