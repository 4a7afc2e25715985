/* fuzz_multipart.c - any Content-Type and body as a form: refused, or parts that lie inside the body.
 * The input is the Content-Type up to the first line feed, then the body. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../server/multipart.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Whether a slice that the parser handed out lies between data and end. */
static bool inside(const void *at, size_t length, const uint8_t *data, const uint8_t *end)
{
    return !at ||
           ((const uint8_t *)at >= data && (const uint8_t *)at <= end && length <= (size_t)(end - (const uint8_t *)at));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *line = size ? memchr(data, '\n', size) : NULL, *end = data + size;
    size_t length = line ? (size_t)(line - data) : 0;
    char *type = malloc(length + 1);
    struct multipart multipart;
    struct multipart_part part;
    struct rn_error error = {0};
    bool more = true;
    enum rn_status status;

    if (!type)
        return 0;
    memcpy(type, data, length);
    type[length] = '\0';
    if (line)
        data = line + 1;
    (void)multipart_is_form(type);
    status = multipart_open(&multipart, type, data, (size_t)(end - data), &error);
    while (status == RN_OK && more) {
        status = multipart_next(&multipart, &part, &more, &error);
        if (status == RN_OK && more &&
            (!part.name || !inside(part.name, part.name_length, data, end) ||
             !inside(part.data, part.size, data, end) || !inside(part.filename, part.filename_length, data, end) ||
             !inside(part.content_type, part.content_type_length, data, end)))
            abort();
    }
    if (status != RN_OK && (status != RN_ERR_BAD_REQUEST || error.text[0] == '\0'))
        abort();
    free(type);
    return 0;
}
