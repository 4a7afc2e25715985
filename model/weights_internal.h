/* weights_internal.h - what the readers of the weights formats share.
 *
 * bytes -> weights_open_memory (weights.c) -> safetensors_read | pth_zip_read | pth_legacy_read
 *       -> weights_add for each tensor -> names sorted for weights_find
 *
 * Inside, `error` is never NULL. Byte positions in errors are offsets in the file. */

#ifndef RESNETD_MODEL_WEIGHTS_INTERNAL_H
#define RESNETD_MODEL_WEIGHTS_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"
#include "weights.h"

enum { WEIGHTS_MAX_TENSORS = 100000, WEIGHTS_MAX_NAME = 512 };

/* Memory that is freed all at once and never exceeds `limit` bytes. */
struct weights_arena {
    struct weights_block *blocks;
    size_t limit, total;
};

/* `bytes` bytes, uninitialised, aligned to 16. NULL with `error` filled: RN_ERR_NOMEM, or RN_ERR_WEIGHTS when the
 * arena's limit is reached. */
RN_MUST_CHECK void *weights_alloc(struct weights_arena *arena, size_t bytes, struct rn_error *error);
void weights_arena_free(struct weights_arena *arena);

/* An element type of any of the formats. */
struct weights_type {
    const char *name;    /* safetensors' "F32" */
    const char *storage; /* PyTorch's "FloatStorage"; NULL when it has none */
    enum weights_dtype dtype;
    size_t bytes; /* of one element */
};

/* NULL for an unknown name; `length` without NUL. */
const struct weights_type *weights_type_by_name(const char *name, size_t length);
const struct weights_type *weights_type_by_storage(const char *name, size_t length);

struct weights {
    const uint8_t *data; /* the whole file */
    size_t size;
    bool mapped; /* else borrowed, from weights_open_memory */
    const char *format;
    struct weights_tensor *tensors; /* [count], in the file's order */
    size_t count, capacity;
    const struct weights_tensor **by_name; /* [count], sorted */
    struct weights_arena names;
    struct weights_arena copies; /* tensors that are not contiguous in the file */
    struct digest *digest;
};

/* weights_open for a file that is already in memory; `data` must outlive the struct weights.
 * The errors have no path in front. */
RN_MUST_CHECK enum rn_status weights_open_memory(const uint8_t *data, size_t size, struct weights **out,
                                                 struct rn_error *error);

/* The product of a shape; false when a size is negative or the product, or its bytes, do not fit. */
RN_MUST_CHECK bool weights_shape_elements(int dims, const int64_t *shape, const struct weights_type *type,
                                          size_t *elements);

/* Append a tensor: `data` holds the shape's elements, contiguous (NULL: the caller sets it afterwards). The name is
 * copied; one that is empty, too long or not printable is refused. `at` is the file's offset to blame. */
RN_MUST_CHECK enum rn_status weights_add(struct weights *weights, const char *name, size_t name_length,
                                         const struct weights_type *type, int dims, const int64_t *shape,
                                         const uint8_t *data, size_t at, struct rn_error *error);

/* Each fills `weights` from weights->data; the file begins as the format does. */
RN_MUST_CHECK enum rn_status safetensors_read(struct weights *weights, struct rn_error *error);
RN_MUST_CHECK enum rn_status pth_zip_read(struct weights *weights, struct rn_error *error);
RN_MUST_CHECK enum rn_status pth_legacy_read(struct weights *weights, struct rn_error *error);

static inline uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t load_u32(const uint8_t *p)
{
    return (uint32_t)load_u16(p) | (uint32_t)load_u16(p + 2) << 16;
}

static inline uint64_t load_u64(const uint8_t *p)
{
    return (uint64_t)load_u32(p) | (uint64_t)load_u32(p + 4) << 32;
}

#endif
