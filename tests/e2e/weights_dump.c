/* weights_dump.c - print what the weights reader makes of a file, for test_weights_files.py.
 *
 *   weights_dump FILE   one line for the file: format, SHA-256; one line a tensor: name, dtype, shape, SHA-256 of its
 *                       bytes, SHA-256 of its values as float32 ("-" for a type that is not converted)
 *
 * Exit status 1 with the error's text on stderr when the file is refused. */

#include <inttypes.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../model/weights.h"

static void print_sha256(const void *data, size_t size)
{
    struct sha256_ctx context;
    uint8_t digest[SHA256_DIGEST_SIZE];

    sha256_init(&context);
    sha256_update(&context, size, data);
    sha256_digest(&context, sizeof digest, digest);
    for (size_t i = 0; i < sizeof digest; i++)
        printf("%02x", digest[i]);
}

static size_t element_bytes(enum weights_dtype dtype)
{
    return dtype == WEIGHTS_F32 ? 4 : dtype == WEIGHTS_I64 ? 8 : dtype == WEIGHTS_OTHER ? 0 : 2;
}

static int print_tensor(const struct weights *weights, const struct weights_tensor *tensor)
{
    struct rn_error error;

    printf("%s\t%s\t[", tensor->name, tensor->dtype_name);
    for (int i = 0; i < tensor->dims; i++)
        printf("%s%" PRId64, i ? ", " : "", tensor->shape[i]);
    printf("]\t");
    print_sha256(tensor->data, tensor->elements * element_bytes(tensor->dtype));
    printf("\t");
    if (tensor->dtype == WEIGHTS_I64 || tensor->dtype == WEIGHTS_OTHER) {
        printf("-\n");
        return 0;
    }
    float *values = calloc(tensor->elements + 1, sizeof *values);
    if (!values || weights_read_f32(weights, tensor->name, tensor->dims, tensor->shape, values, &error) != RN_OK) {
        free(values);
        return 1;
    }
    print_sha256(values, tensor->elements * sizeof *values);
    printf("\n");
    free(values);
    return 0;
}

int main(int argc, char **argv)
{
    struct weights *weights;
    struct rn_error error;
    int failed = 0;

    if (argc != 2)
        return 2;
    if (weights_open(argv[1], &weights, &error) != RN_OK) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    printf("%s\t%s\n", weights_format(weights), weights_sha256(weights));
    for (size_t i = 0; i < weights_count(weights) && !failed; i++)
        failed = print_tensor(weights, weights_at(weights, i));
    weights_close(weights);
    return failed;
}
