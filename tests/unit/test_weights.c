/* test_weights.c - opening a weights file, finding and converting tensors, and the safetensors format. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../model/float16.h"
#include "../../model/utf8.h"
#include "fail_alloc.h"
#include "weights_bytes.h"

static struct bytes safetensors(const char *header, size_t data_bytes)
{
    struct bytes b = {.size = 0};

    put_int(&b, strlen(header), 8);
    put_text(&b, header);
    for (size_t i = 0; i < data_bytes; i++)
        put_int(&b, i, 1);
    return b;
}

/* Two tensors of each float type, an I64 and a BOOL, at odd addresses. */
static struct bytes good_file(void)
{
    struct bytes b = safetensors("{\"__metadata__\": {\"format\": \"pt\", \"\\u00e9\": \"\"},\n"
                                 " \"mask\": {\"dtype\": \"BOOL\", \"shape\": [1], \"data_offsets\": [0, 1]},"
                                 "\"half\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[9,13]},"
                                 "\"full\":{\"data_offsets\":[1,9],\"shape\":[2],\"dtype\":\"F32\"},"
                                 "\"brain\":{\"dtype\":\"BF16\",\"shape\":[1,2],\"data_offsets\":[13,17]},"
                                 "\"count\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[17,25]},"
                                 "\"none\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[25,25]}} \t\r\n ",
                                 0);
    const float full[2] = {1.5f, -0.1f};

    put_int(&b, 1, 1);
    put(&b, full, sizeof full);
    put_int(&b, 0x3c00, 2); /* 1 */
    put_int(&b, 0x8001, 2); /* -2^-24 */
    put_int(&b, 0x3f80, 2); /* 1 */
    put_int(&b, 0xff80, 2); /* -infinity */
    put_int(&b, 9, 8);
    return b;
}

static void reads_safetensors(void **state)
{
    const struct bytes b = good_file();
    struct weights *weights;
    struct rn_error error;
    float out[2];

    (void)state;
    assert_int_equal(weights_open_memory(b.data, b.size, &weights, &error), RN_OK);
    assert_string_equal(weights_format(weights), "safetensors");
    assert_int_equal(weights_count(weights), 6);
    assert_string_equal(weights_at(weights, 0)->name, "mask");
    assert_string_equal(weights_at(weights, 5)->name, "none");
    assert_int_equal(weights_at(weights, 5)->elements, 0);
    assert_null(weights_find(weights, "mas"));
    assert_null(weights_find(weights, "zzz"));

    const struct weights_tensor *tensor = weights_find(weights, "half");
    assert_int_equal(tensor->dtype, WEIGHTS_F16);
    assert_string_equal(tensor->dtype_name, "F16");
    assert_int_equal(tensor->dims, 2);
    assert_int_equal(tensor->shape[0], 2);
    assert_int_equal(tensor->shape[1], 1);
    assert_int_equal(tensor->elements, 2);

    assert_int_equal(weights_read_f32(weights, "full", 1, (const int64_t[]){2}, out, &error), RN_OK);
    assert_true(out[0] == 1.5f && out[1] == -0.1f);
    assert_int_equal(weights_read_f32(weights, "half", 2, (const int64_t[]){2, 1}, out, &error), RN_OK);
    assert_true(out[0] == 1 && out[1] == -ldexpf(1, -24));
    assert_int_equal(weights_read_f32(weights, "brain", 2, (const int64_t[]){1, 2}, out, &error), RN_OK);
    assert_true(out[0] == 1 && out[1] == -INFINITY);
    assert_int_equal(weights_read_f32(weights, "none", 2, (const int64_t[]){0, 7}, out, &error), RN_OK);

    tensor = weights_find(weights, "count");
    assert_int_equal(tensor->dtype, WEIGHTS_I64);
    assert_int_equal(tensor->dims, 0);
    assert_int_equal(load_u64(tensor->data), 9);
    weights_close(weights);
}

static void read_f32_says_what_is_wrong(void **state)
{
    static const struct {
        const char *name;
        int dims;
        int64_t shape[WEIGHTS_MAX_DIMS];
        const char *text;
    } cases[] = {
        {"absent", 1, {2}, "tensor absent is missing"},
        {"count", 0, {0}, "tensor count is I64; F32, F16 and BF16 are read"},
        {"mask", 1, {1}, "tensor mask is BOOL; F32, F16 and BF16 are read"},
        {"full", 1, {3}, "tensor full has shape [2], the network expects [3]"},
        {"half", 1, {2}, "tensor half has shape [2, 1], the network expects [2]"},
        {"half", 0, {0}, "tensor half has shape [2, 1], the network expects []"},
        {"full",
         8,
         {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX},
         "tensor full has shape [2], the network expects [9223372036854775807, 9223372036854775807]"},
    };
    const struct bytes b = good_file();
    struct weights *weights;
    struct rn_error error;
    float out[8];

    (void)state;
    assert_int_equal(weights_open_memory(b.data, b.size, &weights, NULL), RN_OK);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(weights_read_f32(weights, cases[i].name, cases[i].dims, cases[i].shape, out, &error),
                         RN_ERR_WEIGHTS);
        assert_string_equal(error.text, cases[i].text);
    }
    weights_close(weights);
}

#define TENSOR(dtype, shape, offsets) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void refuses_safetensors(void **state)
{
    static const struct {
        const char *header;
        size_t data_bytes;
        const char *text;
    } cases[] = {
        {"{}", 0, "the file holds no tensors"},
        {"{}", 1, "the tensors end at byte 0 of the data, which has 1"},
        {"{} x", 0, "byte 11 (safetensors header): text behind the closing brace"},
        {"{\"a\":1}", 0, "expected '{'"},
        {"{\"a\":{}}", 0, "expected '\"'"},
        {"{\"a\":" TENSOR("F32", "[1]", "[0,4]"), 4, "expected '}'"},
        {"{\"a\":" TENSOR("F32", "[1]", "[0,4]") ",}", 4, "expected '\"'"},
        {"{\"a\":" TENSOR("F31", "[1]", "[0,4]") "}", 4, "an unknown dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "a tensor lacks dtype, shape or data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 4, "an unknown or repeated key"},
        {"{\"a\":{\"shape\":[],\"shape\":[]}}", 4, "an unknown or repeated key"},
        {"{\"a\":{\"data_offsets\":[0,4],\"data_offsets\":[0,4]}}", 4, "an unknown or repeated key"},
        {"{\"a\":{\"stride\":[1]}}", 4, "an unknown or repeated key"},
        {"{\"a\":" TENSOR("F32", "[2]", "[0,4]") "}", 4, "tensor a has 4 bytes, its shape and dtype need 8"},
        {"{\"a\":" TENSOR("F32", "[1]", "[0,4]") "}", 3, "tensor a has data_offsets [0, 4], the file has 3 bytes"},
        {"{\"a\":" TENSOR("F32", "[1]", "[4,0]") "}", 4, "tensor a has data_offsets [4, 0]"},
        {"{\"a\":" TENSOR("F32", "[1]", "[0,4]") "}", 5, "the tensors end at byte 4 of the data, which has 5"},
        {"{\"a\":" TENSOR("F32", "[1]", "[1,5]") "}", 5, "tensor a begins at byte 1 of the data, where byte 0 is due"},
        {"{\"a\":" TENSOR("F32", "[1]", "[0,4]") ",\"b\":" TENSOR("F32", "[1]", "[2,6]") "}", 6, "tensors overlap"},
        {"{\"a\":" TENSOR("F32", "[1]", "[0,4]") ",\"b\":" TENSOR("F32", "[1]", "[5,9]") "}", 9, "there is a hole"},
        {"{\"a\":" TENSOR("F32", "[1]", "[0,4]") ",\"a\":" TENSOR("F32", "[1]", "[4,8]") "}", 8,
         "tensor a occurs twice"},
        {"{\"a\":" TENSOR("F32", "[9223372036854775807]", "[0,4]") "}", 4, "tensor a has an absurd shape"},
        {"{\"a\":" TENSOR("F32", "[4294967296,4294967296]", "[0,4]") "}", 4, "tensor a has an absurd shape"},
        {"{\"a\":" TENSOR("F32", "[0,4611686018427387904]", "[0,0]") "}", 0, "tensor a has an absurd shape"},
        {"{\"a\":" TENSOR("F32", "[9223372036854775808]", "[0,4]") "}", 4, "an absurd number"},
        {"{\"a\":" TENSOR("F32", "[99999999999999999999999]", "[0,4]") "}", 4, "an absurd number"},
        {"{\"a\":" TENSOR("F32", "[-1]", "[0,4]") "}", 4, "expected an integer of 0 or more"},
        {"{\"a\":" TENSOR("F32", "[1.0]", "[0,4]") "}", 4, "expected an integer of 0 or more"},
        {"{\"a\":" TENSOR("F32", "[1e0]", "[0,4]") "}", 4, "expected an integer of 0 or more"},
        {"{\"a\":" TENSOR("F32", "[01]", "[0,4]") "}", 4, "expected an integer of 0 or more"},
        {"{\"a\":" TENSOR("F32", "[\"1\"]", "[0,4]") "}", 4, "expected an integer of 0 or more"},
        {"{\"a\":" TENSOR("F32", "[[[1]]]", "[0,4]") "}", 4, "expected an integer of 0 or more"},
        {"{\"a\":" TENSOR("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "too many numbers in a list"},
        {"{\"a\":" TENSOR("F32", "[1]", "[0,4,8]") "}", 4, "too many numbers in a list"},
        {"{\"a\":" TENSOR("F32", "[1]", "[0]") "}", 4, "data_offsets must be two numbers"},
        {"{\"\":" TENSOR("F32", "[1]", "[0,4]") "}", 4, "a tensor's name is empty"},
        {"{\"\\u0000\":" TENSOR("F32", "[1]", "[0,4]") "}", 4,
         "a tensor's name is empty, longer than 512 bytes or not"},
        {"{\"\xff\":" TENSOR("F32", "[1]", "[0,4]") "}", 4, "a tensor's name is empty, longer than 512 bytes or not"},
        {"{\"a\nb\":" TENSOR("F32", "[1]", "[0,4]") "}", 4, "a control character in a string"},
        {"{\"\\x\":1}", 0, "an invalid escape in a string"},
        {"{\"\\u12\":1}", 0, "an invalid escape in a string"},
        {"{\"\\udc00\":1}", 0, "an invalid escape in a string"},
        {"{\"\\ud800\":1}", 0, "half a surrogate pair in a string"},
        {"{\"\\ud800\\u0041\":1}", 0, "half a surrogate pair in a string"},
        {"{\"abc", 0, "a string does not end"},
        {"{\"abc\\", 0, "a string does not end"},
        {"{\"abc\\\"", 0, "a string does not end"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "expected '\"'"},
        {"{\"__metadata__\":{\"a\":\"b\",\"__metadata__\":{}}", 0, "expected '\"'"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ occurs twice"},
    };
    struct rn_error error;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct bytes b = safetensors(cases[i].header, cases[i].data_bytes);
        assert_int_equal(open_copy(b.data, b.size, &error), RN_ERR_WEIGHTS);
        if (!strstr(error.text, cases[i].text))
            fail_msg("%s gives '%s', not '%s'", cases[i].header, error.text, cases[i].text);
    }
}

static void refuses_absurd_header_lengths(void **state)
{
    static const uint64_t lengths[] = {0, 1, 3, 100, 100000001, UINT32_MAX, INT64_MAX, UINT64_MAX - 7, UINT64_MAX};
    struct rn_error error;

    (void)state;
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        struct bytes b = safetensors("{}", 0);
        set_int(&b, 0, lengths[i], 8);
        assert_int_equal(open_copy(b.data, b.size, &error), RN_ERR_WEIGHTS);
    }
    assert_string_equal(error.text, "the safetensors header claims 18446744073709551615 bytes of a file of 10");
}

static void accepts_names_with_escapes(void **state)
{
    const struct bytes b =
        safetensors("{\"\\u0061\\\"\\\\\\/\\u00e9\\u20ac\\ud83d\\ude00\xc3\xa9\":" TENSOR("U8", "[1]", "[0,1]") "}", 1);
    struct weights *weights;

    (void)state;
    assert_int_equal(weights_open_memory(b.data, b.size, &weights, NULL), RN_OK);
    assert_string_equal(weights_at(weights, 0)->name, "a\"\\/\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xc3\xa9");
    weights_close(weights);
}

static void limits_the_number_of_tensors(void **state)
{
    const size_t room = 64 * (WEIGHTS_MAX_TENSORS + 1);
    char *file = malloc(room);
    struct rn_error error;

    (void)state;
    assert_non_null(file);
    for (int extra = 0; extra < 2; extra++) {
        size_t at = 8;
        for (int i = 0; i < WEIGHTS_MAX_TENSORS + extra; i++)
            at += (size_t)snprintf(file + at, room - at, "%s\"%d\":" TENSOR("U8", "[0]", "[0,0]"), i ? "," : "{", i);
        file[at++] = '}';
        for (int i = 0; i < 8; i++)
            file[i] = (char)((at - 8) >> 8 * i);
        assert_int_equal(open_copy((const uint8_t *)file, at, &error), extra ? RN_ERR_WEIGHTS : RN_OK);
    }
    assert_non_null(strstr(error.text, "more than 100000 tensors"));
    free(file);
}

static void refuses_every_cut_safetensors(void **state)
{
    const struct bytes b = good_file();

    (void)state;
    check_every_cut(b.data, b.size);
    check_every_byte(b.data, b.size);
}

static void refuses_other_files(void **state)
{
    struct rn_error error;

    (void)state;
    assert_int_equal(open_copy((const uint8_t *)"<html></html>", 13, &error), RN_ERR_WEIGHTS);
    assert_string_equal(error.text, "neither a safetensors file nor a PyTorch state dict by its first bytes");
}

static void write_file(const char *path, const struct bytes *b)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(b->data, 1, b->size, file), b->size);
    assert_int_equal(fclose(file), 0);
}

static void opens_files(void **state)
{
    char folder[] = "/tmp/test_weights_XXXXXX", path[64];
    const struct bytes b = good_file(), empty = {.size = 0};
    struct weights *weights;
    struct rn_error error;
    float out[2];

    (void)state;
    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof path, "%s/w", folder);

    assert_int_equal(weights_open(path, &weights, &error), RN_ERR_IO);
    assert_null(weights);
    assert_non_null(strstr(error.text, path));
    assert_non_null(strstr(error.text, ": cannot open it: No such file or directory"));
    assert_int_equal(weights_open(folder, &weights, &error), RN_ERR_IO);
    assert_non_null(strstr(error.text, ": not a regular file"));
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(weights_open(path, &weights, &error), RN_ERR_IO);
    assert_non_null(strstr(error.text, ": not a regular file"));
    assert_int_equal(unlink(path), 0);
    write_file(path, &empty);
    assert_int_equal(weights_open(path, &weights, &error), RN_ERR_WEIGHTS);
    assert_non_null(strstr(error.text, ": the file is empty"));

    write_file(path, &b);
    assert_int_equal(weights_open(path, &weights, &error), RN_OK);
    assert_int_equal(strlen(weights_sha256(weights)), 64);
    assert_ptr_equal(weights_sha256(weights), weights_sha256(weights));
    assert_int_equal(unlink(path), 0); /* the mapping stays */
    assert_int_equal(weights_read_f32(weights, "full", 1, (const int64_t[]){2}, out, &error), RN_OK);
    assert_true(out[0] == 1.5f);
    weights_close(weights);

    write_file(path, &b);
    for (long n = 0;; n++) {
        fail_alloc_at(n);
        enum rn_status status = weights_open(path, &weights, &error);
        bool fired = fail_alloc_fired();
        fail_alloc_at(-1);
        if (!fired)
            break;
        assert_int_equal(status, RN_ERR_NOMEM);
        assert_null(weights);
        assert_non_null(strstr(error.text, "out of memory"));
    }
    weights_close(weights);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
    weights_close(NULL);
}

static void digests_like_sha256(void **state)
{
    struct bytes b = safetensors("{\"a\":" TENSOR("U8", "[3]", "[0,3]") "}", 3);
    struct weights *weights;

    (void)state;
    assert_int_equal(weights_open_memory(b.data, b.size, &weights, NULL), RN_OK);
    assert_string_equal(weights_sha256(weights), "9fb7cade50123f28c6cbdd60bec99728b3db67b1150d0159fbe85e5cc159dd1e");
    weights_close(weights);
}

static void converts_every_half(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 65536; half++) {
        const uint32_t sign = half >> 15, exponent = half >> 10 & 31, fraction = half & 1023;
        const float value = float16_to_float32((uint16_t)half);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        assert_int_equal(bits >> 31, sign);
        if (exponent == 31)
            assert_int_equal(bits & 0x7fffffff, 0x7f800000 | fraction << 13);
        else if (exponent == 0)
            assert_true(fabsf(value) == ldexpf((float)fraction, -24));
        else
            assert_true(fabsf(value) == ldexpf((float)(1024 + fraction), (int)exponent - 25));
    }
}

static void converts_every_bfloat(void **state)
{
    (void)state;
    for (uint32_t bfloat = 0; bfloat < 65536; bfloat++) {
        const float value = bfloat16_to_float32((uint16_t)bfloat);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        assert_int_equal(bits, bfloat << 16);
    }
}

static void tells_printable_utf8(void **state)
{
    static const char *const good[] = {"",
                                       "a b~",
                                       "\xc2\xa0",
                                       "\xdf\xbf",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80",
                                       "\xef\xbf\xbf",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {"\n",
                                      "\x1f",
                                      "\x7f",
                                      "\x80",
                                      "\xc1\xbf",
                                      "\xc2",
                                      "\xc2\x80",
                                      "\xc2\x9f",
                                      "\xc3(",
                                      "\xe0\x9f\xbf",
                                      "\xe2\x82",
                                      "\xe2\x82(",
                                      "\xed\xa0\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xff"};

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(utf8_is_printable(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(utf8_is_printable(bad[i], strlen(bad[i])));
    assert_false(utf8_is_printable("", 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_safetensors),
        cmocka_unit_test(read_f32_says_what_is_wrong),
        cmocka_unit_test(refuses_safetensors),
        cmocka_unit_test(refuses_absurd_header_lengths),
        cmocka_unit_test(accepts_names_with_escapes),
        cmocka_unit_test(limits_the_number_of_tensors),
        cmocka_unit_test(refuses_every_cut_safetensors),
        cmocka_unit_test(refuses_other_files),
        cmocka_unit_test(opens_files),
        cmocka_unit_test(digests_like_sha256),
        cmocka_unit_test(converts_every_half),
        cmocka_unit_test(converts_every_bfloat),
        cmocka_unit_test(tells_printable_utf8),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
