/* fail_alloc.h - let one chosen allocation fail, to walk every out-of-memory path of a test.
 *
 * Works on the objects linked with -Wl,--wrap=malloc,--wrap=calloc,... (the Makefile's WRAP): calls made
 * inside shared libraries are neither counted nor failed.
 *
 *     for (long n = 0;; n++) {
 *         fail_alloc_at(n);
 *         status = thing_under_test(...);
 *         if (!fail_alloc_fired())
 *             break;                        all allocations succeeded: done
 *         assert_int_equal(status, RN_ERR_NOMEM);
 *     }
 *     fail_alloc_at(-1); */

#ifndef RESNETD_TESTS_FAIL_ALLOC_H
#define RESNETD_TESTS_FAIL_ALLOC_H

#include <stdbool.h>

/* Arm: the nth allocation from now (0-based, counted over all threads) fails once. n < 0 disarms.
 * Forgets an earlier firing either way. */
void fail_alloc_at(long n);

/* Whether the armed failure has happened since the last fail_alloc_at. */
bool fail_alloc_fired(void);

/* Allocations counted since the last fail_alloc_at. */
long fail_alloc_count(void);

#endif
