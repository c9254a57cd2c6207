"""A kernel, a controller and an NBD server that do what they are told."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

from vswitchd.errors import Kind, VsError
from vswitchd.host.decide import Link
from vswitchd.host.handshake import Export
from vswitchd.host.kernel import link_of
from vswitchd.host.paths import Paths

IHAVEOPT = 0x49484156454F5054
REPLY = 0x3E889045565A9


class FakeKernel:
    """What drivers/block/nbd.c does with connections: has slots, drops what has no dead one."""

    timeout = 3

    def __init__(self) -> None:
        self.devices: dict[int, tuple[str, int]] = {}
        self.slots = 0
        self.held: dict[Link, socket.socket] = {}
        self.used = False
        self.dropped = 0
        self._near, self.far = socket.socketpair()
        self._near.setblocking(False)

    def _hold(self, connection: socket.socket) -> None:
        copy = connection.dup()
        self.held[link_of("", copy)] = copy

    def connect(
        self,
        index: int | None,
        volume_id: str,
        export: Export,
        connection: socket.socket,
        slots: int,
    ) -> int:
        made = 0 if index is None else index
        self.devices[made] = volume_id, export.size
        self.slots = slots
        self._hold(connection)
        return made

    def reconnect(
        self, index: int, volume_id: str, connection: socket.socket, standing: int
    ) -> bool:
        assert self.devices[index][0] == volume_id
        if len(self.held) >= self.slots:
            self.dropped += 1
        else:
            self._hold(connection)
        return len(self.held) == standing

    def resize(self, index: int, volume_id: str, size: int) -> None:
        assert self.devices[index][0] == volume_id
        self.devices[index] = volume_id, size

    def disconnect(self, index: int) -> None:
        del self.devices[index]
        for held in self.held.values():
            held.close()
        self.held.clear()

    def dead_links(self) -> socket.socket:
        return self._near.dup()

    def size(self, index: int) -> int:
        return self.devices.get(index, ("", 0))[1]

    def find(self, volume_id: str) -> int | None:
        return next((i for i, (v, _) in self.devices.items() if v == volume_id), None)

    def in_use(self, index: int) -> bool:
        assert index in self.devices
        return self.used

    def established(self) -> set[tuple[str, str]]:
        return {(link.local, link.remote) for link in self.held}

    def lose(self, address: str) -> None:
        """The connections to an address die, and the kernel says so."""
        for link in [link for link in self.held if link.remote == address]:
            self.held.pop(link).close()
        self.far.send(b"x")


class FakeController:
    """Answers with what it is told to."""

    def __init__(self, paths: Paths) -> None:
        self.answer: Paths | VsError = paths

    async def paths(self, volume: str) -> Paths:
        if isinstance(self.answer, VsError):
            raise self.answer
        return self.answer


GONE = VsError("VS5001", Kind.UNREACHABLE, "the controller can't be reached; is it running?")

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """An NBD server as far as a handshake goes; `replies` are sent for GO."""

    def __init__(self, replies: list[tuple[int, bytes]], size: int = 1 << 20) -> None:
        self.replies = replies
        self.size = size
        self.address = ""
        self.accepted = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        host, port = self.address.split(":") if self.address else ("127.0.0.1", "0")
        self._server = await asyncio.start_server(self._serve, host, int(port))
        name = self._server.sockets[0].getsockname()
        self.address = f"{name[0]}:{name[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        writer.write(b"NBDMAGIC" + struct.pack(">QH", IHAVEOPT, 3))
        try:
            await reader.readexactly(4)
            _, option, length = struct.unpack(">QII", await reader.readexactly(16))
            await reader.readexactly(length)
        except asyncio.IncompleteReadError:
            writer.close()
            return
        for kind, body in self.replies or served(self.size):
            writer.write(struct.pack(">QIII", REPLY, option, kind, len(body)) + body)
        try:
            await reader.read()
        except asyncio.CancelledError:
            writer.close()


def served(size: int, block: int = 1, flags: int = 0x1ED) -> list[tuple[int, bytes]]:
    """The replies of a server that serves."""
    return [
        (3, struct.pack(">HQH", 0, size, flags)),
        (3, struct.pack(">HIII", 3, block, 4096, 1 << 25)),
        (1, b""),
    ]
