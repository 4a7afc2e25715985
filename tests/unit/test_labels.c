/* test_labels.c - label files. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../model/labels.h"
#include "fail_alloc.h"

static char path[] = "/tmp/test_labels_XXXXXX";

static int make_file(void **state)
{
    (void)state;
    int file = mkstemp(path);
    return file < 0 ? -1 : close(file);
}

static int remove_file(void **state)
{
    (void)state;
    return unlink(path);
}

static void write_text(const char *text, size_t size)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

#define WRITE(literal) write_text(literal, sizeof(literal) - 1)

static void reads_labels(void **state)
{
    static const char *const files[] = {"0\tn1\tred fox\n1\tn2\t\xc3\xa9t\xc3\xa9, summer\n",
                                        "0\tn1\tred fox\n1\tn2\t\xc3\xa9t\xc3\xa9, summer",
                                        "0\tn1\tred fox\r\n1\tn2\t\xc3\xa9t\xc3\xa9, summer\r\n"};
    struct labels labels;
    struct rn_error error;

    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        write_text(files[i], strlen(files[i]));
        assert_int_equal(labels_read(path, &labels, &error), RN_OK);
        assert_int_equal(labels.count, 2);
        assert_string_equal(labels.ids[0], "n1");
        assert_string_equal(labels.labels[0], "red fox");
        assert_string_equal(labels.ids[1], "n2");
        assert_string_equal(labels.labels[1], "\xc3\xa9t\xc3\xa9, summer");
        labels_free(&labels);
        assert_null(labels.text);
        labels_free(&labels);
    }
    labels_free(NULL);
}

static void reads_the_bundled_files(void **state)
{
    struct labels labels;
    struct rn_error error;

    (void)state;
    assert_int_equal(labels_read("config/labels/imagenet-1k.tsv", &labels, &error), RN_OK);
    assert_int_equal(labels.count, 1000);
    assert_string_equal(labels.ids[281], "n02123045");
    assert_string_equal(labels.labels[281], "tabby");
    labels_free(&labels);
    assert_int_equal(labels_read("config/labels/demo64.tsv", &labels, &error), RN_OK);
    assert_int_equal(labels.count, 64);
    labels_free(&labels);
}

static void refuses_other_lines(void **state)
{
    static const struct {
        const char *text;
        size_t size;
        const char *message;
    } cases[] = {
#define CASE(text, message) {text, sizeof(text) - 1, message}
        CASE("", "no labels"),
        CASE("\n", "line 1: expected index, id and label with tabs between them"),
        CASE("0\ta\tb\n\n", "line 2: expected index, id and label"),
        CASE("0\ta\n", "line 1: expected index, id and label"),
        CASE("0 a b\n", "line 1: expected index, id and label"),
        CASE("1\ta\tb\n", "line 1: the index is not the line's number"),
        CASE("0\ta\tb\n2\tc\td\n", "line 2: the index is not the line's number"),
        CASE("\ta\tb\n", "line 1: the index is not the line's number"),
        CASE("00\ta\tb\n", "line 1: the index is not the line's number"),
        CASE("-0\ta\tb\n", "line 1: the index is not the line's number"),
        CASE("0x\ta\tb\n", "line 1: the index is not the line's number"),
        CASE("0\0x\ta\tb\n", "line 1: the index is not the line's number"),
        CASE("99999999999999999999999\ta\tb\n", "line 1: the index is not the line's number"),
        CASE("0\t\tb\n", "line 1: the id or the label is empty"),
        CASE("0\ta\t\n", "line 1: the id or the label is empty"),
        CASE("0\ta\t\r\n", "line 1: the id or the label is empty"),
        CASE("0\ta\tb\tc\n", "line 1: the id or the label is not UTF-8 text, or has a third tab"),
        CASE("0\ta\tb\0c\n", "line 1: the id or the label is not UTF-8 text"),
        CASE("0\ta\xff\tb\n", "line 1: the id or the label is not UTF-8 text"),
        CASE("\xef\xbb\xbf"
             "0\ta\tb\n",
             "line 1: the index is not the line's number"),
    };
    struct labels labels;
    struct rn_error error;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_text(cases[i].text, cases[i].size);
        assert_int_equal(labels_read(path, &labels, &error), RN_ERR_DESCRIPTION);
        if (!strstr(error.text, cases[i].message) || !strstr(error.text, path))
            fail_msg("'%s', not '%s'", error.text, cases[i].message);
        assert_int_equal(labels.count, 0);
        assert_null(labels.ids);
        assert_null(labels.text);
    }
}

static void refuses_other_files(void **state)
{
    struct labels labels;
    struct rn_error error;

    (void)state;
    assert_int_equal(labels_read("/nonexistent/labels.tsv", &labels, &error), RN_ERR_IO);
    assert_string_equal(error.text, "/nonexistent/labels.tsv: cannot open it: No such file or directory");
    assert_int_equal(labels_read("/tmp", &labels, &error), RN_ERR_IO);
    assert_string_equal(error.text, "/tmp: not a regular file");
    WRITE("0\ta\tb\n");
    assert_int_equal(truncate(path, (off_t)16 * 1024 * 1024 + 1), 0);
    assert_int_equal(labels_read(path, &labels, &error), RN_ERR_DESCRIPTION);
    assert_non_null(strstr(error.text, ": more than 16777216 bytes of labels"));
}

static void reports_every_failed_allocation(void **state)
{
    struct labels labels;
    struct rn_error error;

    (void)state;
    WRITE("0\ta\tb\n");
    for (long n = 0;; n++) {
        fail_alloc_at(n);
        enum rn_status status = labels_read(path, &labels, &error);
        bool fired = fail_alloc_fired();
        fail_alloc_at(-1);
        if (!fired)
            break;
        assert_int_equal(status, RN_ERR_NOMEM);
        assert_null(labels.text);
    }
    labels_free(&labels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_labels),
        cmocka_unit_test(reads_the_bundled_files),
        cmocka_unit_test(refuses_other_lines),
        cmocka_unit_test(refuses_other_files),
        cmocka_unit_test(reports_every_failed_allocation),
    };

    return cmocka_run_group_tests(tests, make_file, remove_file);
}
