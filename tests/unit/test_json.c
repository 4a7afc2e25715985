/* test_json.c - the JSON writer: escaping, numbers, layout, and memory that runs out. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../../server/json.h"
#include "fail_alloc.h"

static void expect(struct json *json, const char *wanted)
{
    size_t length;
    char *text = json_take(json, &length);

    assert_non_null(text);
    assert_string_equal(text, wanted);
    assert_int_equal(length, strlen(wanted));
    free(text);
}

static void structure(void **state)
{
    (void)state;
    struct json json = {0};

    json_open(&json, NULL, '{');
    json_open(&json, "empty", '[');
    json_close(&json, ']');
    json_open(&json, "list", '[');
    json_line(&json, 3);
    json_integer(&json, NULL, -5);
    json_line(&json, 3);
    json_unsigned(&json, NULL, UINT64_MAX);
    json_bool(&json, NULL, true);
    json_close(&json, ']');
    json_line(&json, 1);
    json_open(&json, "in", '{');
    json_string(&json, "a", "b");
    json_close(&json, '}');
    json_bool(&json, "no", false);
    json_close(&json, '}');
    expect(&json,
           "{\"empty\": [], \"list\": [-5,\n   18446744073709551615, true],\n \"in\": {\"a\": \"b\"}, \"no\": false}");
}

static void numbers(void **state)
{
    (void)state;
    struct json json = {0};

    json_open(&json, NULL, '[');
    json_digits(&json, NULL, 0.123456789, 6);
    json_digits(&json, NULL, 1.23456789e-9, 6);
    json_digits(&json, NULL, 1, 6);
    json_decimals(&json, NULL, 2.0, 3);
    json_decimals(&json, NULL, 0.0004, 3);
    json_digits(&json, NULL, (double)NAN, 6);
    json_decimals(&json, NULL, -(double)INFINITY, 3);
    json_close(&json, ']');
    expect(&json, "[0.123457, 1.23457e-09, 1, 2.000, 0.000, null, null]");
    json_decimals(&json, NULL, 1e308, 1);
    char *text = json_take(&json, NULL);
    assert_int_equal(strlen(text), 311);
    free(text);
}

static void escaped(const char *bytes, size_t length, const char *wanted)
{
    struct json json = {0};
    json_string_n(&json, NULL, bytes, length);
    expect(&json, wanted);
}

static void text_is_escaped(void **state)
{
    (void)state;
#define ESCAPED(bytes, wanted) escaped(bytes, sizeof bytes - 1, wanted)
    ESCAPED("", "\"\"");
    ESCAPED("a\"b\\c/", "\"a\\\"b\\\\c/\"");
    ESCAPED("\n\t\0\x1f\x7f", "\"\\u000a\\u0009\\u0000\\u001f\\u007f\"");
    ESCAPED("\xc3\xa9 \xe7\x8c\xab \xf0\x9f\x90\x88", "\"\xc3\xa9 \xe7\x8c\xab \xf0\x9f\x90\x88\"");
    ESCAPED("\xff|\xc3|\x80", "\"\xef\xbf\xbd|\xef\xbf\xbd|\xef\xbf\xbd\"");
    ESCAPED("\xc0\xaf", "\"\xef\xbf\xbd\xef\xbf\xbd\"");                 /* overlong */
    ESCAPED("\xe0\x80\xaf", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""); /* overlong */
    ESCAPED("\xed\xa0\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""); /* a surrogate */
    ESCAPED("\xf4\x8f\xbf\xbf", "\"\xf4\x8f\xbf\xbf\"");                 /* U+10FFFF */
    ESCAPED("\xf4\x90\x80\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    ESCAPED("\xe7\x8c", "\"\xef\xbf\xbd\xef\xbf\xbd\""); /* cut off */
#undef ESCAPED
}

static void memory_runs_out(void **state)
{
    (void)state;
    for (long n = 0;; n++) {
        struct json json = {0};
        char *text;

        fail_alloc_at(n);
        json_open(&json, NULL, '[');
        for (int i = 0; i < 2000; i++)
            json_integer(&json, NULL, i);
        json_close(&json, ']');
        text = json_take(&json, NULL);
        if (!fail_alloc_fired()) {
            assert_non_null(text);
            free(text);
            break;
        }
        assert_null(text);
        assert_null(json.text);
    }
    fail_alloc_at(-1);
}

static void growth_has_a_maximum(void **state)
{
    (void)state;
    struct json json = {0};
    char *block = calloc(1, 1 << 20);

    assert_non_null(block);
    for (int i = 0; i < JSON_MAX_BYTES >> 20; i++)
        json_bytes(&json, block, 1 << 20);
    assert_true(json.failed);
    assert_null(json_take(&json, NULL));
    json_free(NULL);
    free(block);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(structure),
        cmocka_unit_test(numbers),
        cmocka_unit_test(text_is_escaped),
        cmocka_unit_test(memory_runs_out),
        cmocka_unit_test(growth_has_a_maximum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
