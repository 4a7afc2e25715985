/* labels.h - class labels from a tab-separated file: index, id, label; one class a line, in order. */

#ifndef RESNETD_MODEL_LABELS_H
#define RESNETD_MODEL_LABELS_H

#include <stddef.h>

#include "status.h"

struct labels {
    size_t count;
    char **ids;    /* "n02123045"; [count] */
    char **labels; /* "tabby"; [count] */
    char *text;    /* what ids and labels point into */
};

/* Read `path`: UTF-8, lines numbered 0, 1, 2, ..., each with an id and a label of at least one character; the last
 * line's end may be missing, and lines may end in CR LF. RN_ERR_IO, RN_ERR_DESCRIPTION (with the path and the line),
 * RN_ERR_NOMEM; `out` is zeroed on failure. */
RN_MUST_CHECK enum rn_status labels_read(const char *path, struct labels *out, struct rn_error *error);

/* NULL and zeroed structs are fine; the struct is zeroed. */
void labels_free(struct labels *labels);

#endif
