/* model.h - a network that is ready to run: description, packed weights, labels, plans by input size.
 *
 *   model_open once -> model_plan per request -> pass_prepare -> (preprocess into pass_input) -> model_forward
 *
 * A struct model is immutable once open but for its plan cache, which is locked inside: workers share
 * it. Each worker owns one struct pass, the memory of its forward passes. */

#ifndef RESNETD_MODEL_MODEL_H
#define RESNETD_MODEL_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels.h"
#include "labels.h"
#include "network.h"
#include "plan.h"
#include "status.h"
#include "team.h"

struct model;

struct model_options {
    const char *name; /* the name it is served under; NULL: the description's */
    const char *description_path;
    const char *weights_path;
    const char *labels_path; /* NULL: the description's; without either, labels are empty */
    const struct kernels *kernels;
    int threads; /* most threads of one forward pass; plans divide work for it */
};

/* Read description, weights and labels, check each against the others, fold, pack, and let go of the
 * weights file. On failure *out is NULL and the error names the file and the tensor, key or line. */
RN_MUST_CHECK enum rn_status model_open(const struct model_options *options, struct model **out,
                                        struct rn_error *error);
void model_close(struct model *model); /* no worker may be using it; NULL is fine */

const char *model_name(const struct model *model);
const struct network *model_network(const struct model *model);
const struct labels *model_labels(const struct model *model);
const struct kernels *model_kernels(const struct model *model);
const char *model_weights_sha256(const struct model *model);
const char *model_weights_format(const struct model *model);
const char *model_weights_path(const struct model *model);
uint64_t model_parameters(const struct model *model);
uint64_t model_packed_bytes(const struct model *model); /* memory of the packed weights */

/* A plan with where everything lies in memory; reference-counted, from the model's cache. */
struct model_plan;

/* Returns RN_OK, RN_ERR_INPUT_SIZE, RN_ERR_NOMEM. Thread-safe. Pair with model_plan_release. */
RN_MUST_CHECK enum rn_status model_plan_acquire(struct model *model, int n, int height, int width,
                                                const struct model_plan **out, struct rn_error *error);
void model_plan_release(struct model *model, const struct model_plan *plan); /* NULL is fine */

const struct plan *model_plan_shapes(const struct model_plan *plan);

/* Bytes of activations (by liveness) and of scratch for `threads` threads that a pass needs. */
uint64_t model_plan_activation_bytes(const struct model_plan *plan);
uint64_t model_plan_scratch_bytes(const struct model_plan *plan, int threads);

/* The memory of one worker's forward passes; grows to the largest plan it was prepared for. */
struct pass;
RN_MUST_CHECK enum rn_status pass_create(struct team *team, struct pass **out, struct rn_error *error);
void pass_destroy(struct pass *pass);
int pass_threads(const struct pass *pass); /* of its team: each has its own scratch */

/* Make room for `plan`. RN_ERR_NOMEM leaves the pass usable for other plans. */
RN_MUST_CHECK enum rn_status pass_prepare(struct pass *pass, const struct model_plan *plan, struct rn_error *error);

/* Where the caller writes the input: float32 [n, height, width, channels], 64-byte aligned, valid until
 * the next pass_prepare. */
float *pass_input(struct pass *pass, const struct model_plan *plan);

/* Run the network on what pass_input holds. Allocates nothing and cannot fail.
 *   logits  caller-owned, float32, shape_elements of the plan's output value, NCHW order */
void model_forward(const struct model *model, const struct model_plan *plan, struct pass *pass, float *logits);

/* The same, and the nanoseconds of each operation: `report` is called once per operation, in order. */
void model_forward_timed(const struct model *model, const struct model_plan *plan, struct pass *pass, float *logits,
                         void (*report)(void *arg, const char *name, const char *kernel, uint64_t multiply_adds,
                                        uint64_t nanoseconds),
                         void *arg);

#endif
