/* cpus.h - how many threads the container's CPU quota pays for. config_cpu_count() (config.h) is what the
 * server asks; this is the part that a test can point at files of its own. */

#ifndef RESNETD_SERVER_CPUS_H
#define RESNETD_SERVER_CPUS_H

/* The smallest CPU quota of the process's cgroup and its parents, rounded down to whole CPUs, at least 1;
 * 0 when there is no quota.
 *   membership  a file such as /proc/self/cgroup
 *   root        where the cgroup hierarchies are mounted: /sys/fs/cgroup
 * A file that is not there or makes no sense counts as no quota. */
int cpus_of_quota(const char *membership, const char *root);

#endif
