/* test_model.c - opening models from good and bad files, the cache of plans, and passes that share one model. */

#include "make_weights.h"

#include <math.h>
#include <pthread.h>

#include "../../model/model.h"
#include "fail_alloc.h"

static const char small_modules[] =
    "{\"name\": \"conv1\", \"type\": \"Conv2d\", \"in\": 3, \"out\": 8, \"kernel\": 3, \"bias\": false}, "
    "{\"name\": \"bn1\", \"type\": \"BatchNorm2d\", \"features\": 8}, {\"name\": \"relu\", \"type\": \"ReLU\"}, "
    "{\"name\": \"layer1\", \"type\": \"Bottleneck\", \"in\": 8, \"planes\": 4, \"blocks\": 2, \"stride\": 2}, "
    "{\"name\": \"avgpool\", \"type\": \"AdaptiveAvgPool2d\", \"output\": 1}, {\"name\": \"flatten\", \"type\": "
    "\"Flatten\"}, {\"name\": \"fc\", \"type\": \"Linear\", \"in\": 16, \"out\": 5}";

static const char small_labels[] = "0\ta\tant\n1\tb\tbee\n2\tc\tcat\n3\td\tdog\n4\te\temu\n";

/* Description, weights and labels in temporary files. */
struct files {
    char description[TEST_PATH_SIZE], weights[TEST_PATH_SIZE], labels[TEST_PATH_SIZE];
};

static struct files make_files(const char *modules, const struct weights_change *change)
{
    struct network network = network_of(modules, 3);
    char *json = description_of(modules, 3);
    struct files f;

    write_temporary(f.description, json, strlen(json));
    write_temporary(f.labels, small_labels, strlen(small_labels));
    make_weights(&network, 3, change, f.weights);
    free(json);
    network_free(&network);
    return f;
}

static void remove_files(const struct files *f)
{
    (void)unlink(f->description);
    (void)unlink(f->weights);
    (void)unlink(f->labels);
}

static struct model_options options_of(const struct files *f)
{
    return (struct model_options){.description_path = f->description,
                                  .weights_path = f->weights,
                                  .labels_path = f->labels,
                                  .kernels = &kernels_ref,
                                  .threads = 2};
}

static struct model *open_model(const struct model_options *options)
{
    struct model *model;
    struct rn_error error;

    if (model_open(options, &model, &error))
        fail_msg("%s", error.text);
    return model;
}

/* A small model whose files are gone again. */
static struct model *open_small(const char *modules)
{
    const struct files f = make_files(modules, NULL);
    struct model_options options = options_of(&f);
    struct model *model;

    options.labels_path = NULL;
    model = open_model(&options);
    remove_files(&f);
    return model;
}

static void expect_refusal(const struct model_options *options, enum rn_status expected, const char *reason)
{
    struct model *model;
    struct rn_error error = {0};
    const enum rn_status status = model_open(options, &model, &error);

    assert_null(model);
    if (status != expected || !strstr(error.text, reason))
        fail_msg("status %d, \"%s\" instead of \"%s\"", (int)status, error.text, reason);
}

/* ---- opening ---- */

static void test_open(void **state)
{
    const struct files f = make_files(small_modules, NULL);
    struct model_options options = options_of(&f);
    struct model *model = open_model(&options);

    (void)state;
    assert_string_equal(model_name(model), "net");
    assert_string_equal(model_network(model)->class_name, "Net");
    assert_int_equal(model_labels(model)->count, 5);
    assert_string_equal(model_labels(model)->labels[2], "cat");
    assert_ptr_equal(model_kernels(model), &kernels_ref);
    assert_string_equal(model_weights_format(model), "safetensors");
    assert_string_equal(model_weights_path(model), f.weights);
    assert_int_equal(strlen(model_weights_sha256(model)), 64);
    /* conv1, bn1; two bottlenecks of width 4, the first with a shortcut from 8 to 16; fc. */
    assert_int_equal(model_parameters(model),
                     216 + 16 + (32 + 8 + 144 + 8 + 64 + 32 + 128 + 32) + (64 + 8 + 144 + 8 + 64 + 32) + 85);
    assert_true(model_packed_bytes(model) >= 4 * (216 + 8 + 32 + 144 + 64 + 128 + 64 + 144 + 64 + 85));
    model_close(model);
    options.name = "served";
    model = open_model(&options);
    assert_string_equal(model_name(model), "served");
    model_close(model);
    model_close(NULL);
    remove_files(&f);
}

static void test_bundled_model(void **state)
{
    const struct model_options options = {.description_path = "config/models/demo64.json",
                                          .weights_path = "config/weights/demo64.safetensors",
                                          .kernels = &kernels_openblas,
                                          .threads = 2};
    struct model *model = open_model(&options);

    (void)state;
    assert_int_equal(model_labels(model)->count, 64); /* the description's own */
    assert_int_equal(model_network(model)->classes, 64);
    model_close(model);
}

static void test_weights_that_do_not_fit(void **state)
{
    static const struct {
        struct weights_change change;
        const char *reason;
    } cases[] = {
        {{.drop = "layer1.0.conv2.weight"}, "layer1.0.conv2.weight"},
        {{.drop = "bn1.running_mean"}, "bn1.running_mean"},
        {{.reshape = "fc.weight"}, "fc.weight"},
        {{.poison = "layer1.1.bn3.bias"}, "tensor layer1.1.bn3.bias: element 15 is not a finite number"},
        {{.negate = "bn1.running_var"}, "tensor bn1.running_var: element 0 is negative"},
        {{.add = "layer2.0.conv1.weight"}, "tensor layer2.0.conv1.weight is not part of network net"},
        {{.add = "conv1.bias"}, "tensor conv1.bias is not part of network net"}, /* "bias": false */
        {{.add = "fc.running_mean"}, "tensor fc.running_mean is not part"},
        {{.add = "relu.weight"}, "tensor relu.weight is not part"},
        {{.add = "layer1.weight"}, "tensor layer1.weight is not part"},
        {{.add = "conv1"}, "tensor conv1 is not part"},
        {{.add = "weight"}, "tensor weight is not part"},
        {{.add = "conv11.weight"}, "tensor conv11.weight is not part"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct files f = make_files(small_modules, &cases[i].change);
        const struct model_options options = options_of(&f);
        expect_refusal(&options, RN_ERR_WEIGHTS, cases[i].reason);
        expect_refusal(&options, RN_ERR_WEIGHTS, f.weights);
        remove_files(&f);
    }
}

/* What PyTorch's state dicts hold beside the parameters. */
static void test_batches_tracked_is_welcome(void **state)
{
    const struct weights_change change = {.add = "layer1.0.bn2.num_batches_tracked"};
    const struct files f = make_files(small_modules, &change);
    const struct model_options options = options_of(&f);

    (void)state;
    model_close(open_model(&options));
    remove_files(&f);
}

static void test_files_that_are_wrong(void **state)
{
    const struct files f = make_files(small_modules, NULL);
    struct model_options options = options_of(&f);

    (void)state;
    options.description_path = "/nowhere/net.json";
    expect_refusal(&options, RN_ERR_IO, "/nowhere/net.json");
    options.description_path = f.labels;
    expect_refusal(&options, RN_ERR_DESCRIPTION, "after the JSON");
    options = options_of(&f);
    options.weights_path = "/nowhere/net.safetensors";
    expect_refusal(&options, RN_ERR_IO, "/nowhere/net.safetensors");
    options.weights_path = f.description;
    expect_refusal(&options, RN_ERR_WEIGHTS, f.description);
    options = options_of(&f);
    options.labels_path = "/nowhere/labels.tsv";
    expect_refusal(&options, RN_ERR_IO, "/nowhere/labels.tsv");
    options.labels_path = "config/labels/imagenet-1k.tsv";
    expect_refusal(&options, RN_ERR_DESCRIPTION,
                   "config/labels/imagenet-1k.tsv: 1000 labels for the 5 classes of network net");
    remove_files(&f);
}

static void test_open_without_memory(void **state)
{
    const struct files f = make_files(small_modules, NULL);
    const struct model_options options = options_of(&f);
    struct model *model;
    struct rn_error error;

    (void)state;
    for (long n = 0;; n++) {
        enum rn_status status;
        fail_alloc_at(n);
        status = model_open(&options, &model, &error);
        if (!fail_alloc_fired()) {
            assert_int_equal(status, RN_OK);
            assert_true(n > 60);
            break;
        }
        fail_alloc_at(-1);
        if (status != RN_ERR_NOMEM)
            fail_msg("allocation %ld: status %d, %s", n, (int)status, error.text);
        assert_null(model);
    }
    fail_alloc_at(-1);
    model_close(model);
    remove_files(&f);
}

/* ---- plans ---- */

static const struct model_plan *acquire(struct model *model, int n, int height, int width)
{
    const struct model_plan *plan;
    struct rn_error error;

    if (model_plan_acquire(model, n, height, width, &plan, &error))
        fail_msg("%s", error.text);
    assert_int_equal(model_plan_shapes(plan)->input.n, n);
    assert_int_equal(model_plan_shapes(plan)->input.h, height);
    assert_int_equal(model_plan_shapes(plan)->input.w, width);
    return plan;
}

/* Whether a size is cached: then acquiring it allocates nothing. */
static bool is_cached(struct model *model, int height, int width)
{
    bool cached;

    fail_alloc_at(-1);
    model_plan_release(model, acquire(model, 1, height, width));
    cached = fail_alloc_count() == 0;
    return cached;
}

static void test_plans_are_shared(void **state)
{
    struct model *model = open_small(small_modules);
    const struct model_plan *a = acquire(model, 1, 20, 30), *b = acquire(model, 1, 20, 30);
    const struct model_plan *transposed = acquire(model, 1, 30, 20), *batch = acquire(model, 2, 20, 30);

    (void)state;
    assert_ptr_equal(a, b);
    assert_ptr_not_equal(a, transposed);
    assert_ptr_not_equal(a, batch);
    assert_true(model_plan_activation_bytes(batch) > model_plan_activation_bytes(a));
    assert_int_equal(model_plan_scratch_bytes(a, 3), 3 * model_plan_scratch_bytes(a, 1));
    model_plan_release(model, a);
    model_plan_release(model, b);
    model_plan_release(model, transposed);
    model_plan_release(model, batch);
    model_plan_release(model, NULL);
    assert_true(is_cached(model, 20, 30));
    model_close(model);
}

static void test_least_recently_used_goes_first(void **state)
{
    struct model *model = open_small(small_modules);

    (void)state;
    for (int i = 0; i < 64; i++)
        assert_false(is_cached(model, 10, 10 + i));
    assert_true(is_cached(model, 10, 10)); /* the oldest, used again */
    assert_false(is_cached(model, 20, 20));
    assert_true(is_cached(model, 10, 10));
    assert_true(is_cached(model, 10, 12));
    assert_false(is_cached(model, 10, 11)); /* it went for 20x20; now 10x13 goes for it */
    assert_true(is_cached(model, 10, 12));
    assert_false(is_cached(model, 10, 13));
    model_close(model);
}

static void test_held_plans_stay(void **state)
{
    enum { HELD = 100 };
    struct model *model = open_small(small_modules);
    const struct model_plan *plans[HELD];

    (void)state;
    for (int i = 0; i < HELD; i++)
        plans[i] = acquire(model, 1, 10, 10 + i);
    for (int i = 0; i < HELD; i++) {
        assert_int_equal(model_plan_shapes(plans[i])->input.w, 10 + i);
        assert_true(is_cached(model, 10, 10 + i));
        model_plan_release(model, plans[i]);
    }
    assert_false(is_cached(model, 9, 9));
    assert_true(is_cached(model, 9, 9));
    assert_true(is_cached(model, 10, 10 + HELD - 1));
    assert_false(is_cached(model, 10, 10 + 30)); /* back to 64 */
    model_close(model);
}

static void test_sizes_that_are_refused(void **state)
{
    struct model *model = open_small(small_modules);
    const struct model_plan *plan = (const void *)"";
    struct rn_error error;

    (void)state;
    assert_int_equal(model_plan_acquire(model, 1, 2, 10, &plan, &error), RN_ERR_INPUT_SIZE);
    assert_null(plan);
    assert_non_null(strstr(error.text, "conv1 needs at least 3x3"));
    assert_int_equal(model_plan_acquire(model, 1, -1, 10, &plan, &error), RN_ERR_INPUT_SIZE);
    model_close(model);

    model = open_small("{\"name\": \"c\", \"type\": \"Conv2d\", \"in\": 3, \"out\": 5, \"kernel\": 3}");
    assert_int_equal(model_plan_acquire(model, 1, 4, 3, &plan, &error), RN_ERR_INPUT_SIZE);
    assert_string_equal(error.text, "a 4x3 input gives 5x2x1 outputs instead of one score a class");
    model_plan_release(model, acquire(model, 1, 3, 3));
    model_close(model);
}

static void test_plans_without_memory(void **state)
{
    struct model *model = open_small(small_modules);
    const struct model_plan *plan;
    struct rn_error error;

    (void)state;
    for (long n = 0;; n++) {
        enum rn_status status;
        fail_alloc_at(n);
        status = model_plan_acquire(model, 1, 20, 20, &plan, &error);
        if (!fail_alloc_fired()) {
            assert_int_equal(status, RN_OK);
            assert_true(n >= 10);
            break;
        }
        fail_alloc_at(-1);
        assert_int_equal(status, RN_ERR_NOMEM);
        assert_null(plan);
    }
    fail_alloc_at(-1);
    model_plan_release(model, plan);
    model_close(model);
}

/* ---- passes ---- */

static void fill(float *values, size_t count)
{
    uint32_t seed = 17;

    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)(seed >> 8) * (1.0f / 8388608.0f) - 1.0f;
    }
}

static void forward(struct model *model, struct pass *pass, int height, int width, float logits[5])
{
    const struct model_plan *plan = acquire(model, 1, height, width);
    float *input;

    assert_int_equal(pass_prepare(pass, plan, NULL), RN_OK);
    input = pass_input(pass, plan);
    assert_int_equal((uintptr_t)input % 64, 0);
    fill(input, (size_t)(height * width * 3));
    model_forward(model, plan, pass, logits);
    model_plan_release(model, plan);
}

static const int pass_sizes[][2] = {{40, 50}, {3, 3}, {17, 90}, {64, 64}, {5, 4}};

enum { SIZE_COUNT = sizeof pass_sizes / sizeof *pass_sizes };

/* A pass that has served other sizes computes the same as a new one. */
static void test_passes(void **state)
{
    struct model *model = open_small(small_modules);
    struct team *team;
    struct pass *used, *fresh;
    float expected[5], actual[5];

    (void)state;
    assert_int_equal(team_create(2, &team, NULL), RN_OK);
    assert_int_equal(team_start_helpers(team, NULL), RN_OK);
    assert_int_equal(pass_create(team, &used, NULL), RN_OK);
    assert_int_equal(pass_threads(used), 2);
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < SIZE_COUNT; i++) {
            assert_int_equal(pass_create(team, &fresh, NULL), RN_OK);
            forward(model, fresh, pass_sizes[i][0], pass_sizes[i][1], expected);
            pass_destroy(fresh);
            forward(model, used, pass_sizes[i][0], pass_sizes[i][1], actual);
            assert_memory_equal(actual, expected, sizeof expected);
            for (int c = 0; c < 5; c++)
                assert_true(isfinite(actual[c]));
        }
    pass_destroy(used);
    pass_destroy(NULL);
    team_destroy(team);
    model_close(model);
}

static void test_pass_without_memory(void **state)
{
    struct model *model = open_small(small_modules);
    const struct model_plan *large = acquire(model, 1, 400, 400);
    struct team *team;
    struct pass *pass;
    struct rn_error error;
    float before[5], after[5];

    (void)state;
    assert_int_equal(team_create(1, &team, NULL), RN_OK);
    fail_alloc_at(0);
    assert_int_equal(pass_create(team, &pass, &error), RN_ERR_NOMEM);
    assert_null(pass);
    fail_alloc_at(-1);
    assert_int_equal(pass_create(team, &pass, NULL), RN_OK);
    forward(model, pass, 20, 20, before);
    fail_alloc_at(0);
    assert_int_equal(pass_prepare(pass, large, &error), RN_ERR_NOMEM);
    fail_alloc_at(-1);
    forward(model, pass, 20, 20, after); /* still good for others */
    assert_memory_equal(before, after, sizeof before);
    assert_int_equal(pass_prepare(pass, large, &error), RN_OK);
    model_plan_release(model, large);
    pass_destroy(pass);
    team_destroy(team);
    model_close(model);
}

struct report {
    uint64_t multiply_adds;
    int operations;
};

static void add_operation(void *arg, const char *name, const char *kernel, uint64_t multiply_adds, uint64_t nanoseconds)
{
    struct report *report = arg;

    assert_true(name[0] != '\0' && kernel != NULL && nanoseconds < 60000000000u);
    if (report->operations++ == 0)
        assert_string_equal(name, "conv1");
    report->multiply_adds += multiply_adds;
}

static void test_timed_forward(void **state)
{
    struct model *model = open_small(small_modules);
    const struct model_plan *plan = acquire(model, 1, 33, 21);
    struct report report = {0};
    struct team *team;
    struct pass *pass;
    float plain[5], timed[5];

    (void)state;
    assert_int_equal(team_create(1, &team, NULL), RN_OK);
    assert_int_equal(pass_create(team, &pass, NULL), RN_OK);
    forward(model, pass, 33, 21, plain);
    fill(pass_input(pass, plan), 33 * 21 * 3);
    model_forward_timed(model, plan, pass, timed, add_operation, &report);
    assert_memory_equal(plain, timed, sizeof plain);
    assert_int_equal(report.multiply_adds, model_plan_shapes(plan)->multiply_adds);
    assert_int_equal(report.operations, 1 + 4 + 3 + 3); /* conv1; the bottlenecks; pool, flatten, fc */
    model_plan_release(model, plan);
    pass_destroy(pass);
    team_destroy(team);
    model_close(model);
}

/* Nothing is allocated inside the forward pass. */
static void test_forward_allocates_nothing(void **state)
{
    struct model *model = open_small(small_modules);
    const struct model_plan *plan = acquire(model, 1, 30, 30);
    struct team *team;
    struct pass *pass;
    float logits[5];

    (void)state;
    assert_int_equal(team_create(1, &team, NULL), RN_OK);
    assert_int_equal(pass_create(team, &pass, NULL), RN_OK);
    forward(model, pass, 30, 30, logits);
    fail_alloc_at(-1);
    assert_int_equal(pass_prepare(pass, plan, NULL), RN_OK);
    fill(pass_input(pass, plan), 30 * 30 * 3);
    model_forward(model, plan, pass, logits);
    assert_int_equal(fail_alloc_count(), 0);
    model_plan_release(model, plan);
    pass_destroy(pass);
    team_destroy(team);
    model_close(model);
}

/* ---- threads ---- */

struct user {
    pthread_t thread;
    struct model *model;
    float (*expected)[5];
    uint32_t seed;
    int rounds;
};

static void *use_model(void *arg)
{
    struct user *user = arg;
    struct team *team;
    struct pass *pass;

    assert_int_equal(team_create(1, &team, NULL), RN_OK);
    assert_int_equal(pass_create(team, &pass, NULL), RN_OK);
    for (int i = 0; i < user->rounds; i++) {
        float logits[5];
        user->seed = user->seed * 1664525u + 1013904223u;
        if (i % 4 == 0) {
            const int size = (int)(user->seed >> 8) % SIZE_COUNT;
            forward(user->model, pass, pass_sizes[size][0], pass_sizes[size][1], logits);
            assert_memory_equal(logits, user->expected[size], sizeof logits);
        } else { /* more sizes than the cache keeps */
            const struct model_plan *a = acquire(user->model, 1, 8, 8 + (int)(user->seed >> 8) % 90);
            const struct model_plan *b = acquire(user->model, 1, 8, 8 + (int)(user->seed >> 16) % 90);
            model_plan_release(user->model, a);
            model_plan_release(user->model, b);
        }
    }
    pass_destroy(pass);
    team_destroy(team);
    return NULL;
}

static void test_shared_by_threads(void **state)
{
    enum { USERS = 4 };
    struct model *model = open_small(small_modules);
    struct user users[USERS];
    float expected[SIZE_COUNT][5];
    struct team *team;
    struct pass *pass;

    (void)state;
    assert_int_equal(team_create(1, &team, NULL), RN_OK);
    assert_int_equal(pass_create(team, &pass, NULL), RN_OK);
    for (int i = 0; i < SIZE_COUNT; i++)
        forward(model, pass, pass_sizes[i][0], pass_sizes[i][1], expected[i]);
    pass_destroy(pass);
    team_destroy(team);
    for (int i = 0; i < USERS; i++) {
        users[i] = (struct user){.model = model, .expected = expected, .seed = (uint32_t)i, .rounds = 200};
        assert_int_equal(pthread_create(&users[i].thread, NULL, use_model, &users[i]), 0);
    }
    for (int i = 0; i < USERS; i++)
        assert_int_equal(pthread_join(users[i].thread, NULL), 0);
    model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_bundled_model),
        cmocka_unit_test(test_weights_that_do_not_fit),
        cmocka_unit_test(test_batches_tracked_is_welcome),
        cmocka_unit_test(test_files_that_are_wrong),
        cmocka_unit_test(test_open_without_memory),
        cmocka_unit_test(test_plans_are_shared),
        cmocka_unit_test(test_least_recently_used_goes_first),
        cmocka_unit_test(test_held_plans_stay),
        cmocka_unit_test(test_sizes_that_are_refused),
        cmocka_unit_test(test_plans_without_memory),
        cmocka_unit_test(test_passes),
        cmocka_unit_test(test_pass_without_memory),
        cmocka_unit_test(test_timed_forward),
        cmocka_unit_test(test_forward_allocates_nothing),
        cmocka_unit_test(test_shared_by_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
