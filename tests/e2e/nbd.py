"""A plain NBD client, so that tests can stamp, check, and misbehave on purpose.

Fixed newstyle with simple replies, one request at a time (the protocol document of the NBD
project; numbers are its own). Real clients are in `test_clients.py`.
"""

from __future__ import annotations

import contextlib
import socket
import struct

IHAVEOPT = 0x49484156454F5054
REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO = 1, 2, 3, 6, 7
REP_ACK, REP_SERVER, REP_INFO = 1, 2, 3
REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_ERR_TOO_BIG = (1 << 31) + 6, (1 << 31) + 1, (1 << 31) + 9
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3

READ, WRITE, DISC, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FUA = 1

EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 5, 22, 28, 75, 95, 108


class RefusedError(Exception):
    """The server refused an option; `reply` is its type."""

    def __init__(self, reply: int, text: str) -> None:
        super().__init__(f"refused with {reply:#x}: {text}")
        self.reply = reply
        self.text = text


class NbdError(Exception):
    """A request was answered with an error; `number` is the protocol's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"NBD error {number}")
        self.number = number


class Client:
    """One connection to `host:port` or to a unix socket's path.

    A lost connection is a ConnectionError; a server that hangs is a TimeoutError.
    """

    def __init__(self, address: str, export: str | None = None, *, seconds: float = 60.0) -> None:
        if address.startswith("/"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(seconds)
            self.socket.connect(address)
        else:
            host, _, port = address.rpartition(":")
            self.socket = socket.create_connection((host, int(port)), seconds)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.handle = 0
        self.size = 0
        self.flags = 0
        try:
            magic, option, _ = struct.unpack(">8sQH", self.receive(18))
            assert (magic, option) == (b"NBDMAGIC", IHAVEOPT)
            self.socket.sendall(struct.pack(">I", 3))
            if export is not None:
                self.go(export)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Says goodbye if the connection still stands."""
        with contextlib.suppress(OSError):
            self.send(DISC)
        self.socket.close()

    def receive(self, length: int) -> bytes:
        """Exactly that many bytes."""
        parts = bytearray()
        while len(parts) < length:
            got = self.socket.recv(min(length - len(parts), 1 << 20))
            if not got:
                raise ConnectionResetError("the server closed the connection")
            parts += got
        return bytes(parts)

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Sends an option; its replies up to and without the ACK. RefusedError on an error."""
        self.socket.sendall(struct.pack(">QII", IHAVEOPT, option, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while True:
            magic, echoed, kind, length = struct.unpack(">QIII", self.receive(20))
            assert (magic, echoed) == (REPLY_MAGIC, option)
            body = self.receive(length)
            if kind >= 1 << 31:
                raise RefusedError(kind, body.decode(errors="replace"))
            if kind == REP_ACK:
                return replies
            replies.append((kind, body))

    def list(self) -> list[str]:
        """The names of the exports."""
        names = []
        for _, body in self.option(OPT_LIST):
            length = struct.unpack(">I", body[:4])[0]
            names.append(body[4 : 4 + length].decode())
        return names

    def go(self, export: str) -> None:
        """Enters transmission on an export."""
        name = export.encode()
        for kind, body in self.option(OPT_GO, struct.pack(">I", len(name)) + name + b"\0\0"):
            if kind == REP_INFO and struct.unpack(">H", body[:2])[0] == INFO_EXPORT:
                self.size, self.flags = struct.unpack(">QH", body[2:12])

    def send(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        data: bytes = b"",
        flags: int = 0,
        magic: int = REQUEST_MAGIC,
    ) -> None:
        """Sends one request as it is told, right or wrong."""
        self.handle += 1
        head = struct.pack(">IHHQQI", magic, flags, command, self.handle, offset, length)
        self.socket.sendall(head + data)

    def answer(self, length: int = 0) -> bytes:
        """The reply to the last request; NbdError if it is an error."""
        magic, error, handle = struct.unpack(">IIQ", self.receive(16))
        assert (magic, handle) == (SIMPLE_MAGIC, self.handle)
        if error:
            raise NbdError(error)
        return self.receive(length)

    def read(self, offset: int, length: int) -> bytes:
        """Reads."""
        self.send(READ, offset, length)
        return self.answer(length)

    def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        """Writes; returns when it is acknowledged."""
        self.send(WRITE, offset, len(data), data, FUA if fua else 0)
        self.answer()

    def flush(self) -> None:
        """Returns when every write acknowledged before is durable."""
        self.send(FLUSH)
        self.answer()

    def trim(self, offset: int, length: int) -> None:
        """Discards."""
        self.send(TRIM, offset, length)
        self.answer()

    def zero(self, offset: int, length: int) -> None:
        """Writes zeroes."""
        self.send(WRITE_ZEROES, offset, length)
        self.answer()
