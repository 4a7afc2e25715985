/* errors.h - the one table of what can go wrong in a request: HTTP status and stable JSON code. */

#ifndef RESNETD_SERVER_ERRORS_H
#define RESNETD_SERVER_ERRORS_H

#include "../model/status.h"

enum api_error {
    API_OK = 0,

    API_BAD_REQUEST,
    API_UNKNOWN_PARAMETER,
    API_DUPLICATE_PARAMETER,
    API_BAD_PARAMETER,
    API_MALFORMED_MULTIPART,
    API_NO_FILE,
    API_EMPTY_BODY,
    API_UNKNOWN_ROUTE,
    API_UNKNOWN_MODEL,
    API_METHOD_NOT_ALLOWED,
    API_BODY_TOO_LARGE,
    API_TOO_MANY_FILES,
    API_IMAGE_TOO_LARGE,
    API_MEMORY_BUDGET,
    API_NOT_AN_IMAGE,
    API_UNSUPPORTED_ENCODING,
    API_IMAGE_TRUNCATED,
    API_IMAGE_CORRUPT,
    API_IMAGE_UNSUPPORTED,
    API_INPUT_SIZE,
    API_INTERNAL,
    API_QUEUE_FULL,
    API_DRAINING,
    API_DEADLINE,
    API_OUT_OF_MEMORY,

    API_ERROR_COUNT
};

struct api_error_info {
    unsigned status;        /* HTTP */
    const char *code;       /* JSON, never changes */
    unsigned retry_after_s; /* 0: no Retry-After */
};

const struct api_error_info *api_error_info(enum api_error error);

/* What a failure of the model library means to a client. */
enum api_error api_error_from_status(enum rn_status status);

#endif
