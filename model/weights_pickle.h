/* weights_pickle.h - read a pickle of plain values and PyTorch tensors, and nothing else.
 *
 * Knows the opcodes of protocols 2 to 5 that a state dict is made of, the globals collections.OrderedDict,
 * torch._utils._rebuild_tensor(_v2), torch._utils._rebuild_parameter and torch's storage classes, and refuses the rest
 * by name and byte. Nothing is ever imported or called. Memory is bounded by the arena's limit. */

#ifndef RESNETD_MODEL_WEIGHTS_PICKLE_H
#define RESNETD_MODEL_WEIGHTS_PICKLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"
#include "weights_internal.h"

enum pickle_kind {
    PICKLE_MARK, /* on the stack only, never part of a value */
    PICKLE_NONE,
    PICKLE_BOOL,
    PICKLE_INT,
    PICKLE_LONG,  /* an integer of more than 8 bytes: `text` are its bytes, little-endian */
    PICKLE_FLOAT, /* the value is not kept */
    PICKLE_STRING,
    PICKLE_TUPLE,
    PICKLE_LIST,
    PICKLE_DICT, /* and OrderedDict */
    PICKLE_GLOBAL,
    PICKLE_STORAGE,
    PICKLE_TENSOR
};

struct pickle_value {
    enum pickle_kind kind;
    uint32_t length; /* PICKLE_STRING, PICKLE_LONG: bytes */
    union {
        int64_t integer;            /* PICKLE_INT, PICKLE_BOOL */
        const char *text;           /* PICKLE_STRING, PICKLE_LONG; borrowed from the pickle */
        struct pickle_items *items; /* PICKLE_TUPLE, PICKLE_LIST, PICKLE_DICT */
        const struct pickle_global *global;
        struct pickle_storage *storage;
        struct pickle_tensor *tensor;
    };
};

/* Shared by every reference to the object. A dict has its keys and values by turns. */
struct pickle_items {
    struct pickle_value *values;
    size_t count, capacity;
};

/* A storage that the pickle refers to; the same one may occur often, with the same key. */
struct pickle_storage {
    const char *key; /* key_length bytes, borrowed from the pickle */
    size_t key_length;
    const struct weights_type *type;
    size_t elements;
    size_t at;           /* where in the file it is referred to */
    const uint8_t *data; /* for the caller: elements * type->bytes bytes, once found; NULL before */
    struct pickle_storage *next;
};

struct pickle_tensor {
    const struct pickle_storage *storage;
    size_t at; /* where in the file it is built */
    int dims;
    uint64_t offset;                                           /* elements */
    int64_t shape[WEIGHTS_MAX_DIMS], stride[WEIGHTS_MAX_DIMS]; /* none negative */
};

struct pickle {
    const uint8_t *data;
    size_t at, end;                  /* positions in the file; `at` moves behind the pickle's STOP */
    struct weights_arena *arena;     /* where values live */
    struct pickle_storage *storages; /* every reference that was read, latest first */
    size_t storage_count;
};

/* Read one pickle from data[at .. end). Returns RN_OK with its value, or RN_ERR_WEIGHTS, RN_ERR_NOMEM. */
RN_MUST_CHECK enum rn_status pickle_read(struct pickle *pickle, struct pickle_value *out, struct rn_error *error);

/* The value of `key` in a dict, or NULL. */
const struct pickle_value *pickle_dict_get(const struct pickle_value *dict, const char *key);

#endif
