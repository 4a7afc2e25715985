/* test_query.c - parameters: what is taken, and what each mistake is called. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "../../server/query.h"

static const char *const words[] = {"red", "green", "blue", NULL};

static struct query some(void)
{
    return (struct query){.allowed = 1u << QUERY_TOP_K | 1u << QUERY_SIZE | 1u << QUERY_MODEL};
}

static bool add(struct query *query, const char *name, const char *value)
{
    return query_add(query, name, strlen(name), value, strlen(value));
}

static void values(void **state)
{
    (void)state;
    struct query query = some();

    assert_true(add(&query, "top_k", "007"));
    assert_true(add(&query, "size", "green"));
    assert_true(add(&query, "", ""));
    assert_int_equal(query_integer(&query, QUERY_TOP_K, 1, 7, 5), 7);
    assert_int_equal(query_word(&query, QUERY_SIZE, words, -1), 1);
    assert_null(query_get(&query, QUERY_MODEL));
    assert_string_equal(query_get(&query, QUERY_SIZE), "green");
    assert_int_equal(query_integer(&query, QUERY_HEIGHT, 1, 7, 5), 5);
    assert_int_equal(query_word(&query, QUERY_MODEL, words, -1), -1);
    assert_int_equal(query.error, API_OK);
}

static void refuse(const char *name, const char *value, enum api_error error, const char *says)
{
    struct query query = some();

    assert_false(add(&query, name, value));
    assert_int_equal(query.error, error);
    assert_non_null(strstr(query.text.text, says));
    assert_false(add(&query, "top_k", "1")); /* nothing more is taken */
}

static void refused_names(void **state)
{
    (void)state;
    char long_value[QUERY_VALUE_SIZE + 1];
    struct query none = {0}, twice = some();

    refuse("topk", "1", API_UNKNOWN_PARAMETER, "\"topk\": there are top_k, size, model");
    refuse("height", "1", API_UNKNOWN_PARAMETER, "height");
    refuse("", "1", API_UNKNOWN_PARAMETER, "\"\"");
    refuse("a\nb\x80\"", "1", API_UNKNOWN_PARAMETER, "a?b??");
    refuse("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "1", API_UNKNOWN_PARAMETER, "aaaa...\"");
    memset(long_value, '1', QUERY_VALUE_SIZE);
    long_value[QUERY_VALUE_SIZE] = '\0';
    refuse("top_k", long_value, API_BAD_PARAMETER, "top_k");

    assert_false(add(&none, "top_k", "1"));
    assert_non_null(strstr(none.text.text, "none"));
    assert_true(add(&twice, "top_k", "1"));
    assert_false(add(&twice, "top_k", "1"));
    assert_int_equal(twice.error, API_DUPLICATE_PARAMETER);
    twice = some();
    assert_false(query_add(&twice, "top_k", 5, "1\0", 2));
    assert_int_equal(twice.error, API_BAD_PARAMETER);
    assert_true(query_knows(&none, "top_k", 5) == false && query_knows(&twice, "top_k", 5));
}

static void refused_values(void **state)
{
    (void)state;
    static const char *const bad[] = {"0",   "101", "-1", "+1",  " 1",         "1 ",
                                      "1.0", "0x1", "",   "one", "1000000000", "99999999999999999999"};

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct query query = some();
        assert_true(add(&query, "top_k", bad[i]));
        assert_int_equal(query_integer(&query, QUERY_TOP_K, 1, 100, 5), 5);
        assert_int_equal(query.error, API_BAD_PARAMETER);
        assert_non_null(strstr(query.text.text, "top_k must be a whole number from 1 to 100"));
    }
    struct query query = some();
    assert_true(add(&query, "size", "Red"));
    assert_true(add(&query, "top_k", "x"));
    assert_int_equal(query_word(&query, QUERY_SIZE, words, 2), 2);
    assert_string_equal(query.text.text, "size must be red, green or blue, not \"Red\"");
    assert_int_equal(query_integer(&query, QUERY_TOP_K, 1, 100, 5), 5);
    assert_non_null(strstr(query.text.text, "size")); /* the first mistake stays */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values),
        cmocka_unit_test(refused_names),
        cmocka_unit_test(refused_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
