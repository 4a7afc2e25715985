/* json.c - the JSON writer. */

#include "json.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../model/sizes.h"

static bool reserve(struct json *json, size_t more)
{
    size_t needed, capacity;
    char *text;

    if (json->failed)
        return false;
    if (!size_add(json->length, more, &needed) || needed >= JSON_MAX_BYTES) {
        json->failed = true;
        return false;
    }
    if (needed + 1 <= json->capacity)
        return true;
    capacity = json->capacity ? json->capacity * 2 : 1024;
    if (capacity < needed + 1)
        capacity = needed + 1;
    text = realloc(json->text, capacity);
    if (!text) {
        json->failed = true;
        return false;
    }
    json->text = text;
    json->capacity = capacity;
    return true;
}

void json_bytes(struct json *json, const char *text, size_t length)
{
    if (!reserve(json, length))
        return;
    memcpy(json->text + json->length, text, length);
    json->length += length;
    json->text[json->length] = '\0';
}

static void put_char(struct json *json, char c)
{
    json_bytes(json, &c, 1);
}

/* Length of the well-formed UTF-8 sequence at `s`, 0 when there is none (Unicode 15, table 3-7). */
static size_t utf8_length(const unsigned char *s, size_t left)
{
    unsigned char low = 0x80, high = 0xbf;
    size_t length, i;

    if (s[0] >= 0xc2 && s[0] <= 0xdf)
        length = 2;
    else if (s[0] >= 0xe0 && s[0] <= 0xef)
        length = 3;
    else if (s[0] >= 0xf0 && s[0] <= 0xf4)
        length = 4;
    else
        return 0;
    if (length > left)
        return 0;
    if (s[0] == 0xe0)
        low = 0xa0; /* overlong */
    else if (s[0] == 0xed)
        high = 0x9f; /* surrogates */
    else if (s[0] == 0xf0)
        low = 0x90;
    else if (s[0] == 0xf4)
        high = 0x8f; /* above U+10FFFF */
    for (i = 1; i < length; i++) {
        if (s[i] < low || s[i] > high)
            return 0;
        low = 0x80;
        high = 0xbf;
    }
    return length;
}

void json_quoted(struct json *json, const char *value, size_t length)
{
    const unsigned char *s = (const unsigned char *)value;
    size_t i = 0;

    put_char(json, '"');
    while (i < length && !json->failed) {
        size_t plain = i, sequence;
        while (plain < length && s[plain] >= 0x20 && s[plain] < 0x7f && s[plain] != '"' && s[plain] != '\\')
            plain++;
        json_bytes(json, value + i, plain - i);
        i = plain;
        if (i == length)
            break;
        if (s[i] == '"' || s[i] == '\\') {
            const char escaped[2] = {'\\', value[i]};
            json_bytes(json, escaped, 2);
            i++;
        } else if (s[i] < 0x80) {
            char escaped[7];
            (void)snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned)s[i]);
            json_bytes(json, escaped, 6);
            i++;
        } else if ((sequence = utf8_length(s + i, length - i)) > 0) {
            json_bytes(json, value + i, sequence);
            i += sequence;
        } else {
            json_bytes(json, "\xef\xbf\xbd", 3);
            i++;
        }
    }
    put_char(json, '"');
}

static void put_key(struct json *json, const char *key)
{
    if (json->comma) {
        put_char(json, ',');
        put_char(json, json->indent > 0 ? '\n' : ' ');
        for (int i = 0; i < json->indent; i++)
            put_char(json, ' ');
    }
    json->indent = 0;
    json->comma = true;
    if (key) {
        json_quoted(json, key, strlen(key));
        json_bytes(json, ": ", 2);
    }
}

void json_line(struct json *json, int indent)
{
    json->indent = indent;
}

void json_open(struct json *json, const char *key, char bracket)
{
    assert(bracket == '{' || bracket == '[');
    put_key(json, key);
    put_char(json, bracket);
    json->comma = false;
}

void json_close(struct json *json, char bracket)
{
    assert(bracket == '}' || bracket == ']');
    put_char(json, bracket);
    json->comma = true;
}

void json_string_n(struct json *json, const char *key, const char *value, size_t length)
{
    put_key(json, key);
    json_quoted(json, value, length);
}

void json_string(struct json *json, const char *key, const char *value)
{
    json_string_n(json, key, value, strlen(value));
}

void json_integer(struct json *json, const char *key, int64_t value)
{
    char text[32];
    put_key(json, key);
    json_bytes(json, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)value));
}

void json_unsigned(struct json *json, const char *key, uint64_t value)
{
    char text[32];
    put_key(json, key);
    json_bytes(json, text, (size_t)snprintf(text, sizeof text, "%llu", (unsigned long long)value));
}

void json_bool(struct json *json, const char *key, bool value)
{
    put_key(json, key);
    json_bytes(json, value ? "true" : "false", value ? 4 : 5);
}

static void put_number(struct json *json, const char *key, double value, const char *text, int length)
{
    put_key(json, key);
    if (isfinite(value))
        json_bytes(json, text, (size_t)length);
    else
        json_bytes(json, "null", 4); /* JSON has neither NaN nor infinity */
}

void json_digits(struct json *json, const char *key, double value, int digits)
{
    char text[32];
    assert(digits > 0 && digits <= 17);
    put_number(json, key, value, text, snprintf(text, sizeof text, "%.*g", digits, value));
}

void json_decimals(struct json *json, const char *key, double value, int decimals)
{
    char text[352]; /* the largest double has 309 digits before the point */
    assert(decimals >= 0 && decimals <= 17);
    put_number(json, key, value, text, snprintf(text, sizeof text, "%.*f", decimals, value));
}

char *json_take(struct json *json, size_t *length)
{
    char *text = json->text;

    if (json->failed || !text) {
        json_free(json);
        return NULL;
    }
    if (length)
        *length = json->length;
    *json = (struct json){0};
    return text;
}

void json_free(struct json *json)
{
    if (!json)
        return;
    free(json->text);
    *json = (struct json){0};
}
