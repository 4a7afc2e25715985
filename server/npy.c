/* npy.c - read and write .npy: a magic, the header's length, a Python dictionary as text, the data. */

#include "npy.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "../model/sizes.h"

enum { PREFIX_BYTES = 10, HEADER_ALIGNMENT = 64 };

static const char MAGIC[] = "\x93NUMPY\x01";

/* The text after `'key':` and white space, or NULL. */
static const char *find_value(const char *header, const char *key)
{
    const char *at = strstr(header, key);

    return at ? at + strlen(key) + strspn(at + strlen(key), " ") : NULL;
}

/* "(1, 3, 224, 224)" */
static enum rn_status parse_shape(const char *text, struct npy *out, struct rn_error *error)
{
    size_t elements = 1;

    if (!text || *text++ != '(')
        return rn_fail(error, RN_ERR_BAD_REQUEST, "the .npy header has no shape");
    for (text += strspn(text, " "); *text != ')'; text += strspn(text, " ,")) {
        char *end;
        long n = strtol(text, &end, 10);
        if (end == text || n < 1 || n > INT_MAX || out->dims == NPY_MAX_DIMS ||
            !size_mul(elements, (size_t)n, &elements))
            return rn_fail(error, RN_ERR_BAD_REQUEST,
                           "the .npy header has a shape other than 1 to %d sizes of 1 or more", NPY_MAX_DIMS);
        out->shape[out->dims++] = (int)n;
        text = end;
    }
    out->elements = elements;
    return RN_OK;
}

enum rn_status npy_parse(const uint8_t *bytes, size_t size, struct npy *out, struct rn_error *error)
{
    char header[4096];
    const char *type, *order;
    size_t length, data_bytes;
    enum rn_status status;

    memset(out, 0, sizeof *out);
    if (size < PREFIX_BYTES || memcmp(bytes, MAGIC, sizeof MAGIC - 1) != 0)
        return rn_fail(error, RN_ERR_BAD_REQUEST, "not a .npy file of version 1.0");
    length = (size_t)bytes[8] | (size_t)bytes[9] << 8;
    if (length >= sizeof header || length > size - PREFIX_BYTES)
        return rn_fail(error, RN_ERR_BAD_REQUEST, "the .npy header does not fit the file");
    memcpy(header, bytes + PREFIX_BYTES, length);
    header[length] = 0;
    type = find_value(header, "'descr':");
    order = find_value(header, "'fortran_order':");
    if (!type || strncmp(type, "'<f4'", 5) != 0 || !order || strncmp(order, "False", 5) != 0)
        return rn_fail(error, RN_ERR_BAD_REQUEST, "the .npy file must hold float32 in C order");
    status = parse_shape(find_value(header, "'shape':"), out, error);
    if (status != RN_OK)
        goto fail;
    if (!size_mul(out->elements, sizeof(float), &data_bytes) || data_bytes != size - PREFIX_BYTES - length) {
        status = rn_fail(error, RN_ERR_BAD_REQUEST, "the .npy file holds more or less data than its shape");
        goto fail;
    }
    out->data = malloc(data_bytes);
    if (!out->data) {
        status = rn_fail_nomem(error, "the array");
        goto fail;
    }
    memcpy(out->data, bytes + PREFIX_BYTES + length, data_bytes);
    return RN_OK;
fail:
    npy_free(out);
    return status;
}

void npy_free(struct npy *npy)
{
    free(npy->data);
    memset(npy, 0, sizeof *npy);
}

enum rn_status npy_write(FILE *out, const float *data, int dims, const int *shape, struct rn_error *error)
{
    char header[256];
    size_t elements = 1, total;
    int n = snprintf(header, sizeof header, "{'descr': '<f4', 'fortran_order': False, 'shape': (");

    for (int i = 0; i < dims; i++) {
        n += snprintf(header + n, sizeof header - (size_t)n,
                      i + 1 < dims ? "%d, "
                      : dims == 1  ? "%d,"
                                   : "%d",
                      shape[i]);
        elements *= (size_t)shape[i];
    }
    n += snprintf(header + n, sizeof header - (size_t)n, "), }");
    /* Spaces, so that the data start at a multiple of 64 bytes. */
    total = size_round_up(PREFIX_BYTES + (size_t)n + 1, HEADER_ALIGNMENT) - PREFIX_BYTES;
    fwrite(MAGIC, 1, sizeof MAGIC - 1, out);
    fputc(0, out);
    fputc((int)(total & 0xff), out);
    fputc((int)(total >> 8), out);
    fprintf(out, "%-*s\n", (int)total - 1, header);
    fwrite(data, sizeof(float), elements, out);
    if (fflush(out) != 0 || ferror(out))
        return rn_fail(error, RN_ERR_IO, "cannot write the array: %s", strerror(errno));
    return RN_OK;
}
