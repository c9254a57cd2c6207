/* What the parts of the load generator know of each other. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A server that does not say anything for so long has stalled. */
enum { STALL_MS = 10000 };

/* Ends the program with a message. */
__attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...);

/* A connection to HOST:PORT or a path. */
int dial(const char *address);

/* Goes into transmission; returns the export's size. */
uint64_t negotiate(int fd, const char *export);

/* Sends all of it. */
void put(int fd, const void *bytes, size_t length);

/* Seconds of CPU time: of those processes with all their descendants, ended ones too; of this
 * process; of everybody on all processors. */
double servers_cpu(const pid_t *pids, unsigned npids);
double own_cpu(void);
double machine_cpu(void);
