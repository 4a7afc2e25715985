/* bench_amx.c - the bf16 table on ResNet-50's convolutions and pools, in the network's order, so that weights and
 * activations come from where they come from in a forward pass.
 *
 *     bench_amx [threads [passes [height [width]]]]
 *
 * Prints for each layer the best time of all passes, TFLOP/s, the share of the AMX peak measured in this run, and
 * how often it occurs; then totals. On one thread time is the thread's CPU time, else wall time. */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <immintrin.h>

#include "../../model/kernels.h"
#include "../../model/sizes.h"
#include "../../model/team.h"

extern const struct kernels kernels_amx;

enum { MAX_OPERATIONS = 80, BUFFERS = 4 };

struct operation {
    char name[32];
    const struct conv_kernel *kernel; /* NULL for a pool */
    struct conv conv;
    struct conv_geometry geometry;
    struct conv_work work;
    struct conv_buffers buffers;
    struct pool pool;
    void (*pool_run)(const struct pool *pool, int task);
    int tasks;
    double flops, best;
};

static struct operation operations[MAX_OPERATIONS];
static int count;
static char *activations[BUFFERS];
static size_t packed_total, scratch_bytes;

static double clock_s(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *map(size_t bytes)
{
    const size_t huge = (size_t)2 << 20;
    void *memory = aligned_alloc(huge, size_round_up(bytes + KERNEL_ALIGNMENT, huge));
    if (!memory)
        exit(1);
    madvise(memory, size_round_up(bytes + KERNEL_ALIGNMENT, huge), MADV_HUGEPAGE);
    memset(memory, 0, bytes + KERNEL_ALIGNMENT);
    return memory;
}

/* Multiplications on registers alone. */
__attribute__((target("amx-tile,amx-bf16"))) static double peak_flops(void)
{
    static const uint8_t config[64] = {
        [0] = 1,   [16] = 64, [18] = 64, [20] = 64, [22] = 64, [24] = 64, [26] = 64, [28] = 64, [30] = 64,
        [48] = 16, [49] = 16, [50] = 16, [51] = 16, [52] = 16, [53] = 16, [54] = 16, [55] = 16};
    double best = 1e9;
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
    for (int pass = 0; pass < 50; pass++) {
        const double start = clock_s(CLOCK_THREAD_CPUTIME_ID);
        for (int i = 0; i < 5000; i++) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        const double t = clock_s(CLOCK_THREAD_CPUTIME_ID) - start;
        best = t < best ? t : best;
    }
    _tile_release();
    return 20000.0 * 2 * 16 * 16 * 32 / best;
}

static struct operation *add(const char *name)
{
    struct operation *o = &operations[count++];
    snprintf(o->name, sizeof o->name, "%s", name);
    o->best = 1e9;
    return o;
}

static int out_size(int in, int kernel, int stride, int padding)
{
    return (in + 2 * padding - kernel) / stride + 1;
}

/* The last convolution of a block whose downsample it takes along. */
struct branch {
    int in, stride, height, width, from;
};

static void add_conv(int threads, const char *name, int in, int out, int kernel, int stride, int *h, int *w, int from,
                     int to, int residual, bool relu, bool f32, const struct branch *branch)
{
    struct operation *o = add(name);
    const int padding = kernel / 2, branch_in = branch ? branch->in : 0;
    o->conv = (struct conv){.params = {in, out, {kernel, kernel}, {stride, stride}, {padding, padding}, {1, 1}, 1},
                            .relu = relu,
                            .has_residual = residual >= 0,
                            .linear = f32,
                            .output_f32 = f32};
    o->geometry = (struct conv_geometry){.n = 1,
                                         .in_h = *h,
                                         .in_w = *w,
                                         .out_h = out_size(*h, kernel, stride, padding),
                                         .out_w = out_size(*w, kernel, stride, padding)};
    if (branch) {
        o->conv.has_branch = true;
        o->conv.branch =
            (struct conv_params){branch_in, out, {1, 1}, {branch->stride, branch->stride}, {0, 0}, {1, 1}, 1};
        o->geometry.branch_h = branch->height;
        o->geometry.branch_w = branch->width;
    }
    *h = o->geometry.out_h;
    *w = o->geometry.out_w;
    o->kernel = kernels_conv(&kernels_amx, &o->conv);
    o->kernel->plan(&o->conv, &o->geometry, threads, &o->work);
    o->tasks = o->work.tasks;
    o->flops = 2.0 * out * (in * kernel * kernel + branch_in) * *h * *w;
    scratch_bytes = o->work.scratch_bytes > scratch_bytes ? o->work.scratch_bytes : scratch_bytes;

    const size_t weights = (size_t)out * (size_t)(in * kernel * kernel + branch_in);
    float *weight = malloc(weights * sizeof *weight), *bias = calloc((size_t)out, sizeof *bias);
    void *packed = map(o->kernel->packed_bytes(&o->conv));
    if (!weight || !bias)
        exit(1);
    uint32_t seed = 1;
    for (size_t i = 0; i < weights; i++) {
        seed = seed * 1664525u + 1013904223u;
        weight[i] = ((float)(seed >> 8) / 8388608.0f - 1.0f) / (float)(in * kernel * kernel) * 8.0f;
    }
    o->kernel->pack(&o->conv, weight, bias, packed);
    packed_total += o->kernel->packed_bytes(&o->conv);
    free(bias);
    free(weight);
    o->buffers = (struct conv_buffers){.input = activations[from],
                                       .packed = packed,
                                       .residual = residual < 0 ? NULL : activations[residual],
                                       .branch = branch ? activations[branch->from] : NULL,
                                       .output = activations[to]};
}

static void add_pool(const char *name, void (*run)(const struct pool *, int), const struct pool_params *params,
                     int channels, int *h, int *w, int out_h, int out_w, int from, int to)
{
    struct operation *o = add(name);
    o->pool = (struct pool){params, 1, channels, *h, *w, out_h, out_w, activations[from], activations[to]};
    o->pool_run = run;
    o->tasks = out_h;
    *h = out_h;
    *w = out_w;
}

/* Values live in four buffers: the block's input, two inner ones, and the output of a block with a downsample; the
 * others' output takes the place of their residual. */
static void build(int threads, int h, int w)
{
    static const struct pool_params max_params = {{3, 3}, {2, 2}, {1, 1}, {1, 1}, false, true, 0};
    static const int blocks[] = {3, 4, 6, 3};
    int in = 64, x = 0; /* x: the buffer of the block's input */
    char name[32];

    add_conv(threads, "conv1", 3, 64, 7, 2, &h, &w, 0, 1, -1, true, false, NULL);
    add_pool("maxpool", kernels_amx.max_pool, &max_params, 64, &h, &w, out_size(h, 3, 2, 1), out_size(w, 3, 2, 1), 1,
             0);
    for (int stage = 0; stage < 4; stage++)
        for (int block = 0; block < blocks[stage]; block++) {
            const int planes = 64 << stage, stride = stage && !block ? 2 : 1;
            const struct branch downsample = {in, stride, h, w, x};
            snprintf(name, sizeof name, "layer%d.%d.conv1", stage + 1, block ? 1 : 0);
            add_conv(threads, name, in, planes, 1, 1, &h, &w, x, 1, -1, true, false, NULL);
            snprintf(name, sizeof name, "layer%d.%d.conv2", stage + 1, block ? 1 : 0);
            add_conv(threads, name, planes, planes, 3, stride, &h, &w, 1, 2, -1, true, false, NULL);
            snprintf(name, sizeof name, "layer%d.%d.conv3", stage + 1, block ? 1 : 0);
            if (block) {
                add_conv(threads, name, planes, planes * 4, 1, 1, &h, &w, 2, x, x, true, false, NULL);
            } else {
                const int to = x ? 0 : 3;
                add_conv(threads, name, planes, planes * 4, 1, 1, &h, &w, 2, to, -1, true, false, &downsample);
                x = to;
            }
            in = planes * 4;
        }
    add_pool("avgpool", kernels_amx.adaptive_avg_pool, NULL, 2048, &h, &w, 1, 1, x, 1);
    add_conv(threads, "fc", 2048, 1000, 1, 1, &h, &w, 1, 2, -1, false, true, NULL);
}

static void run_task(void *arg, int index, void *scratch)
{
    const struct operation *o = arg;
    if (o->kernel)
        o->kernel->run(&o->conv, &o->geometry, &o->work, &o->buffers, index, scratch);
    else
        o->pool_run(&o->pool, index);
}

int main(int argc, char **argv)
{
    const int threads = argc > 1 ? atoi(argv[1]) : 1, passes = argc > 2 ? atoi(argv[2]) : 100;
    const int height = argc > 3 ? atoi(argv[3]) : 224, width = argc > 4 ? atoi(argv[4]) : height;
    const clockid_t id = threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
    struct rn_error error;
    struct team *team;
    char why[200];

    if (!kernels_amx.available(why, sizeof why)) {
        printf("SKIPPED: %s\n", why);
        return 0;
    }
    const double peak = peak_flops();
    for (int i = 0; i < BUFFERS; i++)
        activations[i] = map((size_t)((height + 1) / 2) * (size_t)((width + 1) / 2) * 64 * 2 + 65536 * 2);
    build(threads, height, width);
    if (team_create(threads, &team, &error) || team_start_helpers(team, &error) ||
        team_reserve(team, scratch_bytes, &error)) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }

    for (int i = 0, last = -1; i < count; i++)
        if (operations[i].kernel) {
            if (last >= 0) {
                operations[last].buffers.upcoming = operations[i].buffers.packed;
                operations[last].buffers.upcoming_bytes = operations[i].kernel->packed_bytes(&operations[i].conv);
            }
            last = i;
        }

    double best_pass = 1e9, sum = 0, flops = 0;
    for (int pass = 0; pass < passes; pass++) {
        const double begin = clock_s(id);
        team_begin(team);
        for (int i = 0; i < count; i++) {
            const double start = clock_s(id);
            team_run(team, operations[i].tasks, run_task, &operations[i]);
            const double t = clock_s(id) - start;
            operations[i].best = t < operations[i].best ? t : operations[i].best;
        }
        team_end(team);
        const double t = clock_s(id) - begin;
        best_pass = t < best_pass ? t : best_pass;
    }

    printf("AMX bf16 peak %.2f TFLOP/s a core, %d thread%s, %dx%d, %d passes, weights %.1f MB, scratch %.0f KB\n",
           peak / 1e12, threads, threads == 1 ? "" : "s", height, width, passes, (double)packed_total / 1e6,
           (double)scratch_bytes / 1024);
    printf("%-20s %5s %9s %8s %6s %9s\n", "layer", "times", "us each", "TFLOP/s", "peak", "us all");
    for (int i = 0; i < count; i++) {
        const struct operation *o = &operations[i];
        bool seen = false;
        double total = 0;
        int times = 0;
        for (int j = 0; j < count; j++)
            if (strcmp(operations[j].name, o->name) == 0) {
                seen |= j < i;
                total += operations[j].best;
                times++;
            }
        sum += o->best;
        flops += o->flops;
        if (!seen)
            printf("%-20s %5d %9.1f %8.2f %5.0f%% %9.1f\n", o->name, times, total / times * 1e6,
                   o->flops * times / total / 1e12, o->flops * times / total / peak / threads * 100, total * 1e6);
    }
    printf("sum of best layers %.3f ms, best pass %.3f ms, %.2f TFLOP/s, %.0f%% of peak\n", sum * 1e3, best_pass * 1e3,
           flops / sum / 1e12, flops / sum / peak / threads * 100);
    team_destroy(team);
    return 0;
}
