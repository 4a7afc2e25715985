/* image.h - from the bytes of an image file to 8-bit pixels.
 *
 * sniff -> decode -> orient (here) -> resize, crop, normalise (preprocess.h) -> forward
 *
 * The pixels are those of Pillow's Image.open(f).convert("RGB"), turned as ImageOps.exif_transpose does. The
 * exceptions are listed file by file in tests/conformance/pixels/test_pixels.py: 16-bit grey keeps its high
 * byte; a PNG's orientation comes from eXIf alone, not from text chunks; damage is bounded. */

#ifndef RESNETD_MODEL_IMAGE_H
#define RESNETD_MODEL_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

enum image_format { IMAGE_FORMAT_UNKNOWN = 0, IMAGE_FORMAT_JPEG, IMAGE_FORMAT_PNG };

/* 8-bit pixels, channels interleaved, rows `stride` bytes apart, top row first. */
struct image {
    int width, height; /* as stored in pixels (after orientation, once that was applied) */
    int channels;      /* 3: RGB; 1: grey */
    size_t stride;     /* bytes from a row to the next, >= width * channels */
    uint8_t *pixels;   /* heap, owned by the struct; NULL when empty */
    enum image_format format;
    int file_width, file_height; /* as the file's header says, before orientation */
    int orientation;             /* EXIF tag 0x0112 of the file, 1..8; 1 when absent or invalid */
};

/* Bounds on one decode; all are checked before memory is allocated for pixels. */
struct image_limits {
    uint64_t max_pixels;  /* width * height above this: RN_ERR_IMAGE_TOO_LARGE */
    uint64_t max_bytes;   /* working memory of the decoder + pixels above this: RN_ERR_MEMORY_BUDGET */
    uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0 for none. Past it: RN_ERR_DEADLINE */
};

struct image_options {
    struct image_limits limits;
    bool ignore_orientation; /* leave the pixels as stored */
    int channels;            /* 3, or 1 to convert to grey as Pillow's convert("L") */
};

/* By the first bytes alone; IMAGE_FORMAT_UNKNOWN for anything else. */
enum image_format image_sniff(const uint8_t *data, size_t size);

/* "jpeg", "png", "unknown". */
const char *image_format_name(enum image_format format);

/* Decode one file held in memory.
 *   data, size  the whole file, borrowed for the call
 *   out         on success owned by the caller, to be freed with image_free; zeroed on failure
 * Returns RN_OK or RN_ERR_EMPTY_BODY, _NOT_AN_IMAGE, _IMAGE_TRUNCATED, _IMAGE_CORRUPT,
 * _IMAGE_UNSUPPORTED, _IMAGE_TOO_LARGE, _MEMORY_BUDGET, _DEADLINE, _NOMEM. Thread-safe. */
RN_MUST_CHECK enum rn_status image_decode(const uint8_t *data, size_t size, const struct image_options *options,
                                          struct image *out, struct rn_error *error);

/* Free the pixels and zero the struct. NULL and zeroed structs are fine. */
void image_free(struct image *image);

#endif
