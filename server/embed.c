/* embed.c - the assembler copies the documents into the binary as they are. Paths are relative to the
 * folder that make runs in, the top of the checkout. */

#include "embed.h"

#define EMBED(symbol, path)                                                                                            \
    __asm__(".pushsection .rodata\n.balign 8\n"                                                                        \
            ".global " #symbol "\n" #symbol ": .incbin \"" path "\"\n1: .byte 0\n"                                     \
            ".balign 8\n.global " #symbol "_size\n" #symbol "_size: .quad 1b - " #symbol "\n"                          \
            ".popsection\n")

EMBED(embed_page, "server/page/index.html");
EMBED(embed_openapi, "server/openapi.json");
