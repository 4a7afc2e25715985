/* preprocess.c - from 8-bit pixels to the network's float input, row by row.
 *
 * source rows -> [horizontal pass -> ring of rows] -> [vertical pass -> one row] -> table -> floats
 *
 * Only the rows and columns of the output window are computed, and only as many intermediate rows are
 * held as one output row needs: memory does not grow with the size of the scaled image, and the data
 * stays in cache from pass to pass. A pass whose size does not change is skipped. */

#include "preprocess.h"

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "resample.h"
#include "sizes.h"

static const char *const size_names[] = {
    [INPUT_SIZE_NATIVE] = "native", [INPUT_SIZE_FIT] = "fit", [INPUT_SIZE_CROP] = "crop"};

bool input_size_parse(const char *text, enum input_size *out)
{
    for (size_t i = 0; i < sizeof size_names / sizeof *size_names; i++) {
        if (strcmp(text, size_names[i]) == 0) {
            *out = (enum input_size)i;
            return true;
        }
    }
    return false;
}

const char *input_size_name(enum input_size size)
{
    return size_names[size];
}

/* floor(sqrt(n)): the double may be off by one either way. */
static uint64_t integer_sqrt(uint64_t n)
{
    uint64_t root = (uint64_t)sqrt((double)n);

    while (root > 0 && root > n / root)
        root--;
    while (root + 1 <= n / (root + 1))
        root++;
    return root;
}

/* The sides of a shape scaled so that its short side is `target`. */
static void scale_short_side(int64_t target, int64_t width, int64_t height, int64_t *scaled_width,
                             int64_t *scaled_height)
{
    *scaled_width = width <= height ? target : target * width / height;
    *scaled_height = width <= height ? target * height / width : target;
}

/* The largest such sides with at most `max` pixels. */
static void scale_to_area(uint64_t max, int64_t width, int64_t height, int64_t *scaled_width, int64_t *scaled_height)
{
    int64_t shorter = width < height ? width : height, longer = width < height ? height : width;
    /* The product may need more than 64 bits. */
    uint64_t area = (uint64_t)((unsigned __int128)max * (uint64_t)shorter / (uint64_t)longer);
    int64_t target = (int64_t)integer_sqrt(area);

    if (target == 0)
        target = 1;
    scale_short_side(target, width, height, scaled_width, scaled_height);
    int64_t limit = (int64_t)(max / (uint64_t)target);
    if (*scaled_width > limit)
        *scaled_width = limit;
    if (*scaled_height > limit)
        *scaled_height = limit;
}

enum rn_status preprocess_plan(const struct input_spec *spec, enum input_size size, uint64_t max_native_pixels,
                               int width, int height, struct preprocess_geometry *out, struct rn_error *error)
{
    int64_t scaled_width = width, scaled_height = height;
    bool scaled = false;

    assert(width >= 1 && height >= 1);
    if (size != INPUT_SIZE_NATIVE)
        scale_short_side(size == INPUT_SIZE_CROP ? spec->resize : spec->fit, width, height, &scaled_width,
                         &scaled_height);
    if (size != INPUT_SIZE_CROP) {
        uint64_t max = max_native_pixels > 0 ? max_native_pixels : 1;
        /* Sides below 2^31 times a fit below 2^31: each fits 63 bits, the product may not. */
        if ((uint64_t)scaled_width > max / (uint64_t)scaled_height) {
            scale_to_area(max, width, height, &scaled_width, &scaled_height);
            scaled = true;
        }
    }
    if (scaled_width > INT_MAX || scaled_height > INT_MAX)
        return rn_fail(error, RN_ERR_IMAGE_TOO_LARGE, "an image of %dx%d is too long and thin to be scaled", width,
                       height);

    *out = (struct preprocess_geometry){
        .resized_width = (int)scaled_width,
        .resized_height = (int)scaled_height,
        .width = (int)scaled_width,
        .height = (int)scaled_height,
        .scaled = scaled,
    };
    if (size == INPUT_SIZE_CROP) {
        if (spec->crop > out->resized_width || spec->crop > out->resized_height)
            return rn_fail(error, RN_ERR_INPUT_SIZE, "a crop of %dx%d does not fit an image scaled to %dx%d",
                           spec->crop, spec->crop, out->resized_width, out->resized_height);
        /* Half to even, as Python's round. */
        out->left = (int)rint((out->resized_width - spec->crop) / 2.0);
        out->top = (int)rint((out->resized_height - spec->crop) / 2.0);
        out->width = out->height = spec->crop;
    }
    return RN_OK;
}

/* How the scratch memory is divided, in this order; every part a multiple of 64 bytes. */
struct layout {
    bool horizontal, vertical;               /* which passes there are */
    int ring_rows;                           /* rows of the horizontal pass that are held */
    uint64_t horizontal_axis, vertical_axis; /* weights */
    uint64_t pointers;                       /* the rows that one vertical sum reads */
    uint64_t row;                            /* one row of output bytes */
    uint64_t ring;                           /* ring_rows of them */
    uint64_t source_row;                     /* a copy of a source row that can be read past its end */
    uint64_t total;                          /* UINT64_MAX when it does not fit */
};

static void add_part(struct layout *layout, uint64_t *part, uint64_t bytes)
{
    *part = (bytes + 63) & ~(uint64_t)63;
    if (bytes > UINT64_MAX / 2 || __builtin_add_overflow(layout->total, *part, &layout->total))
        layout->total = UINT64_MAX;
}

static void plan_layout(const struct preprocess_geometry *g, int width, int height, int channels, struct layout *out)
{
    *out = (struct layout){.horizontal = g->resized_width != width, .vertical = g->resized_height != height};

    uint64_t taps = 1;
    if (out->horizontal)
        add_part(out, &out->horizontal_axis, resample_axis_bytes(width, g->resized_width, g->width));
    if (out->vertical) {
        add_part(out, &out->vertical_axis, resample_axis_bytes(height, g->resized_height, g->height));
        taps = resample_stride(height, g->resized_height);
    }
    add_part(out, &out->pointers, taps * sizeof(uint8_t *));
    add_part(out, &out->row, (uint64_t)g->width * (uint64_t)channels + 1);
    if (out->horizontal) {
        uint64_t rows = taps + RESAMPLE_BATCH, ring;
        out->ring_rows = rows > INT_MAX ? INT_MAX : (int)rows;
        if (__builtin_mul_overflow(rows, out->row, &ring))
            ring = UINT64_MAX;
        add_part(out, &out->ring, ring);
        add_part(out, &out->source_row, (uint64_t)width * (uint64_t)channels + RESAMPLE_OVERREAD);
    }
}

uint64_t preprocess_scratch_bytes(const struct preprocess_geometry *geometry, int width, int height, int channels)
{
    struct layout layout;

    plan_layout(geometry, width, height, channels, &layout);
    return layout.total;
}

/* The horizontal pass, a few rows ahead of the vertical one. */
struct ring {
    const struct resample_kernels *kernels;
    const struct resample_axis *axis;
    const struct image *image;
    uint8_t *rows, *source_row;
    size_t row_bytes;
    int capacity;
    int filled, end; /* source rows before `filled` are done; those from `end` on are not needed */
};

static uint8_t *ring_row(const struct ring *ring, int y)
{
    return ring->rows + (size_t)(y % ring->capacity) * ring->row_bytes;
}

/* Compute the rows before `until`, and up to RESAMPLE_BATCH - 1 more, since rows are cheaper together. */
static void ring_fill(struct ring *ring, int until)
{
    const struct image *image = ring->image;
    const uint8_t *from[RESAMPLE_BATCH];
    uint8_t *to[RESAMPLE_BATCH];

    while (ring->filled < until) {
        int rows = 0;
        for (; rows < RESAMPLE_BATCH && ring->filled + rows < ring->end; rows++) {
            int y = ring->filled + rows;
            from[rows] = image->pixels + (size_t)y * image->stride;
            to[rows] = ring_row(ring, y);
            /* The last rows of the image must not be read past their end: those go through a copy, singly. */
            if ((size_t)(image->height - 1 - y) * image->stride < RESAMPLE_OVERREAD) {
                if (rows == 0) {
                    memcpy(ring->source_row, from[0], (size_t)image->width * (size_t)image->channels);
                    from[rows++] = ring->source_row;
                }
                break;
            }
        }
        ring->kernels->horizontal(ring->axis, image->channels, rows, from, to);
        ring->filled += rows;
    }
}

/* v -> ((float)v / 255 - mean) / std for every channel and byte: exact, being the same float operations. */
static void fill_table(const struct input_spec *spec, float table[3][256])
{
    for (int c = 0; c < spec->channels; c++)
        for (int v = 0; v < 256; v++)
            table[c][v] = ((float)v / 255.0f - spec->mean[c]) / spec->std[c];
}

static void normalise_row(float table[3][256], int channels, const uint8_t *row, int width, float *out)
{
    if (channels == 1) {
        for (int x = 0; x < width; x++)
            out[x] = table[0][row[x]];
        return;
    }
    for (int x = 0; x < width; x++, row += 3, out += 3) {
        out[0] = table[0][row[0]];
        out[1] = table[1][row[1]];
        out[2] = table[2][row[2]];
    }
}

enum rn_status preprocess_run(const struct input_spec *spec, const struct preprocess_geometry *geometry,
                              const struct image *image, float *out, struct rn_error *error)
{
    const size_t channels = (size_t)spec->channels, row_bytes = (size_t)geometry->width * channels;
    const struct resample_kernels *kernels = resample_best();
    struct resample_axis horizontal, vertical;
    struct layout layout;
    float table[3][256];

    assert(image->channels == spec->channels);
    plan_layout(geometry, image->width, image->height, image->channels, &layout);
    uint8_t *scratch = layout.total < SIZE_MAX ? aligned_alloc(64, (size_t)layout.total) : NULL;
    if (!scratch)
        return rn_fail_nomem(error, "resizing the image");

    uint8_t *part = scratch;
    if (layout.horizontal)
        resample_axis_init(&horizontal, image->width, geometry->resized_width, geometry->left, geometry->width, part);
    part += layout.horizontal_axis;
    if (layout.vertical)
        resample_axis_init(&vertical, image->height, geometry->resized_height, geometry->top, geometry->height, part);
    part += layout.vertical_axis;
    const uint8_t **rows = (const uint8_t **)(void *)part;
    part += layout.pointers;
    uint8_t *line = part;
    part += layout.row;

    const int last = geometry->height - 1;
    struct ring ring = {
        .kernels = kernels,
        .axis = &horizontal,
        .image = image,
        .rows = part,
        .source_row = part + layout.ring,
        .row_bytes = (size_t)layout.row,
        .capacity = layout.ring_rows,
        .filled = layout.vertical ? vertical.start[0] : geometry->top,
        .end = layout.vertical ? vertical.start[last] + vertical.length[last] : geometry->top + geometry->height,
    };

    fill_table(spec, table);
    for (int y = 0; y < geometry->height; y++, out += row_bytes) {
        int start = layout.vertical ? vertical.start[y] : geometry->top + y;
        int length = layout.vertical ? vertical.length[y] : 1;
        if (layout.horizontal)
            ring_fill(&ring, start + length);
        for (int k = 0; k < length; k++)
            rows[k] = layout.horizontal
                          ? ring_row(&ring, start + k)
                          : image->pixels + (size_t)(start + k) * image->stride + (size_t)geometry->left * channels;
        if (layout.vertical)
            kernels->vertical(rows, vertical.weights + (size_t)y * vertical.stride, length, line, row_bytes);
        normalise_row(table, spec->channels, layout.vertical ? line : rows[0], geometry->width, out);
    }
    free(scratch);
    return RN_OK;
}
