/* team.c - one task counter, many takers.
 *
 * The published operation is (fn, arg, tasks); `state` holds a generation in its high and the next task in
 * its low half. A thread takes task i by moving `state` from (g, i) to (g, i + 1): if that succeeds, the
 * operation it had read before was still generation g. Between operations `state` holds a generation with
 * the counter at CLOSED, so that nobody can take a task while the fields change. The fields are stored with release
 * and read with acquire: whoever has seen a new field also finds `state` closed, and takes nothing. */

#include "team.h"

#include "sizes.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { MAX_THREADS = 64, SPINS_BEFORE_YIELD = 4096 };
static const uint64_t CLOSED = 0xffffffffu;

typedef void (*team_task)(void *arg, int index, void *scratch);

struct team {
    int threads;
    size_t scratch_bytes; /* of one thread */
    uint8_t *scratch;     /* [threads * scratch_bytes] */

    _Atomic uint64_t state;
    _Atomic(team_task) fn;
    _Atomic(void *) arg;
    _Atomic int tasks;
    _Atomic int done;        /* finished tasks of this operation */
    _Atomic bool open;       /* a pass is running */
    _Atomic uint64_t inside; /* bit i: helper slot i (1 .. threads - 1) is taken */
    void (*on_begin)(void *arg);
    void *on_begin_arg;

    pthread_mutex_t lock; /* own helper threads sleep here between passes */
    pthread_cond_t wake;
    bool quit;
    pthread_t helpers[MAX_THREADS];
    int helper_count;
};

static void cpu_relax(void)
{
#if defined(__x86_64__)
    _mm_pause();
#endif
}

static void spin(unsigned *spins)
{
    if (++*spins % SPINS_BEFORE_YIELD == 0)
        (void)sched_yield();
    else
        cpu_relax();
}

enum rn_status team_create(int threads, struct team **out, struct rn_error *error)
{
    struct team *team = calloc(1, sizeof *team);

    assert(threads >= 1);
    *out = NULL;
    if (!team)
        return rn_fail_nomem(error, "a team of threads");
    team->threads = threads > MAX_THREADS ? MAX_THREADS : threads;
    atomic_init(&team->state, CLOSED);
    if (pthread_mutex_init(&team->lock, NULL)) {
        free(team);
        return rn_fail_nomem(error, "a team of threads");
    }
    if (pthread_cond_init(&team->wake, NULL)) {
        (void)pthread_mutex_destroy(&team->lock);
        free(team);
        return rn_fail_nomem(error, "a team of threads");
    }
    *out = team;
    return RN_OK;
}

void team_destroy(struct team *team)
{
    if (!team)
        return;
    assert(!atomic_load(&team->open));
    (void)pthread_mutex_lock(&team->lock);
    team->quit = true;
    (void)pthread_cond_broadcast(&team->wake);
    (void)pthread_mutex_unlock(&team->lock);
    for (int i = 0; i < team->helper_count; i++)
        (void)pthread_join(team->helpers[i], NULL);
    /* A helper that found the last pass open may have entered after its end; only now is it surely out. */
    assert(!atomic_load(&team->inside));
    (void)pthread_cond_destroy(&team->wake);
    (void)pthread_mutex_destroy(&team->lock);
    free(team->scratch);
    free(team);
}

static int quitting(void *arg)
{
    (void)arg;
    return 0; /* passes are short: a helper that quits does so after the pass */
}

static void *helper_main(void *arg)
{
    struct team *team = arg;

    (void)pthread_mutex_lock(&team->lock);
    while (!team->quit) {
        if (atomic_load(&team->open)) {
            (void)pthread_mutex_unlock(&team->lock);
            (void)team_help(team, quitting, NULL);
            (void)pthread_mutex_lock(&team->lock);
        } else {
            (void)pthread_cond_wait(&team->wake, &team->lock);
        }
    }
    (void)pthread_mutex_unlock(&team->lock);
    return NULL;
}

enum rn_status team_start_helpers(struct team *team, struct rn_error *error)
{
    while (team->helper_count < team->threads - 1) {
        if (pthread_create(&team->helpers[team->helper_count], NULL, helper_main, team))
            return rn_fail(error, RN_ERR_NOMEM, "a thread cannot be started");
        team->helper_count++;
    }
    return RN_OK;
}

int team_threads(const struct team *team)
{
    return team->threads;
}

enum rn_status team_reserve(struct team *team, size_t bytes, struct rn_error *error)
{
    size_t total;

    assert(!atomic_load(&team->open));
    if (bytes <= team->scratch_bytes)
        return RN_OK;
    if (bytes > SIZE_MAX / 2 || !size_mul(size_round_up(bytes, 4096), (size_t)team->threads, &total))
        return rn_fail_nomem(error, "scratch");
    free(team->scratch);
    team->scratch_bytes = 0;
    team->scratch = aligned_alloc(4096, total);
    if (!team->scratch)
        return rn_fail_nomem(error, "scratch");
    team->scratch_bytes = size_round_up(bytes, 4096);
    return RN_OK;
}

void team_begin(struct team *team)
{
    assert(!atomic_load(&team->open));
    if (team->helper_count) {
        (void)pthread_mutex_lock(&team->lock);
        atomic_store(&team->open, true);
        (void)pthread_cond_broadcast(&team->wake);
        (void)pthread_mutex_unlock(&team->lock);
    } else {
        atomic_store(&team->open, true);
    }
    if (team->on_begin)
        team->on_begin(team->on_begin_arg);
}

void team_on_begin(struct team *team, void (*call)(void *arg), void *arg)
{
    team->on_begin = call;
    team->on_begin_arg = arg;
}

void team_end(struct team *team)
{
    unsigned spins = 0;

    atomic_store(&team->open, false);
    while (atomic_load(&team->inside))
        spin(&spins);
}

/* Take one task of the published operation and run it; false when there is none to take. */
static bool run_one(struct team *team, void *scratch)
{
    uint64_t state = atomic_load_explicit(&team->state, memory_order_acquire);

    for (;;) {
        const uint64_t index = state & CLOSED;
        const team_task fn = atomic_load_explicit(&team->fn, memory_order_acquire);
        void *arg = atomic_load_explicit(&team->arg, memory_order_acquire);
        const int tasks = atomic_load_explicit(&team->tasks, memory_order_acquire);

        if (index == CLOSED || index >= (uint64_t)tasks)
            return false;
        if (atomic_compare_exchange_weak_explicit(&team->state, &state, state + 1, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            fn(arg, (int)index, scratch);
            atomic_fetch_add_explicit(&team->done, 1, memory_order_release);
            return true;
        }
    }
}

void team_run(struct team *team, int tasks, team_task task, void *arg)
{
    const uint64_t generation = atomic_load_explicit(&team->state, memory_order_relaxed) >> 32;
    unsigned spins = 0;

    assert(tasks >= 1 && atomic_load_explicit(&team->open, memory_order_relaxed));
    atomic_store_explicit(&team->fn, task, memory_order_release);
    atomic_store_explicit(&team->arg, arg, memory_order_release);
    atomic_store_explicit(&team->tasks, tasks, memory_order_release);
    atomic_store_explicit(&team->done, 0, memory_order_relaxed);
    atomic_store_explicit(&team->state, (generation + 1) << 32, memory_order_release);

    while (run_one(team, team->scratch))
        continue;
    while (atomic_load_explicit(&team->done, memory_order_acquire) != tasks)
        spin(&spins);
    /* Nobody may take a task while the fields above change for the next operation. */
    atomic_store_explicit(&team->state, ((generation + 1) << 32) | CLOSED, memory_order_release);
}

/* A free helper slot, 1 .. threads - 1, or 0. */
static int enter(struct team *team)
{
    uint64_t inside = atomic_load(&team->inside);

    for (;;) {
        int slot = 1;
        while (slot < team->threads && (inside >> slot & 1))
            slot++;
        if (slot >= team->threads)
            return 0;
        if (atomic_compare_exchange_weak(&team->inside, &inside, inside | (uint64_t)1 << slot))
            return slot;
    }
}

int team_help(struct team *team, int (*should_leave)(void *arg), void *arg)
{
    unsigned spins = 0;
    int slot, helped = 0;

    if (!atomic_load(&team->open) || !(slot = enter(team)))
        return 0;
    while (atomic_load(&team->open) && !should_leave(arg)) {
        if (run_one(team, team->scratch + (size_t)slot * team->scratch_bytes)) {
            helped = 1;
            spins = 0;
        } else {
            spin(&spins);
        }
    }
    atomic_fetch_and(&team->inside, ~((uint64_t)1 << slot));
    return helped;
}
