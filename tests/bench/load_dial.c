/* Connecting: blocking, in order. */
#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

void put(int fd, const void *bytes, size_t length) {
    if (send(fd, bytes, length, MSG_NOSIGNAL) != (ssize_t)length) die("send: %s", strerror(errno));
}

void get(int fd, void *bytes, size_t length) {
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
