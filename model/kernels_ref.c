/* kernels_ref.c - the specification of every operation: plain C, float32, one screen each.
 *
 * The other tables are compared with this one, at start and by the tests. It is written to be read; its
 * inner loops run over contiguous output channels only so that a network takes seconds, not minutes. */

#include "kernels_pool.h"

#include <assert.h>
#include <string.h>

/* Packed: bias[out], then weight[kernel_h][kernel_w][in / groups][out]. */

static bool ref_conv_supports(const struct conv *conv)
{
    (void)conv;
    return true;
}

static size_t weight_elements(const struct conv_params *p)
{
    return (size_t)p->out * (size_t)(p->in / p->groups) * (size_t)p->kernel[0] * (size_t)p->kernel[1];
}

static size_t ref_conv_packed_bytes(const struct conv *conv)
{
    return ((size_t)conv->params.out + weight_elements(&conv->params)) * sizeof(float);
}

static void ref_conv_pack(const struct conv *conv, const float *weight, const float *bias, void *packed)
{
    const struct conv_params *p = &conv->params;
    const size_t in = (size_t)(p->in / p->groups), taps = (size_t)p->kernel[0] * (size_t)p->kernel[1];
    const size_t out = (size_t)p->out;
    float *to = packed;

    memcpy(to, bias, out * sizeof(float));
    to += out;
    for (size_t o = 0; o < out; o++)
        for (size_t i = 0; i < in; i++)
            for (size_t t = 0; t < taps; t++)
                to[(t * in + i) * out + o] = weight[(o * in + i) * taps + t];
}

/* A task is one output row. */
static void ref_conv_plan(const struct conv *conv, const struct conv_geometry *geometry, int threads,
                          struct conv_work *work)
{
    (void)threads;
    *work = (struct conv_work){.tasks = geometry->n * geometry->out_h,
                               .scratch_bytes = (size_t)conv->params.out * sizeof(float)};
}

static void ref_conv_run(const struct conv *conv, const struct conv_geometry *g, const struct conv_work *work,
                         const struct conv_buffers *buffers, int task, void *scratch)
{
    const struct conv_params *p = &conv->params;
    const int in_group = p->in / p->groups, out_group = p->out / p->groups;
    const int n = task / g->out_h, y = task % g->out_h;
    const float *bias = buffers->packed, *weight = bias + p->out;
    const float *input = (const float *)buffers->input + (size_t)n * (size_t)g->in_h * (size_t)g->in_w * (size_t)p->in;
    float *sum = scratch; /* [out]: the output may be the residual, so it is written last */

    assert(task < work->tasks);
    for (int x = 0; x < g->out_w; x++) {
        const size_t at = ((size_t)task * (size_t)g->out_w + (size_t)x) * (size_t)p->out;
        float *out = (float *)buffers->output + at;

        memcpy(sum, bias, (size_t)p->out * sizeof(float));
        for (int ky = 0; ky < p->kernel[0]; ky++) {
            const int in_y = y * p->stride[0] - p->padding[0] + ky * p->dilation[0];
            if (in_y < 0 || in_y >= g->in_h)
                continue;
            for (int kx = 0; kx < p->kernel[1]; kx++) {
                const int in_x = x * p->stride[1] - p->padding[1] + kx * p->dilation[1];
                if (in_x < 0 || in_x >= g->in_w)
                    continue;
                const float *pixel = input + ((size_t)in_y * (size_t)g->in_w + (size_t)in_x) * (size_t)p->in;
                const float *w = weight + (size_t)(ky * p->kernel[1] + kx) * (size_t)in_group * (size_t)p->out;
                for (int group = 0; group < p->groups; group++) {
                    float *s = sum + group * out_group;
                    for (int i = 0; i < in_group; i++) {
                        const float v = pixel[group * in_group + i];
                        const float *row = w + (size_t)i * (size_t)p->out + group * out_group;
                        for (int o = 0; o < out_group; o++)
                            s[o] += v * row[o];
                    }
                }
            }
        }
        if (conv->has_residual) {
            const float *residual = (const float *)buffers->residual + at;
            for (int o = 0; o < p->out; o++)
                sum[o] += residual[o];
        }
        for (int o = 0; o < p->out; o++)
            out[o] = conv->relu && !(sum[o] > 0.0f) ? 0.0f : sum[o];
    }
}

static const struct conv_kernel conv_ref = {
    .name = "direct__ref",
    .supports = ref_conv_supports,
    .packed_bytes = ref_conv_packed_bytes,
    .pack = ref_conv_pack,
    .plan = ref_conv_plan,
    .run = ref_conv_run,
};

static bool ref_available(char *why, size_t why_size)
{
    (void)why;
    (void)why_size;
    return true;
}

static const struct conv_kernel *const ref_convs[] = {&conv_ref, NULL};

const struct kernels kernels_ref = {
    .name = "ref",
    .precision = "fp32",
    .arithmetic = "plain C, float32",
    .activation = ACTIVATION_F32,
    .available = ref_available,
    .convs = ref_convs,
    .max_pool = pool_max_f32,
    .avg_pool = pool_avg_f32,
    .adaptive_avg_pool = pool_adaptive_avg_f32,
    .from_f32 = copy_from_f32,
    .to_f32 = copy_to_f32,
};
