/* cli_network.c - resnetd summary, modules, kernels and check-config: what can be told without an image. */

#include "cli.h"

#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "reply.h"

/* "400x300": height x width. */
static bool parse_input(const char *text, int *height, int *width)
{
    char *end;
    long h = strtol(text, &end, 10), w;

    if (!isdigit((unsigned char)text[0]) || *end != 'x' || !isdigit((unsigned char)end[1]))
        return false;
    w = strtol(end + 1, &end, 10);
    *height = (int)h;
    *width = (int)w;
    return *end == 0 && h >= 1 && w >= 1 && h <= INT_MAX && w <= INT_MAX;
}

static enum rn_status print_summary_json(const struct plan *plan, struct rn_error *error)
{
    struct json json = {0};
    char *text;

    reply_write_summary(&json, plan->network->name, plan);
    text = json_take(&json, NULL);
    if (!text)
        return rn_fail_nomem(error, "the summary");
    puts(text);
    free(text);
    return RN_OK;
}

int cli_summary(struct cli *cli)
{
    struct network network;
    struct rn_error error;
    struct plan plan;
    enum rn_status status;
    int height = 0, width = 0;

    if (cli->input && !parse_input(cli->input, &height, &width))
        return cli_usage("--input is HEIGHTxWIDTH, such as 224x224, not \"%s\"", cli->input);
    if (cli_read_network(cli, &network, &error) != RN_OK)
        return cli_fail(NULL, &error);
    if (!cli->input)
        height = width = network.input.crop;
    status = plan_init(&plan, &network, 1, height, width, &error);
    if (status == RN_OK) {
        if (cli->json)
            status = print_summary_json(&plan, &error);
        else
            plan_print_summary(&plan, stdout);
        plan_free(&plan);
    }
    network_free(&network);
    return status == RN_OK ? CLI_OK : cli_fail(NULL, &error);
}

int cli_modules(struct cli *cli)
{
    struct network network;
    struct rn_error error;

    if (cli_read_network(cli, &network, &error) != RN_OK)
        return cli_fail(NULL, &error);
    network_print(&network, stdout);
    network_free(&network);
    return CLI_OK;
}

int cli_kernels(struct cli *cli)
{
    const struct kernels *chosen = NULL;
    struct rn_error error;
    enum rn_status status = cli_choose_kernels(cli, &chosen, &error);

    for (const struct kernels *const *table = kernels_all; *table; table++) {
        char why[160] = "";
        bool available = (*table)->available(why, sizeof why);
        printf("%-10s %-5s %-46s %s%s\n", (*table)->name, (*table)->precision, (*table)->arithmetic,
               !available         ? "not here: "
               : *table == chosen ? "in use"
                                  : "available",
               available ? "" : why);
    }
    printf("threads    %d\n", cli_threads(cli));
    return status == RN_OK ? CLI_OK : cli_fail(NULL, &error);
}

int cli_check_config(struct cli *cli)
{
    const struct kernels *kernels = NULL;
    struct rn_error error;
    int status = CLI_OK;

    config_print(&cli->config, stdout);
    fflush(stdout);
    fprintf(stderr, "resnetd: file %s, data %s, %d threads\n", cli->config_path ? cli->config_path : "none",
            cli->data_folder, cli_threads(cli));
    if (cli->config.default_note)
        fprintf(stderr, "resnetd: %s\n", cli->config.default_note);
    if (cli_choose_kernels(cli, &kernels, &error) != RN_OK)
        return cli_fail(NULL, &error);
    for (int i = 0; i < cli->config.model_count; i++) {
        struct model *model;
        if (cli_open_model(cli, i, kernels, &model, &error) != RN_OK) {
            status = cli_fail(NULL, &error);
            continue;
        }
        fprintf(stderr, "resnetd: model %s: %llu parameters, %zu labels, weights %s (%s, SHA-256 %s), kernels %s %s\n",
                model_name(model), (unsigned long long)model_parameters(model), model_labels(model)->count,
                model_weights_path(model), model_weights_format(model), model_weights_sha256(model),
                model_kernels(model)->name, model_kernels(model)->precision);
        model_close(model);
    }
    return status;
}
