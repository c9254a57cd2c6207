"""What an SP says it holds, and what the MVSM answers: the inputs of every plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from zlib import crc32

from vswitchd.model.objects import T1, T2, DeviceId, Extent, Path, SpId, T1Id, VolumeId


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device as one SP reaches it. `free` are runs by the label, ordered by offset."""

    id: DeviceId
    uri: str
    size: int
    unit: int
    up: bool
    free: tuple[Extent, ...]
    error: str = ""
    direct: bool = False
    checksums: bool = False


@dataclass(frozen=True, slots=True)
class T1View:
    """A T1 object that an SP homes, and the lowest epoch it still serves."""

    t1: T1
    epoch: int


@dataclass(frozen=True, slots=True)
class T2View:
    """A T2 object that an SP holds. `resync_percent` is 100 when no resync runs; `access` is the
    version of who may use the volume that the SP goes by."""

    t2: T2
    active: bool
    resync_percent: int = 100
    access: int = 0


class CopyMode(StrEnum):
    """What a copy does: give a write-only leg all of its data; only what the write-intent maps of
    the mirror's legs have, since it was in sync once; hold the legs in sync of every mirror
    against each other (the path is empty); the same, and make them alike."""

    FULL = "full"
    DELTA = "delta"
    COMPARE = "compare"
    REPAIR = "repair"


class CopyState(StrEnum):
    """How a copy stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class DifferingRange:
    """Bytes that the legs of the mirror at `path` do not have alike, in the mirror's own space."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class CopyView:
    """A copy onto the write-only leg at `path`. Byte counts are of the leg's own space; `durable`
    of them, from its beginning, are there and flushed; `rate` is bytes per second lately. Of a
    comparison, which begins anew if it is interrupted, `differing` are the first ranges that it has
    found and `differing_bytes` the bytes of all."""

    volume: VolumeId
    path: Path
    state: CopyState
    copied: int
    total: int
    error: str = ""
    durable: int = 0
    rate: int = 0
    differing_bytes: int = 0
    differing: tuple[DifferingRange, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelView:
    """What a device's label says, read afresh: every T1 object in it, whatever SP is its home by
    it. `copies` of the label's two can be read; `generation` rises with every write; `error` says
    why neither can."""

    device: DeviceId
    uri: str
    cluster: str = ""
    generation: int = 0
    copies: int = 0
    t1s: tuple[T1View, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Ejection:
    """What a volume's owner has made of it by itself while the controller was away: its T2 object
    without legs that are lost. It follows the tree of epoch `base`; the last one that the
    controller made is of epoch `since`."""

    t2: T2
    base: int
    since: int


@dataclass(frozen=True)
class View:
    """One SP's state as its VSM reported it; `other_t1s` counts T1 objects that it homes and
    that are not shown, since they are not of the volume that was asked for. `ejections` are
    recorded here: every T1 object that stays was fenced to their epochs before."""

    sp: SpId
    incarnation: str
    term: int
    mvsm_active: bool
    devices: tuple[DeviceView, ...] = ()
    t1s: tuple[T1View, ...] = ()
    t2s: tuple[T2View, ...] = ()
    copies: tuple[CopyView, ...] = ()
    other_t1s: int = 0
    ejections: tuple[Ejection, ...] = ()

    # Without these, looking at every volume would take time by the square of their number.

    @cached_property
    def _t1_by_id(self) -> dict[T1Id, T1View]:
        return {held.t1.id: held for held in reversed(self.t1s)}

    @cached_property
    def _t2_by_key(self) -> dict[tuple[VolumeId, bool], T2View]:
        return {(held.t2.volume, held.active): held for held in reversed(self.t2s)}

    @cached_property
    def _t1s_by_volume(self) -> dict[VolumeId, list[T1View]]:
        found: dict[VolumeId, list[T1View]] = {}
        for held in self.t1s:
            found.setdefault(held.t1.volume, []).append(held)
        return found

    def t1s_of(self, volume: VolumeId) -> Sequence[T1View]:
        """The volume's T1 objects that this SP homes."""
        return self._t1s_by_volume.get(volume, ())

    def t2s_of(self, volume: VolumeId) -> list[T2View]:
        """The volume's T2 objects that this SP holds, the active one first."""
        both = (self.t2(volume, active=active) for active in (True, False))
        return [held for held in both if held is not None]

    def t1(self, t1_id: T1Id) -> T1View | None:
        """The T1 object of that id if this SP homes it."""
        return self._t1_by_id.get(t1_id)

    def t2(self, volume: VolumeId, *, active: bool = True) -> T2View | None:
        """The active (or staged) T2 object of that volume if this SP holds one."""
        return self._t2_by_key.get((volume, active))

    def device(self, device: DeviceId) -> DeviceView | None:
        """The device of that id if this SP reaches it."""
        return next((d for d in self.devices if d.id == device), None)


class ObjectKind(StrEnum):
    """The two tiers."""

    T1 = "t1"
    T2 = "t2"


class Change(StrEnum):
    """What an updated tree does to an object."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, order=True)
class Affected:
    """One object that an updated tree affects: a T1 id, or the volume's id for its T2."""

    sp: SpId
    kind: ObjectKind
    object_id: str
    change: Change


@dataclass(frozen=True, slots=True)
class Trouble:
    """T1 objects in trouble: `failing` ones have failed hosts' writes or keep them waiting; under
    `doubtful` ones power was lost with writes that were not flushed."""

    failing: frozenset[T1Id] = frozenset()
    doubtful: frozenset[T1Id] = frozenset()


@dataclass(frozen=True, slots=True)
class Complaint:
    """What one SP says of that: `failing` ones are of mirrors that it owns, `doubtful` ones it
    homes, at these epochs. A later epoch is somebody's decision, and ends the doubt. `ejections`:
    volumes of which it has recorded one, and their epochs."""

    failing: frozenset[T1Id] = frozenset()
    doubtful: Mapping[T1Id, int] = field(default_factory=dict)
    ejections: Mapping[VolumeId, int] = field(default_factory=dict)


def fingerprint(addresses: Mapping[SpId, str]) -> int:
    """A number that two lists of addresses share only if they are, all but certainly, the same."""
    return crc32(repr(sorted(addresses.items())).encode())


NO_TROUBLE = Trouble()
