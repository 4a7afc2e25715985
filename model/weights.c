/* weights.c - open, check and hand out the tensors of a weights file.
 *
 * path -> mmap -> [safetensors | pth (zip) | pth (legacy)] -> sorted names; SHA-256 beside it on its own thread
 *
 * Immutable once open, but for the digest, which has its own lock. */

#include "weights.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <nettle/sha2.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "float16.h"
#include "sizes.h"
#include "utf8.h"
#include "weights_internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are handed out as the file has them, little-endian");

enum { BLOCK_BYTES = 64 * 1024, NAMES_LIMIT = 64 * 1024 * 1024 };

struct weights_block {
    struct weights_block *next;
    size_t used, size; /* of bytes */
    _Alignas(16) uint8_t bytes[];
};

/* The SHA-256 of data, computed in the background. */
struct digest {
    const uint8_t *data;
    size_t size;
    pthread_mutex_t lock; /* guards running and the join */
    pthread_t thread;
    bool running;
    char hex[2 * SHA256_DIGEST_SIZE + 1];
};

static const struct weights_type types[] = {
    {"F32", "FloatStorage", WEIGHTS_F32, 4},
    {"F16", "HalfStorage", WEIGHTS_F16, 2},
    {"BF16", "BFloat16Storage", WEIGHTS_BF16, 2},
    {"I64", "LongStorage", WEIGHTS_I64, 8},
    {"F64", "DoubleStorage", WEIGHTS_OTHER, 8},
    {"I32", "IntStorage", WEIGHTS_OTHER, 4},
    {"I16", "ShortStorage", WEIGHTS_OTHER, 2},
    {"I8", "CharStorage", WEIGHTS_OTHER, 1},
    {"U8", "ByteStorage", WEIGHTS_OTHER, 1},
    {"BOOL", "BoolStorage", WEIGHTS_OTHER, 1},
    {"U16", NULL, WEIGHTS_OTHER, 2},
    {"U32", NULL, WEIGHTS_OTHER, 4},
    {"U64", NULL, WEIGHTS_OTHER, 8},
    {"F8_E4M3", NULL, WEIGHTS_OTHER, 1},
    {"F8_E5M2", NULL, WEIGHTS_OTHER, 1},
};

enum { TYPE_COUNT = sizeof types / sizeof types[0] };

static bool text_equals(const char *text, const char *other, size_t length)
{
    return text && strlen(text) == length && memcmp(text, other, length) == 0;
}

const struct weights_type *weights_type_by_name(const char *name, size_t length)
{
    for (size_t i = 0; i < TYPE_COUNT; i++) {
        if (text_equals(types[i].name, name, length))
            return &types[i];
    }
    return NULL;
}

const struct weights_type *weights_type_by_storage(const char *name, size_t length)
{
    for (size_t i = 0; i < TYPE_COUNT; i++) {
        if (text_equals(types[i].storage, name, length))
            return &types[i];
    }
    return NULL;
}

void *weights_alloc(struct weights_arena *arena, size_t bytes, struct rn_error *error)
{
    struct weights_block *block = arena->blocks;

    if (bytes > arena->limit || size_round_up(bytes, 16) > arena->limit - arena->total) {
        (void)rn_fail(error, RN_ERR_WEIGHTS, "reading it would need more than %zu bytes beside the tensors",
                      arena->limit);
        return NULL;
    }
    bytes = size_round_up(bytes, 16);
    if (!block || block->size - block->used < bytes) {
        size_t size = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
        block = malloc(sizeof *block + size);
        if (!block) {
            (void)rn_fail_nomem(error, "the weights file");
            return NULL;
        }
        block->next = arena->blocks;
        block->used = 0;
        block->size = size;
        arena->blocks = block;
    }
    void *memory = block->bytes + block->used;
    block->used += bytes;
    arena->total += bytes;
    return memory;
}

void weights_arena_free(struct weights_arena *arena)
{
    while (arena->blocks) {
        struct weights_block *next = arena->blocks->next;
        free(arena->blocks);
        arena->blocks = next;
    }
}

bool weights_shape_elements(int dims, const int64_t *shape, const struct weights_type *type, size_t *elements)
{
    /* PyTorch multiplies the sizes that are not zero too; a shape such as [0, 2^63] is absurd all the same. */
    size_t product = 1, bytes;
    bool empty = false;

    for (int i = 0; i < dims; i++) {
        if (shape[i] < 0)
            return false;
        if (shape[i] == 0)
            empty = true;
        else if (!size_mul(product, (size_t)shape[i], &product))
            return false;
    }
    if (!size_mul(product, type->bytes, &bytes) || bytes > PTRDIFF_MAX)
        return false;
    *elements = empty ? 0 : product;
    return true;
}

enum rn_status weights_add(struct weights *weights, const char *name, size_t name_length,
                           const struct weights_type *type, int dims, const int64_t *shape, const uint8_t *data,
                           size_t at, struct rn_error *error)
{
    size_t elements;

    assert(dims >= 0 && dims <= WEIGHTS_MAX_DIMS);
    if (name_length == 0 || name_length > WEIGHTS_MAX_NAME || !utf8_is_printable(name, name_length))
        return rn_fail(error, RN_ERR_WEIGHTS, "byte %zu: a tensor's name is empty, longer than %d bytes or not text",
                       at, WEIGHTS_MAX_NAME);
    if (!weights_shape_elements(dims, shape, type, &elements))
        return rn_fail(error, RN_ERR_WEIGHTS, "byte %zu: tensor %.*s has an absurd shape", at, (int)name_length, name);
    if (weights->count == WEIGHTS_MAX_TENSORS)
        return rn_fail(error, RN_ERR_WEIGHTS, "byte %zu: more than %d tensors", at, WEIGHTS_MAX_TENSORS);

    if (weights->count == weights->capacity) {
        size_t capacity = weights->capacity ? 2 * weights->capacity : 256;
        struct weights_tensor *tensors = realloc(weights->tensors, capacity * sizeof *tensors);
        if (!tensors)
            return rn_fail_nomem(error, "the list of tensors");
        weights->tensors = tensors;
        weights->capacity = capacity;
    }
    char *own_name = weights_alloc(&weights->names, name_length + 1, error);
    if (!own_name)
        return error->code;
    memcpy(own_name, name, name_length);
    own_name[name_length] = '\0';

    struct weights_tensor *tensor = &weights->tensors[weights->count++];
    *tensor = (struct weights_tensor){.name = own_name,
                                      .dtype = type->dtype,
                                      .dtype_name = type->name,
                                      .dims = dims,
                                      .elements = elements,
                                      .data = data};
    if (dims > 0)
        memcpy(tensor->shape, shape, (size_t)dims * sizeof *shape);
    return RN_OK;
}

static int compare_names(const void *a, const void *b)
{
    const struct weights_tensor *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

static enum rn_status sort_names(struct weights *weights, struct rn_error *error)
{
    if (weights->count == 0)
        return rn_fail(error, RN_ERR_WEIGHTS, "the file holds no tensors");
    weights->by_name = calloc(weights->count, sizeof *weights->by_name);
    if (!weights->by_name)
        return rn_fail_nomem(error, "the list of tensors");
    for (size_t i = 0; i < weights->count; i++)
        weights->by_name[i] = &weights->tensors[i];
    qsort(weights->by_name, weights->count, sizeof *weights->by_name, compare_names);
    for (size_t i = 1; i < weights->count; i++) {
        if (strcmp(weights->by_name[i - 1]->name, weights->by_name[i]->name) == 0)
            return rn_fail(error, RN_ERR_WEIGHTS, "tensor %s occurs twice", weights->by_name[i]->name);
    }
    return RN_OK;
}

static void *digest_thread(void *arg)
{
    struct digest *digest = arg;
    struct sha256_ctx context;
    uint8_t bytes[SHA256_DIGEST_SIZE];

    sha256_init(&context);
    sha256_update(&context, digest->size, digest->data);
    sha256_digest(&context, sizeof bytes, bytes);
    for (size_t i = 0; i < sizeof bytes; i++)
        (void)snprintf(digest->hex + 2 * i, 3, "%02x", bytes[i]);
    return NULL;
}

static void digest_wait(struct digest *digest)
{
    pthread_mutex_lock(&digest->lock);
    if (digest->running)
        pthread_join(digest->thread, NULL);
    digest->running = false;
    pthread_mutex_unlock(&digest->lock);
}

static enum rn_status digest_start(struct weights *weights, struct rn_error *error)
{
    struct digest *digest = calloc(1, sizeof *digest);

    if (!digest)
        return rn_fail_nomem(error, "the weights file's digest");
    digest->data = weights->data;
    digest->size = weights->size;
    pthread_mutex_init(&digest->lock, NULL);
    weights->digest = digest;
    digest->running = pthread_create(&digest->thread, NULL, digest_thread, digest) == 0;
    if (!digest->running)
        digest_thread(digest);
    return RN_OK;
}

static void digest_destroy(struct digest *digest)
{
    if (!digest)
        return;
    digest_wait(digest);
    pthread_mutex_destroy(&digest->lock);
    free(digest);
}

/* Tell the format and read weights->data. */
static enum rn_status read_tensors(struct weights *weights, struct rn_error *error)
{
    static const uint8_t zip[4] = {'P', 'K', 3, 4};
    const uint8_t *data = weights->data;
    enum rn_status status;

    /* In this order: a safetensors file begins with a length, which may look like either of the others, but
     * neither of them has a brace as its ninth byte. */
    if (weights->size > 8 && data[8] == '{') {
        weights->format = "safetensors";
        status = safetensors_read(weights, error);
    } else if (weights->size > 4 && memcmp(data, zip, sizeof zip) == 0) {
        weights->format = "pth (zip)";
        status = pth_zip_read(weights, error);
    } else if (weights->size > 2 && data[0] == 0x80) {
        weights->format = "pth (legacy)";
        status = pth_legacy_read(weights, error);
    } else {
        return rn_fail(error, RN_ERR_WEIGHTS, "neither a safetensors file nor a PyTorch state dict by its first bytes");
    }
    return status == RN_OK ? sort_names(weights, error) : status;
}

/* Takes over a mapping, also when it fails. */
static enum rn_status open_bytes(const uint8_t *data, size_t size, bool mapped, struct weights **out,
                                 struct rn_error *error)
{
    struct weights *weights = calloc(1, sizeof *weights);

    *out = NULL;
    if (!weights) {
        if (mapped)
            munmap((void *)(uintptr_t)data, size);
        return rn_fail_nomem(error, "the weights file");
    }
    weights->data = data;
    weights->size = size;
    weights->mapped = mapped;
    weights->names.limit = NAMES_LIMIT;
    weights->copies.limit = size;

    enum rn_status status = read_tensors(weights, error);
    if (status == RN_OK)
        status = digest_start(weights, error);
    if (status != RN_OK) {
        weights_close(weights);
        return status;
    }
    *out = weights;
    return RN_OK;
}

enum rn_status weights_open_memory(const uint8_t *data, size_t size, struct weights **out, struct rn_error *error)
{
    struct rn_error ignored;
    return open_bytes(data, size, false, out, error ? error : &ignored);
}

/* The end of a path, for errors, whose text is short. */
static const char *shown_path(const char *path)
{
    size_t length = strlen(path);
    return length > 100 ? path + length - 100 : path;
}

static enum rn_status map_file(const char *path, const uint8_t **data, size_t *size, struct rn_error *error)
{
    struct stat info;
    void *mapping = MAP_FAILED;

    /* O_NONBLOCK: opening a FIFO must not wait for its writer. */
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return rn_fail(error, RN_ERR_IO, "cannot open it: %s", strerror(errno));

    enum rn_status status = RN_OK;
    if (fstat(file, &info) != 0)
        status = rn_fail(error, RN_ERR_IO, "cannot read it: %s", strerror(errno));
    else if (!S_ISREG(info.st_mode))
        status = rn_fail(error, RN_ERR_IO, "not a regular file");
    else if (info.st_size <= 0)
        status = rn_fail(error, RN_ERR_WEIGHTS, "the file is empty");
    else if ((uintmax_t)info.st_size > SIZE_MAX)
        status = rn_fail(error, RN_ERR_WEIGHTS, "the file is too large");
    if (status == RN_OK) {
        mapping = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, file, 0);
        if (mapping == MAP_FAILED)
            status = rn_fail(error, RN_ERR_IO, "cannot map it: %s", strerror(errno));
    }
    (void)close(file);
    if (status != RN_OK)
        return status;
    *size = (size_t)info.st_size;
    *data = mapping;
    (void)madvise(mapping, *size, MADV_WILLNEED);
    return RN_OK;
}

enum rn_status weights_open(const char *path, struct weights **out, struct rn_error *error)
{
    struct rn_error reason = {.code = RN_OK};
    const uint8_t *data = NULL;
    size_t size = 0;

    *out = NULL;
    enum rn_status status = map_file(path, &data, &size, &reason);
    if (status == RN_OK)
        status = open_bytes(data, size, true, out, &reason);
    if (status != RN_OK)
        return rn_fail(error, status, "%s: %s", shown_path(path), reason.text);
    return RN_OK;
}

void weights_close(struct weights *weights)
{
    if (!weights)
        return;
    digest_destroy(weights->digest); /* its thread reads the mapping */
    weights_arena_free(&weights->names);
    weights_arena_free(&weights->copies);
    free(weights->by_name);
    free(weights->tensors);
    if (weights->mapped)
        munmap((void *)(uintptr_t)weights->data, weights->size);
    free(weights);
}

size_t weights_count(const struct weights *weights)
{
    return weights->count;
}

const struct weights_tensor *weights_at(const struct weights *weights, size_t index)
{
    assert(index < weights->count);
    return &weights->tensors[index];
}

const struct weights_tensor *weights_find(const struct weights *weights, const char *name)
{
    struct weights_tensor key = {.name = name};
    const struct weights_tensor *wanted = &key;
    const struct weights_tensor **found =
        bsearch(&wanted, weights->by_name, weights->count, sizeof *weights->by_name, compare_names);
    return found ? *found : NULL;
}

const char *weights_format(const struct weights *weights)
{
    return weights->format;
}

const char *weights_sha256(const struct weights *weights)
{
    digest_wait(weights->digest);
    return weights->digest->hex;
}

/* "[64, 3, 7, 7]" */
static void format_shape(char *out, size_t size, int dims, const int64_t *shape)
{
    size_t at = 0;

    out[at++] = '[';
    for (int i = 0; i < dims && at + 24 < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%" PRId64, i ? ", " : "", shape[i]);
    (void)snprintf(out + at, size - at, "]");
}

static void convert(const struct weights_tensor *tensor, float *out)
{
    if (tensor->elements == 0)
        return;
    if (tensor->dtype == WEIGHTS_F32) {
        memcpy(out, tensor->data, tensor->elements * sizeof *out);
        return;
    }
    for (size_t i = 0; i < tensor->elements; i++) {
        uint16_t bits;
        memcpy(&bits, tensor->data + 2 * i, sizeof bits);
        out[i] = tensor->dtype == WEIGHTS_F16 ? float16_to_float32(bits) : bfloat16_to_float32(bits);
    }
}

enum rn_status weights_read_f32(const struct weights *weights, const char *name, int dims, const int64_t *shape,
                                float *out, struct rn_error *error)
{
    const struct weights_tensor *tensor = weights_find(weights, name);

    if (!tensor)
        return rn_fail(error, RN_ERR_WEIGHTS, "tensor %s is missing", name);
    if (tensor->dtype == WEIGHTS_I64 || tensor->dtype == WEIGHTS_OTHER)
        return rn_fail(error, RN_ERR_WEIGHTS, "tensor %s is %s; F32, F16 and BF16 are read", name, tensor->dtype_name);

    bool same = tensor->dims == dims;
    for (int i = 0; same && i < dims; i++)
        same = tensor->shape[i] == shape[i];
    if (!same) {
        char found[64], expected[64];
        format_shape(found, sizeof found, tensor->dims, tensor->shape);
        format_shape(expected, sizeof expected, dims, shape);
        return rn_fail(error, RN_ERR_WEIGHTS, "tensor %s has shape %s, the network expects %s", name, found, expected);
    }
    convert(tensor, out);
    return RN_OK;
}
