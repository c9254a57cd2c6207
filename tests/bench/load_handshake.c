/* Connecting, and the handshake: blocking, in order. */
#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#define OPTION_MAGIC UINT64_C(0x49484156454f5054)
#define GREETING_MAGIC UINT64_C(0x4e42444d41474943)
#define OPTION_REPLY_MAGIC UINT64_C(0x3e889045565a9)
enum { OPT_GO = 7, REP_ACK = 1, REP_INFO = 3, INFO_EXPORT = 0 };

void put(int fd, const void *bytes, size_t length) {
    if (send(fd, bytes, length, MSG_NOSIGNAL) != (ssize_t)length) die("send: %s", strerror(errno));
}

static void get(int fd, void *bytes, size_t length) {
    if (recv(fd, bytes, length, MSG_WAITALL) != (ssize_t)length)
        die("the server closed the connection in the handshake");
}

int dial(const char *address) {
    union {
        struct sockaddr any;
        struct sockaddr_un path;
        struct sockaddr_in host;
    } to = {0};
    socklen_t length;
    if (strchr(address, '/')) {
        to.path.sun_family = AF_UNIX;
        if (strlen(address) >= sizeof to.path.sun_path) die("%s: too long", address);
        strcpy(to.path.sun_path, address);
        length = sizeof to.path;
    } else {
        char host[64];
        const char *colon = strrchr(address, ':');
        if (!colon || (size_t)(colon - address) >= sizeof host) die("%s: not HOST:PORT", address);
        memcpy(host, address, (size_t)(colon - address));
        host[colon - address] = 0;
        to.host.sin_family = AF_INET;
        to.host.sin_port = htons((uint16_t)atoi(colon + 1));
        if (inet_pton(AF_INET, host, &to.host.sin_addr) != 1) die("%s: not an address", host);
        length = sizeof to.host;
    }
    int fd = socket(to.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0 || connect(fd, &to.any, length)) die("%s: %s", address, strerror(errno));
    if (to.any.sa_family == AF_INET) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct timeval limit = {STALL_MS / 1000, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
}

uint64_t negotiate(int fd, const char *export) {
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
