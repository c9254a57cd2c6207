/* CPU time: of processes with their descendants, of this one, of the whole machine. */
#define _GNU_SOURCE
#include "load.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct process {
    pid_t pid, parent;
    uint64_t ticks;
    bool counted;
};

static size_t processes(struct process *found, size_t room) {
    size_t n = 0;
    DIR *proc = opendir("/proc");
    if (!proc) die("/proc: %s", strerror(errno));
    for (struct dirent *entry; n < room && (entry = readdir(proc));) {
        if (!isdigit((unsigned char)entry->d_name[0])) continue;
        char path[300], line[1024];
        snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        size_t length = fread(line, 1, sizeof line - 1, file);
        fclose(file);
        line[length] = 0;
        char *rest = strrchr(line, ')'); /* the name before it may hold anything */
        struct process p = {.pid = atoi(entry->d_name)};
        uint64_t user, kernel, dead_user, dead_kernel;
        if (!rest || sscanf(rest + 1, " %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %lu %lu",
                            &p.parent, &user, &kernel, &dead_user, &dead_kernel) != 5)
            continue;
        p.ticks = user + kernel + dead_user + dead_kernel;
        found[n++] = p;
    }
    closedir(proc);
    return n;
}

double servers_cpu(const pid_t *pids, unsigned npids) {
    static struct process all[4096];
    size_t n = npids ? processes(all, 4096) : 0;
    uint64_t ticks = 0;
    for (bool more = true; more;) {
        more = false;
        for (size_t i = 0; i < n; i++) {
            bool ours = false;
            for (unsigned k = 0; k < npids; k++) ours |= all[i].pid == pids[k];
            for (size_t k = 0; k < n && !ours; k++)
                ours = all[k].counted && all[k].pid == all[i].parent;
            if (ours && !all[i].counted) {
                all[i].counted = more = true;
                ticks += all[i].ticks;
            }
        }
    }
    return (double)ticks / (double)sysconf(_SC_CLK_TCK);
}

/* Time that all processors together have spent on anything, whoever it was for. */
double machine_cpu(void) {
    uint64_t user = 0, nice = 0, kernel = 0, idle, wait, irq = 0, soft = 0, steal = 0;
    FILE *file = fopen("/proc/stat", "r");
    if (!file || fscanf(file, "cpu %lu %lu %lu %lu %lu %lu %lu %lu", &user, &nice, &kernel, &idle,
                        &wait, &irq, &soft, &steal) != 8)
        die("/proc/stat cannot be read");
    fclose(file);
    return (double)(user + nice + kernel + irq + soft + steal) / (double)sysconf(_SC_CLK_TCK);
}

double own_cpu(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}
