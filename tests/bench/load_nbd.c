/* NBD: the handshake, requests, simple replies. */
#define _GNU_SOURCE
#include "load.h"

#include <endian.h>
#include <string.h>

#define OPTION_MAGIC UINT64_C(0x49484156454f5054)
#define GREETING_MAGIC UINT64_C(0x4e42444d41474943)
#define OPTION_REPLY_MAGIC UINT64_C(0x3e889045565a9)
#define REQUEST_MAGIC 0x25609513u
#define REPLY_MAGIC 0x67446698u
enum { OPT_GO = 7, REP_ACK = 1, REP_INFO = 3, INFO_EXPORT = 0 };
enum { CMD_READ = 0, CMD_WRITE = 1, CMD_DISC = 2, FLAG_FUA = 1 };

struct request {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie, offset;
    uint32_t length;
} __attribute__((packed));

struct reply {
    uint32_t magic, error;
    uint64_t cookie;
} __attribute__((packed));

static uint64_t negotiate(unsigned conn, int fd, const char *export, size_t block) {
    (void)conn, (void)block;
    struct {
        uint64_t magic, option_magic;
        uint16_t flags;
    } __attribute__((packed)) greeting;
    get(fd, &greeting, sizeof greeting);
    if (be64toh(greeting.magic) != GREETING_MAGIC || be64toh(greeting.option_magic) != OPTION_MAGIC)
        die("not a newstyle NBD server");
    uint32_t name = (uint32_t)strlen(export), length = name + 6;
    struct {
        uint32_t client_flags;
        uint64_t magic;
        uint32_t option, length, name;
    } __attribute__((packed)) go = {
        htobe32(be16toh(greeting.flags) & 3), htobe64(OPTION_MAGIC), htobe32(OPT_GO),
        htobe32(length), htobe32(name),
    };
    uint8_t message[sizeof go + 4096 + 2] = {0};
    if (name > 4096) die("the export's name is too long");
    memcpy(message, &go, sizeof go);
    memcpy(message + sizeof go, export, name);
    put(fd, message, sizeof go + name + 2); /* two zero bytes: no information is asked for */
    for (uint64_t size = 0;;) {
        struct {
            uint64_t magic;
            uint32_t option, type, length;
        } __attribute__((packed)) answer;
        uint8_t body[4096];
        get(fd, &answer, sizeof answer);
        length = be32toh(answer.length);
        if (be64toh(answer.magic) != OPTION_REPLY_MAGIC || length > sizeof body)
            die("not an answer to an option");
        if (length) get(fd, body, length);
        uint32_t type = be32toh(answer.type);
        if (type == REP_ACK) return size;
        if (type != REP_INFO) die("export '%s' refused: %#x %.*s", export, type, (int)length, body);
        if (length == 12 && !body[0] && body[1] == INFO_EXPORT) {
            memcpy(&size, body + 2, 8);
            size = be64toh(size);
        }
    }
}

static void request(unsigned conn, uint8_t *header, unsigned slot, bool writes, bool fua,
                    uint64_t offset, uint32_t length) {
    (void)conn;
    struct request request = {
        htobe32(REQUEST_MAGIC), htobe16(fua ? FLAG_FUA : 0), htobe16(writes ? CMD_WRITE : CMD_READ),
        slot, htobe64(offset), htobe32(length),
    };
    memcpy(header, &request, sizeof request);
}

static struct answer answer(unsigned conn, const uint8_t *header, bool writing, size_t block) {
    (void)conn;
    struct reply reply;
    memcpy(&reply, header, sizeof reply);
    if (be32toh(reply.magic) != REPLY_MAGIC) die("not a simple reply");
    if (reply.error) die("the server says error %u", be32toh(reply.error));
    if (reply.cookie > UINT32_MAX) die("an answer to no request");
    return (struct answer){writing ? 0 : block, (unsigned)reply.cookie, true};
}

static void farewell(unsigned conn, int fd) {
    (void)conn;
    struct request request = {htobe32(REQUEST_MAGIC), 0, htobe16(CMD_DISC), 0, 0, 0};
    put(fd, &request, sizeof request);
}

const struct protocol nbd = {
    sizeof(struct request), sizeof(struct reply), negotiate, request, answer, farewell,
};
