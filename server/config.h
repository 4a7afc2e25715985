/* config.h - what the operator can set, from (weakest first) defaults, one JSON file, the environment and
 * flags. Every key of the file can be given as an environment variable: "limits": {"max_body_bytes": N} is
 * RESNETD_LIMITS_MAX_BODY_BYTES=N, "models": [{"weights": "w.pth"}] is RESNETD_MODELS_0_WEIGHTS=w.pth. An
 * unknown key, a wrong type or a value out of range is an error that names the key. */

#ifndef RESNETD_SERVER_CONFIG_H
#define RESNETD_SERVER_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "../model/status.h"

enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };
enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

enum { CONFIG_MAX_MODELS = 16 };

struct config_model {
    char *name;        /* served under this name; NULL: the description's */
    char *description; /* path of the description, resolved against the configuration file's folder (of an
                        * environment variable or a flag: the current one); "vgg16" is models/vgg16.json of
                        * the installation */
    char *weights;     /* path of the weights, likewise */
    char *labels;      /* NULL: the description's */
};

struct config {
    struct {
        char *host;       /* "0.0.0.0", "127.0.0.1", "::" */
        int port;         /* 0: the system chooses; the log says which */
        int http_threads; /* threads that move bytes */
        int max_connections;
        int idle_timeout_ms;  /* a connection without traffic is closed after this */
        int drain_delay_ms;   /* after SIGTERM: go on serving, readiness already failing, for this long */
        int drain_timeout_ms; /* then wait at most this long for accepted requests */
        char *cors_origin;    /* Access-Control-Allow-Origin; "" for none */
    } server;
    struct {
        uint64_t max_body_bytes;
        uint64_t max_body_memory_bytes; /* all bodies being received or waiting, together */
        uint64_t max_image_pixels;      /* of a file, before scaling */
        uint64_t max_native_pixels;     /* size=native scales down above this */
        uint64_t max_request_bytes;     /* memory for one image: decoder, pixels, activations */
        int max_files;                  /* files in one multipart request */
        int queue_length;               /* accepted images that wait for a worker */
        int deadline_ms;                /* from the last byte received to the answer; 0 for none */
    } limits;
    struct {
        int workers;     /* 0: one per CPU that the cgroup and the affinity mask allow */
        char *kernels;   /* "auto" or a table's name */
        char *precision; /* "auto", "fp32", "bf16" */
    } engine;
    struct {
        enum log_format format;
        enum log_level level;
    } log;
    struct config_model models[CONFIG_MAX_MODELS]; /* the first is the default */
    int model_count;
    char *default_note; /* why these models when the configuration names none: "no weights in weights/: ..." */
};

/* One flag of the command line that sets a key: {"server.port", "0"}. */
struct config_override {
    const char *key;   /* dotted */
    const char *value; /* text, parsed by the key's type */
};

/* One key, for the help: config_key_at(0), (1), ... until NULL. */
struct config_key {
    const char *name;  /* "server.port" */
    const char *flag;  /* "port" when --port sets it too, else NULL */
    const char *kind;  /* "N", "text|json" */
    const char *value; /* the default */
    const char *help;
};
const struct config_key *config_key_at(size_t index);

/* Fill `out` from the defaults, then `path` (NULL: none), then `environment` ("NAME=value" strings, NULL
 * terminated, as environ), then `overrides`. With no "models" configured, the ImageNet ResNet-50 in
 * `data_folder`/../weights is served when it is there, else the bundled demo model.
 *   data_folder  where models/, labels/ and weights/ of the installation lie (config/ of a checkout)
 * On failure `out` is zeroed and the error names the key: RN_ERR_CONFIG, RN_ERR_IO, RN_ERR_NOMEM. */
RN_MUST_CHECK enum rn_status config_load(const char *path, char *const *environment,
                                         const struct config_override *overrides, size_t override_count,
                                         const char *data_folder, struct config *out, struct rn_error *error);
void config_free(struct config *config);

/* Print every key with the value in force as one JSON object that config_load would accept. */
void config_print(const struct config *config, FILE *out);

/* Threads this process may run at once: the smallest of the affinity mask and the cgroup's CPU quota
 * (v2 cpu.max, v1 cpu.cfs_quota_us), at least 1. */
int config_cpu_count(void);

#endif
