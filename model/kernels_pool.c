/* kernels_pool.c - pooling on float32 activations, plain C. */

#include "kernels_pool.h"
#include "sizes.h"

#include <math.h>
#include <string.h>

static const float *input_pixel(const struct pool *pool, int n, int y, int x)
{
    return (const float *)pool->input +
           (((size_t)n * (size_t)pool->in_h + (size_t)y) * (size_t)pool->in_w + (size_t)x) * (size_t)pool->channels;
}

static float *output_pixel(const struct pool *pool, int task, int x)
{
    return (float *)pool->output + ((size_t)task * (size_t)pool->out_w + (size_t)x) * (size_t)pool->channels;
}

void pool_max_f32(const struct pool *pool, int task)
{
    const struct pool_params *p = pool->params;
    const int n = task / pool->out_h, y = task % pool->out_h;

    for (int x = 0; x < pool->out_w; x++) {
        float *out = output_pixel(pool, task, x);
        for (int c = 0; c < pool->channels; c++)
            out[c] = -INFINITY;
        for (int ky = 0; ky < p->kernel[0]; ky++) {
            const int in_y = y * p->stride[0] - p->padding[0] + ky * p->dilation[0];
            if (in_y < 0 || in_y >= pool->in_h)
                continue;
            for (int kx = 0; kx < p->kernel[1]; kx++) {
                const int in_x = x * p->stride[1] - p->padding[1] + kx * p->dilation[1];
                if (in_x < 0 || in_x >= pool->in_w)
                    continue;
                const float *in = input_pixel(pool, n, in_y, in_x);
                for (int c = 0; c < pool->channels; c++)
                    out[c] = in[c] > out[c] ? in[c] : out[c];
            }
        }
    }
}

/* out[channels] = sum of the pixels in [y0, y1) x [x0, x1), divided by `divisor`. */
static void average(const struct pool *pool, int n, int y0, int y1, int x0, int x1, float divisor, float *out)
{
    memset(out, 0, (size_t)pool->channels * sizeof(float));
    for (int y = y0; y < y1; y++)
        for (int x = x0; x < x1; x++) {
            const float *in = input_pixel(pool, n, y, x);
            for (int c = 0; c < pool->channels; c++)
                out[c] += in[c];
        }
    for (int c = 0; c < pool->channels; c++)
        out[c] /= divisor;
}

/* The divisor counts padding (count_include_pad), but never what ceil_mode lets hang over the padded
 * edge: PyTorch's rule. */
void pool_avg_f32(const struct pool *pool, int task)
{
    const struct pool_params *p = pool->params;
    const int n = task / pool->out_h, y = task % pool->out_h;
    const int y0 = y * p->stride[0] - p->padding[0], y1 = min_int(y0 + p->kernel[0], pool->in_h + p->padding[0]);
    const int in_y0 = max_int(y0, 0), in_y1 = min_int(y1, pool->in_h);

    for (int x = 0; x < pool->out_w; x++) {
        const int x0 = x * p->stride[1] - p->padding[1], x1 = min_int(x0 + p->kernel[1], pool->in_w + p->padding[1]);
        const int in_x0 = max_int(x0, 0), in_x1 = min_int(x1, pool->in_w);
        const int count = p->divisor_override    ? p->divisor_override
                          : p->count_include_pad ? (y1 - y0) * (x1 - x0)
                                                 : (in_y1 - in_y0) * (in_x1 - in_x0);
        average(pool, n, in_y0, in_y1, in_x0, in_x1, (float)count, output_pixel(pool, task, x));
    }
}

void pool_adaptive_avg_f32(const struct pool *pool, int task)
{
    const int n = task / pool->out_h, y = task % pool->out_h;
    const int y0 = adaptive_bin_begin(y, pool->in_h, pool->out_h), y1 = adaptive_bin_end(y, pool->in_h, pool->out_h);

    for (int x = 0; x < pool->out_w; x++) {
        const int x0 = adaptive_bin_begin(x, pool->in_w, pool->out_w);
        const int x1 = adaptive_bin_end(x, pool->in_w, pool->out_w);
        average(pool, n, y0, y1, x0, x1, (float)(y1 - y0) * (float)(x1 - x0), output_pixel(pool, task, x));
    }
}

void copy_from_f32(const float *in, void *out, size_t count)
{
    memcpy(out, in, count * sizeof(float));
}

void copy_to_f32(const void *in, float *out, size_t count)
{
    memcpy(out, in, count * sizeof(float));
}
