/* json.h - write JSON into one growing buffer, which then becomes the body of a reply without a copy.
 *
 * Members follow in the order of the calls. Text from outside is always safe to pass: it is escaped, and
 * bytes that are not UTF-8 become U+FFFD. Memory running out (or the maximum) is remembered, so that only
 * json_take needs a check. */

#ifndef RESNETD_SERVER_JSON_H
#define RESNETD_SERVER_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json {
    char *text;
    size_t length, capacity;
    bool failed;
    bool comma; /* a value stands before the next one */
    int indent; /* 0: go on in the same line; else start a line before the next value, after its comma */
};

enum { JSON_MAX_BYTES = 64 << 20 }; /* nothing that the server writes comes near it */

/* A zeroed struct is an empty writer. `key` is NULL for array elements and for the outermost value. */
void json_open(struct json *json, const char *key, char bracket); /* '{' or '[' */
void json_close(struct json *json, char bracket);                 /* '}' or ']' */
void json_string(struct json *json, const char *key, const char *value);
void json_string_n(struct json *json, const char *key, const char *value, size_t length);
void json_integer(struct json *json, const char *key, int64_t value);
void json_unsigned(struct json *json, const char *key, uint64_t value);
void json_bool(struct json *json, const char *key, bool value);
void json_digits(struct json *json, const char *key, double value,
                 int digits); /* significant digits; null if not finite */
void json_decimals(struct json *json, const char *key, double value,
                   int decimals); /* places after the point; likewise */

/* Start a new line, `indent` columns in, before the next member or element (not before the first one). */
void json_line(struct json *json, int indent);

/* Append bytes as they are: white space, a line's end, the text format of the log. */
void json_bytes(struct json *json, const char *text, size_t length);

/* Append `value` in quotes, escaped, without key or comma. */
void json_quoted(struct json *json, const char *value, size_t length);

/* The finished text, malloc'ed, NUL-terminated and owned by the caller; NULL when memory ran out. The
 * writer is empty again either way. */
char *json_take(struct json *json, size_t *length);
void json_free(struct json *json);

#endif
