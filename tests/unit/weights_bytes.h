/* weights_bytes.h - files for the tests of the weights readers, put together byte by byte. */

#ifndef RESNETD_TESTS_WEIGHTS_BYTES_H
#define RESNETD_TESTS_WEIGHTS_BYTES_H

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../model/weights_internal.h"

struct bytes {
    uint8_t data[16 * 1024];
    size_t size;
};

static inline void put(struct bytes *b, const void *data, size_t size)
{
    assert(size <= sizeof b->data - b->size);
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

static inline void put_text(struct bytes *b, const char *text)
{
    put(b, text, strlen(text));
}

/* The low `size` bytes of `value`, little-endian. */
static inline void put_int(struct bytes *b, uint64_t value, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)(i < 8 ? value >> 8 * i : 0);
        put(b, &byte, 1);
    }
}

static inline void set_int(struct bytes *b, size_t at, uint64_t value, size_t size)
{
    assert(at + size <= b->size);
    for (size_t i = 0; i < size; i++)
        b->data[at + i] = (uint8_t)(value >> 8 * i);
}

/* weights_open_memory on a heap copy of exactly this size, so that a sanitizer sees a read past the end.
 * The tensors are checked by reading each of them; nothing stays open. */
static inline enum rn_status open_copy(const uint8_t *data, size_t size, struct rn_error *error)
{
    struct weights *weights;
    uint8_t *copy = malloc(size ? size : 1);

    assert(copy);
    if (size)
        memcpy(copy, data, size);
    enum rn_status status = weights_open_memory(copy, size, &weights, error);
    for (size_t i = 0; status == RN_OK && i < weights_count(weights); i++) {
        const struct weights_tensor *tensor = weights_at(weights, i);
        float *values = malloc(tensor->elements * sizeof *values + 1);
        assert(values);
        (void)!weights_read_f32(weights, tensor->name, tensor->dims, tensor->shape, values, NULL);
        free(values);
    }
    assert(status == RN_OK || !weights);
    weights_close(weights);
    free(copy);
    return status;
}

/* Every proper prefix of a valid file is refused. */
static inline void check_every_cut(const uint8_t *data, size_t size)
{
    struct rn_error error;

    for (size_t cut = 0; cut < size; cut++) {
        enum rn_status status = open_copy(data, cut, &error);
        assert_int_equal(status, RN_ERR_WEIGHTS);
        assert_true(error.text[0] != '\0');
    }
    assert_int_equal(open_copy(data, size, &error), RN_OK);
}

/* A valid file with one byte changed is read or refused, never more than that. */
static inline void check_every_byte(const uint8_t *data, size_t size)
{
    static const uint8_t changes[] = {0x01, 0x80, 0xff};
    uint8_t *changed = malloc(size);

    assert(changed);
    memcpy(changed, data, size);
    for (size_t i = 0; i < size; i++) {
        for (size_t c = 0; c < sizeof changes; c++) {
            changed[i] = data[i] ^ changes[c];
            enum rn_status status = open_copy(changed, size, NULL);
            assert_true(status == RN_OK || status == RN_ERR_WEIGHTS);
        }
        changed[i] = data[i];
    }
    free(changed);
}

#endif
