/* bench_engine.c - one kernel table of the engine, as a process that measures when it is told to, so that
 * bench.py can take turns between it and its peers.
 *
 *   bench_engine --model DESCRIPTION --weights FILE [--kernels NAME] [--threads N]
 *
 * Prints one JSON line when it is ready, then one for every line it reads:
 *   shape N H W             prepare for this input; the logits of the test input, and the memory it takes
 *   run K                   K forward passes: milliseconds of each
 *   ops K                   K forward passes: every operation with its median time
 *   throughput WORKERS S    WORKERS threads run one pass each, over and over, for S seconds
 *
 * With `--size HxW` (and `--batch N`, `--passes K`) it does shape, run and ops once, prints one JSON object
 * with the median, the fastest, the 99th percentile and the table of operations, and ends. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../model/clock.h"
#include "../../model/model.h"

enum { WARM_UP = 3, MAX_WORKERS = 256 };

struct bench {
    struct model *model;
    struct team *team;
    struct pass *pass;
    const struct model_plan *plan; /* of the last `shape` */
    float *input;                  /* [n, h, w, c], the test input */
    float *logits;                 /* [n, classes] */
    int threads;
};

_Noreturn static void fail(const char *what)
{
    printf("{\"ready\": false, \"error\": \"%s\"}\n", what);
    exit(1);
}

static void *must(void *memory)
{
    if (!memory)
        fail("out of memory");
    return memory;
}

static int compare_ns(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static double ms(uint64_t ns)
{
    return (double)ns / 1e6;
}

/* A line of /proc/self/status in bytes: "VmRSS:", "VmHWM:". */
static uint64_t memory_of(const char *field)
{
    FILE *status = fopen("/proc/self/status", "r");
    char line[128];
    uint64_t bytes = 0;

    while (status && fgets(line, sizeof line, status))
        if (strncmp(line, field, strlen(field)) == 0)
            bytes = strtoull(line + strlen(field), NULL, 10) * 1024;
    if (status)
        (void)fclose(status);
    return bytes;
}

/* The input that every peer makes for itself: a hash of the element's index in NCHW order, in [-2, 2).
 *   out  [n, h, w, c] */
static void test_input(float *out, const struct shape *shape)
{
    uint32_t i = 0;

    for (int n = 0; n < shape->n; n++)
        for (int c = 0; c < shape->c; c++)
            for (int y = 0; y < shape->h; y++)
                for (int x = 0; x < shape->w; x++, i++)
                    out[(((size_t)n * (size_t)shape->h + (size_t)y) * (size_t)shape->w + (size_t)x) * (size_t)shape->c +
                        (size_t)c] = (float)(i * 2654435761u >> 8) * (4.0f / 16777216.0f) - 2.0f;
}

static const struct shape *input_shape(const struct model_plan *plan)
{
    return &model_plan_shapes(plan)->input;
}

static size_t classes_of(const struct bench *bench)
{
    return (size_t)model_network(bench->model)->classes;
}

/* A pass reuses its input's memory for later activations, so every pass gets the input anew. */
static void set_input(const struct bench *bench, struct pass *pass)
{
    memcpy(pass_input(pass, bench->plan), bench->input, shape_elements(input_shape(bench->plan)) * sizeof(float));
}

static void forward(struct bench *bench)
{
    model_forward(bench->model, bench->plan, bench->pass, bench->logits);
}

static bool command_shape(struct bench *bench, int n, int height, int width, bool say)
{
    const struct model_plan *plan;
    struct rn_error error;

    if (model_plan_acquire(bench->model, n, height, width, &plan, &error) || pass_prepare(bench->pass, plan, &error)) {
        printf("{\"error\": \"%s\"}\n", error.text);
        return false;
    }
    model_plan_release(bench->model, bench->plan);
    bench->plan = plan;
    free(bench->input);
    free(bench->logits);
    bench->input = must(malloc(shape_elements(input_shape(plan)) * sizeof(float)));
    bench->logits = must(calloc((size_t)n * classes_of(bench), sizeof(float)));
    test_input(bench->input, input_shape(plan));
    if (!say)
        return true;
    set_input(bench, bench->pass);
    forward(bench);
    printf("{\"multiply_adds\": %llu, \"activation_bytes\": %llu, \"scratch_bytes\": %llu, \"packed_bytes\": %llu, "
           "\"rss_bytes\": %llu, \"logits\": [",
           (unsigned long long)model_plan_shapes(plan)->multiply_adds,
           (unsigned long long)model_plan_activation_bytes(plan),
           (unsigned long long)model_plan_scratch_bytes(plan, bench->threads),
           (unsigned long long)model_packed_bytes(bench->model), (unsigned long long)memory_of("VmRSS:"));
    for (size_t i = 0; i < classes_of(bench); i++)
        printf("%s%.9g", i ? ", " : "", (double)bench->logits[i]);
    printf("]}\n");
    return true;
}

/*   samples  [count], in order */
static void measure(struct bench *bench, uint64_t *samples, int count)
{
    for (int i = 0; i < count; i++) {
        set_input(bench, bench->pass);
        uint64_t start = clock_now_ns();
        forward(bench);
        samples[i] = clock_now_ns() - start;
    }
}

static void command_run(struct bench *bench, int count)
{
    uint64_t *samples = must(calloc((size_t)count, sizeof *samples));

    measure(bench, samples, count);
    printf("{\"ms\": [");
    for (int i = 0; i < count; i++)
        printf("%s%.4f", i ? ", " : "", ms(samples[i]));
    printf("]}\n");
    free(samples);
}

/* ---- operations ---- */

enum { MAX_OPS = 1024 };

struct ops {
    int at, pass, passes;
    struct {
        char name[64], kernel[48];
        uint64_t multiply_adds;
        uint64_t *samples; /* [passes] */
    } rows[MAX_OPS];
};

static void report_op(void *arg, const char *name, const char *kernel, uint64_t multiply_adds, uint64_t nanoseconds)
{
    struct ops *ops = arg;

    if (ops->at == MAX_OPS)
        return;
    if (ops->pass == 0) {
        (void)snprintf(ops->rows[ops->at].name, sizeof ops->rows[0].name, "%s", name);
        (void)snprintf(ops->rows[ops->at].kernel, sizeof ops->rows[0].kernel, "%s", kernel);
        ops->rows[ops->at].multiply_adds = multiply_adds;
        ops->rows[ops->at].samples = must(calloc((size_t)ops->passes, sizeof(uint64_t)));
    }
    ops->rows[ops->at++].samples[ops->pass] = nanoseconds;
}

static void print_ops(struct bench *bench, int passes)
{
    struct ops *ops = must(calloc(1, sizeof *ops));

    ops->passes = passes;
    for (ops->pass = 0; ops->pass < passes; ops->pass++) {
        ops->at = 0;
        set_input(bench, bench->pass);
        model_forward_timed(bench->model, bench->plan, bench->pass, bench->logits, report_op, ops);
    }
    printf("\"ops\": [");
    for (int i = 0; i < ops->at; i++) {
        qsort(ops->rows[i].samples, (size_t)passes, sizeof(uint64_t), compare_ns);
        uint64_t median = ops->rows[i].samples[passes / 2];
        printf("%s\n  {\"name\": \"%s\", \"kernel\": \"%s\", \"multiply_adds\": %llu, \"ms\": %.4f, \"gflops\": %.1f}",
               i ? "," : "", ops->rows[i].name, ops->rows[i].kernel, (unsigned long long)ops->rows[i].multiply_adds,
               ms(median), median ? 2.0 * (double)ops->rows[i].multiply_adds / (double)median : 0);
        free(ops->rows[i].samples);
    }
    printf("]");
    free(ops);
}

/* ---- throughput: one image a thread, as on a busy server ---- */

struct lane {
    const struct bench *bench;
    uint64_t until_ns, images, ended_ns;
};

static void *run_lane(void *arg)
{
    struct lane *lane = arg;
    const struct bench *bench = lane->bench;
    struct team *team;
    struct pass *pass;
    struct rn_error error;
    float *logits = must(calloc((size_t)input_shape(bench->plan)->n * classes_of(bench), sizeof(float)));

    if (team_create(1, &team, &error) || pass_create(team, &pass, &error) || pass_prepare(pass, bench->plan, &error))
        fail(error.text);
    do {
        set_input(bench, pass);
        model_forward(bench->model, bench->plan, pass, logits);
        lane->images += (uint64_t)input_shape(bench->plan)->n;
        lane->ended_ns = clock_now_ns();
    } while (lane->ended_ns < lane->until_ns);
    pass_destroy(pass);
    team_destroy(team);
    free(logits);
    return NULL;
}

/* Each thread's rate counts over its own time, so that the last image of each need not end together. */
static void command_throughput(const struct bench *bench, int workers, double seconds)
{
    struct lane lanes[MAX_WORKERS];
    pthread_t threads[MAX_WORKERS];
    const uint64_t start = clock_now_ns();
    double rate = 0;

    for (int i = 0; i < workers; i++) {
        lanes[i] = (struct lane){bench, start + (uint64_t)(seconds * 1e9), 0, 0};
        if (pthread_create(&threads[i], NULL, run_lane, &lanes[i]))
            fail("a thread cannot be started");
    }
    for (int i = 0; i < workers; i++) {
        (void)pthread_join(threads[i], NULL);
        rate += (double)lanes[i].images * 1e9 / (double)(lanes[i].ended_ns - start);
    }
    printf("{\"images_per_s\": %.3f, \"rss_bytes\": %llu}\n", rate, (unsigned long long)memory_of("VmRSS:"));
}

/* ---- the two ways to run ---- */

static void take_commands(struct bench *bench)
{
    char line[128];
    int a, b, c;
    double seconds;

    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "shape %d %d %d", &a, &b, &c) == 3) {
            (void)command_shape(bench, a, b, c, true);
        } else if (!bench->plan) {
            printf("{\"error\": \"shape comes first\"}\n");
        } else if (sscanf(line, "run %d", &a) == 1 && a > 0) {
            command_run(bench, a);
        } else if (sscanf(line, "ops %d", &a) == 1 && a > 0) {
            printf("{");
            print_ops(bench, a);
            printf("}\n");
        } else if (sscanf(line, "throughput %d %lf", &a, &seconds) == 2 && a > 0 && a <= MAX_WORKERS) {
            command_throughput(bench, a, seconds);
        } else {
            printf("{\"error\": \"not a command\"}\n");
        }
        (void)fflush(stdout);
    }
}

static void run_once(struct bench *bench, int n, int height, int width, int passes)
{
    uint64_t *samples = must(calloc((size_t)passes, sizeof *samples)), warm[WARM_UP];

    if (!command_shape(bench, n, height, width, false))
        exit(1);
    measure(bench, warm, WARM_UP);
    measure(bench, samples, passes);
    qsort(samples, (size_t)passes, sizeof *samples, compare_ns);
    const uint64_t median = samples[passes / 2], multiply_adds = model_plan_shapes(bench->plan)->multiply_adds;
    printf("{\"kernels\": \"%s\", \"precision\": \"%s\", \"threads\": %d, \"shape\": [%d, %d, %d],\n"
           " \"median_ms\": %.4f, \"min_ms\": %.4f, \"p99_ms\": %.4f, \"gflops\": %.1f, \"multiply_adds\": %llu,\n"
           " \"activation_bytes\": %llu, \"scratch_bytes\": %llu, \"packed_bytes\": %llu, \"peak_rss_bytes\": %llu,\n ",
           model_kernels(bench->model)->name, model_kernels(bench->model)->precision, bench->threads, n, height, width,
           ms(median), ms(samples[0]), ms(samples[(passes * 99 - 1) / 100]),
           2.0 * (double)multiply_adds / (double)median, (unsigned long long)multiply_adds,
           (unsigned long long)model_plan_activation_bytes(bench->plan),
           (unsigned long long)model_plan_scratch_bytes(bench->plan, bench->threads),
           (unsigned long long)model_packed_bytes(bench->model), (unsigned long long)memory_of("VmHWM:"));
    print_ops(bench, passes);
    printf("}\n");
    free(samples);
}

int main(int argc, char **argv)
{
    struct bench bench = {.threads = 1};
    struct model_options options = {0};
    const char *kernels = "auto";
    int n = 1, height = 0, width = 0, passes = 20;
    struct rn_error error;

    for (int i = 1; i < argc; i += 2) {
        const char *flag = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(flag, "--model"))
            options.description_path = value;
        else if (!strcmp(flag, "--weights"))
            options.weights_path = value;
        else if (!strcmp(flag, "--kernels"))
            kernels = value;
        else if (!strcmp(flag, "--threads"))
            bench.threads = atoi(value);
        else if (!strcmp(flag, "--batch"))
            n = atoi(value);
        else if (!strcmp(flag, "--passes"))
            passes = atoi(value);
        else if (strcmp(flag, "--size") != 0 || sscanf(value, "%dx%d", &height, &width) != 2)
            fail("usage: bench_engine --model DESCRIPTION --weights FILE [--kernels NAME] [--threads N] "
                 "[--size HxW [--batch N] [--passes K]]");
    }
    if (!options.description_path || !options.weights_path || bench.threads < 1 || passes < 1)
        fail("--model and --weights are needed, and numbers start at 1");
    if (kernels_choose(kernels, "auto", &options.kernels, NULL, NULL, &error))
        fail(error.text);
    options.threads = bench.threads;
    uint64_t start = clock_now_ns();
    if (model_open(&options, &bench.model, &error) || team_create(bench.threads, &bench.team, &error) ||
        team_start_helpers(bench.team, &error) || pass_create(bench.team, &bench.pass, &error))
        fail(error.text);
    if (height > 0) {
        run_once(&bench, n, height, width, passes);
    } else {
        printf("{\"ready\": true, \"kernels\": \"%s\", \"precision\": \"%s\", \"threads\": %d, \"open_ms\": %.1f, "
               "\"rss_bytes\": %llu}\n",
               options.kernels->name, options.kernels->precision, bench.threads, ms(clock_now_ns() - start),
               (unsigned long long)memory_of("VmRSS:"));
        (void)fflush(stdout);
        take_commands(&bench);
    }
    model_plan_release(bench.model, bench.plan);
    pass_destroy(bench.pass);
    team_destroy(bench.team);
    model_close(bench.model);
    free(bench.input);
    free(bench.logits);
    return 0;
}
