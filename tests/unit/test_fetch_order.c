/* test_fetch_order.c - runs are fetched whole, each line once, and pages take turns. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "../../model/fetch_order.h"

enum { PAGE = FETCH_PAGE_LINES * FETCH_LINE };

static char memory[64 * PAGE];

/* The number in `memory` of a run's line. */
static size_t line_of(const struct fetch_run *run, size_t index)
{
    const size_t offset = (size_t)(fetch_line(run, index) - memory);
    assert_int_equal(offset % FETCH_LINE, 0);
    return offset / FETCH_LINE;
}

static void every_line_comes_once(void **state)
{
    const size_t sizes[] = {0, 1, 63, 511, 512, 513, 1024, 1500, 4000};

    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct fetch_run runs[2];
        uint8_t *seen = calloc(sizes[i] + 1, 1);
        assert_non_null(seen);
        fetch_pages(memory, sizes[i] * FETCH_LINE, runs);
        assert_int_equal(runs[0].lines + runs[1].lines, sizes[i]);
        for (int run = 0; run < 2; run++)
            for (size_t index = 0; index < runs[run].lines; index++) {
                const size_t line = line_of(&runs[run], index);
                assert_true(line < sizes[i]);
                assert_int_equal(seen[line]++, 0);
            }
        free(seen);
    }
}

static void pages_take_turns(void **state)
{
    struct fetch_run runs[2];

    (void)state;
    fetch_pages(memory, (size_t)2 * FETCH_GROUP * FETCH_LINE + 5 * FETCH_LINE, runs);
    for (size_t i = 0; i < FETCH_COLUMNS; i++) {
        assert_int_equal(line_of(&runs[0], i), i * FETCH_PAGE_LINES);
        assert_int_equal(line_of(&runs[0], FETCH_COLUMNS + i), i * FETCH_PAGE_LINES + 1);
        assert_int_equal(line_of(&runs[0], FETCH_GROUP + i), FETCH_GROUP + i * FETCH_PAGE_LINES);
    }
    assert_int_equal(runs[1].lines, 5);
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(line_of(&runs[1], i), 2 * FETCH_GROUP + i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_line_comes_once),
        cmocka_unit_test(pages_take_turns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
