/* embed.h - documents that are part of the binary. */

#ifndef RESNETD_SERVER_EMBED_H
#define RESNETD_SERVER_EMBED_H

#include <stddef.h>

/* The web page, server/page/index.html. */
extern const char embed_page[];
extern const size_t embed_page_size;

/* The API's description, server/openapi.json, with @VERSION@ for the version. */
extern const char embed_openapi[];
extern const size_t embed_openapi_size;

#endif
