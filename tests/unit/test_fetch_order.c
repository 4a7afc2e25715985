/* test_fetch_order.c - a run is fetched whole, each line once, and pages take turns. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "../../model/fetch_order.h"

static void every_line_comes_once(void **state)
{
    const size_t runs[] = {0, 1, 63, 511, 512, 513, 1024, 1500, 4096 + 17};

    (void)state;
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        uint8_t *seen = calloc(runs[i] + 1, 1);
        assert_non_null(seen);
        for (size_t index = 0; index < runs[i]; index++) {
            const size_t offset = fetch_offset(index, runs[i]);
            assert_int_equal(offset % FETCH_LINE, 0);
            assert_true(offset / FETCH_LINE < runs[i]);
            assert_int_equal(seen[offset / FETCH_LINE]++, 0);
        }
        free(seen);
    }
}

static void pages_take_turns(void **state)
{
    const size_t page = (size_t)FETCH_PAGE_LINES * FETCH_LINE;

    (void)state;
    for (size_t index = 0; index < FETCH_PAGES; index++)
        assert_int_equal(fetch_offset(index, FETCH_GROUP), index * page);
    assert_int_equal(fetch_offset(FETCH_PAGES, FETCH_GROUP), FETCH_LINE);
    assert_int_equal(fetch_offset(FETCH_GROUP, 2 * FETCH_GROUP), FETCH_PAGES * page);
}

static void what_fills_no_group_comes_in_order_and_goes_on_behind_the_end(void **state)
{
    (void)state;
    assert_int_equal(fetch_offset(5, 100), 5 * FETCH_LINE);
    assert_int_equal(fetch_offset(100, 100), 100 * FETCH_LINE);
    assert_int_equal(fetch_offset(FETCH_GROUP + 3, FETCH_GROUP + 100), (FETCH_GROUP + 3) * FETCH_LINE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_line_comes_once),
        cmocka_unit_test(pages_take_turns),
        cmocka_unit_test(what_fills_no_group_comes_in_order_and_goes_on_behind_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
