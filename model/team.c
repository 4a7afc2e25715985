/* team.c - a task counter for each thread's part, many takers.
 *
 * The tasks of an operation are cut into one part a thread, in order. A thread takes tasks from its own part first and
 * then from the others': threads keep to the same rows of an image from operation to operation, which they find in
 * their own caches, and still nobody waits while there is work.
 *
 * The published operation is (fn, arg, tasks); each part's counter holds a generation in its high and the next task in
 * its low half. A thread takes task i by moving the counter from (g, i) to (g, i + 1): if that succeeds, the
 * operation it had read before was still generation g. Between operations all counters hold a generation with
 * the task at CLOSED, so that nobody can take one while the fields change. The fields are stored with release
 * and read with acquire: whoever has seen a new field also finds the counters closed, and takes nothing. */

#include "team.h"

#include "pages.h"
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

/* How long a helper looks out for the next pass before it sleeps: some 0.1 ms, longer than it takes to wake up. */
enum { SPINS_BEFORE_SLEEP = 2000 };
static const uint64_t CLOSED = 0xffffffffu;

typedef void (*team_task)(void *arg, int index, void *scratch);

/* On a cache line of its own. */
struct part {
    _Alignas(64) _Atomic uint64_t next;
};

struct team {
    int threads;
    size_t scratch_bytes; /* of one thread */
    uint8_t *scratch;     /* [threads * scratch_bytes] */

    struct part *parts; /* [threads] */
    uint64_t generation;
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
    team->parts = aligned_alloc(_Alignof(struct part), (size_t)team->threads * sizeof *team->parts);
    if (!team->parts) {
        free(team);
        return rn_fail_nomem(error, "a team of threads");
    }
    for (int i = 0; i < team->threads; i++)
        atomic_init(&team->parts[i].next, CLOSED);
    if (pthread_mutex_init(&team->lock, NULL)) {
        free(team->parts);
        free(team);
        return rn_fail_nomem(error, "a team of threads");
    }
    if (pthread_cond_init(&team->wake, NULL)) {
        (void)pthread_mutex_destroy(&team->lock);
        free(team->parts);
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
    pages_free(team->scratch, (size_t)team->threads * team->scratch_bytes);
    free(team->parts);
    free(team);
}

static int quitting(void *arg)
{
    (void)arg;
    return 0; /* passes are short: a helper that quits does so after the pass */
}

/* Whether a pass begins soon. */
static bool pass_begins(const struct team *team)
{
    for (int i = 0; i < SPINS_BEFORE_SLEEP; i++) {
        if (atomic_load(&team->open))
            return true;
        cpu_relax();
    }
    return false;
}

static void *helper_main(void *arg)
{
    struct team *team = arg;

    (void)pthread_mutex_lock(&team->lock);
    while (!team->quit) {
        if (atomic_load(&team->open)) {
            (void)pthread_mutex_unlock(&team->lock);
            do
                (void)team_help(team, quitting, NULL);
            while (pass_begins(team));
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
    if (bytes > SIZE_MAX / 2 || !size_mul(size_round_up(bytes, PAGE_BYTES), (size_t)team->threads, &total))
        return rn_fail_nomem(error, "scratch");
    pages_free(team->scratch, (size_t)team->threads * team->scratch_bytes);
    team->scratch_bytes = 0;
    team->scratch = pages_alloc(total);
    if (!team->scratch)
        return rn_fail_nomem(error, "scratch");
    team->scratch_bytes = size_round_up(bytes, PAGE_BYTES);
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

/* Take one task of part `part` and run it; false when there is none to take. */
static bool run_one_of(struct team *team, int part, void *scratch)
{
    _Atomic uint64_t *next = &team->parts[part].next;
    uint64_t state = atomic_load_explicit(next, memory_order_acquire);

    for (;;) {
        const uint64_t index = state & CLOSED;
        const team_task fn = atomic_load_explicit(&team->fn, memory_order_acquire);
        void *arg = atomic_load_explicit(&team->arg, memory_order_acquire);
        const int tasks = atomic_load_explicit(&team->tasks, memory_order_acquire);

        if (index == CLOSED || index >= (uint64_t)part_start(tasks, team->threads, part + 1))
            return false;
        if (atomic_compare_exchange_weak_explicit(next, &state, state + 1, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            fn(arg, (int)index, scratch);
            atomic_fetch_add_explicit(&team->done, 1, memory_order_release);
            return true;
        }
    }
}

/* Take one task of the published operation, for the thread in `slot`. */
static bool run_one(struct team *team, int slot)
{
    void *scratch = team->scratch + (size_t)slot * team->scratch_bytes;

    for (int i = 0; i < team->threads; i++)
        if (run_one_of(team, (slot + i) % team->threads, scratch))
            return true;
    return false;
}

void team_run(struct team *team, int tasks, team_task task, void *arg)
{
    const uint64_t generation = ++team->generation << 32;
    unsigned spins = 0;

    assert(tasks >= 1 && atomic_load_explicit(&team->open, memory_order_relaxed));
    atomic_store_explicit(&team->fn, task, memory_order_release);
    atomic_store_explicit(&team->arg, arg, memory_order_release);
    atomic_store_explicit(&team->tasks, tasks, memory_order_release);
    atomic_store_explicit(&team->done, 0, memory_order_relaxed);
    for (int i = team->threads - 1; i >= 0; i--)
        atomic_store_explicit(&team->parts[i].next, generation | (uint64_t)part_start(tasks, team->threads, i),
                              memory_order_release);

    while (run_one(team, 0))
        continue;
    while (atomic_load_explicit(&team->done, memory_order_acquire) != tasks)
        spin(&spins);
    /* Nobody may take a task while the fields above change for the next operation. */
    for (int i = 0; i < team->threads; i++)
        atomic_store_explicit(&team->parts[i].next, generation | CLOSED, memory_order_release);
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
        if (run_one(team, slot)) {
            helped = 1;
            spins = 0;
        } else {
            spin(&spins);
        }
    }
    atomic_fetch_and(&team->inside, ~((uint64_t)1 << slot));
    return helped;
}
