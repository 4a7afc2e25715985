/* image_png.c - PNG through libpng, to the bytes that Pillow gives.
 *
 * size from the header -> check limits, reserve pixels -> rows (of every pass, if interlaced)
 *
 * Alpha is dropped and nothing composited, 16-bit samples keep their high byte, colour management is
 * ignored: training saw Pillow's convert("RGB"), which does the same. Text and profile chunks are skipped
 * unread. libpng reports errors by longjmp to run_guarded; everything that must survive it lives in
 * struct png_decoder. */

#include "image_internal.h"

#include <limits.h>
#include <setjmp.h>
#include <string.h>

#include <png.h>

enum { SIGNATURE_BYTES = 8, CHUNK_HEADER_BYTES = 8, CHUNK_CRC_BYTES = 4 };

struct png_decoder {
    png_structp png;
    png_infop info;
    jmp_buf jump;

    const uint8_t *data;
    size_t size, offset; /* offset: next byte to read */
    bool cut_off;        /* the file ends inside a chunk */
    const struct image_options *options;
    struct image *image;
    enum rn_status status; /* what failed, when the guard is jumped to */
    struct rn_error *error;
};

static _Noreturn void give_up(struct png_decoder *decoder, enum rn_status status)
{
    decoder->status = status;
    longjmp(decoder->jump, 1);
}

static _Noreturn void fail_corrupt(struct png_decoder *decoder)
{
    give_up(decoder, rn_fail(decoder->error, RN_ERR_IMAGE_CORRUPT, "the PNG data is corrupt"));
}

static _Noreturn void fail_truncated(struct png_decoder *decoder)
{
    give_up(decoder, rn_fail(decoder->error, RN_ERR_IMAGE_TRUNCATED,
                             "the PNG ends before its image does, the upload may have been cut off"));
}

static _Noreturn void on_error(png_structp png, png_const_charp message)
{
    (void)message; /* the library's words are not for clients */
    fail_corrupt(png_get_error_ptr(png));
}

static void on_warning(png_structp png, png_const_charp message)
{
    (void)png;
    (void)message;
}

static void on_read(png_structp png, png_bytep to, size_t bytes)
{
    struct png_decoder *decoder = png_get_io_ptr(png);

    if (bytes > decoder->size - decoder->offset)
        fail_truncated(decoder);
    memcpy(to, decoder->data + decoder->offset, bytes);
    decoder->offset += bytes;
}

static uint32_t read_u32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Look through the chunks, without their contents, for what libpng is not asked for: the orientation in
 * eXIf, which may stand after the pixels, and whether the file ends inside a chunk. Orientation in text
 * chunks (ImageMagick's raw profiles, XMP) is not standard and stays unread. */
static void scan_chunks(struct png_decoder *decoder)
{
    const uint8_t *at = decoder->data + SIGNATURE_BYTES;
    size_t left = decoder->size - SIGNATURE_BYTES;

    decoder->image->orientation = 1;
    while (left >= CHUNK_HEADER_BYTES) {
        const uint8_t *type = at + 4;
        size_t length = read_u32(at);
        if (memcmp(type, "IEND", 4) == 0)
            return;
        at += CHUNK_HEADER_BYTES;
        left -= CHUNK_HEADER_BYTES;
        if (length > left) {
            decoder->cut_off = true;
            return;
        }
        if (memcmp(type, "eXIf", 4) == 0)
            decoder->image->orientation = image_exif_orientation(at, length);
        size_t whole = length + CHUNK_CRC_BYTES < left ? length + CHUNK_CRC_BYTES : left;
        at += whole;
        left -= whole;
    }
}

/* What libpng and zlib will allocate, at most: the inflate window and buffers, and up to three rows of at
 * most 8 bytes a pixel. */
static uint64_t working_bytes(uint32_t width)
{
    return 128 * 1024 + 3 * 8 * ((uint64_t)width + 64);
}

static void set_transforms(png_structp png, png_infop info)
{
    int colour = png_get_color_type(png, info), depth = png_get_bit_depth(png, info);

    if (colour == PNG_COLOR_TYPE_PALETTE)
        png_set_palette_to_rgb(png);
    if (colour == PNG_COLOR_TYPE_GRAY && depth < 8)
        png_set_expand_gray_1_2_4_to_8(png);
    if (depth == 16)
        png_set_strip_16(png);
    png_set_strip_alpha(png); /* also the alpha that a palette's tRNS would become */
    if (!(colour & PNG_COLOR_MASK_COLOR))
        png_set_gray_to_rgb(png);
}

/* The decoding proper; leaves early through the guard. Not inlined, so that no variable of it shares a
 * frame with setjmp. */
static __attribute__((noinline)) void decode(struct png_decoder *decoder)
{
    struct image *image = decoder->image;
    enum rn_status status;

    /* The limits are checked against the first chunk before libpng sees it: that would read every chunk up
     * to the pixels first. */
    scan_chunks(decoder);
    const uint8_t *header = decoder->data + SIGNATURE_BYTES;
    if (decoder->size < SIGNATURE_BYTES + CHUNK_HEADER_BYTES + 8)
        fail_truncated(decoder);
    uint32_t width = read_u32(header + CHUNK_HEADER_BYTES), height = read_u32(header + CHUNK_HEADER_BYTES + 4);
    if (memcmp(header + 4, "IHDR", 4) != 0 || width == 0 || height == 0 || width > INT_MAX || height > INT_MAX)
        fail_corrupt(decoder);
    image->file_width = (int)width;
    image->file_height = (int)height;
    status = image_reserve(image, decoder->options, working_bytes(width), decoder->error);
    if (status != RN_OK)
        give_up(decoder, status);

    decoder->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, decoder, on_error, on_warning);
    if (decoder->png)
        decoder->info = png_create_info_struct(decoder->png);
    if (!decoder->info)
        give_up(decoder, rn_fail_nomem(decoder->error, "decoding the PNG"));
    png_structp png = decoder->png;
    png_infop info = decoder->info;
    png_set_read_fn(png, decoder, on_read);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX); /* ours were checked */
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    /* Else the checksums stop nearly every mutant at the door. */
    png_set_crc_action(png, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
    png_set_option(png, PNG_IGNORE_ADLER32, PNG_OPTION_ON);
#endif
    png_read_info(png, info);

    set_transforms(png, info);
    int passes = png_set_interlace_handling(png);
    png_read_update_info(png, info);
    if (png_get_rowbytes(png, info) != image->stride)
        give_up(decoder, rn_fail(decoder->error, RN_ERR_INTERNAL, "the PNG decoder did not arrive at RGB"));
    for (int pass = 0; pass < passes; pass++) {
        for (int y = 0; y < image->height; y++) {
            status = image_check_deadline(&decoder->options->limits, decoder->error);
            if (status != RN_OK)
                give_up(decoder, status);
            png_read_row(png, image->pixels + (size_t)y * image->stride, NULL);
        }
    }
    /* What follows the pixels is not read. Like Pillow, take a file that lacks only its end chunk, but not
     * one that was cut inside a chunk. */
    if (decoder->cut_off)
        fail_truncated(decoder);
}

static enum rn_status run_guarded(struct png_decoder *decoder)
{
    if (setjmp(decoder->jump) == 0)
        decode(decoder);
    return decoder->status;
}

enum rn_status image_png_decode(const uint8_t *data, size_t size, const struct image_options *options,
                                struct image *out, struct rn_error *error)
{
    struct png_decoder decoder = {
        .data = data, .size = size, .options = options, .image = out, .error = error, .status = RN_OK};

    /* Apple's variant announces itself before IHDR; its deflate streams have no header. */
    if (size >= SIGNATURE_BYTES + CHUNK_HEADER_BYTES && memcmp(data + SIGNATURE_BYTES + 4, "CgBI", 4) == 0)
        return rn_fail(error, RN_ERR_IMAGE_UNSUPPORTED,
                       "the PNG is in Apple's CgBI variant, which is not supported; save it as a standard PNG");
    enum rn_status status = run_guarded(&decoder);
    png_destroy_read_struct(&decoder.png, &decoder.info, NULL);
    return status;
}
