/* cpus.c - CPUs that this process may use: affinity mask and cgroup quota.
 *
 * The quota may be set on the process's own cgroup or on any parent, and inside a container the path in
 * /proc/self/cgroup may be the host's, of which only the root is mounted. So every level from the path
 * down to the root is asked, and a level that is not there says nothing. */

#include "cpus.h"

#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"

/* The first line of `folder`/`file` into `line`, or false. */
static int read_line(const char *folder, const char *file, char *line, int size)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *in = n > 0 && (size_t)n < sizeof path ? fopen(path, "r") : NULL;
    int found = in && fgets(line, size, in) != NULL;

    if (in)
        fclose(in);
    return found;
}

/* The quota set in one cgroup's folder as CPUs, or 0. */
static double quota_v2(const char *folder)
{
    char line[128];
    double quota, period;

    /* "max 100000" has no number first. */
    if (!read_line(folder, "cpu.max", line, sizeof line) || sscanf(line, "%lf %lf", &quota, &period) != 2)
        return 0;
    return quota > 0 && period > 0 ? quota / period : 0;
}

static double quota_v1(const char *folder)
{
    char quota[64], period[64];

    if (!read_line(folder, "cpu.cfs_quota_us", quota, sizeof quota) ||
        !read_line(folder, "cpu.cfs_period_us", period, sizeof period))
        return 0;
    return atof(quota) > 0 && atof(period) > 0 ? atof(quota) / atof(period) : 0;
}

static double smaller(double a, double b)
{
    return b > 0 && (a == 0 || b < a) ? b : a;
}

/* The smallest quota from mount/path up to mount itself. */
static double smallest_quota(const char *mount, const char *path, double (*quota)(const char *folder))
{
    char folder[PATH_MAX];
    double smallest = 0;
    size_t root = strlen(mount);
    int n = snprintf(folder, sizeof folder, "%s%s", mount, path);

    if (n < 0 || (size_t)n >= sizeof folder)
        return 0;
    for (;;) {
        smallest = smaller(smallest, quota(folder));
        char *slash = strrchr(folder + root, '/');
        if (!slash)
            return smallest;
        *slash = 0;
    }
}

/* Whether "cpu" is one of the comma-separated `controllers`. */
static int has_cpu(const char *controllers)
{
    for (const char *at = controllers; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (!strncmp(at, "cpu", 3) && (at[3] == 0 || at[3] == ','))
            return 1;
    return 0;
}

int cpus_of_quota(const char *membership, const char *root)
{
    char line[PATH_MAX];
    double smallest = 0;
    FILE *in = fopen(membership, "r");

    /* "0::/user.slice/x" is version 2, "4:cpu,cpuacct:/docker/x" is version 1. */
    while (in && fgets(line, sizeof line, in)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = 0;
        controllers++;
        if (controllers[0] == 0) {
            smallest = smaller(smallest, smallest_quota(root, path, quota_v2));
        } else if (has_cpu(controllers)) {
            char mount[PATH_MAX];
            const char *names[] = {controllers, "cpu"};
            for (int i = 0; i < 2; i++)
                if (snprintf(mount, sizeof mount, "%s/%s", root, names[i]) < (int)sizeof mount)
                    smallest = smaller(smallest, smallest_quota(mount, path, quota_v1));
        }
    }
    if (in)
        fclose(in);
    /* Part of a CPU more would only be throttled in the middle of an image. */
    return smallest == 0 ? 0 : smallest < 1 ? 1 : smallest > INT_MAX ? INT_MAX : (int)smallest;
}

int config_cpu_count(void)
{
    cpu_set_t *mask = NULL;
    int quota = cpus_of_quota("/proc/self/cgroup", "/sys/fs/cgroup");
    int count = 0;

    /* A machine with more CPUs than the mask has room for gives EINVAL. */
    for (int room = 1024; room <= 1 << 20 && count == 0; room *= 4) {
        mask = CPU_ALLOC((size_t)room);
        if (mask && sched_getaffinity(0, CPU_ALLOC_SIZE((size_t)room), mask) == 0)
            count = CPU_COUNT_S(CPU_ALLOC_SIZE((size_t)room), mask);
        CPU_FREE(mask);
    }
    if (quota > 0 && (count == 0 || quota < count))
        count = quota;
    return count > 0 ? count : 1;
}
