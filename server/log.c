/* log.c - lines on standard error. */

#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "json.h"

static enum log_format log_format = LOG_FORMAT_TEXT;
static enum log_level log_level = LOG_LEVEL_INFO;

static const char *const level_names[] = {"error", "warn", "info", "debug"};

/* A line in the making. Text: "TIME LEVEL MESSAGE key=value ..."; JSON: one object with the same keys. */
struct line {
    struct json json;
};

void log_configure(enum log_format format, enum log_level level)
{
    log_format = format;
    log_level = level;
}

static void line_begin(struct line *line, enum log_level level, const char *message)
{
    char stamp[40];
    struct timespec now;
    struct tm utc;
    size_t length;

    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)gmtime_r(&now.tv_sec, &utc);
    length = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);
    (void)snprintf(stamp + length, sizeof stamp - length, ".%03dZ", (int)(now.tv_nsec / 1000000));

    *line = (struct line){0};
    if (log_format == LOG_FORMAT_JSON) {
        json_open(&line->json, NULL, '{');
        json_string(&line->json, "time", stamp);
        json_string(&line->json, "level", level_names[level]);
        json_string(&line->json, "message", message);
    } else {
        char head[64];
        int head_length = snprintf(head, sizeof head, "%s %-5s ", stamp, level_names[level]);
        json_bytes(&line->json, head, (size_t)head_length);
        for (const char *c = message; *c; c++) /* a message may quote a client's words */
            json_bytes(&line->json, (unsigned char)*c < 0x20 || *c == 0x7f ? " " : c, 1);
    }
}

/* Text format: quoted only where a space or a quote would be misread. */
static void line_string(struct line *line, const char *key, const char *value)
{
    if (!value)
        return;
    if (log_format == LOG_FORMAT_JSON) {
        json_string(&line->json, key, value);
        return;
    }
    json_bytes(&line->json, " ", 1);
    json_bytes(&line->json, key, strlen(key));
    json_bytes(&line->json, "=", 1);
    if (*value &&
        value[strspn(value, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.:/?&%+,[]~@=")] == '\0')
        json_bytes(&line->json, value, strlen(value));
    else
        json_quoted(&line->json, value, strlen(value));
}

static void line_unsigned(struct line *line, const char *key, uint64_t value)
{
    char text[32];
    if (log_format == LOG_FORMAT_JSON) {
        json_unsigned(&line->json, key, value);
        return;
    }
    (void)snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    line_string(line, key, text);
}

static void line_ms(struct line *line, const char *key, double value)
{
    char text[64];
    if (value < 0)
        return;
    if (log_format == LOG_FORMAT_JSON) {
        json_decimals(&line->json, key, value, 3);
        return;
    }
    (void)snprintf(text, sizeof text, "%.3f", value);
    line_string(line, key, text);
}

static void line_end(struct line *line)
{
    size_t length;
    char *text;

    if (log_format == LOG_FORMAT_JSON)
        json_close(&line->json, '}');
    json_bytes(&line->json, "\n", 1);
    text = json_take(&line->json, &length);
    if (!text)
        return; /* no memory: the line is lost, the server goes on */
    for (size_t done = 0; done < length;) {
        ssize_t written = write(STDERR_FILENO, text + done, length - done);
        if (written <= 0)
            break;
        done += (size_t)written;
    }
    free(text);
}

void log_write(enum log_level level, const char *message, ...)
{
    char text[1024];
    struct line line;
    va_list args;

    if (level > log_level)
        return;
    va_start(args, message);
    (void)vsnprintf(text, sizeof text, message, args);
    va_end(args);
    line_begin(&line, level, text);
    line_end(&line);
}

void log_request(enum log_level level, const struct log_request *request)
{
    struct line line;

    if (level > log_level)
        return;
    line_begin(&line, level, "request");
    line_string(&line, "id", request->id);
    line_string(&line, "remote", request->remote);
    line_string(&line, "method", request->method);
    line_string(&line, "target", request->target);
    line_unsigned(&line, "status", request->status);
    line_string(&line, "error", request->error);
    line_string(&line, "model", request->model);
    line_unsigned(&line, "bytes_in", request->bytes_in);
    line_unsigned(&line, "bytes_out", request->bytes_out);
    if (request->images > 0) {
        line_unsigned(&line, "images", (uint64_t)request->images);
        line_ms(&line, "queue_ms", request->queue_ms);
        line_ms(&line, "decode_ms", request->decode_ms);
        line_ms(&line, "preprocess_ms", request->preprocess_ms);
        line_ms(&line, "inference_ms", request->inference_ms);
        line_ms(&line, "total_ms", request->total_ms);
    }
    line_ms(&line, "receive_ms", request->receive_ms);
    line_ms(&line, "answer_ms", request->answer_ms);
    line_string(&line, "detail", request->detail);
    line_end(&line);
}
