/* weights_pth.c - PyTorch's two file formats around a pickled state dict.
 *
 *   zip     PREFIX/data.pkl, PREFIX/data/KEY for each storage, PREFIX/byteorder; all stored, not compressed
 *   legacy  pickles: magic number, protocol version, system information, the object, the list of storage keys;
 *           then for each key an int64 count of elements and the elements
 *
 * Either way: read the object's pickle -> find the bytes of each storage it names -> find the state dict in the
 * object -> check and add its tensors. */

#include <stdlib.h>
#include <string.h>

#include "sizes.h"
#include "weights_internal.h"
#include "weights_pickle.h"

/* Bookkeeping of one file: pickle values, directory, tables. A state dict of 100 000 tensors needs about 100 MB. */
static const size_t arena_limit = 256 * 1024 * 1024;

/* ---- storages ---- */

struct storage_table {
    struct pickle_storage **sorted; /* by key */
    size_t count;
};

static int compare_keys(const char *a, size_t a_length, const char *b, size_t b_length)
{
    int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
    return order ? order : a_length < b_length ? -1 : a_length > b_length;
}

static int compare_storages(const void *a, const void *b)
{
    const struct pickle_storage *const *left = a, *const *right = b;
    return compare_keys((*left)->key, (*left)->key_length, (*right)->key, (*right)->key_length);
}

static enum rn_status storages_sort(const struct pickle *pickle, struct storage_table *table, struct rn_error *error)
{
    struct pickle_storage *storage = pickle->storages;

    table->count = pickle->storage_count;
    table->sorted = weights_alloc(pickle->arena, table->count * sizeof *table->sorted, error);
    if (!table->sorted)
        return error->code;
    for (size_t i = 0; i < table->count; i++, storage = storage->next)
        table->sorted[i] = storage;
    if (table->count > 0)
        qsort(table->sorted, table->count, sizeof *table->sorted, compare_storages);
    return RN_OK;
}

/* The references to `key` are sorted[*first .. *last). */
static void storages_find(const struct storage_table *table, const char *key, size_t length, size_t *first,
                          size_t *last)
{
    size_t low = 0, high = table->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct pickle_storage *storage = table->sorted[middle];
        if (compare_keys(storage->key, storage->key_length, key, length) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *first = low;
    while (low < table->count &&
           compare_keys(table->sorted[low]->key, table->sorted[low]->key_length, key, length) == 0)
        low++;
    *last = low;
}

/* Give every reference to `key` its bytes. A key that nothing refers to is fine. `at` is the offset to blame. */
static enum rn_status storages_assign(const struct storage_table *table, const char *key, size_t length,
                                      const uint8_t *data, size_t bytes, size_t at, struct rn_error *error)
{
    size_t first, last;

    storages_find(table, key, length, &first, &last);
    for (size_t i = first; i < last; i++) {
        struct pickle_storage *storage = table->sorted[i];
        size_t needed;
        if (storage->data)
            return rn_fail(error, RN_ERR_WEIGHTS, "byte %zu: a storage occurs twice", at);
        if (!size_mul(storage->elements, storage->type->bytes, &needed) || needed != bytes)
            return rn_fail(error, RN_ERR_WEIGHTS,
                           "byte %zu: a storage has %zu bytes, its %zu elements of %s need others", at, bytes,
                           storage->elements, storage->type->name);
        storage->data = data;
    }
    return RN_OK;
}

/* ---- the state dict ---- */

static bool holds_tensors(const struct pickle_value *dict)
{
    for (size_t i = 1; i < dict->items->count; i += 2) {
        if (dict->items->values[i].kind == PICKLE_TENSOR)
            return true;
    }
    return false;
}

/* The dict of tensors in what the file holds; NULL if there is none. */
static const struct pickle_value *find_state_dict(const struct pickle_value *object)
{
    static const char *const keys[] = {"state_dict", "model_state_dict", "model"};

    if (object->kind != PICKLE_DICT)
        return NULL;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const struct pickle_value *nested = pickle_dict_get(object, keys[i]);
        if (nested && nested->kind == PICKLE_DICT && holds_tensors(nested))
            return nested;
    }
    return holds_tensors(object) ? object : NULL;
}

/* Whether elements lie in the file in the order of the shape without gaps. */
static bool is_contiguous(const struct pickle_tensor *tensor)
{
    int64_t expected = 1;

    for (int i = tensor->dims; i-- > 0;) {
        if (tensor->shape[i] != 1 && tensor->stride[i] != expected)
            return false;
        expected *= tensor->shape[i];
    }
    return true;
}

/* One past the last element of the storage that the tensor uses; false on overflow. */
static bool tensor_reach(const struct pickle_tensor *tensor, uint64_t *out)
{
    uint64_t reach = tensor->offset;

    for (int i = 0; i < tensor->dims; i++) {
        uint64_t span;
        if (__builtin_mul_overflow((uint64_t)tensor->shape[i] - 1, (uint64_t)tensor->stride[i], &span) ||
            __builtin_add_overflow(reach, span, &reach))
            return false;
    }
    return !__builtin_add_overflow(reach, 1u, out);
}

/* Write the elements of a transposed, channels-last or otherwise strided tensor in the order of its shape. */
static void copy_strided(const struct pickle_tensor *tensor, size_t elements, size_t element_bytes, uint8_t *out)
{
    const uint8_t *base = tensor->storage->data + tensor->offset * element_bytes;
    int64_t index[WEIGHTS_MAX_DIMS] = {0};

    for (size_t i = 0; i < elements; i++) {
        size_t from = 0;
        for (int d = 0; d < tensor->dims; d++)
            from += (size_t)(index[d] * tensor->stride[d]);
        memcpy(out + i * element_bytes, base + from * element_bytes, element_bytes);
        for (int d = tensor->dims; d-- > 0 && ++index[d] == tensor->shape[d];)
            index[d] = 0;
    }
}

static enum rn_status add_tensor(struct weights *weights, const char *name, size_t length,
                                 const struct pickle_tensor *tensor, struct rn_error *error)
{
    const struct pickle_storage *storage = tensor->storage;
    enum rn_status status =
        weights_add(weights, name, length, storage->type, tensor->dims, tensor->shape, NULL, tensor->at, error);
    uint64_t reach;

    if (status != RN_OK)
        return status;
    struct weights_tensor *added = &weights->tensors[weights->count - 1];
    if (!storage->data)
        return rn_fail(error, RN_ERR_WEIGHTS, "tensor %s: its storage is not in the file", added->name);
    added->data = storage->data;
    if (added->elements == 0)
        return RN_OK;
    if (!tensor_reach(tensor, &reach) || reach > storage->elements)
        return rn_fail(error, RN_ERR_WEIGHTS, "tensor %s reaches outside its storage of %zu elements", added->name,
                       storage->elements);
    if (is_contiguous(tensor)) {
        added->data += tensor->offset * storage->type->bytes;
        return RN_OK;
    }
    if (added->elements > storage->elements)
        return rn_fail(error, RN_ERR_WEIGHTS, "tensor %s repeats the elements of its storage", added->name);
    uint8_t *copy = weights_alloc(&weights->copies, added->elements * storage->type->bytes, error);
    if (!copy)
        return error->code;
    copy_strided(tensor, added->elements, storage->type->bytes, copy);
    added->data = copy;
    return RN_OK;
}

/* Whether every tensor's name begins with "module.", which DataParallel puts there. */
static bool all_in_module(const struct pickle_items *items)
{
    for (size_t i = 0; i + 1 < items->count; i += 2) {
        const struct pickle_value *key = &items->values[i];
        if (key[1].kind == PICKLE_TENSOR &&
            (key->kind != PICKLE_STRING || key->length <= 7 || memcmp(key->text, "module.", 7) != 0))
            return false;
    }
    return true;
}

static enum rn_status add_state_dict(struct weights *weights, const struct pickle_value *object, struct rn_error *error)
{
    const struct pickle_value *dict = find_state_dict(object);

    if (!dict)
        return rn_fail(error, RN_ERR_WEIGHTS,
                       "no state dict: neither the file's object nor its state_dict, model_state_dict or model is a "
                       "dict of tensors");
    uint32_t prefix = all_in_module(dict->items) ? 7 : 0;
    for (size_t i = 0; i + 1 < dict->items->count; i += 2) {
        const struct pickle_value *key = &dict->items->values[i];
        if (key[1].kind != PICKLE_TENSOR)
            continue;
        if (key->kind != PICKLE_STRING)
            return rn_fail(error, RN_ERR_WEIGHTS, "byte %zu: a tensor's name is not a string", key[1].tensor->at);
        enum rn_status status = add_tensor(weights, key->text + prefix, key->length - prefix, key[1].tensor, error);
        if (status != RN_OK)
            return status;
    }
    return RN_OK;
}

/* ---- zip ---- */

struct zip_entry {
    const char *name; /* name_length bytes, in the central directory */
    size_t name_length;
    size_t header_at, at, bytes; /* of its local header and its data */
};

struct zip {
    const uint8_t *data;
    size_t size;
    size_t directory_at, directory_bytes, count;
    struct zip_entry *entries; /* by position in the file */
};

enum { END_BYTES = 22, LOCATOR_BYTES = 20, END64_BYTES = 56, CENTRAL_BYTES = 46, LOCAL_BYTES = 30 };

static enum rn_status zip_refuse(struct rn_error *error, size_t at, const char *what)
{
    (void)rn_fail(error, RN_ERR_WEIGHTS, "byte %zu (zip): %s", at, what);
    return RN_ERR_WEIGHTS;
}

/* Find the central directory. */
static enum rn_status zip_find_directory(struct zip *zip, struct rn_error *error)
{
    if (zip->size < END_BYTES)
        return zip_refuse(error, zip->size, "the file ends before the archive's directory");

    const size_t lowest = zip->size - END_BYTES > UINT16_MAX ? zip->size - END_BYTES - UINT16_MAX : 0;
    size_t end_at = zip->size - END_BYTES;
    while (load_u32(zip->data + end_at) != 0x06054b50 ||
           load_u16(zip->data + end_at + 20) != zip->size - END_BYTES - end_at) {
        if (end_at == lowest)
            return zip_refuse(error, zip->size, "the archive's directory is missing; the file may be cut off");
        end_at--;
    }

    const uint8_t *end = zip->data + end_at;
    uint64_t count = load_u16(end + 10), bytes = load_u32(end + 12), at = load_u32(end + 16), limit = end_at;
    if (end_at >= LOCATOR_BYTES && load_u32(end - LOCATOR_BYTES) == 0x07064b50) {
        uint64_t end64_at = load_u64(end - LOCATOR_BYTES + 8);
        if (end_at < LOCATOR_BYTES + END64_BYTES || end64_at > end_at - LOCATOR_BYTES - END64_BYTES ||
            load_u32(zip->data + end64_at) != 0x06064b50)
            return zip_refuse(error, end_at - LOCATOR_BYTES, "the zip64 directory is not where it should be");
        const uint8_t *end64 = zip->data + end64_at;
        count = load_u64(end64 + 32);
        bytes = load_u64(end64 + 40);
        at = load_u64(end64 + 48);
        limit = end64_at;
    }
    if (at > limit || bytes > limit - at || count > bytes / CENTRAL_BYTES)
        return zip_refuse(error, end_at, "the archive's directory lies outside the file or has an absurd size");
    zip->directory_at = (size_t)at;
    zip->directory_bytes = (size_t)bytes;
    zip->count = (size_t)count;
    return RN_OK;
}

/* The sizes and the offset that a zip64 extra field holds, for those that are 2^32 - 1 in the directory. */
static bool zip64_values(const uint8_t *extra, size_t bytes, uint64_t *const values[3])
{
    while (bytes >= 4) {
        size_t id = load_u16(extra), length = load_u16(extra + 2);
        extra += 4;
        bytes -= 4;
        if (length > bytes)
            return false;
        if (id == 1) {
            for (int i = 0; i < 3; i++) {
                if (*values[i] != UINT32_MAX)
                    continue;
                if (length < 8)
                    return false;
                *values[i] = load_u64(extra);
                extra += 8;
                length -= 8;
            }
            return true;
        }
        extra += length;
        bytes -= length;
    }
    return true;
}

/* Read the directory's entry at *at and the local header it points to; *at moves on. */
static enum rn_status zip_read_entry(const struct zip *zip, size_t *at, struct zip_entry *entry, struct rn_error *error)
{
    const size_t begin = *at, left = zip->directory_at + zip->directory_bytes - begin;
    const uint8_t *central = zip->data + begin;

    if (left < CENTRAL_BYTES || load_u32(central) != 0x02014b50)
        return zip_refuse(error, begin, "an entry of the archive's directory is damaged");
    size_t name_length = load_u16(central + 28), extra = load_u16(central + 30), comment = load_u16(central + 32);
    if (name_length + extra + comment > left - CENTRAL_BYTES)
        return zip_refuse(error, begin, "an entry of the archive's directory is damaged");
    *at = begin + CENTRAL_BYTES + name_length + extra + comment;

    if (load_u16(central + 8) & 0x2041)
        return zip_refuse(error, begin, "an entry of the archive is encrypted");
    if (load_u16(central + 10) != 0)
        return zip_refuse(error, begin, "an entry of the archive is compressed; PyTorch stores them as they are");
    uint64_t stored = load_u32(central + 20), bytes = load_u32(central + 24), header_at = load_u32(central + 42);
    if (!zip64_values(central + CENTRAL_BYTES + name_length, extra, (uint64_t *const[]){&bytes, &stored, &header_at}))
        return zip_refuse(error, begin, "an entry's zip64 field is damaged");
    if (stored != bytes)
        return zip_refuse(error, begin, "an entry has two sizes");

    const size_t limit = zip->directory_at;
    if (limit < LOCAL_BYTES || header_at > limit - LOCAL_BYTES || load_u32(zip->data + header_at) != 0x04034b50)
        return zip_refuse(error, begin, "an entry lies outside the file");
    const uint8_t *local = zip->data + header_at;
    size_t room = limit - (size_t)header_at - LOCAL_BYTES, front = (size_t)load_u16(local + 26) + load_u16(local + 28);
    if (front > room || bytes > room - front)
        return zip_refuse(error, begin, "an entry reaches outside the file");
    if (load_u16(local + 8) != 0 || load_u16(local + 26) != name_length ||
        memcmp(local + LOCAL_BYTES, central + CENTRAL_BYTES, name_length) != 0)
        return zip_refuse(error, (size_t)header_at, "an entry's own header contradicts the directory");
    *entry = (struct zip_entry){.name = (const char *)central + CENTRAL_BYTES,
                                .name_length = name_length,
                                .header_at = (size_t)header_at,
                                .at = (size_t)header_at + LOCAL_BYTES + front,
                                .bytes = (size_t)bytes};
    return RN_OK;
}

static int compare_positions(const void *a, const void *b)
{
    const struct zip_entry *left = a, *right = b;
    return left->header_at < right->header_at ? -1 : left->header_at > right->header_at;
}

static enum rn_status zip_read_directory(struct zip *zip, struct weights_arena *arena, struct rn_error *error)
{
    enum rn_status status = zip_find_directory(zip, error);

    if (status != RN_OK)
        return status;
    zip->entries = weights_alloc(arena, zip->count * sizeof *zip->entries, error);
    if (!zip->entries)
        return error->code;
    size_t at = zip->directory_at;
    for (size_t i = 0; i < zip->count; i++) {
        status = zip_read_entry(zip, &at, &zip->entries[i], error);
        if (status != RN_OK)
            return status;
    }
    if (zip->count > 0)
        qsort(zip->entries, zip->count, sizeof *zip->entries, compare_positions);
    for (size_t i = 1; i < zip->count; i++) {
        if (zip->entries[i - 1].at + zip->entries[i - 1].bytes > zip->entries[i].header_at)
            return zip_refuse(error, zip->entries[i].header_at, "entries of the archive overlap");
    }
    return RN_OK;
}

/* Whether the entry is PREFIX/`name`. */
static bool zip_entry_is(const struct zip_entry *entry, const char *prefix, size_t prefix_length, const char *name)
{
    size_t length = strlen(name);

    return entry->name_length == prefix_length + 1 + length && memcmp(entry->name, prefix, prefix_length) == 0 &&
           entry->name[prefix_length] == '/' && memcmp(entry->name + prefix_length + 1, name, length) == 0;
}

/* The entry PREFIX/data.pkl in the archive's top directory, whatever its name. */
static enum rn_status zip_find_pickle(const struct zip *zip, const struct zip_entry **out, struct rn_error *error)
{
    *out = NULL;
    for (size_t i = 0; i < zip->count; i++) {
        const struct zip_entry *entry = &zip->entries[i];
        const char *slash = memchr(entry->name, '/', entry->name_length);
        if (!slash || !zip_entry_is(entry, entry->name, (size_t)(slash - entry->name), "data.pkl"))
            continue;
        if (*out)
            return zip_refuse(error, entry->header_at, "the archive has two data.pkl");
        *out = entry;
    }
    return *out ? RN_OK
                : zip_refuse(error, zip->directory_at, "the archive has no data.pkl, so PyTorch did not write it");
}

static enum rn_status read_zip(struct weights *weights, struct weights_arena *arena, struct rn_error *error)
{
    static const char data_folder[] = "/data/";
    struct zip zip = {.data = weights->data, .size = weights->size};
    const struct zip_entry *pickle_entry = NULL;
    struct storage_table storages;
    struct pickle_value object;
    enum rn_status status = zip_read_directory(&zip, arena, error);

    if (status == RN_OK)
        status = zip_find_pickle(&zip, &pickle_entry, error);
    if (status != RN_OK)
        return status;

    struct pickle pickle = {
        .data = weights->data, .at = pickle_entry->at, .end = pickle_entry->at + pickle_entry->bytes, .arena = arena};
    if ((status = pickle_read(&pickle, &object, error)) != RN_OK ||
        (status = storages_sort(&pickle, &storages, error)) != RN_OK)
        return status;

    const char *prefix = pickle_entry->name;
    size_t prefix_length = pickle_entry->name_length - strlen("/data.pkl");
    size_t front = prefix_length + strlen(data_folder);
    for (size_t i = 0; i < zip.count; i++) {
        const struct zip_entry *entry = &zip.entries[i];
        if (zip_entry_is(entry, prefix, prefix_length, "byteorder") &&
            (entry->bytes != 6 || memcmp(zip.data + entry->at, "little", 6) != 0))
            return zip_refuse(error, entry->at, "the tensors are big-endian; only little-endian files are read");
        if (entry->name_length <= front || memcmp(entry->name, prefix, prefix_length) != 0 ||
            memcmp(entry->name + prefix_length, data_folder, strlen(data_folder)) != 0)
            continue;
        status = storages_assign(&storages, entry->name + front, entry->name_length - front, zip.data + entry->at,
                                 entry->bytes, entry->at, error);
        if (status != RN_OK)
            return status;
    }
    return add_state_dict(weights, &object, error);
}

/* ---- legacy ---- */

static enum rn_status legacy_refuse(struct rn_error *error, size_t at, const char *what)
{
    return rn_fail(error, RN_ERR_WEIGHTS, "byte %zu (legacy PyTorch file): %s", at, what);
}

/* The three pickles in front of the object. */
static enum rn_status legacy_read_head(struct pickle *pickle, struct rn_error *error)
{
    static const uint8_t magic[10] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};
    struct pickle_value value;
    enum rn_status status = pickle_read(pickle, &value, error);

    if (status != RN_OK)
        return status;
    if (value.kind != PICKLE_LONG || value.length != sizeof magic || memcmp(value.text, magic, sizeof magic) != 0)
        return legacy_refuse(error, 0, "the magic number is missing, so PyTorch did not write it");

    size_t at = pickle->at;
    if ((status = pickle_read(pickle, &value, error)) != RN_OK)
        return status;
    if (value.kind != PICKLE_INT || value.integer != 1001)
        return legacy_refuse(error, at, "the protocol version is not 1001");

    at = pickle->at;
    if ((status = pickle_read(pickle, &value, error)) != RN_OK)
        return status;
    const struct pickle_value *little = value.kind == PICKLE_DICT ? pickle_dict_get(&value, "little_endian") : NULL;
    if (!little || little->kind != PICKLE_BOOL || !little->integer)
        return legacy_refuse(error, at, "the tensors are big-endian; only little-endian files are read");
    return RN_OK;
}

/* The storages behind the pickles, in the order of `keys`. */
static enum rn_status legacy_read_storages(struct pickle *pickle, const struct storage_table *storages,
                                           const struct pickle_items *keys, struct rn_error *error)
{
    for (size_t i = 0; i < keys->count; i++) {
        const struct pickle_value *key = &keys->values[i];
        size_t first = 0, last = 0, at = pickle->at, bytes;

        if (key->kind == PICKLE_STRING)
            storages_find(storages, key->text, key->length, &first, &last);
        if (first == last)
            return legacy_refuse(error, at, "a storage belongs to no tensor");
        if (pickle->end - at < 8)
            return legacy_refuse(error, at, "cut off before a storage");
        uint64_t elements = load_u64(pickle->data + at);
        at += 8;
        if (elements > SIZE_MAX || !size_mul((size_t)elements, storages->sorted[first]->type->bytes, &bytes) ||
            bytes > pickle->end - at)
            return legacy_refuse(error, at - 8, "a storage reaches outside the file");
        pickle->at = at + bytes;
        enum rn_status status =
            storages_assign(storages, key->text, key->length, pickle->data + at, bytes, at - 8, error);
        if (status != RN_OK)
            return status;
    }
    return RN_OK;
}

static enum rn_status read_legacy(struct weights *weights, struct weights_arena *arena, struct rn_error *error)
{
    struct pickle pickle = {.data = weights->data, .at = 0, .end = weights->size, .arena = arena};
    struct storage_table storages;
    struct pickle_value object, keys;
    enum rn_status status;

    if ((status = legacy_read_head(&pickle, error)) != RN_OK ||
        (status = pickle_read(&pickle, &object, error)) != RN_OK)
        return status;
    size_t at = pickle.at;
    if ((status = pickle_read(&pickle, &keys, error)) != RN_OK)
        return status;
    if (keys.kind != PICKLE_LIST)
        return legacy_refuse(error, at, "the list of storages is missing");
    if ((status = storages_sort(&pickle, &storages, error)) != RN_OK ||
        (status = legacy_read_storages(&pickle, &storages, keys.items, error)) != RN_OK)
        return status;
    return add_state_dict(weights, &object, error);
}

enum rn_status pth_zip_read(struct weights *weights, struct rn_error *error)
{
    struct weights_arena arena = {.limit = arena_limit};
    enum rn_status status = read_zip(weights, &arena, error);

    weights_arena_free(&arena);
    return status;
}

enum rn_status pth_legacy_read(struct weights *weights, struct rn_error *error)
{
    struct weights_arena arena = {.limit = arena_limit};
    enum rn_status status = read_legacy(weights, &arena, error);

    weights_arena_free(&arena);
    return status;
}
