/* network.c - reading a network description into a module tree, tracing forward() through it, and
 * printing it as PyTorch does.
 *
 * JSON -> module tree (blocks expanded into their children) -> calls, checked for channels on the way */

#include "network.h"

#include "utf8.h"

#include <assert.h>
#include <cjson/cJSON.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* Far above any real network, far below what would overflow an int. */
enum {
    MAX_FILE_BYTES = 4 << 20,
    MAX_DEPTH = 16,
    MAX_CHANNELS = 1 << 20,
    MAX_EXTENT = 4096, /* kernel, stride, padding, dilation, adaptive output */
    MAX_BLOCKS = 1024,
    MAX_FEATURES = 1 << 30, /* of Linear's input, as plan.c's for Flatten's output */
    MAX_PATCH = 1 << 28,    /* kernel area times in / groups: the weights of one output channel */
    MAX_CALLS = 10000,      /* the checks of names take its square in steps */
    MAX_PATH = 128,
};

static const char *const type_names[MODULE_TYPE_COUNT] = {
    [MODULE_CONV2D] = "Conv2d",
    [MODULE_BATCHNORM2D] = "BatchNorm2d",
    [MODULE_RELU] = "ReLU",
    [MODULE_MAXPOOL2D] = "MaxPool2d",
    [MODULE_AVGPOOL2D] = "AvgPool2d",
    [MODULE_ADAPTIVE_AVGPOOL2D] = "AdaptiveAvgPool2d",
    [MODULE_LINEAR] = "Linear",
    [MODULE_FLATTEN] = "Flatten",
    [MODULE_DROPOUT] = "Dropout",
    [MODULE_SOFTMAX] = "Softmax",
    [MODULE_SEQUENTIAL] = "Sequential",
    [MODULE_BASIC_BLOCK] = "BasicBlock",
    [MODULE_BOTTLENECK] = "Bottleneck",
    [MODULE_RESIDUAL] = "Residual",
};

const char *module_type_name(enum module_type type)
{
    assert(type < MODULE_TYPE_COUNT);
    return type_names[type];
}

const char *module_reported_type(const struct module *module)
{
    return type_names[module->type == MODULE_SEQUENTIAL ? module->stage : module->type];
}

uint64_t module_parameters(const struct module *module)
{
    switch (module->type) {
    case MODULE_CONV2D: {
        const struct conv_params *p = &module->conv.params;
        return (uint64_t)p->out * (uint64_t)(p->in / p->groups) * (uint64_t)p->kernel[0] * (uint64_t)p->kernel[1] +
               (module->conv.bias ? (uint64_t)p->out : 0);
    }
    case MODULE_BATCHNORM2D:
        return 2 * (uint64_t)module->batchnorm.features;
    case MODULE_LINEAR:
        return (uint64_t)module->linear.in * (uint64_t)module->linear.out +
               (module->linear.bias ? (uint64_t)module->linear.out : 0);
    default:
        return 0;
    }
}

/* ---- reading one JSON object, key by key ---- */

struct reader {
    const char *where; /* the file, for messages */
    struct rn_error *error;
    size_t calls; /* an upper bound on the work so far */
};

static enum rn_status refuse(const struct reader *r, const char *path, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static enum rn_status refuse(const struct reader *r, const char *path, const char *format, ...)
{
    char text[160];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return rn_fail(r->error, RN_ERR_DESCRIPTION, "%s: %s%s%s", r->where, path, *path ? ": " : "", text);
}

/* `keys` is a NULL-terminated list; a key outside it, or twice, is refused. */
static enum rn_status check_keys(const struct reader *r, const char *path, const cJSON *object, const char *const *keys,
                                 const char *const *common)
{
    for (const cJSON *item = object->child; item; item = item->next) {
        bool known = false;
        for (const char *const *list = keys; list; list = list == keys && common ? common : NULL)
            for (const char *const *key = list; *key; key++)
                known |= strcmp(*key, item->string) == 0;
        if (!known)
            return refuse(r, path, "unknown key \"%s\"", item->string);
        for (const cJSON *other = item->next; other; other = other->next)
            if (strcmp(other->string, item->string) == 0)
                return refuse(r, path, "key \"%s\" is given twice", item->string);
    }
    return RN_OK;
}

static bool to_int(const cJSON *item, int min, int max, int *out)
{
    /* The range first, in a form that refuses NaN: only then is the conversion defined. */
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= min && item->valuedouble <= max) ||
        item->valuedouble != (double)(int)item->valuedouble)
        return false;
    *out = (int)item->valuedouble;
    return true;
}

/* `*out` keeps its value when the key is absent, unless `required`. */
static enum rn_status read_int(const struct reader *r, const char *path, const cJSON *object, const char *key,
                               bool required, int min, int max, int *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);

    if (!item)
        return required ? refuse(r, path, "\"%s\" is missing", key) : RN_OK;
    if (!to_int(item, min, max, out))
        return refuse(r, path, "\"%s\" must be a whole number from %d to %d", key, min, max);
    return RN_OK;
}

/* One number for both extents, or [height, width]; with `null_value`, JSON null stands for it. */
static enum rn_status read_pair(const struct reader *r, const char *path, const cJSON *object, const char *key,
                                bool required, int min, int out[2], const int *null_value)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);

    if (!item)
        return required ? refuse(r, path, "\"%s\" is missing", key) : RN_OK;
    for (int i = 0; i < 2; i++) {
        const cJSON *one = cJSON_IsArray(item) ? cJSON_GetArrayItem(item, i) : item;
        const bool two = !cJSON_IsArray(item) || cJSON_GetArraySize(item) == 2;
        if (two && null_value && cJSON_IsNull(one))
            out[i] = *null_value;
        else if (!two || !to_int(one, min, MAX_EXTENT, &out[i]))
            return refuse(r, path, "\"%s\" must be a whole number from %d to %d, or two of them [height, width]", key,
                          min, MAX_EXTENT);
    }
    return RN_OK;
}

static enum rn_status read_bool(const struct reader *r, const char *path, const cJSON *object, const char *key,
                                bool *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);

    if (!item)
        return RN_OK;
    if (!cJSON_IsBool(item))
        return refuse(r, path, "\"%s\" must be true or false", key);
    *out = cJSON_IsTrue(item);
    return RN_OK;
}

static enum rn_status read_double(const struct reader *r, const char *path, const cJSON *object, const char *key,
                                  double min, double max, double *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);

    if (!item)
        return RN_OK;
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= min && item->valuedouble <= max))
        return refuse(r, path, "\"%s\" must be a number from %g to %g", key, min, max);
    *out = item->valuedouble;
    return RN_OK;
}

/* ---- the module tree ---- */

static void module_free(struct module *module)
{
    for (size_t i = 0; i < module->child_count; i++)
        module_free(&module->children[i]);
    free(module->children);
    free(module->name);
    memset(module, 0, sizeof *module);
}

/* Room for `count` zeroed children. */
static enum rn_status make_children(const struct reader *r, struct module *parent, size_t count)
{
    parent->children = calloc(count, sizeof *parent->children);
    if (!parent->children && count)
        return rn_fail_nomem(r->error, "a network description");
    parent->child_count = count;
    return RN_OK;
}

/* The next child of a block being built: zeroed, named, of `type`. NULL without memory. */
static struct module *child_begin(struct module *parent, size_t *next, const char *name, enum module_type type)
{
    struct module *child = &parent->children[*next];

    child->name = strdup(name);
    if (!child->name)
        return NULL;
    child->type = type;
    child->stage = type;
    child->frozen = parent->frozen;
    ++*next;
    return child;
}

static bool add_conv(struct module *parent, size_t *next, const char *name, int in, int out, int kernel, int stride,
                     int groups, bool bias)
{
    struct module *child = child_begin(parent, next, name, MODULE_CONV2D);

    if (!child)
        return false;
    child->conv.params = (struct conv_params){.in = in,
                                              .out = out,
                                              .kernel = {kernel, kernel},
                                              .stride = {stride, stride},
                                              .padding = {kernel / 2, kernel / 2},
                                              .dilation = {1, 1},
                                              .groups = groups};
    child->conv.bias = bias;
    return true;
}

static bool add_batchnorm(struct module *parent, size_t *next, const char *name, int features)
{
    struct module *child = child_begin(parent, next, name, MODULE_BATCHNORM2D);

    if (!child)
        return false;
    child->batchnorm.features = features;
    child->batchnorm.eps = 1e-5;
    child->batchnorm.momentum = 0.1;
    return true;
}

static bool add_relu(struct module *parent, size_t *next)
{
    struct module *child = child_begin(parent, next, "relu", MODULE_RELU);

    if (!child)
        return false;
    child->inplace = true;
    return true;
}

/* What a block is made of, read from its JSON. */
struct block {
    int in, planes, stride, groups, width_per_group;
};

static int block_out(enum module_type type, int planes)
{
    return type == MODULE_BOTTLENECK ? planes * 4 : planes;
}

/* Children in the order in which PyTorch registers and prints them. */
static enum rn_status build_block(const struct reader *r, struct module *block, const struct block *b)
{
    const int out = block_out(block->type, b->planes);
    const bool shortcut = b->stride != 1 || b->in != out;
    size_t n = 0;
    bool ok;
    enum rn_status status = make_children(r, block, 8);

    if (status)
        return status;
    block->child_count = 0; /* grows with `n`, so that a failure frees what is there */
    switch (block->type) {
    case MODULE_BASIC_BLOCK:
        ok = add_conv(block, &n, "conv1", b->in, b->planes, 3, b->stride, 1, false) &&
             add_batchnorm(block, &n, "bn1", b->planes) && add_relu(block, &n) &&
             add_conv(block, &n, "conv2", b->planes, b->planes, 3, 1, 1, false) &&
             add_batchnorm(block, &n, "bn2", b->planes);
        break;
    case MODULE_BOTTLENECK: {
        const int width = b->planes * b->width_per_group / 64 * b->groups;
        ok = add_conv(block, &n, "conv1", b->in, width, 1, 1, 1, false) && add_batchnorm(block, &n, "bn1", width) &&
             add_conv(block, &n, "conv2", width, width, 3, b->stride, b->groups, false) &&
             add_batchnorm(block, &n, "bn2", width) && add_conv(block, &n, "conv3", width, out, 1, 1, 1, false) &&
             add_batchnorm(block, &n, "bn3", out) && add_relu(block, &n);
        break;
    }
    default:
        assert(block->type == MODULE_RESIDUAL);
        ok = add_conv(block, &n, "conv1", b->in, out, 3, b->stride, 1, true) &&
             add_conv(block, &n, "conv2", out, out, 3, 1, 1, true) &&
             (!shortcut || add_conv(block, &n, "conv3", b->in, out, 1, b->stride, 1, true)) &&
             add_batchnorm(block, &n, "bn1", out) && add_batchnorm(block, &n, "bn2", out);
    }
    block->child_count = n;
    if (ok && shortcut && block->type != MODULE_RESIDUAL) {
        struct module *downsample = child_begin(block, &n, "downsample", MODULE_SEQUENTIAL);
        size_t m = 0;
        ok = downsample != NULL;
        block->child_count = n;
        if (ok && !(status = make_children(r, downsample, 2))) {
            downsample->child_count = 0;
            ok = add_conv(downsample, &m, "0", b->in, out, 1, b->stride, 1, false) &&
                 add_batchnorm(downsample, &m, "1", out);
            downsample->child_count = m;
        }
    }
    return status ? status : ok ? RN_OK : rn_fail_nomem(r->error, "a network description");
}

/* "blocks": N makes a Sequential of N blocks, the first with the stride, as torchvision's _make_layer. */
static enum rn_status read_block(struct reader *r, const char *path, const cJSON *json, struct module *out)
{
    const enum module_type type = out->type;
    struct block b = {.stride = 1, .groups = 1, .width_per_group = 64};
    const char *const planes_key = type == MODULE_RESIDUAL ? "out" : "planes";
    int blocks = 0;
    enum rn_status status;

    if ((status = read_int(r, path, json, "in", true, 1, MAX_CHANNELS, &b.in)) ||
        (status = read_int(r, path, json, planes_key, true, 1, MAX_CHANNELS / 4, &b.planes)) ||
        (status = read_int(r, path, json, "stride", false, 1, MAX_EXTENT, &b.stride)) ||
        (status = read_int(r, path, json, "groups", false, 1, MAX_CHANNELS, &b.groups)) ||
        (status = read_int(r, path, json, "width_per_group", false, 1, MAX_CHANNELS, &b.width_per_group)) ||
        (status = read_int(r, path, json, "blocks", false, 1, MAX_BLOCKS, &blocks)))
        return status;
    if (type == MODULE_BOTTLENECK) {
        const int64_t width = (int64_t)b.planes * b.width_per_group / 64 * b.groups;
        if ((int64_t)b.planes * b.width_per_group > INT_MAX || width < 1 || width > MAX_CHANNELS)
            return refuse(r, path, "planes, width_per_group and groups give an inner width out of range");
    }
    r->calls += 12 * (size_t)(blocks ? blocks : 1);
    if (r->calls > MAX_CALLS)
        return refuse(r, path, "the network has too many modules");
    if (!blocks)
        return build_block(r, out, &b);

    out->type = MODULE_SEQUENTIAL;
    out->stage = type;
    if ((status = make_children(r, out, (size_t)blocks)))
        return status;
    for (size_t i = 0, next = 0; i < (size_t)blocks; i++) {
        char name[24];
        struct module *block;
        (void)snprintf(name, sizeof name, "%zu", i);
        block = child_begin(out, &next, name, type);
        if (!block)
            return rn_fail_nomem(r->error, "a network description");
        if ((status = build_block(r, block, &b)))
            return status;
        b.in = block_out(type, b.planes);
        b.stride = 1;
    }
    return RN_OK;
}

static enum rn_status read_modules(struct reader *r, const char *path, const cJSON *list, int depth,
                                   struct module *parent);

static enum rn_status read_conv(const struct reader *r, const char *path, const cJSON *json, struct module *out)
{
    struct conv_params *p = &out->conv.params;
    enum rn_status status;

    *p = (struct conv_params){.stride = {1, 1}, .dilation = {1, 1}, .groups = 1};
    out->conv.bias = true;
    if ((status = read_int(r, path, json, "in", true, 1, MAX_CHANNELS, &p->in)) ||
        (status = read_int(r, path, json, "out", true, 1, MAX_CHANNELS, &p->out)) ||
        (status = read_pair(r, path, json, "kernel", true, 1, p->kernel, NULL)) ||
        (status = read_pair(r, path, json, "stride", false, 1, p->stride, NULL)) ||
        (status = read_pair(r, path, json, "padding", false, 0, p->padding, NULL)) ||
        (status = read_pair(r, path, json, "dilation", false, 1, p->dilation, NULL)) ||
        (status = read_int(r, path, json, "groups", false, 1, MAX_CHANNELS, &p->groups)) ||
        (status = read_bool(r, path, json, "bias", &out->conv.bias)))
        return status;
    if (p->in % p->groups || p->out % p->groups)
        return refuse(r, path, "%d in and %d out channels do not divide into %d groups", p->in, p->out, p->groups);
    if ((int64_t)(p->in / p->groups) * p->kernel[0] * p->kernel[1] > MAX_PATCH)
        return refuse(r, path, "a kernel of %dx%d over %d channels is too large", p->kernel[0], p->kernel[1],
                      p->in / p->groups);
    return RN_OK;
}

static enum rn_status read_pool(const struct reader *r, const char *path, const cJSON *json, struct module *out)
{
    struct pool_params *p = &out->pool;
    enum rn_status status;

    *p = (struct pool_params){.dilation = {1, 1}, .count_include_pad = true};
    if ((status = read_pair(r, path, json, "kernel", true, 1, p->kernel, NULL)))
        return status;
    p->stride[0] = p->kernel[0];
    p->stride[1] = p->kernel[1];
    if ((status = read_pair(r, path, json, "stride", false, 1, p->stride, NULL)) ||
        (status = read_pair(r, path, json, "padding", false, 0, p->padding, NULL)) ||
        (status = read_pair(r, path, json, "dilation", false, 1, p->dilation, NULL)) ||
        (status = read_bool(r, path, json, "ceil_mode", &p->ceil_mode)) ||
        (status = read_bool(r, path, json, "count_include_pad", &p->count_include_pad)) ||
        (status = read_int(r, path, json, "divisor_override", false, 1, INT_MAX, &p->divisor_override)))
        return status;
    if (2 * p->padding[0] > p->kernel[0] || 2 * p->padding[1] > p->kernel[1])
        return refuse(r, path, "\"padding\" must be at most half the kernel");
    return RN_OK;
}

#define KEYS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* What each type may have besides name, type, functional and frozen. */
static const char *const *type_keys(enum module_type type)
{
    static const char *const none[] = {NULL};
    static const char *const conv[] = {"in", "out", "kernel", "stride", "padding", "dilation", "groups", "bias", NULL};
    static const char *const batchnorm[] = {"features", "eps", "momentum", NULL};
    static const char *const inplace[] = {"inplace", NULL};
    static const char *const max_pool[] = {"kernel", "stride", "padding", "dilation", "ceil_mode", NULL};
    static const char *const avg_pool[] = {"kernel",           "stride", "padding", "ceil_mode", "count_include_pad",
                                           "divisor_override", NULL};
    static const char *const adaptive[] = {"output", NULL};
    static const char *const linear[] = {"in", "out", "bias", NULL};
    static const char *const dropout[] = {"p", "inplace", NULL};
    static const char *const softmax[] = {"dim", NULL};
    static const char *const sequential[] = {"modules", NULL};
    static const char *const basic_block[] = {"in", "planes", "stride", "blocks", NULL};
    static const char *const bottleneck[] = {"in", "planes", "stride", "blocks", "groups", "width_per_group", NULL};
    static const char *const residual[] = {"in", "out", "stride", "blocks", NULL};

    switch (type) {
    case MODULE_CONV2D:
        return conv;
    case MODULE_BATCHNORM2D:
        return batchnorm;
    case MODULE_RELU:
        return inplace;
    case MODULE_MAXPOOL2D:
        return max_pool;
    case MODULE_AVGPOOL2D:
        return avg_pool;
    case MODULE_ADAPTIVE_AVGPOOL2D:
        return adaptive;
    case MODULE_LINEAR:
        return linear;
    case MODULE_DROPOUT:
        return dropout;
    case MODULE_SOFTMAX:
        return softmax;
    case MODULE_SEQUENTIAL:
        return sequential;
    case MODULE_BASIC_BLOCK:
        return basic_block;
    case MODULE_BOTTLENECK:
        return bottleneck;
    case MODULE_RESIDUAL:
        return residual;
    default:
        return none;
    }
}

static enum rn_status read_module(struct reader *r, const char *path, const cJSON *json, int depth, struct module *out)
{
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(json, "type");
    const int as_input = -1;
    enum rn_status status;

    if (!cJSON_IsString(type))
        return refuse(r, path, "\"type\" is missing");
    for (out->type = 0; out->type < MODULE_TYPE_COUNT; out->type++)
        if (strcmp(type_names[out->type], type->valuestring) == 0)
            break;
    if (out->type == MODULE_TYPE_COUNT) {
        out->type = MODULE_SEQUENTIAL; /* a valid value for whoever frees the tree */
        return refuse(r, path, "unknown type \"%.40s\"", type->valuestring);
    }
    out->stage = out->type;
    if (++r->calls > MAX_CALLS)
        return refuse(r, path, "the network has too many modules");
    if ((status = check_keys(r, path, json, type_keys(out->type), KEYS("name", "type", "functional", "frozen"))) ||
        (status = read_bool(r, path, json, "functional", &out->functional)) ||
        (status = read_bool(r, path, json, "frozen", &out->frozen)))
        return status;

    switch (out->type) {
    case MODULE_CONV2D:
        return read_conv(r, path, json, out);
    case MODULE_BATCHNORM2D:
        out->batchnorm.eps = 1e-5;
        out->batchnorm.momentum = 0.1;
        if ((status = read_int(r, path, json, "features", true, 1, MAX_CHANNELS, &out->batchnorm.features)) ||
            (status = read_double(r, path, json, "eps", 0.0, 1.0, &out->batchnorm.eps)))
            return status;
        return read_double(r, path, json, "momentum", 0.0, 1.0, &out->batchnorm.momentum);
    case MODULE_RELU:
        return read_bool(r, path, json, "inplace", &out->inplace);
    case MODULE_MAXPOOL2D:
    case MODULE_AVGPOOL2D:
        return read_pool(r, path, json, out);
    case MODULE_ADAPTIVE_AVGPOOL2D:
        return read_pair(r, path, json, "output", true, 1, out->adaptive.output, &as_input);
    case MODULE_LINEAR:
        out->linear.bias = true;
        if ((status = read_int(r, path, json, "in", true, 1, MAX_FEATURES, &out->linear.in)) ||
            (status = read_int(r, path, json, "out", true, 1, MAX_CHANNELS, &out->linear.out)))
            return status;
        return read_bool(r, path, json, "bias", &out->linear.bias);
    case MODULE_DROPOUT:
        out->dropout.p = 0.5;
        if ((status = read_double(r, path, json, "p", 0.0, 1.0, &out->dropout.p)))
            return status;
        return read_bool(r, path, json, "inplace", &out->inplace);
    case MODULE_SOFTMAX:
        out->softmax.dim = 1;
        out->softmax.dim_given = cJSON_GetObjectItemCaseSensitive(json, "dim") != NULL;
        return read_int(r, path, json, "dim", false, 1, 1, &out->softmax.dim);
    case MODULE_SEQUENTIAL:
        if (depth >= MAX_DEPTH)
            return refuse(r, path, "Sequential is nested more than %d deep", MAX_DEPTH);
        return read_modules(r, path, cJSON_GetObjectItemCaseSensitive(json, "modules"), depth + 1, out);
    case MODULE_BASIC_BLOCK:
    case MODULE_BOTTLENECK:
    case MODULE_RESIDUAL:
        return read_block(r, path, json, out);
    default:
        return RN_OK;
    }
}

static void join_path(char out[MAX_PATH], const char *parent, const char *name)
{
    (void)snprintf(out, MAX_PATH, "%s%s%s", parent, *parent ? "." : "", name);
}

static enum rn_status read_modules(struct reader *r, const char *path, const cJSON *list, int depth,
                                   struct module *parent)
{
    enum rn_status status;
    size_t i = 0;

    if (!cJSON_IsArray(list) || !list->child)
        return refuse(r, path, "\"modules\" must be a list with at least one module");
    if (cJSON_GetArraySize(list) > MAX_CALLS)
        return refuse(r, path, "the network has too many modules");
    if ((status = make_children(r, parent, (size_t)cJSON_GetArraySize(list))))
        return status;
    for (const cJSON *json = list->child; json; json = json->next, i++) {
        struct module *child = &parent->children[i];
        const cJSON *name = cJSON_GetObjectItemCaseSensitive(json, "name");
        char child_path[MAX_PATH];

        child->type = child->stage = MODULE_SEQUENTIAL;
        child->frozen = parent->frozen;
        if (!cJSON_IsString(name) || !*name->valuestring || strlen(name->valuestring) > 64 ||
            strchr(name->valuestring, '.') || !utf8_is_printable(name->valuestring, strlen(name->valuestring)))
            return refuse(r, path, "module %zu needs a \"name\" of 1 to 64 printable characters without a dot", i);
        for (size_t j = 0; j < i; j++)
            if (strcmp(parent->children[j].name, name->valuestring) == 0)
                return refuse(r, path, "two modules are called \"%s\"", name->valuestring);
        if (!(child->name = strdup(name->valuestring)))
            return rn_fail_nomem(r->error, "a network description");
        if (strlen(path) + strlen(child->name) + 32 > MAX_PATH)
            return refuse(r, path, "the path of \"%s\" is too long", child->name);
        join_path(child_path, path, child->name);
        if ((status = read_module(r, child_path, json, depth, child)))
            return status;
    }
    return RN_OK;
}

/* ---- forward(), traced ---- */

/* What is known of a value without an input size. */
struct value_info {
    int value;
    bool flat;
    int channels;      /* features when flat; 0: not known before the input size is */
    int height, width; /* 0: not known */
};

struct tracer {
    struct reader *r;
    struct network *network;
    size_t capacity;
};

static enum rn_status add_call(struct tracer *t, enum call_kind kind, const struct module *module, const char *path,
                               int depth, int input, int other, int output)
{
    struct network *network = t->network;
    struct call *call;

    if (network->call_count == t->capacity) {
        const size_t capacity = t->capacity ? 2 * t->capacity : 64;
        struct call *calls = realloc(network->calls, capacity * sizeof *calls);
        if (!calls)
            return rn_fail_nomem(t->r->error, "a network description");
        network->calls = calls;
        t->capacity = capacity;
    }
    call = &network->calls[network->call_count];
    *call = (struct call){.kind = kind,
                          .module = module,
                          .path = strdup(path),
                          .input = input,
                          .other = other,
                          .output = output,
                          .depth = depth};
    if (!call->path)
        return rn_fail_nomem(t->r->error, "a network description");
    network->call_count++;
    return RN_OK;
}

/* The value after `module`, as far as it is known; refuses what cannot follow its predecessor. */
static enum rn_status check_leaf(struct tracer *t, const struct module *module, const char *path, struct value_info *v)
{
    const char *const type = type_names[module->type];
    int expected = 0;

    if (module->type == MODULE_LINEAR) {
        if (!v->flat)
            return refuse(t->r, path, "Linear needs a Flatten before it");
        expected = module->linear.in;
    } else if (v->flat && module->type != MODULE_RELU && module->type != MODULE_DROPOUT &&
               module->type != MODULE_SOFTMAX && module->type != MODULE_FLATTEN) {
        return refuse(t->r, path, "%s cannot follow Flatten", type);
    } else if (module->type == MODULE_CONV2D) {
        expected = module->conv.params.in;
    } else if (module->type == MODULE_BATCHNORM2D) {
        expected = module->batchnorm.features;
    }
    if (expected && v->channels && expected != v->channels)
        return refuse(t->r, path, "%s expects %d %s, its predecessor gives %d", type, expected,
                      v->flat ? "features" : "channels", v->channels);

    switch (module->type) {
    case MODULE_CONV2D:
        v->channels = module->conv.params.out;
        v->height = v->width = 0;
        break;
    case MODULE_LINEAR:
        v->channels = module->linear.out;
        break;
    case MODULE_MAXPOOL2D:
    case MODULE_AVGPOOL2D:
        v->height = v->width = 0;
        break;
    case MODULE_ADAPTIVE_AVGPOOL2D:
        v->height = module->adaptive.output[0] > 0 ? module->adaptive.output[0] : v->height;
        v->width = module->adaptive.output[1] > 0 ? module->adaptive.output[1] : v->width;
        break;
    case MODULE_FLATTEN:
        if (!v->flat) {
            const int64_t features = (int64_t)v->channels * v->height * v->width;
            v->channels = features <= INT_MAX ? (int)features : 0;
            v->flat = true;
            v->height = v->width = 1;
        }
        break;
    default:
        break;
    }
    return RN_OK;
}

static enum rn_status trace(struct tracer *t, const struct module *module, const char *path, int depth,
                            struct value_info *v);

static const struct module *child_named(const struct module *module, const char *name)
{
    for (size_t i = 0; i < module->child_count; i++)
        if (strcmp(module->children[i].name, name) == 0)
            return &module->children[i];
    return NULL;
}

static enum rn_status trace_child(struct tracer *t, const struct module *block, const char *name, const char *path,
                                  int depth, struct value_info *v)
{
    const struct module *child = child_named(block, name);
    char child_path[MAX_PATH];

    if (!child)
        return RN_OK;
    join_path(child_path, path, name);
    return trace(t, child, child_path, depth + 1, v);
}

/* Dive into Deep Learning's Residual calls F.relu: a ReLU that belongs to no parent. */
static const struct module functional_relu = {
    .name = (char[]){"relu"}, .type = MODULE_RELU, .functional = true, .stage = MODULE_RELU};

static enum rn_status trace_functional_relu(struct tracer *t, const char *path, int depth, struct value_info *v)
{
    char relu_path[MAX_PATH];

    join_path(relu_path, path, functional_relu.name);
    return trace(t, &functional_relu, relu_path, depth + 1, v);
}

/* forward() of the three block types: the body, the shortcut, their sum, ReLU. */
static enum rn_status trace_block(struct tracer *t, const struct module *block, const char *path, int depth,
                                  struct value_info *v)
{
    static const char *const basic[] = {"conv1", "bn1", "relu", "conv2", "bn2", NULL};
    static const char *const bottleneck[] = {"conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3", NULL};
    static const char *const residual[] = {"conv1", "bn1", "", "conv2", "bn2", NULL}; /* "": F.relu */
    const char *const *body = block->type == MODULE_BASIC_BLOCK  ? basic
                              : block->type == MODULE_BOTTLENECK ? bottleneck
                                                                 : residual;
    const char *const shortcut_name = block->type == MODULE_RESIDUAL ? "conv3" : "downsample";
    struct value_info shortcut = *v;
    enum rn_status status;

    for (; *body; body++)
        if ((status = **body ? trace_child(t, block, *body, path, depth, v) : trace_functional_relu(t, path, depth, v)))
            return status;
    if ((status = trace_child(t, block, shortcut_name, path, depth, &shortcut)))
        return status;
    if ((status = add_call(t, CALL_ADD, NULL, path, depth + 1, v->value, shortcut.value, t->network->value_count)))
        return status;
    v->value = t->network->value_count++;
    return block->type == MODULE_RESIDUAL ? trace_functional_relu(t, path, depth, v)
                                          : trace_child(t, block, "relu", path, depth, v);
}

static enum rn_status trace(struct tracer *t, const struct module *module, const char *path, int depth,
                            struct value_info *v)
{
    enum rn_status status;

    switch (module->type) {
    case MODULE_SEQUENTIAL:
        for (size_t i = 0; i < module->child_count; i++)
            if ((status = trace_child(t, module, module->children[i].name, path, depth, v)))
                return status;
        break;
    case MODULE_BASIC_BLOCK:
    case MODULE_BOTTLENECK:
    case MODULE_RESIDUAL:
        if ((status = trace_block(t, module, path, depth, v)))
            return status;
        break;
    default:
        if ((status = check_leaf(t, module, path, v)) ||
            (status = add_call(t, CALL_LEAF, module, path, depth, v->value, -1, t->network->value_count)))
            return status;
        v->value = t->network->value_count++;
        return RN_OK;
    }
    /* The whole network is no row of its own. */
    return depth < 0 ? RN_OK : add_call(t, CALL_BLOCK, module, path, depth, v->value, -1, v->value);
}

/* ---- the file ---- */

static enum rn_status read_floats(const struct reader *r, const cJSON *object, const char *key, int count, float *out)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(object, key);

    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != count)
        return refuse(r, "input", "\"%s\" must be a list of %d numbers, one for each channel", key, count);
    for (int i = 0; i < count; i++) {
        const cJSON *item = cJSON_GetArrayItem(list, i);
        if (!cJSON_IsNumber(item) || !(item->valuedouble > -1e6 && item->valuedouble < 1e6))
            return refuse(r, "input", "\"%s\" must be a list of %d numbers, one for each channel", key, count);
        out[i] = (float)item->valuedouble;
    }
    return RN_OK;
}

static enum rn_status read_input(const struct reader *r, const cJSON *json, struct input_spec *out)
{
    const cJSON *size = cJSON_GetObjectItemCaseSensitive(json, "size");
    enum rn_status status;

    if (!cJSON_IsObject(json))
        return refuse(r, "input", "an object is expected");
    if ((status =
             check_keys(r, "input", json, KEYS("channels", "mean", "std", "resize", "crop", "fit", "size"), NULL)) ||
        (status = read_int(r, "input", json, "channels", true, 1, 3, &out->channels)))
        return status;
    if (out->channels == 2)
        return refuse(r, "input", "\"channels\" must be 1 or 3");
    if ((status = read_floats(r, json, "mean", out->channels, out->mean)) ||
        (status = read_floats(r, json, "std", out->channels, out->std)) ||
        (status = read_int(r, "input", json, "resize", true, 1, 1 << 14, &out->resize)) ||
        (status = read_int(r, "input", json, "crop", true, 1, 1 << 14, &out->crop)))
        return status;
    for (int i = 0; i < out->channels; i++)
        if (!(out->std[i] > 1e-6f))
            return refuse(r, "input", "\"std\" must be above 0");
    if (out->crop > out->resize)
        return refuse(r, "input", "\"crop\" %d is larger than \"resize\" %d", out->crop, out->resize);
    out->fit = out->resize;
    if ((status = read_int(r, "input", json, "fit", false, 1, 1 << 14, &out->fit)))
        return status;
    out->size = INPUT_SIZE_NATIVE;
    if (size && (!cJSON_IsString(size) || !input_size_parse(size->valuestring, &out->size)))
        return refuse(r, "input", "\"size\" must be \"native\", \"fit\" or \"crop\"");
    return RN_OK;
}

/* folder/name, or name when it is absolute. */
static char *resolve_path(const char *folder, const char *name)
{
    const size_t size = strlen(folder) + strlen(name) + 2;
    char *path;

    if (*name == '/' || !*folder)
        return strdup(name);
    path = malloc(size);
    if (path)
        (void)snprintf(path, size, "%s/%s", folder, name);
    return path;
}

static bool is_name(const char *text)
{
    const size_t length = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
    return length > 0 && length <= 64 && text[length] == '\0';
}

static enum rn_status read_network(struct reader *r, const cJSON *json, const char *folder, struct network *out)
{
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(json, "name");
    const cJSON *class_name = cJSON_GetObjectItemCaseSensitive(json, "class");
    const cJSON *labels = cJSON_GetObjectItemCaseSensitive(json, "labels");
    struct value_info v;
    struct tracer t = {.r = r, .network = out};
    enum rn_status status;

    if (!cJSON_IsObject(json))
        return refuse(r, "", "a JSON object is expected");
    if ((status = check_keys(r, "", json, KEYS("name", "class", "input", "labels", "modules"), NULL)))
        return status;
    if (!cJSON_IsString(name) || !is_name(name->valuestring))
        return refuse(r, "", "\"name\" must be 1 to 64 of the characters A-Z a-z 0-9 . _ -");
    if (class_name && (!cJSON_IsString(class_name) || !is_name(class_name->valuestring)))
        return refuse(r, "", "\"class\" must be a class name");
    if (labels && !cJSON_IsString(labels))
        return refuse(r, "", "\"labels\" must be a path");
    if (!(out->name = strdup(name->valuestring)) ||
        !(out->class_name = strdup(class_name ? class_name->valuestring : "Sequential")) ||
        (labels && !(out->labels_path = resolve_path(folder, labels->valuestring))) || !(out->root.name = strdup("")))
        return rn_fail_nomem(r->error, "a network description");
    out->root.type = out->root.stage = MODULE_SEQUENTIAL;
    if ((status = read_input(r, cJSON_GetObjectItemCaseSensitive(json, "input"), &out->input)) ||
        (status = read_modules(r, "", cJSON_GetObjectItemCaseSensitive(json, "modules"), 0, &out->root)))
        return status;

    out->value_count = 1;
    v = (struct value_info){.channels = out->input.channels};
    if ((status = trace(&t, &out->root, "", -1, &v)))
        return status;
    out->output_value = v.value;
    if (v.value == 0)
        return refuse(r, "", "the network computes nothing");
    if (v.channels < 1)
        return refuse(r, "", "the number of classes depends on the input size; end with a Linear or Conv2d");
    out->classes = v.channels;
    for (size_t i = out->call_count; i-- > 0;)
        if (out->calls[i].kind == CALL_LEAF && out->calls[i].module->type != MODULE_FLATTEN &&
            out->calls[i].module->type != MODULE_DROPOUT) {
            out->ends_in_softmax = out->calls[i].module->type == MODULE_SOFTMAX;
            break;
        }
    return RN_OK;
}

enum rn_status network_parse(const char *json, size_t size, const char *where, const char *folder, struct network *out,
                             struct rn_error *error)
{
    struct reader r = {.where = where, .error = error};
    const char *end = NULL;
    cJSON *tree;
    enum rn_status status;

    memset(out, 0, sizeof *out);
    tree = cJSON_ParseWithLengthOpts(json, size, &end, false);
    if (!tree)
        return rn_fail(error, RN_ERR_DESCRIPTION, "%s: not valid JSON near byte %zu", where,
                       end ? (size_t)(end - json) : 0);
    while (end < json + size && strchr(" \t\r\n", *end) && *end)
        end++;
    status = end < json + size ? rn_fail(error, RN_ERR_DESCRIPTION, "%s: unexpected text after the JSON at byte %zu",
                                         where, (size_t)(end - json))
                               : read_network(&r, tree, folder, out);
    cJSON_Delete(tree);
    if (status)
        network_free(out);
    return status;
}

enum rn_status network_read(const char *path, struct network *out, struct rn_error *error)
{
    FILE *file = fopen(path, "rb");
    char *text = NULL, *folder = NULL;
    const char *slash = strrchr(path, '/');
    size_t size = 0;
    enum rn_status status;

    memset(out, 0, sizeof *out);
    if (!file)
        return rn_fail(error, RN_ERR_IO, "%s: cannot be opened", path);
    text = malloc(MAX_FILE_BYTES);
    folder = slash ? strndup(path, (size_t)(slash - path)) : strdup("");
    if (!text || !folder) {
        status = rn_fail_nomem(error, "a network description");
    } else {
        size = fread(text, 1, MAX_FILE_BYTES, file);
        if (ferror(file))
            status = rn_fail(error, RN_ERR_IO, "%s: cannot be read", path);
        else if (size == MAX_FILE_BYTES)
            status = rn_fail(error, RN_ERR_DESCRIPTION, "%s: larger than %d bytes", path, MAX_FILE_BYTES);
        else
            status = network_parse(text, size, path, folder, out, error);
    }
    free(folder);
    free(text);
    (void)fclose(file);
    return status;
}

void network_free(struct network *network)
{
    if (!network)
        return;
    for (size_t i = 0; i < network->call_count; i++)
        free(network->calls[i].path);
    free(network->calls);
    module_free(&network->root);
    free(network->labels_path);
    free(network->class_name);
    free(network->name);
    memset(network, 0, sizeof *network);
}

/* ---- print(model) ---- */

/* As Python's repr: the shortest digits that read back the same, always with a point or an exponent. */
static void print_float(double value, FILE *out)
{
    char text[40];

    for (int digits = 1; digits <= 17; digits++) {
        (void)snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    fprintf(out, "%s%s", text, strpbrk(text, ".en") ? "" : ".0");
}

/* A pool's extent prints as one number when both are equal. */
static void print_extent(const char *name, const int pair[2], FILE *out)
{
    if (pair[0] == pair[1])
        fprintf(out, "%s=%d", name, pair[0]);
    else
        fprintf(out, "%s=(%d, %d)", name, pair[0], pair[1]);
}

static const char *python_bool(bool value)
{
    return value ? "True" : "False";
}

static void print_arguments(const struct module *module, FILE *out)
{
    switch (module->type) {
    case MODULE_CONV2D: {
        const struct conv_params *p = &module->conv.params;
        fprintf(out, "%d, %d, kernel_size=(%d, %d), stride=(%d, %d)", p->in, p->out, p->kernel[0], p->kernel[1],
                p->stride[0], p->stride[1]);
        if (p->padding[0] || p->padding[1])
            fprintf(out, ", padding=(%d, %d)", p->padding[0], p->padding[1]);
        if (p->dilation[0] != 1 || p->dilation[1] != 1)
            fprintf(out, ", dilation=(%d, %d)", p->dilation[0], p->dilation[1]);
        if (p->groups != 1)
            fprintf(out, ", groups=%d", p->groups);
        if (!module->conv.bias)
            fputs(", bias=False", out);
        break;
    }
    case MODULE_BATCHNORM2D:
        fprintf(out, "%d, eps=", module->batchnorm.features);
        print_float(module->batchnorm.eps, out);
        fputs(", momentum=", out);
        print_float(module->batchnorm.momentum, out);
        fputs(", affine=True, track_running_stats=True", out);
        break;
    case MODULE_RELU:
        if (module->inplace)
            fputs("inplace=True", out);
        break;
    case MODULE_MAXPOOL2D:
    case MODULE_AVGPOOL2D:
        print_extent("kernel_size", module->pool.kernel, out);
        print_extent(", stride", module->pool.stride, out);
        print_extent(", padding", module->pool.padding, out);
        if (module->type == MODULE_MAXPOOL2D) {
            print_extent(", dilation", module->pool.dilation, out);
            fprintf(out, ", ceil_mode=%s", python_bool(module->pool.ceil_mode));
        }
        break;
    case MODULE_ADAPTIVE_AVGPOOL2D:
        fputs("output_size=(", out);
        for (int i = 0; i < 2; i++)
            if (module->adaptive.output[i] > 0)
                fprintf(out, "%d%s", module->adaptive.output[i], i ? ")" : ", ");
            else
                fprintf(out, "None%s", i ? ")" : ", ");
        break;
    case MODULE_LINEAR:
        fprintf(out, "in_features=%d, out_features=%d, bias=%s", module->linear.in, module->linear.out,
                python_bool(module->linear.bias));
        break;
    case MODULE_FLATTEN:
        fputs("start_dim=1, end_dim=-1", out);
        break;
    case MODULE_DROPOUT:
        fputs("p=", out);
        print_float(module->dropout.p, out);
        fprintf(out, ", inplace=%s", python_bool(module->inplace));
        break;
    case MODULE_SOFTMAX:
        fputs(module->softmax.dim_given ? "dim=1" : "dim=None", out);
        break;
    default:
        break;
    }
}

static void print_module(const struct module *module, const char *type, int indent, FILE *out)
{
    bool any = false;

    fprintf(out, "%s(", type);
    print_arguments(module, out);
    for (size_t i = 0; i < module->child_count; i++) {
        const struct module *child = &module->children[i];
        if (child->functional)
            continue;
        fprintf(out, "%s%*s(%s): ", any ? "" : "\n", indent + 2, "", child->name);
        print_module(child, type_names[child->type], indent + 2, out);
        any = true;
    }
    if (any)
        fprintf(out, "%*s", indent, "");
    fputs(")\n", out);
}

void network_print(const struct network *network, FILE *out)
{
    print_module(&network->root, network->class_name, 0, out);
}
