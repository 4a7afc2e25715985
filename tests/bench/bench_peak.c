/* bench_peak.c - what the cores can do at most, to compare the engine with: independent chains of
 * multiply-adds in registers, no memory.
 *
 *   bench_peak THREADS
 *
 * Prints one JSON line when it starts; then, for every line "run" that it reads, one with the GFLOP/s of all
 * threads together: fp32 multiply-adds with AVX2 and AVX-512, bf16 tile products with AMX; null where the
 * machine has none. It is asked between the runs of the others, since clocks change with the neighbours' load. */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../model/clock.h"

enum { MAX_THREADS = 256, BURSTS = 8 };

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

enum { CHAINS = 12, STEPS = 40000, TILE_STEPS = 20000 };

/* Assembly, so that the sums stay in registers whatever the compiler thinks of it. Registers 0 to 11 are the
 * chains, enough for two units of four cycles' latency; all start at zero. */
#define CHAIN_LIST(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define ZERO(i)       "vxorps %%xmm" #i ", %%xmm" #i ", %%xmm" #i "\n\t"
#define FMA_AVX2(i)   "vfmadd231ps %%ymm15, %%ymm15, %%ymm" #i "\n\t"
#define FMA_AVX512(i) "vfmadd231ps %%zmm15, %%zmm15, %%zmm" #i "\n\t"
#define BURST(FMA)                                                                                                     \
    __asm__ volatile(CHAIN_LIST(ZERO) ZERO(15) "1:\n\t" CHAIN_LIST(FMA) "sub $1, %0\n\t"                               \
                                                                        "jnz 1b\n\t"                                   \
                                                                        "vzeroupper"                                   \
                     : "+r"(steps)::"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",    \
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "cc")

static void run_avx2(void)
{
    int steps = STEPS;
    BURST(FMA_AVX2);
}

static void run_avx512(void)
{
    int steps = STEPS;
    BURST(FMA_AVX512);
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
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
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
    double gflops;
};

/* All threads start together; the best of the bursts, since others may share the machine. */
static void *run_lane(void *arg)
{
    struct lane *lane = arg;

    lane->gflops = 0;
    (void)pthread_barrier_wait(lane->barrier);
    for (int i = 0; i < BURSTS; i++) {
        uint64_t start = clock_now_ns();
        lane->burst->run();
        double gflops = lane->burst->operations / (double)(clock_now_ns() - start);
        lane->gflops = gflops > lane->gflops ? gflops : lane->gflops;
    }
    return NULL;
}

static double measure(const struct burst *burst, int threads)
{
    struct lane lanes[MAX_THREADS];
    pthread_t ids[MAX_THREADS];
    pthread_barrier_t barrier;
    double sum = 0;

    if (pthread_barrier_init(&barrier, NULL, (unsigned)threads))
        abort();
    for (int i = 0; i < threads; i++) {
        lanes[i] = (struct lane){burst, &barrier, 0};
        if (i > 0 && pthread_create(&ids[i], NULL, run_lane, &lanes[i]))
            abort();
    }
    (void)run_lane(&lanes[0]);
    for (int i = 0; i < threads; i++) {
        if (i > 0)
            (void)pthread_join(ids[i], NULL);
        sum += lanes[i].gflops;
    }
    (void)pthread_barrier_destroy(&barrier);
    return sum;
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
    printf("{\"ready\": true, \"threads\": %d}\n", threads);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        for (int i = 0; i < KINDS; i++) {
            printf("%s\"%s\": ", i ? ", " : "{", BURST_KINDS[i].name);
            if (available[i])
                printf("%.1f", measure(&BURST_KINDS[i], threads));
            else
                printf("null");
        }
        printf("}\n");
        fflush(stdout);
    }
    return 0;
}
