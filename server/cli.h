/* cli.h - the command line: resnetd [COMMAND] [OPTION...] [FILE...].
 *
 * cli_run parses, loads the configuration and calls the command; the commands share struct cli. */

#ifndef RESNETD_SERVER_CLI_H
#define RESNETD_SERVER_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../model/classify.h"
#include "../model/model.h"
#include "config.h"

/* Exit statuses. */
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

struct cli {
    struct config config;
    char *data_folder; /* models/, labels/ and weights/ of the installation */
    char *config_path; /* the file in use, or NULL */
    char **files;      /* operands, borrowed from argv */
    int file_count;
    const char *model;  /* --model */
    const char *output; /* --output */
    const char *size;   /* --size, valid or NULL */
    const char *input;  /* --input HxW */
    int top_k;          /* 0: five, or as many classes as there are */
    bool json, stages, ignore_orientation;
};

/* Run the command that argv names and return the process's exit status. */
int cli_run(int argc, char **argv, char *const *environment);

/* Say "resnetd: WHAT: message" on standard error (without WHAT when NULL) and return CLI_FAILED. */
int cli_fail(const char *what, const struct rn_error *error);
int cli_usage(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A model that is ready to run on this thread, helped by others. */
struct cli_engine {
    struct model *model;
    struct team *team;
    struct pass *pass;
};

/* Open the model that --model names among the configured ones, or the first. Zeroed on failure. */
RN_MUST_CHECK enum rn_status cli_engine_open(const struct cli *cli, struct cli_engine *out, struct rn_error *error);
void cli_engine_close(struct cli_engine *engine);

/* Choose the kernel table that the configuration asks for. */
RN_MUST_CHECK enum rn_status cli_choose_kernels(const struct cli *cli, const struct kernels **out,
                                                struct rn_error *error);
int cli_threads(const struct cli *cli);
RN_MUST_CHECK enum rn_status cli_open_model(const struct cli *cli, int index, const struct kernels *kernels,
                                            struct model **out, struct rn_error *error);

/* The description that --model names: a configured model, models/NAME.json of the installation, or a path;
 * without --model that of the first configured model. Needs no weights. */
RN_MUST_CHECK enum rn_status cli_read_network(const struct cli *cli, struct network *out, struct rn_error *error);

/* The whole of a file ("-": standard input) into a new buffer that the caller frees; at most `max_bytes`. */
RN_MUST_CHECK enum rn_status cli_read_file(const char *path, uint64_t max_bytes, uint8_t **data, size_t *size,
                                           struct rn_error *error);

/* A request for one image with what the options and the configuration say. */
struct classify_request cli_request(const struct cli *cli, const uint8_t *data, size_t size);

/* The commands; each returns an exit status. */
int cli_classify(struct cli *cli);
int cli_tensor(struct cli *cli);
int cli_infer(struct cli *cli);
int cli_summary(struct cli *cli);
int cli_modules(struct cli *cli);
int cli_kernels(struct cli *cli);
int cli_check_config(struct cli *cli);
int cli_healthcheck(struct cli *cli);

#endif
