/* pages.h - memory for what is read and written over and over: packed weights, activations, scratch.
 *
 * From 256 KB on it comes in huge pages (2 MB) where the system has them, which saves the TLB: a map of its own, since
 * pages that the heap has used before stay small. Thread safe. */

#ifndef RESNETD_MODEL_PAGES_H
#define RESNETD_MODEL_PAGES_H

#include <stddef.h>

enum { PAGE_BYTES = 4096 };

/* `bytes` (>= 1) of memory aligned to PAGE_BYTES at least; NULL when there is none. The caller gives it back with
 * pages_free and the same `bytes`. */
void *pages_alloc(size_t bytes);

/* `memory` may be NULL. */
void pages_free(void *memory, size_t bytes);

#endif
