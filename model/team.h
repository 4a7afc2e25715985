/* team.h - threads that help one another inside a forward pass.
 *
 * A worker that runs a forward pass leads; workers that have nothing of their own to do join in. An
 * operation is published as a number of tasks; the leader and whoever is there take tasks, each from
 * a part of its own first, until none is left. The leader never waits for a thread that has not taken a task, so a lone
 * leader runs at full speed, and a helper leaves between operations as soon as it has work of its own.
 * An idle server therefore gives all its cores to one image, a busy one runs one image a core. */

#ifndef RESNETD_MODEL_TEAM_H
#define RESNETD_MODEL_TEAM_H

#include <stddef.h>

#include "status.h"

struct team; /* opaque */

/* Room for `threads` threads at most (leader included), each with its own scratch memory. */
RN_MUST_CHECK enum rn_status team_create(int threads, struct team **out, struct rn_error *error);
void team_destroy(struct team *team); /* no helper may be inside; NULL is fine */

/* Start `threads - 1` threads that do nothing but help this team's leader (for the command line and the
 * benchmark; the server's workers call team_help themselves). Joined by team_destroy. */
RN_MUST_CHECK enum rn_status team_start_helpers(struct team *team, struct rn_error *error);

int team_threads(const struct team *team);

/* Call `call(arg)` on the leader's thread each time team_begin has opened a pass, so that idle helpers can be
 * woken. To be set once, before any pass; NULL (as created) for none. */
void team_on_begin(struct team *team, void (*call)(void *arg), void *arg);

/* Leader: give each thread at least `bytes` of scratch, 64-byte aligned. Between passes only. */
RN_MUST_CHECK enum rn_status team_reserve(struct team *team, size_t bytes, struct rn_error *error);

/* Leader: open a forward pass, so that helpers may enter, and close it again: after team_end no helper
 * is inside. */
void team_begin(struct team *team);
void team_end(struct team *team);

/* Leader, between team_begin and team_end: run task(arg, i, scratch) for every i in 0 .. tasks - 1, on this
 * thread and on any helper present; returns when all are done, with their writes visible. */
void team_run(struct team *team, int tasks, void (*task)(void *arg, int index, void *scratch), void *arg);

/* Helper: if a pass is open and there is room, help until it ends or until should_leave(arg) is true
 * (asked between tasks and while waiting). Returns whether it helped at all. Any thread. */
int team_help(struct team *team, int (*should_leave)(void *arg), void *arg);

#endif
