/* test_plan.c - shapes, parameters and multiply-adds that follow from a network and an input size, compared with what
 * PyTorch, torchvision and torchsummary say, and sizes that no network can take. */

#include "make_weights.h"

#include <limits.h>

#include "../../model/plan.h"
#include "fail_alloc.h"

static struct network read_network(const char *name)
{
    struct network network;
    struct rn_error error;
    char path[128];

    (void)snprintf(path, sizeof path, "config/models/%s.json", name);
    if (network_read(path, &network, &error))
        fail_msg("%s", error.text);
    return network;
}

static struct plan plan_of(const struct network *network, int n, int height, int width)
{
    struct plan plan;
    struct rn_error error;

    if (plan_init(&plan, network, n, height, width, &error))
        fail_msg("%s", error.text);
    return plan;
}

static void expect_refusal(const struct network *network, int n, int height, int width, const char *reason)
{
    static const struct plan zero;
    struct plan plan;
    struct rn_error error;

    assert_int_equal(plan_init(&plan, network, n, height, width, &error), RN_ERR_INPUT_SIZE);
    if (!strstr(error.text, reason))
        fail_msg("\"%s\" instead of \"%s\"", error.text, reason);
    plan_free(&plan);
    assert_memory_equal(&plan, &zero, sizeof zero);
}

static void expect_shape(const struct plan *plan, const char *path, const char *expected)
{
    char text[SHAPE_TEXT_SIZE];

    for (size_t i = plan->row_count; i-- > 0;)
        if (strcmp(plan->rows[i].call->path, path) == 0) {
            assert_string_equal(shape_text(&plan->rows[i].shape, text), expected);
            return;
        }
    fail_msg("no row %s", path);
}

/* Parameters as torchvision lists them, multiply-adds at 224x224. */
static void test_known_totals(void **state)
{
    static const struct {
        const char *name;
        uint64_t parameters, multiply_adds;
    } cases[] = {
        {"resnet18", 11689512, 1814073344},   {"resnet34", 21797672, 3663761408},
        {"resnet50", 25557032, 4089184256},   {"resnet101", 44549160, 7801405440},
        {"resnet152", 60192808, 11513626624}, {"wide_resnet50_2", 68883240, 11398021120},
        {"vgg16", 138357544, 15470264320},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct network network = read_network(cases[i].name);
        struct plan plan = plan_of(&network, 1, 224, 224);
        assert_int_equal(plan.parameters, cases[i].parameters);
        assert_int_equal(plan.trainable_parameters, cases[i].parameters);
        if (plan.multiply_adds != cases[i].multiply_adds)
            fail_msg("%s: %" PRIu64 " multiply-adds", cases[i].name, plan.multiply_adds);
        plan_free(&plan);
        plan_free(&plan);
        network_free(&network);
    }
    plan_free(NULL);
}

static void test_shapes_of_resnet50(void **state)
{
    struct network network = read_network("resnet50");
    static const struct {
        int height, width;
        const char *conv1, *maxpool, *layer1, *layer2, *layer4;
    } cases[] = {
        {224, 224, "[1, 64, 112, 112]", "[1, 64, 56, 56]", "[1, 256, 56, 56]", "[1, 512, 28, 28]", "[1, 2048, 7, 7]"},
        {375, 500, "[1, 64, 188, 250]", "[1, 64, 94, 125]", "[1, 256, 94, 125]", "[1, 512, 47, 63]",
         "[1, 2048, 12, 16]"},
        {1, 1, "[1, 64, 1, 1]", "[1, 64, 1, 1]", "[1, 256, 1, 1]", "[1, 512, 1, 1]", "[1, 2048, 1, 1]"},
        {1, 65500, "[1, 64, 1, 32750]", "[1, 64, 1, 16375]", "[1, 256, 1, 16375]", "[1, 512, 1, 8188]",
         "[1, 2048, 1, 2047]"},
        {1 << 20, 1, "[1, 64, 524288, 1]", "[1, 64, 262144, 1]", "[1, 256, 262144, 1]", "[1, 512, 131072, 1]",
         "[1, 2048, 32768, 1]"},
        {2, 1 << 24, "[1, 64, 1, 8388608]", "[1, 64, 1, 4194304]", "[1, 256, 1, 4194304]", "[1, 512, 1, 2097152]",
         "[1, 2048, 1, 524288]"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct plan plan = plan_of(&network, 1, cases[i].height, cases[i].width);
        expect_shape(&plan, "conv1", cases[i].conv1);
        expect_shape(&plan, "maxpool", cases[i].maxpool);
        expect_shape(&plan, "layer1", cases[i].layer1);
        expect_shape(&plan, "layer2", cases[i].layer2);
        expect_shape(&plan, "layer4", cases[i].layer4);
        expect_shape(&plan, "avgpool", "[1, 2048, 1, 1]");
        expect_shape(&plan, "flatten", "[1, 2048]");
        expect_shape(&plan, "fc", "[1, 1000]");
        plan_free(&plan);
    }
    network_free(&network);
}

static void test_batches(void **state)
{
    struct network network = read_network("resnet18");
    struct plan one = plan_of(&network, 1, 64, 48), three = plan_of(&network, 3, 64, 48);

    (void)state;
    expect_shape(&three, "conv1", "[3, 64, 32, 24]");
    expect_shape(&three, "fc", "[3, 1000]");
    assert_int_equal(three.multiply_adds, 3 * one.multiply_adds);
    assert_int_equal(three.parameters, one.parameters);
    plan_free(&three);
    plan_free(&one);
    network_free(&network);
}

static void test_sizes_that_no_network_takes(void **state)
{
    struct network network = read_network("resnet50");

    (void)state;
    expect_refusal(&network, 1, 0, 5, "an input of 0x5 is not possible");
    expect_refusal(&network, 1, 5, 0, "is not possible");
    expect_refusal(&network, 1, -1, -1, "is not possible");
    expect_refusal(&network, 1, INT_MIN, INT_MAX, "is not possible");
    expect_refusal(&network, 1, INT_MAX, INT_MAX, "is not possible");
    expect_refusal(&network, 1, 1, (1 << 24) + 1, "is not possible");
    expect_refusal(&network, 1, 1 << 15, (1 << 15) + 1, "is not possible");
    expect_refusal(&network, INT_MAX, 1, 1, "is not possible");
    network_free(&network);

    /* An input that fits, and an output that does not. */
    network = network_of("{\"name\": \"c\", \"type\": \"Conv2d\", \"in\": 1, \"out\": 1048576, \"kernel\": 1}", 1);
    expect_refusal(&network, 1, 1024, 1024, "makes the output of c too large");
    network_free(&network);
    network = network_of("{\"name\": \"p\", \"type\": \"AdaptiveAvgPool2d\", \"output\": 4096}", 1);
    expect_refusal(&network, 65, 1, 1, "makes the output of p too large");
    network_free(&network);
    network = network_of("{\"name\": \"f\", \"type\": \"Flatten\"}, "
                         "{\"name\": \"l\", \"type\": \"Linear\", \"in\": 5, \"out\": 2}",
                         3);
    expect_refusal(&network, 1, 1 << 15, 1 << 15, "f would give 3221225472 features");
    network_free(&network);
}

static void test_mismatch_is_told_in_numbers(void **state)
{
    struct network network = read_network("lenet");
    struct plan plan = plan_of(&network, 1, 32, 32);

    (void)state;
    expect_shape(&plan, "pool2", "[1, 16, 5, 5]");
    expect_shape(&plan, "flatten", "[1, 400]");
    plan_free(&plan);
    expect_refusal(&network, 1, 64, 64, "fc1 expects 400 features, a 64x64 input gives 16x13x13 = 2704");
    expect_refusal(&network, 1, 32, 36, "fc1 expects 400 features, a 32x36 input gives 16x5x6 = 480");
    expect_refusal(&network, 1, 4, 32, "conv1 needs at least 5x5, a 4x32 input gives it 4x32");
    network_free(&network);

    network = read_network("vgg16");
    plan = plan_of(&network, 1, 400, 300); /* its AdaptiveAvgPool2d takes any size */
    plan_free(&plan);
    expect_refusal(&network, 1, 31, 32, "needs at least 2x2, a 31x32 input gives it 1x2");
    network_free(&network);

    network = read_network("resnet152-avgpool7");
    plan = plan_of(&network, 1, 224, 224);
    plan_free(&plan);
    expect_refusal(&network, 1, 192, 192, "needs at least 7x7, a 192x192 input gives it 6x6");
    expect_refusal(&network, 1, 512, 512, "a 512x512 input gives");
    network_free(&network);
}

static int pool_output(int in, int kernel, int stride, int padding, int dilation, const char *type)
{
    char modules[256];
    struct network network;
    struct plan plan;
    struct rn_error error;
    int out = 0;

    (void)snprintf(modules, sizeof modules,
                   "{\"name\": \"p\", \"type\": \"%s\", \"kernel\": %d, \"stride\": %d, \"padding\": %d, "
                   "\"ceil_mode\": true",
                   type, kernel, stride, padding);
    (void)snprintf(modules + strlen(modules), sizeof modules - strlen(modules),
                   strcmp(type, "MaxPool2d") == 0 ? ", \"dilation\": %d}" : "}", dilation);
    network = network_of(modules, 1);
    if (plan_init(&plan, &network, 1, in, 8, &error) == RN_OK) {
        out = plan.values[1].h;
        plan_free(&plan);
    } else {
        assert_int_equal(error.code, RN_ERR_INPUT_SIZE);
    }
    network_free(&network);
    return out;
}

/* ceil_mode for inputs of 1 to 8 pixels: the outputs of PyTorch 1.13, 0 where it refuses. */
static void test_ceil_mode(void **state)
{
    static const struct {
        int kernel, stride, padding, dilation, out[8];
    } cases[] = {
        {2, 2, 0, 1, {1, 1, 2, 2, 3, 3, 4, 4}}, {3, 2, 0, 1, {0, 1, 1, 2, 2, 3, 3, 4}},
        {3, 2, 1, 1, {1, 2, 2, 3, 3, 4, 4, 5}}, {3, 3, 0, 1, {1, 1, 1, 2, 2, 2, 3, 3}},
        {5, 2, 1, 1, {0, 1, 1, 2, 2, 3, 3, 4}}, {2, 3, 1, 1, {1, 1, 2, 2, 2, 3, 3, 3}},
        {3, 2, 1, 2, {0, 1, 1, 2, 2, 3, 3, 4}}, {2, 1, 1, 2, {1, 2, 3, 4, 5, 6, 7, 8}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int in = 1; in <= 8; in++) {
            assert_int_equal(
                pool_output(in, cases[i].kernel, cases[i].stride, cases[i].padding, cases[i].dilation, "MaxPool2d"),
                cases[i].out[in - 1]);
            if (cases[i].dilation == 1)
                assert_int_equal(pool_output(in, cases[i].kernel, cases[i].stride, cases[i].padding, 1, "AvgPool2d"),
                                 cases[i].out[in - 1]);
        }
}

static void test_too_small(void **state)
{
    struct network network = network_of(
        "{\"name\": \"c\", \"type\": \"Conv2d\", \"in\": 1, \"out\": 1, \"kernel\": [5, 1], \"padding\": [0, 3], "
        "\"dilation\": [2, 1]}",
        1);
    struct plan plan = plan_of(&network, 1, 9, 1);

    (void)state;
    expect_shape(&plan, "c", "[1, 1, 1, 7]");
    plan_free(&plan);
    expect_refusal(&network, 1, 8, 1, "c needs at least 9x1, a 8x1 input gives it 8x1");
    network_free(&network);
    network =
        network_of("{\"name\": \"p\", \"type\": \"MaxPool2d\", \"kernel\": 3, \"stride\": 2, \"ceil_mode\": true}", 1);
    expect_refusal(&network, 1, 1, 9, "p needs at least 2x2, a 1x9 input gives it 1x9");
    network_free(&network);
}

static char *summary_of(const char *name, int height, int width)
{
    struct network network = read_network(name);
    struct plan plan = plan_of(&network, 1, height, width);
    char *text;
    size_t size;
    FILE *file = open_memstream(&text, &size);

    assert_non_null(file);
    plan_print_summary(&plan, file);
    (void)fclose(file);
    plan_free(&plan);
    network_free(&network);
    return text;
}

/* The sums that torchsummary prints for torchvision's models. */
static void test_summary(void **state)
{
    static const struct {
        const char *name;
        const char *lines[8];
    } cases[] = {
        {"resnet50",
         {"            Conv2d-1         [-1, 64, 112, 112]           9,408          118,013,952\n",
          "       BatchNorm2d-2         [-1, 64, 112, 112]             128                    0\n",
          "          Linear-174                 [-1, 1000]       2,049,000            2,048,000\n",
          "Total params: 25,557,032\nTrainable params: 25,557,032\nNon-trainable params: 0\n",
          "Total multiply-adds: 4,089,184,256\n",
          "Input size (MB): 0.57\nForward/backward pass size (MB): 286.56\nParams size (MB): 97.49\n"
          "Estimated Total Size (MB): 384.62\n"}},
        {"resnet18",
         {"Forward/backward pass size (MB): 62.79\nParams size (MB): 44.59\nEstimated Total Size (MB): 107.96\n"}},
        {"vgg16",
         {"Forward/backward pass size (MB): 218.78\nParams size (MB): 527.79\nEstimated Total Size (MB): 747.15\n"}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = summary_of(cases[i].name, 224, 224);
        for (const char *const *line = cases[i].lines; *line; line++)
            if (!strstr(text, *line))
                fail_msg("no \"%s\" in\n%s", *line, text);
        free(text);
    }
}

static void test_stages(void **state)
{
    static const char *const expected[] = {"conv1",  "bn1",    "relu",    "maxpool", "layer1", "layer2",
                                           "layer3", "layer4", "avgpool", "flatten", "fc"};
    struct network network = read_network("resnet50");
    struct plan plan = plan_of(&network, 1, 224, 224);
    size_t stages = 0;

    (void)state;
    for (size_t i = 0; i < plan.row_count; i++)
        if (plan_row_is_stage(&plan.rows[i])) {
            assert_true(stages < sizeof expected / sizeof *expected);
            assert_string_equal(plan.rows[i].call->path, expected[stages++]);
            assert_string_not_equal(module_reported_type(plan.rows[i].call->module), "Sequential");
        }
    assert_int_equal(stages, sizeof expected / sizeof *expected);
    plan_free(&plan);
    network_free(&network);
}

static void test_frozen_parameters(void **state)
{
    struct network network = network_of(
        "{\"name\": \"s\", \"type\": \"Sequential\", \"frozen\": true, \"modules\": [{\"name\": \"c\", \"type\": "
        "\"Conv2d\", \"in\": 3, \"out\": 4, \"kernel\": 1}]}, {\"name\": \"d\", \"type\": \"Conv2d\", \"in\": 4, "
        "\"out\": 2, \"kernel\": 1}",
        3);
    struct plan plan = plan_of(&network, 1, 5, 5);

    (void)state;
    assert_int_equal(plan.parameters, 16 + 10);
    assert_int_equal(plan.trainable_parameters, 10);
    plan_free(&plan);
    network_free(&network);
}

static void test_out_of_memory(void **state)
{
    struct network network = read_network("lenet");
    struct plan plan;
    struct rn_error error;
    long n;

    (void)state;
    for (n = 0;; n++) {
        fail_alloc_at(n);
        if (plan_init(&plan, &network, 1, 32, 32, &error) == RN_OK)
            break;
        assert_true(fail_alloc_fired());
        assert_int_equal(error.code, RN_ERR_NOMEM);
        assert_null(plan.rows);
    }
    fail_alloc_at(-1);
    assert_int_equal(n, 2);
    plan_free(&plan);
    network_free(&network);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_totals),
        cmocka_unit_test(test_shapes_of_resnet50),
        cmocka_unit_test(test_batches),
        cmocka_unit_test(test_sizes_that_no_network_takes),
        cmocka_unit_test(test_mismatch_is_told_in_numbers),
        cmocka_unit_test(test_ceil_mode),
        cmocka_unit_test(test_too_small),
        cmocka_unit_test(test_summary),
        cmocka_unit_test(test_stages),
        cmocka_unit_test(test_frozen_parameters),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
