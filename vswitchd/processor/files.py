"""Small files that a crash leaves old or new: written beside, fsynced, renamed, then the directory
fsynced."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Protocol

from vswitchd.errors import Kind, VsError


class Files(Protocol):
    """Texts by name. Every change is durable when its method returns; what can't be written is
    VsError VS9022, and nothing has changed then."""

    def names(self) -> list[str]:
        """All there are, in order."""
        ...

    def read(self, name: str) -> str: ...
    def write(self, name: str, text: str) -> None: ...
    def rename(self, name: str, into: str) -> None:
        """Takes the place of `into`, in the same directory."""
        ...

    def remove(self, *names: str, durable: bool = True) -> None:
        """Those that are not there are fine. Not `durable`: after a crash they may be back."""
        ...

    def where(self, name: str = "") -> str:
        """What people call it."""
        ...

    def close(self) -> None: ...


class Directory:
    """`Files` in a directory, which one process has open at a time. A name is a file, or a file
    in a directory one level below."""

    def __init__(self, path: Path) -> None:
        """Opens it, or makes it. VsError VS3027: a process has it open."""
        self._path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            #: Held, for as long as this object is, against a second process.
            self._lock = (path / "lock").open("w")
        except OSError as error:
            raise _cannot("use", path, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise VsError(
                "VS3027",
                Kind.PRECONDITION,
                f"another process has {path} open; end it, or give this SP its own --state",
            ) from None

    def close(self) -> None:
        """Lets another process have the directory."""
        self._lock.close()

    def where(self, name: str = "") -> str:
        return str(self._path / name)

    def names(self) -> list[str]:
        found = [path for path in self._path.rglob("*.json") if path.is_file()]
        return sorted(str(path.relative_to(self._path)) for path in found)

    def read(self, name: str) -> str:
        path = self._path / name
        try:
            return path.read_text(errors="replace")
        except OSError as error:
            raise _cannot("read", path, error) from None

    def write(self, name: str, text: str) -> None:
        path = self._path / name
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise _cannot("write", path, error) from None
        write_durably(path, text)

    def rename(self, name: str, into: str) -> None:
        path = self._path / into
        try:
            (self._path / name).rename(path)
            sync_directory(path.parent)
        except OSError as error:
            raise _cannot("write", path, error) from None

    def remove(self, *names: str, durable: bool = True) -> None:
        for name in names:
            path = self._path / name
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _cannot("remove", path, error) from None
        for parent in {(self._path / name).parent for name in names} if durable else ():
            if parent.is_dir():
                sync_directory(parent)


def write_durably(path: Path, text: str) -> None:
    """Replaces a file's content so that after a crash it is the old or the new. Its owner alone
    reads it: there may be secrets in it."""
    beside = path.with_name(path.name + ".new")
    try:
        with open(beside, "w", opener=_private) as file:
            # It may be left from an earlier time, with another mode.
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
        sync_directory(path.parent)
    except OSError as error:
        raise _cannot("write", path, error) from None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def sync_directory(path: Path) -> None:
    """Makes renames and removals in a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _cannot(what: str, path: Path, error: OSError) -> VsError:
    return VsError(
        "VS9022",
        Kind.INTERNAL,
        f"can't {what} {path} ({error.strerror}); make room or mend the disk or its permissions",
    )
