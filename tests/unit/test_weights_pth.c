/* test_weights_pth.c - PyTorch's zip and legacy files, and the restricted pickle reader. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "fail_alloc.h"
#include "weights_bytes.h"

/* A literal with its length, which may hold NULs. */
#define P(literal) literal, sizeof(literal) - 1

/* Pieces of pickles. Octal escapes, as they end after three digits. */
#define STRING1(text)   "X\1\0\0\0" text
#define STORAGE(type)   "(X\7\0\0\0storagectorch\n" type "\n" STRING1("k") "X\3\0\0\0cpuK\2tQ"
#define ARGS(args)      "ctorch._utils\n_rebuild_tensor_v2\n(" args "tR"
#define TENSOR          ARGS(STORAGE("FloatStorage") "K\0K\2\205K\1\205\211}")
#define ORDERED_DICT(x) "ccollections\nOrderedDict\n" x "R"

static void read_fixture(const char *name, struct bytes *b)
{
    char path[64];

    (void)snprintf(path, sizeof path, "tests/data/weights/%s", name);
    FILE *file = fopen(path, "rb");
    if (!file)
        fail_msg("cannot open %s; run the tests from the project's folder", path);
    b->size = fread(b->data, 1, sizeof b->data, file);
    fclose(file);
}

enum { OBJECT_AT = 45 };

/* A legacy file around the pickle of an object, with the storage "k" of two floats if it has storages. */
static struct bytes legacy(const char *object, size_t size)
{
    struct bytes b = {.size = 0};

    put(&b, P("\200\2\212\12\154\374\234\106\371\40\152\250\120\31.\200\2M\351\3."));
    put(&b, P("\200\2}X\15\0\0\0little_endian\210s."));
    assert_int_equal(b.size, OBJECT_AT);
    put(&b, object, size);
    if (!memmem(object, size, "storage", 7)) {
        put(&b, P("\200\2]."));
        return b;
    }
    put(&b, P("\200\2]" STRING1("k") "a."));
    put_int(&b, 2, 8);
    put_int(&b, 0x3f800000, 4);
    put_int(&b, 0xc0000000, 4);
    return b;
}

static struct weights *open_bytes(const struct bytes *b)
{
    struct weights *weights;
    struct rn_error error;

    if (weights_open_memory(b->data, b->size, &weights, &error) != RN_OK)
        fail_msg("%s", error.text);
    return weights;
}

static void check_refused(const struct bytes *b, const char *text)
{
    struct rn_error error;

    assert_int_equal(open_copy(b->data, b->size, &error), RN_ERR_WEIGHTS);
    if (!strstr(error.text, text))
        fail_msg("refused with '%s', not '%s'", error.text, text);
}

static void reads_the_fixtures(void **state)
{
    static const struct {
        const char *file, *format;
    } fixtures[] = {{"zip.pth", "pth (zip)"},
                    {"legacy.pth", "pth (legacy)"},
                    {"protocol4.pth", "pth (legacy)"},
                    {"checkpoint.pth", "pth (legacy)"},
                    {"small.safetensors", "safetensors"}};

    (void)state;
    for (size_t i = 0; i < sizeof fixtures / sizeof fixtures[0]; i++) {
        struct bytes b;
        float out[8];
        read_fixture(fixtures[i].file, &b);
        struct weights *weights = open_bytes(&b);
        assert_string_equal(weights_format(weights), fixtures[i].format);
        assert_int_equal(weights_count(weights), 4);
        assert_string_equal(weights_at(weights, 0)->name, "conv.weight");
        assert_int_equal(weights_read_f32(weights, "conv.weight", 4, (const int64_t[]){2, 1, 2, 2}, out, NULL), RN_OK);
        for (int k = 0; k < 8; k++)
            assert_true(out[k] == (float)k / 2);
        assert_int_equal(weights_read_f32(weights, "bn.weight", 1, (const int64_t[]){3}, out, NULL), RN_OK);
        assert_true(out[0] == 1 && out[1] == -2 && out[2] == 0.25f);
        assert_int_equal(weights_read_f32(weights, "tied", 2, (const int64_t[]){2, 2}, out, NULL), RN_OK);
        assert_true(out[0] == 2 && out[1] == 2.5f && out[2] == 3 && out[3] == 3.5f);
        assert_int_equal(load_u64(weights_find(weights, "bn.num_batches_tracked")->data), 7);
        weights_close(weights);
    }
}

static void refuses_every_cut_and_survives_every_change(void **state)
{
    static const char *const files[] = {"zip.pth", "legacy.pth", "protocol4.pth", "checkpoint.pth"};

    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        struct bytes b;
        read_fixture(files[i], &b);
        check_every_cut(b.data, b.size);
        check_every_byte(b.data, b.size);
    }
}

static void reports_every_failed_allocation(void **state)
{
    static const char *const files[] = {"zip.pth", "legacy.pth"};

    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        struct bytes b;
        read_fixture(files[i], &b);
        for (long n = 0;; n++) {
            struct weights *weights;
            struct rn_error error;
            fail_alloc_at(n);
            enum rn_status status = weights_open_memory(b.data, b.size, &weights, &error);
            bool fired = fail_alloc_fired();
            fail_alloc_at(-1);
            if (!fired) {
                weights_close(weights);
                break;
            }
            assert_int_equal(status, RN_ERR_NOMEM);
            assert_null(weights);
        }
    }
}

static void accepts_pickles(void **state)
{
    static const struct {
        const char *pickle;
        size_t size;
        const char *name;
    } cases[] = {
        {P("\200\2}" STRING1("a") TENSOR "s."), "a"},
        {P("\200\2" ORDERED_DICT(")") "(" STRING1("a") TENSOR "u."), "a"},
        /* As Python 2 and PyTorch before 0.4 wrote it. */
        {P("\200\2" ORDERED_DICT("](](U\1a" TENSOR "ee\205") "."), "a"},
        {P("\200\2" ORDERED_DICT("](U\1a" TENSOR "\206e\205") "."), "a"},
        {P("\200\2}T\1\0\0\0actorch._utils\n_rebuild_tensor\n(" STORAGE("FloatStorage") "K\0K\2\205K\1\205tRs."), "a"},
        /* LONG1 of no and of few bytes, a parameter, other values beside it. */
        {P("\200\2}" STRING1("a") "ctorch._utils\n_rebuild_parameter\n" ARGS(
             STORAGE("FloatStorage") "\212\0\212\1\2\205\212\1\1\205\211}") "\210}\207Rs" STRING1("n") "\212\1\377s."),
         "a"},
        {P("\200\2}(K\1NX\5\0\0\0epochJ\377\377\377\377" STRING1("l") "G\0\0\0\0\0\0\0\0" STRING1("b") "\210" STRING1(
             "o") "}K\0]K\1as" STRING1("a") TENSOR "u."),
         "a"},
        /* Checkpoints; the dict of tensors under a known key goes before tensors beside it. */
        {P("\200\2}X\5\0\0\0model}" STRING1("a") TENSOR "ss."), "a"},
        {P("\200\2}(X\20\0\0\0model_state_dict}" STRING1("a") TENSOR "s" STRING1("z") TENSOR "u."), "a"},
        {P("\200\2}(X\12\0\0\0state_dict}X\10\0\0\0module.a" TENSOR "su."), "a"},
        {P("\200\2}X\7\0\0\0module." TENSOR "s."), "module."},
        /* Frames, STACK_GLOBAL and the memo of protocol 4. */
        {P("\200\4\225\1\0\0\0\0\0\0\0}\224\214\1a\215\14\0\0\0\0\0\0\0torch._utils\214\22_rebuild_tensor_"
           "v2\223\224(" //
           STORAGE("FloatStorage") "K\0K\2\205K\1\205\211}tRs."),
         "a"},
        /* The memo, with a dict that contains itself. */
        {P("\200\2}q\0(U\1x}q\1r\1\0\0\0h\1\206U\1yj\0\0\0\0" STRING1("a") TENSOR "u."), "a"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct bytes b = legacy(cases[i].pickle, cases[i].size);
        float out[2];
        struct weights *weights = open_bytes(&b);
        assert_int_equal(weights_count(weights), 1);
        assert_int_equal(weights_read_f32(weights, cases[i].name, 1, (const int64_t[]){2}, out, NULL), RN_OK);
        assert_true(out[0] == 1 && out[1] == -2);
        weights_close(weights);
    }
}

static void refuses_pickles(void **state)
{
    static const struct {
        const char *pickle;
        size_t size;
        const char *text;
    } cases[] = {
        /* What runs code in Python. The object begins at byte 45. */
        {P("\200\2cos\nsystem\nU\4true\205R."), "byte 47 (pickle): the global os.system is not part of a state dict"},
        {P("\200\2c__builtin__\neval\nU\0041+1.\205R."), "the global __builtin__.eval is not part"},
        {P("\200\4\214\5posix\214\6system\223."), "byte 62 (pickle): the global posix.system is not part"},
        {P("\200\2ctorch.nn.modules.linear\nLinear\n)\201."), "the global torch.nn.modules.linear.Linear is not"},
        {P("\200\2ctorch\nComplexFloatStorage\n."), "the global torch.ComplexFloatStorage is not part"},
        {P("\200\2ccollections\n\033[2J\n."), "the name of a global is too long or not text"},
        {P("\200\2c_________1_________2_________3_________4_________5_________6_________7_________8_________9\na\n."),
         "the name of a global is too long or not text"},
        {P("\200\2cabc"), "byte 47 (pickle): cut off"},
        {P("\200\4K\1K\2\223."), "the name of a global is not a string"},
        {P("\200\2(U\4trueios\nsystem\n."), "byte 54 (pickle): the opcode 0x69 is not part of a state dict"},
        {P("\200\2\202\1."), "byte 47 (pickle): the opcode 0x82 is not part of a state dict"},
        {P("\200\1N."), "the protocol is none of 2 to 5"},
        {P("\200\6N."), "the protocol is none of 2 to 5"},
        {P("\200\4\225\377\377\377\377\377\377\377\377N."), "byte 47 (pickle): cut off"},
        /* A machine that is asked for what it has not. */
        {P("\200\2."), "the stack has too few values"},
        {P("\200\2(."), "the stack has too few values"},
        {P("\200\2(q\0."), "the stack has too few values"},
        {P("\200\2N\206."), "the stack has too few values"},
        {P("\200\2(N\206."), "the stack has too few values"},
        {P("\200\2R."), "the stack has too few values"},
        {P("\200\2NR."), "the stack has too few values"},
        {P("\200\2Q."), "the stack has too few values"},
        {P("\200\2b."), "the stack has too few values"},
        {P("\200\2\223."), "the stack has too few values"},
        {P("\200\2Na."), "the stack has too few values"},
        {P("\200\2Nt."), "no mark on the stack"},
        {P("\200\2}u."), "no mark on the stack"},
        {P("\200\2h\0."), "the memo has no such entry"},
        {P("\200\2j\377\377\377\377."), "the memo has no such entry"},
        {P("\200\2Nr\377\377\377\377."), "the memo is filled out of order"},
        {P("\200\2Nq\1."), "the memo is filled out of order"},
        {P("\200\2X\377\377\377\377."), "byte 47 (pickle): cut off"},
        {P("\200\4\215\377\377\377\377\377\377\377\377."), "byte 47 (pickle): cut off"},
        {P("\200\2\212\377."), "byte 47 (pickle): cut off"},
        {P("\200\2NK\1a."), "items are added to something that is no list or dict"},
        {P("\200\2]K\1K\1s."), "items are added to something that is no list or dict"},
        {P("\200\2}(K\1u."), "items are added to something that is no list or dict"},
        {P("\200\2}Nb."), "BUILD of something else"},
        {P("\200\2N}b."), "BUILD of something else"},
        {P("\200\2N)R."), "REDUCE of something that is no function"},
        {P("\200\2ccollections\nOrderedDict\nNR."), "REDUCE of something that is no function"},
        {P("\200\2ctorch\nFloatStorage\n)R."), "a storage class is called"},
        {P("\200\2" ORDERED_DICT("N\205") "."), "an OrderedDict is not built from a list of pairs"},
        {P("\200\2" ORDERED_DICT("]]\206") "."), "an OrderedDict is not built from a list of pairs"},
        {P("\200\2" ORDERED_DICT("]Na\205") "."), "an OrderedDict is not built from a list of pairs"},
        {P("\200\2" ORDERED_DICT("])a\205") "."), "an OrderedDict is not built from a list of pairs"},
        {P("\200\2ctorch._utils\n_rebuild_parameter\n)R."), "a parameter is not built from a tensor"},
        {P("\200\2ctorch._utils\n_rebuild_parameter\nN\205R."), "a parameter is not built from a tensor"},
        /* Storages. */
        {P("\200\2NQ."), "a persistent id is not that of a storage"},
        {P("\200\2)Q."), "a persistent id is not that of a storage"},
        {P("\200\2(X\6\0\0\0moduleNNNNtQ."), "a persistent id is not that of a storage"},
        {P("\200\2(X\7\0\0\0storageccollections\nOrderedDict\nU\1kNK\1tQ."),
         "a persistent id is not that of a storage"},
        {P("\200\2(X\7\0\0\0storagectorch\nFloatStorage\nU\1kNJ\377\377\377\377tQ."), "a persistent id is not that"},
        {P("\200\2(X\7\0\0\0storagectorch\nFloatStorage\nU\1kNK\1]tQ."), "a storage is a view of another one"},
        /* Tensors. */
        {P("\200\2" ARGS("") "."), "a tensor is not built from a storage"},
        {P("\200\2" ARGS("NK\0K\2\205K\1\205") "."), "a tensor is not built from a storage"},
        {P("\200\2" ARGS(STORAGE("FloatStorage") "J\377\377\377\377K\2\205K\1\205") "."), "a tensor is not built"},
        {P("\200\2" ARGS(STORAGE("FloatStorage") "K\0K\2K\1") "."), "a tensor's sizes and strides"},
        {P("\200\2" ARGS(STORAGE("FloatStorage") "K\0K\2\205K\1K\1\206") "."), "a tensor's sizes and strides"},
        {P("\200\2" ARGS(STORAGE("FloatStorage") "K\0N\205K\1\205") "."), "a tensor's sizes and strides"},
        {P("\200\2" ARGS(STORAGE("FloatStorage") "K\0\212\1\377\205K\1\205") "."), "a tensor's sizes and strides"},
        {P("\200\2" ARGS(STORAGE("FloatStorage") "K\0(K\1K\1K\1K\1K\1K\1K\1K\1K\1t)") "."),
         "a tensor's sizes and strides"},
        {P("\200\2}" STRING1("a") ARGS(STORAGE("FloatStorage") "K\0K\3\205K\1\205") "s."),
         "tensor a reaches outside its storage of 2 elements"},
        {P("\200\2}" STRING1("a") ARGS(STORAGE("FloatStorage") "K\1K\2\205K\1\205") "s."), "tensor a reaches outside"},
        {P("\200\2}" STRING1("a") ARGS(STORAGE("FloatStorage") "K\0K\2\205K\2\205") "s."), "tensor a reaches outside"},
        {P("\200\2}" STRING1("a")
               ARGS(STORAGE("FloatStorage") "\212\10\377\377\377\377\377\377\377\177K\2\205K\1\205") "s."),
         "tensor a reaches outside"},
        {P("\200\2}" STRING1("a")
               ARGS(STORAGE("FloatStorage") "K\0K\2K\2\206\212\10\377\377\377\377\377\377\377\177\211\206") "s."),
         "a tensor's sizes and strides"},
        {P("\200\2}" STRING1("a") ARGS(
             STORAGE("FloatStorage") "K\0(K\2K\2K\2t(" //
                                     "\212\10\377\377\377\377\377\377\377\177\212\10\377\377\377\377\377\377\377\177"
                                     "\212\10\377\377\377\377\377\377\377\177t") "s."),
         "tensor a reaches outside"},
        {P("\200\2}" STRING1("a") ARGS(STORAGE("FloatStorage") "K\0\212\10\0\0\0\0\0\0\0\100\205K\0\205") "s."),
         "tensor a has an absurd shape"},
        {P("\200\2}" STRING1("a") ARGS(STORAGE("FloatStorage") "K\0K\3\205K\0\205") "s."),
         "tensor a repeats the elements"},
        {P("\200\2}K\1" TENSOR "s."), "a tensor's name is not a string"},
        {P("\200\2}(" STRING1("a") TENSOR STRING1("a") TENSOR "u."), "tensor a occurs twice"},
        {P("\200\2}U\0" TENSOR "s."), "a tensor's name is empty"},
        /* Not a state dict. */
        {P("\200\2N."), "no state dict"},
        {P("\200\2}."), "no state dict"},
        {P("\200\2" TENSOR "."), "no state dict"},
        {P("\200\2}X\5\0\0\0modelNs."), "no state dict"},
        {P("\200\2}X\5\0\0\0model}s."), "no state dict"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bytes b = legacy(cases[i].pickle, cases[i].size);
        if (strstr(cases[i].text, "cut off"))
            b.size = OBJECT_AT + cases[i].size; /* the file ends with it */
        check_refused(&b, cases[i].text);
    }
}

static void refuses_unknown_opcodes(void **state)
{
    /* What the reader knows, STOP among it. */
    static const char known[] = "().GJKMNQRTUX]abcehjqrstu}\x80\x85\x86\x87\x88\x89\x8a\x8c\x8d\x93\x94\x95";
    char text[80];

    (void)state;
    for (int op = 0; op < 256; op++) {
        const char pickle[] = {'\x80', '\2', 'N', (char)op, '.'};
        if (memchr(known, op, sizeof known - 1))
            continue;
        const struct bytes b = legacy(pickle, sizeof pickle);
        (void)snprintf(text, sizeof text, "byte 48 (pickle): the opcode 0x%02x is not part of a state dict",
                       (unsigned)op);
        check_refused(&b, text);
    }
}

/* Run `pickle` as the object of a legacy file of `size` bytes, filled up with `filler`. */
static void check_bomb(const char *pickle, size_t pickle_size, char filler, size_t size, const char *text)
{
    const struct bytes head = legacy(pickle, pickle_size);
    uint8_t *file = malloc(size);
    struct rn_error error;

    assert_non_null(file);
    memset(file, filler, size);
    memcpy(file, head.data, OBJECT_AT + pickle_size);
    assert_int_equal(open_copy(file, size, &error), RN_ERR_WEIGHTS);
    if (!strstr(error.text, text))
        fail_msg("refused with '%s', not '%s'", error.text, text);
    free(file);
}

static void bounds_memory(void **state)
{
    (void)state;
    check_bomb(P("\200\2"), 'N', 2 << 20, "the stack is too deep");
    check_bomb(P("\200\2"), '(', 2 << 20, "the stack is too deep");
    check_bomb(P("\200\2N"), '\224', 8 << 20, "reading it would need more than 268435456 bytes");
    check_bomb(P("\200\2N"), '\205', 8 << 20, "reading it would need more than 268435456 bytes");
}

static void refuses_legacy_files(void **state)
{
    static const struct {
        const char *file;
        size_t size;
        const char *text;
    } cases[] = {
        {P("\200\2N."), "the magic number is missing"},
        {P("\200\2\212\1\154."), "the magic number is missing"},
        {P("\200\2\212\12\155\374\234\106\371\40\152\250\120\31."), "byte 0 (legacy PyTorch file): the magic number"},
        {P("\200\2\212\12\154\374\234\106\371\40\152\250\120\31.\200\2M\352\3."), "the protocol version is not 1001"},
        {P("\200\2\212\12\154\374\234\106\371\40\152\250\120\31.\200\2M\351\3.\200\2N."), "big-endian"},
        {P("\200\2\212\12\154\374\234\106\371\40\152\250\120\31.\200\2M\351\3.\200\2}."), "big-endian"},
        {P("\200\2\212\12\154\374\234\106\371\40\152\250\120\31.\200\2M\351\3."
           "\200\2}X\15\0\0\0little_endian\211s."),
         "byte 21 (legacy PyTorch file): the tensors are big-endian"},
    };
    /* What stands behind the object, instead of the list of keys and the storage. */
    static const struct {
        const char *tail;
        size_t size;
        const char *text;
    } tails[] = {
        {P("\200\2N."), "the list of storages is missing"},
        {P("\200\2]."), "tensor a: its storage is not in the file"},
        {P("\200\2]Na."), "a storage belongs to no tensor"},
        {P("\200\2]U\1la."), "a storage belongs to no tensor"},
        {P("\200\2]U\2kka."), "a storage belongs to no tensor"},
        {P("\200\2]U\1ka.\2\0\0\0\0\0\0"), "cut off before a storage"},
        {P("\200\2]U\1ka.\2\0\0\0\0\0\0\0abcdefg"), "a storage reaches outside the file"},
        {P("\200\2]U\1ka.\377\377\377\377\377\377\377\377abcdefgh"), "a storage reaches outside the file"},
        {P("\200\2]U\1ka.\0\0\0\0\0\0\0\100abcdefgh"), "a storage reaches outside the file"},
        {P("\200\2]U\1ka.\1\0\0\0\0\0\0\0abcdefgh"), "a storage has 4 bytes, its 2 elements of F32 need others"},
        {P("\200\2](U\1kU\1ke.\2\0\0\0\0\0\0\0abcdefgh\2\0\0\0\0\0\0\0abcdefgh"), "a storage occurs twice"},
    };
    static const char object[] = "\200\2}" STRING1("a") TENSOR "s.";

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bytes b = {.size = 0};
        put(&b, cases[i].file, cases[i].size);
        check_refused(&b, cases[i].text);
    }
    for (size_t i = 0; i < sizeof tails / sizeof tails[0]; i++) {
        struct bytes b = legacy(object, sizeof object - 1);
        b.size = OBJECT_AT + sizeof object - 1;
        put(&b, tails[i].tail, tails[i].size);
        check_refused(&b, tails[i].text);
    }
}

/* ---- zip ---- */

struct member {
    const char *name, *data;
    size_t size;
    size_t local_at, central_at; /* where zip() put it */
};

static void put_member(struct bytes *b, const struct member *member, bool central)
{
    put_int(b, central ? 0x02014b50 : 0x04034b50, 4);
    put_int(b, 0, central ? 4 : 2); /* versions */
    put_int(b, 0, 2 + 2);           /* flags, method */
    put_int(b, 0, 4 + 4);           /* time, CRC-32 */
    put_int(b, member->size, 4);
    put_int(b, member->size, 4);
    put_int(b, strlen(member->name), 2);
    put_int(b, 0, 2);
    if (central) {
        put_int(b, 0, 2 + 2 + 2 + 4);
        put_int(b, member->local_at, 4);
    }
    put_text(b, member->name);
}

static struct bytes zip(struct member *members, size_t count)
{
    struct bytes b = {.size = 0};

    for (size_t i = 0; i < count; i++) {
        members[i].local_at = b.size;
        put_member(&b, &members[i], false);
        put(&b, members[i].data, members[i].size);
    }
    size_t directory = b.size;
    for (size_t i = 0; i < count; i++) {
        members[i].central_at = b.size;
        put_member(&b, &members[i], true);
    }
    size_t end = b.size;
    put_int(&b, 0x06054b50, 4);
    put_int(&b, 0, 2 + 2);
    put_int(&b, count, 2);
    put_int(&b, count, 2);
    put_int(&b, end - directory, 4);
    put_int(&b, directory, 4);
    put_int(&b, 0, 2);
    return b;
}

enum { END = 22, DATA_PKL = 0, DATA_K = 1 };

/* The members that make a state dict, and what a test adds. */
static struct bytes good_zip(struct member members[4], const char *extra_name, const char *extra, size_t extra_size)
{
    const struct member all[] = {{.name = "w/data.pkl",
                                  .data = "\200\2}" STRING1("a") TENSOR "s.",
                                  .size = sizeof("\200\2}" STRING1("a") TENSOR "s.") - 1},
                                 {.name = "w/data/k", .data = "\0\0\200\77\0\0\0\300", .size = 8},
                                 {.name = "w/version", .data = "3\n", .size = 2},
                                 {.name = extra_name, .data = extra, .size = extra_size}};

    memcpy(members, all, sizeof all);
    return zip(members, extra_name ? 4 : 3);
}

static void reads_zip(void **state)
{
    struct member m[4];
    struct bytes b = good_zip(m, "w/byteorder", P("little"));
    float out[2];

    (void)state;
    /* A comment behind the archive, which looks like an end itself. */
    set_int(&b, b.size - 2, 23, 2);
    put_text(&b, "PK\5\6 and some more text");
    struct weights *weights = open_bytes(&b);
    assert_int_equal(weights_read_f32(weights, "a", 1, (const int64_t[]){2}, out, NULL), RN_OK);
    assert_true(out[0] == 1 && out[1] == -2);
    weights_close(weights);
}

/* The member's sizes and offset in a zip64 field, as in archives of more than 4 GiB. */
static struct bytes zip64(struct member m[4], uint64_t bytes, uint64_t local_at, size_t field_bytes)
{
    struct bytes b = good_zip(m, NULL, NULL, 0), out = {.size = 0};
    const size_t central = m[DATA_K].central_at, name_end = central + 46 + strlen(m[DATA_K].name);

    set_int(&b, central + 20, UINT32_MAX, 4);
    set_int(&b, central + 24, UINT32_MAX, 4);
    set_int(&b, central + 42, UINT32_MAX, 4);
    set_int(&b, central + 30, 6 + 4 + field_bytes, 2);
    set_int(&b, b.size - 10, b.size - END - m[DATA_PKL].central_at + 6 + 4 + field_bytes, 4);
    put(&out, b.data, name_end);
    put(&out, P("\7\0\2\0ab")); /* another field before it */
    put_int(&out, 1, 2);
    put_int(&out, field_bytes, 2);
    struct bytes field = {.size = 0};
    put_int(&field, bytes, 8);
    put_int(&field, 8, 8);
    put_int(&field, local_at, 8);
    put(&out, field.data, field_bytes);
    put(&out, b.data + name_end, b.size - name_end);
    return out;
}

static void reads_zip64_fields(void **state)
{
    struct member m[4];
    struct bytes b = good_zip(m, NULL, NULL, 0);

    (void)state;
    b = zip64(m, 8, m[DATA_K].local_at, 24);
    weights_close(open_bytes(&b));
    b = zip64(m, 9, m[DATA_K].local_at, 24);
    check_refused(&b, "an entry has two sizes");
    b = zip64(m, 8, UINT64_MAX, 24);
    check_refused(&b, "an entry lies outside the file");
    b = zip64(m, 8, m[DATA_K].local_at, 20);
    check_refused(&b, "an entry's zip64 field is damaged");
    b = zip64(m, 8, m[DATA_K].local_at, 24);
    set_int(&b, m[DATA_K].central_at + 46 + 8 + 2, 60000, 2);
    check_refused(&b, "an entry's zip64 field is damaged");
}

static void refuses_zips(void **state)
{
    /* A number of `size` bytes changed at an offset from a member's central or local header or the end. */
    static const struct {
        enum { CENTRAL, LOCAL, ENDING } where;
        int offset;
        uint64_t value;
        size_t size;
        const char *text;
    } cases[] = {
        {CENTRAL, 0, 0, 4, "an entry of the archive's directory is damaged"},
        {CENTRAL, 28, 60000, 2, "an entry of the archive's directory is damaged"},
        {CENTRAL, 30, 60000, 2, "an entry of the archive's directory is damaged"},
        {CENTRAL, 32, 60000, 2, "an entry of the archive's directory is damaged"},
        {CENTRAL, 8, 1, 2, "an entry of the archive is encrypted"},
        {CENTRAL, 8, 0x40, 2, "an entry of the archive is encrypted"},
        {CENTRAL, 10, 8, 2, "an entry of the archive is compressed"},
        {CENTRAL, 20, 7, 4, "an entry has two sizes"},
        {CENTRAL, 42, 0x7fffffff, 4, "an entry lies outside the file"},
        {CENTRAL, 42, 1, 4, "an entry lies outside the file"},
        {CENTRAL, 42, 0, 4, "an entry's own header contradicts the directory"},
        {LOCAL, 0, 0, 4, "an entry lies outside the file"},
        {LOCAL, 8, 8, 2, "an entry's own header contradicts the directory"},
        {LOCAL, 26, 7, 2, "an entry's own header contradicts the directory"},
        {LOCAL, 26, 60000, 2, "an entry reaches outside the file"},
        {LOCAL, 28, 60000, 2, "an entry reaches outside the file"},
        {LOCAL, 28, 1, 2, "entries of the archive overlap"},
        {LOCAL, 30, 'x', 1, "an entry's own header contradicts the directory"},
        {ENDING, 0, 0, 4, "the archive's directory is missing"},
        {ENDING, 10, 60000, 2, "lies outside the file or has an absurd size"},
        {ENDING, 12, UINT32_MAX, 4, "lies outside the file or has an absurd size"},
        {ENDING, 16, UINT32_MAX, 4, "lies outside the file or has an absurd size"},
        {ENDING, 10, 1, 2, "tensor a: its storage is not in the file"},
        {ENDING, 10, 0, 2, "the archive has no data.pkl"},
        {ENDING, 20, 1, 2, "the archive's directory is missing"},
    };
    struct member m[4];
    struct bytes b;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        b = good_zip(m, NULL, NULL, 0);
        size_t base = cases[i].where == CENTRAL ? m[DATA_K].central_at
                      : cases[i].where == LOCAL ? m[DATA_K].local_at
                                                : b.size - END;
        set_int(&b, base + (size_t)cases[i].offset, cases[i].value, cases[i].size);
        check_refused(&b, cases[i].text);
    }

    b = good_zip(m, NULL, NULL, 0);
    set_int(&b, m[DATA_K].central_at + 20, 7, 4);
    set_int(&b, m[DATA_K].central_at + 24, 7, 4);
    check_refused(&b, "a storage has 7 bytes, its 2 elements of F32 need others");
    b = good_zip(m, NULL, NULL, 0);
    set_int(&b, m[DATA_K].central_at + 20, 70000, 4);
    set_int(&b, m[DATA_K].central_at + 24, 70000, 4);
    check_refused(&b, "an entry reaches outside the file");
    b = good_zip(m, "w/byteorder", P("big"));
    check_refused(&b, "the tensors are big-endian");
    b = good_zip(m, "v/data.pkl", P("\200\2}."));
    check_refused(&b, "the archive has two data.pkl");
    b = good_zip(m, "w/data/k", P("abcdefgh"));
    check_refused(&b, "a storage occurs twice");
    b.size = END + 3;
    check_refused(&b, "the archive's directory is missing; the file may be cut off");
    b.size = END - 1;
    check_refused(&b, "the file ends before the archive's directory");
}

static void refuses_zip64_ends(void **state)
{
    static const struct {
        size_t from_end; /* of a number in the zip64 end record or its locator, counted back from the file's end */
        uint64_t value;
        const char *text;
    } cases[] = {
        {END + 20 - 8, 0, "the zip64 directory is not where it should be"},
        {END + 20 - 8, UINT64_MAX, "the zip64 directory is not where it should be"},
        {END + 20 + 56 - 32, UINT64_MAX, "lies outside the file or has an absurd size"},
        {END + 20 + 56 - 40, UINT64_MAX, "lies outside the file or has an absurd size"},
        {END + 20 + 56 - 48, UINT64_MAX, "lies outside the file or has an absurd size"},
        {END + 20 + 56 - 32, 1u << 30, "lies outside the file or has an absurd size"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bytes b;
        read_fixture("zip.pth", &b);
        set_int(&b, b.size - cases[i].from_end, cases[i].value, 8);
        check_refused(&b, cases[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_the_fixtures),
        cmocka_unit_test(refuses_every_cut_and_survives_every_change),
        cmocka_unit_test(reports_every_failed_allocation),
        cmocka_unit_test(accepts_pickles),
        cmocka_unit_test(refuses_pickles),
        cmocka_unit_test(refuses_unknown_opcodes),
        cmocka_unit_test(bounds_memory),
        cmocka_unit_test(refuses_legacy_files),
        cmocka_unit_test(reads_zip),
        cmocka_unit_test(reads_zip64_fields),
        cmocka_unit_test(refuses_zips),
        cmocka_unit_test(refuses_zip64_ends),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
