/* image.c - which codec, how much memory, which way up.
 *
 * sniff -> codec (image_jpeg.c, image_png.c) -> [grey] -> orient */

#include "image_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sizes.h"

static const uint8_t jpeg_signature[3] = {0xFF, 0xD8, 0xFF};
static const uint8_t png_signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};

enum image_format image_sniff(const uint8_t *data, size_t size)
{
    if (size >= sizeof jpeg_signature && memcmp(data, jpeg_signature, sizeof jpeg_signature) == 0)
        return IMAGE_FORMAT_JPEG;
    if (size >= sizeof png_signature && memcmp(data, png_signature, sizeof png_signature) == 0)
        return IMAGE_FORMAT_PNG;
    return IMAGE_FORMAT_UNKNOWN;
}

const char *image_format_name(enum image_format format)
{
    switch (format) {
    case IMAGE_FORMAT_JPEG:
        return "jpeg";
    case IMAGE_FORMAT_PNG:
        return "png";
    case IMAGE_FORMAT_UNKNOWN:
        break;
    }
    return "unknown";
}

void image_free(struct image *image)
{
    if (image) {
        free(image->pixels);
        *image = (struct image){0};
    }
}

enum rn_status image_check_deadline(const struct image_limits *limits, struct rn_error *error)
{
    struct timespec now;

    if (limits->deadline_ns == 0)
        return RN_OK;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if ((uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec < limits->deadline_ns)
        return RN_OK;
    return rn_fail(error, RN_ERR_DEADLINE, "the deadline passed while the image was being decoded");
}

/* Orientations 5 to 8 exchange rows and columns, which needs a second set of pixels. */
static bool is_transposed(int orientation)
{
    return orientation >= 5;
}

static uint64_t saturating_add(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

enum rn_status image_reserve(struct image *image, const struct image_options *options, uint64_t decoder_bytes,
                             struct rn_error *error)
{
    const struct image_limits *limits = &options->limits;
    uint64_t pixels = (uint64_t)image->file_width * (uint64_t)image->file_height; /* two ints: cannot overflow */

    if (pixels > limits->max_pixels)
        return rn_fail(error, RN_ERR_IMAGE_TOO_LARGE,
                       "the image has %dx%d = %" PRIu64 " pixels, more than the limit of %" PRIu64, image->file_width,
                       image->file_height, pixels, limits->max_pixels);

    /* The codec's memory is gone when the pixels are turned: the peak is the larger of the two. */
    uint64_t bytes = pixels > UINT64_MAX / 3 ? UINT64_MAX : pixels * 3;
    bool turned = !options->ignore_orientation && is_transposed(image->orientation);
    uint64_t peak = saturating_add(bytes, turned && bytes > decoder_bytes ? bytes : decoder_bytes);
    if (peak > limits->max_bytes)
        return rn_fail(error, RN_ERR_MEMORY_BUDGET,
                       "decoding this %dx%d image takes %" PRIu64 " bytes of memory, more than the limit of %" PRIu64,
                       image->file_width, image->file_height, peak, limits->max_bytes);

    image->width = image->file_width;
    image->height = image->file_height;
    image->channels = 3;
    image->stride = (size_t)image->width * 3;
    size_t size;
    if (!size_mul(image->stride, (size_t)image->height, &size))
        return rn_fail_nomem(error, "the decoded image");
    image->pixels = malloc(size);
    return image->pixels ? RN_OK : rn_fail_nomem(error, "the decoded image");
}

/* RGB to grey in place: the same sum as Pillow's convert("L"), ITU-R 601 weights in 1/65536. A grey pixel
 * is written at or before the place where its colours stood. */
static void convert_to_grey(struct image *image)
{
    size_t pixels = (size_t)image->width * (size_t)image->height;
    const uint8_t *from = image->pixels;
    uint8_t *to = image->pixels;

    assert(image->channels == 3 && image->stride == (size_t)image->width * 3);
    for (size_t i = 0; i < pixels; i++, from += 3)
        to[i] = (uint8_t)((from[0] * 19595U + from[1] * 38470U + from[2] * 7471U + 0x8000U) >> 16);
    image->channels = 1;
    image->stride = (size_t)image->width;

    uint8_t *smaller = realloc(image->pixels, pixels);
    if (smaller)
        image->pixels = smaller;
}

static void swap_pixels(uint8_t *a, uint8_t *b, size_t channels)
{
    for (size_t c = 0; c < channels; c++) {
        uint8_t t = a[c];
        a[c] = b[c];
        b[c] = t;
    }
}

/* Reverse the order of `count` pixels in place: of a row to mirror it, of all pixels to turn by 180 degrees. */
static void reverse_pixels(uint8_t *pixels, size_t count, int channels)
{
    if (channels == 3)
        for (size_t i = 0; i < count / 2; i++)
            swap_pixels(pixels + i * 3, pixels + (count - 1 - i) * 3, 3);
    else
        for (size_t i = 0; i < count / 2; i++)
            swap_pixels(pixels + i, pixels + (count - 1 - i), 1);
}

static void flip_horizontal(struct image *image)
{
    for (int y = 0; y < image->height; y++)
        reverse_pixels(image->pixels + (size_t)y * image->stride, (size_t)image->width, image->channels);
}

static void flip_vertical(struct image *image)
{
    uint8_t chunk[4096];

    for (int y = 0; y < image->height / 2; y++) {
        uint8_t *a = image->pixels + (size_t)y * image->stride;
        uint8_t *b = image->pixels + (size_t)(image->height - 1 - y) * image->stride;
        for (size_t at = 0; at < image->stride; at += sizeof chunk) {
            size_t n = image->stride - at < sizeof chunk ? image->stride - at : sizeof chunk;
            memcpy(chunk, a + at, n);
            memcpy(a + at, b + at, n);
            memcpy(b + at, chunk, n);
        }
    }
}

/* One tile of a transposition: `count` source rows, `stride` bytes apart, become columns `step` bytes apart.
 * With a constant `channels` the copy of a pixel needs no loop. */
static inline void transpose_tile(const uint8_t *from, size_t stride, size_t columns, size_t count, size_t channels,
                                  uint8_t *to, ptrdiff_t row_step, ptrdiff_t step)
{
    for (size_t x = 0; x < columns; x++, from += channels, to += row_step) {
        const uint8_t *p = from;
        uint8_t *q = to;
        for (size_t y = 0; y < count; y++, p += stride, q += step) {
            q[0] = p[0];
            if (channels == 3) {
                q[1] = p[1];
                q[2] = p[2];
            }
        }
    }
}

/* Exchange rows and columns and then mirror as asked, in one pass: the source pixel (x, y) goes to column y
 * (from the right if flip_h) of row x (from below if flip_v). In tiles, so that both sides stay in cache. */
static enum rn_status transpose(struct image *image, bool flip_h, bool flip_v, struct rn_error *error)
{
    enum { TILE = 32 };
    const size_t channels = (size_t)image->channels, width = (size_t)image->width, height = (size_t)image->height;
    const size_t stride = height * channels; /* of the result */
    const ptrdiff_t row_step = flip_v ? -(ptrdiff_t)stride : (ptrdiff_t)stride;
    const ptrdiff_t step = flip_h ? -(ptrdiff_t)channels : (ptrdiff_t)channels;
    uint8_t *turned = malloc(stride * width); /* image_reserve counted it; not larger than the pixels */

    if (!turned)
        return rn_fail_nomem(error, "the rotated image");
    for (size_t y = 0; y < height; y += TILE) {
        size_t count = height - y < TILE ? height - y : TILE;
        for (size_t x = 0; x < width; x += TILE) {
            size_t columns = width - x < TILE ? width - x : TILE;
            const uint8_t *from = image->pixels + y * image->stride + x * channels;
            uint8_t *to = turned + (flip_v ? width - 1 - x : x) * stride + (flip_h ? height - 1 - y : y) * channels;
            if (channels == 3)
                transpose_tile(from, image->stride, columns, count, 3, to, row_step, step);
            else
                transpose_tile(from, image->stride, columns, count, 1, to, row_step, step);
        }
    }
    free(image->pixels);
    image->pixels = turned;
    image->width = (int)height;
    image->height = (int)width;
    image->stride = stride;
    return RN_OK;
}

/* The rows of a decoded image follow one another without padding. */
static enum rn_status orient(struct image *image, struct rn_error *error)
{
    switch (image->orientation) {
    case 2:
        flip_horizontal(image);
        break;
    case 3:
        reverse_pixels(image->pixels, (size_t)image->width * (size_t)image->height, image->channels);
        break;
    case 4:
        flip_vertical(image);
        break;
    case 5:
        return transpose(image, false, false, error);
    case 6:
        return transpose(image, true, false, error);
    case 7:
        return transpose(image, true, true, error);
    case 8:
        return transpose(image, false, true, error);
    default:
        break;
    }
    return RN_OK;
}

enum rn_status image_decode(const uint8_t *data, size_t size, const struct image_options *options, struct image *out,
                            struct rn_error *error)
{
    enum rn_status status;

    assert(options->channels == 1 || options->channels == 3);
    *out = (struct image){.format = image_sniff(data, size), .orientation = 1};
    if (size == 0)
        status = rn_fail(error, RN_ERR_EMPTY_BODY, "the image is empty, send the bytes of a JPEG or PNG file");
    else if (out->format == IMAGE_FORMAT_JPEG)
        status = image_jpeg_decode(data, size, options, out, error);
    else if (out->format == IMAGE_FORMAT_PNG)
        status = image_png_decode(data, size, options, out, error);
    else
        status = rn_fail(error, RN_ERR_NOT_AN_IMAGE, "the data is neither a JPEG nor a PNG file by its first bytes");

    if (status == RN_OK && options->channels == 1)
        convert_to_grey(out);
    if (status == RN_OK && !options->ignore_orientation)
        status = orient(out, error);
    if (status != RN_OK)
        image_free(out);
    return status;
}
