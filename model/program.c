/* program.c - fusing calls into operations, folding batch norm, packing weights. */

#include "program.h"

#include "pages.h"
#include "sizes.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct builder {
    const struct network *network;
    const struct weights *weights;
    struct program *program;
    struct rn_error *error;
    bool *absorbed; /* calls that belong to an earlier operation */
    bool *ready;    /* values that an operation emitted so far gives */
};

/* The only call that reads `value`, or NULL when there are none or several (the caller of the network
 * counts as one). */
static const struct call *only_reader(const struct builder *b, int value)
{
    const struct call *reader = NULL;

    if (value == b->network->output_value)
        return NULL;
    for (size_t i = 0; i < b->network->call_count; i++) {
        const struct call *call = &b->network->calls[i];
        if (call->kind == CALL_BLOCK || (call->input != value && !(call->kind == CALL_ADD && call->other == value)))
            continue;
        if (reader)
            return NULL;
        reader = call;
    }
    return reader;
}

static void absorb(struct builder *b, const struct call *call)
{
    b->absorbed[call - b->network->calls] = true;
}

static bool is_leaf(const struct call *call, enum module_type type)
{
    return call && call->kind == CALL_LEAF && call->module->type == type;
}

/* ---- weights ---- */

/* A parameter of a module, "layer1.0.conv1" + "weight", into `out`. */
static enum rn_status read_parameter(struct builder *b, const char *path, const char *name, int dims,
                                     const int64_t *shape, float *out)
{
    char full[192];
    size_t count = 1;
    enum rn_status status;

    (void)snprintf(full, sizeof full, "%s.%s", path, name);
    if ((status = weights_read_f32(b->weights, full, dims, shape, out, b->error)))
        return status;
    for (int i = 0; i < dims; i++)
        count *= (size_t)shape[i];
    for (size_t i = 0; i < count; i++)
        if (!isfinite(out[i]))
            return rn_fail(b->error, RN_ERR_WEIGHTS, "tensor %s: element %zu is not a finite number", full, i);
    return RN_OK;
}

/* scale[c] = weight / sqrt(running_var + eps), shift[c] = bias - running_mean * scale. */
static enum rn_status read_batchnorm(struct builder *b, const struct call *call, double *scale, double *shift)
{
    const int features = call->module->batchnorm.features;
    const int64_t shape[1] = {features};
    float *values = malloc(4 * (size_t)features * sizeof *values);
    float *weight = values, *bias = weight + features, *mean = bias + features, *var = mean + features;
    enum rn_status status;

    if (!values)
        return rn_fail_nomem(b->error, "batch norm");
    if (!(status = read_parameter(b, call->path, "weight", 1, shape, weight)) &&
        !(status = read_parameter(b, call->path, "bias", 1, shape, bias)) &&
        !(status = read_parameter(b, call->path, "running_mean", 1, shape, mean)) &&
        !(status = read_parameter(b, call->path, "running_var", 1, shape, var)))
        for (int c = 0; c < features; c++) {
            const double spread = (double)var[c] + call->module->batchnorm.eps;
            if (!(spread > 0)) {
                status =
                    rn_fail(b->error, RN_ERR_WEIGHTS, "tensor %s.running_var: element %d is negative", call->path, c);
                break;
            }
            scale[c] = (double)weight[c] / sqrt(spread);
            shift[c] = (double)bias[c] - (double)mean[c] * scale[c];
        }
    free(values);
    return status;
}

/* Weights of one output: in / groups * kernel_h * kernel_w. */
static size_t filter_elements(const struct conv_params *p)
{
    return (size_t)(p->in / p->groups) * (size_t)p->kernel[0] * (size_t)p->kernel[1];
}

/* Read the weights and the bias of one convolution and fold its batch norm (NULL for none) into them:
 * weight[out, filter], bias[out]. */
static enum rn_status read_conv(struct builder *b, const struct call *call, const struct call *batchnorm,
                                const struct conv_params *p, float *weight, float *bias)
{
    const struct module *m = call->module;
    const size_t out = (size_t)p->out, row = filter_elements(p);
    const int64_t shape[4] = {p->out, p->in / p->groups, p->kernel[0], p->kernel[1]};
    const bool linear = m->type == MODULE_LINEAR, has_bias = linear ? m->linear.bias : m->conv.bias;
    double *fold = NULL;
    enum rn_status status;

    memset(bias, 0, out * sizeof *bias);
    if ((status = read_parameter(b, call->path, "weight", linear ? 2 : 4, shape, weight)) ||
        (has_bias && (status = read_parameter(b, call->path, "bias", 1, shape, bias))) || !batchnorm)
        return status;
    fold = malloc(2 * out * sizeof *fold);
    if (!fold)
        return rn_fail_nomem(b->error, "weights");
    if (!(status = read_batchnorm(b, batchnorm, fold, fold + out))) {
        const double *scale = fold, *shift = fold + out;
        for (size_t o = 0; o < out; o++) {
            for (size_t i = 0; i < row; i++)
                weight[o * row + i] = (float)((double)weight[o * row + i] * scale[o]);
            bias[o] = (float)((double)bias[o] * scale[o] + shift[o]);
        }
    }
    free(fold);
    return status;
}

/* Read the weights of an operation and pack them where op->packed says. */
static enum rn_status pack_conv(struct builder *b, struct op *op)
{
    const struct conv *conv = &op->conv;
    const size_t out = (size_t)conv->params.out, row = filter_elements(&conv->params);
    const size_t branch_row = conv->has_branch ? filter_elements(&conv->branch) : 0;
    float *weight = NULL, *bias = malloc(2 * out * sizeof *bias);
    size_t count;
    enum rn_status status;

    if (size_mul(out, row + branch_row, &count) && count <= SIZE_MAX / sizeof *weight)
        weight = malloc(count * sizeof *weight);
    if (!weight || !bias)
        status = rn_fail_nomem(b->error, "weights");
    else
        status = read_conv(b, op->call, op->batchnorm, &conv->params, weight, bias);
    if (!status && conv->has_branch) {
        status = read_conv(b, op->branch_call, op->branch_batchnorm, &conv->branch, weight + out * row, bias + out);
        for (size_t o = 0; o < out && !status; o++)
            bias[o] += bias[out + o];
    }
    if (!status)
        op->kernel->pack(conv, weight, bias, op->packed);
    free(bias);
    free(weight);
    return status;
}

/* ---- operations ---- */

static struct conv_params linear_as_conv(const struct module *module)
{
    return (struct conv_params){.in = module->linear.in,
                                .out = module->linear.out,
                                .kernel = {1, 1},
                                .stride = {1, 1},
                                .dilation = {1, 1},
                                .groups = 1};
}

/* Whether `value` reaches the network's output through nothing but reordering and softmax: then it is
 * logits, and stays float32. */
static bool is_logits(const struct builder *b, int value)
{
    while (value != b->network->output_value) {
        const struct call *reader = only_reader(b, value);
        if (!is_leaf(reader, MODULE_SOFTMAX) && !is_leaf(reader, MODULE_FLATTEN) && !is_leaf(reader, MODULE_DROPOUT))
            return false;
        value = reader->output;
    }
    return true;
}

static void mark_logits(struct builder *b, int value)
{
    b->program->is_f32[value] = true;
    while (value != b->network->output_value) {
        value = only_reader(b, value)->output;
        b->program->is_f32[value] = true;
    }
}

/* `op`, whose output is to be added to that of the operation before it: let that one do both, if it is a convolution
 * of which nobody reads the output alone and its kernel can. It then stands for `op`, which is dropped. */
static struct op *join_branch(struct builder *b, struct op *op, int other)
{
    struct op *main = op - 1;
    const struct conv_params *p = &op->conv.params;
    struct conv joined;

    if (b->program->op_count < 2 || main->kind != OP_CONV || main->output != other || main->conv.relu ||
        main->conv.has_residual || main->conv.has_branch || main->conv.output_f32 || op->input == other ||
        p->kernel[0] != 1 || p->kernel[1] != 1 || p->padding[0] || p->padding[1] || p->groups != 1)
        return NULL;
    joined = main->conv;
    joined.has_branch = true;
    joined.branch = *p;
    if (!kernels_conv(b->program->kernels, &joined))
        return NULL;
    main->conv = joined;
    main->branch = op->input;
    main->branch_call = op->call;
    main->branch_batchnorm = op->batchnorm;
    b->ready[other] = false;
    b->program->op_count--;
    return main;
}

/* Returns the operation that computes `call`: `op`, or an earlier one that it was joined to. */
static struct op *build_conv(struct builder *b, struct op *op, const struct call *call)
{
    const struct call *reader;
    struct op *joined;
    int value = call->output;

    op->kind = OP_CONV;
    op->conv.linear = call->module->type == MODULE_LINEAR;
    op->conv.params = op->conv.linear ? linear_as_conv(call->module) : call->module->conv.params;
    reader = only_reader(b, value);
    if (is_leaf(reader, MODULE_BATCHNORM2D)) {
        absorb(b, op->batchnorm = reader);
        value = reader->output;
        reader = only_reader(b, value);
    }
    if (reader && reader->kind == CALL_ADD) {
        const int other = b->program->alias[reader->input == value ? reader->other : reader->input];
        if (other != value && b->ready[other]) {
            absorb(b, reader);
            if (only_reader(b, other) == reader && (joined = join_branch(b, op, other))) {
                op = joined;
            } else {
                op->residual = other;
                op->conv.has_residual = true;
            }
            value = reader->output;
            reader = only_reader(b, value);
        }
    }
    if (is_leaf(reader, MODULE_RELU)) {
        absorb(b, reader);
        op->relu = op->conv.relu = true;
        value = reader->output;
    }
    op->output = value;
    if (is_logits(b, value) && !op->conv.has_residual) {
        op->conv.output_f32 = true;
        mark_logits(b, value);
    }
    op->kernel = kernels_conv(b->program->kernels, &op->conv);
    op->packed_bytes = op->kernel->packed_bytes(&op->conv);
    return op;
}

static enum rn_status build_batchnorm(struct builder *b, struct op *op, const struct call *call)
{
    const size_t features = (size_t)call->module->batchnorm.features;
    double *fold = malloc(2 * features * sizeof *fold);
    enum rn_status status;

    op->kind = OP_BATCHNORM;
    op->scale = malloc(2 * features * sizeof *op->scale);
    if (!fold || !op->scale) {
        free(fold);
        return rn_fail_nomem(b->error, "batch norm");
    }
    op->shift = op->scale + features;
    if (!(status = read_batchnorm(b, call, fold, fold + features)))
        for (size_t i = 0; i < 2 * features; i++)
            op->scale[i] = (float)fold[i];
    free(fold);
    return status;
}

/* Turn one call into an operation; Dropout, blocks and absorbed calls give none. */
static enum rn_status build_call(struct builder *b, const struct call *call)
{
    struct program *program = b->program;
    struct op *op = &program->ops[program->op_count];
    enum rn_status status = RN_OK;

    if (call->kind == CALL_BLOCK || b->absorbed[call - b->network->calls])
        return RN_OK;
    if (is_leaf(call, MODULE_DROPOUT)) {
        program->alias[call->output] = program->alias[call->input];
        b->ready[call->output] = true;
        return RN_OK;
    }
    *op = (struct op){
        .call = call, .input = program->alias[call->input], .residual = -1, .branch = -1, .output = call->output};
    program->op_count++;
    if (call->kind == CALL_ADD) {
        const struct call *reader = only_reader(b, call->output);
        op->kind = OP_ADD;
        op->residual = program->alias[call->other];
        if (is_leaf(reader, MODULE_RELU)) {
            absorb(b, reader);
            op->relu = true;
            op->output = reader->output;
        }
    } else {
        switch (call->module->type) {
        case MODULE_CONV2D:
        case MODULE_LINEAR:
            op = build_conv(b, op, call);
            break;
        case MODULE_BATCHNORM2D:
            status = build_batchnorm(b, op, call);
            break;
        case MODULE_MAXPOOL2D:
            op->kind = OP_MAX_POOL;
            break;
        case MODULE_AVGPOOL2D:
            op->kind = OP_AVG_POOL;
            break;
        case MODULE_ADAPTIVE_AVGPOOL2D:
            op->kind = OP_ADAPTIVE_AVG_POOL;
            break;
        case MODULE_FLATTEN:
            op->kind = OP_FLATTEN;
            break;
        case MODULE_RELU:
            op->kind = OP_RELU;
            break;
        default:
            assert(call->module->type == MODULE_SOFTMAX);
            op->kind = OP_SOFTMAX;
        }
    }
    b->ready[op->output] = true;
    return status;
}

/* One block of memory for all packed weights, in the order in which they are read, each convolution's from a page of
 * its own on: what fetches them ahead goes page by page (fetch_order.h). */
static enum rn_status pack_all(struct builder *b)
{
    struct program *program = b->program;
    size_t total = KERNEL_ALIGNMENT, offset = 0; /* kernels may read a little past the end */
    enum rn_status status;

    for (size_t i = 0; i < program->op_count; i++)
        if (program->ops[i].kind == OP_CONV &&
            (program->ops[i].packed_bytes > SIZE_MAX / 2 ||
             !size_add(total, size_round_up(program->ops[i].packed_bytes, PAGE_BYTES), &total)))
            return rn_fail_nomem(b->error, "packed weights");
    program->packed = pages_alloc(total);
    if (!program->packed)
        return rn_fail_nomem(b->error, "packed weights");
    program->packed_bytes = total;
    for (size_t i = 0; i < program->op_count; i++) {
        struct op *op = &program->ops[i];
        if (op->kind != OP_CONV)
            continue;
        op->packed = (char *)program->packed + offset;
        offset += size_round_up(op->packed_bytes, PAGE_BYTES);
        if ((status = pack_conv(b, op)))
            return status;
    }
    return RN_OK;
}

enum rn_status program_build(const struct network *network, const struct weights *weights,
                             const struct kernels *kernels, struct program *out, struct rn_error *error)
{
    const size_t values = (size_t)network->value_count;
    struct builder b = {.network = network, .weights = weights, .program = out, .error = error};
    enum rn_status status = RN_OK;

    *out = (struct program){.network = network, .kernels = kernels};
    out->ops = calloc(network->call_count, sizeof *out->ops);
    out->alias = calloc(values, sizeof *out->alias);
    out->is_f32 = calloc(values, sizeof *out->is_f32);
    b.absorbed = calloc(network->call_count, sizeof *b.absorbed);
    b.ready = calloc(values, sizeof *b.ready);
    if (!out->ops || !out->alias || !out->is_f32 || !b.absorbed || !b.ready) {
        status = rn_fail_nomem(error, "a network");
    } else {
        for (size_t i = 0; i < values; i++)
            out->alias[i] = (int)i;
        b.ready[0] = true;
        for (size_t i = 0; i < network->call_count && !status; i++)
            status = build_call(&b, &network->calls[i]);
        if (!status)
            status = pack_all(&b);
    }
    free(b.ready);
    free(b.absorbed);
    if (status)
        program_free(out);
    return status;
}

void program_free(struct program *program)
{
    if (!program)
        return;
    for (size_t i = 0; i < program->op_count; i++)
        free(program->ops[i].scale);
    pages_free(program->packed, program->packed_bytes);
    free(program->ops);
    free(program->alias);
    free(program->is_f32);
    memset(program, 0, sizeof *program);
}
