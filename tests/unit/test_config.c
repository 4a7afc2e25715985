/* test_config.c - configuration: sources and their order, every kind of mistake, the CPU quota. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../server/config.h"
#include "../../server/cpus.h"
#include "fail_alloc.h"

static char folder[64];

static void write_text(const char *path, const char *text)
{
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    fputs(text, out);
    assert_int_equal(fclose(out), 0);
}

/* The path of a file in the test's own folder, with `text` in it. */
static const char *file_with(const char *name, const char *text)
{
    static char path[160];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    write_text(path, text);
    return path;
}

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/resnetd-config-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

/* Load from a file's text (NULL: no file), expecting success. */
static void load(const char *json, char *const *environment, const struct config_override *overrides, size_t count,
                 struct config *config)
{
    struct rn_error error = {0};
    enum rn_status status =
        config_load(json ? file_with("c.json", json) : NULL, environment, overrides, count, "/data", config, &error);
    if (status != RN_OK)
        fail_msg("%s", error.text);
}

/* Load and expect a refusal whose text contains `expected`, and nothing left in the struct. */
static void refuse(const char *json, char *const *environment, const struct config_override *overrides, size_t count,
                   const char *expected)
{
    struct config config, zero;
    struct rn_error error = {0};
    memset(&zero, 0, sizeof zero);
    enum rn_status status =
        config_load(json ? file_with("c.json", json) : NULL, environment, overrides, count, "/data", &config, &error);
    assert_int_not_equal(status, RN_OK);
    assert_int_equal(status, error.code);
    if (!strstr(error.text, expected))
        fail_msg("\"%s\" does not contain \"%s\"", error.text, expected);
    assert_memory_equal(&config, &zero, sizeof config);
}

static void defaults(void **state)
{
    (void)state;
    struct config config;
    load(NULL, NULL, NULL, 0, &config);
    assert_string_equal(config.server.host, "0.0.0.0");
    assert_int_equal(config.server.port, 8080);
    assert_string_equal(config.server.cors_origin, "*");
    assert_int_equal(config.limits.max_body_bytes, 32 << 20);
    assert_int_equal(config.limits.max_native_pixels, 1048576);
    assert_int_equal(config.engine.workers, 0);
    assert_string_equal(config.engine.kernels, "auto");
    assert_int_equal(config.log.format, LOG_FORMAT_TEXT);
    assert_int_equal(config.log.level, LOG_LEVEL_INFO);
    config_free(&config);
}

/* The file that is shipped says what the program does without it. */
static void shipped_file_holds_the_defaults(void **state)
{
    (void)state;
    struct config config, plain;
    struct rn_error error = {0};
    char *texts[2];
    size_t sizes[2];
    load(NULL, NULL, NULL, 0, &plain);
    assert_int_equal(config_load("config/resnetd.json", NULL, NULL, 0, "/data", &config, &error), RN_OK);
    struct config *configs[] = {&plain, &config};
    for (int i = 0; i < 2; i++) {
        FILE *out = open_memstream(&texts[i], &sizes[i]);
        config_print(configs[i], out);
        fclose(out);
        config_free(configs[i]);
    }
    assert_string_equal(texts[0], texts[1]);

    /* And it names every key. */
    FILE *in = fopen("config/resnetd.json", "r");
    char text[8192];
    assert_non_null(in);
    text[fread(text, 1, sizeof text - 1, in)] = 0;
    fclose(in);
    for (size_t i = 0; config_key_at(i); i++) {
        char quoted[80];
        snprintf(quoted, sizeof quoted, "\"%s\"", strchr(config_key_at(i)->name, '.') + 1);
        assert_non_null(strstr(text, quoted));
    }
    free(texts[0]);
    free(texts[1]);
}

static void later_sources_win(void **state)
{
    (void)state;
    const char *json = "{\"server\": {\"port\": 1}, \"limits\": {\"queue_length\": 10, \"max_files\": 3}}";
    char *environment[] = {"PATH=/bin", "RESNETD_SERVER_PORT=2", "RESNETD_LIMITS_QUEUE_LENGTH=20", NULL};
    struct config_override overrides[] = {{"server.port", "3"}, {"server.port", "4"}};
    struct config config;
    load(json, environment, overrides, 2, &config);
    assert_int_equal(config.server.port, 4);
    assert_int_equal(config.limits.queue_length, 20);
    assert_int_equal(config.limits.max_files, 3);
    config_free(&config);
}

static void every_type_from_every_source(void **state)
{
    (void)state;
    const char *json =
        "{\"server\": {\"host\": \"::1\", \"port\": 0}, \"limits\": {\"max_body_bytes\": 5000000000,"
        " \"max_body_memory_bytes\": 6000000000}, \"log\": {\"format\": \"json\", \"level\": \"debug\"}}";
    char *environment[] = {"RESNETD_SERVER_HOST=127.0.0.1", "RESNETD_LIMITS_MAX_REQUEST_BYTES=7000000000",
                           "RESNETD_LOG_LEVEL=warn", "RESNETD_ENGINE_PRECISION=bf16", NULL};
    struct config config;
    load(json, NULL, NULL, 0, &config);
    assert_string_equal(config.server.host, "::1");
    assert_true(config.limits.max_body_bytes == 5000000000);
    assert_int_equal(config.log.format, LOG_FORMAT_JSON);
    assert_int_equal(config.log.level, LOG_LEVEL_DEBUG);
    config_free(&config);
    load(json, environment, NULL, 0, &config);
    assert_string_equal(config.server.host, "127.0.0.1");
    assert_true(config.limits.max_request_bytes == 7000000000);
    assert_int_equal(config.log.level, LOG_LEVEL_WARN);
    assert_string_equal(config.engine.precision, "bf16");
    config_free(&config);
}

static void models_from_a_file(void **state)
{
    (void)state;
    struct config config;
    char expected[PATH_MAX];
    load("{\"models\": [{\"name\": \"a\", \"description\": \"d/a.json\", \"weights\": \"/w/a.pth\", \"labels\": "
         "\"l.tsv\"},"
         "{\"description\": \"vgg16\", \"weights\": \"b.safetensors\"}]}",
         NULL, NULL, 0, &config);
    assert_int_equal(config.model_count, 2);
    assert_string_equal(config.models[0].name, "a");
    snprintf(expected, sizeof expected, "%s/d/a.json", folder);
    assert_string_equal(config.models[0].description, expected);
    assert_string_equal(config.models[0].weights, "/w/a.pth");
    snprintf(expected, sizeof expected, "%s/l.tsv", folder);
    assert_string_equal(config.models[0].labels, expected);
    assert_null(config.models[1].name);
    assert_string_equal(config.models[1].description, "/data/models/vgg16.json");
    snprintf(expected, sizeof expected, "%s/b.safetensors", folder);
    assert_string_equal(config.models[1].weights, expected);
    assert_null(config.models[1].labels);
    assert_null(config.default_note);
    config_free(&config);
}

static void models_from_environment_and_flags(void **state)
{
    (void)state;
    char *environment[] = {"RESNETD_MODELS_0_DESCRIPTION=/d.json", "RESNETD_MODELS_0_WEIGHTS=/w.pth",
                           "RESNETD_MODELS_1_DESCRIPTION=lenet", "RESNETD_MODELS_1_WEIGHTS=lenet.pth", NULL};
    struct config_override overrides[] = {{"models.0.weights", "/other.pth"}, {"models.1.name", "small"}};
    char current[PATH_MAX - 32], expected[PATH_MAX];
    struct config config;
    load(NULL, environment, overrides, 2, &config);
    assert_int_equal(config.model_count, 2);
    assert_string_equal(config.models[0].description, "/d.json");
    assert_string_equal(config.models[0].weights, "/other.pth");
    assert_string_equal(config.models[1].name, "small");
    assert_non_null(getcwd(current, sizeof current));
    snprintf(expected, sizeof expected, "%s/lenet.pth", current);
    assert_string_equal(config.models[1].weights, expected);
    config_free(&config);
}

/* Without "models": the demo, or ImageNet once someone fetched its weights. */
static void models_when_none_are_named(void **state)
{
    (void)state;
    char data[80], weights[160];
    struct config config;
    struct rn_error error;
    snprintf(data, sizeof data, "%s/config", folder);
    assert_int_equal(mkdir(data, 0700), 0);
    assert_int_equal(config_load(NULL, NULL, NULL, 0, data, &config, &error), RN_OK);
    assert_int_equal(config.model_count, 1);
    assert_non_null(strstr(config.models[0].description, "/models/demo64.json"));
    assert_non_null(strstr(config.models[0].weights, "/weights/demo64.safetensors"));
    assert_non_null(strstr(config.default_note, "demo"));
    assert_non_null(strstr(config.default_note, "make weights"));
    config_free(&config);

    snprintf(weights, sizeof weights, "%s/weights", folder);
    assert_int_equal(mkdir(weights, 0700), 0);
    file_with("weights/resnet50-0676ba61.pth", "x");
    assert_int_equal(config_load(NULL, NULL, NULL, 0, data, &config, &error), RN_OK);
    assert_int_equal(config.model_count, 1);
    assert_non_null(strstr(config.models[0].description, "/models/resnet50.json"));
    assert_non_null(strstr(config.models[0].weights, "/weights/resnet50-0676ba61.pth"));
    assert_non_null(strstr(config.default_note, "ImageNet"));
    config_free(&config);
}

static void mistakes_in_a_file(void **state)
{
    (void)state;
    static const struct {
        const char *json, *expected;
    } CASES[] = {
        {"", "not valid JSON"},
        {"{\n\"server\": {\n\"port\" 1}}", "near line 3"},
        {"{} {}", "not valid JSON"},
        {"[]", "must hold one JSON object"},
        {"{\"sever\": {}}", "unknown key sever"},
        {"{\"server\": 1}", "server must be an object"},
        {"{\"server\": {\"prot\": 1}}", "unknown key server.prot; did you mean server.port?"},
        {"{\"limits\": {\"max_body_byte\": 1}}", "did you mean limits.max_body_bytes?"},
        {"{\"server\": {\"zzzzzzzzzzzz\": 1}}", "unknown key server.zzzzzzzzzzzz"},
        {"{\"server\": {\"port\": \"80\"}}", "server.port must be an integer"},
        {"{\"server\": {\"port\": 80.5}}", "server.port must be an integer"},
        {"{\"server\": {\"port\": null}}", "server.port must be an integer"},
        {"{\"server\": {\"port\": true}}", "server.port must be an integer"},
        {"{\"server\": {\"port\": 1e300}}", "server.port must be an integer"},
        {"{\"server\": {\"port\": 65536}}", "server.port must be between 0 and 65535, not 65536"},
        {"{\"server\": {\"port\": -1}}", "not -1"},
        {"{\"limits\": {\"queue_length\": 0}}", "limits.queue_length must be between 1"},
        {"{\"limits\": {\"max_body_bytes\": 0}}", "limits.max_body_bytes must be between 1"},
        {"{\"server\": {\"host\": 1}}", "server.host must be a string"},
        {"{\"server\": {\"host\": \"\"}}", "server.host must not be empty"},
        {"{\"server\": {\"host\": \"example\"}}", "server.host must be an IPv4 or IPv6 address"},
        {"{\"server\": {\"cors_origin\": \"a\\r\\nb\"}}", "server.cors_origin must have no spaces"},
        {"{\"log\": {\"format\": \"xml\"}}", "log.format must be one of text|json, not \"xml\""},
        {"{\"log\": {\"format\": \"tex\"}}", "log.format must be one of"},
        {"{\"engine\": {\"precision\": \"fp16\"}}", "engine.precision must be one of auto|fp32|bf16"},
        {"{\"server\": {\"port\": 1, \"port\": 2}}", "server.port is given twice"},
        {"{\"log\": {}, \"log\": {}}", "log is given twice"},
        {"{\"limits\": {\"max_body_bytes\": 1000, \"max_body_memory_bytes\": 999}}", "limits.max_body_memory_bytes"},
        {"{\"models\": {}}", "models must be a list"},
        {"{\"models\": [1]}", "models.0 must be an object"},
        {"{\"models\": [{}]}", "models.0.description is missing"},
        {"{\"models\": [{\"description\": \"d.json\"}]}", "models.0.weights is missing"},
        {"{\"models\": [{\"description\": \"d.json\", \"weights\": 1}]}", "models.0.weights must be a string"},
        {"{\"models\": [{\"description\": \"d.json\", \"weight\": \"w\"}]}", "unknown key models.0.weight"},
        {"{\"models\": [{\"name\": \"a b\"}]}", "models.0.name may have"},
        {"{\"models\": [{\"name\": \"\"}]}", "models.0.name must not be empty"},
        {"{\"models\": [{\"name\": \"a\", \"name\": \"b\"}]}", "models.0.name is given twice"},
        {"{\"models\": [{\"name\": \"a\", \"description\": \"d\", \"weights\": \"w\"},"
         "{\"name\": \"a\", \"description\": \"d\", \"weights\": \"w\"}]}",
         "models.0.name and models.1.name are both \"a\""},
        {"{\"models\": [{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}]}", "more than 16 elements"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++)
        refuse(CASES[i].json, NULL, NULL, 0, CASES[i].expected);
}

static void files_that_are_no_configuration(void **state)
{
    (void)state;
    struct config config;
    struct rn_error error;
    char path[160];
    assert_int_equal(config_load("/nonexistent.json", NULL, NULL, 0, "/data", &config, &error), RN_ERR_IO);
    assert_non_null(strstr(error.text, "/nonexistent.json"));
    assert_int_equal(config_load(folder, NULL, NULL, 0, "/data", &config, &error), RN_ERR_IO);

    snprintf(path, sizeof path, "%s/big.json", folder);
    FILE *out = fopen(path, "w");
    for (int i = 0; i < (1 << 20) + 1; i++)
        fputc(' ', out);
    fclose(out);
    assert_int_equal(config_load(path, NULL, NULL, 0, "/data", &config, &error), RN_ERR_CONFIG);
    assert_non_null(strstr(error.text, "larger than 1 MiB"));

    out = fopen(path, "w");
    fwrite("{}\0{}", 1, 5, out);
    fclose(out);
    assert_int_equal(config_load(path, NULL, NULL, 0, "/data", &config, &error), RN_ERR_CONFIG);
    assert_non_null(strstr(error.text, "zero byte"));
}

static void mistakes_in_the_environment(void **state)
{
    (void)state;
    static const struct {
        char *variable;
        const char *expected;
    } CASES[] = {
        {"RESNETD_SERVER_PROT=1", "unknown key RESNETD_SERVER_PROT; did you mean RESNETD_SERVER_PORT?"},
        {"RESNETD_PORT=9000", "unknown key RESNETD_PORT"},
        {"RESNETD_=1", "unknown key RESNETD_"},
        {"RESNETD_SERVER_PORT=", "server.port must be an integer, not \"\""},
        {"RESNETD_SERVER_PORT=80x", "not \"80x\""},
        {"RESNETD_SERVER_PORT= 80", "not \" 80\""},
        {"RESNETD_SERVER_PORT=99999999999999999999", "must be an integer"},
        {"RESNETD_LIMITS_MAX_BODY_BYTES=-1", "limits.max_body_bytes must be between 1"},
        {"RESNETD_LOG_LEVEL=loud", "log.level must be one of"},
        {"RESNETD_MODELS_99_NAME=x", "at most 16 models"},
        {"RESNETD_MODELS_0_COLOUR=x", "unknown key RESNETD_MODELS_0_COLOUR"},
        {"RESNETD_MODELS_0_WEIGHTS=x", "models.0.description is missing"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        char *environment[] = {CASES[i].variable, NULL};
        refuse(NULL, environment, NULL, 0, CASES[i].expected);
    }
}

/* A cluster sets these for a service that is called resnetd; they are not ours. */
static void service_links_are_ignored(void **state)
{
    (void)state;
    char *environment[] = {"RESNETD_SERVICE_HOST=10.0.0.1",
                           "RESNETD_SERVICE_PORT=8080",
                           "RESNETD_SERVICE_PORT_HTTP=8080",
                           "RESNETD_PORT=tcp://10.0.0.1:8080",
                           "RESNETD_PORT_8080_TCP=tcp://1:8080",
                           "RESNETD_PORT_8080_TCP_ADDR=10.0.0.1",
                           "RESNETD_SERVER_PORT=tcp://1:1",
                           "RESNETD_SERVER_SERVICE_HOST=10.0.0.1",
                           "RESNETD_CONFIG=/etc/x",
                           "RESNETD_DATA=/y",
                           "RESNETD_BINARY=/z",
                           "RESNETD",
                           NULL};
    struct config config;
    load(NULL, environment, NULL, 0, &config);
    assert_int_equal(config.server.port, 8080);
    config_free(&config);
}

static void mistakes_in_flags(void **state)
{
    (void)state;
    struct config_override unknown = {"server.prot", "1"}, wrong = {"server.port", "abc"},
                           model = {"models.x.name", "a"};
    refuse(NULL, NULL, &unknown, 1, "flag: unknown key server.prot; did you mean server.port?");
    refuse(NULL, NULL, &wrong, 1, "flag: server.port must be an integer");
    refuse(NULL, NULL, &model, 1, "unknown key models.x.name");
}

/* What is printed, loaded again, is the same configuration. */
static void printing_round_trips(void **state)
{
    (void)state;
    struct config_override overrides[] = {{"server.port", "1234"},           {"log.format", "json"},
                                          {"server.cors_origin", "a\"b\\c"}, {"models.0.description", "/d \"x\".json"},
                                          {"models.0.weights", "/w\n.pth"},  {"models.1.description", "lenet"},
                                          {"models.1.weights", "/l.pth"},    {"models.1.name", "l"}};
    struct config config;
    char *texts[2];
    size_t sizes[2];
    load(NULL, NULL, overrides, sizeof overrides / sizeof overrides[0], &config);
    for (int i = 0; i < 2; i++) {
        FILE *out = open_memstream(&texts[i], &sizes[i]);
        config_print(&config, out);
        fclose(out);
        config_free(&config);
        load(texts[i], NULL, NULL, 0, &config);
    }
    assert_string_equal(texts[0], texts[1]);
    assert_int_equal(config.server.port, 1234);
    assert_string_equal(config.models[0].weights, "/w\n.pth");
    assert_string_equal(config.server.cors_origin, "a\"b\\c");
    config_free(&config);
    free(texts[0]);
    free(texts[1]);
}

static void any_allocation_may_fail(void **state)
{
    (void)state;
    const char *path = file_with("c.json", "{\"server\": {\"host\": \"::1\"}, \"models\": [{\"name\": \"a\","
                                           "\"description\": \"lenet\", \"weights\": \"w.pth\", \"labels\": \"l\"}]}");
    char *environment[] = {"RESNETD_SERVER_HOST=::", NULL};
    struct config_override override = {"server.host", "127.0.0.1"};
    struct config config;
    struct rn_error error;
    for (int with_file = 0; with_file < 2; with_file++)
        for (long n = 0;; n++) {
            fail_alloc_at(n);
            enum rn_status status =
                config_load(with_file ? path : NULL, environment, &override, 1, "/data", &config, &error);
            if (!fail_alloc_fired()) {
                fail_alloc_at(-1);
                assert_int_equal(status, RN_OK);
                config_free(&config);
                assert_true(n > 5);
                break;
            }
            assert_int_equal(status, RN_ERR_NOMEM);
            assert_null(config.server.host);
        }
}

static void freeing_twice_is_fine(void **state)
{
    (void)state;
    struct config config;
    load(NULL, NULL, NULL, 0, &config);
    config_free(&config);
    config_free(&config);
    config_free(NULL);
}

/* ------------------------------------------------------------------------------------------- the quota */

/* Write `text` to folder/cg/NAME, making the folders. */
static void cgroup_file(const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/cg/%s", folder, name);
    for (char *slash = path + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
    write_text(path, text);
}

static int quota(const char *membership)
{
    char root[80];
    snprintf(root, sizeof root, "%s/cg", folder);
    return cpus_of_quota(file_with("membership", membership), root);
}

static void cpu_quota_v2(void **state)
{
    (void)state;
    assert_int_equal(quota("0::/nowhere\n"), 0);
    cgroup_file("cpu.max", "max 100000\n");
    assert_int_equal(quota("0::/\n"), 0);
    cgroup_file("a/b/cpu.max", "350000 100000\n");
    assert_int_equal(quota("0::/a/b\n"), 3);
    cgroup_file("a/cpu.max", "200000 100000\n");
    assert_int_equal(quota("0::/a/b\n"), 2); /* the parent's is smaller */
    assert_int_equal(quota("0::/a/b/c/d\n"), 2);
    assert_int_equal(quota("0::/host/only\n"), 0);
    cgroup_file("cpu.max", "50000 100000\n");
    assert_int_equal(quota("0::/host/only\n"), 1); /* a container's root; half a CPU is one thread */
    cgroup_file("cpu.max", "garbage\n");
    assert_int_equal(quota("0::/\n"), 0);
    assert_int_equal(cpus_of_quota("/nonexistent", "/nonexistent"), 0);
}

static void cpu_quota_v1(void **state)
{
    (void)state;
    cgroup_file("cpu,cpuacct/docker/x/cpu.cfs_quota_us", "400000\n");
    cgroup_file("cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000\n");
    assert_int_equal(quota("11:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/\n"), 4);
    cgroup_file("cpu,cpuacct/docker/x/cpu.cfs_quota_us", "-1\n");
    assert_int_equal(quota("4:cpu,cpuacct:/docker/x\n"), 0);
    cgroup_file("cpu/cpu.cfs_quota_us", "200000\n");
    cgroup_file("cpu/cpu.cfs_period_us", "100000\n");
    assert_int_equal(quota("4:cpuacct,cpu:/elsewhere\n"), 2);
    assert_int_equal(quota("4:cpuset:/docker/x\n"), 0);
}

static void cpu_count_is_positive(void **state)
{
    (void)state;
    assert_true(config_cpu_count() >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(shipped_file_holds_the_defaults),
        cmocka_unit_test(later_sources_win),
        cmocka_unit_test(every_type_from_every_source),
        cmocka_unit_test(models_from_a_file),
        cmocka_unit_test(models_from_environment_and_flags),
        cmocka_unit_test(models_when_none_are_named),
        cmocka_unit_test(mistakes_in_a_file),
        cmocka_unit_test(files_that_are_no_configuration),
        cmocka_unit_test(mistakes_in_the_environment),
        cmocka_unit_test(service_links_are_ignored),
        cmocka_unit_test(mistakes_in_flags),
        cmocka_unit_test(printing_round_trips),
        cmocka_unit_test(any_allocation_may_fail),
        cmocka_unit_test(freeing_twice_is_fine),
        cmocka_unit_test(cpu_quota_v2),
        cmocka_unit_test(cpu_quota_v1),
        cmocka_unit_test(cpu_count_is_positive),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
