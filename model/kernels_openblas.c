/* kernels_openblas.c - convolution as OpenBLAS's sgemm: the portable fast table, and the only file that
 * includes cblas.h.
 *
 * out[pixels, out] = patches[pixels, K] @ weight[out, K]^T, K = kernel_h * kernel_w * in. A 1x1 convolution
 * of stride 1 needs no patches: the activations are the matrix. Everything else gathers the patches of a
 * strip of output pixels into scratch (im2col). OpenBLAS's own threads are off; tasks are ours: strips of
 * pixels, cut also by output channels where there are few pixels.
 *
 * Each call of sgemm copies its matrices into an order of its own. For the weights that goes up to twice as fast when
 * an output's row is contiguous, and it is paid once a strip: strips are long where weights are large. */

#include "kernels_pool.h"
#include "sizes.h"

#include <assert.h>
#include <cblas.h>
#include <stdio.h>
#include <string.h>

enum {
    TILE_PIXELS,  /* output pixels (of n * out_h * out_w, in the order of memory) in a task */
    TILE_COLUMNS, /* output channels (of one group) in a task */
};

/* Patches or outputs of one strip stay near a core's L2, however wide the image; sgemm likes multiples of PIXEL_UNIT. A
 * strip has at least as many bytes as a share of the weights that are copied for it. */
enum { STRIP_BYTES = 1 << 20, MAX_STRIP_BYTES = 8 << 20, WEIGHT_SHARE = 2 };
enum { PIXEL_UNIT = 16, FEW_PIXELS = 128, MIN_COLUMNS = 64 };

static int group_in(const struct conv_params *p)
{
    return p->in / p->groups;
}

static int group_out(const struct conv_params *p)
{
    return p->out / p->groups;
}

/* K: the length of one patch of one group. */
static int patch_size(const struct conv_params *p)
{
    return group_in(p) * p->kernel[0] * p->kernel[1];
}

/* Whether the activations can be the matrix as they lie. */
static bool is_pointwise(const struct conv_params *p)
{
    return p->kernel[0] == 1 && p->kernel[1] == 1 && p->stride[0] == 1 && p->stride[1] == 1 && !p->padding[0] &&
           !p->padding[1] && p->groups == 1;
}

static bool conv_supports(const struct conv *conv)
{
    (void)conv;
    return true;
}

/* Packed: bias[out], then weight[group][out / groups][kernel_h][kernel_w][in / groups]. */
static size_t conv_packed_bytes(const struct conv *conv)
{
    const struct conv_params *p = &conv->params;

    return ((size_t)p->out + (size_t)p->out * (size_t)patch_size(p)) * sizeof(float);
}

static void conv_pack(const struct conv *conv, const float *weight, const float *bias, void *packed)
{
    const struct conv_params *p = &conv->params;
    const size_t in = (size_t)group_in(p);
    const size_t taps = (size_t)p->kernel[0] * (size_t)p->kernel[1];
    float *to = packed;

    memcpy(to, bias, (size_t)p->out * sizeof(float));
    to += p->out;
    for (size_t o = 0; o < (size_t)p->out; o++, weight += in * taps)
        for (size_t t = 0; t < taps; t++)
            for (size_t i = 0; i < in; i++)
                *to++ = weight[i * taps + t];
}

static void conv_plan(const struct conv *conv, const struct conv_geometry *g, int threads, struct conv_work *work)
{
    const struct conv_params *p = &conv->params;
    const int all_pixels = g->n * g->out_h * g->out_w, out = group_out(p);
    const size_t patch_bytes = (size_t)patch_size(p) * sizeof(float);
    const size_t pixel_bytes = is_pointwise(p) ? (size_t)out * sizeof(float) : patch_bytes;
    size_t strip_bytes = (size_t)out * patch_bytes / WEIGHT_SHARE;
    int pixels = ceil_div(all_pixels, threads), columns = out;

    *work = (struct conv_work){0};
    strip_bytes = strip_bytes < STRIP_BYTES       ? STRIP_BYTES
                  : strip_bytes > MAX_STRIP_BYTES ? MAX_STRIP_BYTES
                                                  : strip_bytes;
    if (strip_bytes / pixel_bytes < (size_t)pixels) {
        const int most = (int)(strip_bytes / pixel_bytes);
        const int strips = ceil_div(pixels, most < PIXEL_UNIT ? PIXEL_UNIT : most);
        pixels = ceil_div(ceil_div(pixels, strips), PIXEL_UNIT) * PIXEL_UNIT;
    }
    /* Few pixels to a strip: give the threads whole columns instead, so that the weights are read once. */
    if (threads > 1 && pixels < FEW_PIXELS && out >= threads * MIN_COLUMNS) {
        columns = ceil_div(ceil_div(out, threads), 16) * 16;
        pixels = is_pointwise(p) ? all_pixels : min_int(all_pixels, pixels * threads);
    }
    work->tile[TILE_PIXELS] = pixels;
    work->tile[TILE_COLUMNS] = columns;
    work->tasks = ceil_div(all_pixels, pixels) * p->groups * ceil_div(out, columns);
    work->scratch_bytes = is_pointwise(p) ? 0 : (size_t)pixels * patch_bytes;
}

/* Copy `columns` columns of the kernel, `step` floats from one to the next in the image, `in` floats each. */
static void gather_run(const float *from, size_t step, size_t in, int columns, float *to)
{
    if (step == in) {
        memcpy(to, from, (size_t)columns * in * sizeof(float));
        return;
    }
    for (int i = 0; i < columns; i++, from += step, to += in)
        memcpy(to, from, in * sizeof(float));
}

/* Gather the patches of output pixels [pixel, pixel + pixels) of one group: to[pixels, K]. */
static void gather_patches(const struct conv_params *p, const struct conv_geometry *g, const float *input, int group,
                           int pixel, int pixels, float *to)
{
    const size_t in = (size_t)group_in(p), column = (size_t)p->in, row = (size_t)g->in_w * column;
    const size_t kernel_row = (size_t)p->kernel[1] * in;
    const int dx = p->dilation[1];

    int x = pixel % g->out_w, y = pixel / g->out_w % g->out_h, n = pixel / g->out_w / g->out_h;

    for (; pixels > 0; pixels--) {
        const float *image = input + (size_t)n * (size_t)g->in_h * row + (size_t)group * in;
        /* Columns [left, right) of the kernel are inside. */
        const int in_x = x * p->stride[1] - p->padding[1];
        const int left = min_int(p->kernel[1], in_x < 0 ? ceil_div(-in_x, dx) : 0);
        const int inside = in_x < g->in_w ? min_int(p->kernel[1], ceil_div(g->in_w - in_x, dx)) : 0;
        const int right = inside < left ? left : inside;
        for (int ky = 0; ky < p->kernel[0]; ky++, to += kernel_row) {
            const int in_y = y * p->stride[0] - p->padding[0] + ky * p->dilation[0];
            if (in_y < 0 || in_y >= g->in_h || left == right) {
                memset(to, 0, kernel_row * sizeof(float));
                continue;
            }
            if (left)
                memset(to, 0, (size_t)left * in * sizeof(float));
            gather_run(image + (size_t)in_y * row + (size_t)(in_x + left * dx) * column, (size_t)dx * column, in,
                       right - left, to + (size_t)left * in);
            if (right < p->kernel[1])
                memset(to + (size_t)right * in, 0, (size_t)(p->kernel[1] - right) * in * sizeof(float));
        }
        if (++x == g->out_w) {
            x = 0;
            if (++y == g->out_h) {
                y = 0;
                n++;
            }
        }
    }
}

static void conv_run(const struct conv *conv, const struct conv_geometry *g, const struct conv_work *work,
                     const struct conv_buffers *buffers, int task, void *scratch)
{
    const struct conv_params *p = &conv->params;
    const int all_pixels = g->n * g->out_h * g->out_w, k = patch_size(p);
    const int strips = ceil_div(all_pixels, work->tile[TILE_PIXELS]);
    const int column_tasks = ceil_div(group_out(p), work->tile[TILE_COLUMNS]);
    const int pixel = task % strips * work->tile[TILE_PIXELS];
    const int column = task / strips % column_tasks * work->tile[TILE_COLUMNS];
    const int group = task / strips / column_tasks;
    const int pixels = min_int(work->tile[TILE_PIXELS], all_pixels - pixel);
    const int columns = min_int(work->tile[TILE_COLUMNS], group_out(p) - column);
    const int channel = group * group_out(p) + column;
    const size_t at = (size_t)pixel * (size_t)p->out + (size_t)channel;
    const float *bias = (const float *)buffers->packed + channel;
    const float *weight =
        (const float *)buffers->packed + p->out + ((size_t)group * (size_t)group_out(p) + (size_t)column) * (size_t)k;
    const float *input = buffers->input, *residual = buffers->residual;
    float *output = (float *)buffers->output + at;
    float beta = 0.0f;
    int lda = k;

    assert(task < work->tasks);
    if (is_pointwise(p)) {
        input += (size_t)pixel * (size_t)p->in;
        lda = p->in;
    } else {
        gather_patches(p, g, input, group, pixel, pixels, scratch);
        input = scratch;
    }
    if (conv->has_residual) {
        for (int i = 0; i < pixels && residual + at != output; i++)
            memcpy(output + (size_t)i * (size_t)p->out, residual + at + (size_t)i * (size_t)p->out,
                   (size_t)columns * sizeof(float));
        beta = 1.0f;
    }
    if (pixels == 1)
        cblas_sgemv(CblasRowMajor, CblasNoTrans, columns, k, 1.0f, weight, k, input, 1, beta, output, 1);
    else
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, pixels, columns, k, 1.0f, input, lda, weight, k, beta,
                    output, p->out);
    for (int i = 0; i < pixels; i++) {
        float *out = output + (size_t)i * (size_t)p->out;
        if (conv->relu)
            for (int c = 0; c < columns; c++)
                out[c] = out[c] + bias[c] > 0.0f ? out[c] + bias[c] : 0.0f;
        else
            for (int c = 0; c < columns; c++)
                out[c] += bias[c];
    }
}

static const struct conv_kernel conv_sgemm = {
    .name = "sgemm__openblas",
    .supports = conv_supports,
    .packed_bytes = conv_packed_bytes,
    .pack = conv_pack,
    .plan = conv_plan,
    .run = conv_run,
};

/* Kernels run on several threads at once. Only OpenBLAS's pthread build takes locks around its work buffers: the
 * serial one hands the same buffer to two threads, which gives wrong products, and OpenMP's starts threads of its own
 * for every caller. */
static bool available(char *why, size_t why_size)
{
    if (openblas_get_parallel() != OPENBLAS_THREAD) {
        if (why)
            (void)snprintf(why, why_size, "this OpenBLAS is not the pthread build, so threads cannot share it");
        return false;
    }
    openblas_set_num_threads(1);
    return true;
}

static const struct conv_kernel *const convs[] = {&conv_sgemm, NULL};

const struct kernels kernels_openblas = {
    .name = "openblas",
    .precision = "fp32",
    .arithmetic = "OpenBLAS sgemm, float32",
    .activation = ACTIVATION_F32,
    .available = available,
    .convs = convs,
    .max_pool = pool_max_f32,
    .avg_pool = pool_avg_f32,
    .adaptive_avg_pool = pool_adaptive_avg_f32,
    .from_f32 = copy_from_f32,
    .to_f32 = copy_to_f32,
};
