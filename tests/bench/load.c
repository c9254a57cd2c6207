/* A load generator that costs little, so that a run measures the server and not its client: over NBD
 * (simple replies), or over iSCSI where ADDRESS begins with `iscsi:`.
 *
 * One thread keeps DEPTH requests outstanding on each of CONNS connections (answers in any order) and prints one JSON object: rates, latency percentiles, and the CPU time per request of
 * itself and of the given server processes with all their descendants (/proc/PID/stat).
 *
 *   load -a ADDRESS -e EXPORT [-c CONNS] [-d DEPTH] [-b BYTES] [-m rr|rw|sr|sw] [-f N] [-n SPAN]
 *        [-t SECONDS] [-w WARMUP] [-p PID,PID..]
 *   load -a ADDRESS -e EXPORT -b BYTES -n SPAN -1      write the span once
 *
 * ADDRESS is HOST:PORT (numeric) or a path; over iSCSI EXPORT is the target's name and /LUN. -f N: every N-th write carries FUA.
 */
#define _GNU_SOURCE
#include "load.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { MAX_PIDS = 16, BATCH = 64, RECEIVE = 1 << 18 };

/* A slot is one request's place; its index in the connection is its name on the wire. */
struct slot {
    uint8_t request[MAX_HEADER];
    uint64_t started;
};

struct conn {
    int fd;
    struct slot *slots;
    unsigned *queue;          /* ring of slots not yet wholly sent */
    unsigned head, queued;
    size_t sent;              /* bytes of the queue's first slot that are out */
    uint8_t in[MAX_HEADER];
    size_t have;              /* bytes of `in` */
    struct answer answer;     /* what it says; its payload counts down */
    uint64_t next;            /* where a sequential run goes on */
};

static const struct protocol *protocol = &nbd;
static struct conn conns[MAX_CONNS];
static unsigned nconns = 1, depth = 32, fua_every, npids;
static size_t block = 4096;
static uint64_t span = UINT64_MAX, writes, completed, outstanding, unissued = UINT64_MAX, now;
static bool sequential, writing, measuring, draining;
static pid_t pids[MAX_PIDS];
static uint8_t *data, *inbox;

void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t random64(void) { /* splitmix64 */
    static uint64_t state = 20250607;
    uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Latencies: a histogram of 32 steps per power of two of nanoseconds (3 % each). */
enum { STEPS = 32, STEP_BITS = 5 };
static uint64_t histogram[64 * STEPS];

static void record(uint64_t ns) {
    unsigned top = 63u - (unsigned)__builtin_clzll(ns | STEPS);
    unsigned shift = top - STEP_BITS;
    histogram[shift * STEPS + (unsigned)(ns >> shift)]++;
}

static double percentile_us(double share) {
    uint64_t total = 0, seen = 0;
    for (unsigned i = 0; i < 64 * STEPS; i++) total += histogram[i];
    for (unsigned i = 0; i < 64 * STEPS; i++) {
        seen += histogram[i];
        if (total && (double)seen >= share * (double)total) {
            unsigned shift = i < 2 * STEPS ? 0 : i / STEPS - 1;
            return ((double)((uint64_t)(i - shift * STEPS) << shift) + (double)(1ull << shift) / 2) / 1e3;
        }
    }
    return 0;
}

/* Requests. */
static void issue(struct conn *c, unsigned at) {
    if (!unissued) return;
    unissued--;
    uint64_t offset;
    if (sequential) {
        offset = c->next;
        c->next = offset + 2 * block > span ? 0 : offset + block;
    } else {
        offset = random64() % (span / block) * block;
    }
    bool fua = writing && fua_every && ++writes % fua_every == 0;
    struct slot *slot = &c->slots[at];
    protocol->request((unsigned)(c - conns), slot->request, at, writing, fua, offset, (uint32_t)block);
    slot->started = now;
    c->queue[(c->head + c->queued++) % depth] = at;
    outstanding++;
}

/* Sends what is queued, as much as the socket takes. */
static void push(struct conn *c) {
    size_t body = writing ? block : 0, header = protocol->request_length, whole = header + body;
    while (c->queued) {
        struct iovec parts[2 * BATCH];
        size_t n = 0, skip = c->sent, total = 0;
        for (unsigned k = 0; k < c->queued && k < BATCH; k++) {
            struct slot *slot = &c->slots[c->queue[(c->head + k) % depth]];
            if (skip < header)
                parts[n++] = (struct iovec){slot->request + skip, header - skip};
            skip = skip < header ? 0 : skip - header;
            if (body) parts[n++] = (struct iovec){data + skip, body - skip};
            skip = 0;
        }
        for (size_t k = 0; k < n; k++) total += parts[k].iov_len;
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = n};
        ssize_t went = sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (went < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (went < 0) die("send: %s", strerror(errno));
        c->sent += (size_t)went;
        for (; c->queued && c->sent >= whole; c->sent -= whole) {
            c->head = (c->head + 1) % depth;
            c->queued--;
        }
        if ((size_t)went < total) return;
    }
}

static void answered(struct conn *c, unsigned at) {
    completed++;
    outstanding--;
    if (measuring) record(now - c->slots[at].started);
    if (!draining) issue(c, at);
}

static void digest(struct conn *c, const uint8_t *bytes, size_t length) {
    size_t header = protocol->answer_length;
    while (length) {
        size_t take;
        if (c->have == header) {
            take = length < c->answer.payload ? length : c->answer.payload;
            c->answer.payload -= take;
        } else {
            take = header - c->have;
            if (take > length) take = length;
            memcpy(c->in + c->have, bytes, take);
            c->have += take;
            if (c->have == header) {
                c->answer = protocol->answer((unsigned)(c - conns), c->in, writing, block);
                if (c->answer.ends && c->answer.slot >= depth) die("an answer to no request");
            }
        }
        if (c->have == header && !c->answer.payload) {
            c->have = 0;
            if (c->answer.ends) answered(c, c->answer.slot);
        }
        bytes += take;
        length -= take;
    }
}

static void pull(struct conn *c, int flags) {
    ssize_t came = recv(c->fd, inbox, RECEIVE, flags);
    now = clock_ns();
    if (came == 0) die("the server closed the connection");
    if (came < 0 && errno == EAGAIN && flags) return;
    if (came < 0) die("receive: %s", strerror(errno));
    digest(c, inbox, (size_t)came);
    push(c);
}

/* Waits for something and does it. */
static void turn(void) {
    if (nconns == 1 && !conns[0].queued) {
        pull(&conns[0], 0);
        return;
    }
    struct pollfd polled[MAX_CONNS];
    for (unsigned i = 0; i < nconns; i++)
        polled[i] = (struct pollfd){conns[i].fd, POLLIN | (conns[i].queued ? POLLOUT : 0), 0};
    if (poll(polled, nconns, STALL_MS) <= 0) die("the server has stalled");
    now = clock_ns();
    for (unsigned i = 0; i < nconns; i++) {
        if (polled[i].revents & ~POLLOUT) pull(&conns[i], MSG_DONTWAIT);
        else if (polled[i].revents) push(&conns[i]);
    }
}

static void farewell(void) {
    for (unsigned i = 0; i < nconns; i++) {
        protocol->farewell(i, conns[i].fd);
        close(conns[i].fd);
    }
}

int main(int argc, char **argv) {
    const char *address = "", *export = "", *mode = "rr";
    double seconds = 1, warmup = 0.2;
    bool once = false;
    for (int option; (option = getopt(argc, argv, "a:e:c:d:b:m:f:n:t:w:p:1")) != -1;) switch (option) {
        case 'a': address = optarg; break;
        case 'e': export = optarg; break;
        case 'c': nconns = (unsigned)atoi(optarg); break;
        case 'd': depth = (unsigned)atoi(optarg); break;
        case 'b': block = strtoul(optarg, NULL, 10); break;
        case 'm': mode = optarg; break;
        case 'f': fua_every = (unsigned)atoi(optarg); break;
        case 'n': span = strtoull(optarg, NULL, 10); break;
        case 't': seconds = atof(optarg); break;
        case 'w': warmup = atof(optarg); break;
        case '1': once = true; break;
        case 'p':
            for (char *p = strtok(optarg, ","); p && npids < MAX_PIDS; p = strtok(NULL, ","))
                pids[npids++] = atoi(p);
            break;
        default: return 2;
    }
    if (!strncmp(address, "iscsi:", 6)) protocol = &iscsi, address += 6;
    if (once) mode = "sw", nconns = 1;
    if (!nconns || nconns > MAX_CONNS || !depth || !block || strlen(mode) != 2) die("bad options");
    sequential = mode[0] == 's';
    writing = mode[1] == 'w';
    data = malloc(block + 8);
    inbox = malloc(RECEIVE);
    if (!data || !inbox) die("no memory");
    for (size_t i = 0; i < block; i += 8) memcpy(data + i, &(uint64_t){random64()}, 8);

    for (unsigned i = 0; i < nconns; i++) {
        struct conn *c = &conns[i];
        c->fd = dial(address);
        uint64_t size = protocol->negotiate(i, c->fd, export, block);
        if (size < span) span = size;
        if (span < block) die("export '%s' has only %lu bytes", export, (unsigned long)size);
        c->slots = calloc(depth, sizeof *c->slots);
        c->queue = calloc(depth, sizeof *c->queue);
        if (!c->slots || !c->queue) die("no memory");
        c->next = span / block / nconns * i * block;
    }
    if (once) unissued = span / block;
    now = clock_ns();
    for (unsigned i = 0; i < nconns; i++) {
        for (unsigned k = 0; k < depth; k++) issue(&conns[i], k);
        push(&conns[i]);
    }
    if (once) {
        while (outstanding) turn();
        farewell();
        return 0;
    }

    uint64_t start = now + (uint64_t)(warmup * 1e9);
    while (now < start) turn();
    uint64_t before = completed;
    double servers = servers_cpu(pids, npids), own = own_cpu(), machine = machine_cpu();
    start = now = clock_ns();
    measuring = true;
    uint64_t end = start + (uint64_t)(seconds * 1e9);
    while (now < end) turn();
    measuring = false;
    machine = machine_cpu() - machine;
    own = own_cpu() - own;
    servers = servers_cpu(pids, npids) - servers;
    double took = (double)(now - start) / 1e9, done = (double)(completed - before);
    if (done == 0) die("nothing completed");
    printf("{\"iops\": %.1f, \"mb_s\": %.2f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"server_cpu_us\": %.3f, \"client_cpu_us\": %.3f, \"server_cores\": %.3f, "
           "\"client_cores\": %.3f, \"other_cores\": %.3f, \"requests\": %.0f, \"seconds\": %.3f}\n",
           done / took, done * (double)block / took / 1e6, percentile_us(0.5), percentile_us(0.99),
           npids ? servers * 1e6 / done : 0, own * 1e6 / done, servers / took, own / took,
           npids ? (machine - servers - own) / took : 0, done, took);
    fflush(stdout);
    draining = true;
    while (outstanding) turn();
    farewell();
    return 0;
}
