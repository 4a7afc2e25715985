/* test_program.c - which calls are fused into which operation, and that the fused program computes what the network
 * says: every network is also evaluated call by call, in double, in PyTorch's order, and the results compared for
 * every table of this machine. */

#include "make_weights.h"

#include <math.h>

#include "../../model/forward.h"
#include "../../model/kernels_pool.h"
#include "../../model/layout.h"
#include "../../model/program.h"
#include "../../model/sizes.h"
#include "fail_alloc.h"

/* ---- the network, call by call ---- */

static float *read_tensor(const struct weights *weights, const char *path, const char *field)
{
    char name[200];
    const struct weights_tensor *tensor;
    struct rn_error error;
    float *values;

    (void)snprintf(name, sizeof name, "%s.%s", path, field);
    if (!(tensor = weights_find(weights, name)))
        return NULL;
    values = malloc(tensor->elements * sizeof *values);
    assert_non_null(values);
    assert_int_equal(weights_read_f32(weights, name, tensor->dims, tensor->shape, values, &error), RN_OK);
    return values;
}

static size_t at(const struct shape *s, int n, int c, int y, int x)
{
    return (((size_t)n * (size_t)s->c + (size_t)c) * (size_t)s->h + (size_t)y) * (size_t)s->w + (size_t)x;
}

static double conv_output(const struct conv_params *p, const struct shape *in, const double *input, const float *weight,
                          const float *bias, int n, int o, int y, int x)
{
    const int in_group = p->in / p->groups;
    double sum = bias ? (double)bias[o] : 0;

    for (int i = 0; i < in_group; i++)
        for (int ky = 0; ky < p->kernel[0]; ky++)
            for (int kx = 0; kx < p->kernel[1]; kx++) {
                const int in_y = y * p->stride[0] - p->padding[0] + ky * p->dilation[0];
                const int in_x = x * p->stride[1] - p->padding[1] + kx * p->dilation[1];
                if (in_y >= 0 && in_y < in->h && in_x >= 0 && in_x < in->w)
                    sum += input[at(in, n, o / (p->out / p->groups) * in_group + i, in_y, in_x)] *
                           (double)weight[((o * in_group + i) * p->kernel[0] + ky) * p->kernel[1] + kx];
            }
    return sum;
}

static double pool_output(const struct module *m, const struct shape *in, const struct shape *out, const double *input,
                          int n, int c, int y, int x)
{
    int y0, y1, x0, x1;
    double largest = -HUGE_VAL, sum = 0;

    if (m->type == MODULE_ADAPTIVE_AVGPOOL2D) {
        y0 = y * in->h / out->h, y1 = ((y + 1) * in->h + out->h - 1) / out->h;
        x0 = x * in->w / out->w, x1 = ((x + 1) * in->w + out->w - 1) / out->w;
    } else { /* the tests' pools have neither dilation nor ceil_mode */
        y0 = y * m->pool.stride[0] - m->pool.padding[0], y1 = y0 + m->pool.kernel[0];
        x0 = x * m->pool.stride[1] - m->pool.padding[1], x1 = x0 + m->pool.kernel[1];
    }
    for (int in_y = y0; in_y < y1; in_y++)
        for (int in_x = x0; in_x < x1; in_x++)
            if (in_y >= 0 && in_y < in->h && in_x >= 0 && in_x < in->w) {
                const double v = input[at(in, n, c, in_y, in_x)];
                largest = v > largest ? v : largest;
                sum += v;
            }
    return m->type == MODULE_MAXPOOL2D ? largest : sum / ((y1 - y0) * (x1 - x0));
}

static void evaluate_leaf(const struct call *call, const struct weights *weights, const struct shape *in,
                          const struct shape *out, const double *input, double *output)
{
    const struct module *m = call->module;
    float *weight = read_tensor(weights, call->path, "weight"), *bias = read_tensor(weights, call->path, "bias");
    float *mean = read_tensor(weights, call->path, "running_mean"),
          *var = read_tensor(weights, call->path, "running_var");
    size_t i = 0;

    for (int n = 0; n < out->n; n++)
        for (int c = 0; c < out->c; c++)
            for (int y = 0; y < out->h; y++)
                for (int x = 0; x < out->w; x++, i++)
                    switch (m->type) {
                    case MODULE_CONV2D:
                        output[i] = conv_output(&m->conv.params, in, input, weight, bias, n, c, y, x);
                        break;
                    case MODULE_LINEAR:
                        output[i] = bias ? (double)bias[c] : 0;
                        for (int k = 0; k < in->c; k++)
                            output[i] += input[n * in->c + k] * (double)weight[c * in->c + k];
                        break;
                    case MODULE_BATCHNORM2D:
                        output[i] =
                            (input[i] - (double)mean[c]) / sqrt((double)var[c] + m->batchnorm.eps) * (double)weight[c] +
                            (double)bias[c];
                        break;
                    case MODULE_RELU:
                        output[i] = input[i] > 0 ? input[i] : 0;
                        break;
                    case MODULE_SOFTMAX: {
                        double sum = 0;
                        for (int k = 0; k < out->c; k++)
                            sum += exp(input[at(out, n, k, y, x)]);
                        output[i] = exp(input[i]) / sum;
                        break;
                    }
                    case MODULE_FLATTEN: /* PyTorch's order is this one */
                    case MODULE_DROPOUT:
                        output[i] = input[i];
                        break;
                    default:
                        output[i] = pool_output(m, in, out, input, n, c, y, x);
                    }
    free(weight);
    free(bias);
    free(mean);
    free(var);
}

/* The network's output for an NCHW input, to be freed. */
static double *evaluate(const struct plan *plan, const struct weights *weights, const float *input)
{
    const struct network *network = plan->network;
    double **values = calloc((size_t)network->value_count, sizeof *values), *result;

    assert_non_null(values);
    for (int v = 0; v < network->value_count; v++) {
        values[v] = malloc(shape_elements(&plan->values[v]) * sizeof **values);
        assert_non_null(values[v]);
    }
    for (size_t i = 0; i < shape_elements(&plan->input); i++)
        values[0][i] = (double)input[i];
    for (size_t i = 0; i < network->call_count; i++) {
        const struct call *call = &network->calls[i];
        if (call->kind == CALL_LEAF)
            evaluate_leaf(call, weights, &plan->values[call->input], &plan->values[call->output], values[call->input],
                          values[call->output]);
        else if (call->kind == CALL_ADD)
            for (size_t j = 0; j < shape_elements(&plan->values[call->output]); j++)
                values[call->output][j] = values[call->input][j] + values[call->other][j];
    }
    result = values[network->output_value];
    for (int v = 0; v < network->value_count; v++)
        if (v != network->output_value)
            free(values[v]);
    free(values);
    return result;
}

/* ---- the program ---- */

struct opened {
    struct network network;
    struct weights *weights;
    char path[TEST_PATH_SIZE];
};

static struct opened open_network(const char *modules, int channels)
{
    struct opened o = {.network = network_of(modules, channels)};
    struct rn_error error;

    make_weights(&o.network, 5, NULL, o.path);
    if (weights_open(o.path, &o.weights, &error))
        fail_msg("%s", error.text);
    return o;
}

static void close_network(struct opened *o)
{
    weights_close(o->weights);
    (void)unlink(o->path);
    network_free(&o->network);
}

/* "conv1+bn+add+relu pool fc": each operation by its first call, and what it took along. */
static void describe(const struct program *program, char *text, size_t size)
{
    static const char *const kinds[] = {"conv", "max", "avg", "adaptive", "flatten", "bn", "add", "relu", "softmax"};
    size_t used = 0;

    text[0] = '\0';
    for (size_t i = 0; i < program->op_count; i++) {
        const struct op *op = &program->ops[i];
        used += (size_t)snprintf(text + used, size - used, "%s%s(%s%s%s%s%s%s)", i ? " " : "", kinds[op->kind],
                                 op->call->path, op->branch >= 0 ? " +" : "",
                                 op->branch >= 0 ? op->branch_call->path : "", op->residual >= 0 ? " +res" : "",
                                 op->relu ? " +relu" : "", op->conv.output_f32 ? " +f32" : "");
    }
}

/* Run the program for n x h x w on a team of two; NCHW in and out. The memory is full of NaNs before. */
static float *run_program(const struct program *program, const struct plan *plan, const float *input)
{
    const struct shape *in = &plan->input, *out = &plan->values[plan->network->output_value];
    struct layout layout;
    struct team *team;
    struct rn_error error;
    unsigned char *memory;
    float *logits = malloc(shape_elements(out) * sizeof *logits), *to;

    assert_int_equal(layout_init(&layout, program, plan, 2, &error), RN_OK);
    assert_int_equal(team_create(2, &team, &error), RN_OK);
    assert_int_equal(team_start_helpers(team, &error), RN_OK);
    assert_int_equal(team_reserve(team, layout.scratch_bytes, &error), RN_OK);
    memory = aligned_alloc(64, size_round_up(layout.activation_bytes + 64, 64));
    assert_true(memory && logits);
    memset(memory, 0xff, layout.activation_bytes);
    memset(memory + layout.activation_bytes, 0xa5, 64);
    to = (float *)(void *)(memory + layout.input_offset);
    for (int n = 0; n < in->n; n++)
        for (int y = 0; y < in->h; y++)
            for (int x = 0; x < in->w; x++)
                for (int c = 0; c < in->c; c++)
                    *to++ = input[at(in, n, c, y, x)];
    forward_run(&layout, memory, team, logits, NULL, NULL);
    for (int i = 0; i < 64; i++)
        assert_int_equal(memory[layout.activation_bytes + (size_t)i], 0xa5);
    free(memory);
    team_destroy(team);
    layout_free(&layout);
    return logits;
}

/* The largest difference between `table`'s program and the call-by-call evaluation, relative to the largest value. */
static double difference(const struct opened *o, const struct kernels *table, int n, int height, int width)
{
    struct program program;
    struct plan plan;
    struct rn_error error;
    float *input, *actual;
    double *expected, largest = 1e-6, worst = 0;
    uint32_t seed = 11;

    if (program_build(&o->network, o->weights, table, &program, &error) ||
        plan_init(&plan, &o->network, n, height, width, &error))
        fail_msg("%s", error.text);
    input = malloc(shape_elements(&plan.input) * sizeof *input);
    assert_non_null(input);
    for (size_t i = 0; i < shape_elements(&plan.input); i++) {
        seed = seed * 1664525u + 1013904223u;
        input[i] = (float)(seed >> 8) * (1.0f / 8388608.0f) - 1.0f;
    }
    expected = evaluate(&plan, o->weights, input);
    actual = run_program(&program, &plan, input);
    for (size_t i = 0; i < shape_elements(&plan.values[o->network.output_value]); i++)
        largest = fmax(largest, fabs(expected[i]));
    for (size_t i = 0; i < shape_elements(&plan.values[o->network.output_value]); i++) {
        const double d = fabs(expected[i] - (double)actual[i]);
        worst = d <= worst ? worst : isnan(d) ? HUGE_VAL : d;
    }
    free(actual);
    free(expected);
    free(input);
    plan_free(&plan);
    program_free(&program);
    return worst / largest;
}

#define CONV(name, in, out, more)                                                                                      \
    "{\"name\": \"" name "\", \"type\": \"Conv2d\", \"in\": " #in ", \"out\": " #out                                   \
    ", \"kernel\": 3, \"padding\": 1" more "}"
#define BN(name, features)    "{\"name\": \"" name "\", \"type\": \"BatchNorm2d\", \"features\": " #features "}"
#define LEAF(name, type)      "{\"name\": \"" name "\", \"type\": \"" type "\"}"
#define MAX(name)             "{\"name\": \"" name "\", \"type\": \"MaxPool2d\", \"kernel\": 2}"
#define AVG(name)             "{\"name\": \"" name "\", \"type\": \"AvgPool2d\", \"kernel\": 3, \"stride\": 1, \"padding\": 1}"
#define ADAPTIVE(name, h, w)  "{\"name\": \"" name "\", \"type\": \"AdaptiveAvgPool2d\", \"output\": [" #h ", " #w "]}"
#define LINEAR(name, in, out) "{\"name\": \"" name "\", \"type\": \"Linear\", \"in\": " #in ", \"out\": " #out "}"

struct chain {
    const char *name, *modules, *operations;
};

/* Every network must also work at 11x9 in batches of 2. */
static const struct chain chains[] = {
    {"all that fuses", CONV("c", 3, 8, "") ", " BN("b", 8) ", " LEAF("r", "ReLU"), "conv(c +relu +f32)"},
    {"conv alone", CONV("c", 3, 8, ", \"bias\": false"), "conv(c +f32)"},
    {"conv, relu", CONV("c", 3, 8, ", \"stride\": 2") ", " LEAF("r", "ReLU"), "conv(c +relu +f32)"},
    {"relu, then batch norm", CONV("c", 3, 8, "") ", " LEAF("r", "ReLU") ", " BN("b", 8) ", " CONV("d", 8, 4, ""),
     "conv(c +relu) bn(b) conv(d +f32)"},
    {"relu first", LEAF("r", "ReLU") ", " CONV("c", 3, 8, ""), "relu(r) conv(c +f32)"},
    {"batch norm first", BN("b", 3) ", " CONV("c", 3, 8, ""), "bn(b) conv(c +f32)"},
    {"two batch norms", CONV("c", 3, 8, "") ", " BN("b", 8) ", " BN("d", 8) ", " LEAF("r", "ReLU"),
     "conv(c) bn(d) relu(r)"},
    {"dropout between", CONV("c", 3, 8, "") ", " LEAF("d", "Dropout") ", " BN("b", 8) ", " LEAF("r", "ReLU"),
     "conv(c) bn(b) relu(r)"},
    {"dropout first and last", LEAF("d", "Dropout") ", " CONV("c", 3, 8, "") ", " LEAF("e", "Dropout"), "conv(c +f32)"},
    {"only dropout", LEAF("d", "Dropout"), ""},
    {"only relu", LEAF("r", "ReLU"), "relu(r)"},
    {"relu twice", LEAF("r", "ReLU") ", " LEAF("s", "ReLU") ", " LEAF("d", "Dropout") ", " LEAF("t", "ReLU"),
     "relu(r) relu(s) relu(t)"},
    {"pools", CONV("c", 3, 17, "") ", " MAX("p") ", " AVG("q") ", " ADAPTIVE("a", 2, 3) ", " CONV("d", 17, 5, ""),
     "conv(c) max(p) avg(q) adaptive(a) conv(d +f32)"},
    {"pool first", MAX("p") ", " AVG("q") ", " LEAF("r", "ReLU"), "max(p) avg(q) relu(r)"},
    {"softmax in the middle", CONV("c", 3, 8, "") ", " LEAF("s", "Softmax") ", " CONV("d", 8, 5, ""),
     "conv(c) softmax(s) conv(d +f32)"},
    {"softmax at the end", CONV("c", 3, 8, "") ", " LEAF("r", "ReLU") ", " LEAF("s", "Softmax"),
     "conv(c +relu +f32) softmax(s)"},
    {"flatten of pixels",
     CONV("c", 3, 8, "") ", " ADAPTIVE("a", 3, 2) ", " LEAF("f", "Flatten") ", " LINEAR("l", 48, 7),
     "conv(c) adaptive(a) flatten(f) conv(l +f32)"},
    {"flatten of the input",
     ADAPTIVE("a", 4, 4) ", " LEAF("f", "Flatten") ", " LINEAR("l", 48, 7) ", " LEAF("r", "ReLU") ", " LEAF(
         "g", "Flatten") ", " LINEAR("m", 7, 6) ", " LEAF("s", "Softmax"),
     "adaptive(a) flatten(f) conv(l +relu) flatten(g) conv(m +f32) softmax(s)"},
    {"pooled logits", CONV("c", 3, 5, "") ", " ADAPTIVE("a", 2, 1) ", " LEAF("f", "Flatten") ", " LEAF("d", "Dropout"),
     "conv(c) adaptive(a) flatten(f)"},
    {"flatten of one pixel",
     CONV("c", 3, 8, "") ", " ADAPTIVE("a", 1, 1) ", " LEAF("f", "Flatten") ", " LEAF("d", "Dropout") ", " LINEAR("l",
                                                                                                                  8, 5),
     "conv(c) adaptive(a) flatten(f) conv(l +f32)"},
    {"flat relu",
     ADAPTIVE("a", 2, 2) ", " LEAF("f", "Flatten") ", " LEAF("r", "ReLU") ", " LEAF("d", "Dropout") ", " LINEAR("l", 12,
                                                                                                                5),
     "adaptive(a) flatten(f) relu(r) conv(l +f32)"},
    {"whole blocks of channels",
     CONV("c", 3, 64, "") ", " LEAF("r", "ReLU") ", " BN("b", 64) ", " LEAF("s", "Softmax") ", " CONV(
         "d", 64, 32,
         ", \"groups\": 2") ", " MAX("p") ", " ADAPTIVE("a", 3, 2) ", " LEAF("f", "Flatten") ", " LINEAR("l", 192, 64),
     "conv(c +relu) bn(b) softmax(s) conv(d) max(p) adaptive(a) flatten(f) conv(l +f32)"},
    {"logits that are a block of channels", CONV("c", 3, 32, "") ", " AVG("q"), "conv(c) avg(q)"},
    {"flatten of one channel into blocks",
     CONV("c", 3, 1, "") ", " ADAPTIVE("a", 8, 4) ", " LEAF("f", "Flatten") ", " LINEAR("l", 32, 5),
     "conv(c) adaptive(a) flatten(f) conv(l +f32)"},
    {"grouped and dilated",
     CONV("c", 3, 12, ", \"groups\": 3, \"dilation\": 2") ", " BN("b", 12) ", " CONV("d", 12, 12, ", \"groups\": 12"),
     "conv(c) conv(d +f32)"},
    {"bottlenecks",
     "{\"name\": \"l\", \"type\": \"Bottleneck\", \"in\": 3, \"planes\": 4, \"blocks\": 2, \"stride\": 2}",
     "conv(l.0.conv1 +relu) conv(l.0.conv2 +relu) conv(l.0.conv3) conv(l.0.downsample.0 +res +relu) "
     "conv(l.1.conv1 +relu) conv(l.1.conv2 +relu) conv(l.1.conv3 +res +relu)"},
    {"basic block on the input", "{\"name\": \"l\", \"type\": \"BasicBlock\", \"in\": 3, \"planes\": 3}",
     "conv(l.conv1 +relu) conv(l.conv2 +res +relu)"},
    {"basic blocks", "{\"name\": \"l\", \"type\": \"BasicBlock\", \"in\": 3, \"planes\": 16, \"blocks\": 3}",
     "conv(l.0.conv1 +relu) conv(l.0.conv2) conv(l.0.downsample.0 +res +relu) conv(l.1.conv1 +relu) "
     "conv(l.1.conv2 +res +relu) conv(l.2.conv1 +relu) conv(l.2.conv2 +res +relu)"},
    {"residuals", "{\"name\": \"l\", \"type\": \"Residual\", \"in\": 3, \"out\": 8, \"blocks\": 2, \"stride\": 2}",
     "conv(l.0.conv1 +relu) conv(l.0.conv2) conv(l.0.conv3 +res +relu) conv(l.1.conv1 +relu) "
     "conv(l.1.conv2 +res +relu)"},
    {"block after dropout",
     LEAF("d", "Dropout") ", {\"name\": \"l\", \"type\": \"BasicBlock\", \"in\": 3, \"planes\": 3}, " LEAF(
         "e", "Dropout") ", " LEAF("r", "ReLU"),
     "conv(l.conv1 +relu) conv(l.conv2 +res +relu) relu(r)"},
};

static void check_operations(const char *name, const char *modules, const struct kernels *table, const char *operations)
{
    struct opened o = open_network(modules, 3);
    struct program program;
    struct rn_error error;
    char text[1024];

    if (program_build(&o.network, o.weights, table, &program, &error))
        fail_msg("%s: %s", name, error.text);
    describe(&program, text, sizeof text);
    if (strcmp(text, operations) != 0)
        fail_msg("%s: \"%s\" instead of \"%s\"", name, text, operations);
    program_free(&program);
    program_free(&program);
    close_network(&o);
}

static void test_fusion(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof chains / sizeof *chains; i++)
        check_operations(chains[i].name, chains[i].modules, &kernels_ref, chains[i].operations);
    program_free(NULL);
}

/* With a table whose kernel adds branches, a block's downsample joins its last convolution (test_fusion has the same
 * blocks with a table that does not). test_outputs says whether the sums are right. */
static void test_branches(void **state)
{
    static const struct {
        const char *name, *modules, *operations;
    } cases[] = {
        {"bottlenecks",
         "{\"name\": \"l\", \"type\": \"Bottleneck\", \"in\": 3, \"planes\": 4, \"blocks\": 2, \"stride\": 2}",
         "conv(l.0.conv1 +relu) conv(l.0.conv2 +relu) conv(l.0.conv3 +l.0.downsample.0 +relu) "
         "conv(l.1.conv1 +relu) conv(l.1.conv2 +relu) conv(l.1.conv3 +res +relu)"},
        {"basic blocks", "{\"name\": \"l\", \"type\": \"BasicBlock\", \"in\": 3, \"planes\": 16, \"blocks\": 2}",
         "conv(l.0.conv1 +relu) conv(l.0.conv2 +l.0.downsample.0 +relu) conv(l.1.conv1 +relu) "
         "conv(l.1.conv2 +res +relu)"},
        {"residuals", "{\"name\": \"l\", \"type\": \"Residual\", \"in\": 3, \"out\": 8, \"blocks\": 1, \"stride\": 2}",
         "conv(l.0.conv1 +relu) conv(l.0.conv2 +l.0.conv3 +relu +f32)"},
    };
    struct conv_kernel kernel = *kernels_ref.convs[0];
    const struct conv_kernel *const convs[] = {&kernel, NULL};
    struct kernels table = kernels_ref;

    (void)state;
    kernel.adds_branch = true;
    table.convs = convs;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_operations(cases[i].name, cases[i].modules, &table, cases[i].operations);
}

/* fp32 tables sum in another order; bf16 rounds every activation and weight to 8 bits. */
static void test_outputs(void **state)
{
    static const int sizes[][3] = {{1, 11, 9}, {2, 11, 9}, {1, 3, 4}, {3, 5, 3}};

    (void)state;
    for (size_t t = 0; kernels_all[t]; t++) {
        const struct kernels *table = kernels_all[t];
        const double tolerance = table->activation == ACTIVATION_BF16 ? 4e-2 : 1e-5;
        char why[160] = "";
        if (!table->available(why, sizeof why)) {
            print_message("SKIPPED: table %s: %s\n", table->name, why);
            continue;
        }
        for (size_t i = 0; i < sizeof chains / sizeof *chains; i++) {
            struct opened o = open_network(chains[i].modules, 3);
            for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
                const double d = difference(&o, table, sizes[s][0], sizes[s][1], sizes[s][2]);
                if (!(d <= tolerance))
                    fail_msg("%s, %s, %dx%dx%d: off by %g of the range", table->name, chains[i].name, sizes[s][0],
                             sizes[s][1], sizes[s][2], d);
            }
            close_network(&o);
        }
    }
}

/* An add that follows no convolution cannot fuse. No block type makes one, so a call is changed by hand. */
static void test_add_without_fusion(void **state)
{
    struct opened o = open_network(LEAF("p", "ReLU") ", {\"name\": \"q\", \"type\": \"AdaptiveAvgPool2d\", \"output\": "
                                                     "[null, null]}, " LEAF("d", "Dropout") ", " LEAF("r", "ReLU"),
                                   3);
    struct program program;
    struct rn_error error;
    char text[256];

    (void)state;
    /* p(0) = 1, q(1) = 2, then 1 + 2 = 3 in place of Dropout, relu(3) = 4. */
    assert_int_equal(o.network.call_count, 4);
    o.network.calls[2].kind = CALL_ADD;
    o.network.calls[2].module = NULL;
    o.network.calls[2].other = 1;
    for (size_t t = 0; kernels_all[t]; t++) {
        if (!kernels_all[t]->available(NULL, 0))
            continue;
        assert_int_equal(program_build(&o.network, o.weights, kernels_all[t], &program, &error), RN_OK);
        describe(&program, text, sizeof text);
        assert_string_equal(text, "relu(p) adaptive(q) add(d +res +relu)");
        program_free(&program);
        assert_true(difference(&o, kernels_all[t], 2, 6, 7) <=
                    (kernels_all[t]->activation == ACTIVATION_BF16 ? 2e-2 : 1e-6));
    }
    close_network(&o);
}

/* Weights so small that the output can be computed on paper. */
static void test_hand_computed(void **state)
{
    static const char header[] =
        "{\"c.weight\": {\"dtype\": \"F32\", \"shape\": [1, 1, 2, 2], \"data_offsets\": [0, 16]}, "
        "\"c.bias\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [16, 20]}, "
        "\"l.weight\": {\"dtype\": \"F32\", \"shape\": [2, 4], \"data_offsets\": [20, 52]}}";
    static const float data[] = {1, 2, 3, 4, -20, /* conv */ 1, 1, 1, 1, 1, -1, 2, -2 /* linear */};
    static const float input[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    /* conv: 1+4+12+20-20 = 17, 27; 47, 57 -> all positive; linear: 148, 17-27+94-114 = -30 */
    static const float expected[] = {148, -30};
    struct opened o = {
        .network = network_of("{\"name\": \"c\", \"type\": \"Conv2d\", \"in\": 1, \"out\": 1, \"kernel\": 2}, " LEAF(
                                  "r", "ReLU") ", " LEAF("f", "Flatten") ", {\"name\": \"l\", \"type\": \"Linear\", "
                                                                         "\"in\": 4, \"out\": 2, \"bias\": false}",
                              1)};
    unsigned char file[sizeof header + 7 + sizeof data];
    struct program program;
    struct plan plan;
    struct rn_error error;

    (void)state;
    for (size_t i = 0; i < 8; i++)
        file[i] = (unsigned char)((sizeof header - 1) >> 8 * i & 0xff);
    memcpy(file + 8, header, sizeof header - 1);
    memcpy(file + 8 + sizeof header - 1, data, sizeof data);
    write_temporary(o.path, file, sizeof file);
    assert_int_equal(weights_open(o.path, &o.weights, &error), RN_OK);
    for (size_t t = 0; kernels_all[t]; t++) {
        float *logits;
        if (!kernels_all[t]->available(NULL, 0))
            continue;
        assert_int_equal(program_build(&o.network, o.weights, kernels_all[t], &program, &error), RN_OK);
        assert_int_equal(plan_init(&plan, &o.network, 1, 3, 3, &error), RN_OK);
        logits = run_program(&program, &plan, input);
        assert_memory_equal(logits, expected, sizeof expected); /* small whole numbers: exact everywhere */
        free(logits);
        plan_free(&plan);
        program_free(&program);
    }
    close_network(&o);
}

static void test_refused_weights(void **state)
{
    static const struct {
        struct weights_change change;
        const char *reason;
    } cases[] = {
        {{.drop = "c.weight"}, "c.weight"},
        {{.drop = "b.running_var"}, "b.running_var"},
        {{.reshape = "c.weight"}, "c.weight"},
        {{.reshape = "b.bias"}, "b.bias"},
        {{.reshape = "l.weight"}, "l.weight"},
        {{.poison = "c.weight"}, "tensor c.weight: element 215 is not a finite number"},
        {{.poison = "b.running_mean"}, "tensor b.running_mean: element 7 is not a finite number"},
        {{.poison = "l.bias"}, "tensor l.bias: element 4 is not a finite number"},
        {{.negate = "b.running_var"}, "tensor b.running_var: element 0 is negative"},
        {{.negate = "n.running_var"}, "tensor n.running_var: element 0 is negative"},
    };
    struct network network = network_of(BN("n", 3) ", " CONV("c", 3, 8, "") ", " BN("b", 8) ", " ADAPTIVE(
                                            "a", 1, 1) ", " LEAF("f", "Flatten") ", " LINEAR("l", 8, 5),
                                        3);

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static const struct program zero;
        char path[TEST_PATH_SIZE];
        struct weights *weights;
        struct program program;
        struct rn_error error;
        make_weights(&network, 1, &cases[i].change, path);
        if (weights_open(path, &weights, &error))
            fail_msg("%s", error.text);
        assert_int_equal(program_build(&network, weights, &kernels_ref, &program, &error), RN_ERR_WEIGHTS);
        if (!strstr(error.text, cases[i].reason))
            fail_msg("\"%s\" instead of \"%s\"", error.text, cases[i].reason);
        assert_memory_equal(&program, &zero, sizeof zero);
        weights_close(weights);
        (void)unlink(path);
    }
    network_free(&network);
}

static void test_out_of_memory(void **state)
{
    struct opened o = open_network(BN("n", 3) ", " CONV("c", 3, 8, "") ", " BN("b", 8) ", " ADAPTIVE(
                                       "a", 1, 1) ", " LEAF("f", "Flatten") ", " LINEAR("l", 8, 5),
                                   3);
    struct program program;
    struct rn_error error;

    (void)state;
    for (long n = 0;; n++) {
        enum rn_status status;
        fail_alloc_at(n);
        status = program_build(&o.network, o.weights, &kernels_ref, &program, &error);
        if (!fail_alloc_fired()) {
            assert_int_equal(status, RN_OK);
            assert_true(n >= 14);
            break;
        }
        assert_int_equal(status, RN_ERR_NOMEM);
        assert_null(program.ops);
    }
    fail_alloc_at(-1);
    program_free(&program);
    close_network(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fusion),        cmocka_unit_test(test_branches),
        cmocka_unit_test(test_outputs),       cmocka_unit_test(test_add_without_fusion),
        cmocka_unit_test(test_hand_computed), cmocka_unit_test(test_refused_weights),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
