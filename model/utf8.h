/* utf8.h - whether bytes that come from a file may be shown as text. */

#ifndef RESNETD_MODEL_UTF8_H
#define RESNETD_MODEL_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Well-formed UTF-8 (no overlong forms, no surrogates) without control characters. */
static inline bool utf8_is_printable(const void *text, size_t size)
{
    const uint8_t *s = text, *end = s + size;

    while (s < end) {
        uint8_t lead = *s++;
        if (lead < 0x80) {
            if (lead < 0x20 || lead == 0x7f)
                return false;
            continue;
        }
        int more = lead >= 0xc2 && lead <= 0xdf ? 1 : (lead & 0xf0) == 0xe0 ? 2 : lead >= 0xf0 && lead <= 0xf4 ? 3 : 0;
        if (more == 0 || end - s < more)
            return false;
        uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        if (*s < low || *s > high || (lead == 0xc2 && *s < 0xa0))
            return false;
        for (int i = 1; i < more; i++) {
            if ((s[i] & 0xc0) != 0x80)
                return false;
        }
        s += more;
    }
    return true;
}

#endif
