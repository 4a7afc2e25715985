/* status.h - how every library function of resnetd reports failure.
 *
 * A function that can fail returns an enum rn_status and fills the caller's struct rn_error with one
 * sentence that a client or an operator can act on. Library code never prints and never exits.
 * Input mistakes are returned; programmer mistakes are asserted. */

#ifndef RESNETD_MODEL_STATUS_H
#define RESNETD_MODEL_STATUS_H

enum rn_status {
    RN_OK = 0,

    /* What the client sent. */
    RN_ERR_BAD_REQUEST,       /* malformed query, body or multipart */
    RN_ERR_EMPTY_BODY,        /* no bytes where an image was expected */
    RN_ERR_NOT_AN_IMAGE,      /* neither JPEG nor PNG by its first bytes */
    RN_ERR_IMAGE_TRUNCATED,   /* the file ends before the image does */
    RN_ERR_IMAGE_CORRUPT,     /* the file contradicts its format */
    RN_ERR_IMAGE_UNSUPPORTED, /* a valid file of a kind that is not decoded (12-bit, lossless, CgBI...) */
    RN_ERR_IMAGE_TOO_LARGE,   /* more pixels than the limit */
    RN_ERR_MEMORY_BUDGET,     /* the work would need more memory than one request may use */
    RN_ERR_INPUT_SIZE,        /* the network cannot take an input of this height and width */
    RN_ERR_DEADLINE,          /* the request's deadline passed */

    /* What the operator configured; errors at start. */
    RN_ERR_CONFIG,      /* configuration file, environment or flag */
    RN_ERR_DESCRIPTION, /* network description or label file */
    RN_ERR_WEIGHTS,     /* weights file */
    RN_ERR_KERNELS,     /* unknown or unavailable kernel table */

    /* Ours or the machine's. */
    RN_ERR_IO,
    RN_ERR_NOMEM,
    RN_ERR_INTERNAL,

    RN_STATUS_COUNT
};

struct rn_error {
    enum rn_status code;
    char text[320]; /* one sentence, without a full stop, NUL-terminated; may be cut */
};

/* Fill `error` (may be NULL) and return `code`, so that a failing function can `return rn_fail(...)`.
 * Thread-safe. */
enum rn_status rn_fail(struct rn_error *error, enum rn_status code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* RN_ERR_NOMEM with the usual sentence; `what` names what the memory was for. */
enum rn_status rn_fail_nomem(struct rn_error *error, const char *what);

#define RN_MUST_CHECK __attribute__((warn_unused_result))

#endif
