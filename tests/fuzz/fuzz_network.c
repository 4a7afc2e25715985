/* fuzz_network.c - any bytes as a network description: refused with a reason, or a network whose plan for any size is
 * refused with a reason or consistent, and that prints. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../model/plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Every shape is at least 1 in every extent, and its elements fit. */
static void check_plan(const struct plan *plan)
{
    for (size_t i = 0; i < plan->row_count; i++) {
        const struct shape *s = &plan->rows[i].shape;
        if (s->n < 1 || s->c < 1 || s->h < 1 || s->w < 1 || shape_elements(s) > (size_t)1 << 36)
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const int sizes[][3] = {{1, 1, 1},     {1, 32, 32},     {2, 224, 224},   {1, 375, 500},
                                   {1, 1, 65500}, {1, 1 << 24, 1}, {1, 1, 1 << 25}, {3, 1 << 14, 1 << 14}};
    struct network network;
    struct rn_error error = {0};
    FILE *sink;

    if (network_parse((const char *)data, size, "fuzz", "folder", &network, &error) != RN_OK) {
        if (network.calls || network.root.children || error.text[0] == '\0')
            abort();
        return 0;
    }
    if (network.call_count < 1 || network.classes < 1 || network.output_value >= network.value_count)
        abort();
    sink = fopen("/dev/null", "w");
    if (sink)
        network_print(&network, sink);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct plan plan;
        error.text[0] = '\0';
        if (plan_init(&plan, &network, sizes[i][0], sizes[i][1], sizes[i][2], &error) != RN_OK) {
            if (error.text[0] == '\0')
                abort();
            continue;
        }
        check_plan(&plan);
        if (plan.values[network.output_value].c != network.classes)
            abort();
        if (sink && i == 1)
            plan_print_summary(&plan, sink);
        plan_free(&plan);
    }
    if (sink)
        fclose(sink);
    network_free(&network);
    return 0;
}
