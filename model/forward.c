/* forward.c - executing a program operation by operation, every operation as tasks of a team. */

#include "forward.h"

#include "clock.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* One operation at one place, as its tasks see it. */
struct job {
    const struct layout *layout;
    const struct op *op;
    const struct conv_work *work;
    struct conv_geometry geometry;
    struct conv_buffers buffers;
    struct pool pool;
    void (*run_pool)(const struct pool *pool, int task);
    struct shape shape; /* of the output */
    bool is_f32;        /* input and output are float32 */
};

static void conv_task(void *arg, int task, void *scratch)
{
    const struct job *job = arg;

    job->op->kernel->run(&job->op->conv, &job->geometry, job->work, &job->buffers, task, scratch);
}

static void pool_task(void *arg, int task, void *scratch)
{
    const struct job *job = arg;

    (void)scratch;
    job->run_pool(&job->pool, task);
}

/* Where channel `c` of pixel `pixel` of a value lies, in elements; float32 is NHWC whatever the table. */
static size_t value_index(const struct kernels *kernels, bool is_f32, size_t channels, size_t pixels, size_t pixel,
                          size_t c)
{
    return is_f32 ? pixel * channels + c : activation_index(kernels, channels, pixels, pixel, c);
}

/* PyTorch's [n, c * h * w]; one image a task. */
static void flatten_task(void *arg, int task, void *scratch)
{
    const struct job *job = arg;
    const struct kernels *kernels = job->layout->program->kernels;
    const struct shape *in = &job->layout->plan->values[job->op->input];
    const size_t images = (size_t)in->n, pixels = (size_t)in->h * (size_t)in->w, channels = (size_t)in->c;
    const size_t element = job->is_f32 ? sizeof(float) : activation_bytes(kernels->activation), image = (size_t)task;
    const char *from = job->buffers.input;
    char *to = job->buffers.output;

    (void)scratch;
    for (size_t c = 0; c < channels; c++)
        for (size_t i = 0; i < pixels; i++)
            memcpy(to + element * value_index(kernels, job->is_f32, channels * pixels, images, image, c * pixels + i),
                   from + element * value_index(kernels, job->is_f32, channels, images * pixels, image * pixels + i, c),
                   element);
}

/* softmax over the channels of `pixels` pixels, in place. */
static void softmax_row(float *values, size_t pixels, size_t channels)
{
    for (size_t i = 0; i < pixels; i++, values += channels) {
        float largest = values[0];
        double sum = 0;
        for (size_t c = 1; c < channels; c++)
            largest = values[c] > largest ? values[c] : largest;
        for (size_t c = 0; c < channels; c++) {
            values[c] = expf(values[c] - largest);
            sum += (double)values[c];
        }
        for (size_t c = 0; c < channels; c++)
            values[c] = (float)((double)values[c] / sum);
    }
}

static void elementwise_row(const struct op *op, float *values, const float *other, size_t pixels, size_t channels)
{
    const size_t count = pixels * channels;

    switch (op->kind) {
    case OP_BATCHNORM:
        for (size_t i = 0; i < pixels; i++)
            for (size_t c = 0; c < channels; c++)
                values[i * channels + c] = values[i * channels + c] * op->scale[c] + op->shift[c];
        break;
    case OP_ADD:
        for (size_t i = 0; i < count; i++)
            values[i] += other[i];
        break;
    case OP_SOFTMAX:
        softmax_row(values, pixels, channels);
        break;
    default:
        assert(op->kind == OP_RELU);
    }
    if (op->kind == OP_RELU || op->relu)
        for (size_t i = 0; i < count; i++)
            values[i] = values[i] > 0.0f ? values[i] : 0.0f;
}

/* Operations that were not fused: one row at a time, in float32. */
static void elementwise_task(void *arg, int task, void *scratch)
{
    const struct job *job = arg;
    const struct kernels *kernels = job->layout->program->kernels;
    const size_t pixels = (size_t)job->shape.w, channels = (size_t)job->shape.c, count = pixels * channels;

    if (job->is_f32 || kernels->activation == ACTIVATION_F32) {
        const size_t at = (size_t)task * count;
        const float *input = (const float *)job->buffers.input + at;
        float *output = (float *)job->buffers.output + at;
        if (output != input)
            memcpy(output, input, count * sizeof(float));
        elementwise_row(job->op, output, (const float *)job->buffers.residual + (job->buffers.residual ? at : 0),
                        pixels, channels);
    } else {
        const size_t all = shape_pixels(&job->shape), first = (size_t)task * pixels;
        float *values = scratch, *other = values + count;
        activation_to_f32(kernels, job->buffers.input, values, channels, all, first, pixels);
        if (job->buffers.residual)
            activation_to_f32(kernels, job->buffers.residual, other, channels, all, first, pixels);
        elementwise_row(job->op, values, other, pixels, channels);
        activation_from_f32(kernels, values, job->buffers.output, channels, all, first, pixels);
    }
}

/* The network's input, float32 to the activation type; one row of one image a task. */
static void convert_task(void *arg, int task, void *scratch)
{
    const struct job *job = arg;
    const struct kernels *kernels = job->layout->program->kernels;
    const size_t pixels = (size_t)job->shape.w, channels = (size_t)job->shape.c, first = (size_t)task * pixels;

    (void)scratch;
    activation_from_f32(kernels, (const float *)job->buffers.input + first * channels, job->buffers.output, channels,
                        shape_pixels(&job->shape), first, pixels);
}

static void convert_input(const struct layout *layout, char *activations, struct team *team)
{
    struct job job = {
        .layout = layout,
        .buffers = {.input = activations + layout->input_offset, .output = activations + layout->offsets[0]},
        .shape = layout->plan->input,
    };

    if (layout->input_offset != layout->offsets[0])
        team_run(team, job.shape.n * job.shape.h, convert_task, &job);
}

static void run_op(const struct layout *layout, size_t index, char *activations, struct team *team)
{
    const struct program *program = layout->program;
    const struct op *op = &program->ops[index];
    const struct shape *in = &layout->plan->values[op->input], *out = &layout->plan->values[op->output];
    struct job job = {
        .layout = layout,
        .op = op,
        .work = &layout->works[index],
        .geometry = layout_conv_geometry(layout->plan, op),
        .buffers = {.input = activations + layout->offsets[op->input],
                    .packed = op->packed,
                    .residual = op->residual >= 0 ? activations + layout->offsets[op->residual] : NULL,
                    .branch = op->branch >= 0 ? activations + layout->offsets[op->branch] : NULL,
                    .output = activations + layout->offsets[op->output]},
        .shape = *out,
        .is_f32 = program->is_f32[op->input],
    };
    void (*task)(void *, int, void *) = elementwise_task;

    for (size_t i = index + 1; i < program->op_count && !job.buffers.upcoming; i++) {
        job.buffers.upcoming = program->ops[i].packed;
        job.buffers.upcoming_bytes = program->ops[i].packed_bytes;
    }
    switch (op->kind) {
    case OP_CONV:
        task = conv_task;
        break;
    case OP_FLATTEN:
        if (layout_flatten_is_free(layout, op))
            return;
        task = flatten_task;
        break;
    case OP_MAX_POOL:
    case OP_AVG_POOL:
    case OP_ADAPTIVE_AVG_POOL:
        job.pool = (struct pool){.params = op->kind == OP_ADAPTIVE_AVG_POOL ? NULL : &op->call->module->pool,
                                 .n = in->n,
                                 .channels = in->c,
                                 .in_h = in->h,
                                 .in_w = in->w,
                                 .out_h = out->h,
                                 .out_w = out->w,
                                 .input = job.buffers.input,
                                 .output = job.buffers.output};
        job.run_pool = op->kind == OP_MAX_POOL   ? program->kernels->max_pool
                       : op->kind == OP_AVG_POOL ? program->kernels->avg_pool
                                                 : program->kernels->adaptive_avg_pool;
        task = pool_task;
        break;
    default:
        break;
    }
    team_run(team, job.work->tasks, task, &job);
}

static void write_logits(const struct layout *layout, const char *activations, float *logits)
{
    const struct program *program = layout->program;
    const int value = program->alias[program->network->output_value];
    const struct shape *shape = &layout->plan->values[value];
    const size_t channels = (size_t)shape->c, images = (size_t)shape->n;
    const size_t pixels = (size_t)shape->h * (size_t)shape->w;
    const size_t element = program->is_f32[value] ? sizeof(float) : activation_bytes(program->kernels->activation);
    const char *from = activations + layout->offsets[value];

    for (size_t n = 0; n < images; n++)
        for (size_t i = 0; i < pixels; i++)
            for (size_t c = 0; c < channels; c++) {
                const void *at = from + element * value_index(program->kernels, program->is_f32[value], channels,
                                                              images * pixels, n * pixels + i, c);
                float *to = &logits[(n * channels + c) * pixels + i];
                if (program->is_f32[value])
                    memcpy(to, at, sizeof *to);
                else
                    program->kernels->to_f32(at, to, 1);
            }
}

void forward_run(const struct layout *layout, void *activations, struct team *team, float *logits,
                 forward_report *report, void *arg)
{
    const struct program *program = layout->program;
    char *base = activations;

    team_begin(team);
    convert_input(layout, base, team);
    for (size_t i = 0; i < program->op_count; i++) {
        const uint64_t start = report ? clock_now_ns() : 0;
        run_op(layout, i, base, team);
        if (report)
            report(arg, &program->ops[i], clock_now_ns() - start);
    }
    team_end(team);
    write_logits(layout, base, logits);
}
