/* test_network.c - reading network descriptions: what is accepted, how forward() is traced and printed, and that
 * everything else is refused with the module's path and a reason, whatever the bytes are. */

#include "make_weights.h"

#include <glob.h>

#include "../../model/network.h"
#include "fail_alloc.h"

/* Parse `size` bytes from memory of exactly that size, so that a sanitizer sees a read past the end. */
static enum rn_status parse_exactly(const char *json, size_t size, struct network *network, struct rn_error *error)
{
    char *copy = malloc(size ? size : 1);
    enum rn_status status;

    assert_non_null(copy);
    if (size)
        memcpy(copy, json, size);
    error->text[0] = '\0';
    status = network_parse(copy, size, "test", "folder", network, error);
    free(copy);
    return status;
}

static void expect_refusal(const char *json, size_t size, const char *reason)
{
    static const struct network zero;
    struct network network;
    struct rn_error error;
    const enum rn_status status = parse_exactly(json, size, &network, &error);

    if (status != RN_ERR_DESCRIPTION || !strstr(error.text, reason))
        fail_msg("status %d, \"%s\" instead of \"%s\" for %.200s", (int)status, error.text, reason, json);
    assert_memory_equal(&network, &zero, sizeof zero);
}

static void refuse_modules(const char *modules, const char *reason)
{
    char *json = description_of(modules, 3);

    expect_refusal(json, strlen(json), reason);
    free(json);
}

#define CONV    "{\"name\": \"c\", \"type\": \"Conv2d\", \"in\": 3, \"out\": 8, \"kernel\": 3"
#define POOL    "{\"name\": \"p\", \"type\": \"MaxPool2d\", \"kernel\": 3"
#define BLOCK   "{\"name\": \"b\", \"type\": \"Bottleneck\", \"in\": 3, \"planes\": 4"
#define FLATTEN "{\"name\": \"f\", \"type\": \"Flatten\"}"

static void test_modules_that_are_refused(void **state)
{
    static const struct {
        const char *modules, *reason;
    } cases[] = {
        {"", "\"modules\" must be a list with at least one module"},
        {"7", "module 0 needs a \"name\""},
        {"null", "module 0 needs a \"name\""},
        {"[]", "module 0 needs a \"name\""},
        {"{}", "module 0 needs a \"name\""},
        {"{\"name\": \"\", \"type\": \"ReLU\"}", "module 0 needs a \"name\""},
        {"{\"name\": \"a.b\", \"type\": \"ReLU\"}", "without a dot"},
        {"{\"name\": \"\xff\xfe\", \"type\": \"ReLU\"}", "printable"},
        {"{\"name\": \"a\\nb\", \"type\": \"ReLU\"}", "printable"},
        {"{\"name\": \"0123456789012345678901234567890123456789012345678901234567890123456\", \"type\": \"ReLU\"}",
         "1 to 64"},
        {"{\"name\": \"a\"}", "a: \"type\" is missing"},
        {"{\"name\": \"a\", \"type\": 5}", "a: \"type\" is missing"},
        {"{\"name\": \"a\", \"type\": \"GELU\"}", "a: unknown type \"GELU\""},
        {"{\"name\": \"a\", \"type\": \"relu\"}", "unknown type"},
        {"{\"name\": \"a\", \"type\": \"ReLU\", \"slope\": 1}", "a: unknown key \"slope\""},
        {"{\"name\": \"a\", \"type\": \"ReLU\", \"inplace\": 1}", "must be true or false"},
        {"{\"name\": \"a\", \"type\": \"ReLU\"}, {\"name\": \"a\", \"type\": \"ReLU\"}",
         "two modules are called \"a\""},
        {"{\"name\": \"a\", \"type\": \"ReLU\", \"type\": \"ReLU\"}", "key \"type\" is given twice"},
        {"{\"name\": \"a\", \"type\": \"Sequential\", \"modules\": []}", "a: \"modules\" must be a list"},
        {"{\"name\": \"a\", \"type\": \"Sequential\"}", "a: \"modules\" must be a list"},
        {CONV ", \"stride\": 0}", "\"stride\" must be a whole number from 1"},
        {CONV ", \"stride\": -1}", "\"stride\" must be"},
        {CONV ", \"stride\": 1.5}", "\"stride\" must be"},
        {CONV ", \"stride\": 1e300}", "\"stride\" must be"},
        {CONV ", \"stride\": -1e300}", "\"stride\" must be"},
        {CONV ", \"stride\": 1e999}", "\"stride\" must be"},
        {CONV ", \"stride\": 4294967297}", "\"stride\" must be"},
        {CONV ", \"stride\": \"2\"}", "\"stride\" must be"},
        {CONV ", \"stride\": null}", "\"stride\" must be"},
        {CONV ", \"stride\": []}", "\"stride\" must be"},
        {CONV ", \"stride\": [1]}", "\"stride\" must be"},
        {CONV ", \"stride\": [1, 1, 1]}", "\"stride\" must be"},
        {CONV ", \"stride\": [1, [1]]}", "\"stride\" must be"},
        {CONV ", \"padding\": -1}", "\"padding\" must be a whole number from 0"},
        {CONV ", \"padding\": 4097}", "\"padding\" must be"},
        {CONV ", \"dilation\": 0}", "\"dilation\" must be"},
        {CONV ", \"groups\": 2}", "3 in and 8 out channels do not divide into 2 groups"},
        {CONV ", \"groups\": 0}", "\"groups\" must be"},
        {CONV ", \"bias\": \"no\"}", "\"bias\" must be true or false"},
        {CONV ", \"kernel\": 5}", "key \"kernel\" is given twice"},
        {"{\"name\": \"c\", \"type\": \"Conv2d\", \"in\": 3, \"out\": 8}", "\"kernel\" is missing"},
        {"{\"name\": \"c\", \"type\": \"Conv2d\", \"in\": 0, \"out\": 8, \"kernel\": 1}", "\"in\" must be"},
        {"{\"name\": \"c\", \"type\": \"Conv2d\", \"in\": 3, \"out\": 1048577, \"kernel\": 1}", "\"out\" must be"},
        {"{\"name\": \"c\", \"type\": \"Conv2d\", \"in\": 1048576, \"out\": 1, \"kernel\": 4096}", "is too large"},
        {"{\"name\": \"c\", \"type\": \"Conv2d\", \"in\": 4, \"out\": 8, \"kernel\": 1}",
         "Conv2d expects 4 channels, its predecessor gives 3"},
        {CONV "}, {\"name\": \"n\", \"type\": \"BatchNorm2d\", \"features\": 9}",
         "n: BatchNorm2d expects 9 channels, its predecessor gives 8"},
        {CONV "}, {\"name\": \"n\", \"type\": \"BatchNorm2d\", \"features\": 8, \"eps\": -1}",
         "\"eps\" must be a number"},
        {CONV "}, {\"name\": \"n\", \"type\": \"BatchNorm2d\", \"features\": 8, \"eps\": \"x\"}", "\"eps\" must be"},
        {CONV "}, {\"name\": \"l\", \"type\": \"Linear\", \"in\": 8, \"out\": 2}", "Linear needs a Flatten before it"},
        {CONV "}, " FLATTEN, "the number of classes depends"},
        {FLATTEN ", " CONV "}", "Conv2d cannot follow Flatten"},
        {FLATTEN ", " POOL "}", "MaxPool2d cannot follow Flatten"},
        {FLATTEN ", " BLOCK "}", "cannot follow Flatten"},
        {FLATTEN ", {\"name\": \"l\", \"type\": \"Linear\", \"in\": 2147483647, \"out\": 2}", "\"in\" must be"},
        {FLATTEN ", {\"name\": \"l\", \"type\": \"Linear\", \"in\": 4, \"out\": 2}, "
                 "{\"name\": \"m\", \"type\": \"Linear\", \"in\": 3, \"out\": 2}",
         "m: Linear expects 3 features, its predecessor gives 2"},
        {POOL ", \"padding\": 2}", "\"padding\" must be at most half the kernel"},
        {POOL ", \"ceil_mode\": 1}", "\"ceil_mode\" must be true or false"},
        {POOL ", \"count_include_pad\": true}", "unknown key"},
        {"{\"name\": \"p\", \"type\": \"AvgPool2d\", \"kernel\": 3, \"dilation\": 2}", "unknown key"},
        {"{\"name\": \"p\", \"type\": \"AvgPool2d\", \"kernel\": 3, \"divisor_override\": 0}", "divisor_override"},
        {"{\"name\": \"p\", \"type\": \"AdaptiveAvgPool2d\", \"output\": 0}", "\"output\" must be"},
        {"{\"name\": \"p\", \"type\": \"AdaptiveAvgPool2d\", \"output\": [null, null, null]}", "\"output\" must be"},
        {"{\"name\": \"p\", \"type\": \"AdaptiveAvgPool2d\", \"output\": [null]}", "\"output\" must be"},
        {"{\"name\": \"p\", \"type\": \"AdaptiveAvgPool2d\"}", "\"output\" is missing"},
        {"{\"name\": \"d\", \"type\": \"Dropout\", \"p\": 1.5}", "\"p\" must be"},
        {"{\"name\": \"s\", \"type\": \"Softmax\", \"dim\": 2}", "\"dim\" must be"},
        {BLOCK ", \"blocks\": 0}", "\"blocks\" must be"},
        {BLOCK ", \"blocks\": 1e9}", "\"blocks\" must be"},
        {BLOCK ", \"blocks\": 1024}", "too many modules"},
        {BLOCK ", \"width_per_group\": 1}", "inner width out of range"},
        {BLOCK ", \"width_per_group\": 1048576, \"groups\": 1048576}", "inner width out of range"},
        {BLOCK ", \"planes\": 4}", "key \"planes\" is given twice"},
        {"{\"name\": \"b\", \"type\": \"BasicBlock\", \"in\": 4, \"planes\": 4}", "expects 4 channels"},
        {"{\"name\": \"b\", \"type\": \"Bottleneck\", \"in\": 3, \"planes\": 262145}", "\"planes\" must be"},
        {"{\"name\": \"b\", \"type\": \"BasicBlock\", \"in\": 3, \"planes\": 4, \"groups\": 2}", "unknown key"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse_modules(cases[i].modules, cases[i].reason);
}

#define INPUT   "\"input\": {\"channels\": 1, \"mean\": [0], \"std\": [1], \"resize\": 8, \"crop\": 8}"
#define MODULES "\"modules\": [{\"name\": \"c\", \"type\": \"Conv2d\", \"in\": 1, \"out\": 2, \"kernel\": 1}]"

static void test_files_that_are_refused(void **state)
{
    static const struct {
        const char *json, *reason;
    } cases[] = {
        {"", "not valid JSON"},
        {" ", "not valid JSON"},
        {"nonsense", "not valid JSON"},
        {"NaN", "not valid JSON"},
        {"[]", "a JSON object is expected"},
        {"5", "a JSON object is expected"},
        {"{}", "\"name\" must be"},
        {"{\"name\": \"n\"}", "input: an object is expected"},
        {"{\"name\": \"n\", " INPUT "}", "\"modules\" must be a list"},
        {"{\"name\": \"n/../m\", " INPUT ", " MODULES "}", "\"name\" must be"},
        {"{\"name\": \"\", " INPUT ", " MODULES "}", "\"name\" must be"},
        {"{\"name\": \"n\", \"class\": \"\", " INPUT ", " MODULES "}", "\"class\" must be"},
        {"{\"name\": \"n\", \"class\": 3, " INPUT ", " MODULES "}", "\"class\" must be"},
        {"{\"name\": \"n\", \"labels\": 3, " INPUT ", " MODULES "}", "\"labels\" must be"},
        {"{\"name\": \"n\", \"color\": 3, " INPUT ", " MODULES "}", "unknown key \"color\""},
        {"{\"name\": \"n\", \"name\": \"n\", " INPUT ", " MODULES "}", "key \"name\" is given twice"},
        {"{\"name\": \"n\", " INPUT ", " MODULES "} {}", "unexpected text after the JSON at byte"},
        {"{\"name\": \"n\", \"input\": {\"channels\": 2, \"mean\": [0, 0], \"std\": [1, 1], \"resize\": 8, \"crop\": "
         "8}, " MODULES "}",
         "must be 1 or 3"},
        {"{\"name\": \"n\", \"input\": {\"channels\": 1, \"mean\": [0, 0], \"std\": [1], \"resize\": 8, \"crop\": "
         "8}, " MODULES "}",
         "\"mean\" must be a list of 1 numbers"},
        {"{\"name\": \"n\", \"input\": {\"channels\": 1, \"mean\": [1e300], \"std\": [1], \"resize\": 8, \"crop\": "
         "8}, " MODULES "}",
         "\"mean\" must be"},
        {"{\"name\": \"n\", \"input\": {\"channels\": 1, \"mean\": [0], \"std\": [0], \"resize\": 8, \"crop\": "
         "8}, " MODULES "}",
         "\"std\" must be above 0"},
        {"{\"name\": \"n\", \"input\": {\"channels\": 1, \"mean\": [0], \"std\": [-1], \"resize\": 8, \"crop\": "
         "8}, " MODULES "}",
         "\"std\" must be above 0"},
        {"{\"name\": \"n\", \"input\": {\"channels\": 1, \"mean\": [0], \"std\": [1], \"resize\": 8, \"crop\": "
         "9}, " MODULES "}",
         "\"crop\" 9 is larger than \"resize\" 8"},
        {"{\"name\": \"n\", \"input\": {\"channels\": 1, \"mean\": [0], \"std\": [1], \"resize\": 8, \"crop\": 8, "
         "\"size\": \"huge\"}, " MODULES "}",
         "\"size\" must be"},
        {"{\"name\": \"n\", \"input\": {\"channels\": 1, \"mean\": [0], \"std\": [1], \"resize\": 99999, \"crop\": "
         "8}, " MODULES "}",
         "\"resize\" must be"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_refusal(cases[i].json, strlen(cases[i].json), cases[i].reason);
    expect_refusal("{}\0{}", 5, "unexpected text after the JSON at byte 2");
}

/* `depth` Sequentials around a convolution. */
static char *nested(int depth)
{
    char *text;
    size_t size;
    FILE *file = open_memstream(&text, &size);

    assert_non_null(file);
    for (int i = 0; i < depth; i++)
        fputs("{\"name\": \"s\", \"type\": \"Sequential\", \"modules\": [", file);
    fputs(CONV "}", file);
    for (int i = 0; i < depth; i++)
        fputs("]}", file);
    (void)fclose(file);
    return text;
}

static void test_nesting(void **state)
{
    struct network network;
    char *modules = nested(16);

    (void)state;
    network = network_of(modules, 3);
    assert_string_equal(network.calls[0].path, "s.s.s.s.s.s.s.s.s.s.s.s.s.s.s.s.c");
    network_free(&network);
    free(modules);

    modules = nested(17);
    refuse_modules(modules, "nested more than 16 deep");
    free(modules);
    modules = nested(3000); /* more than cJSON follows */
    refuse_modules(modules, "not valid JSON");
    free(modules);
}

static void test_many_modules(void **state)
{
    static const struct {
        int count;
        const char *format, *reason;
    } cases[] = {
        {20000, "%s{\"name\": \"r%d\", \"type\": \"ReLU\"}", "too many modules"},
        {300000, "%s%d", "too many modules"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text;
        size_t size;
        FILE *file = open_memstream(&text, &size);
        assert_non_null(file);
        for (int n = 0; n < cases[i].count; n++)
            fprintf(file, cases[i].format, n ? "," : "", n); /* NOLINT: the formats are above */
        (void)fclose(file);
        refuse_modules(text, cases[i].reason);
        free(text);
    }
}

static char *read_text(const char *path, size_t *size)
{
    char *text = malloc(1 << 20);
    FILE *file = fopen(path, "rb");

    assert_true(text && file);
    *size = fread(text, 1, 1 << 20, file);
    (void)fclose(file);
    return text;
}

/* Any prefix, and any file with a few bytes changed, is either read or refused with a reason. */
static void test_damaged_files(void **state)
{
    size_t size;
    char *text = read_text("config/models/lenet.json", &size);
    uint32_t seed = 7;
    struct network network;
    struct rn_error error;

    (void)state;
    while (size && text[size - 1] == '\n')
        size--;
    for (size_t end = 0; end < size; end++)
        expect_refusal(text, end, "not valid JSON");
    for (int round = 0; round < 3000; round++) {
        char *copy = malloc(size);
        assert_non_null(copy);
        memcpy(copy, text, size);
        for (int i = 0; i < 3; i++) {
            seed = seed * 1664525u + 1013904223u;
            copy[(seed >> 8) % size] =
                (char)(round % 2 ? "0123456789-.eE[]{}\",:"[(seed >> 3) % 21] : (int)(seed & 255));
        }
        if (parse_exactly(copy, size, &network, &error) != RN_OK)
            assert_true(error.text[0] != '\0' && error.code == RN_ERR_DESCRIPTION);
        network_free(&network);
        free(copy);
    }
    free(text);
}

static void test_bundled_descriptions(void **state)
{
    glob_t found;

    (void)state;
    assert_int_equal(glob("config/models/*.json", 0, NULL, &found), 0);
    assert_true(found.gl_pathc >= 8);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        struct network network;
        struct rn_error error;
        if (network_read(found.gl_pathv[i], &network, &error))
            fail_msg("%s", error.text);
        assert_non_null(strstr(found.gl_pathv[i], network.name));
        assert_true(network.classes >= 1 && network.call_count > 5);
        if (network.labels_path) {
            assert_memory_equal(network.labels_path, "config/models/", 14);
            assert_int_equal(access(network.labels_path, R_OK), 0);
        }
        network_free(&network);
        network_free(&network); /* and again: zeroed */
    }
    globfree(&found);
    network_free(NULL);
}

static void test_files_that_cannot_be_read(void **state)
{
    char path[TEST_PATH_SIZE];
    const size_t size = 5 << 20;
    char *spaces = malloc(size);
    struct network network;
    struct rn_error error;

    (void)state;
    assert_int_equal(network_read("config/models/nothing.json", &network, &error), RN_ERR_IO);
    assert_non_null(strstr(error.text, "config/models/nothing.json"));
    assert_int_equal(network_read("config/models", &network, &error), RN_ERR_IO);
    assert_int_equal(network_read("", &network, &error), RN_ERR_IO);
    assert_non_null(spaces);
    memset(spaces, ' ', size);
    write_temporary(path, spaces, size);
    assert_int_equal(network_read(path, &network, &error), RN_ERR_DESCRIPTION);
    assert_non_null(strstr(error.text, "larger than"));
    (void)unlink(path);
    free(spaces);
}

static void test_labels_path(void **state)
{
    static const char *const cases[][3] = {
        {"a/b", "../l.tsv", "a/b/../l.tsv"}, {"a", "/l.tsv", "/l.tsv"}, {"", "l.tsv", "l.tsv"}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[512];
        struct network network;
        struct rn_error error;
        (void)snprintf(json, sizeof json, "{\"name\": \"n\", \"labels\": \"%s\", " INPUT ", " MODULES "}  \r\n\t",
                       cases[i][1]);
        assert_int_equal(network_parse(json, strlen(json), "test", cases[i][0], &network, &error), RN_OK);
        assert_string_equal(network.labels_path, cases[i][2]);
        assert_string_equal(network.class_name, "Sequential");
        assert_int_equal(network.input.fit, 8); /* as `resize` when it is not given */
        assert_int_equal(network.input.size, INPUT_SIZE_NATIVE);
        network_free(&network);
    }
}

/* The calls as "kind path input other output", in order. */
static void expect_calls(const char *modules, const char *const *expected)
{
    struct network network = network_of(modules, 3);

    for (size_t i = 0; i < network.call_count; i++) {
        const struct call *call = &network.calls[i];
        char text[256];
        assert_non_null(expected[i]);
        (void)snprintf(text, sizeof text, "%s %s %d %d %d",
                       call->kind == CALL_LEAF  ? "leaf"
                       : call->kind == CALL_ADD ? "add"
                                                : "block",
                       call->path, call->input, call->other, call->output);
        assert_string_equal(text, expected[i]);
    }
    assert_null(expected[network.call_count]);
    network_free(&network);
}

static void test_trace(void **state)
{
    static const char *const bottleneck[] = {"leaf b.0.conv1 0 -1 1",
                                             "leaf b.0.bn1 1 -1 2",
                                             "leaf b.0.relu 2 -1 3",
                                             "leaf b.0.conv2 3 -1 4",
                                             "leaf b.0.bn2 4 -1 5",
                                             "leaf b.0.relu 5 -1 6",
                                             "leaf b.0.conv3 6 -1 7",
                                             "leaf b.0.bn3 7 -1 8",
                                             "leaf b.0.downsample.0 0 -1 9",
                                             "leaf b.0.downsample.1 9 -1 10",
                                             "block b.0.downsample 10 -1 10",
                                             "add b.0 8 10 11",
                                             "leaf b.0.relu 11 -1 12",
                                             "block b.0 12 -1 12",
                                             "leaf b.1.conv1 12 -1 13",
                                             "leaf b.1.bn1 13 -1 14",
                                             "leaf b.1.relu 14 -1 15",
                                             "leaf b.1.conv2 15 -1 16",
                                             "leaf b.1.bn2 16 -1 17",
                                             "leaf b.1.relu 17 -1 18",
                                             "leaf b.1.conv3 18 -1 19",
                                             "leaf b.1.bn3 19 -1 20",
                                             "add b.1 20 12 21",
                                             "leaf b.1.relu 21 -1 22",
                                             "block b.1 22 -1 22",
                                             "block b 22 -1 22",
                                             NULL};
    static const char *const residual[] = {
        "leaf r.conv1 0 -1 1", "leaf r.bn1 1 -1 2", "leaf r.relu 2 -1 3", "leaf r.conv2 3 -1 4", "leaf r.bn2 4 -1 5",
        "leaf r.conv3 0 -1 6", "add r 5 6 7",       "leaf r.relu 7 -1 8", "block r 8 -1 8",      NULL};
    static const char *const basic[] = {"leaf b.conv1 0 -1 1", "leaf b.bn1 1 -1 2", "leaf b.relu 2 -1 3",
                                        "leaf b.conv2 3 -1 4", "leaf b.bn2 4 -1 5", "add b 5 0 6",
                                        "leaf b.relu 6 -1 7",  "block b 7 -1 7",    NULL};

    (void)state;
    expect_calls("{\"name\": \"b\", \"type\": \"Bottleneck\", \"in\": 3, \"planes\": 4, \"blocks\": 2, \"stride\": 2}",
                 bottleneck);
    expect_calls("{\"name\": \"r\", \"type\": \"Residual\", \"in\": 3, \"out\": 4}", residual);
    expect_calls("{\"name\": \"b\", \"type\": \"BasicBlock\", \"in\": 3, \"planes\": 3}", basic);
}

static void test_classes_and_softmax(void **state)
{
    static const struct {
        const char *modules;
        int classes;
        bool softmax;
    } cases[] = {
        {CONV "}", 8, false},
        {CONV "}, {\"name\": \"p\", \"type\": \"AdaptiveAvgPool2d\", \"output\": [2, 3]}, " FLATTEN, 48, false},
        {CONV "}, {\"name\": \"p\", \"type\": \"AdaptiveAvgPool2d\", \"output\": 1}, " FLATTEN
              ", {\"name\": \"s\", \"type\": \"Softmax\"}, {\"name\": \"d\", \"type\": \"Dropout\"}",
         8, true},
        {FLATTEN ", {\"name\": \"l\", \"type\": \"Linear\", \"in\": 12, \"out\": 5}, {\"name\": \"s\", \"type\": "
                 "\"Softmax\", \"dim\": 1}, {\"name\": \"r\", \"type\": \"ReLU\"}",
         5, false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct network network = network_of(cases[i].modules, 3);
        assert_int_equal(network.classes, cases[i].classes);
        assert_int_equal(network.ends_in_softmax, cases[i].softmax);
        network_free(&network);
    }
}

static void test_print(void **state)
{
    /* What PyTorch prints for the same modules. */
    static const char expected[] =
        "Net(\n"
        "  (conv1): Conv2d(3, 8, kernel_size=(3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False)\n"
        "  (bn1): BatchNorm2d(8, eps=0.001, momentum=0.1, affine=True, track_running_stats=True)\n"
        "  (relu): ReLU(inplace=True)\n"
        "  (pool): MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=False)\n"
        "  (mean): AvgPool2d(kernel_size=(1, 2), stride=(1, 2), padding=0)\n"
        "  (layer): Sequential(\n"
        "    (0): BasicBlock(\n"
        "      (conv1): Conv2d(8, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)\n"
        "      (bn1): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)\n"
        "      (relu): ReLU(inplace=True)\n"
        "      (conv2): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)\n"
        "      (bn2): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)\n"
        "      (downsample): Sequential(\n"
        "        (0): Conv2d(8, 4, kernel_size=(1, 1), stride=(1, 1), bias=False)\n"
        "        (1): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)\n"
        "      )\n"
        "    )\n"
        "  )\n"
        "  (group): Conv2d(4, 4, kernel_size=(1, 1), stride=(1, 1), groups=2)\n"
        "  (avgpool): AdaptiveAvgPool2d(output_size=(1, None))\n"
        "  (drop): Dropout(p=0.25, inplace=False)\n"
        "  (flat): Flatten(start_dim=1, end_dim=-1)\n"
        "  (fc): Linear(in_features=4, out_features=2, bias=True)\n"
        "  (soft): Softmax(dim=1)\n"
        ")\n";
    struct network network = network_of(
        "{\"name\": \"conv1\", \"type\": \"Conv2d\", \"in\": 3, \"out\": 8, \"kernel\": [3, 5], \"stride\": [2, 1], "
        "\"padding\": [1, 2], \"dilation\": [1, 2], \"bias\": false},"
        "{\"name\": \"bn1\", \"type\": \"BatchNorm2d\", \"features\": 8, \"eps\": 0.001},"
        "{\"name\": \"relu\", \"type\": \"ReLU\", \"inplace\": true},"
        "{\"name\": \"pool\", \"type\": \"MaxPool2d\", \"kernel\": 3, \"stride\": 2, \"padding\": 1},"
        "{\"name\": \"mean\", \"type\": \"AvgPool2d\", \"kernel\": [1, 2]},"
        "{\"name\": \"layer\", \"type\": \"BasicBlock\", \"in\": 8, \"planes\": 4, \"blocks\": 1},"
        "{\"name\": \"group\", \"type\": \"Conv2d\", \"in\": 4, \"out\": 4, \"kernel\": 1, \"groups\": 2},"
        "{\"name\": \"hidden\", \"type\": \"ReLU\", \"functional\": true},"
        "{\"name\": \"avgpool\", \"type\": \"AdaptiveAvgPool2d\", \"output\": [1, null]},"
        "{\"name\": \"drop\", \"type\": \"Dropout\", \"p\": 0.25},"
        "{\"name\": \"flat\", \"type\": \"Flatten\"},"
        "{\"name\": \"fc\", \"type\": \"Linear\", \"in\": 4, \"out\": 2},"
        "{\"name\": \"soft\", \"type\": \"Softmax\", \"dim\": 1}",
        3);
    char *text;
    size_t size;
    FILE *file = open_memstream(&text, &size);

    (void)state;
    assert_non_null(file);
    network_print(&network, file);
    (void)fclose(file);
    assert_string_equal(text, expected);
    free(text);
    network_free(&network);
}

static void test_out_of_memory(void **state)
{
    char *json = description_of(
        CONV "}, {\"name\": \"s\", \"type\": \"Sequential\", \"modules\": [{\"name\": \"b\", \"type\": \"Bottleneck\", "
             "\"in\": 8, \"planes\": 4, \"blocks\": 2}, {\"name\": \"r\", \"type\": \"Residual\", \"in\": 16, "
             "\"out\": 4}]}",
        3);
    struct network network;
    struct rn_error error;

    (void)state;
    for (long n = 0;; n++) {
        enum rn_status status;
        fail_alloc_at(n);
        status = network_parse(json, strlen(json), "test", "folder", &network, &error);
        if (!fail_alloc_fired()) {
            fail_alloc_at(-1);
            assert_int_equal(status, RN_OK);
            assert_true(n > 40);
            break;
        }
        fail_alloc_at(-1);
        assert_int_equal(status, RN_ERR_NOMEM);
        assert_null(network.calls);
    }
    network_free(&network);
    free(json);
    for (long n = 0;; n++) {
        enum rn_status status;
        fail_alloc_at(n);
        status = network_read("config/models/lenet.json", &network, &error);
        if (!fail_alloc_fired())
            break;
        assert_int_equal(status, RN_ERR_NOMEM);
    }
    fail_alloc_at(-1);
    network_free(&network);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_modules_that_are_refused),
        cmocka_unit_test(test_files_that_are_refused),
        cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_many_modules),
        cmocka_unit_test(test_damaged_files),
        cmocka_unit_test(test_bundled_descriptions),
        cmocka_unit_test(test_files_that_cannot_be_read),
        cmocka_unit_test(test_labels_path),
        cmocka_unit_test(test_trace),
        cmocka_unit_test(test_classes_and_softmax),
        cmocka_unit_test(test_print),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
