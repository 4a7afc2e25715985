/* weights.h - the tensors of a weights file: .safetensors, or a PyTorch state dict (.pth, .pt; the
 * zip format and the legacy one), read without Python.
 *
 * The file is mapped read-only; every name, shape, dtype and byte range is checked against the file's
 * size before a tensor is handed out. The pickle reader knows only what a state dict contains and
 * refuses every other opcode and global by name.
 *
 * What counts as the state dict of a .pth file: the dict of tensors under the key "state_dict",
 * "model_state_dict" or "model" of a checkpoint, else the top-level dict itself. When every name begins with
 * "module." (DataParallel), that prefix is dropped. Other values of a checkpoint (epoch, optimizer) are ignored. */

#ifndef RESNETD_MODEL_WEIGHTS_H
#define RESNETD_MODEL_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

enum weights_dtype {
    WEIGHTS_F32,
    WEIGHTS_F16,
    WEIGHTS_BF16,
    WEIGHTS_I64,  /* num_batches_tracked */
    WEIGHTS_OTHER /* any other type: listed, with its checks, but weights_read_f32 refuses it */
};

enum { WEIGHTS_MAX_DIMS = 8 };

struct weights_tensor {
    const char *name; /* as in the state dict, borrowed from the struct weights */
    enum weights_dtype dtype;
    const char *dtype_name; /* "F32", "I64", "F64", "U8", ... as safetensors calls them */
    int dims;
    int64_t shape[WEIGHTS_MAX_DIMS]; /* PyTorch's order */
    size_t elements;                 /* product of shape */
    const uint8_t *data;             /* contiguous, little-endian, perhaps unaligned; borrowed */
};

struct weights; /* opaque */

/* Map and check `path`. The format is told from the first bytes, not from the name.
 * On failure *out is NULL and the error names the file and the tensor or the byte offset: RN_ERR_IO,
 * RN_ERR_WEIGHTS, RN_ERR_NOMEM. Not shared between threads while opening.
 * The file must not be cut short by anyone before weights_close: reading the lost pages would raise SIGBUS.
 * Replacing it by rename is safe. */
RN_MUST_CHECK enum rn_status weights_open(const char *path, struct weights **out, struct rn_error *error);

/* Unmap. Tensors borrowed from it are gone. NULL is fine. */
void weights_close(struct weights *weights);

size_t weights_count(const struct weights *weights);
const struct weights_tensor *weights_at(const struct weights *weights, size_t index);

/* The tensor called `name`, or NULL. */
const struct weights_tensor *weights_find(const struct weights *weights, const char *name);

/* "safetensors", "pth (zip)", "pth (legacy)". */
const char *weights_format(const struct weights *weights);

/* SHA-256 of the whole file, 64 lower-case hex digits and a NUL. It is computed by a thread of its own from
 * weights_open on; the first call waits for it. Thread-safe. */
const char *weights_sha256(const struct weights *weights);

/* Find `name` and check its shape (`dims` sizes in `shape`), then convert it into `out` as float32.
 *   out   caller-owned, product-of-shape floats; F32, F16 and BF16 are converted exactly
 * Returns RN_OK, or RN_ERR_WEIGHTS with the name, and both shapes, the type or "missing" in the text; the caller
 * adds the file. Thread-safe. */
RN_MUST_CHECK enum rn_status weights_read_f32(const struct weights *weights, const char *name, int dims,
                                              const int64_t *shape, float *out, struct rn_error *error);

#endif
