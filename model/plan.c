/* plan.c - shape inference over a network's calls, and the tables that follow from it. */

#include "plan.h"

#include "sizes.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* No single activation may have more elements or pixels than this; what a request may really use is the memory
 * budget's business. It keeps the kernels, which count pixels in an int and elements in a size_t, far from overflow. */
static const size_t max_elements = (size_t)1 << 36, max_pixels = (size_t)1 << 30;
enum { MAX_SIDE = 1 << 24 };

size_t shape_elements(const struct shape *shape)
{
    return (size_t)shape->n * (size_t)shape->c * (size_t)shape->h * (size_t)shape->w;
}

size_t shape_pixels(const struct shape *shape)
{
    return (size_t)shape->n * (size_t)shape->h * (size_t)shape->w;
}

static const char *format_shape(const struct shape *shape, int n, char text[SHAPE_TEXT_SIZE])
{
    if (shape->flat)
        (void)snprintf(text, SHAPE_TEXT_SIZE, "[%d, %d]", n, shape->c);
    else
        (void)snprintf(text, SHAPE_TEXT_SIZE, "[%d, %d, %d, %d]", n, shape->c, shape->h, shape->w);
    return text;
}

const char *shape_text(const struct shape *shape, char text[SHAPE_TEXT_SIZE])
{
    return format_shape(shape, shape->n, text);
}

/* What a window needs of its input; less where the padding or, in ceil mode, the edge may hold a part of it. */
static int window_minimum(int kernel, int stride, int padding, int dilation, bool ceil_mode)
{
    const int least = dilation * (kernel - 1) + 1 - 2 * padding - (ceil_mode ? stride - 1 : 0);

    return least > 1 ? least : 1;
}

/* floor or ceil of (in + 2p - d(k - 1) - 1) / s, plus 1; 0 when the window does not fit. In ceil mode the
 * last window must start inside the input or its left padding (PyTorch's pooling_output_shape). */
static int window_outputs(int in, int kernel, int stride, int padding, int dilation, bool ceil_mode)
{
    const int64_t room =
        (int64_t)in + 2 * (int64_t)padding - (int64_t)dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
    int64_t out;

    if (room < 0)
        return 0;
    out = room / stride + 1;
    if (ceil_mode && (out - 1) * stride >= (int64_t)in + padding)
        out--;
    return (int)out;
}

static bool shape_fits(const struct shape *shape)
{
    size_t elements;

    return shape->h <= MAX_SIDE && shape->w <= MAX_SIDE && size_mul((size_t)shape->h, (size_t)shape->w, &elements) &&
           size_mul(elements, (size_t)shape->n, &elements) && elements <= max_pixels &&
           size_mul(elements, (size_t)shape->c, &elements) && elements <= max_elements;
}

/* The shape that was flattened into `value`, for the message of a mismatch. */
static const struct shape *before_flatten(const struct plan *plan, int value)
{
    for (size_t i = plan->network->call_count; i-- > 0;) {
        const struct call *call = &plan->network->calls[i];
        if (call->kind != CALL_LEAF || call->output != value)
            continue;
        value = call->input;
        if (call->module->type == MODULE_FLATTEN)
            break;
    }
    return &plan->values[value];
}

static enum rn_status infer_windowed(const struct plan *plan, const struct call *call, const int kernel[2],
                                     const int stride[2], const int padding[2], const int dilation[2], bool ceil_mode,
                                     struct shape *shape, struct rn_error *error)
{
    const int in_h = shape->h, in_w = shape->w;

    shape->h = window_outputs(in_h, kernel[0], stride[0], padding[0], dilation[0], ceil_mode);
    shape->w = window_outputs(in_w, kernel[1], stride[1], padding[1], dilation[1], ceil_mode);
    if (shape->h < 1 || shape->w < 1)
        return rn_fail(error, RN_ERR_INPUT_SIZE, "%s needs at least %dx%d, a %dx%d input gives it %dx%d", call->path,
                       window_minimum(kernel[0], stride[0], padding[0], dilation[0], ceil_mode),
                       window_minimum(kernel[1], stride[1], padding[1], dilation[1], ceil_mode), plan->input.h,
                       plan->input.w, in_h, in_w);
    return RN_OK;
}

static enum rn_status infer_leaf(const struct plan *plan, const struct call *call, struct shape *shape,
                                 struct rn_error *error)
{
    const struct module *m = call->module;

    switch (m->type) {
    case MODULE_CONV2D: {
        const struct conv_params *p = &m->conv.params;
        shape->c = p->out;
        return infer_windowed(plan, call, p->kernel, p->stride, p->padding, p->dilation, false, shape, error);
    }
    case MODULE_MAXPOOL2D:
    case MODULE_AVGPOOL2D: {
        const struct pool_params *p = &m->pool;
        return infer_windowed(plan, call, p->kernel, p->stride, p->padding, p->dilation, p->ceil_mode, shape, error);
    }
    case MODULE_ADAPTIVE_AVGPOOL2D:
        shape->h = m->adaptive.output[0] > 0 ? m->adaptive.output[0] : shape->h;
        shape->w = m->adaptive.output[1] > 0 ? m->adaptive.output[1] : shape->w;
        return RN_OK;
    case MODULE_FLATTEN: {
        const size_t features = shape_elements(shape) / (size_t)shape->n;
        if (features > (size_t)1 << 30)
            return rn_fail(error, RN_ERR_INPUT_SIZE, "%s would give %zu features", call->path, features);
        *shape = (struct shape){.n = shape->n, .c = (int)features, .h = 1, .w = 1, .flat = true};
        return RN_OK;
    }
    case MODULE_LINEAR:
        if (shape->c != m->linear.in) {
            const struct shape *from = before_flatten(plan, call->input);
            return rn_fail(error, RN_ERR_INPUT_SIZE, "%s expects %d features, a %dx%d input gives %dx%dx%d = %d",
                           call->path, m->linear.in, plan->input.h, plan->input.w, from->c, from->h, from->w, shape->c);
        }
        shape->c = m->linear.out;
        return RN_OK;
    default: /* keeps its input's shape */
        return RN_OK;
    }
}

static uint64_t multiply_adds(const struct module *m, const struct shape *out)
{
    if (m->type == MODULE_CONV2D) {
        const struct conv_params *p = &m->conv.params;
        return shape_elements(out) * (uint64_t)(p->in / p->groups) * (uint64_t)p->kernel[0] * (uint64_t)p->kernel[1];
    }
    return m->type == MODULE_LINEAR ? shape_elements(out) * (uint64_t)m->linear.in : 0;
}

enum rn_status plan_init(struct plan *out, const struct network *network, int n, int height, int width,
                         struct rn_error *error)
{
    enum rn_status status;

    assert(n >= 1);
    memset(out, 0, sizeof *out);
    out->network = network;
    out->input = (struct shape){.n = n, .c = network->input.channels, .h = height, .w = width};
    if (height < 1 || width < 1 || !shape_fits(&out->input))
        return rn_fail(error, RN_ERR_INPUT_SIZE, "an input of %dx%d is not possible", height, width);
    out->row_count = network->call_count;
    out->rows = calloc(network->call_count, sizeof *out->rows);
    out->values = calloc((size_t)network->value_count, sizeof *out->values);
    if (!out->rows || !out->values) {
        status = rn_fail_nomem(error, "a plan");
        goto fail;
    }
    out->values[0] = out->input;
    for (size_t i = 0; i < network->call_count; i++) {
        const struct call *call = &network->calls[i];
        struct plan_row *row = &out->rows[i];
        struct shape shape = out->values[call->input];

        if (call->kind == CALL_LEAF && (status = infer_leaf(out, call, &shape, error)))
            goto fail;
        if (!shape_fits(&shape)) {
            status = rn_fail(error, RN_ERR_INPUT_SIZE, "a %dx%d input makes the output of %s too large", height, width,
                             call->path);
            goto fail;
        }
        if (call->kind == CALL_ADD) {
            const struct shape *other = &out->values[call->other];
            if (other->c != shape.c || other->h != shape.h || other->w != shape.w) {
                status = rn_fail(error, RN_ERR_INPUT_SIZE, "%s adds %dx%dx%d and %dx%dx%d", call->path, shape.c,
                                 shape.h, shape.w, other->c, other->h, other->w);
                goto fail;
            }
        }
        out->values[call->output] = shape;
        *row = (struct plan_row){.call = call, .shape = shape};
        if (call->kind == CALL_LEAF) {
            row->parameters = module_parameters(call->module);
            row->multiply_adds = multiply_adds(call->module, &shape);
            out->parameters += row->parameters;
            out->trainable_parameters += call->module->frozen ? 0 : row->parameters;
            out->multiply_adds += row->multiply_adds;
        }
    }
    return RN_OK;
fail:
    plan_free(out);
    return status;
}

void plan_free(struct plan *plan)
{
    if (!plan)
        return;
    free(plan->values);
    free(plan->rows);
    memset(plan, 0, sizeof *plan);
}

bool plan_row_in_summary(const struct plan_row *row)
{
    const struct call *call = row->call;

    return call->kind != CALL_ADD && call->module->type != MODULE_SEQUENTIAL && !call->module->functional;
}

bool plan_row_is_stage(const struct plan_row *row)
{
    return row->call->depth == 0;
}

struct plan_totals plan_totals(const struct plan *plan)
{
    const double mib_per_float = sizeof(float) / (1024.0 * 1024.0);
    struct plan_totals totals = {0};
    double outputs = 0;

    for (size_t i = 0; i < plan->row_count; i++)
        if (plan_row_in_summary(&plan->rows[i]))
            outputs += (double)shape_elements(&plan->rows[i].shape);
    totals.input_mib = (double)shape_elements(&plan->input) * mib_per_float;
    totals.forward_backward_mib = 2.0 * outputs * mib_per_float;
    totals.parameters_mib = (double)plan->parameters * mib_per_float;
    totals.total_mib = totals.input_mib + totals.forward_backward_mib + totals.parameters_mib;
    return totals;
}

/* "1,792" */
static const char *group_digits(uint64_t value, char text[32])
{
    char digits[24];
    const int count = snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
    int at = 0;

    for (int i = 0; i < count; i++) {
        if (i && (count - i) % 3 == 0)
            text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = '\0';
    return text;
}

static void rule(char c, FILE *out)
{
    for (int i = 0; i < 84; i++)
        fputc(c, out);
    fputc('\n', out);
}

void plan_print_summary(const struct plan *plan, FILE *out)
{
    const struct plan_totals totals = plan_totals(plan);
    char label[64], shape[SHAPE_TEXT_SIZE], parameters[32], madds[32];
    int number = 0;

    rule('-', out);
    fprintf(out, "%20s  %25s %15s %20s\n", "Layer (type)", "Output Shape", "Param #", "Multiply-adds");
    rule('=', out);
    for (size_t i = 0; i < plan->row_count; i++) {
        const struct plan_row *row = &plan->rows[i];
        if (!plan_row_in_summary(row))
            continue;
        (void)snprintf(label, sizeof label, "%s-%d", module_type_name(row->call->module->type), ++number);
        fprintf(out, "%20s  %25s %15s %20s\n", label, format_shape(&row->shape, -1, shape),
                group_digits(row->parameters, parameters), group_digits(row->multiply_adds, madds));
    }
    rule('=', out);
    fprintf(out, "Total params: %s\n", group_digits(plan->parameters, parameters));
    fprintf(out, "Trainable params: %s\n", group_digits(plan->trainable_parameters, parameters));
    fprintf(out, "Non-trainable params: %s\n", group_digits(plan->parameters - plan->trainable_parameters, parameters));
    fprintf(out, "Total multiply-adds: %s\n", group_digits(plan->multiply_adds, madds));
    rule('-', out);
    fprintf(out, "Input size (MB): %.2f\n", totals.input_mib);
    fprintf(out, "Forward/backward pass size (MB): %.2f\n", totals.forward_backward_mib);
    fprintf(out, "Params size (MB): %.2f\n", totals.parameters_mib);
    fprintf(out, "Estimated Total Size (MB): %.2f\n", totals.total_mib);
    rule('-', out);
}
