/* workers.c - worker threads. */

#include "workers.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

struct worker {
    struct workers *all;
    struct team *team; /* this worker leads it */
    struct pass *pass;
    pthread_t thread;
};

struct workers {
    struct queue *queue;
    void (*run)(void *arg, struct job *job, struct pass *pass);
    void *arg;
    atomic_size_t busy;
    int count, started;
    struct worker worker[];
};

/* The queue's events are opened passes. */
static void on_pass(void *queue)
{
    queue_signal(queue);
}

static int should_leave(void *queue)
{
    return queue_wants_workers(queue);
}

/* Help wherever a pass is open. Returns whether there was something to do. */
static bool help(struct worker *self)
{
    struct workers *all = self->all;
    bool helped = false;

    for (int i = 0; i < all->count && !queue_wants_workers(all->queue); i++)
        if (&all->worker[i] != self && team_help(all->worker[i].team, should_leave, all->queue))
            helped = true;
    return helped;
}

static void *work(void *arg)
{
    struct worker *self = arg;
    struct workers *all = self->all;
    struct job *job;
    uint64_t seen = 0;

    for (;;) {
        switch (queue_pop(all->queue, &seen, &job)) {
        case QUEUE_JOB:
            atomic_fetch_add(&all->busy, 1);
            all->run(all->arg, job, self->pass);
            atomic_fetch_sub(&all->busy, 1);
            break;
        case QUEUE_EVENT:
            /* A helper may have left a pass that goes on, for a job that somebody else took: look again
             * before sleeping, as if there was one more event. */
            if (help(self))
                seen--;
            break;
        case QUEUE_CLOSED:
            return NULL;
        }
    }
}

enum rn_status workers_start(int count, struct queue *queue, void (*run)(void *arg, struct job *job, struct pass *pass),
                             void *arg, struct workers **out, struct rn_error *error)
{
    struct workers *workers = calloc(1, sizeof *workers + (size_t)count * sizeof workers->worker[0]);
    enum rn_status status = RN_OK;

    assert(count > 0);
    *out = NULL;
    if (!workers)
        return rn_fail_nomem(error, "the workers");
    workers->queue = queue;
    workers->run = run;
    workers->arg = arg;
    workers->count = count;
    for (int i = 0; i < count && status == RN_OK; i++) {
        struct worker *worker = &workers->worker[i];
        worker->all = workers;
        status = team_create(count, &worker->team, error);
        if (status == RN_OK) {
            team_on_begin(worker->team, on_pass, queue);
            status = pass_create(worker->team, &worker->pass, error);
        }
    }
    /* Threads start when every team is there: any worker may help any other. */
    for (; workers->started < count && status == RN_OK; workers->started++) {
        struct worker *worker = &workers->worker[workers->started];
        char name[16];
        if (pthread_create(&worker->thread, NULL, work, worker) != 0) {
            status = rn_fail(error, RN_ERR_IO, "cannot start worker thread %d of %d", workers->started + 1, count);
            break;
        }
        (void)snprintf(name, sizeof name, "worker-%d", workers->started);
        (void)pthread_setname_np(worker->thread, name);
    }
    if (status != RN_OK) {
        workers_stop(workers);
        return status;
    }
    *out = workers;
    return RN_OK;
}

size_t workers_busy(const struct workers *workers)
{
    return atomic_load_explicit(&workers->busy, memory_order_relaxed);
}

void workers_stop(struct workers *workers)
{
    if (!workers)
        return;
    queue_close(workers->queue);
    for (int i = 0; i < workers->started; i++)
        (void)pthread_join(workers->worker[i].thread, NULL);
    for (int i = 0; i < workers->count; i++) {
        pass_destroy(workers->worker[i].pass);
        team_destroy(workers->worker[i].team);
    }
    free(workers);
}
