/* test_image.c - decoding: what is accepted, how it is turned, what is refused and why. That the pixels are
 * Pillow's is the conformance tests' business (tests/conformance/pixels). Runs in the project's root, where
 * tests/data is. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../model/image.h"
#include "../../model/image_internal.h"
#include "fail_alloc.h"

/* Bytes that grow, up to a bound; the tests build their files in one. */
struct bytes {
    size_t size;
    uint8_t data[64 * 1024];
};

static struct bytes file; /* one test at a time */

static void put(struct bytes *to, const void *data, size_t size)
{
    assert_true(size <= sizeof to->data - to->size);
    if (size > 0)
        memcpy(to->data + to->size, data, size);
    to->size += size;
}

static void put_u32(struct bytes *to, uint32_t value)
{
    uint8_t big[4] = {(uint8_t)(value >> 24), (uint8_t)(value >> 16), (uint8_t)(value >> 8), (uint8_t)value};
    put(to, big, 4);
}

static void load(struct bytes *to, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "tests/data/images/%s", name);
    FILE *from = fopen(path, "rb");
    assert_non_null(from);
    to->size = fread(to->data, 1, sizeof to->data, from);
    fclose(from);
}

static uint32_t crc32_of(const uint8_t *data, size_t size)
{
    uint32_t crc = ~0U;
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320U : 0);
    }
    return ~crc;
}

static void put_chunk(struct bytes *to, const char *type, const void *data, size_t size)
{
    put_u32(to, (uint32_t)size);
    size_t start = to->size;
    put(to, type, 4);
    put(to, data, size);
    put_u32(to, crc32_of(to->data + start, to->size - start));
}

static const uint8_t png_signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};

static void put_png_start(struct bytes *to, uint32_t width, uint32_t height, uint8_t depth, uint8_t colour)
{
    uint8_t rest[5] = {depth, colour, 0, 0, 0};
    struct bytes *header = calloc(1, sizeof *header);
    assert_non_null(header);
    put_u32(header, width);
    put_u32(header, height);
    put(header, rest, 5);
    to->size = 0;
    put(to, png_signature, 8);
    put_chunk(to, "IHDR", header->data, header->size);
    free(header);
}

/* The image data as one stored block of deflate, then the end. */
static void put_png_rows(struct bytes *to, const uint8_t *rows, size_t size)
{
    struct bytes *data = calloc(1, sizeof *data);
    assert_non_null(data);
    uint8_t start[7] = {0x78, 0x01, 1, (uint8_t)size, (uint8_t)(size >> 8), (uint8_t)~size, (uint8_t)(~size >> 8)};
    uint32_t a = 1, b = 0;
    for (size_t i = 0; i < size; i++) {
        a = (a + rows[i]) % 65521;
        b = (b + a) % 65521;
    }
    put(data, start, sizeof start);
    put(data, rows, size);
    put_u32(data, b << 16 | a);
    put_chunk(to, "IDAT", data->data, data->size);
    put_chunk(to, "IEND", NULL, 0);
    free(data);
}

/* An EXIF block with one entry in its directory. */
static size_t make_exif(uint8_t *to, bool big, uint16_t type, uint32_t count, uint32_t value)
{
    struct bytes *block = calloc(1, sizeof *block);
    assert_non_null(block);
    uint8_t head[16] = {'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1, 0x01, 0x12, (uint8_t)(type >> 8), (uint8_t)type};
    put(block, head, 14);
    put_u32(block, count);
    put_u32(block, type == 3 && count == 1 ? value << 16 : value);
    put_u32(block, 0);
    if (!big) {
        static const uint8_t fields[][2] = {{2, 2}, {4, 4}, {8, 2}, {10, 2}, {12, 2}, {14, 4}};
        block->data[0] = block->data[1] = 'I';
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
            for (uint8_t k = 0; k < fields[i][1] / 2; k++) {
                uint8_t *p = block->data + fields[i][0] + k, *q = block->data + fields[i][0] + fields[i][1] - 1 - k;
                uint8_t t = *p;
                *p = *q;
                *q = t;
            }
        uint8_t *v = block->data + 18;
        uint8_t swapped[4] = {v[3], v[2], v[1], v[0]};
        if (type == 3 && count == 1) {
            swapped[0] = v[1];
            swapped[1] = v[0];
            swapped[2] = swapped[3] = 0;
        }
        memcpy(v, swapped, 4);
    }
    size_t size = block->size;
    memcpy(to, block->data, size);
    free(block);
    return size;
}

static const struct image_options plenty = {.limits = {.max_pixels = 1 << 24, .max_bytes = 1 << 28}, .channels = 3};

/* Decode from a block of exactly the right size, so that a sanitizer sees reads past it. */
static enum rn_status decode_with(const struct image_options *options, const uint8_t *data, size_t size,
                                  struct image *out, struct rn_error *error)
{
    uint8_t *exact = malloc(size ? size : 1);
    assert_non_null(exact);
    if (size > 0)
        memcpy(exact, data, size);
    *error = (struct rn_error){0};
    enum rn_status status = image_decode(exact, size, options, out, error);
    free(exact);
    if (status != RN_OK) {
        assert_null(out->pixels);
        assert_int_equal(out->width, 0);
        assert_int_equal(error->code, status);
        assert_true(strlen(error->text) > 10);
        assert_int_not_equal(error->text[strlen(error->text) - 1], '.');
    }
    return status;
}

static enum rn_status decode(const struct bytes *from, struct image *out)
{
    struct rn_error error;
    return decode_with(&plenty, from->data, from->size, out, &error);
}

static void assert_refused(const struct bytes *from, enum rn_status expected)
{
    struct image image;
    assert_int_equal(decode(from, &image), expected);
}

static const char *const samples[] = {
    "baseline-420.jpg",  "progressive.jpg", "grey.jpg",          "cmyk.jpg",
    "orientation-6.jpg", "three-scans.jpg", "palette-4bit.png",  "grey-1bit.png",
    "grey-alpha.png",    "interlaced.png",  "orientation-8.png", "interlaced-rgba-16bit.png",
};
enum { SAMPLES = sizeof samples / sizeof *samples };

static void test_sniff(void **state)
{
    (void)state;
    assert_int_equal(image_sniff((const uint8_t *)"\xFF\xD8\xFF", 3), IMAGE_FORMAT_JPEG);
    assert_int_equal(image_sniff((const uint8_t *)"\xFF\xD8\xFF", 2), IMAGE_FORMAT_UNKNOWN);
    assert_int_equal(image_sniff(png_signature, 8), IMAGE_FORMAT_PNG);
    assert_int_equal(image_sniff(png_signature, 7), IMAGE_FORMAT_UNKNOWN);
    assert_int_equal(image_sniff((const uint8_t *)"GIF89a......", 12), IMAGE_FORMAT_UNKNOWN);
    assert_int_equal(image_sniff(NULL, 0), IMAGE_FORMAT_UNKNOWN);
    assert_string_equal(image_format_name(IMAGE_FORMAT_JPEG), "jpeg");
    assert_string_equal(image_format_name(IMAGE_FORMAT_PNG), "png");
    assert_string_equal(image_format_name(IMAGE_FORMAT_UNKNOWN), "unknown");
}

static void test_not_an_image(void **state)
{
    (void)state;
    file.size = 0;
    assert_refused(&file, RN_ERR_EMPTY_BODY);
    put(&file, "hello, world", 12);
    assert_refused(&file, RN_ERR_NOT_AN_IMAGE);
    image_free(NULL);
    image_free(&(struct image){0});
}

static void test_samples(void **state)
{
    (void)state;
    for (size_t i = 0; i < SAMPLES; i++) {
        bool jpeg = strstr(samples[i], ".jpg") != NULL, turned = strstr(samples[i], "orientation") != NULL;
        struct image image;
        load(&file, samples[i]);
        assert_int_equal(decode(&file, &image), RN_OK);
        assert_int_equal(image.format, jpeg ? IMAGE_FORMAT_JPEG : IMAGE_FORMAT_PNG);
        assert_int_equal(image.file_width, 17);
        assert_int_equal(image.file_height, 11);
        assert_int_equal(image.width, turned ? 11 : 17);
        assert_int_equal(image.height, turned ? 17 : 11);
        assert_int_equal(image.orientation, !turned ? 1 : jpeg ? 6 : 8);
        assert_int_equal(image.channels, 3);
        assert_true(image.stride >= (size_t)image.width * 3);
        image_free(&image);
        assert_null(image.pixels);
        put(&file, "trailing bytes", 14);
        assert_int_equal(decode(&file, &image), RN_OK);
        image_free(&image);
    }
}

/* Where the stored pixel (x, y) of a width x height image belongs after orientation. */
static void place(int orientation, int width, int height, int x, int y, int *to_x, int *to_y)
{
    int right = width - 1 - x, below = height - 1 - y;
    const int table[9][2] = {{0, 0}, {x, y},     {right, y},     {right, below}, {x, below},
                             {y, x}, {below, x}, {below, right}, {y, right}};
    *to_x = table[orientation][0];
    *to_y = table[orientation][1];
}

static void test_orientations(void **state)
{
    static const int sizes[][2] = {{3, 2}, {1, 1}, {1, 5}, {5, 1}, {70, 35}};
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int orientation = 0; orientation <= 9; orientation++)
            for (int variant = 0; variant < 4; variant++) {
                const int width = sizes[s][0], height = sizes[s][1];
                const bool grey = variant & 1, ignore = variant & 2;
                const int applied = orientation < 1 || orientation > 8 || ignore ? 1 : orientation;
                uint8_t rows[35 * (1 + 70 * 3)], exif[64], *p = rows;
                for (int y = 0; y < height; y++) {
                    *p++ = 0;
                    for (int x = 0; x < width; x++, p += 3)
                        p[0] = (uint8_t)x, p[1] = (uint8_t)y, p[2] = (uint8_t)(x + y);
                }
                put_png_start(&file, (uint32_t)width, (uint32_t)height, 8, 2);
                put_chunk(&file, "eXIf", exif, make_exif(exif, variant & 1, 3, 1, (uint32_t)orientation));
                put_png_rows(&file, rows, (size_t)(p - rows));

                struct image_options options = plenty;
                options.channels = grey ? 1 : 3;
                options.ignore_orientation = ignore;
                struct image image;
                struct rn_error error;
                assert_int_equal(decode_with(&options, file.data, file.size, &image, &error), RN_OK);
                assert_int_equal(image.orientation, orientation < 1 || orientation > 8 ? 1 : orientation);
                assert_int_equal(image.channels, options.channels);
                assert_int_equal(image.width, applied >= 5 ? height : width);
                assert_int_equal(image.height, applied >= 5 ? width : height);
                for (int y = 0; y < height; y++)
                    for (int x = 0; x < width; x++) {
                        int to_x, to_y;
                        place(applied, width, height, x, y, &to_x, &to_y);
                        const uint8_t *q = image.pixels + (size_t)to_y * image.stride + (size_t)(to_x * image.channels);
                        if (grey) {
                            assert_int_equal(q[0], (x * 19595 + y * 38470 + (x + y) * 7471 + 0x8000) >> 16);
                        } else {
                            assert_int_equal(q[0], x);
                            assert_int_equal(q[1], y);
                            assert_int_equal(q[2], x + y);
                        }
                    }
                image_free(&image);
            }
}

static void test_exif(void **state)
{
    uint8_t exif[64] = {0};
    size_t size;
    (void)state;
    for (int big = 0; big <= 1; big++) {
        size = make_exif(exif, big, 3, 1, 6);
        assert_int_equal(image_exif_orientation(exif, size), 6);
        for (size_t cut = 0; cut < 22; cut++) /* the entry ends at byte 22 */
            assert_int_equal(image_exif_orientation(exif, cut), 1);
        size = make_exif(exif, big, 4, 1, 8); /* LONG */
        assert_int_equal(image_exif_orientation(exif, size), 8);
        size = make_exif(exif, big, 4, 1, 0x10006);
        assert_int_equal(image_exif_orientation(exif, size), 1);
        size = make_exif(exif, big, 3, 0, 6);
        assert_int_equal(image_exif_orientation(exif, size), 1);
        size = make_exif(exif, big, 2, 1, 6); /* text */
        assert_int_equal(image_exif_orientation(exif, size), 1);
        size = make_exif(exif, big, 4, 2, 0xFFFFFFFF); /* two values, far outside */
        assert_int_equal(image_exif_orientation(exif, size), 1);
        size = make_exif(exif, big, 4, 0xFFFFFFFF, 8);
        assert_int_equal(image_exif_orientation(exif, size), 1);
        size = make_exif(exif, big, 4, 2, 26); /* two values at the end of the block */
        memset(exif + 26, 0, 8);
        exif[big ? 29 : 26] = 5;
        assert_int_equal(image_exif_orientation(exif, 34), 5);
        assert_int_equal(image_exif_orientation(exif, 33), 1);
    }
    size = make_exif(exif, true, 3, 1, 6);
    exif[3] = 43;
    assert_int_equal(image_exif_orientation(exif, size), 1);
    make_exif(exif, true, 3, 1, 6);
    exif[4] = 0xFF; /* a directory 4 GB away */
    assert_int_equal(image_exif_orientation(exif, size), 1);
    make_exif(exif, true, 3, 1, 6);
    exif[1] = 'I';
    assert_int_equal(image_exif_orientation(exif, size), 1);
}

static void put_app1(struct bytes *to, const char *name, size_t name_size, int orientation)
{
    uint8_t exif[64];
    size_t size = make_exif(exif, true, 3, 1, (uint32_t)orientation), length = 2 + name_size + size;
    uint8_t head[4] = {0xFF, 0xE1, (uint8_t)(length >> 8), (uint8_t)length};
    put(to, head, 4);
    put(to, name, name_size);
    put(to, exif, size);
}

/* The Exif segment need not be the first APP1; the first Exif counts. */
static void test_exif_segments(void **state)
{
    struct bytes *plain = malloc(sizeof *plain);
    struct image image;
    (void)state;
    assert_non_null(plain);
    load(plain, "baseline-420.jpg");
    file.size = 0;
    put(&file, plain->data, 2);
    put_app1(&file, "http://ns.adobe.com/xap/1.0/", 29, 3);
    put_app1(&file, "Exif\0\0", 6, 8);
    put_app1(&file, "Exif\0\0", 6, 6);
    put(&file, plain->data + 2, plain->size - 2);
    assert_int_equal(decode(&file, &image), RN_OK);
    assert_int_equal(image.orientation, 8);
    assert_int_equal(image.width, 11);
    image_free(&image);

    file.size = 0; /* a segment that is too short for its own length, and one that ends after the file */
    put(&file, "\xFF\xD8\xFF\xE1\x00\x01", 6);
    assert_refused(&file, RN_ERR_IMAGE_CORRUPT);
    file.data[5] = 80;
    assert_refused(&file, RN_ERR_IMAGE_TRUNCATED);
    free(plain);
}

/* Cut anywhere, a JPEG is truncated, also without nothing but its end marker; a PNG may lack its IEND. */
static void test_truncated(void **state)
{
    (void)state;
    for (size_t i = 0; i < SAMPLES; i++) {
        bool jpeg = strstr(samples[i], ".jpg") != NULL;
        load(&file, samples[i]);
        size_t whole = file.size;
        for (file.size = jpeg ? 3 : 8; file.size < (jpeg ? whole : whole - 12); file.size++)
            assert_refused(&file, RN_ERR_IMAGE_TRUNCATED);
        for (; file.size <= whole; file.size++) {
            struct image image;
            assert_int_equal(decode(&file, &image), RN_OK);
            image_free(&image);
        }
    }
}

/* Every byte changed in turn: decoded or refused, never anything else. */
static void test_damaged(void **state)
{
    static const uint8_t flips[] = {0x01, 0x80, 0xFF};
    (void)state;
    for (size_t i = 0; i < SAMPLES; i++) {
        load(&file, samples[i]);
        for (size_t at = 0; at < file.size; at++)
            for (size_t f = 0; f < sizeof flips; f++) {
                struct image image;
                file.data[at] ^= flips[f];
                enum rn_status status = decode(&file, &image);
                assert_true(status == RN_OK || status == RN_ERR_NOT_AN_IMAGE || status == RN_ERR_IMAGE_TRUNCATED ||
                            status == RN_ERR_IMAGE_CORRUPT || status == RN_ERR_IMAGE_UNSUPPORTED ||
                            status == RN_ERR_IMAGE_TOO_LARGE || status == RN_ERR_MEMORY_BUDGET);
                image_free(&image);
                file.data[at] ^= flips[f];
            }
    }
}

/* The offset of the first marker FF `code` in the file. */
static size_t find_marker(const struct bytes *in, uint8_t code)
{
    for (size_t i = 0; i + 1 < in->size; i++)
        if (in->data[i] == 0xFF && in->data[i + 1] == code)
            return i;
    fail_msg("no marker %02x", code);
    return 0;
}

static void test_unsupported(void **state)
{
    (void)state;
    load(&file, "baseline-420.jpg");
    size_t frame = find_marker(&file, 0xC0); /* length, precision, height, width, components */
    file.data[frame + 4] = 12;
    assert_refused(&file, RN_ERR_IMAGE_UNSUPPORTED);
    file.data[frame + 4] = 8;
    file.data[frame + 1] = 0xC3; /* lossless */
    assert_refused(&file, RN_ERR_IMAGE_UNSUPPORTED);
    file.data[frame + 1] = 0xC0;
    file.data[frame + 6] = 0; /* the height comes later, in a DNL segment */
    assert_refused(&file, RN_ERR_IMAGE_UNSUPPORTED);
    memset(file.data + frame + 5, 0xFF, 4);
    assert_refused(&file, RN_ERR_IMAGE_TOO_LARGE);

    put_png_start(&file, 1, 1, 8, 2);
    memcpy(file.data + 12, "CgBI", 4);
    assert_refused(&file, RN_ERR_IMAGE_UNSUPPORTED);
}

/* Two components: a frame and a scan header of their own, the rest from a grey file. */
static void test_two_components(void **state)
{
    static const uint8_t head[] = {0xFF, 0xC0, 0,    14, 8,  0, 8, 0, 8, 2, 1, 0x11, 0, 2,    0x11,
                                   0,    0xFF, 0xDA, 0,  10, 2, 1, 0, 2, 0, 0, 63,   0, 0xFF, 0xD9};
    (void)state;
    load(&file, "grey.jpg");
    file.size = find_marker(&file, 0xC0); /* tables before the frame stay */
    put(&file, head, sizeof head);
    assert_refused(&file, RN_ERR_IMAGE_UNSUPPORTED);
}

static void test_corrupt(void **state)
{
    uint8_t rows[4] = {0, 1, 2, 3};
    (void)state;
    put_png_start(&file, 1, 1, 8, 2);
    size_t header = file.size;
    put_png_rows(&file, rows, sizeof rows);
    struct image image;
    assert_int_equal(decode(&file, &image), RN_OK);
    assert_memory_equal(image.pixels, rows + 1, 3);
    image_free(&image);
    file.data[header - 1] ^= 1; /* checksum of the header */
    assert_refused(&file, RN_ERR_IMAGE_CORRUPT);

    put_png_start(&file, 2, 2, 8, 2); /* fewer rows than the header says */
    put_png_rows(&file, rows, sizeof rows);
    assert_refused(&file, RN_ERR_IMAGE_CORRUPT);
    put_png_start(&file, 1, 1, 8, 3); /* a palette image without a palette */
    put_png_rows(&file, rows, 2);
    assert_refused(&file, RN_ERR_IMAGE_CORRUPT);
    put_png_start(&file, 0, 1, 8, 2);
    put_png_rows(&file, rows, 4);
    assert_refused(&file, RN_ERR_IMAGE_CORRUPT);

    file.size = 0;
    put(&file, "\xFF\xD8\xFF\xD9", 4);
    assert_refused(&file, RN_ERR_IMAGE_CORRUPT);
}

/* 16-bit samples keep their high byte, whatever the low one is. */
static void test_sixteen_bits(void **state)
{
    const uint8_t rows[] = {0, 0x12, 0xFF, 0xFE, 0x80, 0x00, 0xFF};
    struct image image;
    (void)state;
    put_png_start(&file, 3, 1, 16, 0);
    put_png_rows(&file, rows, sizeof rows);
    assert_int_equal(decode(&file, &image), RN_OK);
    const uint8_t expected[9] = {0x12, 0x12, 0x12, 0xFE, 0xFE, 0xFE, 0, 0, 0};
    assert_memory_equal(image.pixels, expected, 9);
    image_free(&image);
}

/* A chunk that claims gigabytes costs neither memory nor time. */
static void test_huge_chunk(void **state)
{
    static const char *const types[] = {"iTXt", "zTXt", "tEXt", "iCCP", "eXIf", "juNk", "IDAT"};
    (void)state;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        put_png_start(&file, 1, 1, 8, 2);
        put_u32(&file, 0x7FFFFFFF);
        put(&file, types[i], 4);
        put(&file, "12345678", 8);
        assert_refused(&file, RN_ERR_IMAGE_TRUNCATED);
    }
}

static void test_limits(void **state)
{
    struct image_options options = plenty;
    struct rn_error error;
    struct image image;
    (void)state;

    put_png_start(&file, 60000, 60000, 8, 6);
    assert_refused(&file, RN_ERR_IMAGE_TOO_LARGE);
    put_png_start(&file, 0x7FFFFFFF, 0x7FFFFFFF, 16, 6);
    options.limits = (struct image_limits){.max_pixels = UINT64_MAX, .max_bytes = (uint64_t)1 << 63};
    assert_int_equal(decode_with(&options, file.data, file.size, &image, &error), RN_ERR_MEMORY_BUDGET);
    options.limits.max_bytes = 1 << 30;
    put_png_start(&file, 0x7FFFFFFF, 1, 16, 6);
    assert_int_equal(decode_with(&options, file.data, file.size, &image, &error), RN_ERR_MEMORY_BUDGET);

    for (size_t i = 0; i < SAMPLES; i++) {
        load(&file, samples[i]);
        options = plenty;
        options.limits.max_pixels = 17 * 11;
        assert_int_equal(decode_with(&options, file.data, file.size, &image, &error), RN_OK);
        image_free(&image);
        options.limits.max_pixels--;
        assert_int_equal(decode_with(&options, file.data, file.size, &image, &error), RN_ERR_IMAGE_TOO_LARGE);
        assert_non_null(strstr(error.text, "17x11"));

        options = plenty;
        options.limits.max_bytes = 100000;
        assert_int_equal(decode_with(&options, file.data, file.size, &image, &error), RN_ERR_MEMORY_BUDGET);

        options = plenty;
        options.limits.deadline_ns = 1; /* long ago */
        assert_int_equal(decode_with(&options, file.data, file.size, &image, &error), RN_ERR_DEADLINE);
        options.limits.deadline_ns = UINT64_MAX;
        assert_int_equal(decode_with(&options, file.data, file.size, &image, &error), RN_OK);
        image_free(&image);
    }
}

/* Orientations that exchange the sides need the pixels twice; progressive files need their coefficients. */
static void test_budget_counts_everything(void **state)
{
    struct image_options options = plenty;
    struct rn_error error;
    struct image image;
    uint8_t exif[64];
    (void)state;

    for (int orientation = 1; orientation <= 8; orientation++) {
        put_png_start(&file, 3000, 1000, 8, 2);
        put_chunk(&file, "eXIf", exif, make_exif(exif, true, 3, 1, (uint32_t)orientation));
        options.limits.max_bytes = 12000000; /* once: 9 MB, twice: 18 MB */
        enum rn_status status = decode_with(&options, file.data, file.size, &image, &error);
        assert_int_equal(status, orientation >= 5 ? RN_ERR_MEMORY_BUDGET : RN_ERR_IMAGE_TRUNCATED);
    }

    load(&file, "baseline-420.jpg");
    size_t frame = find_marker(&file, 0xC0);
    memcpy(file.data + frame + 5, "\x03\xE8\x03\xE8", 4); /* 1000x1000: 3 MB of pixels, 3 MB of coefficients */
    options.limits.max_bytes = 4000000;
    assert_int_equal(decode_with(&options, file.data, file.size, &image, &error), RN_OK); /* damaged, decoded */
    image_free(&image);
    load(&file, "progressive.jpg");
    frame = find_marker(&file, 0xC2);
    memcpy(file.data + frame + 5, "\x03\xE8\x03\xE8", 4);
    assert_int_equal(decode_with(&options, file.data, file.size, &image, &error), RN_ERR_MEMORY_BUDGET);
}

/* The three scans over and over: each costs a pass over the image. */
static void test_scan_bomb(void **state)
{
    struct image image;
    (void)state;
    load(&file, "three-scans.jpg");
    size_t end = file.size - 2, scan = end;
    while (!(file.data[scan] == 0xFF && file.data[scan + 1] == 0xDA))
        scan--;
    size_t length = end - scan;
    file.size = end;
    for (int scans = 3; scans <= 101; scans++) {
        if (scans == 100 || scans == 101) {
            size_t size = file.size;
            put(&file, "\xFF\xD9", 2);
            if (scans == 100) {
                assert_int_equal(decode(&file, &image), RN_OK);
                image_free(&image);
            } else {
                assert_refused(&file, RN_ERR_IMAGE_UNSUPPORTED);
            }
            file.size = size;
        }
        uint8_t copy[1024];
        assert_true(length <= sizeof copy);
        memcpy(copy, file.data + scan, length);
        put(&file, copy, length);
    }
}

/* A restart marker is missing after every second block of a large image: libjpeg alone would warn a hundred
 * thousand times and decode on. */
static void test_warning_bomb(void **state)
{
    struct rn_error error;
    struct image image;
    (void)state;
    load(&file, "three-scans.jpg");
    memcpy(file.data + find_marker(&file, 0xC0) + 5, "\x10\x00\x10\x00", 4); /* 4096x4096 */
    assert_int_equal(decode_with(&plenty, file.data, file.size, &image, &error), RN_ERR_IMAGE_CORRUPT);
    assert_non_null(strstr(error.text, "many places"));
}

static void test_allocations(void **state)
{
    (void)state;
    for (size_t i = 0; i < SAMPLES; i++)
        for (int channels = 1; channels <= 3; channels += 2) {
            struct image_options options = plenty;
            options.channels = channels;
            load(&file, samples[i]);
            for (long n = 0;; n++) {
                struct rn_error error;
                struct image image;
                fail_alloc_at(n);
                enum rn_status status = image_decode(file.data, file.size, &options, &image, &error);
                bool fired = fail_alloc_fired();
                fail_alloc_at(-1);
                /* Only giving memory back may fail without a word. */
                assert_true(status == RN_OK || (fired && status == RN_ERR_NOMEM));
                if (status == RN_OK)
                    assert_int_equal(image.width * image.height, 17 * 11);
                else
                    assert_null(image.pixels);
                image_free(&image);
                if (!fired)
                    break;
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sniff),
        cmocka_unit_test(test_not_an_image),
        cmocka_unit_test(test_samples),
        cmocka_unit_test(test_orientations),
        cmocka_unit_test(test_exif),
        cmocka_unit_test(test_exif_segments),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_unsupported),
        cmocka_unit_test(test_two_components),
        cmocka_unit_test(test_corrupt),
        cmocka_unit_test(test_sixteen_bits),
        cmocka_unit_test(test_huge_chunk),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_budget_counts_everything),
        cmocka_unit_test(test_scan_bomb),
        cmocka_unit_test(test_warning_bomb),
        cmocka_unit_test(test_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
