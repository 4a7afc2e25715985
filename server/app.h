/* app.h - what the routes work with: everything that serve.c opened, for the time between start and end. */

#ifndef RESNETD_SERVER_APP_H
#define RESNETD_SERVER_APP_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "../model/model.h"
#include "config.h"
#include "http.h"
#include "metrics.h"
#include "queue.h"
#include "workers.h"

enum app_state {
    APP_SERVING,
    APP_NOT_READY, /* readiness fails, everything is still served */
    APP_DRAINING,  /* no new images */
};

struct app {
    const struct config *config;
    struct model *models[CONFIG_MAX_MODELS]; /* the first is the default */
    int model_count;
    int worker_count;
    struct queue queue;
    struct workers *workers;
    struct http *http;
    struct metrics metrics;
    double start_time; /* seconds of Unix time */
    _Atomic enum app_state state;
    char *openapi; /* the document with this server's version in it */
};

#endif
