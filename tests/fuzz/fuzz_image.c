/* fuzz_image.c - any bytes as an image, under small limits, and what was decoded on to the network's input.
 * The fuzzer's build ignores PNG's checksums (image_png.c). */

#include <math.h>
#include <stdlib.h>

#include "../../model/image.h"
#include "../../model/preprocess.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint64_t max_pixels = 1 << 16, max_native_pixels = 1 << 12;

static void require(bool holds)
{
    if (!holds)
        abort();
}

static void preprocess(const struct image *image, enum input_size size)
{
    const struct input_spec spec = {.channels = image->channels,
                                    .mean = {0.485f, 0.456f, 0.406f},
                                    .std = {0.229f, 0.224f, 0.225f},
                                    .resize = 40,
                                    .crop = 32,
                                    .fit = 48};
    struct preprocess_geometry geometry;
    struct rn_error error;

    if (preprocess_plan(&spec, size, max_native_pixels, image->width, image->height, &geometry, &error) != RN_OK)
        return;
    size_t floats = (size_t)geometry.width * (size_t)geometry.height * (size_t)image->channels;
    require(floats >= 1 && floats <= 3 * max_native_pixels);
    float *out = malloc(floats * sizeof *out);
    require(out && preprocess_run(&spec, &geometry, image, out, &error) == RN_OK);
    for (size_t i = 0; i < floats; i++)
        require(isfinite(out[i]));
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct image_options options = {
        .limits = {.max_pixels = max_pixels, .max_bytes = 4 << 20},
        .ignore_orientation = size % 4 == 3,
        .channels = size % 2 ? 1 : 3,
    };
    struct rn_error error = {0};
    struct image image;

    if (image_decode(data, size, &options, &image, &error) != RN_OK) {
        require(!image.pixels && error.text[0] != '\0');
        require(error.code != RN_ERR_INTERNAL);
        return 0;
    }
    require(image.width >= 1 && image.height >= 1 && image.channels == options.channels);
    require((uint64_t)image.width * (uint64_t)image.height <= max_pixels);
    for (int mode = INPUT_SIZE_NATIVE; mode <= INPUT_SIZE_CROP; mode++)
        preprocess(&image, (enum input_size)mode);
    image_free(&image);
    return 0;
}
