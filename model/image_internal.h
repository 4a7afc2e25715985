/* image_internal.h - what image.c and the two codecs share.
 *
 * A codec reads its header, fills file_width, file_height and orientation, asks image_reserve for the
 * pixels, and writes 8-bit RGB rows as the file stores them. image.c does the rest: sniffing before,
 * grey and orientation after. */

#ifndef RESNETD_MODEL_IMAGE_INTERNAL_H
#define RESNETD_MODEL_IMAGE_INTERNAL_H

#include "image.h"

/* Decode into `out` (zeroed by the caller but for nothing): RGB, not yet oriented. On failure out->pixels
 * may be allocated; image_decode frees it. */
RN_MUST_CHECK enum rn_status image_jpeg_decode(const uint8_t *data, size_t size, const struct image_options *options,
                                               struct image *out, struct rn_error *error);
RN_MUST_CHECK enum rn_status image_png_decode(const uint8_t *data, size_t size, const struct image_options *options,
                                              struct image *out, struct rn_error *error);

/* Check file_width x file_height against the limits, then allocate RGB pixels of that size.
 *   decoder_bytes   what the codec will allocate besides the pixels, at most */
RN_MUST_CHECK enum rn_status image_reserve(struct image *image, const struct image_options *options,
                                           uint64_t decoder_bytes, struct rn_error *error);

/* RN_ERR_DEADLINE once limits->deadline_ns has passed. */
RN_MUST_CHECK enum rn_status image_check_deadline(const struct image_limits *limits, struct rn_error *error);

/* The orientation (tag 0x0112 of the first directory) of an EXIF block, which starts with its TIFF header;
 * 1 when it is absent or invalid, or the block is damaged before it. */
int image_exif_orientation(const uint8_t *tiff, size_t size);

#endif
