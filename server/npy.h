/* npy.h - float32 arrays in NumPy's .npy files, version 1.0, little-endian, C order: what the command line
 * exchanges with Python. */

#ifndef RESNETD_SERVER_NPY_H
#define RESNETD_SERVER_NPY_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "../model/status.h"

enum { NPY_MAX_DIMS = 4 };

struct npy {
    int dims;
    int shape[NPY_MAX_DIMS]; /* each >= 1 */
    size_t elements;         /* product of shape */
    float *data;             /* [elements], heap, owned */
};

/* Read an array from bytes in memory. RN_ERR_BAD_REQUEST when they are not such a file; `out` is zeroed
 * on failure. RN_ERR_NOMEM. */
RN_MUST_CHECK enum rn_status npy_parse(const uint8_t *bytes, size_t size, struct npy *out, struct rn_error *error);
void npy_free(struct npy *npy);

/* Write [shape[0], .. shape[dims - 1]] floats. Returns RN_OK or RN_ERR_IO. */
RN_MUST_CHECK enum rn_status npy_write(FILE *out, const float *data, int dims, const int *shape,
                                       struct rn_error *error);

#endif
