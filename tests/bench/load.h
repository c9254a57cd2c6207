/* What the parts of the load generator know of each other. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A server that does not say anything for so long has stalled. */
enum { STALL_MS = 10000 };

/* Ends the program with a message. */
__attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...);

/* A connection to HOST:PORT or a path. */
int dial(const char *address);

/* Sends, or receives, all of it. */
void put(int fd, const void *bytes, size_t length);
void get(int fd, void *bytes, size_t length);

enum { MAX_CONNS = 256, MAX_HEADER = 48 };

/* What a header of an answer says: how many bytes are behind it, and which request is over then. */
struct answer {
    size_t payload;
    unsigned slot;
    bool ends;
};

/* How requests and answers look. `conn` is the connection's index. */
struct protocol {
    size_t request_length, answer_length;
    /* Goes as far as the first request of so many bytes; returns the size of what is served. */
    uint64_t (*negotiate)(unsigned conn, int fd, const char *export, size_t block);
    /* Makes a request's header; a write's bytes follow it. */
    void (*request)(unsigned conn, uint8_t *header, unsigned slot, bool writes, bool fua,
                    uint64_t offset, uint32_t length);
    struct answer (*answer)(unsigned conn, const uint8_t *header, bool writing, size_t block);
    void (*farewell)(unsigned conn, int fd);
};

extern const struct protocol nbd, iscsi;

/* Seconds of CPU time: of those processes with all their descendants, ended ones too; of this
 * process; of everybody on all processors. */
double servers_cpu(const pid_t *pids, unsigned npids);
double own_cpu(void);
double machine_cpu(void);
