/* iSCSI (RFC 7143): a login without digests, READ(10) and WRITE(10) with their data in the command's
 * PDU. A target that does not take so much data at once is not measured with it. */
#define _GNU_SOURCE
#include "load.h"

#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COMMAND = 0x01, LOGIN = 0x43, LOGOUT = 0x46, NOP_OUT = 0x40 };
enum { RESPONSE = 0x21, DATA_IN = 0x25, NOP_IN = 0x20 };
enum { READ_10 = 0x28, WRITE_10 = 0x2a, READ_CAPACITY_10 = 0x25, SECTOR = 512 };

/* What each connection has said: its next command's number, its unit. */
static struct {
    uint32_t command;
    uint8_t unit;
    int fd;
} said[MAX_CONNS];

static void word(uint8_t *header, unsigned at, uint32_t value) {
    value = htobe32(value);
    memcpy(header + at, &value, 4);
}

static uint32_t word_at(const uint8_t *header, unsigned at) {
    uint32_t value;
    memcpy(&value, header + at, 4);
    return be32toh(value);
}

static size_t data_length(const uint8_t *header) {
    return word_at(header, 4) & 0xffffff;
}

static size_t padded(size_t length) {
    return (length + 3) & ~(size_t)3;
}

/* An answer's header and its data. */
static size_t receive(int fd, uint8_t *header, uint8_t *data, size_t room) {
    get(fd, header, MAX_HEADER);
    size_t length = padded(data_length(header));
    if (length > room) die("an answer of %zu bytes", length);
    if (length) get(fd, data, length);
    return data_length(header);
}

/* A command that is answered before the next. */
static size_t command(unsigned conn, const uint8_t *cdb, uint32_t expected, uint8_t *data) {
    uint8_t header[MAX_HEADER] = {COMMAND, 0xc0};
    header[9] = said[conn].unit;
    word(header, 16, 1);
    word(header, 20, expected);
    word(header, 24, said[conn].command++);
    memcpy(header + 32, cdb, 10);
    put(said[conn].fd, header, sizeof header);
    size_t got = 0;
    for (;;) {
        uint8_t body[4096];
        size_t length = receive(said[conn].fd, header, body, sizeof body);
        if (header[0] == DATA_IN) {
            if (length > expected) die("more than was asked for");
            memcpy(data, body, length);
            got = length;
            if (header[1] & 1) return got;
        } else if (header[0] == RESPONSE) {
            return header[3] ? 0 : got;
        }
    }
}

/* The number that the target has agreed to, or the one that holds if it says nothing. */
static unsigned long agreed(const char *keys, size_t length, const char *key, unsigned long other) {
    size_t name = strlen(key);
    for (const char *at = keys; at < keys + length; at += strlen(at) + 1)
        if (!strncmp(at, key, name) && at[name] == '=') return strtoul(at + name + 1, NULL, 10);
    return other;
}

static uint64_t negotiate(unsigned conn, int fd, const char *export, size_t block) {
    char target[256], keys[1024];
    const char *slash = strrchr(export, '/');
    if (!slash || (size_t)(slash - export) >= sizeof target) die("%s: not TARGET/LUN", export);
    memcpy(target, export, (size_t)(slash - export));
    target[slash - export] = 0;
    said[conn].unit = (uint8_t)atoi(slash + 1);
    said[conn].fd = fd;
    said[conn].command = 1;
    int length = snprintf(
        keys, sizeof keys,
        "InitiatorName=iqn.2026-11.test:load%cTargetName=%s%cSessionType=Normal%c"
        "HeaderDigest=None%cDataDigest=None%cMaxRecvDataSegmentLength=262144%c"
        "MaxBurstLength=1048576%cFirstBurstLength=262144%cInitialR2T=Yes%cImmediateData=Yes%c",
        0, target, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    memset(keys + length, 0, sizeof keys - (size_t)length);
    char answer[4096];
    size_t got = 0;
    uint8_t header[MAX_HEADER];
    uint32_t status = 0;
    /* Some have more to say before they go on. */
    for (int round = 0;; round++) {
        if (round == 4) die("%s: the login does not end", target);
        memset(header, 0, sizeof header);
        header[0] = LOGIN;
        header[1] = 0x87;
        header[8] = 0x80;
        header[13] = (uint8_t)conn;
        word(header, 4, (uint32_t)length);
        word(header, 24, said[conn].command);
        word(header, 28, status);
        put(fd, header, sizeof header);
        if (length) put(fd, keys, padded((size_t)length));
        got += receive(fd, header, (uint8_t *)answer + got, sizeof answer - got);
        if (header[36] || header[37])
            die("%s: the login is refused: %02x%02x", target, header[36], header[37]);
        if ((header[1] & 0x83) == 0x83) break;
        status = word_at(header, 24) + 1;
        length = 0;
    }
    if (block > agreed(answer, got, "MaxRecvDataSegmentLength", 8192)
        || block > agreed(answer, got, "FirstBurstLength", 65536))
        die("%s: takes no %zu bytes with a command", target, block);
    uint8_t cdb[10] = {READ_CAPACITY_10}, capacity[8] = {0};
    /* The first commands are told what has happened before. */
    for (int i = 0; i < 8; i++)
        if (command(conn, cdb, sizeof capacity, capacity) == sizeof capacity)
            return ((uint64_t)word_at(capacity, 0) + 1) * SECTOR;
    die("%s: no capacity", export);
}

static void request(unsigned conn, uint8_t *header, unsigned slot, bool writes, bool fua,
                    uint64_t offset, uint32_t length) {
    memset(header, 0, MAX_HEADER);
    header[0] = COMMAND;
    header[1] = writes ? 0xa1 : 0xc1;
    word(header, 4, writes ? length : 0);
    header[9] = said[conn].unit;
    word(header, 16, slot);
    word(header, 20, length);
    word(header, 24, said[conn].command++);
    header[32] = writes ? WRITE_10 : READ_10;
    header[33] = fua ? 0x08 : 0;
    word(header, 34, (uint32_t)(offset / SECTOR));
    header[39] = (uint8_t)(length / SECTOR >> 8);
    header[40] = (uint8_t)(length / SECTOR);
}

static struct answer answer(unsigned conn, const uint8_t *header, bool writing, size_t block) {
    (void)writing, (void)block;
    size_t payload = padded(data_length(header));
    uint32_t slot = word_at(header, 16);
    switch (header[0]) {
    case DATA_IN:
        return (struct answer){payload, slot, header[1] & 1};
    case RESPONSE:
        if (header[2] || header[3]) die("a command failed: %02x %02x", header[2], header[3]);
        return (struct answer){payload, slot, true};
    case NOP_IN:
        /* It wants to know whether anybody is there. */
        if (word_at(header, 20) != UINT32_MAX) {
            uint8_t here[MAX_HEADER] = {NOP_OUT, 0x80};
            word(here, 16, UINT32_MAX);
            memcpy(here + 20, header + 20, 4);
            word(here, 24, said[conn].command);
            put(said[conn].fd, here, sizeof here);
        }
        return (struct answer){payload, 0, false};
    default:
        die("an answer of type %#x", header[0]);
    }
}

static void farewell(unsigned conn, int fd) {
    uint8_t header[MAX_HEADER] = {LOGOUT, 0x80};
    word(header, 16, UINT32_MAX - 1);
    word(header, 24, said[conn].command);
    put(fd, header, sizeof header);
    get(fd, header, sizeof header);
}

const struct protocol iscsi = {MAX_HEADER, MAX_HEADER, negotiate, request, answer, farewell};
