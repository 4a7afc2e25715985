/* multipart.h - the parts of a multipart/form-data body that lies in memory as a whole, without a copy.
 *
 * libmicrohttpd has a streaming parser, but it copies every byte once more and cannot tell a body that
 * was cut off or that lacks its delimiters from a good one; here each of those is an error that says so.
 *
 * Strict where a mistake could hide a file (delimiters, header lines, the closing delimiter), lenient where
 * RFC 2046 is (a preamble, an epilogue, blanks after a delimiter). */

#ifndef RESNETD_SERVER_MULTIPART_H
#define RESNETD_SERVER_MULTIPART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../model/status.h"

/* A part of the body, borrowed from it; nothing is NUL-terminated. */
struct multipart_part {
    const char *name; /* of the form field, as sent (escapes are left alone) */
    size_t name_length;
    const char *filename; /* NULL when the part has none */
    size_t filename_length;
    const char *content_type; /* NULL when the part has none */
    size_t content_type_length;
    const uint8_t *data;
    size_t size;
};

enum { MULTIPART_BOUNDARY_MAX = 70, MULTIPART_HEADER_MAX = 8192 };

struct multipart {
    const uint8_t *at, *end;                    /* after a delimiter's "--boundary" */
    char delimiter[MULTIPART_BOUNDARY_MAX + 5]; /* CR LF -- boundary */
    size_t delimiter_length;
};

/* Whether a Content-Type names multipart/form-data. */
bool multipart_is_form(const char *content_type);

/* Find the first delimiter. RN_OK or RN_ERR_BAD_REQUEST. */
RN_MUST_CHECK enum rn_status multipart_open(struct multipart *multipart, const char *content_type, const uint8_t *body,
                                            size_t size, struct rn_error *error);

/* The next part; *more is false after the last one. RN_OK or RN_ERR_BAD_REQUEST. */
RN_MUST_CHECK enum rn_status multipart_next(struct multipart *multipart, struct multipart_part *part, bool *more,
                                            struct rn_error *error);

#endif
