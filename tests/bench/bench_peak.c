/* bench_peak.c - what the cores can do at most, to compare the engine with: independent chains of
 * multiply-adds in registers, no memory.
 *
 *   bench_peak THREADS
 *
 * Prints one JSON line when it starts; then, for every line "run" that it reads, one with the GFLOP/s of all
 * threads together: fp32 multiply-adds with AVX2 and AVX-512, bf16 tile products with AMX; null where the
 * machine has none. It is asked between the runs of the others, since clocks change with the neighbours' load.
 * The line "probe" measures only the last of these that the machine has, in a few milliseconds, and counts the slowest
 * of them: a virtual machine's core has half of it, or less, while a neighbour works on the core's other hardware
 * thread, even if only for a millisecond. */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../model/clock.h"

enum { MAX_THREADS = 256, WARM_UP = 8, BURSTS = 16, PROBE_WARM_UP = 1, PROBE_BURSTS = 4 };

/* A burst of work and the floating-point operations in it. */
struct burst {
    const char *name;
    bool (*available)(void);
    void (*run)(void);
    double operations;
};

#if defined(__x86_64__)

#include <immintrin.h>
#include <sys/syscall.h>

enum { CHAINS = 12, STEPS = 400000, TILE_STEPS = 40000 };

/* What is multiplied: bits without a pattern, since a core that multiplies zeros draws less power and clocks higher
 * than real work lets it. All lie in [0.5, 1) or (-1, -0.5], as float32 and as pairs of bf16. */
static uint32_t operands[16][16] __attribute__((aligned(64))), tile_operands[16][16] __attribute__((aligned(64)));

static void fill_operands(void)
{
    uint32_t state = 2463534242u;

    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            operands[i][j] = 0x3f000000u | (state & 0x807fffffu);
            tile_operands[i][j] = 0x3f003f00u | (state & 0x807f807fu);
        }
}

/* Assembly, so that the sums stay in registers whatever the compiler thinks of it. Registers 0 to 11 are the
 * chains, enough for two units of four cycles' latency: sum += r13 * r14 or r13 * r15. */
#define CHAIN_LIST(EVEN, ODD)                                                                                          \
    EVEN(0) ODD(1) EVEN(2) ODD(3) EVEN(4) ODD(5) EVEN(6) ODD(7) EVEN(8) ODD(9) EVEN(10) ODD(11)
#define LOAD(i, v)     "vmovups " #i "*64(%1), %%" v #i "\n\t"
#define LOAD_AVX2(i)   LOAD(i, "ymm")
#define LOAD_AVX512(i) LOAD(i, "zmm")
#define EVEN_AVX2(i)   "vfmadd231ps %%ymm14, %%ymm13, %%ymm" #i "\n\t"
#define ODD_AVX2(i)    "vfmadd231ps %%ymm15, %%ymm13, %%ymm" #i "\n\t"
#define EVEN_AVX512(i) "vfmadd231ps %%zmm14, %%zmm13, %%zmm" #i "\n\t"
#define ODD_AVX512(i)  "vfmadd231ps %%zmm15, %%zmm13, %%zmm" #i "\n\t"
#define BURST(LOAD_ONE, EVEN, ODD)                                                                                     \
    __asm__ volatile(CHAIN_LIST(LOAD_ONE, LOAD_ONE) LOAD_ONE(13) LOAD_ONE(14)                                          \
                         LOAD_ONE(15) "1:\n\t" CHAIN_LIST(EVEN, ODD) "sub $1, %0\n\tjnz 1b\n\tvzeroupper"              \
                     : "+r"(steps)                                                                                     \
                     : "r"(operands)                                                                                   \
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",        \
                       "xmm11", "xmm13", "xmm14", "xmm15", "cc", "memory")

static void run_avx2(void)
{
    int steps = STEPS;
    BURST(LOAD_AVX2, EVEN_AVX2, ODD_AVX2);
}

static void run_avx512(void)
{
    int steps = STEPS;
    BURST(LOAD_AVX512, EVEN_AVX512, ODD_AVX512);
}

/* Four 16x16 sums, as kernels keep them, so that a product need not wait for the one before it. */
__attribute__((target("avx512f,amx-tile,amx-bf16"))) static void run_amx(void)
{
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } tiles = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

    _tile_loadconfig(&tiles);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, tile_operands, sizeof tile_operands[0]);
    _tile_loadd(5, tile_operands, sizeof tile_operands[0]);
    _tile_loadd(6, tile_operands, sizeof tile_operands[0]);
    _tile_loadd(7, tile_operands, sizeof tile_operands[0]);
    for (int i = 0; i < TILE_STEPS; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f");
}

/* The kernel gives the tiles' state only to a process that asks for it, and refuses where there is none. */
static bool has_amx(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;

    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    return has_avx512() && (d >> 22 & 1) && (d >> 24 & 1) &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

static const struct burst BURST_KINDS[] = {
    {"avx2", has_avx2, run_avx2, 2.0 * 8 * CHAINS *STEPS},
    {"avx512", has_avx512, run_avx512, 2.0 * 16 * CHAINS *STEPS},
    {"amx", has_amx, run_amx, 2.0 * 16 * 16 * 32 * 4 * TILE_STEPS},
};

#else

static void fill_operands(void)
{
}

static bool has_nothing(void)
{
    return false;
}

static const struct burst BURST_KINDS[] = {
    {"avx2", has_nothing, NULL, 0}, {"avx512", has_nothing, NULL, 0}, {"amx", has_nothing, NULL, 0}};

#endif

enum { KINDS = sizeof BURST_KINDS / sizeof BURST_KINDS[0] };

struct lane {
    const struct burst *burst;
    pthread_barrier_t *barrier;
    int warm_up, bursts;
    double best, worst; /* GFLOP/s */
};

/* All threads start together; the first bursts do not count: the clock has not yet come down to what it can hold. A
 * burst takes about a millisecond. */
static void *run_lane(void *arg)
{
    struct lane *lane = arg;

    lane->best = lane->worst = 0;
    (void)pthread_barrier_wait(lane->barrier);
    for (int i = 0; i < lane->bursts; i++) {
        uint64_t start = clock_now_ns();
        lane->burst->run();
        double gflops = lane->burst->operations / (double)(clock_now_ns() - start);
        if (i < lane->warm_up)
            continue;
        if (gflops > lane->best)
            lane->best = gflops;
        if (i == lane->warm_up || gflops < lane->worst)
            lane->worst = gflops;
    }
    return NULL;
}

/* The sum over threads. */
static struct lane measure(const struct burst *burst, int threads, int warm_up, int bursts)
{
    struct lane lanes[MAX_THREADS];
    pthread_t ids[MAX_THREADS];
    pthread_barrier_t barrier;
    struct lane sum = {0};

    if (pthread_barrier_init(&barrier, NULL, (unsigned)threads))
        abort();
    for (int i = 0; i < threads; i++) {
        lanes[i] = (struct lane){burst, &barrier, warm_up, bursts, 0, 0};
        if (i > 0 && pthread_create(&ids[i], NULL, run_lane, &lanes[i]))
            abort();
    }
    (void)run_lane(&lanes[0]);
    for (int i = 0; i < threads; i++) {
        if (i > 0)
            (void)pthread_join(ids[i], NULL);
        sum.best += lanes[i].best;
        sum.worst += lanes[i].worst;
    }
    (void)pthread_barrier_destroy(&barrier);
    return sum;
}

/* The GFLOP/s of all threads: of the best burst of each, since others may share the machine. */
static double measure_peak(const struct burst *burst, int threads)
{
    return measure(burst, threads, WARM_UP, BURSTS).best;
}

/* Of the worst. */
static double probe(const struct burst *burst, int threads)
{
    return measure(burst, threads, PROBE_WARM_UP, PROBE_BURSTS).worst;
}

int main(int argc, char **argv)
{
    int threads = argc == 2 ? atoi(argv[1]) : 0;
    bool available[KINDS];
    char line[64];

    if (threads < 1 || threads > MAX_THREADS) {
        fprintf(stderr, "usage: bench_peak THREADS\n");
        return 2;
    }
    for (int i = 0; i < KINDS; i++)
        available[i] = BURST_KINDS[i].available();
    fill_operands();
    printf("{\"ready\": true, \"threads\": %d}\n", threads);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (strcmp(line, "probe\n") == 0) {
            int last = KINDS - 1;
            while (last > 0 && !available[last])
                last--;
            printf("{\"probe\": %.1f}\n", available[last] ? probe(&BURST_KINDS[last], threads) : 0.0);
            fflush(stdout);
            continue;
        }
        for (int i = 0; i < KINDS; i++) {
            printf("%s\"%s\": ", i ? ", " : "{", BURST_KINDS[i].name);
            if (available[i])
                printf("%.1f", measure_peak(&BURST_KINDS[i], threads));
            else
                printf("null");
        }
        printf("}\n");
        fflush(stdout);
    }
    return 0;
}
