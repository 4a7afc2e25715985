/* classify.h - the whole way of one image: bytes of a file in, top-k classes out.
 *
 * sniff -> decode -> orient -> resize/crop -> normalise -> forward -> top-k
 *
 * The server's workers and the command line call the same function. */

#ifndef RESNETD_MODEL_CLASSIFY_H
#define RESNETD_MODEL_CLASSIFY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image.h"
#include "model.h"
#include "preprocess.h"
#include "status.h"

struct classify_limits {
    uint64_t max_image_pixels;  /* of the file, before scaling */
    uint64_t max_native_pixels; /* `native` scales down above this */
    uint64_t max_request_bytes; /* decoder, pixels, activations and scratch of one image together */
};

struct classify_request {
    const uint8_t *data; /* one image file, borrowed */
    size_t size;
    bool size_given; /* `input_size` overrides the description's default */
    enum input_size input_size;
    bool ignore_orientation;
    int top_k;            /* 1 .. classes */
    uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0 for none */
    struct classify_limits limits;
};

struct prediction {
    int class_index;
    float logit;
    double probability; /* softmax over all classes, in double */
};

struct classify_result {
    enum image_format format;
    int width, height, orientation; /* as the file says */
    enum input_size input_size;     /* the mode that was used */
    bool scaled;
    struct shape input;             /* what reached the network */
    const struct model_plan *plan;  /* for the stages; released by classify_result_free */
    struct prediction *predictions; /* [prediction_count], most probable first, ties by index */
    int prediction_count;
    float *logits; /* [classes], owned */
    uint64_t decode_ns, preprocess_ns, inference_ns;
};

/* Classify one image with `pass`, which the calling thread owns.
 * On failure `out` is zeroed and the error says what the client can do: RN_ERR_EMPTY_BODY, _NOT_AN_IMAGE,
 * _IMAGE_*, _MEMORY_BUDGET, _INPUT_SIZE, _DEADLINE, _NOMEM. */
RN_MUST_CHECK enum rn_status classify_image(struct model *model, struct pass *pass,
                                            const struct classify_request *request, struct classify_result *out,
                                            struct rn_error *error);

/* The first half alone: decode and preprocess into a new float32 [1, h, w, c] buffer, which the caller frees. */
RN_MUST_CHECK enum rn_status classify_tensor(const struct network *network, const struct classify_request *request,
                                             float **tensor, struct shape *shape, struct rn_error *error);

void classify_result_free(struct model *model, struct classify_result *result);

/* The k largest of `count` logits with their softmax probabilities.
 *   out  caller-owned, k elements, most probable first, ties by index */
void classify_top_k(const float *logits, int count, bool already_probabilities, int k, struct prediction *out);

#endif
