/* queue.c - the bounded queue. */

#include "queue.h"

#include <assert.h>

bool queue_init(struct queue *queue, size_t limit)
{
    assert(limit > 0);
    *queue = (struct queue){.limit = limit};
    if (pthread_mutex_init(&queue->mutex, NULL) != 0)
        return false;
    if (pthread_cond_init(&queue->changed, NULL) != 0) {
        (void)pthread_mutex_destroy(&queue->mutex);
        return false;
    }
    return true;
}

void queue_destroy(struct queue *queue)
{
    assert(!queue->first && queue->sleepers == 0);
    (void)pthread_cond_destroy(&queue->changed);
    (void)pthread_mutex_destroy(&queue->mutex);
}

bool queue_push(struct queue *queue, struct job *first, size_t count)
{
    struct job *last;
    size_t depth;
    bool taken;

    assert(first && count > 0);
    last = first;
    for (size_t i = 1; i < count; i++)
        last = last->next;
    assert(!last->next);

    (void)pthread_mutex_lock(&queue->mutex);
    depth = atomic_load_explicit(&queue->depth, memory_order_relaxed);
    taken = !atomic_load(&queue->closed) && (depth == 0 || (depth < queue->limit && count <= queue->limit - depth));
    if (taken) {
        if (queue->last)
            queue->last->next = first;
        else
            queue->first = first;
        queue->last = last;
        atomic_store(&queue->depth, depth + count);
        if (queue->sleepers > 0) {
            if (count == 1)
                (void)pthread_cond_signal(&queue->changed);
            else
                (void)pthread_cond_broadcast(&queue->changed);
        }
    }
    (void)pthread_mutex_unlock(&queue->mutex);
    return taken;
}

enum queue_result queue_pop(struct queue *queue, uint64_t *seen, struct job **job)
{
    enum queue_result result;

    *job = NULL;
    (void)pthread_mutex_lock(&queue->mutex);
    while (!queue->first && *seen == queue->events && !atomic_load(&queue->closed)) {
        queue->sleepers++;
        (void)pthread_cond_wait(&queue->changed, &queue->mutex);
        queue->sleepers--;
    }
    if (queue->first) {
        *job = queue->first;
        queue->first = queue->first->next;
        if (!queue->first)
            queue->last = NULL;
        (*job)->next = NULL;
        atomic_fetch_sub(&queue->depth, 1);
        result = QUEUE_JOB;
    } else if (atomic_load(&queue->closed)) {
        result = QUEUE_CLOSED;
    } else {
        *seen = queue->events;
        result = QUEUE_EVENT;
    }
    (void)pthread_mutex_unlock(&queue->mutex);
    return result;
}

void queue_signal(struct queue *queue)
{
    (void)pthread_mutex_lock(&queue->mutex);
    queue->events++;
    if (queue->sleepers > 0)
        (void)pthread_cond_broadcast(&queue->changed);
    (void)pthread_mutex_unlock(&queue->mutex);
}

void queue_close(struct queue *queue)
{
    (void)pthread_mutex_lock(&queue->mutex);
    atomic_store(&queue->closed, true);
    (void)pthread_cond_broadcast(&queue->changed);
    (void)pthread_mutex_unlock(&queue->mutex);
}

size_t queue_depth(const struct queue *queue)
{
    return atomic_load_explicit(&queue->depth, memory_order_relaxed);
}

bool queue_wants_workers(const struct queue *queue)
{
    return atomic_load_explicit(&queue->depth, memory_order_relaxed) > 0 ||
           atomic_load_explicit(&queue->closed, memory_order_relaxed);
}
