/* status.c - filling struct rn_error. */

#include "status.h"

#include <stdarg.h>
#include <stdio.h>

enum rn_status rn_fail(struct rn_error *error, enum rn_status code, const char *format, ...)
{
    if (error) {
        va_list args;
        error->code = code;
        va_start(args, format);
        (void)vsnprintf(error->text, sizeof error->text, format, args);
        va_end(args);
    }
    return code;
}

enum rn_status rn_fail_nomem(struct rn_error *error, const char *what)
{
    return rn_fail(error, RN_ERR_NOMEM, "out of memory for %s", what);
}
