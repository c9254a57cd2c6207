"""The NBD handshake before a connection is given to the kernel (NBD protocol document, "Fixed
newstyle negotiation"). Only what nbd.ko speaks afterwards is asked for: simple replies.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

from vswitchd.errors import Kind, VsError

#: Seconds for the TCP connection, and for each answer.
PATIENCE = 2.0
#: An answer to an option is at most so long; ours are far shorter.
MAX_REPLY = 65536
MAX_REPLIES = 64

_IHAVEOPT = 0x49484156454F5054
_REPLY = 0x3E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_GO = 7
_ACK, _INFO = 1, 3
_ERROR = 1 << 31
_ERR_UNKNOWN = _ERROR + 6
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3


@dataclass(frozen=True)
class Export:
    """What a server said of an export: bytes, transmission flags, the smallest block in bytes."""

    size: int
    flags: int
    minimum_block: int


def block_size(export: Export) -> int:
    """The logical block size for the kernel, which takes 512 up to a page: the server's smallest,
    so that a filesystem made through any other client has the same sectors."""
    return min(max(export.minimum_block, 512), os.sysconf("SC_PAGE_SIZE"))


def connect(address: str, export: str, timeout: int) -> tuple[socket.socket, Export]:
    """A connection to `host:port` in transmission on the export. Blocks at most for PATIENCE with
    each answer. `timeout`: seconds after which the kernel tries a request on another connection.
    VsError VS5080 says why there is none."""
    host, _, port = address.rpartition(":")
    try:
        link = socket.create_connection((host.strip("[]"), int(port)), PATIENCE)
    except OSError as error:
        raise _failed(address, error.strerror or str(error)) from None
    try:
        _tune(link, timeout)
        found = _go(link, address, export)
        link.settimeout(None)
    except OSError as error:
        link.close()
        raise _failed(address, error.strerror or "it does not answer") from None
    except BaseException:
        link.close()
        raise
    return link, found


def _failed(address: str, why: str) -> VsError:
    return VsError("VS5080", Kind.UNREACHABLE, f"{address}: {why}")


def _tune(link: socket.socket, timeout: int) -> None:
    """A peer whose machine is gone sends nothing: the kernel must find out, not the filesystem.

    And what hangs in the network must not arrive after its request was tried elsewhere: the kernel
    throws away what was not acknowledged for TCP_USER_TIMEOUT (RFC 5482; tcp_timer.c counts from
    when it was first sent again), so that has to be well below the request's own time.
    """
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Unanswered probes of an idle connection count by TCP_USER_TIMEOUT as well.
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout * 500)


def _receive(link: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        got = link.recv(length - len(parts))
        if not got:
            raise ConnectionResetError(0, "it closed the connection")
        parts += got
    return bytes(parts)


def _go(link: socket.socket, address: str, export: str) -> Export:
    magic, option, flags = struct.unpack(">8sQH", _receive(link, 18))
    if (magic, option) != (b"NBDMAGIC", _IHAVEOPT) or not flags & _FIXED_NEWSTYLE:
        raise _failed(address, "that is no NBD server of today")
    name = export.encode()
    # Of what a server knows only the block sizes are asked for: it tells the size in any case.
    body = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
    link.sendall(
        struct.pack(">IQII", flags & (_FIXED_NEWSTYLE | _NO_ZEROES), _IHAVEOPT, _OPT_GO, len(body))
        + body
    )
    size, transmission, minimum = None, 0, 1
    for _ in range(MAX_REPLIES):
        magic, _, kind, length = struct.unpack(">QIII", _receive(link, 20))
        if magic != _REPLY or length > MAX_REPLY:
            raise _failed(address, "its answer is no NBD")
        reply = _receive(link, length)
        if kind == _ERR_UNKNOWN:
            raise _failed(address, f"it does not serve {export!r}")
        if kind & _ERROR:
            raise _failed(address, reply.decode(errors="replace") or f"refused ({kind:#x})")
        if kind == _ACK and size is not None:
            return Export(size, transmission, minimum)
        if kind == _INFO and length >= 2:
            (what,) = struct.unpack(">H", reply[:2])
            if what == _INFO_EXPORT and length == 12:
                size, transmission = struct.unpack(">QH", reply[2:])
            elif what == _INFO_BLOCK_SIZE and length == 14:
                (minimum,) = struct.unpack(">I", reply[2:6])
    raise _failed(address, "it never came to an end with its greeting")
