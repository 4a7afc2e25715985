/* routes.h - what each route answers. The three functions are http.h's; `arg` is the struct app. */

#ifndef RESNETD_SERVER_ROUTES_H
#define RESNETD_SERVER_ROUTES_H

#include "app.h"

/* Names of the routes for the metrics, by index; *count of them. */
const char *const *routes_names(int *count);

void routes_begin(void *arg, struct http_request *request);
void routes_finish(void *arg, struct http_request *request);
void routes_done(void *arg, struct http_request *request);

/* What a worker does with a job from the queue. */
void routes_run_job(void *arg, struct job *job, struct pass *pass);

#endif
