/* test_layout.c - where values lie: an execution is simulated byte range by byte range, remembering who wrote what, so
 * that an overlap of two values that are needed at the same time shows whatever rule placed them. */

#include "make_weights.h"

#include "../../model/layout.h"
#include "../../model/plan.h"
#include "../../model/program.h"
#include "fail_alloc.h"

/* A program whose operations are known but whose weights are not packed: what layout_init reads. */
static bool supports_all(const struct conv *conv)
{
    (void)conv;
    return true;
}

static size_t no_bytes(const struct conv *conv)
{
    (void)conv;
    return 0;
}

static void pack_nothing(const struct conv *conv, const float *weight, const float *bias, void *packed)
{
    (void)conv;
    (void)weight;
    (void)bias;
    (void)packed;
}

/* The scratch that a kernel asks for depends on nothing here but the threads. */
static void plan_something(const struct conv *conv, const struct conv_geometry *geometry, int threads,
                           struct conv_work *work)
{
    (void)conv;
    *work = (struct conv_work){.tasks = geometry->n * geometry->out_h, .scratch_bytes = 1000u * (unsigned)threads};
}

static const struct conv_kernel empty_kernel = {
    .name = "empty", .supports = supports_all, .packed_bytes = no_bytes, .pack = pack_nothing, .plan = plan_something};
static const struct conv_kernel *const empty_kernels[] = {&empty_kernel, NULL};

struct setting {
    struct network network;
    struct weights *weights;
    char path[TEST_PATH_SIZE];
    struct kernels kernels;
    struct program program;
};

static void set_up(struct setting *s, struct network network, enum activation_type activation)
{
    struct rn_error error;

    *s = (struct setting){.network = network, .kernels = kernels_ref};
    s->kernels.activation = activation;
    s->kernels.channel_block = activation == ACTIVATION_BF16 ? 8 : 0;
    s->kernels.convs = empty_kernels;
    make_weights(&s->network, 1, NULL, s->path);
    if (weights_open(s->path, &s->weights, &error) ||
        program_build(&s->network, s->weights, &s->kernels, &s->program, &error))
        fail_msg("%s", error.text);
}

static void tear_down(struct setting *s)
{
    program_free(&s->program);
    weights_close(s->weights);
    (void)unlink(s->path);
    network_free(&s->network);
}

/* ---- the simulation ---- */

enum { FLOAT_INPUT = -1, NOBODY = -2, GRAIN = 64 };

struct memory {
    int *owner; /* of each GRAIN bytes: the value that was last written there */
    size_t grains;
};

static size_t bytes_of(const struct program *program, const struct plan *plan, int value)
{
    const struct shape *shape = &plan->values[value];

    if (program->is_f32[value])
        return shape_elements(shape) * sizeof(float);
    return activation_elements(program->kernels, (size_t)shape->c, shape_pixels(shape)) *
           activation_bytes(program->kernels->activation);
}

static void write_range(struct memory *m, size_t offset, size_t bytes, int value)
{
    assert_int_equal(offset % GRAIN, 0);
    assert_true((offset + bytes + GRAIN - 1) / GRAIN <= m->grains);
    for (size_t g = offset / GRAIN; g <= (offset + bytes - 1) / GRAIN; g++)
        m->owner[g] = value;
}

static void expect_range(const struct memory *m, size_t offset, size_t bytes, int value, const char *reader)
{
    for (size_t g = offset / GRAIN; g <= (offset + bytes - 1) / GRAIN; g++)
        if (m->owner[g] != value)
            fail_msg("%s reads value %d at %zu, but value %d has been written there", reader, value, offset,
                     m->owner[g]);
}

/* Whether an operation may write over `input` while it reads it: element by element, at the same place. */
static bool may_overwrite(const struct layout *layout, const struct op *op, int input)
{
    switch (op->kind) {
    case OP_CONV:
        return input == op->residual;
    case OP_FLATTEN:
        return layout_flatten_is_free(layout, op);
    case OP_BATCHNORM:
    case OP_RELU:
    case OP_SOFTMAX:
        return input == op->input;
    case OP_ADD:
        return true;
    default:
        return false;
    }
}

static void check_apart(const struct layout *layout, const struct op *op, int input)
{
    const size_t in = layout->offsets[input], out = layout->offsets[op->output];
    const size_t in_bytes = bytes_of(layout->program, layout->plan, input);
    const size_t out_bytes = bytes_of(layout->program, layout->plan, op->output);

    if (in < out + out_bytes && out < in + in_bytes &&
        !(in == out && in_bytes == out_bytes && may_overwrite(layout, op, input)))
        fail_msg("%s writes value %d over value %d, which it reads", op->call->path, op->output, input);
}

static void simulate(const struct layout *layout)
{
    const struct program *program = layout->program;
    const struct plan *plan = layout->plan;
    const int result = program->alias[program->network->output_value];
    struct memory m = {.grains = (layout->activation_bytes + GRAIN - 1) / GRAIN};
    size_t bytes;

    m.owner = malloc(m.grains * sizeof *m.owner);
    assert_non_null(m.owner);
    for (size_t g = 0; g < m.grains; g++)
        m.owner[g] = NOBODY;
    bytes = shape_elements(&plan->input) * sizeof(float);
    write_range(&m, layout->input_offset, bytes, program->kernels->activation == ACTIVATION_F32 ? 0 : FLOAT_INPUT);
    if (program->kernels->activation != ACTIVATION_F32) {
        write_range(&m, layout->offsets[0], bytes_of(program, plan, 0), 0);
        expect_range(&m, layout->input_offset, bytes, FLOAT_INPUT, "the conversion of the input");
    } else {
        assert_int_equal(layout->input_offset, layout->offsets[0]);
    }
    for (size_t i = 0; i < program->op_count; i++) {
        const struct op *op = &program->ops[i];
        expect_range(&m, layout->offsets[op->input], bytes_of(program, plan, op->input), op->input, op->call->path);
        check_apart(layout, op, op->input);
        if (op->residual >= 0) {
            expect_range(&m, layout->offsets[op->residual], bytes_of(program, plan, op->residual), op->residual,
                         op->call->path);
            check_apart(layout, op, op->residual);
        }
        if (op->kind == OP_FLATTEN && layout_flatten_is_free(layout, op))
            assert_int_equal(layout->offsets[op->output], layout->offsets[op->input]);
        write_range(&m, layout->offsets[op->output], bytes_of(program, plan, op->output), op->output);
        assert_true(layout->works[i].tasks >= 1);
        assert_true(layout->works[i].scratch_bytes <= layout->scratch_bytes);
    }
    expect_range(&m, layout->offsets[result], bytes_of(program, plan, result), result, "the caller");
    free(m.owner);
}

static size_t check_layout(const struct setting *s, int n, int height, int width, int threads)
{
    struct plan plan;
    struct layout layout;
    struct rn_error error;
    size_t bytes;

    if (plan_init(&plan, &s->network, n, height, width, &error) ||
        layout_init(&layout, &s->program, &plan, threads, &error))
        fail_msg("%s", error.text);
    simulate(&layout);
    bytes = layout.activation_bytes;
    layout_free(&layout);
    layout_free(&layout);
    plan_free(&plan);
    return bytes;
}

static const char *const networks[] = {
    "{\"name\": \"b\", \"type\": \"BatchNorm2d\", \"features\": 3}, {\"name\": \"r\", \"type\": \"ReLU\"}, "
    "{\"name\": \"d\", \"type\": \"Dropout\"}, {\"name\": \"s\", \"type\": \"ReLU\"}, {\"name\": \"t\", \"type\": "
    "\"Softmax\"}",
    "{\"name\": \"d\", \"type\": \"Dropout\"}",
    "{\"name\": \"a\", \"type\": \"AdaptiveAvgPool2d\", \"output\": 6}, {\"name\": \"f\", \"type\": \"Flatten\"}, "
    "{\"name\": \"r\", \"type\": \"ReLU\"}, {\"name\": \"g\", \"type\": \"Flatten\"}, {\"name\": \"d\", \"type\": "
    "\"Dropout\"}, {\"name\": \"l\", \"type\": \"Linear\", \"in\": 108, \"out\": 5}, {\"name\": \"s\", \"type\": "
    "\"Softmax\"}",
    "{\"name\": \"a\", \"type\": \"AdaptiveAvgPool2d\", \"output\": 1}, {\"name\": \"f\", \"type\": \"Flatten\"}, "
    "{\"name\": \"r\", \"type\": \"ReLU\"}, {\"name\": \"l\", \"type\": \"Linear\", \"in\": 3, \"out\": 5}, {\"name\": "
    "\"s\", \"type\": \"ReLU\"}",
    "{\"name\": \"l\", \"type\": \"BasicBlock\", \"in\": 3, \"planes\": 3, \"blocks\": 3}, {\"name\": \"p\", \"type\": "
    "\"MaxPool2d\", \"kernel\": 2}",
    "{\"name\": \"l\", \"type\": \"Bottleneck\", \"in\": 3, \"planes\": 8, \"blocks\": 3, \"stride\": 2}, {\"name\": "
    "\"m\", \"type\": \"Residual\", \"in\": 32, \"out\": 32, \"blocks\": 2}",
};

static void test_no_live_values_overlap(void **state)
{
    static const int sizes[][3] = {{1, 2, 2}, {1, 31, 17}, {2, 9, 40}, {1, 3, 700}};

    (void)state;
    for (size_t i = 0; i < sizeof networks / sizeof *networks; i++)
        for (int activation = ACTIVATION_F32; activation <= ACTIVATION_BF16; activation++) {
            struct setting s;
            set_up(&s, network_of(networks[i], 3), (enum activation_type)activation);
            for (size_t j = 0; j < sizeof sizes / sizeof *sizes; j++)
                (void)check_layout(&s, sizes[j][0], sizes[j][1], sizes[j][2], 1 + (int)j);
            tear_down(&s);
        }
}

static struct network read_network(const char *path)
{
    struct network network;
    struct rn_error error;

    if (network_read(path, &network, &error))
        fail_msg("%s", error.text);
    return network;
}

static void test_bundled_networks(void **state)
{
    static const char *const names[] = {"demo64", "lenet", "resnet18-grey"};

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int activation = ACTIVATION_F32; activation <= ACTIVATION_BF16; activation++) {
            char path[64];
            struct setting s;
            (void)snprintf(path, sizeof path, "config/models/%s.json", names[i]);
            set_up(&s, read_network(path), (enum activation_type)activation);
            (void)check_layout(&s, 1, 32, 32, 1);
            (void)check_layout(&s, 3, 32, 32, 2);
            if (i != 1) {
                (void)check_layout(&s, 1, 1, 1, 2);
                (void)check_layout(&s, 1, 375, 500, 2);
                (void)check_layout(&s, 1, 1, 65500, 2);
            }
            tear_down(&s);
        }
}

/* ResNet-50 at 224x224 is fullest in layer2.0.conv2: its input, its output, and the block's input, which the shortcut
 * still needs. No layout can have less; alignment and the bytes that kernels may read past an end come on top. In
 * blocks of channels, planes of 56 * 56 pixels are a few pixels apart (activation_plane). */
static void test_peak_memory(void **state)
{
    struct setting s;
    size_t fp32, bf16;
    const size_t least = (size_t)256 * 56 * 56 + 128 * 56 * 56 + 128 * 28 * 28, spare = 3 * 128;
    const size_t least_in_blocks = (256 + 128) * activation_plane((size_t)56 * 56) + (size_t)128 * 28 * 28;

    (void)state;
    set_up(&s, read_network("config/models/resnet50.json"), ACTIVATION_F32);
    fp32 = check_layout(&s, 1, 224, 224, 2);
    tear_down(&s);
    set_up(&s, read_network("config/models/resnet50.json"), ACTIVATION_BF16);
    bf16 = check_layout(&s, 1, 224, 224, 2);
    tear_down(&s);
    print_message("ResNet-50 at 224x224: %.2f MiB of activations in fp32, %.2f in bf16\n", (double)fp32 / (1 << 20),
                  (double)bf16 / (1 << 20));
    assert_in_range(fp32, least * 4, least * 4 + spare);
    assert_in_range(bf16, least_in_blocks * 2, least_in_blocks * 2 + spare);
}

static void test_out_of_memory(void **state)
{
    struct setting s;
    struct plan plan;
    struct layout layout;
    struct rn_error error;
    long n;

    (void)state;
    set_up(&s, network_of(networks[5], 3), ACTIVATION_BF16);
    assert_int_equal(plan_init(&plan, &s.network, 1, 20, 20, &error), RN_OK);
    for (n = 0;; n++) {
        enum rn_status status;
        fail_alloc_at(n);
        status = layout_init(&layout, &s.program, &plan, 2, &error);
        if (!fail_alloc_fired()) {
            assert_int_equal(status, RN_OK);
            break;
        }
        assert_int_equal(status, RN_ERR_NOMEM);
        assert_null(layout.offsets);
    }
    fail_alloc_at(-1);
    assert_true(n >= 7);
    layout_free(&layout);
    layout_free(NULL);
    plan_free(&plan);
    tear_down(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_live_values_overlap),
        cmocka_unit_test(test_bundled_networks),
        cmocka_unit_test(test_peak_memory),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
