/* queue.h - the bounded queue between the HTTP threads and the workers.
 *
 * Jobs are linked through themselves, so that accepting one allocates nothing. Waiting workers are also
 * woken by events: something other than a job that they may want to look at (a forward pass that takes
 * helpers). Every function may be called from any thread. */

#ifndef RESNETD_SERVER_QUEUE_H
#define RESNETD_SERVER_QUEUE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct job {
    struct job *next; /* the queue's while the job is in it */
};

struct queue {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct job *first, *last;
    atomic_size_t depth; /* written under the mutex, read anywhere */
    size_t limit;
    size_t sleepers;
    uint64_t events;
    atomic_bool closed;
};

enum queue_result { QUEUE_JOB, QUEUE_EVENT, QUEUE_CLOSED };

/* Returns false when the system has no mutex to give. */
bool queue_init(struct queue *queue, size_t limit);
void queue_destroy(struct queue *queue); /* nobody may be waiting, no job may be left */

/* Append `count` jobs, linked from `first` to NULL: all of them or none. An empty queue takes any number,
 * so that a request of more files than the limit is not refused forever. Returns whether they were taken;
 * a closed queue takes nothing. The jobs may already be done when this returns. */
bool queue_push(struct queue *queue, struct job *first, size_t count);

/* Wait for a job, an event that is newer than *seen (updated), or the end. Jobs come first; QUEUE_CLOSED
 * comes when the queue is closed and empty. */
enum queue_result queue_pop(struct queue *queue, uint64_t *seen, struct job **job);

/* Tell every waiting worker that something happened. */
void queue_signal(struct queue *queue);

/* Take no more jobs; waiting workers get what is left and then QUEUE_CLOSED. */
void queue_close(struct queue *queue);

size_t queue_depth(const struct queue *queue);

/* Whether a worker that is busy with something optional should come back: a job waits, or the end. */
bool queue_wants_workers(const struct queue *queue);

#endif
