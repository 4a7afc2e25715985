/* pages.c - maps aligned to huge pages: a longer one is made, and what is too much at both ends given back. */

#include "pages.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "sizes.h"

static const size_t HUGE_PAGE = (size_t)2 << 20, WORTH_HUGE = (size_t)256 << 10;

/* The sanitizers watch over the heap, but not over maps. */
#if defined(__SANITIZE_ADDRESS__)
static const int use_heap = 1;
#else
static const int use_heap = 0;
#endif

static size_t unit_of(size_t bytes)
{
    return bytes >= WORTH_HUGE ? HUGE_PAGE : PAGE_BYTES;
}

void *pages_alloc(size_t bytes)
{
    const size_t unit = unit_of(bytes);

    if (bytes > SIZE_MAX / 2)
        return NULL;
    const size_t size = size_round_up(bytes, unit);
    if (use_heap || unit == PAGE_BYTES)
        return aligned_alloc(PAGE_BYTES, size);
    char *map = mmap(NULL, size + unit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    const size_t before = size_round_up((uintptr_t)map, unit) - (uintptr_t)map;
    if (before)
        (void)munmap(map, before);
    (void)munmap(map + before + size, unit - before);
    (void)madvise(map + before, size, MADV_HUGEPAGE);
    return map + before;
}

void pages_free(void *memory, size_t bytes)
{
    const size_t unit = unit_of(bytes);

    if (use_heap || unit == PAGE_BYTES)
        free(memory);
    else if (memory)
        (void)munmap(memory, size_round_up(bytes, unit));
}
