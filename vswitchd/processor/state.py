"""What an SP remembers over restarts: who it is, its devices, its committed and staged T2s.

One small JSON file for each thing under the state directory, each replaced whole (written
beside, fsynced, renamed, directory fsynced), so that a crash leaves the old or the new.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vswitchd.errors import Kind, VsError
from vswitchd.model.codec import decode_t2, encode_t2
from vswitchd.model.objects import T2, DeviceId, VolumeId


def write_durably(path: Path, text: str) -> None:
    """Replaces a file's content so that after a crash it is the old or the new."""
    beside = path.with_name(path.name + ".new")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes renames and removals in a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@dataclass
class Identity:
    """The SP's own file. `mirrored` are volumes whose mirrors this SP has owned since its
    last clean end: after another end their legs may differ."""

    sp: str
    cluster_id: str = ""
    term: int = 0
    devices: dict[str, str] = field(default_factory=dict)
    mirrored: list[str] = field(default_factory=list)


class State:
    """The state directory. Every change is durable when its method returns."""

    def __init__(self, directory: Path, sp: str) -> None:
        self._directory = directory
        self._t2s = directory / "t2"
        self._t2s.mkdir(parents=True, exist_ok=True)
        self._file = directory / "processor.json"
        self.identity = Identity(sp)
        if self._file.exists():
            self.identity = Identity(**self._load(self._file))
            if self.identity.sp != sp:
                raise VsError(
                    "VS3020",
                    Kind.PRECONDITION,
                    f"{directory} is the state of SP {self.identity.sp}, not of {sp}; "
                    "use that name or another directory",
                )
        #: Volumes that were not ended cleanly in the previous life.
        self.unclean = set(self.identity.mirrored)
        self.committed = self._read_t2s(".json")
        self.staged = self._read_t2s(".staged.json")

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            value = json.loads(path.read_text())
            assert isinstance(value, dict)
            return value
        except (ValueError, AssertionError):
            raise VsError(
                "VS9020",
                Kind.INTERNAL,
                f"{path} is damaged; restore it, or remove this SP's state directory and let "
                "the controller push its objects again",
            ) from None

    def _read_t2s(self, suffix: str) -> dict[VolumeId, T2]:
        found = {}
        for path in sorted(self._t2s.glob(f"*{suffix}")):
            if suffix == ".json" and path.name.endswith(".staged.json"):
                continue
            try:
                t2 = decode_t2(path.read_text())
            except VsError as error:
                raise VsError(
                    "VS9020", Kind.INTERNAL, f"{path} is damaged ({error.message}); remove it"
                ) from None
            found[t2.volume] = t2
        return found

    def save(self) -> None:
        """Writes the identity."""
        write_durably(self._file, json.dumps(asdict(self.identity), indent=1))

    def set_cluster(self, cluster_id: str) -> None:
        """Joins a cluster for good."""
        self.identity.cluster_id = cluster_id
        self.save()

    def set_term(self, term: int) -> None:
        """Remembers the highest term that was seen."""
        self.identity.term = term
        self.save()

    def set_device(self, device: DeviceId, uri: str | None) -> None:
        """Remembers how a device is reached; None forgets it."""
        if uri is None:
            self.identity.devices.pop(device, None)
        else:
            self.identity.devices[device] = uri
        self.save()

    def set_mirrored(self, volumes: set[str]) -> None:
        """Remembers whose mirrors' legs may differ if this process just ends."""
        if set(self.identity.mirrored) != volumes:
            self.identity.mirrored = sorted(volumes)
            self.save()

    def stage(self, t2: T2) -> None:
        """Keeps a T2 object, inactive."""
        write_durably(self._t2s / f"{t2.volume}.staged.json", encode_t2(t2))
        self.staged[t2.volume] = t2

    def commit(self, t2: T2) -> None:
        """Makes a T2 object the one that is activated after a restart."""
        write_durably(self._t2s / f"{t2.volume}.json", encode_t2(t2))
        self.committed[t2.volume] = t2
        staged = self.staged.get(t2.volume)
        if staged is not None and staged.version <= t2.version:
            self.staged.pop(t2.volume)
            (self._t2s / f"{t2.volume}.staged.json").unlink(missing_ok=True)

    def remove(self, volume: VolumeId) -> None:
        """Forgets a volume's T2 objects, the committed one first."""
        (self._t2s / f"{volume}.json").unlink(missing_ok=True)
        (self._t2s / f"{volume}.staged.json").unlink(missing_ok=True)
        sync_directory(self._t2s)
        self.committed.pop(volume, None)
        self.staged.pop(volume, None)
