/* request_id.c - ULIDs. */

#include "request_id.h"

#include <stdint.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "clock.h"

void request_id_new(char id[REQUEST_ID_SIZE])
{
    static const char digits[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    struct timespec now;
    uint64_t ms;
    uint8_t random[16]; /* 5 bits of each are used */

    (void)clock_gettime(CLOCK_REALTIME, &now);
    ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    if (getrandom(random, sizeof random, GRND_NONBLOCK) != (ssize_t)sizeof random) {
        uint64_t ticks = clock_now_ns(); /* early boot: distinct is enough, nothing here is a secret */
        for (size_t i = 0; i < sizeof random; i++)
            random[i] = (uint8_t)((ticks * 0x9e3779b97f4a7c15u) >> (4 * i));
    }
    for (int i = 9; i >= 0; i--, ms >>= 5)
        id[i] = digits[ms & 31];
    for (int i = 0; i < 16; i++)
        id[10 + i] = digits[random[i] & 31];
    id[26] = '\0';
}

bool request_id_valid(const char *id)
{
    size_t length = strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    return length > 0 && length < REQUEST_ID_SIZE && id[length] == '\0';
}
