/* fuzz_weights.c - any bytes as a weights file: refused, or tensors whose bytes can all be read. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../model/weights_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct weights *weights;
    struct rn_error error;

    if (weights_open_memory(data, size, &weights, &error) != RN_OK) {
        if (weights || error.text[0] == '\0')
            abort();
        return 0;
    }
    for (size_t i = 0; i < weights_count(weights); i++) {
        const struct weights_tensor *tensor = weights_at(weights, i);
        if (weights_find(weights, tensor->name) != tensor)
            abort();
        float *values = malloc(tensor->elements * sizeof *values + 1);
        if (!values)
            continue;
        (void)!weights_read_f32(weights, tensor->name, tensor->dims, tensor->shape, values, &error);
        free(values);
    }
    (void)weights_sha256(weights);
    weights_close(weights);
    return 0;
}
