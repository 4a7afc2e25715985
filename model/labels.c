/* labels.c - read a label file: the text is kept as it is, its tabs and line ends become NULs. */

#include "labels.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "utf8.h"

enum { MAX_BYTES = 16 * 1024 * 1024 };

/* The whole file, with a line end behind its last line and a NUL behind that. */
static enum rn_status read_text(const char *path, char **out, size_t *size, struct rn_error *error)
{
    struct stat info;
    enum rn_status status = RN_OK;
    char *text = NULL;
    size_t length = 0;

    *out = NULL;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return rn_fail(error, RN_ERR_IO, "%s: cannot open it: %s", path, strerror(errno));
    if (fstat(file, &info) != 0)
        status = rn_fail(error, RN_ERR_IO, "%s: cannot read it: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        status = rn_fail(error, RN_ERR_IO, "%s: not a regular file", path);
    else if (info.st_size > MAX_BYTES)
        status = rn_fail(error, RN_ERR_DESCRIPTION, "%s: more than %d bytes of labels", path, MAX_BYTES);
    else if (!(text = malloc((size_t)info.st_size + 2)))
        status = rn_fail_nomem(error, "the labels");
    while (status == RN_OK && length < (size_t)info.st_size) {
        ssize_t got = read(file, text + length, (size_t)info.st_size - length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            status = rn_fail(error, RN_ERR_IO, "%s: cannot read it: %s", path, strerror(errno));
        if (got <= 0)
            break;
        length += (size_t)got;
    }
    (void)close(file);
    if (status != RN_OK || !text) {
        free(text);
        return status;
    }
    if (length > 0 && text[length - 1] != '\n')
        text[length++] = '\n';
    text[length] = '\0';
    *out = text;
    *size = length;
    return RN_OK;
}

/* Whether `text` is `number` in decimal and nothing else. */
static bool is_number(const char *text, size_t number)
{
    char *end;

    if (*text < '0' || *text > '9' || (*text == '0' && text[1] != '\0'))
        return false;
    errno = 0;
    return strtoull(text, &end, 10) == number && *end == '\0' && errno == 0;
}

/* Cut line `index`, `length` bytes and then its line end, into its three fields. NULL, or what is wrong with it. */
static const char *cut_line(char *line, size_t length, size_t index, char **id, char **label)
{
    if (length > 0 && line[length - 1] == '\r')
        length--;
    line[length] = '\0';

    *id = memchr(line, '\t', length);
    *label = *id ? memchr(*id + 1, '\t', length - (size_t)(*id + 1 - line)) : NULL;
    if (!*label)
        return "expected index, id and label with tabs between them";
    *(*id)++ = '\0';
    *(*label)++ = '\0';

    size_t id_length = (size_t)(*label - 1 - *id), label_length = length - (size_t)(*label - line);
    if (!is_number(line, index) || strlen(line) != (size_t)(*id - 1 - line))
        return "the index is not the line's number, counted from 0";
    if (id_length == 0 || label_length == 0)
        return "the id or the label is empty";
    if (!utf8_is_printable(*id, id_length) || !utf8_is_printable(*label, label_length))
        return "the id or the label is not UTF-8 text, or has a third tab";
    return NULL;
}

static enum rn_status cut_lines(const char *path, size_t size, struct labels *labels, struct rn_error *error)
{
    size_t lines = 0;

    for (size_t i = 0; i < size; i++)
        lines += labels->text[i] == '\n';
    if (lines == 0)
        return rn_fail(error, RN_ERR_DESCRIPTION, "%s: no labels", path);
    labels->ids = calloc(lines, sizeof *labels->ids);
    labels->labels = calloc(lines, sizeof *labels->labels);
    if (!labels->ids || !labels->labels)
        return rn_fail_nomem(error, "the labels");

    char *line = labels->text, *end = labels->text + size;
    for (size_t i = 0; i < lines; i++) {
        char *next = memchr(line, '\n', (size_t)(end - line));
        const char *wrong = cut_line(line, (size_t)(next - line), i, &labels->ids[i], &labels->labels[i]);
        if (wrong)
            return rn_fail(error, RN_ERR_DESCRIPTION, "%s: line %zu: %s", path, i + 1, wrong);
        line = next + 1;
    }
    labels->count = lines;
    return RN_OK;
}

enum rn_status labels_read(const char *path, struct labels *out, struct rn_error *error)
{
    size_t size = 0;

    *out = (struct labels){.count = 0};
    enum rn_status status = read_text(path, &out->text, &size, error);
    if (status == RN_OK)
        status = cut_lines(path, size, out, error);
    if (status != RN_OK)
        labels_free(out);
    return status;
}

void labels_free(struct labels *labels)
{
    if (!labels)
        return;
    free(labels->ids);
    free(labels->labels);
    free(labels->text);
    *labels = (struct labels){.count = 0};
}
