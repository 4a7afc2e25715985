/* cli.c - arguments -> configuration -> command; and what several commands need. */

#include "cli.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "serve.h"

enum { MAX_OVERRIDES = 64 };

static int serve(struct cli *cli)
{
    return serve_run(&cli->config);
}

/* clang-format off */
static const struct command {
    const char *name;
    int (*run)(struct cli *cli);
    const char *operands; /* NULL: takes no files */
    const char *options;  /* those of OPTIONS that it takes, besides the configuration's */
    const char *help;
} COMMANDS[] = {
    {"serve", serve, NULL, "", "answer HTTP requests until SIGTERM (the default)"},
    {"classify", cli_classify, "FILE...", " model top-k size orient json ", "name what is in image files; - is standard input"},
    {"tensor", cli_tensor, "FILE", " model size orient output ", "write the network's input for an image as .npy"},
    {"infer", cli_infer, "FILE", " model size orient output stages ", "run a .npy tensor [N,C,H,W] or an image, write logits as .npy"},
    {"summary", cli_summary, NULL, " model input json ", "shapes, parameters, multiply-adds and memory; needs no weights"},
    {"modules", cli_modules, NULL, " model ", "the module tree as PyTorch prints it"},
    {"kernels", cli_kernels, NULL, "", "kernel tables and whether this machine runs them"},
    {"check-config", cli_check_config, NULL, "", "print the configuration in force and check that its models open"},
    {"healthcheck", cli_healthcheck, NULL, "", "ask the server that runs with this configuration whether it is ready"},
};

enum { COMMAND_COUNT = sizeof COMMANDS / sizeof COMMANDS[0] };

/* Options of single commands. */
static const struct option {
    const char *name, *kind, *help; /* kind is NULL for one without a value */
} OPTIONS[] = {
    {"model", "NAME", "a configured model; for tensor, summary and modules also a description's name or path"},
    {"top-k", "N", "how many classes (5)"},
    {"size", "native|fit|crop", "what reaches the network (the model's default)"},
    {"orient", "exif|ignore", "whether the EXIF orientation is applied (exif)"},
    {"json", NULL, "JSON, as the server answers"},
    {"output", "FILE", "where to write; - is standard output"},
    {"stages", NULL, "print the shape of every module's output as JSON"},
    {"input", "HxW", "input height and width (the model's crop)"},
};

enum { OPTION_COUNT = sizeof OPTIONS / sizeof OPTIONS[0] };

/* Flags that set a key of the first model. */
static const struct {
    const char *flag, *key, *kind, *help;
} MODEL_FLAGS[] = {
    {"model-description", "models.0.description", "FILE", "network description: a path, or a name such as vgg16"},
    {"weights", "models.0.weights", "FILE", "its weights: .safetensors or PyTorch's .pth"},
    {"labels", "models.0.labels", "FILE", "its labels (the description's)"},
    {"model-name", "models.0.name", "NAME", "the name it is served under (the description's)"},
};
/* clang-format on */

enum { MODEL_FLAG_COUNT = sizeof MODEL_FLAGS / sizeof MODEL_FLAGS[0] };

int cli_fail(const char *what, const struct rn_error *error)
{
    fprintf(stderr, "resnetd: %s%s%s\n", what ? what : "", what ? ": " : "", error->text);
    return CLI_FAILED;
}

int cli_usage(const char *format, ...)
{
    va_list args;

    fputs("resnetd: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputs("\nresnetd --help tells what it takes\n", stderr);
    return CLI_USAGE;
}

static void print_option(const char *name, const char *kind, const char *help)
{
    char left[64];

    snprintf(left, sizeof left, "--%s%s%s", name, kind ? " " : "", kind ? kind : "");
    printf("  %-36s %s\n", left, help);
}

static int print_help(void)
{
    printf(
        "resnetd %s - image classification over HTTP\n\nUsage: resnetd [COMMAND] [OPTION...] [FILE...]\n\nCommands:\n",
        RESNETD_VERSION);
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        char left[64];
        snprintf(left, sizeof left, "%s %s", COMMANDS[i].name, COMMANDS[i].operands ? COMMANDS[i].operands : "");
        printf("  %-18s %s\n", left, COMMANDS[i].help);
    }
    printf("\nOptions of single commands:\n");
    for (size_t i = 0; i < OPTION_COUNT; i++)
        print_option(OPTIONS[i].name, OPTIONS[i].kind, OPTIONS[i].help);
    printf("\nOptions of every command:\n");
    print_option("config", "FILE", "configuration (RESNETD_CONFIG, else resnetd.json of the installation)");
    print_option("set", "KEY=VALUE", "set any key of the configuration");
    for (size_t i = 0; i < MODEL_FLAG_COUNT; i++)
        print_option(MODEL_FLAGS[i].flag, MODEL_FLAGS[i].kind, MODEL_FLAGS[i].help);
    for (size_t i = 0; config_key_at(i); i++) {
        const struct config_key *key = config_key_at(i);
        char help[160];
        snprintf(help, sizeof help, "%s (%s)", key->name, key->value);
        if (key->flag)
            print_option(key->flag, key->kind, help);
    }
    print_option("help", NULL, "print this");
    print_option("version", NULL, "print the version");
    printf("\nKeys of the configuration; limits.max_files is RESNETD_LIMITS_MAX_FILES in the environment:\n");
    for (size_t i = 0; config_key_at(i); i++) {
        const struct config_key *key = config_key_at(i);
        printf("  %-30s %-22s %s\n", key->name, key->value[0] ? key->value : "\"\"", key->help);
    }
    printf("  %-30s %-22s %s\n", "models", "",
           "list of {name, description, weights, labels}; the first is the default");
    return CLI_OK;
}

/* --------------------------------------------------------------------------------------------- arguments */

struct arguments {
    struct config_override overrides[MAX_OVERRIDES];
    size_t override_count;
    const char *config_path;
    char *set[MAX_OVERRIDES]; /* copies of KEY from --set KEY=VALUE */
    size_t set_count;
};

static int add_override(struct arguments *arguments, const char *key, const char *value)
{
    if (arguments->override_count == MAX_OVERRIDES)
        return cli_usage("too many options");
    arguments->overrides[arguments->override_count++] = (struct config_override){key, value};
    return CLI_OK;
}

static int add_set(struct arguments *arguments, const char *text)
{
    const char *equals = strchr(text, '=');
    char *key;

    if (!equals)
        return cli_usage("--set takes KEY=VALUE, not \"%s\"", text);
    key = strndup(text, (size_t)(equals - text));
    if (!key || arguments->set_count == MAX_OVERRIDES) {
        free(key);
        return cli_usage("too many options");
    }
    arguments->set[arguments->set_count++] = key;
    return add_override(arguments, key, equals + 1);
}

/* The key that a flag sets, or NULL. */
static const char *key_of_flag(const char *flag)
{
    for (size_t i = 0; i < MODEL_FLAG_COUNT; i++)
        if (!strcmp(MODEL_FLAGS[i].flag, flag))
            return MODEL_FLAGS[i].key;
    for (size_t i = 0; config_key_at(i); i++)
        if (config_key_at(i)->flag && !strcmp(config_key_at(i)->flag, flag))
            return config_key_at(i)->name;
    return NULL;
}

/* The command's own option, or NULL. */
static const struct option *find_option(const struct command *command, const char *name)
{
    char word[64];

    snprintf(word, sizeof word, " %.60s ", name);
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if (!strcmp(OPTIONS[i].name, name) && strstr(command->options, word))
            return &OPTIONS[i];
    return NULL;
}

static int set_option(struct cli *cli, const struct option *option, const char *value)
{
    enum input_size size;
    char *end;

    if (!strcmp(option->name, "json")) {
        cli->json = true;
    } else if (!strcmp(option->name, "stages")) {
        cli->stages = true;
    } else if (!strcmp(option->name, "model")) {
        cli->model = value;
    } else if (!strcmp(option->name, "output")) {
        cli->output = value;
    } else if (!strcmp(option->name, "input")) {
        cli->input = value;
    } else if (!strcmp(option->name, "size")) {
        if (!input_size_parse(value, &size))
            return cli_usage("--size is native, fit or crop, not \"%s\"", value);
        cli->size = value;
    } else if (!strcmp(option->name, "orient")) {
        cli->ignore_orientation = !strcmp(value, "ignore");
        if (!cli->ignore_orientation && strcmp(value, "exif") != 0)
            return cli_usage("--orient is exif or ignore, not \"%s\"", value);
    } else {
        long k = strtol(value, &end, 10);
        if (end == value || *end || k < 1 || k > INT_MAX)
            return cli_usage("--top-k is a number from 1, not \"%s\"", value);
        cli->top_k = (int)k;
    }
    return CLI_OK;
}

/* One "--name", "--name value" or "--name=value" at argv[*at]. */
static int parse_flag(struct cli *cli, struct arguments *arguments, const struct command *command, int argc,
                      char **argv, int *at)
{
    char name[64];
    const char *text = argv[*at] + 2, *value = strchr(text, '=');
    size_t length = value ? (size_t)(value - text) : strlen(text);

    if (strncmp(argv[*at], "--", 2) != 0 || length >= sizeof name)
        return cli_usage("unknown option %s", argv[*at]);
    memcpy(name, text, length);
    name[length] = 0;

    const struct option *option = find_option(command, name);
    const char *key = key_of_flag(name);
    bool takes_value = option ? option->kind != NULL : key || !strcmp(name, "config") || !strcmp(name, "set");
    if (!option && !takes_value)
        return cli_usage("%s: unknown option --%s", command->name, name);
    if (value && !takes_value)
        return cli_usage("--%s takes no value", name);
    if (takes_value && !value) {
        if (*at + 1 >= argc)
            return cli_usage("--%s needs a value", name);
        value = argv[++*at];
    } else if (value) {
        value++;
    }
    if (option)
        return set_option(cli, option, value);
    if (key)
        return add_override(arguments, key, value);
    if (!strcmp(name, "set"))
        return add_set(arguments, value);
    arguments->config_path = value;
    return CLI_OK;
}

/* Options and operands after the command; operands are moved to the front of argv. */
static int parse(struct cli *cli, struct arguments *arguments, const struct command *command, int argc, char **argv)
{
    bool only_operands = false;

    cli->files = argv;
    for (int i = 0; i < argc; i++) {
        if (!only_operands && !strcmp(argv[i], "--")) {
            only_operands = true;
        } else if (!only_operands && argv[i][0] == '-' && argv[i][1]) {
            int status = parse_flag(cli, arguments, command, argc, argv, &i);
            if (status != CLI_OK)
                return status;
        } else {
            argv[cli->file_count++] = argv[i];
        }
    }
    if (!command->operands && cli->file_count > 0)
        return cli_usage("%s takes no operand, not \"%s\"", command->name, cli->files[0]);
    if (command->operands && cli->file_count == 0)
        return cli_usage("%s needs %s", command->name, command->operands);
    if (command->operands && !strcmp(command->operands, "FILE") && cli->file_count > 1)
        return cli_usage("%s takes one file", command->name);
    return CLI_OK;
}

/* ------------------------------------------------------------------------------------------ configuration */

static const char *find_variable(char *const *environment, const char *name)
{
    size_t length = strlen(name);

    for (; environment && *environment; environment++)
        if (!strncmp(*environment, name, length) && (*environment)[length] == '=')
            return *environment + length + 1;
    return NULL;
}

/* "a" + "b" as a path that exists, resolved; NULL otherwise. */
static char *existing(const char *folder, const char *name)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s/%s", folder, name);

    return n > 0 && (size_t)n < sizeof path ? realpath(path, NULL) : NULL;
}

/* Where models/, labels/ and weights/ are: RESNETD_DATA; else beside the executable, as `make install` puts
 * them or as a checkout has them (build/release/resnetd and config/); else ./config. */
static char *find_data_folder(char *const *environment, struct rn_error *error)
{
    static const char *const BESIDE[] = {"../share/resnetd", "../../config"};
    const char *given = find_variable(environment, "RESNETD_DATA");
    char self[PATH_MAX];
    ssize_t length;
    char *found;

    if (given) {
        found = realpath(given, NULL);
        if (!found)
            rn_fail(error, RN_ERR_CONFIG, "RESNETD_DATA: cannot open %s: %s", given, strerror(errno));
        return found;
    }
    length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length > 0) {
        self[length] = 0;
        *strrchr(self, '/') = 0;
        for (size_t i = 0; i < sizeof BESIDE / sizeof BESIDE[0]; i++) {
            char *folder = existing(self, BESIDE[i]);
            char *models = folder ? existing(folder, "models") : NULL;
            free(models);
            if (models)
                return folder;
            free(folder);
        }
    }
    found = realpath("config", NULL);
    if (!found)
        rn_fail(error, RN_ERR_CONFIG,
                "cannot find the folder with models/, labels/ and weights/; name it in RESNETD_DATA");
    return found;
}

static enum rn_status load_configuration(struct cli *cli, const struct arguments *arguments, char *const *environment,
                                         struct rn_error *error)
{
    const char *path = arguments->config_path ? arguments->config_path : find_variable(environment, "RESNETD_CONFIG");

    cli->data_folder = find_data_folder(environment, error);
    if (!cli->data_folder)
        return error->code;
    cli->config_path = path ? strdup(path) : existing(cli->data_folder, "resnetd.json");
    if (path && !cli->config_path)
        return rn_fail_nomem(error, "the configuration");
    return config_load(cli->config_path, environment, arguments->overrides, arguments->override_count, cli->data_folder,
                       &cli->config, error);
}

int cli_run(int argc, char **argv, char *const *environment)
{
    const struct command *command = &COMMANDS[0];
    struct arguments arguments = {0};
    struct cli cli = {0};
    struct rn_error error = {0};
    int status, first = 1;

    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
            return print_help();
        if (!strcmp(argv[i], "--version") || !strcmp(argv[i], "-V"))
            return printf("resnetd %s\n", RESNETD_VERSION) < 0;
    }
    if (argc > 1 && argv[1][0] != '-') {
        command = NULL;
        for (size_t i = 0; i < COMMAND_COUNT && !command; i++)
            if (!strcmp(COMMANDS[i].name, argv[1]))
                command = &COMMANDS[i];
        if (!command)
            return cli_usage("unknown command \"%s\"", argv[1]);
        first = 2;
    }
    status = parse(&cli, &arguments, command, argc > first ? argc - first : 0, argv + first);
    if (status == CLI_OK) {
        if (load_configuration(&cli, &arguments, environment, &error) != RN_OK)
            status = cli_fail(NULL, &error);
        else
            status = command->run(&cli);
    }
    if (status == CLI_OK && (fflush(stdout) != 0 || ferror(stdout))) {
        fprintf(stderr, "resnetd: cannot write to standard output: %s\n", strerror(errno));
        status = CLI_FAILED;
    }
    for (size_t i = 0; i < arguments.set_count; i++)
        free(arguments.set[i]);
    config_free(&cli.config);
    free(cli.config_path);
    free(cli.data_folder);
    return status;
}

/* ------------------------------------------------------------------------------------ for the commands */

static void note_kernels(void *arg, const char *text)
{
    (void)arg;
    fprintf(stderr, "resnetd: %s\n", text);
}

enum rn_status cli_choose_kernels(const struct cli *cli, const struct kernels **out, struct rn_error *error)
{
    bool chatty = cli->config.log.level == LOG_LEVEL_DEBUG;

    return kernels_choose(cli->config.engine.kernels, cli->config.engine.precision, out, chatty ? note_kernels : NULL,
                          NULL, error);
}

int cli_threads(const struct cli *cli)
{
    return cli->config.engine.workers > 0 ? cli->config.engine.workers : config_cpu_count();
}

enum rn_status cli_open_model(const struct cli *cli, int index, const struct kernels *kernels, struct model **out,
                              struct rn_error *error)
{
    const struct config_model *model = &cli->config.models[index];
    struct model_options options = {
        .name = model->name,
        .description_path = model->description,
        .weights_path = model->weights,
        .labels_path = model->labels,
        .kernels = kernels,
        .threads = cli_threads(cli),
    };

    return model_open(&options, out, error);
}

/* The configured model called `name` (NULL: the first), or -1; its description may have to be read for that. */
static int find_model(const struct cli *cli, const char *name)
{
    if (!name)
        return 0;
    for (int i = 0; i < cli->config.model_count; i++) {
        const struct config_model *model = &cli->config.models[i];
        struct network network = {0};
        bool same = model->name && !strcmp(model->name, name);
        if (!model->name && network_read(model->description, &network, NULL) == RN_OK)
            same = !strcmp(network.name, name);
        network_free(&network);
        if (same)
            return i;
    }
    return -1;
}

enum rn_status cli_engine_open(const struct cli *cli, struct cli_engine *out, struct rn_error *error)
{
    const struct kernels *kernels;
    int index = find_model(cli, cli->model);
    enum rn_status status;

    memset(out, 0, sizeof *out);
    if (index < 0)
        return rn_fail(error, RN_ERR_CONFIG,
                       "no model is called \"%.60s\"; resnetd check-config lists the configured ones", cli->model);
    status = cli_choose_kernels(cli, &kernels, error);
    if (status == RN_OK)
        status = cli_open_model(cli, index, kernels, &out->model, error);
    if (status == RN_OK)
        status = team_create(cli_threads(cli), &out->team, error);
    if (status == RN_OK)
        status = team_start_helpers(out->team, error);
    if (status == RN_OK)
        status = pass_create(out->team, &out->pass, error);
    if (status != RN_OK)
        cli_engine_close(out);
    return status;
}

void cli_engine_close(struct cli_engine *engine)
{
    pass_destroy(engine->pass);
    team_destroy(engine->team);
    model_close(engine->model);
    memset(engine, 0, sizeof *engine);
}

enum rn_status cli_read_network(const struct cli *cli, struct network *out, struct rn_error *error)
{
    int index = find_model(cli, cli->model);
    char file[PATH_MAX];

    if (index >= 0)
        return network_read(cli->config.models[index].description, out, error);
    if (strchr(cli->model, '/') || (strlen(cli->model) > 5 && !strcmp(cli->model + strlen(cli->model) - 5, ".json")))
        return network_read(cli->model, out, error);
    int n = snprintf(file, sizeof file, "%s/models/%s.json", cli->data_folder, cli->model);
    if (n < 0 || (size_t)n >= sizeof file || access(file, R_OK) != 0)
        return rn_fail(error, RN_ERR_CONFIG, "no model and no description is called \"%.60s\"", cli->model);
    return network_read(file, out, error);
}

enum rn_status cli_read_file(const char *path, uint64_t max_bytes, uint8_t **data, size_t *size, struct rn_error *error)
{
    FILE *file = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    uint8_t *bytes = NULL;
    size_t length = 0, capacity = 0;
    enum rn_status status = RN_OK;

    *data = NULL;
    *size = 0;
    if (!file)
        return rn_fail(error, RN_ERR_IO, "cannot open it: %s", strerror(errno));
    for (;;) {
        if (length == capacity) {
            capacity = capacity ? capacity * 2 : 1 << 16;
            uint8_t *grown = realloc(bytes, capacity);
            if (!grown) {
                status = rn_fail_nomem(error, "the file");
                break;
            }
            bytes = grown;
        }
        size_t n = fread(bytes + length, 1, capacity - length, file);
        length += n;
        if (length > max_bytes) {
            status = rn_fail(error, RN_ERR_BAD_REQUEST, "larger than limits.max_body_bytes (%llu)",
                             (unsigned long long)max_bytes);
            break;
        }
        if (n == 0) {
            if (ferror(file))
                status = rn_fail(error, RN_ERR_IO, "cannot read it: %s", strerror(errno));
            break;
        }
    }
    if (file != stdin)
        fclose(file);
    if (status != RN_OK) {
        free(bytes);
        return status;
    }
    *data = bytes;
    *size = length;
    return RN_OK;
}

struct classify_request cli_request(const struct cli *cli, const uint8_t *data, size_t size)
{
    struct classify_request request = {
        .data = data,
        .size = size,
        .ignore_orientation = cli->ignore_orientation,
        .top_k = cli->top_k,
        .limits = {.max_image_pixels = cli->config.limits.max_image_pixels,
                   .max_native_pixels = cli->config.limits.max_native_pixels,
                   .max_request_bytes = cli->config.limits.max_request_bytes},
    };

    request.size_given = cli->size && input_size_parse(cli->size, &request.input_size);
    return request;
}
