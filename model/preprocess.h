/* preprocess.h - turn a decoded image into the network's input.
 *
 * decode -> [resize, crop, normalise] -> forward
 *
 * Resizing is Pillow's antialiased bilinear resample on 8-bit channels, bit for bit; normalising is
 * torchvision's ToTensor and Normalize in float32: ((float)v / 255 - mean) / std. */

#ifndef RESNETD_MODEL_PREPROCESS_H
#define RESNETD_MODEL_PREPROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image.h"
#include "status.h"

enum input_size { INPUT_SIZE_NATIVE, INPUT_SIZE_FIT, INPUT_SIZE_CROP };

/* "native", "fit", "crop"; false when `text` is none of them. */
bool input_size_parse(const char *text, enum input_size *out);
const char *input_size_name(enum input_size size);

/* What the network expects of its input, from its description. */
struct input_spec {
    int channels; /* 1 or 3 */
    float mean[3], std[3];
    int resize;           /* `crop`: the shorter side is scaled to this... */
    int crop;             /* ...and the centre of this height and width is cut out */
    int fit;              /* `fit`: the shorter side is scaled to this */
    enum input_size size; /* the default mode */
};

/* Where every output pixel comes from: the image scaled to resized_*, then the window
 * [top, top + height) x [left, left + width) of it. */
struct preprocess_geometry {
    int resized_width, resized_height; /* equal to the image's when nothing is scaled */
    int left, top, width, height;
    bool scaled; /* the mode's own size had more than max_native_pixels, so this one was scaled down further */
};

/* The geometry for a width x height image (both >= 1). In torchvision's integer rule the long side follows
 * the short one: long' = short' * long / short, rounded down.
 *   crop     short' = spec->resize, then the centre; max_native_pixels plays no part
 *   fit      short' = spec->fit, nothing cut
 *   native   the image's own size
 * A fit or native size of more than max_native_pixels (0 counts as 1) becomes the largest that this rule
 * gives: short' = floor(sqrt(max * short / long)), at least 1, and long' at most max / short'.
 * Returns RN_OK, or RN_ERR_INPUT_SIZE when a crop is larger than the scaled image could ever be, or
 * RN_ERR_IMAGE_TOO_LARGE when the scaled sides do not fit an int. Thread-safe, allocates nothing. */
RN_MUST_CHECK enum rn_status preprocess_plan(const struct input_spec *spec, enum input_size size,
                                             uint64_t max_native_pixels, int width, int height,
                                             struct preprocess_geometry *out, struct rn_error *error);

/* Bytes of heap that preprocess_run will need for this geometry; UINT64_MAX on overflow. */
uint64_t preprocess_scratch_bytes(const struct preprocess_geometry *geometry, int width, int height, int channels);

/* Write `image` into `out` as normalised float32.
 *   image     spec->channels channels, the size that the geometry was planned for
 *   out       caller-owned, shape [geometry->height, geometry->width, channels] (NHWC with N = 1), 64-byte aligned
 * Returns RN_OK or RN_ERR_NOMEM (`out` is then undefined). Thread-safe. */
RN_MUST_CHECK enum rn_status preprocess_run(const struct input_spec *spec, const struct preprocess_geometry *geometry,
                                            const struct image *image, float *out, struct rn_error *error);

#endif
