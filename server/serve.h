/* serve.h - the HTTP server: opens the models, listens, answers until SIGTERM or SIGINT, drains. */

#ifndef RESNETD_SERVER_SERVE_H
#define RESNETD_SERVER_SERVE_H

#include "config.h"

/* Serve until a signal ends it. Returns the process's exit status: 0 after a drained shutdown, 1 when
 * something needed for the start failed (said on standard error through the log). */
int serve_run(const struct config *config);

#endif
