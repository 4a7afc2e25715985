/* fail_alloc.c - the wrappers behind fail_alloc.h. */

#include "fail_alloc.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
char *__real_strdup(const char *text);
void *__real_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
char *__wrap_strdup(const char *text);
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset);

static atomic_long fail_at = -1; /* index of the allocation to fail; -1: none */
static atomic_long counted;
static atomic_bool fired;

void fail_alloc_at(long n)
{
    atomic_store(&fail_at, -1);
    atomic_store(&counted, 0);
    atomic_store(&fired, false);
    atomic_store(&fail_at, n < 0 ? -1 : n);
}

bool fail_alloc_fired(void)
{
    return atomic_load(&fired);
}

long fail_alloc_count(void)
{
    return atomic_load(&counted);
}

static bool must_fail(void)
{
    if (atomic_fetch_add(&counted, 1) != atomic_load(&fail_at))
        return false;
    atomic_store(&fired, true);
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t size)
{
    return must_fail() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return must_fail() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return must_fail() ? NULL : __real_realloc(old, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return must_fail() ? NULL : __real_aligned_alloc(alignment, size);
}

char *__wrap_strdup(const char *text)
{
    return must_fail() ? NULL : __real_strdup(text);
}

/* Mapping a file is no allocation. */
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset)
{
    return flags & MAP_ANONYMOUS && must_fail() ? MAP_FAILED : __real_mmap(at, size, protection, flags, file, offset);
}
