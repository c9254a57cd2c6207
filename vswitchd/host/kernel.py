"""The host's kernel: /dev/nbdN made, mended, resized, taken away. All calls block."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from vswitchd.errors import Kind, VsError
from vswitchd.host.decide import Link, established, path_of, printed
from vswitchd.host.handshake import Export, block_size
from vswitchd.host.netlink import NBD

SYSFS = Path("/sys/block")
SECTOR = 512
#: Seconds until the kernel must read from a connection that it was given.
READ = 2.0
_GROUP_OPTION = 1  # NETLINK_ADD_MEMBERSHIP of linux/netlink.h
_SOL_NETLINK = 270
_GENERIC = 16  # NETLINK_GENERIC


def link_of(address: str, connection: socket.socket) -> Link:
    """What a connection will be known by when the kernel has it."""

    def end(name: tuple[str, int]) -> str:
        return printed(socket.inet_pton(connection.family, name[0].partition("%")[0]), name[1])

    return Link(address, end(connection.getsockname()), end(connection.getpeername()))


class Kernel:
    """NBD through netlink and sysfs. `timeout`: seconds for a request on a connection until it is
    tried on another; `hold`: seconds that requests wait when there is no connection at all."""

    def __init__(self, timeout: int, hold: int) -> None:
        self.timeout = timeout
        self._hold = hold

    def connect(
        self,
        index: int | None,
        volume_id: str,
        export: Export,
        connection: socket.socket,
        slots: int,
    ) -> int:
        """Makes a device with room for `slots` connections, of which there is one; returns its
        index. The others are dead from the beginning, and come first, so that the kernel is done
        with them whoever reads: when its workers are late, one rescuer takes all the readers of a
        new device and runs them one after the other, and what comes after a living connection is
        never read (kernel/workqueue.c, rescuer_thread; seen with Linux 6.1)."""
        dead = [socket.socketpair() for _ in range(slots - 1)]
        for _, far in dead:
            far.close()
        try:
            with _Call(index) as nbd:
                return nbd.connect(
                    [*(near.fileno() for near, _ in dead), connection.fileno()],
                    index=index,
                    size=export.size,
                    block_size=block_size(export),
                    server_flags=export.flags,
                    timeout=self.timeout,
                    dead_conn_timeout=self._hold,
                    backend_identifier=volume_id,
                )
        finally:
            for near, _ in dead:
                near.close()

    def reconnect(
        self, index: int, volume_id: str, connection: socket.socket, standing: int
    ) -> bool:
        """Puts a connection in the place of a dead one; if there is none, the kernel closes it.
        Returns when it reads from all that are `standing` then, this one among them, so that no
        two wait for a reader at the same time; False if it does not within READ seconds."""
        with _Call(index) as nbd:
            nbd.reconfigure(index, backend_identifier=volume_id, fds=[connection.fileno()])
        deadline = time.monotonic() + READ
        while self._readers(index) < standing:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    @staticmethod
    def _readers(index: int) -> int:
        """How many of the device's connections the kernel reads from: its workers say what they
        are at (proc(5), comm of a kworker: "+" and the workqueue)."""
        mark = f"+nbd{index}-recv"
        found = 0
        for path in Path("/proc").glob("[0-9]*/comm"):
            with contextlib.suppress(OSError):
                found += path.read_text().strip().endswith(mark)
        return found

    def resize(self, index: int, volume_id: str, size: int) -> None:
        """Sets the device's size in bytes. The kernel would make it smaller under a mount, too."""
        with _Call(index) as nbd:
            nbd.reconfigure(index, backend_identifier=volume_id, size=size)

    def disconnect(self, index: int) -> None:
        """Takes the device away; its users get errors, so ask `in_use` before."""
        with _Call(index) as nbd:
            nbd.disconnect(index)

    def dead_links(self) -> socket.socket:
        """A socket on which something can be read when a connection has died. Not blocking."""
        with _Call(None) as nbd:
            group = nbd.dead_links_group()
        told = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC)
        told.setblocking(False)
        told.bind((0, 0))
        told.setsockopt(_SOL_NETLINK, _GROUP_OPTION, group)
        return told

    @staticmethod
    def size(index: int) -> int:
        """Of a device, in bytes; 0 if there is none."""
        try:
            return int((SYSFS / f"nbd{index}" / "size").read_text()) * SECTOR
        except (OSError, ValueError):
            return 0

    @staticmethod
    def find(volume_id: str) -> int | None:
        """The index of the device that is that volume."""
        for path in SYSFS.glob("nbd*/backend"):
            try:
                if path.read_text().strip() == volume_id:
                    return int(path.parent.name.removeprefix("nbd"))
            except OSError:
                continue
        return None

    @staticmethod
    def in_use(index: int) -> bool:
        """True if it is mounted, swapped on, or a part of another device."""
        try:
            os.close(os.open(path_of(index), os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            return error.errno == errno.EBUSY
        return False

    @staticmethod
    def established() -> set[tuple[str, str]]:
        """Both ends of every TCP connection of this host that stands."""
        tables = []
        for name in ("tcp", "tcp6"):
            path = Path("/proc/net") / name
            if path.exists():
                tables.append(path.read_text())
        return established(tables)


class _Call:
    """One exchange with the kernel; its refusals become VsErrors."""

    def __init__(self, index: int | None) -> None:
        self._index = index
        self._nbd: NBD | None = None

    def __enter__(self) -> NBD:
        try:
            self._nbd = NBD()
        except NetlinkError as error:
            # The family is looked up here: without the module there is none.
            raise _refusal(error.code, self._index) from None
        return self._nbd

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if self._nbd is not None:
            self._nbd.close()
        if isinstance(error, NetlinkError):
            raise _refusal(error.code, self._index) from None


def _refusal(code: int, index: int | None) -> VsError:
    device = "a free /dev/nbdN" if index is None else path_of(index)
    match code:
        case errno.ENOENT | errno.ENOTSUP:
            return VsError(
                "VS3080",
                Kind.PRECONDITION,
                "this host's kernel has no nbd module loaded: `modprobe nbd`, as root",
            )
        case errno.EPERM | errno.EACCES:
            return VsError(
                "VS3081",
                Kind.PRECONDITION,
                "the kernel does not let this process make NBD devices: the host service needs "
                "CAP_SYS_ADMIN, run it as root",
            )
        case errno.EBUSY:
            return VsError(
                "VS3083",
                Kind.PRECONDITION,
                f"{device} belongs to another NBD client: name another device, or none",
            )
    return VsError(
        "VS9080", Kind.INTERNAL, f"the kernel refused {device}: {os.strerror(code)} ({code})"
    )
