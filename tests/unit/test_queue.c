/* test_queue.c - order, bounds, events and the end of the queue between HTTP threads and workers. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>

#include "../../server/queue.h"

struct numbered {
    struct job job;
    int number;
};

static int pop_number(struct queue *queue)
{
    struct job *job;
    uint64_t seen = 0;

    if (queue_pop(queue, &seen, &job) != QUEUE_JOB)
        return -1;
    return ((struct numbered *)job)->number;
}

static void jobs_come_in_order(void **state)
{
    (void)state;
    struct queue queue;
    struct numbered jobs[5] = {{{0}, 0}, {{0}, 1}, {{0}, 2}, {{0}, 3}, {{0}, 4}};

    assert_true(queue_init(&queue, 10));
    assert_false(queue_wants_workers(&queue));
    assert_true(queue_push(&queue, &jobs[0].job, 1));
    jobs[1].job.next = &jobs[2].job;
    jobs[2].job.next = &jobs[3].job;
    assert_true(queue_push(&queue, &jobs[1].job, 3));
    assert_true(queue_wants_workers(&queue));
    assert_int_equal(queue_depth(&queue), 4);
    assert_int_equal(pop_number(&queue), 0);
    assert_true(queue_push(&queue, &jobs[4].job, 1));
    for (int i = 1; i < 5; i++)
        assert_int_equal(pop_number(&queue), i);
    assert_int_equal(queue_depth(&queue), 0);
    assert_true(queue_push(&queue, &jobs[0].job, 1)); /* used again after it ran empty */
    assert_int_equal(pop_number(&queue), 0);
    queue_destroy(&queue);
}

static void a_full_queue_takes_nothing(void **state)
{
    (void)state;
    struct queue queue;
    struct numbered jobs[6] = {{{0}, 0}, {{0}, 1}, {{0}, 2}, {{0}, 3}, {{0}, 4}, {{0}, 5}};

    assert_true(queue_init(&queue, 2));
    assert_true(queue_push(&queue, &jobs[0].job, 1));
    jobs[1].job.next = &jobs[2].job;
    assert_false(queue_push(&queue, &jobs[1].job, 2)); /* all or none */
    assert_int_equal(queue_depth(&queue), 1);
    jobs[1].job.next = NULL;
    assert_true(queue_push(&queue, &jobs[1].job, 1));
    assert_false(queue_push(&queue, &jobs[2].job, 1));
    assert_int_equal(pop_number(&queue), 0);
    assert_int_equal(pop_number(&queue), 1);

    /* An empty queue takes any number. */
    jobs[3].job.next = &jobs[4].job;
    jobs[4].job.next = &jobs[5].job;
    assert_true(queue_push(&queue, &jobs[3].job, 3));
    assert_false(queue_push(&queue, &jobs[0].job, 1));
    for (int i = 3; i < 6; i++)
        assert_int_equal(pop_number(&queue), i);
    queue_destroy(&queue);
}

static void events_come_once_and_after_jobs(void **state)
{
    (void)state;
    struct queue queue;
    struct numbered one = {{0}, 1};
    struct job *job;
    uint64_t seen = 0;

    assert_true(queue_init(&queue, 2));
    queue_signal(&queue);
    queue_signal(&queue);
    assert_true(queue_push(&queue, &one.job, 1));
    assert_int_equal(queue_pop(&queue, &seen, &job), QUEUE_JOB);
    assert_ptr_equal(job, &one.job);
    assert_int_equal(queue_pop(&queue, &seen, &job), QUEUE_EVENT);
    assert_null(job);
    queue_close(&queue);
    assert_int_equal(queue_pop(&queue, &seen, &job), QUEUE_CLOSED);
    queue_destroy(&queue);
}

static void a_closed_queue_gives_what_it_has(void **state)
{
    (void)state;
    struct queue queue;
    struct numbered one = {{0}, 1}, two = {{0}, 2};
    struct job *job;
    uint64_t seen = 0;

    assert_true(queue_init(&queue, 2));
    assert_true(queue_push(&queue, &one.job, 1));
    queue_close(&queue);
    assert_true(queue_wants_workers(&queue));
    assert_false(queue_push(&queue, &two.job, 1));
    assert_int_equal(pop_number(&queue), 1);
    assert_int_equal(queue_pop(&queue, &seen, &job), QUEUE_CLOSED);
    assert_int_equal(queue_pop(&queue, &seen, &job), QUEUE_CLOSED);
    queue_destroy(&queue);
}

enum { PRODUCERS = 3, CONSUMERS = 3, EACH = 2000 };

struct shared {
    struct queue queue;
    atomic_int sum, taken, events;
};

static void *consume(void *arg)
{
    struct shared *shared = arg;
    struct job *job;
    uint64_t seen = 0;

    for (;;) {
        switch (queue_pop(&shared->queue, &seen, &job)) {
        case QUEUE_JOB:
            atomic_fetch_add(&shared->sum, ((struct numbered *)job)->number);
            atomic_fetch_add(&shared->taken, 1);
            break;
        case QUEUE_EVENT:
            atomic_fetch_add(&shared->events, 1);
            break;
        case QUEUE_CLOSED:
            return NULL;
        }
    }
}

struct producer {
    struct shared *shared;
    struct numbered jobs[EACH];
    pthread_t thread;
};

static void *produce(void *arg)
{
    struct producer *producer = arg;

    for (int i = 0; i < EACH; i++) {
        producer->jobs[i].number = i;
        while (!queue_push(&producer->shared->queue, &producer->jobs[i].job, 1))
            (void)sched_yield();
        if (i % 10 == 0)
            queue_signal(&producer->shared->queue);
    }
    return NULL;
}

static void many_threads(void **state)
{
    (void)state;
    static struct shared shared;
    static struct producer producers[PRODUCERS];
    pthread_t consumers[CONSUMERS];

    assert_true(queue_init(&shared.queue, 8));
    for (int i = 0; i < CONSUMERS; i++)
        assert_int_equal(pthread_create(&consumers[i], NULL, consume, &shared), 0);
    for (int i = 0; i < PRODUCERS; i++) {
        producers[i].shared = &shared;
        assert_int_equal(pthread_create(&producers[i].thread, NULL, produce, &producers[i]), 0);
    }
    for (int i = 0; i < PRODUCERS; i++)
        (void)pthread_join(producers[i].thread, NULL);
    queue_close(&shared.queue);
    for (int i = 0; i < CONSUMERS; i++)
        (void)pthread_join(consumers[i], NULL);
    assert_int_equal(atomic_load(&shared.taken), PRODUCERS * EACH);
    assert_int_equal(atomic_load(&shared.sum), PRODUCERS * (EACH * (EACH - 1) / 2));
    queue_destroy(&shared.queue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(jobs_come_in_order),
        cmocka_unit_test(a_full_queue_takes_nothing),
        cmocka_unit_test(events_come_once_and_after_jobs),
        cmocka_unit_test(a_closed_queue_gives_what_it_has),
        cmocka_unit_test(many_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
