/* request_id.h - the name of a request in its reply, its headers and the log. */

#ifndef RESNETD_SERVER_REQUEST_ID_H
#define RESNETD_SERVER_REQUEST_ID_H

#include <stdbool.h>

enum { REQUEST_ID_SIZE = 65 };

/* A new ULID: 48 bits of Unix time in milliseconds and 80 random bits as 26 characters of Crockford's
 * base 32, so that identifiers sort by time. */
void request_id_new(char id[REQUEST_ID_SIZE]);

/* Whether a client's own X-Request-Id may be used: 1 to 64 of A-Z a-z 0-9 . _ - */
bool request_id_valid(const char *id);

#endif
