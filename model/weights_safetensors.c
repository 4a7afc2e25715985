/* weights_safetensors.c - the safetensors format: a length, a JSON header, the tensors' bytes.
 *
 *   u64 n | n bytes of JSON {"NAME": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ...} | data
 *
 * The header is scanned in place by the few rules it may use, so memory stays in proportion to the tensors
 * and numbers stay exact. As the format demands, the tensors must cover the data without hole or overlap. */

#include <stdlib.h>
#include <string.h>

#include "sizes.h"
#include "weights_internal.h"

static const size_t header_limit = 100 * 1000 * 1000;
static const size_t scratch_limit = 64 * 1024 * 1024;

struct scanner {
    const uint8_t *data;
    size_t at, end;               /* positions in the file; end is where the header ends */
    struct weights_arena scratch; /* strings with escapes */
    struct rn_error *error;
};

struct span {
    uint64_t begin, end;
    size_t tensor; /* index in the weights */
};

static enum rn_status refuse(struct scanner *s, const char *what)
{
    return rn_fail(s->error, RN_ERR_WEIGHTS, "byte %zu (safetensors header): %s", s->at, what);
}

static void skip_space(struct scanner *s)
{
    while (s->at < s->end &&
           (s->data[s->at] == ' ' || s->data[s->at] == '\n' || s->data[s->at] == '\t' || s->data[s->at] == '\r'))
        s->at++;
}

/* Whether the next character is `c`; it is taken if so. */
static bool take(struct scanner *s, char c)
{
    skip_space(s);
    if (s->at == s->end || s->data[s->at] != (uint8_t)c)
        return false;
    s->at++;
    return true;
}

static enum rn_status expect(struct scanner *s, char c)
{
    if (take(s, c))
        return RN_OK;
    return rn_fail(s->error, RN_ERR_WEIGHTS, "byte %zu (safetensors header): expected '%c'", s->at, c);
}

static bool take_hex4(struct scanner *s, uint32_t *out)
{
    uint32_t value = 0;

    if (s->end - s->at < 4)
        return false;
    for (int i = 0; i < 4; i++) {
        uint8_t c = s->data[s->at++];
        uint32_t digit = c >= '0' && c <= '9'   ? (uint32_t)(c - '0')
                         : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a' + 10)
                         : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A' + 10)
                                                : 16;
        if (digit == 16)
            return false;
        value = value << 4 | digit;
    }
    *out = value;
    return true;
}

static size_t put_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

/* The character of the escape at s->at, behind the backslash. */
static enum rn_status take_escape(struct scanner *s, uint32_t *out)
{
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    uint32_t low;

    if (s->at == s->end)
        return refuse(s, "a string does not end");
    char c = (char)s->data[s->at++];
    const char *letter = c ? strchr(letters, c) : NULL;
    if (letter) {
        *out = (uint32_t)meanings[letter - letters];
        return RN_OK;
    }
    if (c != 'u' || !take_hex4(s, out) || (*out >= 0xdc00 && *out <= 0xdfff))
        return refuse(s, "an invalid escape in a string");
    if (*out < 0xd800 || *out > 0xdbff)
        return RN_OK;
    if (s->end - s->at < 2 || s->data[s->at] != '\\' || s->data[s->at + 1] != 'u')
        return refuse(s, "half a surrogate pair in a string");
    s->at += 2;
    if (!take_hex4(s, &low) || low < 0xdc00 || low > 0xdfff)
        return refuse(s, "half a surrogate pair in a string");
    *out = 0x10000 + ((*out - 0xd800) << 10) + (low - 0xdc00);
    return RN_OK;
}

/* A JSON string; *text points into the file, or into the scratch memory when it has escapes. */
static enum rn_status take_string(struct scanner *s, const char **text, size_t *length)
{
    enum rn_status status = expect(s, '"');
    size_t begin = s->at;
    bool escaped = false;

    if (status != RN_OK)
        return status;
    while (s->at < s->end && s->data[s->at] != '"') {
        if (s->data[s->at] < 0x20)
            return refuse(s, "a control character in a string");
        if (s->data[s->at] == '\\') {
            escaped = true;
            s->at++;
        }
        s->at++;
    }
    if (s->at >= s->end)
        return refuse(s, "a string does not end");
    size_t end = s->at;
    *text = (const char *)s->data + begin;
    *length = end - begin;
    if (escaped) {
        char *decoded = weights_alloc(&s->scratch, *length, s->error); /* never longer than its source */
        if (!decoded)
            return s->error->code;
        *length = 0;
        for (s->at = begin; s->at < end;) {
            uint32_t c = s->data[s->at++];
            if (c != '\\') {
                decoded[(*length)++] = (char)c;
                continue;
            }
            status = take_escape(s, &c);
            if (status != RN_OK)
                return status;
            *length += put_utf8(decoded + *length, c);
        }
        *text = decoded;
    }
    s->at = end + 1;
    return RN_OK;
}

static enum rn_status take_integer(struct scanner *s, uint64_t *out)
{
    uint64_t value = 0;

    skip_space(s);
    size_t begin = s->at;
    while (s->at < s->end && s->data[s->at] >= '0' && s->data[s->at] <= '9') {
        if (__builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(s->data[s->at] - '0'), &value) || value > INT64_MAX)
            return refuse(s, "an absurd number");
        s->at++;
    }
    if (s->at == begin || (s->data[begin] == '0' && s->at > begin + 1) ||
        (s->at < s->end && memchr(".eE", s->data[s->at], 3)))
        return refuse(s, "expected an integer of 0 or more");
    *out = value;
    return RN_OK;
}

/* [1, 2, 3] with at most `limit` numbers. */
static enum rn_status take_integers(struct scanner *s, int limit, uint64_t *out, int *count)
{
    enum rn_status status = expect(s, '[');

    *count = 0;
    if (status != RN_OK || take(s, ']'))
        return status;
    do {
        if (*count == limit)
            return refuse(s, "too many numbers in a list");
        status = take_integer(s, &out[*count]);
        if (status != RN_OK)
            return status;
        (*count)++;
    } while (take(s, ','));
    return expect(s, ']');
}

/* {"key": "value", ...} */
static enum rn_status skip_metadata(struct scanner *s)
{
    const char *text;
    size_t length;
    enum rn_status status = expect(s, '{');

    if (status != RN_OK || take(s, '}'))
        return status;
    do {
        if ((status = take_string(s, &text, &length)) != RN_OK || (status = expect(s, ':')) != RN_OK ||
            (status = take_string(s, &text, &length)) != RN_OK)
            return status;
    } while (take(s, ','));
    return expect(s, '}');
}

struct entry {
    const struct weights_type *type;
    int dims;
    uint64_t shape[WEIGHTS_MAX_DIMS], offsets[2];
    bool has_shape, has_offsets;
};

static bool is(const char *text, size_t length, const char *word)
{
    return length == strlen(word) && memcmp(text, word, length) == 0;
}

static enum rn_status take_entry(struct scanner *s, struct entry *entry)
{
    enum rn_status status = expect(s, '{');
    const char *text;
    size_t length;
    int count;

    *entry = (struct entry){.type = NULL};
    if (status != RN_OK)
        return status;
    do {
        if ((status = take_string(s, &text, &length)) != RN_OK || (status = expect(s, ':')) != RN_OK)
            return status;
        if (is(text, length, "dtype") && !entry->type) {
            if ((status = take_string(s, &text, &length)) != RN_OK)
                return status;
            entry->type = weights_type_by_name(text, length);
            if (!entry->type)
                return refuse(s, "an unknown dtype");
        } else if (is(text, length, "shape") && !entry->has_shape) {
            if ((status = take_integers(s, WEIGHTS_MAX_DIMS, entry->shape, &entry->dims)) != RN_OK)
                return status;
            entry->has_shape = true;
        } else if (is(text, length, "data_offsets") && !entry->has_offsets) {
            if ((status = take_integers(s, 2, entry->offsets, &count)) != RN_OK)
                return status;
            if (count != 2)
                return refuse(s, "data_offsets must be two numbers");
            entry->has_offsets = true;
        } else {
            return refuse(s, "an unknown or repeated key; a tensor has dtype, shape and data_offsets");
        }
    } while (take(s, ','));
    if ((status = expect(s, '}')) != RN_OK)
        return status;
    if (!entry->type || !entry->has_shape || !entry->has_offsets)
        return refuse(s, "a tensor lacks dtype, shape or data_offsets");
    return RN_OK;
}

/* Check one tensor and append it; its place in the data goes to *span. */
static enum rn_status add_entry(struct scanner *s, struct weights *weights, const char *name, size_t length,
                                const struct entry *entry, struct span *span)
{
    int64_t shape[WEIGHTS_MAX_DIMS] = {0};
    size_t data_bytes = weights->size - s->end;
    unsigned long long begin = entry->offsets[0], end = entry->offsets[1];

    for (int i = 0; i < entry->dims; i++)
        shape[i] = (int64_t)entry->shape[i];
    enum rn_status status = weights_add(weights, name, length, entry->type, entry->dims, shape, NULL, s->at, s->error);
    if (status != RN_OK)
        return status;
    struct weights_tensor *tensor = &weights->tensors[weights->count - 1];
    if (begin > end || end > data_bytes)
        return rn_fail(s->error, RN_ERR_WEIGHTS,
                       "tensor %s has data_offsets [%llu, %llu], the file has %zu bytes of data", tensor->name, begin,
                       end, data_bytes);
    if (end - begin != tensor->elements * entry->type->bytes)
        return rn_fail(s->error, RN_ERR_WEIGHTS, "tensor %s has %llu bytes, its shape and dtype need %zu", tensor->name,
                       end - begin, tensor->elements * entry->type->bytes);
    tensor->data = weights->data + s->end + begin;
    *span = (struct span){begin, end, weights->count - 1};
    return RN_OK;
}

static int compare_spans(const void *a, const void *b)
{
    const struct span *left = a, *right = b;

    if (left->begin != right->begin)
        return left->begin < right->begin ? -1 : 1;
    return left->end < right->end ? -1 : left->end > right->end;
}

/* Every byte of the data belongs to exactly one tensor. */
static enum rn_status check_coverage(const struct weights *weights, struct span *spans, size_t data_bytes,
                                     struct rn_error *error)
{
    uint64_t reached = 0;

    if (weights->count > 0)
        qsort(spans, weights->count, sizeof *spans, compare_spans);
    for (size_t i = 0; i < weights->count; i++) {
        if (spans[i].begin != reached)
            return rn_fail(
                error, RN_ERR_WEIGHTS, "tensor %s begins at byte %llu of the data, where byte %llu is due: %s",
                weights->tensors[spans[i].tensor].name, (unsigned long long)spans[i].begin, (unsigned long long)reached,
                spans[i].begin < reached ? "tensors overlap" : "there is a hole");
        reached = spans[i].end;
    }
    if (reached != data_bytes)
        return rn_fail(error, RN_ERR_WEIGHTS, "the tensors end at byte %llu of the data, which has %zu",
                       (unsigned long long)reached, data_bytes);
    return RN_OK;
}

static enum rn_status scan_header(struct scanner *s, struct weights *weights, struct span **spans)
{
    size_t capacity = 0;
    bool metadata_seen = false;
    enum rn_status status = expect(s, '{');

    if (status != RN_OK)
        return status;
    if (take(s, '}'))
        return RN_OK;
    do {
        const char *name;
        size_t length;
        struct entry entry;

        if ((status = take_string(s, &name, &length)) != RN_OK || (status = expect(s, ':')) != RN_OK)
            return status;
        if (is(name, length, "__metadata__")) {
            if (metadata_seen)
                return refuse(s, "__metadata__ occurs twice");
            metadata_seen = true;
            if ((status = skip_metadata(s)) != RN_OK)
                return status;
            continue;
        }
        if (weights->count == capacity) {
            capacity = capacity ? 2 * capacity : 256;
            struct span *grown = realloc(*spans, capacity * sizeof *grown);
            if (!grown)
                return rn_fail_nomem(s->error, "the safetensors header");
            *spans = grown;
        }
        if ((status = take_entry(s, &entry)) != RN_OK ||
            (status = add_entry(s, weights, name, length, &entry, *spans + weights->count)) != RN_OK)
            return status;
    } while (take(s, ','));
    return expect(s, '}');
}

enum rn_status safetensors_read(struct weights *weights, struct rn_error *error)
{
    uint64_t header = load_u64(weights->data);
    struct span *spans = NULL;

    if (header > header_limit || header > weights->size - 8)
        return rn_fail(error, RN_ERR_WEIGHTS, "the safetensors header claims %llu bytes of a file of %zu",
                       (unsigned long long)header, weights->size);
    struct scanner s = {
        .data = weights->data, .at = 8, .end = 8 + (size_t)header, .scratch = {.limit = scratch_limit}, .error = error};
    enum rn_status status = scan_header(&s, weights, &spans);
    if (status == RN_OK) {
        skip_space(&s);
        if (s.at != s.end)
            status = refuse(&s, "text behind the closing brace");
    }
    if (status == RN_OK)
        status = check_coverage(weights, spans, weights->size - s.end, error);
    free(spans);
    weights_arena_free(&s.scratch);
    return status;
}
