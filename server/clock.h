/* clock.h - times as clients read them. */

#ifndef RESNETD_SERVER_CLOCK_H
#define RESNETD_SERVER_CLOCK_H

#include "../model/clock.h"

static inline double clock_ms(uint64_t ns)
{
    return (double)ns / 1e6;
}

#endif
