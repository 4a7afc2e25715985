/* clock.h - the monotonic clock in nanoseconds, which deadlines and timings are counted in. */

#ifndef RESNETD_MODEL_CLOCK_H
#define RESNETD_MODEL_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
