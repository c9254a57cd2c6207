"""Disks that can fail in every way: nbdkit in front of a file, told what to do while it runs.

With `forgets` it keeps what it is sent in memory until a flush: to kill it is to cut its power.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.process import guarded, wait_for

MIB = 1 << 20


class Disk:
    """One nbdkit, started again at the same socket after it was killed."""

    def __init__(self, root: Path, name: str, *, error: str = "EIO", forgets: bool = False) -> None:
        """`error`: of writes and zeroes that fail; those of EIO fail everything else too."""
        self.name = name
        self._socket, self._control = root / f"{name}.sock", root / f"{name}.control"
        self._trigger, self._unreadable = root / f"{name}.fails", root / f"{name}.unreadable"
        self._backing = root / f"{name}.backing"
        with self._backing.open("wb") as file:
            file.truncate(256 * MIB)
        self._error, self.forgets = error, forgets
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self._socket}"

    def start(self) -> None:
        """Starts it and waits until it listens."""
        for sock in (self._socket, self._control):
            sock.unlink(missing_ok=True)
        filters = ["--filter=pause", "--filter=error"]
        options = [f"pause-control={self._control}"]
        options += ["error-pread=EIO", "error-pread-rate=100%"]
        options += [f"error-pread-file={self._unreadable}"]
        for op in ("pwrite", "zero", "trim"):
            options += [f"error-{op}={self._error}", f"error-{op}-rate=100%"]
            options += [f"error-{op}-file={self._trigger}"]
        if self.forgets:
            filters += ["--filter=cache"]
            options += ["cache=writeback"]
        # With several threads nbdkit 1.32 aborts when its client is killed in a reply's middle.
        argv = ["nbdkit", "-f", "-t", "1", "-U", str(self._socket)]
        argv += [*filters, "file", str(self._backing)]
        self._process = subprocess.Popen(guarded(*argv, *options))
        wait_for(f"{self.name} to listen", self._socket.exists)

    def is_up(self) -> bool:
        """It has not ended by itself."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """It is gone, and with it whatever it kept in memory."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def fails(self) -> Iterator[None]:
        """While in the block nothing can be written: the disk is broken, or full."""
        self._trigger.touch()
        if self._error == "EIO":
            self._unreadable.touch()
        try:
            yield
        finally:
            self._trigger.unlink()
            self._unreadable.unlink(missing_ok=True)

    @contextmanager
    def unreadable(self) -> Iterator[None]:
        """While in the block nothing can be read."""
        self._unreadable.touch()
        try:
            yield
        finally:
            self._unreadable.unlink()

    @contextmanager
    def stalls(self) -> Iterator[None]:
        """While in the block no request is answered."""
        self._tell(b"p")
        try:
            yield
        finally:
            self._tell(b"r")

    def _tell(self, word: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(30.0)
            control.connect(str(self._control))
            control.sendall(word)
            assert control.recv(1) == word.upper()


@contextmanager
def disks(root: Path, **kinds: dict[str, object]) -> Iterator[dict[str, Disk]]:
    """Disks by name, with `Disk`'s options."""
    made = {name: Disk(root, name, **options) for name, options in kinds.items()}  # type: ignore[arg-type]
    try:
        for disk in made.values():
            disk.start()
        yield made
    finally:
        for disk in made.values():
            disk.kill()
