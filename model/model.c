/* model.c - opening a model, its plan cache, and the memory of forward passes. */

#include "model.h"

#include "forward.h"
#include "layout.h"
#include "pages.h"
#include "program.h"
#include "sizes.h"
#include "weights.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Plans kept for sizes that may come again; the least recently used one goes first. */
enum { CACHED_PLANS = 64 };

struct model_plan {
    struct plan shapes;
    struct layout layout;
    int references; /* the cache's own counts as one */
    uint64_t last_use;
    struct model_plan *next;
};

struct model {
    char *name;
    char *weights_path;
    char weights_sha256[65];
    const char *weights_format;
    struct network network;
    struct labels labels;
    struct program program;
    const struct kernels *kernels;
    int threads;
    uint64_t parameters;

    pthread_mutex_t lock; /* everything below */
    struct model_plan *plans;
    int plan_count;
    uint64_t uses;
};

struct pass {
    struct team *team; /* borrowed */
    void *memory;
    size_t bytes;
};

/* ---- opening ---- */

/* Whether a tensor of the file is a parameter of the network. Only calls own parameters. */
static bool is_parameter(const struct network *network, const char *name)
{
    static const char *const biased[] = {"weight", "bias", NULL}, *const unbiased[] = {"weight", NULL};
    static const char *const batchnorm[] = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked",
                                            NULL};
    const char *dot = strrchr(name, '.');

    if (!dot)
        return false;
    for (size_t i = 0; i < network->call_count; i++) {
        const struct call *call = &network->calls[i];
        const struct module *m = call->module;
        const char *const *field = NULL;
        if (call->kind != CALL_LEAF || strlen(call->path) != (size_t)(dot - name) ||
            strncmp(call->path, name, (size_t)(dot - name)) != 0)
            continue;
        if (m->type == MODULE_BATCHNORM2D)
            field = batchnorm;
        else if (m->type == MODULE_CONV2D || m->type == MODULE_LINEAR)
            field = (m->type == MODULE_CONV2D ? m->conv.bias : m->linear.bias) ? biased : unbiased;
        for (; field && *field; field++)
            if (strcmp(*field, dot + 1) == 0)
                return true;
    }
    return false;
}

/* As PyTorch's strict load_state_dict: a tensor that the network has no place for means that the file
 * belongs to another network. */
static enum rn_status check_no_strangers(const struct network *network, const struct weights *weights,
                                         struct rn_error *error)
{
    for (size_t i = 0; i < weights_count(weights); i++) {
        const char *name = weights_at(weights, i)->name;
        if (!is_parameter(network, name))
            return rn_fail(error, RN_ERR_WEIGHTS, "tensor %.120s is not part of network %s", name, network->name);
    }
    return RN_OK;
}

static enum rn_status load_weights(struct model *model, const char *path, struct rn_error *error)
{
    struct weights *weights;
    struct rn_error reason = {0};
    enum rn_status status = weights_open(path, &weights, error);

    if (status)
        return status;
    if (!(status = program_build(&model->network, weights, model->kernels, &model->program, &reason)) &&
        !(status = check_no_strangers(&model->network, weights, &reason))) {
        (void)snprintf(model->weights_sha256, sizeof model->weights_sha256, "%s", weights_sha256(weights));
        model->weights_format = weights_format(weights);
    }
    weights_close(weights);
    return status ? rn_fail(error, status, "%s: %s", path, reason.text) : RN_OK;
}

static enum rn_status load_labels(struct model *model, const char *path, struct rn_error *error)
{
    enum rn_status status;

    if (!path)
        return RN_OK;
    if ((status = labels_read(path, &model->labels, error)))
        return status;
    if (model->labels.count != (size_t)model->network.classes)
        return rn_fail(error, RN_ERR_DESCRIPTION, "%s: %zu labels for the %d classes of network %s", path,
                       model->labels.count, model->network.classes, model->network.name);
    return RN_OK;
}

/* Say which of several models an error is about. */
static enum rn_status name_model(const char *name, enum rn_status status, struct rn_error *error)
{
    struct rn_error reason;

    if (!name || !error)
        return status;
    reason = *error;
    return rn_fail(error, status, "model %s: %s", name, reason.text);
}

enum rn_status model_open(const struct model_options *options, struct model **out, struct rn_error *error)
{
    struct model *model = calloc(1, sizeof *model);
    enum rn_status status;

    *out = NULL;
    if (!model)
        return rn_fail_nomem(error, "a model");
    if (pthread_mutex_init(&model->lock, NULL)) {
        free(model);
        return rn_fail_nomem(error, "a model");
    }
    model->kernels = options->kernels;
    model->threads = options->threads > 0 ? options->threads : 1;
    if ((status = network_read(options->description_path, &model->network, error)))
        goto fail;
    model->name = strdup(options->name ? options->name : model->network.name);
    model->weights_path = strdup(options->weights_path);
    if (!model->name || !model->weights_path) {
        status = rn_fail_nomem(error, "a model");
        goto fail;
    }
    if ((status =
             load_labels(model, options->labels_path ? options->labels_path : model->network.labels_path, error)) ||
        (status = load_weights(model, options->weights_path, error)))
        goto fail;
    for (size_t i = 0; i < model->network.call_count; i++)
        if (model->network.calls[i].kind == CALL_LEAF)
            model->parameters += module_parameters(model->network.calls[i].module);
    *out = model;
    return RN_OK;
fail:
    status = name_model(model->name ? model->name : options->name, status, error);
    model_close(model);
    return status;
}

static void plan_destroy(struct model_plan *plan)
{
    layout_free(&plan->layout);
    plan_free(&plan->shapes);
    free(plan);
}

void model_close(struct model *model)
{
    if (!model)
        return;
    while (model->plans) {
        struct model_plan *next = model->plans->next;
        assert(model->plans->references == 1);
        plan_destroy(model->plans);
        model->plans = next;
    }
    program_free(&model->program);
    labels_free(&model->labels);
    network_free(&model->network);
    free(model->weights_path);
    free(model->name);
    (void)pthread_mutex_destroy(&model->lock);
    free(model);
}

const char *model_name(const struct model *model)
{
    return model->name;
}

const struct network *model_network(const struct model *model)
{
    return &model->network;
}

const struct labels *model_labels(const struct model *model)
{
    return &model->labels;
}

const struct kernels *model_kernels(const struct model *model)
{
    return model->kernels;
}

const char *model_weights_sha256(const struct model *model)
{
    return model->weights_sha256;
}

const char *model_weights_format(const struct model *model)
{
    return model->weights_format;
}

const char *model_weights_path(const struct model *model)
{
    return model->weights_path;
}

uint64_t model_parameters(const struct model *model)
{
    return model->parameters;
}

uint64_t model_packed_bytes(const struct model *model)
{
    return model->program.packed_bytes;
}

/* ---- plans ---- */

static enum rn_status plan_create(const struct model *model, int n, int height, int width, struct model_plan **out,
                                  struct rn_error *error)
{
    struct model_plan *plan = calloc(1, sizeof *plan);
    const struct shape *output;
    enum rn_status status;

    if (!plan)
        return rn_fail_nomem(error, "a plan");
    if ((status = plan_init(&plan->shapes, &model->network, n, height, width, error)))
        goto fail;
    output = &plan->shapes.values[model->network.output_value];
    if (output->h != 1 || output->w != 1) {
        status = rn_fail(error, RN_ERR_INPUT_SIZE, "a %dx%d input gives %dx%dx%d outputs instead of one score a class",
                         height, width, output->c, output->h, output->w);
        goto fail;
    }
    if ((status = layout_init(&plan->layout, &model->program, &plan->shapes, model->threads, error)))
        goto fail;
    *out = plan;
    return RN_OK;
fail:
    plan_destroy(plan);
    return status;
}

static struct model_plan *find_plan(struct model *model, int n, int height, int width)
{
    for (struct model_plan *plan = model->plans; plan; plan = plan->next)
        if (plan->shapes.input.n == n && plan->shapes.input.h == height && plan->shapes.input.w == width)
            return plan;
    return NULL;
}

/* Let go of the least recently used plan that nobody holds; false when all are held. */
static bool evict_plan(struct model *model)
{
    struct model_plan **oldest = NULL, *plan;

    for (struct model_plan **at = &model->plans; *at; at = &(*at)->next)
        if ((*at)->references == 1 && (!oldest || (*at)->last_use < (*oldest)->last_use))
            oldest = at;
    if (!oldest)
        return false;
    plan = *oldest;
    *oldest = plan->next;
    model->plan_count--;
    plan_destroy(plan);
    return true;
}

enum rn_status model_plan_acquire(struct model *model, int n, int height, int width, const struct model_plan **out,
                                  struct rn_error *error)
{
    struct model_plan *plan;
    enum rn_status status = RN_OK;

    *out = NULL;
    (void)pthread_mutex_lock(&model->lock);
    plan = find_plan(model, n, height, width);
    if (!plan && !(status = plan_create(model, n, height, width, &plan, error))) {
        while (model->plan_count >= CACHED_PLANS && evict_plan(model))
            continue;
        plan->references = 1;
        plan->next = model->plans;
        model->plans = plan;
        model->plan_count++;
    }
    if (plan) {
        plan->references++;
        plan->last_use = ++model->uses;
        *out = plan;
    }
    (void)pthread_mutex_unlock(&model->lock);
    return status;
}

void model_plan_release(struct model *model, const struct model_plan *plan)
{
    if (!plan)
        return;
    (void)pthread_mutex_lock(&model->lock);
    /* The plan is the model's own; the const is for its borrowers. */
    ((struct model_plan *)(uintptr_t)plan)->references--;
    (void)pthread_mutex_unlock(&model->lock);
}

const struct plan *model_plan_shapes(const struct model_plan *plan)
{
    return &plan->shapes;
}

uint64_t model_plan_activation_bytes(const struct model_plan *plan)
{
    return plan->layout.activation_bytes;
}

uint64_t model_plan_scratch_bytes(const struct model_plan *plan, int threads)
{
    return (uint64_t)plan->layout.scratch_bytes * (uint64_t)threads;
}

/* ---- passes ---- */

enum rn_status pass_create(struct team *team, struct pass **out, struct rn_error *error)
{
    struct pass *pass = calloc(1, sizeof *pass);

    *out = pass;
    if (!pass)
        return rn_fail_nomem(error, "a forward pass");
    pass->team = team;
    return RN_OK;
}

void pass_destroy(struct pass *pass)
{
    if (!pass)
        return;
    pages_free(pass->memory, pass->bytes);
    free(pass);
}

int pass_threads(const struct pass *pass)
{
    return team_threads(pass->team);
}

enum rn_status pass_prepare(struct pass *pass, const struct model_plan *plan, struct rn_error *error)
{
    const size_t bytes = plan->layout.activation_bytes + KERNEL_ALIGNMENT;

    if (bytes > pass->bytes) {
        pages_free(pass->memory, pass->bytes);
        pass->bytes = 0;
        pass->memory = pages_alloc(bytes);
        if (!pass->memory)
            return rn_fail_nomem(error, "activations");
        pass->bytes = bytes;
    }
    return team_reserve(pass->team, plan->layout.scratch_bytes, error);
}

float *pass_input(struct pass *pass, const struct model_plan *plan)
{
    return (float *)(void *)((char *)pass->memory + plan->layout.input_offset);
}

void model_forward(const struct model *model, const struct model_plan *plan, struct pass *pass, float *logits)
{
    assert(plan->layout.program == &model->program && plan->layout.activation_bytes <= pass->bytes);
    (void)model;
    forward_run(&plan->layout, pass->memory, pass->team, logits, NULL, NULL);
}

struct timed {
    void (*report)(void *arg, const char *name, const char *kernel, uint64_t multiply_adds, uint64_t nanoseconds);
    void *arg;
    const struct plan *plan;
};

static void report_op(void *arg, const struct op *op, uint64_t nanoseconds)
{
    const struct timed *timed = arg;
    const struct call *calls = timed->plan->network->calls;
    uint64_t multiply_adds = timed->plan->rows[op->call - calls].multiply_adds;

    if (op->branch >= 0)
        multiply_adds += timed->plan->rows[op->branch_call - calls].multiply_adds;
    timed->report(timed->arg, op->call->path, op->kernel ? op->kernel->name : "", multiply_adds, nanoseconds);
}

void model_forward_timed(const struct model *model, const struct model_plan *plan, struct pass *pass, float *logits,
                         void (*report)(void *arg, const char *name, const char *kernel, uint64_t multiply_adds,
                                        uint64_t nanoseconds),
                         void *arg)
{
    struct timed timed = {.report = report, .arg = arg, .plan = &plan->shapes};

    (void)model;
    forward_run(&plan->layout, pass->memory, pass->team, logits, report_op, &timed);
}
