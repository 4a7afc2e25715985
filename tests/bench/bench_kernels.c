/* bench_kernels.c - the convolutions of a network, one by one, through one kernel table.
 *
 *   bench_kernels [--table NAME] [--threads N] [--size HxW] [--passes N] [--network NAME] [--all]
 *
 * The layers run in the network's order, each with weights of its own, so that weights come from as far away as
 * they do in earnest; a layer's time is the best of all passes, since others may share the machine. The FMA
 * peak of the same core is measured between the passes, with the table's vectors; its median counts. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "../../model/kernels.h"
#include "../../model/sizes.h"
#include "../../model/team.h"

enum { MAX_LAYERS = 64, HUGE_PAGE = 2 * 1024 * 1024 };

struct layer {
    char name[40];
    struct conv conv;
    struct conv_geometry geometry;
    const struct conv_kernel *kernel;
    void *packed;
    struct conv_work work;
    struct conv_buffers buffers;
    double best_s, flops;
};

struct bench {
    const struct kernels *table;
    int threads, height, width, passes;
    bool all;
    struct layer layers[MAX_LAYERS];
    int count;
    int at_h, at_w, at_c; /* while building: the shape that has been reached */
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fill(float *values, size_t count, float scale)
{
    uint32_t seed = 12345;
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = scale * ((float)(seed >> 8) * (1.0f / 8388608.0f) - 1.0f);
    }
}

/* ---- the FMA peak: independent sums in registers, of operands with all bits in use, since constants that settle
 * let the core run faster than any real work ---- */

#if defined(__x86_64__)
#include <immintrin.h>

enum { PEAK_ROUNDS = 400000, PEAK_CHAINS = 10 };

#define PEAK_STEP(i)    c##i = FMA(i % 2 ? x : y, z, c##i);
#define PEAK_LIST(X)    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9)
#define PEAK_DECLARE(i) VEC c##i = LOAD(operands + i);

__attribute__((target("avx512f"))) static void peak_avx512(const float *operands)
{
#define VEC  __m512
#define LOAD _mm512_loadu_ps
#define FMA  _mm512_fmadd_ps
    const VEC x = LOAD(operands), y = LOAD(operands + 16), z = LOAD(operands + 32);
    PEAK_LIST(PEAK_DECLARE)
    for (int i = 0; i < PEAK_ROUNDS; i++) {
        PEAK_LIST(PEAK_STEP)
    }
    __asm__ volatile("" ::"v"(c0), "v"(c1), "v"(c2), "v"(c3), "v"(c4), "v"(c5), "v"(c6), "v"(c7), "v"(c8), "v"(c9));
#undef VEC
#undef LOAD
#undef FMA
}

__attribute__((target("avx2,fma"))) static void peak_avx2(const float *operands)
{
#define VEC  __m256
#define LOAD _mm256_loadu_ps
#define FMA  _mm256_fmadd_ps
    const VEC x = LOAD(operands), y = LOAD(operands + 16), z = LOAD(operands + 32);
    PEAK_LIST(PEAK_DECLARE)
    for (int i = 0; i < PEAK_ROUNDS; i++) {
        PEAK_LIST(PEAK_STEP)
    }
    __asm__ volatile("" ::"x"(c0), "x"(c1), "x"(c2), "x"(c3), "x"(c4), "x"(c5), "x"(c6), "x"(c7), "x"(c8), "x"(c9));
#undef VEC
#undef LOAD
#undef FMA
}
#endif

/* GFLOP/s of one core in the vectors that the table uses; 0 where it is not known. */
static double fma_peak(const struct kernels *table)
{
#if defined(__x86_64__)
    const bool wide = strcmp(table->name, "avx2") != 0 && __builtin_cpu_supports("avx512f");
    if (!__builtin_cpu_supports("fma"))
        return 0;
    float operands[48];
    fill(operands, 48, 1.0f);
    const double start = now_s();
    if (wide)
        peak_avx512(operands);
    else
        peak_avx2(operands);
    return 2.0 * PEAK_ROUNDS * PEAK_CHAINS * (wide ? 16 : 8) / (now_s() - start) * 1e-9;
#else
    (void)table;
    return 0;
#endif
}

/* ---- the networks ---- */

static int shrink(int size, const struct conv_params *p, int d)
{
    return (size + 2 * p->padding[d] - p->dilation[d] * (p->kernel[d] - 1) - 1) / p->stride[d] + 1;
}

/* Append a convolution of the shape in `b->at_*`; the result is the new shape. */
static void add_conv(struct bench *b, const char *name, int out, int kernel, int stride, bool relu, bool residual)
{
    struct layer *l = &b->layers[b->count++];
    if (b->count > MAX_LAYERS)
        abort();
    snprintf(l->name, sizeof l->name, "%s", name);
    l->conv = (struct conv){.relu = relu, .has_residual = residual};
    l->conv.params = (struct conv_params){.in = b->at_c, .out = out, .groups = 1};
    for (int d = 0; d < 2; d++) {
        l->conv.params.kernel[d] = kernel;
        l->conv.params.stride[d] = stride;
        l->conv.params.padding[d] = kernel / 2;
        l->conv.params.dilation[d] = 1;
    }
    l->geometry = (struct conv_geometry){.n = 1, .in_h = b->at_h, .in_w = b->at_w};
    b->at_h = l->geometry.out_h = shrink(b->at_h, &l->conv.params, 0);
    b->at_w = l->geometry.out_w = shrink(b->at_w, &l->conv.params, 1);
    b->at_c = out;
    l->flops = 2.0 * kernel * kernel * l->conv.params.in * out * l->geometry.out_h * l->geometry.out_w;
}

static void add_stem(struct bench *b)
{
    add_conv(b, "conv1", 64, 7, 2, true, false);
    b->at_h = (b->at_h - 1) / 2 + 1;
    b->at_w = (b->at_w - 1) / 2 + 1;
}

static void build_resnet(struct bench *b, bool bottleneck, const int *blocks)
{
    char name[40];
    add_stem(b);
    for (int stage = 0; stage < 4; stage++) {
        const int planes = 64 << stage, out = bottleneck ? 4 * planes : planes;
        for (int block = 0; block < blocks[stage]; block++) {
            const int stride = stage > 0 && block == 0 ? 2 : 1, h = b->at_h, w = b->at_w, c = b->at_c;
            int step = 1;
            if (c != out || stride != 1) {
                snprintf(name, sizeof name, "layer%d.%d.downsample", stage + 1, block);
                add_conv(b, name, out, 1, stride, false, false);
                b->at_h = h, b->at_w = w, b->at_c = c;
            }
            if (bottleneck) {
                snprintf(name, sizeof name, "layer%d.%d.conv%d", stage + 1, block, step++);
                add_conv(b, name, planes, 1, 1, true, false);
            }
            snprintf(name, sizeof name, "layer%d.%d.conv%d", stage + 1, block, step++);
            add_conv(b, name, planes, 3, stride, true, false);
            snprintf(name, sizeof name, "layer%d.%d.conv%d", stage + 1, block, step);
            add_conv(b, name, out, bottleneck ? 1 : 3, 1, true, true);
        }
    }
    b->at_h = b->at_w = 1;
    add_conv(b, "fc", 1000, 1, 1, false, false);
}

static void build_vgg16(struct bench *b)
{
    static const int depth[] = {2, 2, 3, 3, 3};
    char name[40];
    for (int stage = 0; stage < 5; stage++) {
        for (int i = 0; i < depth[stage]; i++) {
            snprintf(name, sizeof name, "conv%d.%d", stage + 1, i + 1);
            add_conv(b, name, stage < 3 ? 64 << stage : 512, 3, 1, true, false);
        }
        b->at_h /= 2, b->at_w /= 2;
    }
    b->at_c *= 49, b->at_h = b->at_w = 1;
    add_conv(b, "fc6", 4096, 1, 1, true, false);
    add_conv(b, "fc7", 4096, 1, 1, true, false);
    add_conv(b, "fc8", 1000, 1, 1, false, false);
}

static bool build(struct bench *b, const char *network)
{
    b->at_h = b->height, b->at_w = b->width, b->at_c = 3;
    if (strcmp(network, "resnet50") == 0)
        build_resnet(b, true, (const int[]){3, 4, 6, 3});
    else if (strcmp(network, "resnet18") == 0)
        build_resnet(b, false, (const int[]){2, 2, 2, 2});
    else if (strcmp(network, "resnet34") == 0)
        build_resnet(b, false, (const int[]){3, 4, 6, 3});
    else if (strcmp(network, "vgg16") == 0)
        build_vgg16(b);
    else
        return false;
    return true;
}

/* ---- running ---- */

/* Zeroed, aligned to huge pages as the engine's weights are. */
static void *allocate(size_t bytes)
{
    const size_t size = size_round_up(bytes + KERNEL_ALIGNMENT, HUGE_PAGE);
    void *memory = aligned_alloc(HUGE_PAGE, size);
    if (!memory) {
        fprintf(stderr, "bench_kernels: no memory\n");
        exit(1);
    }
    madvise(memory, size, MADV_HUGEPAGE);
    memset(memory, 0, size);
    return memory;
}

static void run_task(void *arg, int index, void *scratch)
{
    const struct layer *l = arg;
    l->kernel->run(&l->conv, &l->geometry, &l->work, &l->buffers, index, scratch);
}

static size_t pixels_in(const struct conv_geometry *g)
{
    return (size_t)g->n * (size_t)g->in_h * (size_t)g->in_w;
}

static size_t pixels_out(const struct conv_geometry *g)
{
    return (size_t)g->n * (size_t)g->out_h * (size_t)g->out_w;
}

/* Pack and plan every layer; returns the scratch that the largest needs. */
static size_t prepare(struct bench *b, size_t *packed_bytes)
{
    size_t activation = 0, weights = 0, scratch = 0;
    for (int i = 0; i < b->count; i++) {
        const struct layer *l = &b->layers[i];
        const struct conv_params *p = &l->conv.params;
        const size_t in = activation_elements(b->table, (size_t)p->in, pixels_in(&l->geometry));
        const size_t out = activation_elements(b->table, (size_t)p->out, pixels_out(&l->geometry));
        const size_t w = (size_t)p->in * (size_t)p->out * (size_t)(p->kernel[0] * p->kernel[1]);
        activation = in > activation ? in : activation;
        activation = out > activation ? out : activation;
        weights = w > weights ? w : weights;
    }
    float *values = allocate(activation * sizeof(float)), *weight = allocate(weights * sizeof(float));
    float *bias = allocate(65536 * sizeof(float));
    void *rotating[3];
    fill(values, activation, 1.0f);
    for (int i = 0; i < 3; i++) {
        rotating[i] = allocate(activation * activation_bytes(b->table->activation));
        b->table->from_f32(values, rotating[i], activation);
    }
    void *reached = rotating[0];
    *packed_bytes = 0;
    for (int i = 0; i < b->count; i++) {
        struct layer *l = &b->layers[i];
        const struct conv_params *p = &l->conv.params;
        const size_t count = (size_t)p->in * (size_t)p->out * (size_t)(p->kernel[0] * p->kernel[1]);
        fill(weight, count, 1.0f / (float)(p->in * p->kernel[0] * p->kernel[1]));
        l->kernel = kernels_conv(b->table, &l->conv);
        *packed_bytes += l->kernel->packed_bytes(&l->conv);
        l->packed = allocate(l->kernel->packed_bytes(&l->conv));
        l->kernel->pack(&l->conv, weight, bias, l->packed);
        l->kernel->plan(&l->conv, &l->geometry, b->threads, &l->work);
        /* Blocks add in place, as the engine's layout has it. */
        l->buffers = (struct conv_buffers){
            .input = reached, .packed = l->packed, .residual = l->conv.has_residual ? rotating[2] : NULL};
        reached = l->conv.has_residual ? rotating[2] : reached == rotating[0] ? rotating[1] : rotating[0];
        l->buffers.output = reached;
        l->best_s = 1e9;
        scratch = l->work.scratch_bytes > scratch ? l->work.scratch_bytes : scratch;
    }
    free(bias);
    free(weight);
    free(values);
    return scratch;
}

static void same_shape_best(struct bench *b, int i, double *best_s, int *count)
{
    const struct layer *l = &b->layers[i];
    *best_s = 0;
    *count = 0;
    for (int j = 0; j < b->count; j++) {
        const struct layer *o = &b->layers[j];
        if (memcmp(&o->conv, &l->conv, sizeof l->conv) == 0 &&
            memcmp(&o->geometry, &l->geometry, sizeof l->geometry) == 0) {
            if (j < i) {
                *count = 0;
                return;
            }
            *best_s += o->best_s;
            ++*count;
        }
    }
}

static void print_layers(const struct bench *b, double peak)
{
    struct bench *mutable_b = (struct bench *)(uintptr_t)b;
    double total_s = 0, flops = 0;
    printf("%-22s %-30s %-24s %5s %8s %9s %6s\n", "layer", "shape", "kernel", "times", "ms each", "GFLOP/s", "peak");
    for (int i = 0; i < b->count; i++) {
        const struct layer *l = &b->layers[i];
        const struct conv_params *p = &l->conv.params;
        double best_s = l->best_s;
        int count = 1;
        char shape[64];
        total_s += l->best_s;
        flops += l->flops;
        if (!b->all)
            same_shape_best(mutable_b, i, &best_s, &count);
        if (!count)
            continue;
        snprintf(shape, sizeof shape, "%dx%d %d->%d%s @%dx%d%s", p->kernel[0], p->kernel[1], p->in, p->out,
                 p->stride[0] > 1 ? "/2" : "", l->geometry.out_h, l->geometry.out_w,
                 l->conv.has_residual ? " +res" : "");
        printf("%-22s %-30s %-24s %5d %8.3f %9.1f %5.0f%%\n", l->name, shape, l->kernel->name, count,
               best_s / count * 1e3, l->flops * count / best_s * 1e-9,
               peak > 0 ? 100 * l->flops * count / best_s * 1e-9 / (peak * b->threads) : 0);
    }
    printf("%-22s %.2f GFLOP, %.3f ms, %.1f GFLOP/s, %.0f%% of the peak\n", "sum of best", flops * 1e-9, total_s * 1e3,
           flops / total_s * 1e-9, peak > 0 ? 100 * flops / total_s * 1e-9 / (peak * b->threads) : 0);
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int run(struct bench *b)
{
    struct rn_error error;
    struct team *team = NULL;
    size_t packed_bytes;
    double *peaks = allocate((size_t)b->passes * sizeof(double)), best_pass_s = 1e9;
    const size_t scratch = prepare(b, &packed_bytes);
    if (team_create(b->threads, &team, &error) || team_reserve(team, scratch, &error) ||
        team_start_helpers(team, &error)) {
        fprintf(stderr, "bench_kernels: %s\n", error.text);
        team_destroy(team);
        return 1;
    }
    for (int pass = 0; pass < b->passes; pass++) {
        double pass_s = 0;
        peaks[pass] = fma_peak(b->table);
        team_begin(team);
        for (int i = 0; i < b->count; i++) {
            struct layer *l = &b->layers[i];
            const double start = now_s();
            team_run(team, l->work.tasks, run_task, l);
            const double took = now_s() - start;
            l->best_s = took < l->best_s ? took : l->best_s;
            pass_s += took;
        }
        team_end(team);
        best_pass_s = pass_s < best_pass_s ? pass_s : best_pass_s;
    }
    team_destroy(team);
    qsort(peaks, (size_t)b->passes, sizeof *peaks, compare_doubles);
    const double peak = peaks[b->passes / 2];
    printf("table %s, %d thread%s, %dx%d, packed %.1f MB, scratch %.0f KB, FMA peak %.1f GFLOP/s a core\n",
           b->table->name, b->threads, b->threads > 1 ? "s" : "", b->height, b->width, (double)packed_bytes * 1e-6,
           (double)scratch * 1e-3, peak);
    print_layers(b, peak);
    printf("%-22s %.3f ms\n", "best pass", best_pass_s * 1e3);
    free(peaks);
    return 0;
}

int main(int argc, char **argv)
{
    static struct bench b = {.threads = 1, .height = 224, .width = 224, .passes = 30};
    const char *table = "auto", *network = "resnet50";
    struct rn_error error;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--all") == 0) {
            b.all = true;
            continue;
        }
        if (strcmp(argv[i], "--table") == 0)
            table = value;
        else if (strcmp(argv[i], "--network") == 0)
            network = value;
        else if (strcmp(argv[i], "--threads") == 0)
            b.threads = atoi(value);
        else if (strcmp(argv[i], "--passes") == 0)
            b.passes = atoi(value);
        else if (strcmp(argv[i], "--size") == 0)
            sscanf(value, "%dx%d", &b.height, &b.width);
        else {
            fprintf(stderr, "bench_kernels: unknown argument %s\n", argv[i]);
            return 2;
        }
        i++;
    }
    if (b.threads < 1 || b.passes < 1 || b.height < 1 || b.width < 1 || !build(&b, network)) {
        fprintf(stderr, "bench_kernels: threads, passes and sizes are at least 1; networks are resnet18, resnet34, "
                        "resnet50 and vgg16\n");
        return 2;
    }
    if (kernels_choose(table, "auto", &b.table, NULL, NULL, &error)) {
        fprintf(stderr, "bench_kernels: %s\n", error.text);
        return 1;
    }
    return run(&b);
}
