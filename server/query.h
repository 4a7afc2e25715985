/* query.h - the parameters of a request, from the query string or from the text fields of a form.
 *
 * Nothing is ignored: a parameter that the route does not know, comes twice or has a bad value is an
 * error that names it and says what it takes. */

#ifndef RESNETD_SERVER_QUERY_H
#define RESNETD_SERVER_QUERY_H

#include <stdbool.h>
#include <stddef.h>

#include "errors.h"

enum query_parameter {
    QUERY_TOP_K,
    QUERY_SIZE,
    QUERY_ORIENT,
    QUERY_MODEL,
    QUERY_STAGES,
    QUERY_HEIGHT,
    QUERY_WIDTH,
    QUERY_PARAMETER_COUNT
};

enum { QUERY_VALUE_SIZE = 128 };

/* A zeroed struct but for `allowed` is ready. */
struct query {
    unsigned allowed; /* 1 << enum query_parameter, of what the route takes */
    unsigned given;
    char values[QUERY_PARAMETER_COUNT][QUERY_VALUE_SIZE];
    enum api_error error; /* the first one; `text` says what is wrong */
    struct rn_error text;
};

/* Take one parameter; the signature is http_each_parameter's. Returns false once there is an error. */
bool query_add(void *query, const char *name, size_t name_length, const char *value, size_t value_length);

/* Whether `name` is a parameter that this route takes. */
bool query_knows(const struct query *query, const char *name, size_t name_length);

/* A parameter's value, or NULL when it was not given. */
const char *query_get(const struct query *query, enum query_parameter parameter);

/* The value as an integer in min .. max, or `otherwise` when it was not given. Sets query->error. */
long query_integer(struct query *query, enum query_parameter parameter, long min, long max, long otherwise);

/* The value's index in `words` (NULL-terminated), or `otherwise`. Sets query->error. */
int query_word(struct query *query, enum query_parameter parameter, const char *const *words, int otherwise);

#endif
