/* multipart.c - multipart/form-data in memory (RFC 7578, RFC 2046). */

#include "multipart.h"

#include <string.h>
#include <strings.h>

/* A slice of the header text. */
struct slice {
    const char *at, *end;
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static void skip_blanks(struct slice *s)
{
    while (s->at < s->end && is_blank(*s->at))
        s->at++;
}

/* RFC 7230's token characters. */
static bool is_token(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c != '\0' && strchr("!#$%&'*+-.^_`|~", c));
}

static struct slice take_token(struct slice *s)
{
    struct slice token = {s->at, s->at};
    while (s->at < s->end && is_token(*s->at))
        s->at++;
    token.end = s->at;
    return token;
}

static bool slice_is(struct slice s, const char *text)
{
    size_t length = strlen(text);
    return (size_t)(s.end - s.at) == length && strncasecmp(s.at, text, length) == 0;
}

/* The next `; name=value` of a header's value. `value` is what stands between quotes, or the bare word.
 * Returns 1, 0 at the end, -1 when it is malformed. */
static int take_parameter(struct slice *s, struct slice *name, struct slice *value)
{
    skip_blanks(s);
    if (s->at == s->end)
        return 0;
    if (*s->at != ';')
        return -1;
    s->at++;
    skip_blanks(s);
    if (s->at == s->end)
        return 0; /* a lone semicolon at the end is common */
    *name = take_token(s);
    skip_blanks(s);
    if (name->at == name->end || s->at == s->end || *s->at != '=')
        return -1;
    s->at++;
    skip_blanks(s);
    if (s->at < s->end && *s->at == '"') {
        value->at = ++s->at;
        while (s->at < s->end && *s->at != '"')
            s->at += *s->at == '\\' && s->at + 1 < s->end ? 2 : 1;
        if (s->at >= s->end)
            return -1;
        value->end = s->at++;
    } else {
        /* browsers and curl quote always; a bare word may hold anything up to the next semicolon or blank */
        value->at = s->at;
        while (s->at < s->end && *s->at != ';' && !is_blank(*s->at))
            s->at++;
        value->end = s->at;
    }
    return 1;
}

bool multipart_is_form(const char *content_type)
{
    static const char type[] = "multipart/form-data";
    const char *after;

    if (!content_type)
        return false;
    content_type += strspn(content_type, " \t");
    if (strncasecmp(content_type, type, sizeof type - 1) != 0)
        return false;
    after = content_type + sizeof type - 1;
    return *after == '\0' || *after == ';' || is_blank(*after);
}

static enum rn_status find_boundary(const char *content_type, struct slice *boundary, struct rn_error *error)
{
    struct slice rest = {content_type, content_type + strlen(content_type)}, name, value;
    int found;
    bool have = false;

    while (rest.at < rest.end && *rest.at != ';')
        rest.at++;
    while ((found = take_parameter(&rest, &name, &value)) > 0) {
        if (!slice_is(name, "boundary"))
            continue;
        if (have)
            return rn_fail(error, RN_ERR_BAD_REQUEST, "the Content-Type names two multipart boundaries");
        *boundary = value;
        have = true;
    }
    if (found < 0 || !have || boundary->at == boundary->end)
        return rn_fail(error, RN_ERR_BAD_REQUEST, "the Content-Type is multipart/form-data without a boundary");
    if (boundary->end - boundary->at > MULTIPART_BOUNDARY_MAX)
        return rn_fail(error, RN_ERR_BAD_REQUEST, "the multipart boundary is longer than %d characters",
                       MULTIPART_BOUNDARY_MAX);
    return RN_OK;
}

enum rn_status multipart_open(struct multipart *multipart, const char *content_type, const uint8_t *body, size_t size,
                              struct rn_error *error)
{
    struct slice boundary = {NULL, NULL};
    enum rn_status status = find_boundary(content_type, &boundary, error);
    size_t length, first;
    const uint8_t *found;

    *multipart = (struct multipart){0};
    if (status != RN_OK)
        return status;
    length = (size_t)(boundary.end - boundary.at);
    memcpy(multipart->delimiter, "\r\n--", 4);
    memcpy(multipart->delimiter + 4, boundary.at, length);
    multipart->delimiter_length = length + 4;
    multipart->end = body + size;

    /* The first delimiter may open the body, then without its CR LF. */
    first = multipart->delimiter_length - 2;
    if (size >= first && memcmp(body, multipart->delimiter + 2, first) == 0) {
        multipart->at = body + first;
        return RN_OK;
    }
    found = size == 0 ? NULL : memmem(body, size, multipart->delimiter, multipart->delimiter_length);
    if (!found)
        return rn_fail(error, RN_ERR_BAD_REQUEST,
                       "the body does not contain the multipart boundary of its Content-Type");
    multipart->at = found + multipart->delimiter_length;
    return RN_OK;
}

static enum rn_status read_disposition(struct slice header, struct multipart_part *part, struct rn_error *error)
{
    struct slice name, value;
    int found;

    skip_blanks(&header);
    if (!slice_is(take_token(&header), "form-data"))
        return rn_fail(error, RN_ERR_BAD_REQUEST, "a multipart part's Content-Disposition is not form-data");
    while ((found = take_parameter(&header, &name, &value)) > 0) {
        if (slice_is(name, "name")) {
            part->name = value.at;
            part->name_length = (size_t)(value.end - value.at);
        } else if (slice_is(name, "filename")) {
            part->filename = value.at;
            part->filename_length = (size_t)(value.end - value.at);
        }
    }
    if (found < 0)
        return rn_fail(error, RN_ERR_BAD_REQUEST, "a multipart part's Content-Disposition is malformed");
    return RN_OK;
}

static enum rn_status read_header(struct slice line, struct multipart_part *part, struct rn_error *error)
{
    struct slice name = take_token(&line);

    if (name.at == name.end || line.at == line.end || *line.at != ':')
        return rn_fail(error, RN_ERR_BAD_REQUEST, "a multipart part has a malformed header line");
    line.at++;
    skip_blanks(&line);
    while (line.end > line.at && is_blank(line.end[-1]))
        line.end--;
    if (slice_is(name, "content-disposition"))
        return read_disposition(line, part, error);
    if (slice_is(name, "content-type")) {
        part->content_type = line.at;
        part->content_type_length = (size_t)(line.end - line.at);
    } else if (slice_is(name, "content-transfer-encoding") && !slice_is(line, "binary") && !slice_is(line, "8bit") &&
               !slice_is(line, "7bit")) {
        return rn_fail(error, RN_ERR_BAD_REQUEST,
                       "a multipart part has a Content-Transfer-Encoding: send the bytes as they are");
    }
    return RN_OK;
}

enum rn_status multipart_next(struct multipart *multipart, struct multipart_part *part, bool *more,
                              struct rn_error *error)
{
    const uint8_t *at = multipart->at, *end = multipart->end, *next;
    const uint8_t *headers_limit;

    *part = (struct multipart_part){0};
    *more = false;
    if (end - at >= 2 && at[0] == '-' && at[1] == '-')
        return RN_OK; /* the closing delimiter; an epilogue is ignored */

    while (at < end && is_blank((char)*at))
        at++;
    if (end - at < 2)
        return rn_fail(error, RN_ERR_BAD_REQUEST, "the multipart body ends before its closing boundary");
    if (at[0] != '\r' || at[1] != '\n')
        return rn_fail(error, RN_ERR_BAD_REQUEST, "a multipart boundary is not at the end of its line");
    at += 2;

    headers_limit = end - at > MULTIPART_HEADER_MAX ? at + MULTIPART_HEADER_MAX : end;
    for (;;) {
        const uint8_t *line_end = at == headers_limit ? NULL : memmem(at, (size_t)(headers_limit - at), "\r\n", 2);
        struct slice line;
        enum rn_status status;

        if (!line_end)
            return rn_fail(error, RN_ERR_BAD_REQUEST,
                           headers_limit < end ? "a multipart part's header is longer than %d bytes"
                                               : "the multipart body ends inside a part's header",
                           MULTIPART_HEADER_MAX);
        line = (struct slice){(const char *)at, (const char *)line_end};
        at = line_end + 2;
        if (line.at == line.end)
            break;
        status = read_header(line, part, error);
        if (status != RN_OK)
            return status;
    }
    if (!part->name)
        return rn_fail(error, RN_ERR_BAD_REQUEST, "a multipart part has no Content-Disposition with a name");

    /* An empty part's delimiter starts with the CR LF that ends its header. */
    next = memmem(at - 2, (size_t)(end - (at - 2)), multipart->delimiter, multipart->delimiter_length);
    if (!next)
        return rn_fail(error, RN_ERR_BAD_REQUEST, "the multipart body ends before its closing boundary");
    part->data = at;
    part->size = next < at ? 0 : (size_t)(next - at);
    multipart->at = next + multipart->delimiter_length;
    *more = true;
    return RN_OK;
}
