/* test_request_id.c - identifiers are well-formed, distinct and sort by time. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>
#include <time.h>

#include "../../server/request_id.h"

static void new_ones(void **state)
{
    (void)state;
    char a[REQUEST_ID_SIZE], b[REQUEST_ID_SIZE];
    const struct timespec pause = {.tv_nsec = 3000000};

    request_id_new(a);
    assert_int_equal(strlen(a), 26);
    assert_int_equal(strspn(a, "0123456789ABCDEFGHJKMNPQRSTVWXYZ"), 26);
    assert_true(request_id_valid(a));
    request_id_new(b);
    assert_string_not_equal(a, b);
    (void)nanosleep(&pause, NULL);
    request_id_new(b);
    assert_true(strcmp(a, b) < 0);
}

static void clients_ones(void **state)
{
    (void)state;
    char text[REQUEST_ID_SIZE + 1];

    assert_true(request_id_valid("a"));
    assert_true(request_id_valid("Order-66.b_C"));
    assert_false(request_id_valid(""));
    assert_false(request_id_valid("a b"));
    assert_false(request_id_valid("a\nb"));
    assert_false(request_id_valid("\xc3\xa9"));
    memset(text, 'x', sizeof text);
    text[REQUEST_ID_SIZE - 1] = '\0';
    assert_true(request_id_valid(text));
    text[REQUEST_ID_SIZE - 1] = 'x';
    text[REQUEST_ID_SIZE] = '\0';
    assert_false(request_id_valid(text));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(new_ones),
        cmocka_unit_test(clients_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
