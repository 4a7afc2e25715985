/* pixels_driver.c - decoded pixels and tensors of many files from one process, for test_pixels.py.
 *
 * Commands on stdin, one a line, fields separated by tabs:
 *     limits  MAX_PIXELS MAX_BYTES TIMEOUT_MS        for the commands that follow; 0 is no timeout
 *     decode  PATH orient|raw CHANNELS
 *     tensor  PATH native|fit|crop CHANNELS RESIZE CROP FIT MAX_NATIVE_PIXELS
 * Each decode or tensor answers one line on stdout, then the bytes that it announces:
 *     ok BYTES WIDTH HEIGHT CHANNELS ORIENTATION SCALED     uint8 rows, or float32 [H, W, C]
 *     fail STATUS TEXT */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../../model/image.h"
#include "../../../model/preprocess.h"

enum { MAX_FIELDS = 10 };

static uint64_t max_pixels = UINT64_C(1) << 28, max_bytes = UINT64_C(1) << 31, timeout_ms;

static uint64_t number(const char *text)
{
    return strtoull(text, NULL, 10);
}

static uint8_t *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    long length = -1;

    if (file && fseek(file, 0, SEEK_END) == 0 && (length = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0)
        data = malloc((size_t)length + 1);
    if (!data || fread(data, 1, (size_t)length, file) != (size_t)length) {
        fprintf(stderr, "pixels_driver: cannot read %s\n", path);
        exit(1);
    }
    fclose(file);
    *size = (size_t)length;
    return data;
}

static enum rn_status decode(const char *path, bool raw, int channels, struct image *image, struct rn_error *error)
{
    struct image_options options = {
        .limits = {.max_pixels = max_pixels, .max_bytes = max_bytes}, .ignore_orientation = raw, .channels = channels};
    size_t size;
    uint8_t *data = read_file(path, &size);

    if (timeout_ms) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        options.limits.deadline_ns = (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec + timeout_ms * 1000000U;
    }
    enum rn_status status = image_decode(data, size, &options, image, error);
    free(data);
    return status;
}

static void answer(const void *data, size_t bytes, int width, int height, const struct image *image, bool scaled)
{
    printf("ok %zu %d %d %d %d %d\n", bytes, width, height, image->channels, image->orientation, scaled);
    fwrite(data, 1, bytes, stdout);
}

static enum rn_status run_decode(char **fields, struct rn_error *error)
{
    struct image image;
    enum rn_status status = decode(fields[1], strcmp(fields[2], "raw") == 0, (int)number(fields[3]), &image, error);

    if (status == RN_OK)
        answer(image.pixels, image.stride * (size_t)image.height, image.width, image.height, &image, false);
    image_free(&image);
    return status;
}

static enum rn_status run_tensor(char **fields, struct rn_error *error)
{
    struct input_spec spec = {
        .channels = (int)number(fields[3]),
        .mean = {0.485f, 0.456f, 0.406f},
        .std = {0.229f, 0.224f, 0.225f},
        .resize = (int)number(fields[4]),
        .crop = (int)number(fields[5]),
        .fit = (int)number(fields[6]),
    };
    struct preprocess_geometry geometry;
    struct image image;
    float *tensor = NULL;

    if (!input_size_parse(fields[2], &spec.size))
        return rn_fail(error, RN_ERR_BAD_REQUEST, "no such size");
    enum rn_status status = decode(fields[1], false, spec.channels, &image, error);
    if (status == RN_OK)
        status = preprocess_plan(&spec, spec.size, number(fields[7]), image.width, image.height, &geometry, error);
    if (status == RN_OK) {
        size_t bytes = (size_t)geometry.width * (size_t)geometry.height * (size_t)spec.channels * sizeof(float);
        tensor = aligned_alloc(64, (bytes + 63) / 64 * 64);
        status = tensor ? preprocess_run(&spec, &geometry, &image, tensor, error) : rn_fail_nomem(error, "a tensor");
        if (status == RN_OK)
            answer(tensor, bytes, geometry.width, geometry.height, &image, geometry.scaled);
    }
    free(tensor);
    image_free(&image);
    return status;
}

int main(void)
{
    char line[8192];

    while (fgets(line, sizeof line, stdin)) {
        char *fields[MAX_FIELDS] = {0}, *rest = line;
        int count = 0;
        struct rn_error error = {0};
        enum rn_status status;

        line[strcspn(line, "\n")] = 0;
        while (count < MAX_FIELDS && rest)
            fields[count++] = strsep(&rest, "\t");
        if (strcmp(fields[0], "limits") == 0 && count == 4) {
            max_pixels = number(fields[1]);
            max_bytes = number(fields[2]);
            timeout_ms = number(fields[3]);
            continue;
        }
        if (strcmp(fields[0], "decode") == 0 && count == 4) {
            status = run_decode(fields, &error);
        } else if (strcmp(fields[0], "tensor") == 0 && count == 8) {
            status = run_tensor(fields, &error);
        } else {
            fprintf(stderr, "pixels_driver: bad command: %s\n", line);
            return 1;
        }
        if (status != RN_OK)
            printf("fail %d %s\n", (int)status, error.text);
        fflush(stdout);
    }
    return 0;
}
