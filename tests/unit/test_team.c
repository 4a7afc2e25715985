/* test_team.c - many short operations on teams whose helpers come and go: every task runs exactly once, its writes are
 * visible when team_run returns, and no two threads share scratch. Meant to run under ThreadSanitizer too. */

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../model/team.h"
#include "fail_alloc.h"

enum { MAX_TASKS = 97, SCRATCH = 4096 };

/* One operation: plain memory on purpose, so that a missing order is a data race. */
struct work {
    int runs[MAX_TASKS];
    int value;
    size_t scratch_bytes;
};

static void count_task(void *arg, int index, void *scratch)
{
    struct work *work = arg;
    int *mine = scratch;

    assert_true(((uintptr_t)scratch & 63) == 0);
    /* Nobody else may write here while the task runs. */
    for (size_t i = 0; i < work->scratch_bytes / sizeof *mine; i += 16)
        mine[i] = index;
    if (index % 7 == 0)
        (void)sched_yield();
    for (size_t i = 0; i < work->scratch_bytes / sizeof *mine; i += 16)
        work->runs[index] -= mine[i] != index;
    work->runs[index] += work->value;
}

/* Passes of operations of 1 to MAX_TASKS tasks; scratch grows on the way. */
static void run_passes(struct team *team, int passes)
{
    struct work work;

    for (int pass = 0; pass < passes; pass++) {
        work.scratch_bytes = (size_t)64 << (pass % 7 + pass * 6 / passes);
        assert_int_equal(team_reserve(team, work.scratch_bytes, NULL), RN_OK);
        team_begin(team);
        for (int op = 0; op < 12; op++) {
            const int tasks = 1 + (pass * 31 + op * 17) % MAX_TASKS;
            memset(work.runs, 0, sizeof work.runs);
            work.value = 1 + op;
            team_run(team, tasks, count_task, &work);
            for (int i = 0; i < MAX_TASKS; i++)
                assert_int_equal(work.runs[i], i < tasks ? work.value : 0);
        }
        team_end(team);
    }
}

static void test_alone(void **state)
{
    struct team *team;

    (void)state;
    assert_int_equal(team_create(1, &team, NULL), RN_OK);
    assert_int_equal(team_threads(team), 1);
    assert_int_equal(team_start_helpers(team, NULL), RN_OK);
    run_passes(team, 50);
    team_destroy(team);
    team_destroy(NULL);
}

static void test_own_helpers(void **state)
{
    (void)state;
    for (int threads = 2; threads <= 5; threads++) {
        struct team *team;
        assert_int_equal(team_create(threads, &team, NULL), RN_OK);
        assert_int_equal(team_start_helpers(team, NULL), RN_OK);
        run_passes(team, 60);
        team_destroy(team);
    }
}

/* A team that goes away right after its only pass, while its helpers may still be on their way in or out. */
static void test_short_lives(void **state)
{
    struct work work = {.value = 1, .scratch_bytes = 64};

    (void)state;
    for (int round = 0; round < 150; round++) {
        struct team *team;
        memset(work.runs, 0, sizeof work.runs);
        assert_int_equal(team_create(3, &team, NULL), RN_OK);
        assert_int_equal(team_reserve(team, 64, NULL), RN_OK);
        assert_int_equal(team_start_helpers(team, NULL), RN_OK);
        team_begin(team);
        if (round % 2)
            team_run(team, 3, count_task, &work);
        team_end(team);
        team_destroy(team);
        for (int i = 0; i < 3; i++)
            assert_int_equal(work.runs[i], round % 2);
    }
}

/* ---- helpers from outside, as the server's workers ---- */

struct visitor {
    pthread_t thread;
    struct team *team;
    atomic_bool *stop;
    int patience; /* asks before it leaves */
    int helped;
};

static int out_of_patience(void *arg)
{
    int *patience = arg;

    return (*patience)-- <= 0;
}

static void *visit(void *arg)
{
    struct visitor *v = arg;

    while (!atomic_load(v->stop)) {
        int patience = v->patience;
        v->helped += team_help(v->team, out_of_patience, &patience);
        (void)sched_yield();
    }
    return NULL;
}

/* More visitors than room, each leaving after another number of tasks. */
static void test_visitors(void **state)
{
    enum { VISITORS = 5 };
    struct visitor visitors[VISITORS];
    atomic_bool stop = false;
    struct team *team;
    int helped = 0;

    (void)state;
    assert_int_equal(team_create(4, &team, NULL), RN_OK);
    for (int i = 0; i < VISITORS; i++) {
        visitors[i] = (struct visitor){.team = team, .stop = &stop, .patience = i * i * 20};
        assert_int_equal(pthread_create(&visitors[i].thread, NULL, visit, &visitors[i]), 0);
    }
    run_passes(team, 150);
    atomic_store(&stop, true);
    for (int i = 0; i < VISITORS; i++) {
        assert_int_equal(pthread_join(visitors[i].thread, NULL), 0);
        helped += visitors[i].helped;
    }
    assert_int_equal(visitors[0].helped, 0); /* it never had the patience for one task */
    print_message("visitors helped %d times\n", helped);
    team_destroy(team);
}

/* Workers as the server has them: each leads its own passes, and helps the others in between. */
struct worker {
    pthread_t thread;
    struct team *mine, *other;
};

static int never(void *arg)
{
    (void)arg;
    return 0;
}

static void *work_and_help(void *arg)
{
    struct worker *w = arg;

    for (int i = 0; i < 40; i++) {
        int patience = 50;
        run_passes(w->mine, 2);
        (void)team_help(w->other, out_of_patience, &patience);
    }
    return NULL;
}

static void test_workers_help_each_other(void **state)
{
    struct worker workers[2];
    struct team *teams[2];

    (void)state;
    for (int i = 0; i < 2; i++)
        assert_int_equal(team_create(2, &teams[i], NULL), RN_OK);
    for (int i = 0; i < 2; i++) {
        workers[i] = (struct worker){.mine = teams[i], .other = teams[1 - i]};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work_and_help, &workers[i]), 0);
    }
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
    for (int i = 0; i < 2; i++)
        team_destroy(teams[i]);
}

static void test_nothing_to_help(void **state)
{
    struct team *team;

    (void)state;
    assert_int_equal(team_create(2, &team, NULL), RN_OK);
    assert_int_equal(team_help(team, never, NULL), 0); /* no pass is open: returns at once */
    team_begin(team);
    team_end(team);
    assert_int_equal(team_help(team, never, NULL), 0);
    team_destroy(team);
}

static void count_begin(void *arg)
{
    ++*(int *)arg;
}

static void test_hook(void **state)
{
    struct team *team;
    int begun = 0;

    (void)state;
    assert_int_equal(team_create(1, &team, NULL), RN_OK);
    team_on_begin(team, count_begin, &begun);
    run_passes(team, 3);
    assert_int_equal(begun, 3);
    team_destroy(team);
}

static void test_limits(void **state)
{
    struct team *team;
    struct rn_error error;

    (void)state;
    assert_int_equal(team_create(100000, &team, &error), RN_OK);
    assert_int_equal(team_threads(team), 64);
    assert_int_equal(team_reserve(team, SIZE_MAX, &error), RN_ERR_NOMEM);
    assert_int_equal(team_reserve(team, SIZE_MAX / 4, &error), RN_ERR_NOMEM);
    run_passes(team, 2);
    team_destroy(team);
}

static void test_out_of_memory(void **state)
{
    struct team *team;
    struct rn_error error;

    (void)state;
    fail_alloc_at(0);
    assert_int_equal(team_create(2, &team, &error), RN_ERR_NOMEM);
    assert_null(team);
    fail_alloc_at(-1);
    assert_int_equal(team_create(2, &team, &error), RN_OK);
    assert_int_equal(team_reserve(team, 100, &error), RN_OK);
    fail_alloc_at(0);
    assert_int_equal(team_reserve(team, 100000, &error), RN_ERR_NOMEM);
    fail_alloc_at(-1);
    run_passes(team, 2); /* reserves anew what it needs */
    team_destroy(team);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_own_helpers),
        cmocka_unit_test(test_short_lives),
        cmocka_unit_test(test_visitors),
        cmocka_unit_test(test_workers_help_each_other),
        cmocka_unit_test(test_nothing_to_help),
        cmocka_unit_test(test_hook),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
