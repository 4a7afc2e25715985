/* test_pages.c - memory in pages: aligned, usable to its last byte, given back. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../model/pages.h"
#include "fail_alloc.h"

static const size_t MEGABYTE = (size_t)1 << 20;

static void test_sizes_around_the_threshold_are_aligned_and_writable(void **state)
{
    const size_t sizes[] = {1,
                            PAGE_BYTES,
                            PAGE_BYTES + 1,
                            MEGABYTE / 4 - 1,
                            MEGABYTE / 4,
                            2 * MEGABYTE - 1,
                            2 * MEGABYTE,
                            2 * MEGABYTE + 1,
                            7 * MEGABYTE};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char *memory = pages_alloc(sizes[i]);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % PAGE_BYTES, 0);
        memset(memory, 0x5a, sizes[i]);
        assert_int_equal(memory[0], 0x5a);
        assert_int_equal(memory[sizes[i] - 1], 0x5a);
        pages_free(memory, sizes[i]);
    }
}

/* Bytes of this process's address space. */
static size_t address_space(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    unsigned long pages = 0;
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%lu", &pages), 1);
    (void)fclose(file);
    return (size_t)pages * PAGE_BYTES;
}

static void test_what_is_given_back_is_gone(void **state)
{
    enum { ROUNDS = 100 };
    (void)state;
    pages_free(pages_alloc(3 * MEGABYTE), 3 * MEGABYTE);
    const size_t before = address_space();
    for (int i = 0; i < ROUNDS; i++)
        pages_free(pages_alloc(3 * MEGABYTE), 3 * MEGABYTE);
#if !defined(__SANITIZE_ADDRESS__) /* which keeps freed memory for a while, to see who still uses it */
    assert_in_range(address_space(), 0, before + ROUNDS * MEGABYTE);
#else
    (void)before;
#endif
}

static void test_nothing_and_too_much(void **state)
{
    (void)state;
    pages_free(NULL, 0);
    pages_free(NULL, 3 * MEGABYTE);
    assert_null(pages_alloc(SIZE_MAX));
    assert_null(pages_alloc(SIZE_MAX / 4));
    for (size_t bytes = PAGE_BYTES; bytes <= 4 * MEGABYTE; bytes *= 1024) {
        fail_alloc_at(0);
        assert_null(pages_alloc(bytes));
        assert_true(fail_alloc_fired());
        fail_alloc_at(-1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes_around_the_threshold_are_aligned_and_writable),
        cmocka_unit_test(test_what_is_given_back_is_gone),
        cmocka_unit_test(test_nothing_and_too_much),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
