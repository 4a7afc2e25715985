/* image_jpeg.c - JPEG through libjpeg(-turbo), to the bytes that Pillow gives.
 *
 * read header -> check limits, reserve pixels -> scanlines -> end-of-image marker
 *
 * The source suspends at the end of the data instead of inventing an end-of-image marker, so that a
 * truncated file is told from a whole one. libjpeg reports errors by longjmp to run_guarded; everything
 * that must survive it lives in struct jpeg_decoder. */

#include "image_internal.h"

#include <setjmp.h>
#include <stdio.h> /* jpeglib.h needs FILE */
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

enum {
    MAX_WARNINGS = 100, /* a few hundred bytes of damaged data can cause hundreds of thousands */
    MAX_SCANS = 100,    /* real progressive files have about ten; every scan costs a pass over the image */
    ROWS_PER_CALL = 16,
};

struct jpeg_decoder {
    struct jpeg_decompress_struct cinfo; /* client_data points back here */
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    jmp_buf jump;

    const struct image_options *options;
    struct image *image;
    uint8_t *cmyk_row;     /* width * 4, for four-component files only */
    int exif_orientation;  /* of the first Exif segment so far; 0 for none */
    enum rn_status status; /* what failed, when the guard is jumped to */
    struct rn_error *error;
};

static _Noreturn void give_up(struct jpeg_decoder *decoder, enum rn_status status)
{
    decoder->status = status;
    longjmp(decoder->jump, 1);
}

static _Noreturn void on_error(j_common_ptr cinfo)
{
    struct jpeg_decoder *decoder = cinfo->client_data;
    struct rn_error *error = decoder->error;

    switch (cinfo->err->msg_code) {
    case JERR_OUT_OF_MEMORY:
        give_up(decoder, rn_fail_nomem(error, "decoding the JPEG"));
    case JERR_NO_BACKING_STORE: /* max_memory_to_use is exhausted */
        give_up(decoder, rn_fail(error, RN_ERR_MEMORY_BUDGET, "decoding this JPEG takes more memory than the limit"));
    case JERR_IMAGE_TOO_BIG:
        give_up(decoder, rn_fail(error, RN_ERR_IMAGE_TOO_LARGE, "the JPEG has more than %ld pixels on one side",
                                 (long)JPEG_MAX_DIMENSION));
    case JERR_EMPTY_IMAGE:
        give_up(decoder, rn_fail(error, RN_ERR_IMAGE_UNSUPPORTED, "the JPEG does not declare its width and height"));
    case JERR_BAD_PRECISION:
        give_up(decoder, rn_fail(error, RN_ERR_IMAGE_UNSUPPORTED, "the JPEG does not have 8 bits per sample"));
    case JERR_SOF_UNSUPPORTED:
        give_up(decoder, rn_fail(error, RN_ERR_IMAGE_UNSUPPORTED,
                                 "the JPEG is of a kind that is not decoded, such as lossless or hierarchical"));
    case JERR_ARITH_NOTIMPL:
    case JERR_CCIR601_NOTIMPL:
    case JERR_COMPONENT_COUNT:
    case JERR_CONVERSION_NOTIMPL:
    case JERR_FRACT_SAMPLE_NOTIMPL:
    case JERR_NOT_COMPILED:
        give_up(decoder, rn_fail(error, RN_ERR_IMAGE_UNSUPPORTED,
                                 "the JPEG uses a colour layout or coding that is not supported"));
    case JERR_NO_IMAGE:
    case JERR_SOF_NO_SOS:
    case JERR_SOS_NO_SOF:
        give_up(decoder, rn_fail(error, RN_ERR_IMAGE_CORRUPT, "the JPEG contains no image"));
    default:
        give_up(decoder, rn_fail(error, RN_ERR_IMAGE_CORRUPT, "the JPEG data is corrupt"));
    }
}

/* Warnings (level below 0) are damage that libjpeg works around, as Pillow lets it; traces are ignored. */
static void on_message(j_common_ptr cinfo, int level)
{
    struct jpeg_decoder *decoder = cinfo->client_data;

    if (level < 0 && ++cinfo->err->num_warnings >= MAX_WARNINGS)
        give_up(decoder, rn_fail(decoder->error, RN_ERR_IMAGE_CORRUPT, "the JPEG data is corrupt in many places"));
}

/* Called between rows, and between rows of every scan. */
static void on_progress(j_common_ptr cinfo)
{
    struct jpeg_decoder *decoder = cinfo->client_data;

    if (decoder->cinfo.input_scan_number > MAX_SCANS)
        give_up(decoder,
                rn_fail(decoder->error, RN_ERR_IMAGE_UNSUPPORTED, "the JPEG has more than %d scans", (int)MAX_SCANS));
    enum rn_status status = image_check_deadline(&decoder->options->limits, decoder->error);
    if (status != RN_OK)
        give_up(decoder, status);
}

static _Noreturn void fail_truncated(struct jpeg_decoder *decoder)
{
    give_up(decoder, rn_fail(decoder->error, RN_ERR_IMAGE_TRUNCATED,
                             "the JPEG ends before its image does, the upload may have been cut off"));
}

static void source_nothing(j_decompress_ptr cinfo)
{
    (void)cinfo;
}

/* All of the file was in the buffer from the start: asking for more means that it is truncated. */
static boolean source_fill(j_decompress_ptr cinfo)
{
    (void)cinfo;
    return FALSE;
}

static void source_skip(j_decompress_ptr cinfo, long bytes)
{
    struct jpeg_source_mgr *source = cinfo->src;

    if (bytes <= 0)
        return;
    size_t skipped = (size_t)bytes < source->bytes_in_buffer ? (size_t)bytes : source->bytes_in_buffer;
    source->next_input_byte += skipped;
    source->bytes_in_buffer -= skipped;
    if (skipped < (size_t)bytes)
        fail_truncated(cinfo->client_data);
}

/* Look at an APP1 segment where it lies. The first that holds Exif counts; it need not be the first APP1. */
static boolean on_app1(j_decompress_ptr cinfo)
{
    static const uint8_t exif[6] = {'E', 'x', 'i', 'f', 0, 0};
    struct jpeg_decoder *decoder = cinfo->client_data;
    struct jpeg_source_mgr *source = cinfo->src;

    if (source->bytes_in_buffer < 2)
        return FALSE;
    const uint8_t *segment = source->next_input_byte;
    size_t length = (size_t)segment[0] << 8 | segment[1]; /* counts its own two bytes */
    if (length < 2)
        ERREXIT(cinfo, JERR_BAD_LENGTH);
    if (source->bytes_in_buffer < length)
        return FALSE;
    if (decoder->exif_orientation == 0 && length >= 2 + sizeof exif && memcmp(segment + 2, exif, sizeof exif) == 0)
        decoder->exif_orientation = image_exif_orientation(segment + 2 + sizeof exif, length - 2 - sizeof exif);
    source->next_input_byte += length;
    source->bytes_in_buffer -= length;
    return TRUE;
}

/* What libjpeg will allocate for this header, at most: whole-image coefficients if the file has several
 * scans, else strips of a few rows. Sides are at most 65500 and components 4, so nothing overflows. */
static uint64_t working_bytes(struct jpeg_decompress_struct *cinfo)
{
    const bool whole = jpeg_has_multiple_scans(cinfo);
    uint64_t bytes = 128 * 1024; /* tables, state, one row of output pointers */

    for (int i = 0; i < cinfo->num_components; i++) {
        const jpeg_component_info *component = &cinfo->comp_info[i];
        uint64_t h = (uint64_t)component->h_samp_factor, v = (uint64_t)component->v_samp_factor;
        uint64_t columns = (component->width_in_blocks + h - 1) / h * h; /* in blocks of 8x8 */
        uint64_t rows = (component->height_in_blocks + v - 1) / v * v;
        if (whole)
            bytes += columns * rows * DCTSIZE2 * sizeof(JCOEF) + rows * sizeof(void *);
        /* Strips: two row groups with their context, and the rows being upsampled. */
        bytes += columns * DCTSIZE * v * (DCTSIZE + 4);
        bytes += ((uint64_t)cinfo->image_width + 64) * (uint64_t)cinfo->max_v_samp_factor * 2;
    }
    return bytes + (cinfo->num_components == 4 ? (uint64_t)cinfo->image_width * 4 : 0);
}

/* One row of CMYK as Adobe's files store it (inverted) to RGB, with Pillow's rounding:
 * R = K - (255 - C) * K / 255. */
static void convert_cmyk_row(const uint8_t *cmyk, uint8_t *rgb, int width)
{
    for (int x = 0; x < width; x++, cmyk += 4, rgb += 3) {
        int k = cmyk[3];
        for (int c = 0; c < 3; c++) {
            int t = (255 - cmyk[c]) * k + 128;
            t = ((t >> 8) + t) >> 8;
            rgb[c] = (uint8_t)(k > t ? k - t : 0);
        }
    }
}

static void read_rows(struct jpeg_decoder *decoder)
{
    struct jpeg_decompress_struct *cinfo = &decoder->cinfo;
    struct image *image = decoder->image;
    JSAMPROW rows[ROWS_PER_CALL];

    while (cinfo->output_scanline < cinfo->output_height) {
        uint8_t *next = image->pixels + cinfo->output_scanline * image->stride;
        JDIMENSION wanted = 1;
        if (decoder->cmyk_row) {
            rows[0] = decoder->cmyk_row;
        } else {
            wanted = cinfo->output_height - cinfo->output_scanline;
            if (wanted > ROWS_PER_CALL)
                wanted = ROWS_PER_CALL;
            for (JDIMENSION i = 0; i < wanted; i++)
                rows[i] = next + i * image->stride;
        }
        if (jpeg_read_scanlines(cinfo, rows, wanted) == 0)
            fail_truncated(decoder);
        if (decoder->cmyk_row)
            convert_cmyk_row(decoder->cmyk_row, next, image->width);
    }
}

/* The decoding proper; leaves early through the guard. Not inlined, so that no variable of it shares a
 * frame with setjmp. */
static __attribute__((noinline)) void decode(struct jpeg_decoder *decoder, const uint8_t *data, size_t size)
{
    struct jpeg_decompress_struct *cinfo = &decoder->cinfo;
    struct image *image = decoder->image;

    jpeg_create_decompress(cinfo);
    cinfo->client_data = decoder;
    cinfo->progress = &decoder->progress;
    cinfo->src = &decoder->source;
    decoder->progress.progress_monitor = on_progress;
    decoder->source = (struct jpeg_source_mgr){
        .next_input_byte = data,
        .bytes_in_buffer = size,
        .init_source = source_nothing,
        .fill_input_buffer = source_fill,
        .skip_input_data = source_skip,
        .resync_to_restart = jpeg_resync_to_restart,
        .term_source = source_nothing,
    };
    jpeg_set_marker_processor(cinfo, JPEG_APP0 + 1, on_app1);

    if (jpeg_read_header(cinfo, TRUE) == JPEG_SUSPENDED)
        fail_truncated(decoder);
    if (cinfo->num_components != 1 && cinfo->num_components != 3 && cinfo->num_components != 4)
        give_up(decoder, rn_fail(decoder->error, RN_ERR_IMAGE_UNSUPPORTED,
                                 "the JPEG has %d components, only 1, 3 and 4 are supported", cinfo->num_components));

    image->file_width = (int)cinfo->image_width;
    image->file_height = (int)cinfo->image_height;
    image->orientation = decoder->exif_orientation ? decoder->exif_orientation : 1;
    uint64_t bytes = working_bytes(cinfo);
    enum rn_status status = image_reserve(image, decoder->options, bytes, decoder->error);
    if (status != RN_OK)
        give_up(decoder, status);
    cinfo->mem->max_memory_to_use = (long)bytes; /* a second fence, should the estimate be wrong */

    if (cinfo->num_components == 4) {
        cinfo->out_color_space = JCS_CMYK;
        decoder->cmyk_row = malloc((size_t)image->width * 4);
        if (!decoder->cmyk_row)
            give_up(decoder, rn_fail_nomem(decoder->error, "decoding the JPEG"));
    } else {
        cinfo->out_color_space = JCS_RGB;
    }
    if (!jpeg_start_decompress(cinfo))
        fail_truncated(decoder);
    read_rows(decoder);
    /* Reads on to the end-of-image marker; without it the file was cut off, though every row is there. */
    if (!jpeg_finish_decompress(cinfo))
        fail_truncated(decoder);
}

static enum rn_status run_guarded(struct jpeg_decoder *decoder, const uint8_t *data, size_t size)
{
    if (setjmp(decoder->jump) == 0)
        decode(decoder, data, size);
    return decoder->status;
}

enum rn_status image_jpeg_decode(const uint8_t *data, size_t size, const struct image_options *options,
                                 struct image *out, struct rn_error *error)
{
    struct jpeg_decoder decoder = {.options = options, .image = out, .error = error, .status = RN_OK};

    decoder.cinfo.err = jpeg_std_error(&decoder.errors);
    decoder.cinfo.client_data = &decoder;
    decoder.errors.error_exit = on_error;
    decoder.errors.emit_message = on_message;
    enum rn_status status = run_guarded(&decoder, data, size);
    jpeg_destroy_decompress(&decoder.cinfo);
    free(decoder.cmyk_row);
    return status;
}
