"""The seams that the shells are written against; `app.py` files fill them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vswitchd.model.access import Access
from vswitchd.model.objects import T1, T2, DeviceId, Path, SpId, T1Id, Volume, VolumeId
from vswitchd.model.view import Affected, CopyMode, DeviceView, Ejection, LabelView, View


class Clock(Protocol):
    """Time, so that tests can own it."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits that long."""
        ...


class Processor(Protocol):
    """One SP's VSM as the controller calls it; every call raises VsError, and every call
    is idempotent. Mirrors `proto/vswitchd/v1/vsm.proto`."""

    async def view(self, volume: VolumeId | None = None) -> View:
        """What the SP holds; of objects and copies only the volume's, if one is named."""
        ...

    async def add_device(
        self, uri: str, size: int, device: DeviceId, *, direct: bool, checksums: bool
    ) -> DeviceView: ...
    async def remove_device(self, device: DeviceId) -> None: ...
    async def put_t1(self, t1: T1, epoch: int) -> None: ...
    async def adopt_t1(self, t1: T1, epoch: int) -> None: ...
    async def fence_t1(self, t1: T1Id, epoch: int, known: int) -> None:
        """VsError VS3087 if the SP has recorded a tree of a higher epoch than `known`."""
        ...

    async def delete_t1(self, t1: T1Id, epoch: int) -> None: ...
    async def stage_t2(self, t2: T2, access: Access) -> None:
        """Keeps a tree, inactive, and who may use its volume, unless it knows a later word on
        that."""
        ...

    async def set_access(self, volume: VolumeId, access: Access) -> None:
        """Says who may use a volume, if the SP holds a tree of it and knows no later word. Sessions
        that are not admitted any more have ended when this returns."""
        ...

    async def access(self, volume: VolumeId) -> Access:
        """What the SP knows of that."""
        ...

    async def activate_t2(self, volume: VolumeId, version: int) -> float:
        """Returns the pause in seconds."""
        ...

    async def remove_t2(self, volume: VolumeId, version: int) -> None: ...
    async def drop_reference(self, volume: VolumeId, t1: T1Id) -> None: ...
    async def start_copy(
        self,
        volume: VolumeId,
        version: int,
        path: Path,
        *,
        start: int,
        rate: int,
        adaptive: bool,
        mode: CopyMode,
    ) -> None:
        """Copies onto the write-only leg at `path` of that version from byte `start` on; an
        earlier copy has made what is before it durable there. `rate`: bytes per second, 0 for
        no limit. A comparison has an empty path."""
        ...

    async def throttle_copy(
        self, volume: VolumeId, path: Path, *, rate: int, adaptive: bool
    ) -> None: ...
    async def stop_copy(self, volume: VolumeId, path: Path) -> None: ...
    async def labels(self) -> tuple[LabelView, ...]:
        """What the SP's devices' labels say, read afresh."""
        ...

    async def activate_mvsm(self) -> None: ...
    async def deactivate_mvsm(self) -> None: ...
    async def determine(
        self, current: Volume | None, target: Volume | None
    ) -> tuple[Affected, ...]: ...


@dataclass(frozen=True, slots=True)
class ProcessorRecord:
    """An SP as it last registered."""

    sp: SpId
    incarnation: str
    vsm_address: str
    peer_address: str
    nbd_address: str
    version: str


class Processors(Protocol):
    """How the controller reaches SPs."""

    def connect(self, record: ProcessorRecord, cluster: str, term: int) -> Processor:
        """A client of that SP's VSM whose calls carry the cluster's id and the term."""
        ...

    async def listens(self, record: ProcessorRecord) -> bool:
        """False if nobody listens where that SP's VSM was: its process has ended. True also if
        nobody can tell."""
        ...


class Neighbours(Protocol):
    """Other SPs' VSMs as the owner of a volume calls them, at their addresses, while the controller
    is away (`restructure.alone`). Every call raises VsError, and is idempotent."""

    async def ask(self, sp: SpId, address: str, ejection: Ejection) -> None:
        """Returns if it would do its part now."""
        ...

    async def fence(self, sp: SpId, address: str, ejection: Ejection) -> None: ...
    async def record(self, sp: SpId, address: str, ejection: Ejection) -> None: ...
    async def follow(self, sp: SpId, address: str, ejection: Ejection) -> None:
        """Has it take the tree, if it serves the volume."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A device of the cluster, the URI by which each SP reaches it, and the SPs that go past
    the page cache there. `checksums`: its label says that every block has one."""

    id: DeviceId
    name: str
    size: int
    unit: int
    paths: dict[SpId, str] = field(default_factory=dict)
    direct: list[SpId] = field(default_factory=list)
    checksums: bool = False


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """An operation's journal entry. `plan` is JSON of `restructure.codec`; `cursor` counts the
    steps done. `state` is the proto's name in lower case without its prefix: planned, running,
    paused, undoing, done, failed, cancelled. What is only planned counts as ended: nobody waits
    for it, and in time it is forgotten.

    `wish`: what was asked of it since it began: run, pause or cancel. `checkpoint`: so many bytes
    of the copy at the cursor are durable on its leg. `rate` is in bytes per second, 0 for no
    limit; `priority` from 0 to 9. `report`: what it has found, in words."""

    id: str
    request_id: str
    kind: str
    volume: VolumeId
    volume_name: str
    state: str
    plan: str
    cursor: int
    copied: int
    created: float
    ended: float | None = None
    error_code: str = ""
    error: str = ""
    waiting_for: str = ""
    requested_by: str = ""
    wish: str = "run"
    checkpoint: int = 0
    rate: int = 0
    adaptive: bool = True
    priority: int = 5
    report: str = ""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A row of a volume's history, never changed and never removed. `volume` None: it was
    deleted. `at` is in seconds since the Unix epoch."""

    version: int
    at: float
    who: str
    why: str
    volume: Volume | None


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """A change of who may use a volume, in words without its secrets; never changed and never
    removed. `at` is in seconds since the Unix epoch."""

    version: int
    at: float
    who: str
    what: str


#: How many operations that have ended the store keeps; older ones are forgotten, and with
#: them that their request was made.
ENDED_KEPT = 2000


class Store(Protocol):
    """The controller's durable state. Every write is durable when it returns."""

    async def cluster_id(self) -> str:
        """The cluster's id, made at the first call ever."""
        ...

    async def adopt_cluster(self, cluster: str) -> None:
        """Takes another cluster's id; VsError UNSAFE unless the store has never held anything."""
        ...

    async def term(self) -> int:
        """The highest term ever used; 0 at first."""
        ...

    async def raise_term(self) -> int:
        """Makes the term one higher, and returns it."""
        ...

    async def volumes(self) -> Sequence[Volume]:
        """All, by name; the same object as long as none has changed."""
        ...

    async def volume(self, volume: VolumeId) -> Volume | None: ...
    async def history(self, volume: VolumeId) -> Sequence[VersionRecord]:
        """Every version there was, oldest first, of a volume that may be deleted."""
        ...

    async def put_volume(
        self, volume: Volume, *, expect_version: int | None, who: str, why: str
    ) -> None:
        """Writes the commit record and its history row in one transaction; VsError STALE
        unless the stored version is `expect_version` (None: absent) or already `volume.version`."""
        ...

    async def delete_volume(self, volume: VolumeId, *, who: str) -> None: ...
    async def access(self, volume: VolumeId) -> Access:
        """Who may use a volume; `OPEN` if nothing was ever said."""
        ...

    async def put_access(
        self, volume: VolumeId, access: Access, *, expect_version: int, who: str, what: str
    ) -> None:
        """Writes it with a row of its history, in one transaction; VsError STALE unless the stored
        version is `expect_version` (0: none is stored), or if there is no such volume."""
        ...

    async def access_history(self, volume: VolumeId) -> Sequence[AccessRecord]:
        """Every change there was, oldest first, of a volume that may be deleted."""
        ...

    async def processors(self) -> Sequence[ProcessorRecord]: ...
    async def put_processor(self, record: ProcessorRecord) -> None: ...
    async def delete_processor(self, sp: SpId) -> None: ...
    async def drained(self) -> Mapping[SpId, bool]:
        """SPs that are to hold nothing, and whether each may go on serving hosts."""
        ...

    async def set_drained(self, sp: SpId, keep_serving: bool | None) -> None:
        """None: the SP may hold objects again."""
        ...

    async def ledger(self) -> Collection[T1Id]:
        """Every T1 object that an operation of this store was to create, and that has not been
        seen gone since: what is not in here is not this store's to remove."""
        ...

    async def forget_t1s(self, t1s: Collection[T1Id]) -> None:
        """They are on no device any more."""
        ...

    async def devices(self) -> Sequence[DeviceRecord]: ...
    async def put_device(self, record: DeviceRecord) -> None: ...
    async def delete_device(self, device: DeviceId) -> None: ...
    async def operations(self, *, open_only: bool = False) -> Sequence[OperationRecord]:
        """Those that have not ended, and as many of the last that have as are kept, or only
        those that have not; oldest first."""
        ...

    async def operation(self, operation: str) -> OperationRecord | None: ...
    async def operation_of(self, request_id: str) -> OperationRecord | None:
        """The one that this request made."""
        ...

    async def add_operation(
        self, record: OperationRecord, creates: Collection[T1Id] = ()
    ) -> OperationRecord:
        """Adds it and enters what it `creates` in the ledger, at once; or returns the one that
        has the same request id."""
        ...

    async def update_operation(
        self, record: OperationRecord, *, expect_cursor: int, creates: Collection[T1Id] = ()
    ) -> None:
        """Compare-and-swap on the cursor; VsError STALE when another has moved it. A record
        that is there already, as after a write whose answer was lost, is fine."""
        ...

    async def close(self) -> None: ...
