/* test_multipart.c - parts are found where they are, and every cut of a form is refused. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "../../server/multipart.h"

static const char type[] = "multipart/form-data; boundary=B";

static enum rn_status open_text(struct multipart *multipart, const char *body, size_t size, struct rn_error *error)
{
    return multipart_open(multipart, type, (const uint8_t *)body, size, error);
}

static void is(const char *at, size_t length, const char *wanted)
{
    assert_int_equal(length, strlen(wanted));
    assert_memory_equal(at, wanted, length);
}

static void parts(void **state)
{
    (void)state;
    static const char body[] = "preamble\r\n--B \t\r\n"
                               "Content-Disposition: form-data; name=\"a\"; filename=\"x \\\" y.jpg\"\r\n"
                               "CONTENT-TYPE:  image/jpeg \r\nX-Other: 1\r\n\r\n"
                               "one\r\n--\r\n-B\r\r\n--B\r\n"
                               "content-disposition: FORM-DATA; name=b;\r\n\r\n"
                               "\r\n--B\r\n"
                               "Content-Disposition: form-data; filename=plain; name=c\r\n\r\n"
                               "two\r\n--B--epilogue --B\r\n";
    struct multipart multipart;
    struct multipart_part part;
    struct rn_error error;
    bool more;

    assert_int_equal(open_text(&multipart, body, sizeof body - 1, &error), RN_OK);
    assert_int_equal(multipart_next(&multipart, &part, &more, &error), RN_OK);
    assert_true(more);
    is(part.name, part.name_length, "a");
    is(part.filename, part.filename_length, "x \\\" y.jpg");
    is(part.content_type, part.content_type_length, "image/jpeg");
    is((const char *)part.data, part.size, "one\r\n--\r\n-B\r");
    assert_int_equal(multipart_next(&multipart, &part, &more, &error), RN_OK);
    assert_true(more);
    is(part.name, part.name_length, "b");
    assert_null(part.filename);
    assert_null(part.content_type);
    assert_int_equal(part.size, 0);
    assert_int_equal(multipart_next(&multipart, &part, &more, &error), RN_OK);
    is(part.name, part.name_length, "c");
    is(part.filename, part.filename_length, "plain");
    is((const char *)part.data, part.size, "two");
    assert_int_equal(multipart_next(&multipart, &part, &more, &error), RN_OK);
    assert_false(more);
    assert_int_equal(multipart_next(&multipart, &part, &more, &error), RN_OK);
    assert_false(more);
}

static void which_types_are_forms(void **state)
{
    (void)state;
    static const char *const forms[] = {"multipart/form-data", " multipart/form-data", "Multipart/Form-Data;boundary=x",
                                        "multipart/form-data ; boundary=x"};
    static const char *const others[] = {"", "multipart/form-datax", "multipart/mixed; boundary=x", "image/jpeg",
                                         "multipart/form"};

    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++)
        assert_true(multipart_is_form(forms[i]));
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        assert_false(multipart_is_form(others[i]));
    assert_false(multipart_is_form(NULL));
}

static void boundaries(void **state)
{
    (void)state;
    static const char *const good[] = {"multipart/form-data; boundary=B",
                                       "multipart/form-data;charset=utf-8;  BOUNDARY = \"B\" ;",
                                       "multipart/form-data; a=\"x;boundary=C\"; boundary=B"};
    static const char *const bad[] = {
        "multipart/form-data",
        "multipart/form-data;",
        "multipart/form-data; boundary",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\"\"",
        "multipart/form-data; boundary=\"B",
        "multipart/form-data; =B",
        "multipart/form-data; boundary=B; boundary=B",
        "multipart/form-data; boundary=B x",
        "multipart/form-data; boundary=BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB"};
    static const char body[] = "--B--";
    struct multipart multipart;
    struct rn_error error;

    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_int_equal(multipart_open(&multipart, good[i], (const uint8_t *)body, 5, &error), RN_OK);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(multipart_open(&multipart, bad[i], (const uint8_t *)body, 5, &error), RN_ERR_BAD_REQUEST);
}

/* Walk all parts of a body; RN_OK only for a whole form. */
static enum rn_status walk(const uint8_t *body, size_t size)
{
    struct multipart multipart;
    struct multipart_part part;
    struct rn_error error;
    bool more = true;
    enum rn_status status = multipart_open(&multipart, type, body, size, &error);

    while (status == RN_OK && more)
        status = multipart_next(&multipart, &part, &more, &error);
    return status;
}

static void every_cut_is_refused(void **state)
{
    (void)state;
    static const char body[] =
        "--B\r\nContent-Disposition: form-data; name=\"a\"; filename=\"b\"\r\n\r\ndata\r\n--B\r\n"
        "Content-Disposition: form-data; name=\"c\"\r\nContent-Type: text/plain\r\n\r\n\r\n--B--";
    const size_t size = sizeof body - 1;

    for (size_t cut = 0; cut <= size; cut++) {
        uint8_t *copy = malloc(cut + 1); /* its own block, so that a sanitizer sees a read past the end */
        assert_non_null(copy);
        memcpy(copy, body, cut);
        assert_int_equal(walk(copy, cut), cut == size ? RN_OK : RN_ERR_BAD_REQUEST);
        free(copy);
    }
}

static void malformed(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "\r\n",
        "nothing",
        "--C--",
        "--B",
        "--Bx--",
        "--B-",
        "--B\r\n\r\ndata\r\n--B--",
        "--B\r\nContent-Disposition: attachment; name=a\r\n\r\n\r\n--B--",
        "--B\r\nContent-Disposition: form-data\r\n\r\n\r\n--B--",
        "--B\r\nContent-Disposition: form-data; name\r\n\r\n\r\n--B--",
        "--B\r\nContent-Disposition: form-data name=a\r\n\r\n\r\n--B--",
        "--B\r\nContent-Disposition: form-data; name=\"a\r\n\r\n\r\n--B--",
        "--B\r\nContent-Disposition: form-data; name=\"a\\\r\n\r\n\r\n--B--",
        "--B\r\nContent-Disposition\r\n\r\n\r\n--B--",
        "--B\r\n: form-data; name=a\r\n\r\n\r\n--B--",
        "--B\r\nContent-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: base64\r\n\r\n\r\n--B--",
        "--B\r\nContent-Disposition: form-data; name=a\r\n\r\ndata--B--",
        "--B\r\nContent-Disposition: form-data; name=a\r\n\r\ndata\r\n--Bmore\r\n",
        "--B\nContent-Disposition: form-data; name=a\n\ndata\n--B--",
    };

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(walk((const uint8_t *)bad[i], strlen(bad[i])), RN_ERR_BAD_REQUEST);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts),      cmocka_unit_test(which_types_are_forms),
        cmocka_unit_test(boundaries), cmocka_unit_test(every_cut_is_refused),
        cmocka_unit_test(malformed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
