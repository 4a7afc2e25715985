/* embed.c - the assembler copies the documents into the binary as they are. Paths are relative to the
 * folder that make runs in, the top of the checkout. */

#include "embed.h"

#define EMBED(symbol, path)                                                                                            \
    __asm__(".pushsection .rodata\n"                                                                                   \
            ".global " #symbol "\n" #symbol ":\n.incbin \"" path "\"\n"                                                \
            ".global " #symbol "_end\n" #symbol "_end:\n.byte 0\n"                                                     \
            ".popsection\n")

EMBED(embed_page, "server/page/index.html");
EMBED(embed_openapi, "server/openapi.json");
