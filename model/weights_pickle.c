/* weights_pickle.c - the restricted pickle machine: a stack, a memo, and values of a few kinds. */

#include "weights_pickle.h"

#include <string.h>

#include "sizes.h"
#include "utf8.h"

enum { STACK_LIMIT = 1 << 20 };

enum opcode {
    OP_MARK = '(',
    OP_EMPTY_TUPLE = ')',
    OP_STOP = '.',
    OP_BINFLOAT = 'G',
    OP_BININT = 'J',
    OP_BININT1 = 'K',
    OP_BININT2 = 'M',
    OP_NONE = 'N',
    OP_BINPERSID = 'Q',
    OP_REDUCE = 'R',
    OP_BINSTRING = 'T',
    OP_SHORT_BINSTRING = 'U',
    OP_BINUNICODE = 'X',
    OP_EMPTY_LIST = ']',
    OP_APPEND = 'a',
    OP_BUILD = 'b',
    OP_GLOBAL = 'c',
    OP_APPENDS = 'e',
    OP_BINGET = 'h',
    OP_LONG_BINGET = 'j',
    OP_BINPUT = 'q',
    OP_LONG_BINPUT = 'r',
    OP_SETITEM = 's',
    OP_TUPLE = 't',
    OP_SETITEMS = 'u',
    OP_EMPTY_DICT = '}',
    OP_PROTO = 0x80,
    OP_TUPLE1 = 0x85,
    OP_TUPLE2 = 0x86,
    OP_TUPLE3 = 0x87,
    OP_NEWTRUE = 0x88,
    OP_NEWFALSE = 0x89,
    OP_LONG1 = 0x8a,
    OP_SHORT_BINUNICODE = 0x8c,
    OP_BINUNICODE8 = 0x8d,
    OP_STACK_GLOBAL = 0x93,
    OP_MEMOIZE = 0x94,
    OP_FRAME = 0x95
};

enum global_kind { GLOBAL_ORDERED_DICT, GLOBAL_REBUILD_TENSOR, GLOBAL_REBUILD_PARAMETER, GLOBAL_STORAGE };

struct pickle_global {
    enum global_kind kind;
    const struct weights_type *type; /* GLOBAL_STORAGE */
};

struct machine {
    struct pickle *pickle;
    size_t op_at; /* where the current opcode stands in the file */
    struct pickle_items stack, memo;
    struct rn_error *error;
};

static enum rn_status refuse(struct machine *m, const char *what)
{
    (void)rn_fail(m->error, RN_ERR_WEIGHTS, "byte %zu (pickle): %s", m->op_at, what);
    return RN_ERR_WEIGHTS;
}

static enum rn_status items_push(struct machine *m, struct pickle_items *items, struct pickle_value value)
{
    if (items->count == items->capacity) {
        size_t capacity = items->capacity ? 2 * items->capacity : 4, bytes;
        if (!size_mul(capacity, sizeof value, &bytes))
            return rn_fail_nomem(m->error, "the weights file");
        struct pickle_value *values = weights_alloc(m->pickle->arena, bytes, m->error);
        if (!values)
            return m->error->code;
        if (items->count > 0)
            memcpy(values, items->values, items->count * sizeof value);
        items->values = values;
        items->capacity = capacity;
    }
    items->values[items->count++] = value;
    return RN_OK;
}

static enum rn_status push(struct machine *m, struct pickle_value value)
{
    if (m->stack.count == STACK_LIMIT)
        return refuse(m, "the stack is too deep");
    return items_push(m, &m->stack, value);
}

static enum rn_status pop(struct machine *m, struct pickle_value *out)
{
    if (m->stack.count == 0 || m->stack.values[m->stack.count - 1].kind == PICKLE_MARK)
        return refuse(m, "the stack has too few values");
    *out = m->stack.values[--m->stack.count];
    return RN_OK;
}

/* The value that the next pop would give, in place. */
static enum rn_status top(struct machine *m, struct pickle_value **out)
{
    if (m->stack.count == 0 || m->stack.values[m->stack.count - 1].kind == PICKLE_MARK)
        return refuse(m, "the stack has too few values");
    *out = &m->stack.values[m->stack.count - 1];
    return RN_OK;
}

/* Take everything above the last mark, and the mark; *items stays valid until the next push. */
static enum rn_status pop_mark(struct machine *m, const struct pickle_value **items, size_t *count)
{
    size_t mark = m->stack.count;

    while (mark > 0 && m->stack.values[mark - 1].kind != PICKLE_MARK)
        mark--;
    if (mark == 0)
        return refuse(m, "no mark on the stack");
    *items = m->stack.values + mark;
    *count = m->stack.count - mark;
    m->stack.count = mark - 1;
    return RN_OK;
}

/* `count` bytes of the pickle. */
static enum rn_status take(struct machine *m, uint64_t count, const uint8_t **bytes)
{
    if (count > m->pickle->end - m->pickle->at)
        return refuse(m, "cut off");
    *bytes = m->pickle->data + m->pickle->at;
    m->pickle->at += (size_t)count;
    return RN_OK;
}

static enum rn_status push_items(struct machine *m, enum pickle_kind kind, const struct pickle_value *values,
                                 size_t count)
{
    struct pickle_value value = {.kind = kind};

    value.items = weights_alloc(m->pickle->arena, sizeof *value.items, m->error);
    if (!value.items)
        return m->error->code;
    *value.items = (struct pickle_items){.values = NULL};
    if (count > 0) {
        value.items->values = weights_alloc(m->pickle->arena, count * sizeof *values, m->error);
        if (!value.items->values)
            return m->error->code;
        memcpy(value.items->values, values, count * sizeof *values);
        value.items->count = value.items->capacity = count;
    }
    return push(m, value);
}

/* TUPLE1, TUPLE2, TUPLE3 */
static enum rn_status push_tuple(struct machine *m, size_t count)
{
    struct pickle_value values[3];

    for (size_t i = count; i-- > 0;) {
        enum rn_status status = pop(m, &values[i]);
        if (status != RN_OK)
            return status;
    }
    return push_items(m, PICKLE_TUPLE, values, count);
}

static enum rn_status push_string(struct machine *m, uint64_t length)
{
    const uint8_t *bytes;
    enum rn_status status = take(m, length, &bytes);

    if (status != RN_OK)
        return status;
    if (length > UINT32_MAX)
        return refuse(m, "a string is too long");
    return push(m,
                (struct pickle_value){.kind = PICKLE_STRING, .length = (uint32_t)length, .text = (const char *)bytes});
}

static enum rn_status push_long(struct machine *m, uint8_t length)
{
    const uint8_t *bytes;
    enum rn_status status = take(m, length, &bytes);
    uint64_t value = 0;

    if (status != RN_OK)
        return status;
    if (length > 8)
        return push(m, (struct pickle_value){.kind = PICKLE_LONG, .length = length, .text = (const char *)bytes});
    for (int i = 0; i < length; i++)
        value |= (uint64_t)bytes[i] << 8 * i;
    if (length > 0 && length < 8 && bytes[length - 1] & 0x80)
        value |= UINT64_MAX << 8 * length; /* two's complement */
    return push(m, (struct pickle_value){.kind = PICKLE_INT, .integer = (int64_t)value});
}

static bool is(const char *text, size_t length, const char *word)
{
    return length == strlen(word) && memcmp(text, word, length) == 0;
}

static enum rn_status push_global(struct machine *m, const char *module, size_t module_length, const char *name,
                                  size_t name_length)
{
    struct pickle_global global = {.type = NULL};

    if (is(module, module_length, "collections") && is(name, name_length, "OrderedDict")) {
        global.kind = GLOBAL_ORDERED_DICT;
    } else if (is(module, module_length, "torch._utils") &&
               (is(name, name_length, "_rebuild_tensor_v2") || is(name, name_length, "_rebuild_tensor"))) {
        global.kind = GLOBAL_REBUILD_TENSOR;
    } else if (is(module, module_length, "torch._utils") && is(name, name_length, "_rebuild_parameter")) {
        global.kind = GLOBAL_REBUILD_PARAMETER;
    } else if (is(module, module_length, "torch") && (global.type = weights_type_by_storage(name, name_length))) {
        global.kind = GLOBAL_STORAGE;
    } else {
        if (module_length > 80 || name_length > 80 || !utf8_is_printable(module, module_length) ||
            !utf8_is_printable(name, name_length))
            return refuse(m, "the name of a global is too long or not text");
        return rn_fail(m->error, RN_ERR_WEIGHTS, "byte %zu (pickle): the global %.*s.%.*s is not part of a state dict",
                       m->op_at, (int)module_length, module, (int)name_length, name);
    }

    struct pickle_global *own = weights_alloc(m->pickle->arena, sizeof *own, m->error);
    if (!own)
        return m->error->code;
    *own = global;
    return push(m, (struct pickle_value){.kind = PICKLE_GLOBAL, .global = own});
}

/* A line of the GLOBAL opcode, without its newline. */
static enum rn_status take_line(struct machine *m, const char **line, size_t *length)
{
    const uint8_t *begin = m->pickle->data + m->pickle->at;
    const uint8_t *end = memchr(begin, '\n', m->pickle->end - m->pickle->at);

    if (!end)
        return refuse(m, "cut off");
    *line = (const char *)begin;
    *length = (size_t)(end - begin);
    m->pickle->at += *length + 1;
    return RN_OK;
}

static enum rn_status op_global(struct machine *m)
{
    const char *module, *name;
    size_t module_length, name_length;
    enum rn_status status = take_line(m, &module, &module_length);

    if (status == RN_OK)
        status = take_line(m, &name, &name_length);
    return status == RN_OK ? push_global(m, module, module_length, name, name_length) : status;
}

static enum rn_status op_stack_global(struct machine *m)
{
    struct pickle_value name, module;
    enum rn_status status = pop(m, &name);

    if (status == RN_OK)
        status = pop(m, &module);
    if (status != RN_OK)
        return status;
    if (name.kind != PICKLE_STRING || module.kind != PICKLE_STRING)
        return refuse(m, "the name of a global is not a string");
    return push_global(m, module.text, module.length, name.text, name.length);
}

/* ("storage", torch.FloatStorage, key, location, elements), and in the legacy format None for a view. */
static enum rn_status op_binpersid(struct machine *m)
{
    struct pickle_value id;
    enum rn_status status = pop(m, &id);

    if (status != RN_OK)
        return status;
    const struct pickle_value *part = id.kind == PICKLE_TUPLE ? id.items->values : NULL;
    size_t count = part ? id.items->count : 0;
    if (count < 5 || count > 6 || part[0].kind != PICKLE_STRING || !is(part[0].text, part[0].length, "storage") ||
        part[1].kind != PICKLE_GLOBAL || part[1].global->kind != GLOBAL_STORAGE || part[2].kind != PICKLE_STRING ||
        part[4].kind != PICKLE_INT || part[4].integer < 0)
        return refuse(m, "a persistent id is not that of a storage; save the state dict alone, not the whole module");
    if (count == 6 && part[5].kind != PICKLE_NONE)
        return refuse(m, "a storage is a view of another one");

    struct pickle_storage *storage = weights_alloc(m->pickle->arena, sizeof *storage, m->error);
    if (!storage)
        return m->error->code;
    *storage = (struct pickle_storage){.key = part[2].text,
                                       .key_length = part[2].length,
                                       .type = part[1].global->type,
                                       .elements = (size_t)part[4].integer,
                                       .at = m->op_at,
                                       .next = m->pickle->storages};
    m->pickle->storages = storage;
    m->pickle->storage_count++;
    return push(m, (struct pickle_value){.kind = PICKLE_STORAGE, .storage = storage});
}

static bool copy_sizes(const struct pickle_value *tuple, int64_t *out, int *dims)
{
    if (tuple->kind != PICKLE_TUPLE || tuple->items->count > WEIGHTS_MAX_DIMS)
        return false;
    *dims = (int)tuple->items->count;
    for (int i = 0; i < *dims; i++) {
        if (tuple->items->values[i].kind != PICKLE_INT || tuple->items->values[i].integer < 0)
            return false;
        out[i] = tuple->items->values[i].integer;
    }
    return true;
}

/* _rebuild_tensor(storage, offset, size, stride), and with _v2 requires_grad, hooks and perhaps metadata. */
static enum rn_status rebuild_tensor(struct machine *m, const struct pickle_items *args)
{
    int strides;

    if (args->count < 4 || args->count > 7 || args->values[0].kind != PICKLE_STORAGE ||
        args->values[1].kind != PICKLE_INT || args->values[1].integer < 0)
        return refuse(m, "a tensor is not built from a storage, an offset, sizes and strides");
    struct pickle_tensor *tensor = weights_alloc(m->pickle->arena, sizeof *tensor, m->error);
    if (!tensor)
        return m->error->code;
    *tensor = (struct pickle_tensor){
        .storage = args->values[0].storage, .at = m->op_at, .offset = (uint64_t)args->values[1].integer};
    if (!copy_sizes(&args->values[2], tensor->shape, &tensor->dims) ||
        !copy_sizes(&args->values[3], tensor->stride, &strides) || strides != tensor->dims)
        return refuse(m, "a tensor's sizes and strides must be as many, at most 8, and not negative");
    return push(m, (struct pickle_value){.kind = PICKLE_TENSOR, .tensor = tensor});
}

/* OrderedDict(), or as Python 2 wrote it OrderedDict([[key, value], ...]) */
static enum rn_status build_ordered_dict(struct machine *m, const struct pickle_items *args)
{
    enum rn_status status = push_items(m, PICKLE_DICT, NULL, 0);
    struct pickle_value *dict;

    if (args->count == 0 || status != RN_OK)
        return status;
    if (args->count != 1 || args->values[0].kind != PICKLE_LIST)
        return refuse(m, "an OrderedDict is not built from a list of pairs");
    if ((status = top(m, &dict)) != RN_OK)
        return status;
    const struct pickle_items *pairs = args->values[0].items;
    for (size_t i = 0; i < pairs->count; i++) {
        const struct pickle_value *pair = &pairs->values[i];
        if ((pair->kind != PICKLE_LIST && pair->kind != PICKLE_TUPLE) || pair->items->count != 2)
            return refuse(m, "an OrderedDict is not built from a list of pairs");
        if ((status = items_push(m, dict->items, pair->items->values[0])) != RN_OK ||
            (status = items_push(m, dict->items, pair->items->values[1])) != RN_OK)
            return status;
    }
    return RN_OK;
}

static enum rn_status op_reduce(struct machine *m)
{
    struct pickle_value args, callable;
    enum rn_status status = pop(m, &args);

    if (status == RN_OK)
        status = pop(m, &callable);
    if (status != RN_OK)
        return status;
    if (callable.kind != PICKLE_GLOBAL || args.kind != PICKLE_TUPLE)
        return refuse(m, "REDUCE of something that is no function with its arguments");
    switch (callable.global->kind) {
    case GLOBAL_ORDERED_DICT:
        return build_ordered_dict(m, args.items);
    case GLOBAL_REBUILD_TENSOR:
        return rebuild_tensor(m, args.items);
    case GLOBAL_REBUILD_PARAMETER:
        if (args.items->count < 1 || args.items->values[0].kind != PICKLE_TENSOR)
            return refuse(m, "a parameter is not built from a tensor");
        return push(m, args.items->values[0]);
    case GLOBAL_STORAGE:
        break;
    }
    return refuse(m, "a storage class is called");
}

/* Attributes of an OrderedDict (_metadata of a state dict): checked for kind, then dropped. */
static enum rn_status op_build(struct machine *m)
{
    struct pickle_value state, *object;
    enum rn_status status = pop(m, &state);

    if (status == RN_OK)
        status = top(m, &object);
    if (status != RN_OK)
        return status;
    if (object->kind != PICKLE_DICT || state.kind != PICKLE_DICT)
        return refuse(m, "BUILD of something else than an OrderedDict's attributes");
    return RN_OK;
}

/* Append `count` values to the list or dict on top of the stack. */
static enum rn_status extend(struct machine *m, enum pickle_kind kind, const struct pickle_value *values, size_t count)
{
    struct pickle_value *object;
    enum rn_status status = top(m, &object);

    if (status == RN_OK && (object->kind != kind || (kind == PICKLE_DICT && count % 2 != 0)))
        return refuse(m, "items are added to something that is no list or dict");
    for (size_t i = 0; status == RN_OK && i < count; i++)
        status = items_push(m, object->items, values[i]);
    return status;
}

/* SETITEM, APPEND: `count` values without a mark. */
static enum rn_status extend_by(struct machine *m, enum pickle_kind kind, size_t count)
{
    struct pickle_value values[2];

    for (size_t i = count; i-- > 0;) {
        enum rn_status status = pop(m, &values[i]);
        if (status != RN_OK)
            return status;
    }
    return extend(m, kind, values, count);
}

static enum rn_status extend_by_mark(struct machine *m, enum pickle_kind kind)
{
    const struct pickle_value *values;
    size_t count;
    enum rn_status status = pop_mark(m, &values, &count);

    return status == RN_OK ? extend(m, kind, values, count) : status;
}

static enum rn_status op_tuple(struct machine *m)
{
    const struct pickle_value *values;
    size_t count;
    enum rn_status status = pop_mark(m, &values, &count);

    return status == RN_OK ? push_items(m, PICKLE_TUPLE, values, count) : status;
}

/* Picklers number the memo in order; anything else is not from one. */
static enum rn_status memo_put(struct machine *m, size_t index)
{
    struct pickle_value *value;
    enum rn_status status = top(m, &value);

    if (status != RN_OK)
        return status;
    if (index > m->memo.count)
        return refuse(m, "the memo is filled out of order");
    if (index == m->memo.count)
        return items_push(m, &m->memo, *value);
    m->memo.values[index] = *value;
    return RN_OK;
}

static enum rn_status memo_get(struct machine *m, size_t index)
{
    if (index >= m->memo.count)
        return refuse(m, "the memo has no such entry");
    return push(m, m->memo.values[index]);
}

static enum rn_status step(struct machine *m, uint8_t op)
{
    /* Bytes of the argument, for opcodes that have one of fixed size. */
    static const uint8_t argument_bytes[256] = {
        [OP_BINFLOAT] = 8,       [OP_BININT] = 4, [OP_BININT1] = 1,     [OP_BININT2] = 2, [OP_BINSTRING] = 4,
        [OP_BINUNICODE] = 4,     [OP_BINGET] = 1, [OP_LONG_BINGET] = 4, [OP_BINPUT] = 1,  [OP_LONG_BINPUT] = 4,
        [OP_PROTO] = 1,          [OP_LONG1] = 1,  [OP_BINUNICODE8] = 8, [OP_FRAME] = 8,   [OP_SHORT_BINUNICODE] = 1,
        [OP_SHORT_BINSTRING] = 1};
    const uint8_t *arg;
    enum rn_status status = take(m, argument_bytes[op], &arg);

    if (status != RN_OK)
        return status;
    switch ((enum opcode)op) {
    case OP_PROTO:
        return arg[0] >= 2 && arg[0] <= 5 ? RN_OK : refuse(m, "the protocol is none of 2 to 5");
    case OP_FRAME:
        return load_u64(arg) <= m->pickle->end - m->pickle->at ? RN_OK : refuse(m, "cut off");
    case OP_MARK:
        return push(m, (struct pickle_value){.kind = PICKLE_MARK});
    case OP_NONE:
        return push(m, (struct pickle_value){.kind = PICKLE_NONE});
    case OP_NEWTRUE:
    case OP_NEWFALSE:
        return push(m, (struct pickle_value){.kind = PICKLE_BOOL, .integer = op == OP_NEWTRUE});
    case OP_BININT:
        return push(m, (struct pickle_value){.kind = PICKLE_INT, .integer = (int32_t)load_u32(arg)});
    case OP_BININT1:
        return push(m, (struct pickle_value){.kind = PICKLE_INT, .integer = arg[0]});
    case OP_BININT2:
        return push(m, (struct pickle_value){.kind = PICKLE_INT, .integer = load_u16(arg)});
    case OP_LONG1:
        return push_long(m, arg[0]);
    case OP_BINFLOAT:
        return push(m, (struct pickle_value){.kind = PICKLE_FLOAT});
    case OP_SHORT_BINUNICODE:
    case OP_SHORT_BINSTRING:
        return push_string(m, arg[0]);
    case OP_BINUNICODE:
    case OP_BINSTRING:
        return push_string(m, load_u32(arg));
    case OP_BINUNICODE8:
        return push_string(m, load_u64(arg));
    case OP_EMPTY_TUPLE:
        return push_items(m, PICKLE_TUPLE, NULL, 0);
    case OP_TUPLE1:
    case OP_TUPLE2:
    case OP_TUPLE3:
        return push_tuple(m, (size_t)(op - OP_TUPLE1) + 1);
    case OP_TUPLE:
        return op_tuple(m);
    case OP_EMPTY_LIST:
        return push_items(m, PICKLE_LIST, NULL, 0);
    case OP_APPEND:
        return extend_by(m, PICKLE_LIST, 1);
    case OP_APPENDS:
        return extend_by_mark(m, PICKLE_LIST);
    case OP_EMPTY_DICT:
        return push_items(m, PICKLE_DICT, NULL, 0);
    case OP_SETITEM:
        return extend_by(m, PICKLE_DICT, 2);
    case OP_SETITEMS:
        return extend_by_mark(m, PICKLE_DICT);
    case OP_GLOBAL:
        return op_global(m);
    case OP_STACK_GLOBAL:
        return op_stack_global(m);
    case OP_BINPERSID:
        return op_binpersid(m);
    case OP_REDUCE:
        return op_reduce(m);
    case OP_BUILD:
        return op_build(m);
    case OP_BINPUT:
        return memo_put(m, arg[0]);
    case OP_LONG_BINPUT:
        return memo_put(m, load_u32(arg));
    case OP_MEMOIZE:
        return memo_put(m, m->memo.count);
    case OP_BINGET:
        return memo_get(m, arg[0]);
    case OP_LONG_BINGET:
        return memo_get(m, load_u32(arg));
    case OP_STOP:
        break; /* pickle_read ends there */
    }
    return rn_fail(m->error, RN_ERR_WEIGHTS, "byte %zu (pickle): the opcode 0x%02x is not part of a state dict",
                   m->op_at, op);
}

enum rn_status pickle_read(struct pickle *pickle, struct pickle_value *out, struct rn_error *error)
{
    struct machine m = {.pickle = pickle, .error = error};

    for (;;) {
        const uint8_t *op;
        m.op_at = pickle->at;
        enum rn_status status = take(&m, 1, &op);
        if (status == RN_OK && *op == OP_STOP)
            return pop(&m, out);
        if (status == RN_OK)
            status = step(&m, *op);
        if (status != RN_OK)
            return status;
    }
}

const struct pickle_value *pickle_dict_get(const struct pickle_value *dict, const char *key)
{
    for (size_t i = 0; i + 1 < dict->items->count; i += 2) {
        const struct pickle_value *candidate = &dict->items->values[i];
        if (candidate->kind == PICKLE_STRING && is(candidate->text, candidate->length, key))
            return candidate + 1;
    }
    return NULL;
}
