/* query.c - strict parameters. */

#include "query.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[QUERY_PARAMETER_COUNT] = {
    [QUERY_TOP_K] = "top_k",   [QUERY_SIZE] = "size",     [QUERY_ORIENT] = "orient", [QUERY_MODEL] = "model",
    [QUERY_STAGES] = "stages", [QUERY_HEIGHT] = "height", [QUERY_WIDTH] = "width",
};

/* The parameter called `name`, or QUERY_PARAMETER_COUNT. */
static enum query_parameter find(const struct query *query, const char *name, size_t length)
{
    enum query_parameter i;

    for (i = 0; i < QUERY_PARAMETER_COUNT; i++)
        if ((query->allowed & (1u << i)) && strlen(names[i]) == length && memcmp(names[i], name, length) == 0)
            break;
    return i;
}

bool query_knows(const struct query *query, const char *name, size_t name_length)
{
    return find(query, name, name_length) != QUERY_PARAMETER_COUNT;
}

/* Up to 32 printable characters of what the client sent, to name it in a message. */
static const char *excerpt(const char *text, size_t length, char out[40])
{
    size_t n = length < 32 ? length : 32;

    for (size_t i = 0; i < n; i++)
        out[i] = text[i] >= 0x20 && text[i] < 0x7f && text[i] != '"' ? text[i] : '?';
    (void)strcpy(out + n, length > n ? "..." : "");
    return out;
}

/* "top_k, size, model" of what is allowed. */
static const char *list_allowed(const struct query *query, char out[128])
{
    size_t length = 0;

    out[0] = '\0';
    for (int i = 0; i < QUERY_PARAMETER_COUNT; i++)
        if (query->allowed & (1u << i))
            length += (size_t)snprintf(out + length, 128 - length, "%s%s", length ? ", " : "", names[i]);
    return out;
}

static void fail(struct query *query, enum api_error error)
{
    if (query->error == API_OK)
        query->error = error;
}

bool query_add(void *arg, const char *name, size_t name_length, const char *value, size_t value_length)
{
    struct query *query = arg;
    enum query_parameter i = find(query, name, name_length);
    char shown[40], list[128];

    if (query->error != API_OK)
        return false;
    if (name_length == 0 && value_length == 0)
        return true; /* "?&top_k=1&" */
    if (i == QUERY_PARAMETER_COUNT) {
        fail(query, API_UNKNOWN_PARAMETER);
        (void)rn_fail(&query->text, RN_ERR_BAD_REQUEST,
                      query->allowed ? "unknown parameter \"%s\": there are %s"
                                     : "unknown parameter \"%s\": this route takes none%s",
                      excerpt(name, name_length, shown), list_allowed(query, list));
        return false;
    }
    if (query->given & (1u << i)) {
        fail(query, API_DUPLICATE_PARAMETER);
        (void)rn_fail(&query->text, RN_ERR_BAD_REQUEST, "parameter %s is given more than once", names[i]);
        return false;
    }
    if (value_length >= QUERY_VALUE_SIZE || memchr(value, '\0', value_length)) {
        fail(query, API_BAD_PARAMETER);
        (void)rn_fail(&query->text, RN_ERR_BAD_REQUEST, "parameter %s is too long or holds a NUL", names[i]);
        return false;
    }
    query->given |= 1u << i;
    memcpy(query->values[i], value, value_length);
    query->values[i][value_length] = '\0';
    return true;
}

const char *query_get(const struct query *query, enum query_parameter parameter)
{
    return query->given & (1u << parameter) ? query->values[parameter] : NULL;
}

long query_integer(struct query *query, enum query_parameter parameter, long min, long max, long otherwise)
{
    const char *text = query_get(query, parameter);
    char shown[40];
    size_t digits;
    long value;

    if (!text)
        return otherwise;
    digits = strspn(text, "0123456789");
    if (digits > 0 && digits <= 9 && text[digits] == '\0') {
        value = strtol(text, NULL, 10);
        if (value >= min && value <= max)
            return value;
    }
    if (query->error == API_OK)
        (void)rn_fail(&query->text, RN_ERR_BAD_REQUEST, "%s must be a whole number from %ld to %ld, not \"%s\"",
                      names[parameter], min, max, excerpt(text, strlen(text), shown));
    fail(query, API_BAD_PARAMETER);
    return otherwise;
}

int query_word(struct query *query, enum query_parameter parameter, const char *const *words, int otherwise)
{
    const char *text = query_get(query, parameter);
    char shown[40], list[80] = "";
    size_t length = 0;

    if (!text)
        return otherwise;
    for (int i = 0; words[i]; i++) {
        if (strcmp(words[i], text) == 0)
            return i;
        length += (size_t)snprintf(list + length, sizeof list - length, "%s%s",
                                   i == 0         ? ""
                                   : words[i + 1] ? ", "
                                                  : " or ",
                                   words[i]);
    }
    if (query->error == API_OK)
        (void)rn_fail(&query->text, RN_ERR_BAD_REQUEST, "%s must be %s, not \"%s\"", names[parameter], list,
                      excerpt(text, strlen(text), shown));
    fail(query, API_BAD_PARAMETER);
    return otherwise;
}
