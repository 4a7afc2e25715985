/* config.c - one table of keys drives the file, the environment, flags, printing and the help.
 *
 * defaults -> file (JSON) -> environment -> flags -> models when none were named -> checks between keys */

#include "config.h"

#include <arpa/inet.h>
#include <cjson/cJSON.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_FILE_BYTES = 1 << 20, MAX_KEY = 64, MAX_INT = INT_MAX };

static const int64_t MAX_BYTES = (int64_t)1 << 48;

enum key_type { KEY_TEXT, KEY_INT, KEY_UINT64, KEY_CHOICE };

struct key {
    struct config_key public;
    enum key_type type;
    size_t offset;
    int64_t min, max;
    const char *choices; /* KEY_CHOICE: the names of the enum's values in order, separated by | */
};

#define AT(member) offsetof(struct config, member)

/* Ranges are in the table, so that a wrong value is refused where it is read. */
/* clang-format off */
static const struct key KEYS[] = {
    {{"server.host", "host", "ADDRESS", "0.0.0.0", "address to listen on; :: for IPv6 and IPv4"},
     KEY_TEXT, AT(server.host), 1, 64, NULL},
    {{"server.port", "port", "N", "8080", "0 lets the system choose"}, KEY_INT, AT(server.port), 0, 65535, NULL},
    {{"server.http_threads", NULL, "N", "2", "threads that move bytes"}, KEY_INT, AT(server.http_threads), 1, 64, NULL},
    {{"server.max_connections", NULL, "N", "512", "open connections"},
     KEY_INT, AT(server.max_connections), 1, 100000, NULL},
    {{"server.idle_timeout_ms", NULL, "MS", "30000", "a connection without traffic is closed after this"},
     KEY_INT, AT(server.idle_timeout_ms), 1000, 3600000, NULL},
    {{"server.drain_delay_ms", NULL, "MS", "0", "after SIGTERM, go on serving this long while readiness already fails"},
     KEY_INT, AT(server.drain_delay_ms), 0, 600000, NULL},
    {{"server.drain_timeout_ms", NULL, "MS", "30000", "then wait at most this long for accepted requests"},
     KEY_INT, AT(server.drain_timeout_ms), 0, 3600000, NULL},
    {{"server.cors_origin", NULL, "ORIGIN", "*", "Access-Control-Allow-Origin, * for any; empty for none"},
     KEY_TEXT, AT(server.cors_origin), 0, 256, NULL},
    {{"limits.max_body_bytes", NULL, "BYTES", "33554432", "one request's body"},
     KEY_UINT64, AT(limits.max_body_bytes), 1, MAX_BYTES, NULL},
    {{"limits.max_body_memory_bytes", NULL, "BYTES", "268435456", "all bodies that are received or waiting, together"},
     KEY_UINT64, AT(limits.max_body_memory_bytes), 1, MAX_BYTES, NULL},
    {{"limits.max_image_pixels", NULL, "PIXELS", "100000000", "of a file, before scaling"},
     KEY_UINT64, AT(limits.max_image_pixels), 1, MAX_BYTES, NULL},
    {{"limits.max_native_pixels", NULL, "PIXELS", "1048576", "size=native scales down above this"},
     KEY_UINT64, AT(limits.max_native_pixels), 1, MAX_BYTES, NULL},
    {{"limits.max_request_bytes", NULL, "BYTES", "1073741824", "memory for one image: decoder, pixels, activations"},
     KEY_UINT64, AT(limits.max_request_bytes), 1 << 20, MAX_BYTES, NULL},
    {{"limits.max_files", NULL, "N", "16", "files in one multipart request"}, KEY_INT, AT(limits.max_files), 1, 1024, NULL},
    {{"limits.queue_length", NULL, "N", "64", "accepted images that wait for a worker"},
     KEY_INT, AT(limits.queue_length), 1, 65536, NULL},
    {{"limits.deadline_ms", NULL, "MS", "30000", "from the last byte received to the answer; 0 for none"},
     KEY_INT, AT(limits.deadline_ms), 0, 3600000, NULL},
    {{"engine.workers", "workers", "N", "0", "0: one per CPU that cgroup and affinity allow"},
     KEY_INT, AT(engine.workers), 0, 1024, NULL},
    {{"engine.kernels", "kernels", "TABLE", "auto", "kernel table: auto or a name (resnetd kernels lists them)"},
     KEY_TEXT, AT(engine.kernels), 1, 32, NULL},
    {{"engine.precision", "precision", "auto|fp32|bf16", "auto", "arithmetic"},
     KEY_TEXT, AT(engine.precision), 1, 8, "auto|fp32|bf16"},
    {{"log.format", "log-format", "text|json", "text", "one line a request"},
     KEY_CHOICE, AT(log.format), 0, 0, "text|json"},
    {{"log.level", "log-level", "error|warn|info|debug", "info", "least important message to log"},
     KEY_CHOICE, AT(log.level), 0, 0, "error|warn|info|debug"},
};
/* clang-format on */

enum { KEY_COUNT = sizeof KEYS / sizeof KEYS[0] };

/* The members of one element of "models"; {"name", ...} is models.0.name and RESNETD_MODELS_0_NAME. */
static const struct model_member {
    const char *name;
    size_t offset;
    bool is_path;
} MODEL_MEMBERS[] = {
    {"name", offsetof(struct config_model, name), false},
    {"description", offsetof(struct config_model, description), true},
    {"weights", offsetof(struct config_model, weights), true},
    {"labels", offsetof(struct config_model, labels), true},
};

enum { MODEL_MEMBER_COUNT = sizeof MODEL_MEMBERS / sizeof MODEL_MEMBERS[0] };

/* Where a value came from, for messages and for relative paths. */
struct source {
    const char *label;       /* the file's path; "environment"; "flag" */
    const char *folder;      /* relative paths start here */
    const char *data_folder; /* a description that is only a name is looked for here */
};

const struct config_key *config_key_at(size_t index)
{
    return index < KEY_COUNT ? &KEYS[index].public : NULL;
}

/* ------------------------------------------------------------------------------------------ text helpers */

static enum rn_status copy_text(const char *text, char **out, struct rn_error *error)
{
    char *copy = strdup(text);

    if (!copy)
        return rn_fail_nomem(error, "the configuration");
    free(*out);
    *out = copy;
    return RN_OK;
}

/* "a/b" + "c" into a new string. */
static char *join_path(const char *folder, const char *path)
{
    size_t size = strlen(folder) + 1 + strlen(path) + 1;
    char *joined = malloc(size);

    if (joined)
        snprintf(joined, size, "%s/%s", folder, path);
    return joined;
}

static enum rn_status resolve_path(const char *folder, const char *path, char **out, struct rn_error *error)
{
    char *joined = path[0] == '/' ? strdup(path) : join_path(folder, path);

    if (!joined)
        return rn_fail_nomem(error, "the configuration");
    free(*out);
    *out = joined;
    return RN_OK;
}

/* Edits (insert, delete, replace) from a to b; `limit` when at least that many. Both shorter than MAX_KEY. */
static int edit_distance(const char *a, const char *b, int limit)
{
    int row[MAX_KEY + 1];
    size_t b_length = strlen(b);

    for (size_t j = 0; j <= b_length; j++)
        row[j] = (int)j;
    for (size_t i = 0; a[i]; i++) {
        int diagonal = row[0];
        row[0] = (int)i + 1;
        for (size_t j = 0; j < b_length; j++) {
            int best = diagonal + (a[i] != b[j]);
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j + 1] + 1 < best)
                best = row[j + 1] + 1;
            diagonal = row[j + 1];
            row[j + 1] = best;
        }
    }
    return row[b_length] < limit ? row[b_length] : limit;
}

/* "limits.queue_length" -> "RESNETD_LIMITS_QUEUE_LENGTH" */
static void variable_name(const char *key, char out[MAX_KEY])
{
    int n = snprintf(out, MAX_KEY, "RESNETD_%s", key);

    for (int i = 0; i < n && i < MAX_KEY - 1; i++)
        out[i] = out[i] == '.' ? '_' : (char)toupper((unsigned char)out[i]);
}

/* The key most like `name` into `out`, or false. Compares keys, or the variables' names. */
static bool most_similar(const char *name, bool variables, char out[MAX_KEY])
{
    int best = 4;

    if (strlen(name) >= MAX_KEY)
        return false;
    for (size_t i = 0; i < KEY_COUNT; i++) {
        char candidate[MAX_KEY];
        if (variables)
            variable_name(KEYS[i].public.name, candidate);
        else
            snprintf(candidate, sizeof candidate, "%s", KEYS[i].public.name);
        int distance = edit_distance(name, candidate, best);
        if (distance < best) {
            best = distance;
            memcpy(out, candidate, MAX_KEY);
        }
    }
    return best < 4;
}

static enum rn_status unknown_key(const struct source *source, const char *name, bool variable, struct rn_error *error)
{
    char similar[MAX_KEY];

    if (most_similar(name, variable, similar))
        return rn_fail(error, RN_ERR_CONFIG, "%s: unknown key %.60s; did you mean %s?", source->label, name, similar);
    return rn_fail(error, RN_ERR_CONFIG, "%s: unknown key %.60s", source->label, name);
}

/* --------------------------------------------------------------------------------------- setting one key */

static void *member(struct config *config, const struct key *key)
{
    return (char *)config + key->offset;
}

static const struct key *find_key(const char *name)
{
    for (size_t i = 0; i < KEY_COUNT; i++)
        if (!strcmp(KEYS[i].public.name, name))
            return &KEYS[i];
    return NULL;
}

/* The index of `text` among "a|b|c", or -1. */
static int choice_index(const char *choices, const char *text)
{
    size_t length = strlen(text);
    int index = 0;

    for (const char *at = choices; at; index++) {
        const char *end = strchr(at, '|');
        size_t size = end ? (size_t)(end - at) : strlen(at);
        if (size == length && !memcmp(at, text, length))
            return index;
        at = end ? end + 1 : NULL;
    }
    return -1;
}

static enum rn_status set_number(struct config *config, const struct key *key, const struct source *source,
                                 int64_t value, struct rn_error *error)
{
    if (value < key->min || value > key->max)
        return rn_fail(error, RN_ERR_CONFIG, "%s: %s must be between %" PRId64 " and %" PRId64 ", not %" PRId64,
                       source->label, key->public.name, key->min, key->max, value);
    if (key->type == KEY_INT)
        *(int *)member(config, key) = (int)value;
    else
        *(uint64_t *)member(config, key) = (uint64_t)value;
    return RN_OK;
}

static enum rn_status set_text(struct config *config, const struct key *key, const struct source *source,
                               const char *text, struct rn_error *error)
{
    size_t length = strlen(text);
    int index = key->choices ? choice_index(key->choices, text) : 0;

    if (index < 0)
        return rn_fail(error, RN_ERR_CONFIG, "%s: %s must be one of %s, not \"%.40s\"", source->label, key->public.name,
                       key->choices, text);
    if (key->type == KEY_CHOICE) {
        *(int *)member(config, key) = index;
        return RN_OK;
    }
    if (length < (size_t)key->min)
        return rn_fail(error, RN_ERR_CONFIG, "%s: %s must not be empty", source->label, key->public.name);
    if (length > (size_t)key->max)
        return rn_fail(error, RN_ERR_CONFIG, "%s: %s is longer than %" PRId64 " bytes", source->label, key->public.name,
                       key->max);
    for (size_t i = 0; i < length; i++)
        if (!isgraph((unsigned char)text[i]))
            return rn_fail(error, RN_ERR_CONFIG, "%s: %s must have no spaces and no control characters", source->label,
                           key->public.name);
    return copy_text(text, (char **)member(config, key), error);
}

/* A value given as text: by the environment or a flag. */
static enum rn_status set_from_text(struct config *config, const struct key *key, const struct source *source,
                                    const char *text, struct rn_error *error)
{
    char *end;
    long long value;

    if (key->type == KEY_TEXT || key->type == KEY_CHOICE)
        return set_text(config, key, source, text, error);
    errno = 0;
    value = strtoll(text, &end, 10);
    if (end == text || *end || errno || isspace((unsigned char)text[0]))
        return rn_fail(error, RN_ERR_CONFIG, "%s: %s must be an integer, not \"%.40s\"", source->label,
                       key->public.name, text);
    return set_number(config, key, source, value, error);
}

static enum rn_status set_from_json(struct config *config, const struct key *key, const struct source *source,
                                    const cJSON *value, struct rn_error *error)
{
    if (key->type == KEY_TEXT || key->type == KEY_CHOICE) {
        if (!cJSON_IsString(value))
            return rn_fail(error, RN_ERR_CONFIG, "%s: %s must be a string", source->label, key->public.name);
        return set_text(config, key, source, value->valuestring, error);
    }
    if (!cJSON_IsNumber(value) || !(value->valuedouble >= -9e15 && value->valuedouble <= 9e15) ||
        value->valuedouble != (double)(int64_t)value->valuedouble)
        return rn_fail(error, RN_ERR_CONFIG, "%s: %s must be an integer", source->label, key->public.name);
    return set_number(config, key, source, (int64_t)value->valuedouble, error);
}

/* Set one member of models[index], making the list that long. */
static enum rn_status set_model(struct config *config, size_t index, const struct model_member *which,
                                const struct source *source, const char *text, struct rn_error *error)
{
    char **value = (char **)((char *)&config->models[index] + which->offset);
    bool only_a_name = !strcmp(which->name, "description") && !strchr(text, '/') &&
                       (strlen(text) < 5 || strcmp(text + strlen(text) - 5, ".json") != 0);

    if (!text[0])
        return rn_fail(error, RN_ERR_CONFIG, "%s: models.%zu.%s must not be empty", source->label, index, which->name);
    if ((int)index >= config->model_count)
        config->model_count = (int)index + 1;
    if (only_a_name) {
        char file[MAX_KEY * 2];
        int n = snprintf(file, sizeof file, "models/%s.json", text);
        if (n < 0 || (size_t)n >= sizeof file)
            return rn_fail(error, RN_ERR_CONFIG, "%s: models.%zu.description is too long a name", source->label, index);
        return resolve_path(source->data_folder, file, value, error);
    }
    if (which->is_path)
        return resolve_path(source->folder, text, value, error);
    for (size_t i = 0; text[i]; i++)
        if (!isalnum((unsigned char)text[i]) && !strchr("._-", text[i]))
            return rn_fail(error, RN_ERR_CONFIG,
                           "%s: models.%zu.name may have letters, digits, dot, dash and underscore", source->label,
                           index);
    return copy_text(text, value, error);
}

static const struct model_member *find_model_member(const char *name)
{
    for (size_t i = 0; i < MODEL_MEMBER_COUNT; i++)
        if (!strcmp(MODEL_MEMBERS[i].name, name))
            return &MODEL_MEMBERS[i];
    return NULL;
}

/* Set a dotted key from text. `shown` is how the operator wrote it. */
static enum rn_status set_dotted(struct config *config, const char *name, const char *shown,
                                 const struct source *source, const char *text, struct rn_error *error)
{
    const struct key *key = find_key(name);

    if (key)
        return set_from_text(config, key, source, text, error);
    if (!strncmp(name, "models.", 7) && isdigit((unsigned char)name[7])) {
        char *end;
        unsigned long index = strtoul(name + 7, &end, 10);
        const struct model_member *which = *end == '.' ? find_model_member(end + 1) : NULL;
        if (which && index >= CONFIG_MAX_MODELS)
            return rn_fail(error, RN_ERR_CONFIG, "%s: %s: at most %d models", source->label, shown, CONFIG_MAX_MODELS);
        if (which)
            return set_model(config, index, which, source, text, error);
    }
    return unknown_key(source, shown, shown != name, error);
}

/* ------------------------------------------------------------------------------------------------- file */

static enum rn_status read_file(const char *path, char **out, struct rn_error *error)
{
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    size_t size;

    if (!file)
        return rn_fail(error, RN_ERR_IO, "cannot open the configuration %s: %s", path, strerror(errno));
    text = malloc(MAX_FILE_BYTES + 1);
    if (!text) {
        fclose(file);
        return rn_fail_nomem(error, "the configuration");
    }
    errno = 0;
    size = fread(text, 1, MAX_FILE_BYTES + 1, file);
    if (ferror(file)) {
        rn_fail(error, RN_ERR_IO, "cannot read the configuration %s: %s", path, strerror(errno));
        goto fail;
    }
    if (size > MAX_FILE_BYTES) {
        rn_fail(error, RN_ERR_CONFIG, "%s: larger than 1 MiB, this is no configuration", path);
        goto fail;
    }
    if (memchr(text, 0, size)) {
        rn_fail(error, RN_ERR_CONFIG, "%s: contains a zero byte, this is no JSON", path);
        goto fail;
    }
    text[size] = 0;
    fclose(file);
    *out = text;
    return RN_OK;
fail:
    fclose(file);
    free(text);
    return error ? error->code : RN_ERR_IO;
}

/* cJSON keeps both of two equal members and would use the first without a word. */
static enum rn_status refuse_repeated(const cJSON *object, const char *prefix, const struct source *source,
                                      struct rn_error *error)
{
    for (const cJSON *a = object->child; a; a = a->next)
        for (const cJSON *b = a->next; b; b = b->next)
            if (!strcmp(a->string, b->string))
                return rn_fail(error, RN_ERR_CONFIG, "%s: %s%.60s is given twice", source->label, prefix, a->string);
    return RN_OK;
}

static enum rn_status apply_models(struct config *config, const cJSON *list, const struct source *source,
                                   struct rn_error *error)
{
    size_t index = 0;
    const cJSON *item;

    if (!cJSON_IsArray(list))
        return rn_fail(error, RN_ERR_CONFIG, "%s: models must be a list", source->label);
    cJSON_ArrayForEach(item, list)
    {
        char prefix[MAX_KEY];
        snprintf(prefix, sizeof prefix, "models.%zu.", index);
        if (index >= CONFIG_MAX_MODELS)
            return rn_fail(error, RN_ERR_CONFIG, "%s: models has more than %d elements", source->label,
                           CONFIG_MAX_MODELS);
        if (!cJSON_IsObject(item))
            return rn_fail(error, RN_ERR_CONFIG, "%s: models.%zu must be an object", source->label, index);
        enum rn_status status = refuse_repeated(item, prefix, source, error);
        config->model_count = (int)index + 1;
        for (const cJSON *value = item->child; value && status == RN_OK; value = value->next) {
            const struct model_member *which = find_model_member(value->string);
            if (!which)
                status = rn_fail(error, RN_ERR_CONFIG, "%s: unknown key %s%.60s", source->label, prefix, value->string);
            else if (!cJSON_IsString(value))
                status = rn_fail(error, RN_ERR_CONFIG, "%s: %s%s must be a string", source->label, prefix, which->name);
            else
                status = set_model(config, index, which, source, value->valuestring, error);
        }
        if (status != RN_OK)
            return status;
        index++;
    }
    return RN_OK;
}

/* Whether a section of that name exists: "limits" of "limits.queue_length". */
static bool is_section(const char *name)
{
    size_t length = strlen(name);

    for (size_t i = 0; i < KEY_COUNT; i++)
        if (!strncmp(KEYS[i].public.name, name, length) && KEYS[i].public.name[length] == '.')
            return true;
    return false;
}

static enum rn_status apply_section(struct config *config, const cJSON *section, const struct source *source,
                                    struct rn_error *error)
{
    char prefix[MAX_KEY];
    enum rn_status status;

    snprintf(prefix, sizeof prefix, "%s.", section->string);
    if (!cJSON_IsObject(section))
        return rn_fail(error, RN_ERR_CONFIG, "%s: %s must be an object", source->label, section->string);
    status = refuse_repeated(section, prefix, source, error);
    for (const cJSON *value = section->child; value && status == RN_OK; value = value->next) {
        char name[MAX_KEY * 2];
        snprintf(name, sizeof name, "%s%.64s", prefix, value->string);
        const struct key *key = find_key(name);
        status = key ? set_from_json(config, key, source, value, error) : unknown_key(source, name, false, error);
    }
    return status;
}

static enum rn_status apply_file(struct config *config, const char *path, const char *data_folder,
                                 struct rn_error *error)
{
    struct source source = {.label = path, .data_folder = data_folder};
    char *text = NULL, *folder = NULL;
    const char *end = NULL;
    cJSON *root = NULL;
    enum rn_status status = read_file(path, &text, error);

    if (status != RN_OK)
        return status;
    const char *slash = strrchr(path, '/');
    char *directory = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    folder = directory ? realpath(directory, NULL) : NULL;
    free(directory);
    if (!folder) {
        status = rn_fail_nomem(error, "the configuration");
        goto done;
    }
    source.folder = folder;
    root = cJSON_ParseWithOpts(text, &end, true);
    if (!root) {
        size_t line = 1;
        for (const char *at = text; end && at < end; at++)
            line += *at == '\n';
        status = rn_fail(error, RN_ERR_CONFIG, "%s: not valid JSON near line %zu", path, line);
        goto done;
    }
    if (!cJSON_IsObject(root)) {
        status = rn_fail(error, RN_ERR_CONFIG, "%s: must hold one JSON object", path);
        goto done;
    }
    status = refuse_repeated(root, "", &source, error);
    for (const cJSON *item = root->child; item && status == RN_OK; item = item->next) {
        if (!strcmp(item->string, "models"))
            status = apply_models(config, item, &source, error);
        else if (is_section(item->string))
            status = apply_section(config, item, &source, error);
        else
            status = unknown_key(&source, item->string, false, error);
    }
done:
    cJSON_Delete(root);
    free(folder);
    free(text);
    return status;
}

/* ------------------------------------------------------------------------------ environment and flags */

/* Kubernetes and linked containers announce a service called resnetd in variables of their own:
 * RESNETD_SERVICE_HOST=10.0.0.1, RESNETD_PORT=tcp://10.0.0.1:8080, RESNETD_PORT_8080_TCP_ADDR=... */
static bool is_service_link(const char *name, const char *value)
{
    const char *port = strstr(name, "_PORT_");

    return strstr(name, "_SERVICE_HOST") || strstr(name, "_SERVICE_PORT") || !strncmp(value, "tcp://", 6) ||
           !strncmp(value, "udp://", 6) || (port && isdigit((unsigned char)port[6]));
}

/* These say where the configuration and the data are and which binary to test; they are not keys. */
static bool is_own_variable(const char *name)
{
    return !strcmp(name, "RESNETD_CONFIG") || !strcmp(name, "RESNETD_DATA") || !strcmp(name, "RESNETD_BINARY");
}

static enum rn_status apply_environment(struct config *config, char *const *environment, const struct source *source,
                                        struct rn_error *error)
{
    for (; environment && *environment; environment++) {
        const char *equals = strchr(*environment, '=');
        char name[MAX_KEY * 2], key[MAX_KEY] = "";

        if (strncmp(*environment, "RESNETD_", 8) || !equals)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(equals - *environment), *environment);
        if (is_own_variable(name) || is_service_link(name, equals + 1))
            continue;
        for (size_t i = 0; i < KEY_COUNT && !key[0]; i++) {
            char variable[MAX_KEY];
            variable_name(KEYS[i].public.name, variable);
            if (!strcmp(variable, name))
                snprintf(key, sizeof key, "%s", KEYS[i].public.name);
        }
        unsigned index;
        char field[16];
        if (!key[0] && sscanf(name, "RESNETD_MODELS_%3u_%15[A-Z]", &index, field) == 2) {
            for (char *c = field; *c; c++)
                *c = (char)tolower((unsigned char)*c);
            snprintf(key, sizeof key, "models.%u.%s", index, field);
        }
        if (!key[0])
            return unknown_key(source, name, true, error);
        enum rn_status status = set_dotted(config, key, name, source, equals + 1, error);
        if (status != RN_OK)
            return status;
    }
    return RN_OK;
}

/* ------------------------------------------------------------------------------------------ the models */

static enum rn_status add_model(struct config *config, const char *folder, const char *description, const char *weights,
                                struct rn_error *error)
{
    struct config_model *model = &config->models[config->model_count++];
    enum rn_status status = resolve_path(folder, description, &model->description, error);

    return status == RN_OK ? resolve_path(folder, weights, &model->weights, error) : status;
}

static const char DEMO_NOTE[] =
    "no models configured and no ImageNet weights found: serving the bundled demo model, which knows 64 everyday "
    "classes; make weights downloads ResNet-50 for ImageNet";

/* Which model to serve when nothing is configured: ImageNet if someone fetched the weights, else the demo. */
static enum rn_status choose_models(struct config *config, const char *data_folder, struct rn_error *error)
{
    static const struct {
        const char *description, *weights;
    } IMAGENET[] = {
        {"models/resnet50-v2.json", "../weights/resnet50-11ad3fa6.pth"},
        {"models/resnet50.json", "../weights/resnet50-0676ba61.pth"},
        {"models/resnet50-v2.json", "weights/resnet50-11ad3fa6.pth"},
        {"models/resnet50.json", "weights/resnet50-0676ba61.pth"},
    };
    enum rn_status status;
    char note[128];

    for (size_t i = 0; i < sizeof IMAGENET / sizeof IMAGENET[0]; i++) {
        char *weights = join_path(data_folder, IMAGENET[i].weights);
        if (!weights)
            return rn_fail_nomem(error, "the configuration");
        bool there = access(weights, R_OK) == 0;
        /* The metadata repeats the note to clients, whom the folder is no business of. */
        if (there)
            snprintf(note, sizeof note, "no models configured: serving ImageNet's ResNet-50 from %s",
                     strrchr(weights, '/') + 1);
        free(weights);
        if (!there)
            continue;
        status = add_model(config, data_folder, IMAGENET[i].description, IMAGENET[i].weights, error);
        return status == RN_OK ? copy_text(note, &config->default_note, error) : status;
    }
    status = add_model(config, data_folder, "models/demo64.json", "weights/demo64.safetensors", error);
    return status == RN_OK ? copy_text(DEMO_NOTE, &config->default_note, error) : status;
}

/* What one key alone cannot show. */
static enum rn_status check(const struct config *config, struct rn_error *error)
{
    unsigned char address[sizeof(struct in6_addr)];

    if (inet_pton(AF_INET, config->server.host, address) != 1 && inet_pton(AF_INET6, config->server.host, address) != 1)
        return rn_fail(error, RN_ERR_CONFIG, "server.host must be an IPv4 or IPv6 address, not \"%.64s\"",
                       config->server.host);
    if (config->limits.max_body_memory_bytes < config->limits.max_body_bytes)
        return rn_fail(error, RN_ERR_CONFIG,
                       "limits.max_body_memory_bytes (%" PRIu64 ") must be at least limits.max_body_bytes (%" PRIu64
                       ")",
                       config->limits.max_body_memory_bytes, config->limits.max_body_bytes);
    for (int i = 0; i < config->model_count; i++) {
        const struct config_model *model = &config->models[i];
        if (!model->description)
            return rn_fail(error, RN_ERR_CONFIG, "models.%d.description is missing", i);
        if (!model->weights)
            return rn_fail(error, RN_ERR_CONFIG, "models.%d.weights is missing", i);
        for (int j = 0; j < i; j++)
            if (model->name && config->models[j].name && !strcmp(model->name, config->models[j].name))
                return rn_fail(error, RN_ERR_CONFIG, "models.%d.name and models.%d.name are both \"%.60s\"", j, i,
                               model->name);
    }
    return RN_OK;
}

/* --------------------------------------------------------------------------------------------- interface */

static enum rn_status load(const char *path, char *const *environment, const struct config_override *overrides,
                           size_t override_count, const char *data_folder, const char *current_folder,
                           struct config *config, struct rn_error *error)
{
    const struct source defaults = {"defaults", data_folder, data_folder};
    const struct source from_environment = {"environment", current_folder, data_folder};
    const struct source from_flags = {"flag", current_folder, data_folder};
    enum rn_status status = RN_OK;

    for (size_t i = 0; i < KEY_COUNT && status == RN_OK; i++)
        status = set_from_text(config, &KEYS[i], &defaults, KEYS[i].public.value, error);
    if (status == RN_OK && path)
        status = apply_file(config, path, data_folder, error);
    if (status == RN_OK)
        status = apply_environment(config, environment, &from_environment, error);
    for (size_t i = 0; i < override_count && status == RN_OK; i++)
        status = set_dotted(config, overrides[i].key, overrides[i].key, &from_flags, overrides[i].value, error);
    if (status == RN_OK && config->model_count == 0)
        status = choose_models(config, data_folder, error);
    return status == RN_OK ? check(config, error) : status;
}

enum rn_status config_load(const char *path, char *const *environment, const struct config_override *overrides,
                           size_t override_count, const char *data_folder, struct config *out, struct rn_error *error)
{
    char *current_folder = getcwd(NULL, 0);
    enum rn_status status;

    memset(out, 0, sizeof *out);
    if (!current_folder)
        return rn_fail(error, RN_ERR_IO, "cannot tell the current folder: %s", strerror(errno));
    status = load(path, environment, overrides, override_count, data_folder, current_folder, out, error);
    free(current_folder);
    if (status != RN_OK)
        config_free(out);
    return status;
}

void config_free(struct config *config)
{
    if (!config)
        return;
    for (size_t i = 0; i < KEY_COUNT; i++)
        if (KEYS[i].type == KEY_TEXT)
            free(*(char **)member(config, &KEYS[i]));
    for (int i = 0; i < CONFIG_MAX_MODELS; i++) {
        free(config->models[i].name);
        free(config->models[i].description);
        free(config->models[i].weights);
        free(config->models[i].labels);
    }
    free(config->default_note);
    memset(config, 0, sizeof *config);
}

/* A JSON string: quotes, backslashes and control characters escaped, the rest as it is. */
static void print_string(const char *text, FILE *out)
{
    fputc('"', out);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 0x20)
            fprintf(out, "\\u%04x", c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

static void print_value(const struct config *config, const struct key *key, FILE *out)
{
    const char *at = (const char *)config + key->offset;

    switch (key->type) {
    case KEY_TEXT:
        print_string(*(char *const *)(const void *)at, out);
        break;
    case KEY_INT:
        fprintf(out, "%d", *(const int *)(const void *)at);
        break;
    case KEY_UINT64:
        fprintf(out, "%" PRIu64, *(const uint64_t *)(const void *)at);
        break;
    case KEY_CHOICE: {
        const char *name = key->choices;
        for (int i = *(const int *)(const void *)at; i > 0; i--)
            name = strchr(name, '|') + 1;
        fprintf(out, "\"%.*s\"", (int)strcspn(name, "|"), name);
        break;
    }
    }
}

void config_print(const struct config *config, FILE *out)
{
    size_t section = 0; /* length of the section's name that is open; 0 for none */

    fputc('{', out);
    for (size_t i = 0; i < KEY_COUNT; i++) {
        const char *name = KEYS[i].public.name;
        size_t length = strcspn(name, ".");
        bool same = i > 0 && section == length && !strncmp(KEYS[i - 1].public.name, name, length);
        if (!same)
            fprintf(out, "%s\n  \"%.*s\": {", i > 0 ? "\n  }," : "", (int)length, name);
        section = length;
        fprintf(out, "%s\n    \"%s\": ", same ? "," : "", name + length + 1);
        print_value(config, &KEYS[i], out);
    }
    fputs("\n  },\n  \"models\": [", out);
    for (int i = 0; i < config->model_count; i++) {
        const char *separator = "";
        fputs(i > 0 ? ",\n    {" : "\n    {", out);
        for (size_t m = 0; m < MODEL_MEMBER_COUNT; m++) {
            char *const *value =
                (char *const *)(const void *)((const char *)&config->models[i] + MODEL_MEMBERS[m].offset);
            if (!*value)
                continue;
            fprintf(out, "%s\"%s\": ", separator, MODEL_MEMBERS[m].name);
            print_string(*value, out);
            separator = ", ";
        }
        fputc('}', out);
    }
    fputs("\n  ]\n}\n", out);
}
