/* image_exif.c - the one EXIF tag that changes pixels.
 *
 * An EXIF block is a small TIFF file: byte order, 42, offset of the first directory; a directory is a
 * count and 12-byte entries (tag, type, number of values, the values or their offset). Every offset comes
 * from the file and is compared with the block's size before use. */

#include "image_internal.h"

enum { TAG_ORIENTATION = 0x0112, TYPE_SHORT = 3, TYPE_LONG = 4, ENTRY_BYTES = 12 };

static uint32_t read_u16(const uint8_t *p, bool big)
{
    return big ? (uint32_t)p[0] << 8 | p[1] : (uint32_t)p[1] << 8 | p[0];
}

static uint32_t read_u32(const uint8_t *p, bool big)
{
    return big ? read_u16(p, big) << 16 | read_u16(p + 2, big) : read_u16(p + 2, big) << 16 | read_u16(p, big);
}

/* The first value of a directory entry, or 0 (which is no orientation) when it has none of a usable type. */
static uint32_t entry_value(const uint8_t *tiff, size_t size, const uint8_t *entry, bool big)
{
    uint32_t type = read_u16(entry + 2, big);
    uint64_t count = read_u32(entry + 4, big);
    uint64_t bytes = count * (type == TYPE_SHORT ? 2 : 4);
    const uint8_t *value = entry + 8;

    if ((type != TYPE_SHORT && type != TYPE_LONG) || count == 0)
        return 0;
    if (bytes > 4) {
        uint32_t offset = read_u32(value, big);
        if (offset > size || bytes > size - offset)
            return 0;
        value = tiff + offset;
    }
    return type == TYPE_SHORT ? read_u16(value, big) : read_u32(value, big);
}

int image_exif_orientation(const uint8_t *tiff, size_t size)
{
    if (size < 8)
        return 1;
    bool big = tiff[0] == 'M';
    if (!(tiff[0] == 'M' && tiff[1] == 'M') && !(tiff[0] == 'I' && tiff[1] == 'I'))
        return 1;
    /* Some writers put the 42 in the wrong byte order; Pillow reads those, so do we. */
    if (read_u16(tiff + 2, big) != 42 && read_u16(tiff + 2, !big) != 42)
        return 1;

    size_t at = read_u32(tiff + 4, big);
    if (at > size || size - at < 2)
        return 1;
    size_t entries = read_u16(tiff + at, big);
    size_t present = (size - at - 2) / ENTRY_BYTES;
    uint32_t orientation = 1;
    for (size_t i = 0; i < entries && i < present; i++) {
        const uint8_t *entry = tiff + at + 2 + i * ENTRY_BYTES;
        if (read_u16(entry, big) == TAG_ORIENTATION)
            orientation = entry_value(tiff, size, entry, big);
    }
    return orientation >= 1 && orientation <= 8 ? (int)orientation : 1;
}
