/* workers.h - the threads that do the work: take a job from the queue, or help another worker's forward
 * pass, or sleep.
 *
 * On an idle server one image gets all cores, because the other workers join its forward pass (team.h); on
 * a loaded one each worker runs an image of its own, because a waiting job always comes first. */

#ifndef RESNETD_SERVER_WORKERS_H
#define RESNETD_SERVER_WORKERS_H

#include <stddef.h>

#include "../model/model.h"
#include "queue.h"

struct workers;

/* Start `count` threads that take jobs from `queue`.
 *   run  does one job with the worker's own `pass`; called by many threads at once
 * On failure *out is NULL and no thread is left: RN_ERR_NOMEM, RN_ERR_IO. */
RN_MUST_CHECK enum rn_status workers_start(int count, struct queue *queue,
                                           void (*run)(void *arg, struct job *job, struct pass *pass), void *arg,
                                           struct workers **out, struct rn_error *error);

/* Threads that have a job in hand. */
size_t workers_busy(const struct workers *workers);

/* Close the queue, let the workers finish what is in it, join them and free. NULL is fine. */
void workers_stop(struct workers *workers);

#endif
