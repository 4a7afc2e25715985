/* classify.c - one image from the bytes of its file to its most probable classes. */

#include "classify.h"

#include "clock.h"
#include "sizes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Decode `request` and find the geometry of the network's input. On success `image` is the caller's. */
static enum rn_status decode(const struct network *network, const struct classify_request *request, struct image *image,
                             enum input_size *mode, struct preprocess_geometry *geometry, struct rn_error *error)
{
    const struct image_options options = {
        .limits = {.max_pixels = request->limits.max_image_pixels,
                   .max_bytes = request->limits.max_request_bytes,
                   .deadline_ns = request->deadline_ns},
        .ignore_orientation = request->ignore_orientation,
        .channels = network->input.channels,
    };
    enum rn_status status = image_decode(request->data, request->size, &options, image, error);

    if (status)
        return status;
    *mode = request->size_given ? request->input_size : network->input.size;
    status = preprocess_plan(&network->input, *mode, request->limits.max_native_pixels, image->width, image->height,
                             geometry, error);
    if (status)
        image_free(image);
    return status;
}

static uint64_t saturating_add(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

/* `bytes` that are needed now, beside the decoded image. */
static enum rn_status check_budget(const struct classify_request *request, const struct image *image, uint64_t bytes,
                                   struct rn_error *error)
{
    const uint64_t pixels = (uint64_t)image->stride * (uint64_t)image->height;

    if (bytes > request->limits.max_request_bytes || pixels > request->limits.max_request_bytes - bytes)
        return rn_fail(error, RN_ERR_MEMORY_BUDGET,
                       "a %dx%d image needs %llu MB here, the limit for one request is %llu MB", image->width,
                       image->height, (unsigned long long)(saturating_add(bytes, pixels) >> 20),
                       (unsigned long long)(request->limits.max_request_bytes >> 20));
    return RN_OK;
}

static enum rn_status check_deadline(const struct classify_request *request, struct rn_error *error)
{
    if (request->deadline_ns && clock_now_ns() > request->deadline_ns)
        return rn_fail(error, RN_ERR_DEADLINE, "the deadline passed while the image was being prepared");
    return RN_OK;
}

enum rn_status classify_image(struct model *model, struct pass *pass, const struct classify_request *request,
                              struct classify_result *out, struct rn_error *error)
{
    const struct network *network = model_network(model);
    struct image image;
    struct preprocess_geometry geometry;
    enum input_size mode;
    uint64_t start = clock_now_ns(), now, bytes;
    enum rn_status status;

    memset(out, 0, sizeof *out);
    if ((status = decode(network, request, &image, &mode, &geometry, error)))
        return status;
    out->input_size = mode;
    now = clock_now_ns();
    out->decode_ns = now - start;
    start = now;
    out->format = image.format;
    out->width = image.file_width;
    out->height = image.file_height;
    out->orientation = image.orientation;
    out->scaled = geometry.scaled;

    if ((status = model_plan_acquire(model, 1, geometry.height, geometry.width, &out->plan, error)))
        goto fail;
    out->input = model_plan_shapes(out->plan)->input;
    bytes = saturating_add(preprocess_scratch_bytes(&geometry, image.width, image.height, image.channels),
                           model_plan_activation_bytes(out->plan) +
                               model_plan_scratch_bytes(out->plan, pass_threads(pass)));
    if ((status = check_budget(request, &image, bytes, error)) || (status = check_deadline(request, error)) ||
        (status = pass_prepare(pass, out->plan, error)) ||
        (status = preprocess_run(&network->input, &geometry, &image, pass_input(pass, out->plan), error)))
        goto fail;
    image_free(&image);
    now = clock_now_ns();
    out->preprocess_ns = now - start;
    start = now;

    if ((status = check_deadline(request, error)))
        goto fail;
    out->prediction_count = request->top_k < network->classes ? request->top_k : network->classes;
    out->logits = malloc((size_t)network->classes * sizeof *out->logits);
    out->predictions = calloc((size_t)out->prediction_count, sizeof *out->predictions);
    if (!out->logits || !out->predictions) {
        status = rn_fail_nomem(error, "an answer");
        goto fail;
    }
    model_forward(model, out->plan, pass, out->logits);
    classify_top_k(out->logits, network->classes, network->ends_in_softmax, out->prediction_count, out->predictions);
    out->inference_ns = clock_now_ns() - start;
    return RN_OK;
fail:
    image_free(&image);
    classify_result_free(model, out);
    return status;
}

enum rn_status classify_tensor(const struct network *network, const struct classify_request *request, float **tensor,
                               struct shape *shape, struct rn_error *error)
{
    struct image image;
    struct preprocess_geometry geometry;
    enum input_size mode;
    size_t count;
    enum rn_status status;

    *tensor = NULL;
    if ((status = decode(network, request, &image, &mode, &geometry, error)))
        return status;
    *shape = (struct shape){.n = 1, .c = image.channels, .h = geometry.height, .w = geometry.width};
    count = shape_elements(shape);
    if (!(status = check_budget(
              request, &image,
              saturating_add(preprocess_scratch_bytes(&geometry, image.width, image.height, image.channels),
                             (uint64_t)count * sizeof(float)),
              error))) {
        *tensor = aligned_alloc(KERNEL_ALIGNMENT, size_round_up(count * sizeof(float), KERNEL_ALIGNMENT));
        status = *tensor ? preprocess_run(&network->input, &geometry, &image, *tensor, error)
                         : rn_fail_nomem(error, "a tensor");
    }
    image_free(&image);
    if (status) {
        free(*tensor);
        *tensor = NULL;
    }
    return status;
}

void classify_result_free(struct model *model, struct classify_result *result)
{
    if (!result)
        return;
    model_plan_release(model, result->plan);
    free(result->predictions);
    free(result->logits);
    memset(result, 0, sizeof *result);
}

void classify_top_k(const float *logits, int count, bool already_probabilities, int k, struct prediction *out)
{
    double sum = 0;
    float largest = logits[0];
    int held = 0;

    /* Insertion into a short sorted list: a class goes behind those with the same logit. */
    for (int c = 0; c < count; c++) {
        int at = held;
        largest = logits[c] > largest ? logits[c] : largest;
        if (held == k && !(logits[c] > out[k - 1].logit))
            continue;
        held += held < k;
        at = at < k ? at : k - 1;
        for (; at > 0 && logits[c] > out[at - 1].logit; at--)
            out[at] = out[at - 1];
        out[at] = (struct prediction){.class_index = c, .logit = logits[c]};
    }
    for (int c = 0; c < count; c++)
        sum += exp((double)logits[c] - (double)largest);
    for (int i = 0; i < held; i++)
        out[i].probability =
            already_probabilities ? (double)out[i].logit : exp((double)out[i].logit - (double)largest) / sum;
}
