/* layout.c - placing values and dividing work for one input size. */

#include "layout.h"

#include "sizes.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* A piece of memory with a life: written by operation `from`, last read by operation `to`. */
struct piece {
    int value; /* the root value, or -1 for the float32 input */
    int from, to;
    size_t bytes, offset;
};

static size_t value_bytes(const struct program *program, const struct plan *plan, int value)
{
    const struct kernels *kernels = program->kernels;
    const struct shape *shape = &plan->values[value];
    const size_t bytes = program->is_f32[value] ? shape_elements(shape) * sizeof(float)
                                                : activation_elements(kernels, (size_t)shape->c, shape_pixels(shape)) *
                                                      activation_bytes(kernels->activation);

    /* Kernels may read KERNEL_ALIGNMENT bytes past the end. */
    return size_round_up(bytes + KERNEL_ALIGNMENT, KERNEL_ALIGNMENT);
}

bool layout_flatten_is_free(const struct layout *layout, const struct op *op)
{
    const struct shape *in = &layout->plan->values[op->input];

    /* One channel per pixel becomes one pixel per image: the same where a pixel's channels lie together. */
    const size_t pixels = (size_t)in->h * (size_t)in->w, block = (size_t)layout->program->kernels->channel_block;
    const bool together = in->n == 1 || block == 0 || pixels % block != 0 || layout->program->is_f32[op->input];

    return in->flat || pixels == 1 || (in->c == 1 && together);
}

/* Values that are the same memory get the same root: a free Flatten, and element-wise operations that may
 * overwrite what nobody reads again. roots[v] <= v. */
static void find_roots(const struct layout *layout, int *roots, const int *last_read)
{
    const struct program *program = layout->program;

    for (int v = 0; v < program->network->value_count; v++)
        roots[v] = program->alias[v];
    for (size_t i = 0; i < program->op_count; i++) {
        const struct op *op = &program->ops[i];
        int onto = -1;

        switch (op->kind) {
        case OP_FLATTEN:
            onto = layout_flatten_is_free(layout, op) ? op->input : -1;
            break;
        case OP_CONV:
            if (op->residual >= 0 && last_read[op->residual] == (int)i)
                onto = op->residual;
            break;
        case OP_ADD:
        case OP_RELU:
        case OP_BATCHNORM:
            if (last_read[op->input] == (int)i && op->input != 0)
                onto = op->input;
            break;
        default:
            break;
        }
        if (onto >= 0 && program->is_f32[onto] == program->is_f32[op->output] && op->output != onto)
            roots[op->output] = roots[onto];
    }
}

static int piece_order(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;

    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    return x->from - y->from;
}

/* The largest first, each at the lowest offset where it meets no piece alive at the same time. */
static size_t place(struct piece *pieces, size_t count)
{
    size_t total = 0;

    qsort(pieces, count, sizeof *pieces, piece_order);
    for (size_t i = 0; i < count; i++) {
        struct piece *p = &pieces[i];
        bool moved = true;

        p->offset = 0;
        while (moved) {
            moved = false;
            for (size_t j = 0; j < i; j++) {
                const struct piece *q = &pieces[j];
                if (q->from <= p->to && p->from <= q->to && q->offset < p->offset + p->bytes &&
                    p->offset < q->offset + q->bytes) {
                    p->offset = q->offset + q->bytes;
                    moved = true;
                }
            }
        }
        if (p->offset + p->bytes > total)
            total = p->offset + p->bytes;
    }
    return total;
}

static enum rn_status place_values(struct layout *layout, struct rn_error *error)
{
    const struct program *program = layout->program;
    const int values = program->network->value_count, ops = (int)program->op_count;
    const bool convert = program->kernels->activation != ACTIVATION_F32;
    int *roots = calloc((size_t)values, sizeof *roots), *last_read = calloc((size_t)values, sizeof *last_read);
    int *from = calloc((size_t)values, sizeof *from), *to = calloc((size_t)values, sizeof *to);
    struct piece *pieces = calloc((size_t)values + 1, sizeof *pieces);
    size_t count = 0;
    enum rn_status status = RN_OK;

    if (!roots || !last_read || !from || !to || !pieces) {
        status = rn_fail_nomem(error, "a memory layout");
        goto done;
    }
    for (int v = 0; v < values; v++) {
        last_read[v] = -1;
        from[v] = ops;
        to[v] = -1;
    }
    for (int i = 0; i < ops; i++) {
        const struct op *op = &program->ops[i];
        last_read[op->input] = i;
        if (op->residual >= 0)
            last_read[op->residual] = i;
        if (op->branch >= 0)
            last_read[op->branch] = i;
    }
    last_read[program->alias[program->network->output_value]] = ops;
    find_roots(layout, roots, last_read);

    from[0] = -1; /* operation -1 writes the input */
    for (int i = 0; i < ops; i++) {
        const struct op *op = &program->ops[i];
        const int out = roots[op->output];
        from[out] = i < from[out] ? i : from[out];
        to[out] = i > to[out] ? i : to[out];
    }
    for (int v = 0; v < values; v++)
        if (last_read[v] >= 0 && last_read[v] > to[roots[v]])
            to[roots[v]] = last_read[v];
    for (int v = 0; v < values; v++)
        if (roots[v] == v && from[v] < ops) {
            size_t bytes = value_bytes(program, layout->plan, v);
            for (int w = v + 1; w < values; w++) /* a root holds the largest of its values */
                if (roots[w] == v && value_bytes(program, layout->plan, w) > bytes)
                    bytes = value_bytes(program, layout->plan, w);
            pieces[count++] = (struct piece){.value = v, .from = from[v], .to = to[v], .bytes = bytes};
        }
    if (convert)
        pieces[count++] = (struct piece){
            .value = -1,
            .from = -1,
            .to = -1,
            .bytes = size_round_up(shape_elements(&layout->plan->input) * sizeof(float) + KERNEL_ALIGNMENT,
                                   KERNEL_ALIGNMENT)};
    layout->activation_bytes = place(pieces, count);
    for (size_t i = 0; i < count; i++)
        if (pieces[i].value < 0)
            layout->input_offset = pieces[i].offset;
        else
            layout->offsets[pieces[i].value] = pieces[i].offset;
    for (int v = 0; v < values; v++)
        layout->offsets[v] = layout->offsets[roots[v]];
    if (!convert)
        layout->input_offset = layout->offsets[0];
done:
    free(pieces);
    free(to);
    free(from);
    free(last_read);
    free(roots);
    return status;
}

struct conv_geometry layout_conv_geometry(const struct plan *plan, const struct op *op)
{
    const struct shape *in = &plan->values[op->input], *out = &plan->values[op->output];
    const struct shape *branch = op->branch >= 0 ? &plan->values[op->branch] : NULL;

    return (struct conv_geometry){.n = in->n,
                                  .in_h = in->h,
                                  .in_w = in->w,
                                  .out_h = out->h,
                                  .out_w = out->w,
                                  .branch_h = branch ? branch->h : 0,
                                  .branch_w = branch ? branch->w : 0};
}

enum rn_status layout_init(struct layout *out, const struct program *program, const struct plan *plan, int threads,
                           struct rn_error *error)
{
    enum rn_status status;

    *out = (struct layout){.program = program, .plan = plan};
    out->offsets = calloc((size_t)program->network->value_count, sizeof *out->offsets);
    out->works = calloc(program->op_count, sizeof *out->works);
    if (!out->offsets || !out->works)
        status = rn_fail_nomem(error, "a memory layout");
    else
        status = place_values(out, error);
    if (status) {
        layout_free(out);
        return status;
    }
    for (size_t i = 0; i < program->op_count; i++) {
        const struct op *op = &program->ops[i];
        const struct shape *in = &plan->values[op->input], *shape = &plan->values[op->output];
        struct conv_work *work = &out->works[i];

        if (op->kind == OP_CONV) {
            const struct conv_geometry geometry = layout_conv_geometry(plan, op);
            op->kernel->plan(&op->conv, &geometry, threads, work);
            assert(work->tasks >= 1);
        } else {
            /* One task per row; element-wise work in bf16 goes through a row of float32 (two for OP_ADD). */
            work->tasks = op->kind == OP_FLATTEN ? in->n : shape->n * shape->h;
            if (program->kernels->activation != ACTIVATION_F32 || op->kind == OP_SOFTMAX)
                work->scratch_bytes = 2 * sizeof(float) * (size_t)shape->w * (size_t)shape->c;
        }
        if (work->scratch_bytes > out->scratch_bytes)
            out->scratch_bytes = work->scratch_bytes;
    }
    out->scratch_bytes = size_round_up(out->scratch_bytes + KERNEL_ALIGNMENT, KERNEL_ALIGNMENT);
    return RN_OK;
}

void layout_free(struct layout *layout)
{
    if (!layout)
        return;
    free(layout->offsets);
    free(layout->works);
    memset(layout, 0, sizeof *layout);
}
