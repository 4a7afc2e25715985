/* errors.c - the table of errors. */

#include "errors.h"

#include <assert.h>

static const struct api_error_info table[API_ERROR_COUNT] = {
    [API_OK] = {200, "ok", 0},

    [API_BAD_REQUEST] = {400, "bad_request", 0},
    [API_UNKNOWN_PARAMETER] = {400, "unknown_parameter", 0},
    [API_DUPLICATE_PARAMETER] = {400, "duplicate_parameter", 0},
    [API_BAD_PARAMETER] = {400, "bad_parameter", 0},
    [API_MALFORMED_MULTIPART] = {400, "malformed_multipart", 0},
    [API_NO_FILE] = {400, "no_file", 0},
    [API_EMPTY_BODY] = {400, "empty_body", 0},
    [API_UNKNOWN_ROUTE] = {404, "unknown_route", 0},
    [API_UNKNOWN_MODEL] = {404, "unknown_model", 0},
    [API_METHOD_NOT_ALLOWED] = {405, "method_not_allowed", 0},
    [API_BODY_TOO_LARGE] = {413, "body_too_large", 0},
    [API_TOO_MANY_FILES] = {413, "too_many_files", 0},
    [API_IMAGE_TOO_LARGE] = {413, "image_too_large", 0},
    [API_MEMORY_BUDGET] = {413, "memory_budget", 0},
    [API_NOT_AN_IMAGE] = {415, "not_an_image", 0},
    [API_UNSUPPORTED_ENCODING] = {415, "unsupported_encoding", 0},
    [API_IMAGE_TRUNCATED] = {422, "image_truncated", 0},
    [API_IMAGE_CORRUPT] = {422, "image_corrupt", 0},
    [API_IMAGE_UNSUPPORTED] = {422, "image_unsupported", 0},
    [API_INPUT_SIZE] = {422, "input_size", 0},
    [API_INTERNAL] = {500, "internal", 0},
    [API_QUEUE_FULL] = {503, "queue_full", 1},
    [API_DRAINING] = {503, "draining", 5},
    [API_DEADLINE] = {503, "deadline", 1},
    [API_OUT_OF_MEMORY] = {503, "out_of_memory", 1},
};

static const enum api_error by_status[RN_STATUS_COUNT] = {
    [RN_OK] = API_OK,
    [RN_ERR_BAD_REQUEST] = API_BAD_REQUEST,
    [RN_ERR_EMPTY_BODY] = API_EMPTY_BODY,
    [RN_ERR_NOT_AN_IMAGE] = API_NOT_AN_IMAGE,
    [RN_ERR_IMAGE_TRUNCATED] = API_IMAGE_TRUNCATED,
    [RN_ERR_IMAGE_CORRUPT] = API_IMAGE_CORRUPT,
    [RN_ERR_IMAGE_UNSUPPORTED] = API_IMAGE_UNSUPPORTED,
    [RN_ERR_IMAGE_TOO_LARGE] = API_IMAGE_TOO_LARGE,
    [RN_ERR_MEMORY_BUDGET] = API_MEMORY_BUDGET,
    [RN_ERR_INPUT_SIZE] = API_INPUT_SIZE,
    [RN_ERR_DEADLINE] = API_DEADLINE,
    [RN_ERR_CONFIG] = API_INTERNAL,
    [RN_ERR_DESCRIPTION] = API_INTERNAL,
    [RN_ERR_WEIGHTS] = API_INTERNAL,
    [RN_ERR_KERNELS] = API_INTERNAL,
    [RN_ERR_IO] = API_INTERNAL,
    [RN_ERR_NOMEM] = API_OUT_OF_MEMORY,
    [RN_ERR_INTERNAL] = API_INTERNAL,
};

const struct api_error_info *api_error_info(enum api_error error)
{
    assert(error >= 0 && error < API_ERROR_COUNT);
    return &table[error];
}

enum api_error api_error_from_status(enum rn_status status)
{
    assert(status >= 0 && status < RN_STATUS_COUNT);
    return by_status[status];
}
