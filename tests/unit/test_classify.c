/* test_classify.c - from the bytes of an image file to classes: top-k, the three input sizes, limits, images that are
 * none, and failing allocations. */

#include "make_weights.h"

#include <math.h>

#include "../../model/classify.h"
#include "../../model/clock.h"
#include "fail_alloc.h"

static void assert_close(double actual, double expected, double tolerance)
{
    if (!(fabs(actual - expected) <= tolerance))
        fail_msg("%.12g instead of %.12g", actual, expected);
}

/* ---- top-k ---- */

static void expect_order(const float *logits, int count, int k, const int *expected)
{
    struct prediction *top = calloc((size_t)k, sizeof *top);

    assert_non_null(top);
    classify_top_k(logits, count, false, k, top);
    for (int i = 0; i < k; i++) {
        assert_int_equal(top[i].class_index, expected[i]);
        assert_memory_equal(&top[i].logit, &logits[expected[i]], sizeof(float));
        assert_true(i == 0 || top[i].probability <= top[i - 1].probability);
    }
    free(top);
}

static void test_top_k(void **state)
{
    static const float ties[] = {1, 3, 2, 3, -1, 3, 2};
    static const float rising[] = {-5, -4, 0, 1, 8};
    static const float equal[] = {0, 0, 0, 0};

    (void)state;
    expect_order(ties, 7, 1, (const int[]){1});
    expect_order(ties, 7, 2, (const int[]){1, 3});
    expect_order(ties, 7, 4, (const int[]){1, 3, 5, 2});
    expect_order(ties, 7, 7, (const int[]){1, 3, 5, 2, 6, 0, 4});
    expect_order(rising, 5, 1, (const int[]){4});
    expect_order(rising, 5, 5, (const int[]){4, 3, 2, 1, 0});
    expect_order(equal, 4, 3, (const int[]){0, 1, 2});
    expect_order(equal, 1, 1, (const int[]){0});
    expect_order((const float[]){-INFINITY, -3e38f, 3e38f}, 3, 3, (const int[]){2, 1, 0});
}

static void test_probabilities(void **state)
{
    static const float logits[] = {0, 1, 2, -1e30f, 700};
    static const float given[] = {0.25f, 0.5f, 0.125f, 0.125f, 0};
    struct prediction top[5];
    double sum = 0;

    (void)state;
    classify_top_k(logits, 3, false, 3, top);
    assert_close(top[0].probability, 0.66524095577, 1e-9); /* exp(2) / (1 + e + exp(2)) */
    assert_close(top[1].probability, 0.24472847105, 1e-9);
    assert_close(top[2].probability, 0.09003057317, 1e-9);
    classify_top_k(logits, 5, false, 5, top);
    for (int i = 0; i < 5; i++)
        sum += top[i].probability;
    assert_close(sum, 1, 1e-12);
    assert_true(top[0].probability <= 1 && top[4].probability >= 0);
    classify_top_k(given, 5, true, 3, top);
    assert_int_equal(top[0].class_index, 1);
    assert_close(top[0].probability, 0.5, 0);
    assert_close(top[2].probability, 0.125, 0);
}

/* Against a plain sort, with many equal values. */
static void test_top_k_at_random(void **state)
{
    uint32_t seed = 9;

    (void)state;
    for (int round = 0; round < 300; round++) {
        float logits[50];
        int order[50];
        const int count = 1 + round % 50;
        for (int i = 0; i < count; i++) {
            seed = seed * 1664525u + 1013904223u;
            logits[i] = (float)(seed >> 28);
            order[i] = i;
        }
        for (int i = 1; i < count; i++)
            for (int j = i; j > 0 && logits[order[j]] > logits[order[j - 1]]; j--) {
                const int swapped = order[j];
                order[j] = order[j - 1];
                order[j - 1] = swapped;
            }
        for (int k = 1; k <= count; k++)
            expect_order(logits, count, k, order);
    }
}

/* ---- whole images ---- */

struct setting {
    struct model *model;
    struct team *team;
    struct pass *pass;
    uint8_t *image;
    size_t size;
};

static uint8_t *read_file(const char *path, size_t *size)
{
    uint8_t *data = malloc(4 << 20);
    FILE *file = fopen(path, "rb");

    assert_true(data && file);
    *size = fread(data, 1, 4 << 20, file);
    (void)fclose(file);
    return data;
}

/* The bundled network and a photograph of a cup of coffee, 600x400. */
static int set_up(void **state)
{
    static struct setting s;
    const bool fast = kernels_openblas.available(NULL, 0);
    const struct model_options options = {.description_path = "config/models/demo64.json",
                                          .weights_path = "config/weights/demo64.safetensors",
                                          .kernels = fast ? &kernels_openblas : &kernels_ref,
                                          .threads = 2};
    struct rn_error error;

    if (model_open(&options, &s.model, &error))
        fail_msg("%s", error.text);
    assert_int_equal(team_create(2, &s.team, &error), RN_OK);
    assert_int_equal(team_start_helpers(s.team, &error), RN_OK);
    assert_int_equal(pass_create(s.team, &s.pass, &error), RN_OK);
    s.image = read_file("tests/data/coffee.png", &s.size);
    *state = &s;
    return 0;
}

static int tear_down(void **state)
{
    struct setting *s = *state;

    free(s->image);
    pass_destroy(s->pass);
    team_destroy(s->team);
    model_close(s->model);
    return 0;
}

static struct classify_request request_of(const struct setting *s)
{
    return (struct classify_request){
        .data = s->image,
        .size = s->size,
        .top_k = 5,
        .limits = {.max_image_pixels = 100000000, .max_native_pixels = 1 << 20, .max_request_bytes = 1 << 30}};
}

static struct classify_result classify(struct setting *s, const struct classify_request *request)
{
    struct classify_result result;
    struct rn_error error;

    if (classify_image(s->model, s->pass, request, &result, &error))
        fail_msg("%s", error.text);
    return result;
}

static void expect_refusal(struct setting *s, const struct classify_request *request, enum rn_status expected,
                           const char *reason)
{
    static const struct classify_result zero;
    struct classify_result result;
    struct rn_error error = {0};
    enum rn_status status;

    memset(&result, 0xff, sizeof result);
    status = classify_image(s->model, s->pass, request, &result, &error);
    if (status != expected || error.code != expected || !strstr(error.text, reason))
        fail_msg("status %d, \"%s\" instead of %d, \"%s\"", (int)status, error.text, (int)expected, reason);
    assert_memory_equal(&result, &zero, sizeof zero);
}

static void test_a_photograph(void **state)
{
    struct setting *s = *state;
    struct classify_request request = request_of(s);
    struct classify_result result = classify(s, &request);

    assert_string_equal(model_labels(s->model)->labels[result.predictions[0].class_index], "espresso");
    assert_int_equal(result.format, IMAGE_FORMAT_PNG);
    assert_int_equal(result.width, 600);
    assert_int_equal(result.height, 400);
    assert_int_equal(result.orientation, 1);
    assert_int_equal(result.input_size, INPUT_SIZE_FIT); /* the description's default */
    assert_false(result.scaled);
    assert_int_equal(result.prediction_count, 5);
    assert_int_equal(result.input.n, 1);
    assert_int_equal(result.input.c, 3);
    assert_int_equal(result.input.h, 64);
    assert_int_equal(result.input.w, 96);
    assert_int_equal(model_plan_shapes(result.plan)->input.w, 96);
    assert_true(result.decode_ns > 0 && result.preprocess_ns > 0 && result.inference_ns > 0);
    assert_memory_equal(&result.predictions[0].logit, &result.logits[result.predictions[0].class_index], sizeof(float));
    classify_result_free(s->model, &result);
    classify_result_free(s->model, &result);
    classify_result_free(s->model, NULL);
}

static void test_input_sizes(void **state)
{
    struct setting *s = *state;
    static const struct {
        enum input_size mode;
        uint64_t max_native_pixels;
        int height, width;
        bool scaled;
    } cases[] = {
        {INPUT_SIZE_CROP, 1 << 20, 64, 64, false},
        {INPUT_SIZE_FIT, 1 << 20, 64, 96, false},
        {INPUT_SIZE_NATIVE, 1 << 20, 400, 600, false},
        {INPUT_SIZE_NATIVE, 400 * 600, 400, 600, false},
        {INPUT_SIZE_NATIVE, 400 * 600 - 1, 399, 598, true},
        {INPUT_SIZE_NATIVE, 1, 1, 1, true},
        {INPUT_SIZE_CROP, 1, 64, 64, false},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct classify_request request = request_of(s);
        struct classify_result result;
        float *tensor;
        struct shape shape;
        request.size_given = true;
        request.input_size = cases[i].mode;
        request.limits.max_native_pixels = cases[i].max_native_pixels;
        result = classify(s, &request);
        assert_int_equal(result.input_size, cases[i].mode);
        assert_int_equal(result.input.h, cases[i].height);
        assert_int_equal(result.input.w, cases[i].width);
        assert_int_equal(result.scaled, cases[i].scaled);
        assert_int_equal(result.width, 600);

        /* The first half alone, then the network by hand: the same logits. */
        assert_int_equal(classify_tensor(model_network(s->model), &request, &tensor, &shape, NULL), RN_OK);
        assert_int_equal(shape.h, cases[i].height);
        assert_int_equal(shape.w, cases[i].width);
        {
            float logits[64];
            memcpy(pass_input(s->pass, result.plan), tensor, shape_elements(&shape) * sizeof *tensor);
            model_forward(s->model, result.plan, s->pass, logits);
            assert_memory_equal(logits, result.logits, sizeof logits);
        }
        free(tensor);
        classify_result_free(s->model, &result);
    }
}

static void test_top_k_of_an_image(void **state)
{
    struct setting *s = *state;
    struct classify_request request = request_of(s);
    struct classify_result result;
    double sum = 0;

    request.top_k = 1;
    result = classify(s, &request);
    assert_int_equal(result.prediction_count, 1);
    classify_result_free(s->model, &result);
    request.top_k = 1000000; /* all there are */
    result = classify(s, &request);
    assert_int_equal(result.prediction_count, 64);
    for (int i = 0; i < 64; i++)
        sum += result.predictions[i].probability;
    assert_close(sum, 1, 1e-9);
    classify_result_free(s->model, &result);
}

static void test_orientation(void **state)
{
    struct setting *s = *state;
    struct classify_request request = request_of(s);
    struct classify_result turned, stored;
    size_t size;
    uint8_t *image = read_file("tests/data/images/orientation-6.jpg", &size);

    request.data = image;
    request.size = size;
    request.size_given = true;
    request.input_size = INPUT_SIZE_NATIVE;
    turned = classify(s, &request);
    request.ignore_orientation = true;
    stored = classify(s, &request);
    assert_int_equal(turned.format, IMAGE_FORMAT_JPEG);
    assert_int_equal(turned.orientation, 6);
    assert_int_equal(turned.width, stored.width); /* as the file says, both times */
    assert_int_equal(turned.input.h, stored.input.w);
    assert_int_equal(turned.input.w, stored.input.h);
    classify_result_free(s->model, &turned);
    classify_result_free(s->model, &stored);
    free(image);
}

static void test_images_that_are_none(void **state)
{
    struct setting *s = *state;
    struct classify_request request = request_of(s);
    uint8_t garbage[1000];
    uint32_t seed = 5;

    request.data = garbage;
    request.size = 0;
    expect_refusal(s, &request, RN_ERR_EMPTY_BODY, "");
    for (size_t i = 0; i < sizeof garbage; i++) {
        seed = seed * 1664525u + 1013904223u;
        garbage[i] = (uint8_t)(seed >> 24);
    }
    for (request.size = 1; request.size <= sizeof garbage; request.size += 37)
        expect_refusal(s, &request, RN_ERR_NOT_AN_IMAGE, "");
    request = request_of(s);
    for (size_t size = 20; size < s->size; size += s->size / 7) {
        struct classify_result result;
        struct rn_error error;
        request.size = size;
        assert_int_not_equal(classify_image(s->model, s->pass, &request, &result, &error), RN_OK);
        assert_true(error.code == RN_ERR_IMAGE_TRUNCATED || error.code == RN_ERR_IMAGE_CORRUPT);
        assert_null(result.plan);
    }
    test_a_photograph(state); /* the pass is none the worse */
}

static void test_limits(void **state)
{
    struct setting *s = *state;
    struct classify_request request = request_of(s);

    request.limits.max_image_pixels = 600 * 400 - 1;
    expect_refusal(s, &request, RN_ERR_IMAGE_TOO_LARGE, "");
    request = request_of(s);
    request.limits.max_request_bytes = 100000; /* less than the pixels */
    expect_refusal(s, &request, RN_ERR_MEMORY_BUDGET, "");
    request = request_of(s);
    request.deadline_ns = 1;
    expect_refusal(s, &request, RN_ERR_DEADLINE, "");
    request.deadline_ns = clock_now_ns() + 600000000000u;
    {
        struct classify_result result = classify(s, &request);
        classify_result_free(s->model, &result);
    }
}

/* The smallest budget that is enough, and what it has to pay for. */
static void test_budget_counts_everything(void **state)
{
    struct setting *s = *state;
    struct classify_request request = request_of(s);
    const uint64_t pixels = 600 * 400 * 3;
    uint64_t low = 0, high = 1 << 30, least;
    struct classify_result result;
    struct rn_error error;

    request.size_given = true;
    request.input_size = INPUT_SIZE_CROP;
    while (low + 1 < high) {
        const uint64_t middle = low + (high - low) / 2;
        request.limits.max_request_bytes = middle;
        if (classify_image(s->model, s->pass, &request, &result, &error) == RN_OK) {
            least = pixels + model_plan_activation_bytes(result.plan) + model_plan_scratch_bytes(result.plan, 2);
            assert_true(middle >= least);
            classify_result_free(s->model, &result);
            high = middle;
        } else {
            assert_int_equal(error.code, RN_ERR_MEMORY_BUDGET);
            low = middle;
        }
    }
    request.limits.max_request_bytes = high - 1;
    expect_refusal(s, &request, RN_ERR_MEMORY_BUDGET, "a 600x400 image needs ");
}

static void test_tensor_errors(void **state)
{
    struct setting *s = *state;
    struct classify_request request = request_of(s);
    float *tensor = (float[]){0};
    struct shape shape;
    struct rn_error error;

    request.limits.max_request_bytes = 100000;
    assert_int_equal(classify_tensor(model_network(s->model), &request, &tensor, &shape, &error), RN_ERR_MEMORY_BUDGET);
    assert_null(tensor);
    request = request_of(s);
    request.size = 100;
    assert_int_not_equal(classify_tensor(model_network(s->model), &request, &tensor, &shape, &error), RN_OK);
    assert_null(tensor);
    for (long n = 0;; n++) {
        enum rn_status status;
        request = request_of(s);
        fail_alloc_at(n);
        status = classify_tensor(model_network(s->model), &request, &tensor, &shape, &error);
        if (!fail_alloc_fired()) {
            assert_int_equal(status, RN_OK);
            break;
        }
        assert_int_equal(status, RN_ERR_NOMEM);
        assert_null(tensor);
    }
    fail_alloc_at(-1);
    free(tensor);
}

static void test_out_of_memory(void **state)
{
    struct setting *s = *state;
    struct classify_request request = request_of(s);
    long n;

    for (n = 0;; n++) {
        struct team *team;
        struct pass *pass;
        struct classify_result result;
        struct rn_error error;
        enum rn_status status;
        /* A size that is not cached yet, on a pass that has no memory yet. */
        request.size_given = true;
        request.input_size = INPUT_SIZE_NATIVE;
        request.limits.max_native_pixels = 2000 + 50 * (uint64_t)n;
        assert_int_equal(team_create(1, &team, NULL), RN_OK);
        assert_int_equal(pass_create(team, &pass, NULL), RN_OK);
        fail_alloc_at(n);
        status = classify_image(s->model, pass, &request, &result, &error);
        const bool fired = fail_alloc_fired();
        fail_alloc_at(-1);
        if (fired) {
            if (status != RN_ERR_NOMEM)
                fail_msg("allocation %ld: status %d, %s", n, (int)status, error.text);
            assert_null(result.plan);
            assert_null(result.logits);
        } else {
            assert_int_equal(status, RN_OK);
            classify_result_free(s->model, &result);
        }
        pass_destroy(pass);
        team_destroy(team);
        if (!fired)
            break;
    }
    assert_true(n > 10);
}

/* One channel, a network that takes only one size, and an output that already is probabilities. */
static void test_grey_and_fixed_size(void **state)
{
    struct setting *s = *state, small = *s;
    struct network network = network_of(
        "{\"name\": \"p\", \"type\": \"AvgPool2d\", \"kernel\": 8}, {\"name\": \"f\", \"type\": \"Flatten\"}, "
        "{\"name\": \"l\", \"type\": \"Linear\", \"in\": 16, \"out\": 3}, {\"name\": \"s\", \"type\": \"Softmax\"}",
        1);
    char *json = description_of(
        "{\"name\": \"p\", \"type\": \"AvgPool2d\", \"kernel\": 8}, {\"name\": \"f\", \"type\": \"Flatten\"}, "
        "{\"name\": \"l\", \"type\": \"Linear\", \"in\": 16, \"out\": 3}, {\"name\": \"s\", \"type\": \"Softmax\"}",
        1);
    char description[TEST_PATH_SIZE], weights[TEST_PATH_SIZE];
    const struct model_options options = {
        .description_path = description, .weights_path = weights, .kernels = &kernels_ref, .threads = 1};
    struct classify_request request = request_of(s);
    struct classify_result result;
    struct rn_error error;

    write_temporary(description, json, strlen(json));
    make_weights(&network, 2, NULL, weights);
    if (model_open(&options, &small.model, &error))
        fail_msg("%s", error.text);
    expect_refusal(&small, &request, RN_ERR_INPUT_SIZE, "l expects 16 features, a 400x600 input gives 1x50x75 = 3750");
    request.size_given = true;
    request.input_size = INPUT_SIZE_CROP;
    result = classify(&small, &request);
    assert_int_equal(result.input.c, 1);
    assert_int_equal(result.prediction_count, 3);
    for (int i = 0; i < 3; i++)
        assert_close(result.predictions[i].probability, (double)result.predictions[i].logit, 0);
    assert_close(result.predictions[0].probability + result.predictions[1].probability +
                     result.predictions[2].probability,
                 1, 1e-6);
    classify_result_free(small.model, &result);
    model_close(small.model);
    (void)unlink(description);
    (void)unlink(weights);
    free(json);
    network_free(&network);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_top_k),
        cmocka_unit_test(test_probabilities),
        cmocka_unit_test(test_top_k_at_random),
        cmocka_unit_test(test_a_photograph),
        cmocka_unit_test(test_input_sizes),
        cmocka_unit_test(test_top_k_of_an_image),
        cmocka_unit_test(test_orientation),
        cmocka_unit_test(test_images_that_are_none),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_budget_counts_everything),
        cmocka_unit_test(test_tensor_errors),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_grey_and_fixed_size),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
