/* test_npy.c - .npy arrays: what is written is read back, and any damage is refused. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "../../server/npy.h"
#include "fail_alloc.h"

static char *write_array(int dims, const int *shape, const float *data, size_t *size)
{
    char *bytes = NULL;
    struct rn_error error;
    FILE *out = open_memstream(&bytes, size);

    assert_non_null(out);
    assert_int_equal(npy_write(out, data, dims, shape, &error), RN_OK);
    fclose(out);
    return bytes;
}

static void round_trip(void **state)
{
    (void)state;
    static const int SHAPES[][NPY_MAX_DIMS] = {{24}, {4, 6}, {2, 3, 4}, {1, 2, 3, 4}};
    float data[24];

    for (int i = 0; i < 24; i++)
        data[i] = (float)i * 0.25f - 1;
    for (int dims = 1; dims <= NPY_MAX_DIMS; dims++) {
        struct rn_error error;
        struct npy npy;
        size_t size;
        char *bytes = write_array(dims, SHAPES[dims - 1], data, &size);
        assert_int_equal((size - sizeof data) % 64, 0); /* NumPy wants the data aligned */
        assert_int_equal(npy_parse((const uint8_t *)bytes, size, &npy, &error), RN_OK);
        assert_int_equal(npy.dims, dims);
        assert_memory_equal(npy.shape, SHAPES[dims - 1], (size_t)dims * sizeof(int));
        assert_int_equal(npy.elements, 24);
        assert_memory_equal(npy.data, data, sizeof data);
        npy_free(&npy);
        npy_free(&npy);
        free(bytes);
    }
}

/* Every prefix, and every byte of the header changed, is refused or read within its bounds. */
static void damage(void **state)
{
    (void)state;
    const int shape[] = {2, 2};
    const float data[] = {1, 2, 3, 4};
    struct rn_error error;
    struct npy npy;
    size_t size;
    char *bytes = write_array(2, shape, data, &size);

    for (size_t cut = 0; cut < size; cut++) {
        uint8_t *part = malloc(cut + 1); /* so that a sanitizer sees a read past the end */
        memcpy(part, bytes, cut);
        assert_int_equal(npy_parse(part, cut, &npy, &error), RN_ERR_BAD_REQUEST);
        assert_null(npy.data);
        free(part);
    }
    for (size_t at = 0; at < size - sizeof data; at++) {
        for (int flip = 1; flip < 256; flip *= 2) {
            bytes[at] = (char)(bytes[at] ^ flip);
            if (npy_parse((const uint8_t *)bytes, size, &npy, &error) == RN_OK)
                assert_int_equal(npy.elements, 4);
            npy_free(&npy);
            bytes[at] = (char)(bytes[at] ^ flip);
        }
    }
    free(bytes);
}

static void without_memory(void **state)
{
    (void)state;
    const int shape[] = {1};
    const float data[] = {1};
    struct rn_error error;
    struct npy npy;
    size_t size;
    char *bytes = write_array(1, shape, data, &size);

    fail_alloc_at(0);
    assert_int_equal(npy_parse((const uint8_t *)bytes, size, &npy, &error), RN_ERR_NOMEM);
    fail_alloc_at(-1);
    assert_null(npy.data);
    free(bytes);
}

static void disk_full(void **state)
{
    (void)state;
    const int shape[] = {1};
    const float data[] = {1};
    struct rn_error error;
    FILE *out = fopen("/dev/full", "w");

    assert_non_null(out);
    assert_int_equal(npy_write(out, data, 1, shape, &error), RN_ERR_IO);
    fclose(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(damage),
        cmocka_unit_test(without_memory),
        cmocka_unit_test(disk_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
