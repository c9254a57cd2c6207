"""What an SP remembers over restarts: who it is, its devices, its committed and staged T2s.

One small JSON file for each thing under the state directory, each replaced whole (written
beside, fsynced, renamed, directory fsynced), so that a crash leaves the old or the new.
"""

from __future__ import annotations

import fcntl
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vswitchd.errors import Kind, VsError
from vswitchd.model.codec import Fields, as_text, decode_t2, dumps, encode_t2, loads
from vswitchd.model.objects import T2, DeviceId, VolumeId

#: What a volume's id may be made of, since files are named after it.
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_COMMITTED = ".json"
_STAGED = ".staged.json"


def write_durably(path: Path, text: str) -> None:
    """Replaces a file's content so that after a crash it is the old or the new."""
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
        sync_directory(path.parent)
    except OSError as error:
        raise _cannot("write", path, error) from None


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


@dataclass
class Identity:
    """The SP's own file. `direct` are devices that are opened past the page cache. `mirrored`
    are volumes whose mirrors this SP has owned since its last clean end: after another end
    their legs may differ."""

    sp: str
    cluster_id: str = ""
    term: int = 0
    devices: dict[str, str] = field(default_factory=dict)
    direct: list[str] = field(default_factory=list)
    mirrored: list[str] = field(default_factory=list)


def _decode_identity(text: str) -> Identity:
    fields = Fields(loads(text, "processor"), "processor")
    identity = Identity(
        sp=fields.text("sp"),
        cluster_id=fields.text("cluster_id"),
        term=fields.number("term"),
        devices=fields.texts("devices"),
        direct=list(fields.items("direct", as_text)),
        mirrored=list(fields.items("mirrored", as_text)),
    )
    fields.done()
    return identity


class State:
    """The state directory. Every change is durable when its method returns; what can't be
    written is VsError VS9022, and nothing has changed then."""

    def __init__(self, directory: Path, sp: str) -> None:
        """Opens it, or makes it. VS3020: another SP's. VS3027: a process has it open.
        VS9020: damaged."""
        self._directory = directory
        self._t2s = directory / "t2"
        self._file = directory / "processor.json"
        try:
            self._t2s.mkdir(parents=True, exist_ok=True)
            #: Held, for as long as this object is, against a second process.
            self._lock = (directory / "lock").open("w")
        except OSError as error:
            raise _cannot("use", directory, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise VsError(
                "VS3027",
                Kind.PRECONDITION,
                f"another process has {directory} open; end it, or give this SP its own --state",
            ) from None
        try:
            self.identity = self._read_identity(sp)
            #: Volumes that were not ended cleanly in the previous life.
            self.unclean = {VolumeId(volume) for volume in self.identity.mirrored}
            self.committed = self._read_t2s(_COMMITTED)
            self.staged = {
                volume: t2
                for volume, t2 in self._read_t2s(_STAGED).items()
                # One that was committed may be back: `commit` does not wait for its removal.
                if t2 != self.committed.get(volume)
            }
        except VsError:
            self.close()
            raise

    def close(self) -> None:
        """Lets another process have the directory."""
        self._lock.close()

    def _read_identity(self, sp: str) -> Identity:
        if not self._file.exists():
            return Identity(sp)
        try:
            identity = _decode_identity(self._read(self._file))
        except VsError as error:
            if error.code != "VS1020":
                raise
            raise VsError(
                "VS9020",
                Kind.INTERNAL,
                f"{self._file} is damaged ({error.message}); restore it from a backup. Without "
                f"one move {self._directory} away and start again: the controller pushes this "
                "SP's objects anew, but the legs of mirrors that it owns may differ, so replace "
                "one leg of each",
            ) from None
        if identity.sp != sp:
            raise VsError(
                "VS3020",
                Kind.PRECONDITION,
                f"{self._directory} is the state of SP {identity.sp}, not of {sp}; "
                "use that name or another directory",
            )
        return identity

    def _read_t2s(self, suffix: str) -> dict[VolumeId, T2]:
        found = {}
        for path in sorted(self._t2s.glob(f"*{suffix}")):
            if suffix == _COMMITTED and path.name.endswith(_STAGED):
                continue
            try:
                t2 = decode_t2(self._read(path))
            except VsError as error:
                if error.code != "VS1020":
                    raise
                raise VsError(
                    "VS9020",
                    Kind.INTERNAL,
                    f"{path} is damaged ({error.message}); move it away and start again: the "
                    "controller pushes that volume's T2 object anew",
                ) from None
            found[t2.volume] = t2
        return found

    @staticmethod
    def _read(path: Path) -> str:
        try:
            return path.read_text(errors="replace")
        except OSError as error:
            raise _cannot("read", path, error) from None

    def _path(self, volume: VolumeId, suffix: str) -> Path:
        if not _ID.fullmatch(volume):
            raise VsError("VS1032", Kind.INVALID, f"{volume[:80]!r} is not a volume's id")
        return self._t2s / f"{volume}{suffix}"

    def _update(self, **changes: object) -> None:
        """Changes the identity, on disk first."""
        changed = Identity(**{**asdict(self.identity), **changes})
        write_durably(self._file, dumps(asdict(changed)))
        self.identity = changed

    def set_cluster(self, cluster_id: str) -> None:
        """Joins a cluster for good."""
        self._update(cluster_id=cluster_id)

    def set_term(self, term: int) -> None:
        """Remembers the highest term that was seen."""
        self._update(term=term)

    def set_device(self, device: DeviceId, uri: str | None, *, direct: bool) -> None:
        """Remembers how a device is reached; None forgets it."""
        devices = {**self.identity.devices}
        past_cache = {*self.identity.direct} - {device} | ({device} if direct else set())
        if uri is None:
            devices.pop(device, None)
        else:
            devices[device] = uri
        if devices != self.identity.devices or past_cache != {*self.identity.direct}:
            self._update(devices=devices, direct=sorted(past_cache))

    def set_mirrored(self, volumes: set[str]) -> None:
        """Remembers whose mirrors' legs may differ if this process just ends."""
        if set(self.identity.mirrored) != volumes:
            self._update(mirrored=sorted(volumes))

    def stage(self, t2: T2) -> None:
        """Keeps a T2 object, inactive."""
        write_durably(self._path(t2.volume, _STAGED), encode_t2(t2))
        self.staged[t2.volume] = t2

    def commit(self, t2: T2) -> None:
        """Makes a T2 object the one that is activated after a restart."""
        write_durably(self._path(t2.volume, _COMMITTED), encode_t2(t2))
        self.committed[t2.volume] = t2
        staged = self.staged.get(t2.volume)
        if staged is not None and staged.version <= t2.version:
            self._path(t2.volume, _STAGED).unlink(missing_ok=True)
            self.staged.pop(t2.volume)

    def remove(self, volume: VolumeId) -> None:
        """Forgets a volume's T2 objects, the committed one first."""
        try:
            for suffix in (_COMMITTED, _STAGED):
                self._path(volume, suffix).unlink(missing_ok=True)
            sync_directory(self._t2s)
        except OSError as error:
            raise _cannot("remove", self._t2s / volume, error) from None
        self.committed.pop(volume, None)
        self.staged.pop(volume, None)
