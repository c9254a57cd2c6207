"""SPs, a store and a clock for tests of the controller: all in memory, all obedient.

SPs are `tests.prop.cluster.Cluster`, which refuses whatever breaks an order of coherency.md;
here it is put behind the controller's ports, with SPs that go away, come back and refuse.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from tests.prop.cluster import Cluster
from vswitchd.errors import Kind, VsError
from vswitchd.model.access import OPEN, Access
from vswitchd.model.objects import (
    T1,
    T2,
    DeviceId,
    LegState,
    Mirror,
    Node,
    Path,
    SpId,
    T1Id,
    Volume,
    VolumeId,
    at,
    node_size,
)
from vswitchd.model.view import Affected, CopyMode, CopyState, CopyView, DeviceView, LabelView, View
from vswitchd.ports import OperationRecord, ProcessorRecord
from vswitchd.restructure import mvsm
from vswitchd.restructure.steps import (
    ActivateT2,
    AdoptT1,
    Commit,
    Copy,
    DeleteT1,
    DropReference,
    FenceT1,
    Forget,
    PutT1,
    RemoveT2,
    StageT2,
    Step,
)
from vswitchd.store.memory import MemoryStore


async def until(what: str, true: Callable[[], object], seconds: float = 20.0) -> None:
    """Lets everything else run until `true()` is; AssertionError at the deadline."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0)


class FakeClock:
    """Time that passes only while somebody sleeps, and then at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        #: Called whenever time has passed.
        self.passed: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + 1e9

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.passed()
        await asyncio.sleep(0)


async def nowhere() -> None:
    """A point where nobody dies."""


def unreachable(sp: SpId) -> VsError:
    return VsError("VS5001", Kind.UNREACHABLE, f"SP {sp} can't be reached; is it running?")


@dataclass
class Life:
    """What an SP loses when it restarts."""

    incarnation: str
    mvsm_term: int | None = None
    copies: dict[tuple[VolumeId, Path], CopyView] = field(default_factory=dict)


class FakeSps:
    """`ports.Processors` over a model cluster."""

    def __init__(self, devices: Mapping[str, Mapping[str, int]]) -> None:
        self.cluster = Cluster.of(devices)
        self.lives = {sp: Life(f"{sp}-1") for sp in self.cluster.sps}
        self.terms: dict[SpId, int] = {}
        #: SPs that do not answer.
        self.down: set[SpId] = set()
        #: (SP, method) -> what it answers instead of doing it.
        self.refuses: dict[tuple[SpId, str], VsError] = {}
        #: Copies go on at every look, unless held.
        self.hold_copies = False
        #: They stay at half of it.
        self.halfway = False
        #: Volumes whose comparison repairs.
        self.repairs: dict[VolumeId, bool] = {}
        #: What running copies have been told, and from where copies began, in order.
        self.limits: dict[tuple[VolumeId, Path], tuple[int, bool]] = {}
        self.starts: list[int] = []
        self.calls: Counter[tuple[SpId, str]] = Counter()
        #: Devices that an SP was told to open again.
        self.reopened: list[tuple[SpId, DeviceId]] = []
        self.closed: set[tuple[SpId, DeviceId]] = set()
        #: Who may use a volume, as each SP knows it.
        self.accesses: dict[tuple[SpId, VolumeId], Access] = {}
        #: Which SPs have been told to go past the page cache, and where.
        self.direct: set[tuple[SpId, DeviceId]] = set()
        #: Devices that were asked for with checksums.
        self.checksums: set[DeviceId] = set()

    def record(self, sp: SpId) -> ProcessorRecord:
        life = self.lives[sp].incarnation
        return ProcessorRecord(sp, life, f"{sp}:9450", f"{sp}:9460", f"{sp}:10809", "0")

    def access_version(self, sp: SpId, volume: VolumeId) -> int:
        return self.accesses.get((sp, volume), OPEN).version

    def restart(self, sp: SpId) -> None:
        """A new life: what was only in memory is gone."""
        number = int(self.lives[sp].incarnation.rpartition("-")[2])
        self.lives[sp] = Life(f"{sp}-{number + 1}")

    async def listens(self, record: ProcessorRecord) -> bool:
        return True

    def connect(self, record: ProcessorRecord, cluster: str, term: int) -> FakeSp:
        return FakeSp(self, record.sp, term)

    def snapshot(self) -> dict[str, object]:
        """Everything that SPs hold, to compare."""
        return {
            sp.name: (
                sorted((t1.id, t1.home, epoch) for t1, epoch in sp.t1s.values()),
                sorted((t2.volume, t2.version, t2.epoch) for t2 in sp.active.values()),
                sorted((t2.volume, t2.version) for t2 in sp.staged.values()),
            )
            for sp in self.cluster.sps.values()
        }


class FakeSp:
    """`ports.Processor`: one call each, as the VSM answers."""

    def __init__(self, world: FakeSps, sp: SpId, term: int) -> None:
        self._world = world
        self._sp = sp
        self._term = term

    async def _admit(self, method: str) -> Life:
        world, sp = self._world, self._sp
        await asyncio.sleep(0)
        world.calls[sp, method] += 1
        if sp in world.down:
            raise unreachable(sp)
        if self._term < world.terms.get(sp, 0):
            raise VsError("VS3023", Kind.STALE, f"term {self._term} is over")
        if self._term > world.terms.get(sp, 0):
            world.terms[sp] = self._term
            world.lives[sp].mvsm_term = None
        if (sp, method) in world.refuses:
            raise world.refuses[sp, method]
        return world.lives[sp]

    async def _apply(self, method: str, step: Step) -> None:
        await self._admit(method)
        self._world.cluster.apply(step)

    async def view(self, volume: VolumeId | None = None) -> View:
        life = await self._admit("view")
        if not self._world.hold_copies:
            for key, copy in life.copies.items():
                life.copies[key] = self._advanced(copy)
        view = next(v for v in self._world.cluster.views() if v.sp == self._sp)
        t1s = view.t1s if volume is None else tuple(view.t1s_of(volume))
        return replace(
            view,
            t1s=t1s,
            t2s=tuple(
                replace(held, access=self._world.access_version(self._sp, held.t2.volume))
                for held in (view.t2s if volume is None else view.t2s_of(volume))
            ),
            other_t1s=len(view.t1s) - len(t1s),
            incarnation=life.incarnation,
            term=self._world.terms.get(self._sp, 0),
            mvsm_active=life.mvsm_term is not None,
            copies=tuple(c for c in life.copies.values() if volume in (None, c.volume)),
            devices=tuple(
                replace(d, up=False, free=(), error="gone")
                if (self._sp, d.id) in self._world.closed
                else d
                for d in view.devices
            ),
        )

    def _advanced(self, copy: CopyView) -> CopyView:
        """Half of it, then all."""
        if copy.state is not CopyState.RUNNING:
            return copy
        half = copy.total // 2
        if copy.copied < half or self._world.halfway:
            return replace(copy, copied=half, durable=half // 2)
        t2 = self._world.cluster.sps[self._sp].active[copy.volume]
        step = Copy(self._sp, copy.volume, t2.version, copy.path, copy.total)
        differing = 0 if copy.path else self._world.cluster.differing(t2)
        if copy.path or self._world.repairs.pop(copy.volume, False):
            self._world.cluster.apply(step)
        done = replace(copy, state=CopyState.DONE, copied=copy.total, durable=copy.total)
        return replace(done, differing_bytes=differing)

    async def add_device(
        self, uri: str, size: int, device: DeviceId, *, direct: bool, checksums: bool
    ) -> DeviceView:
        await self._admit("add_device")
        model = self._world.cluster.sps[self._sp]
        known = DeviceId(uri.removeprefix("file:/"))
        if known in model.devices:
            self._world.closed.discard((self._sp, known))
            self._world.reopened.append((self._sp, known))
        else:
            model.devices[known] = size
        (self._world.direct.add if direct else self._world.direct.discard)((self._sp, known))
        view = next(v for v in self._world.cluster.views() if v.sp == self._sp).device(known)
        assert view is not None
        (self._world.checksums.add if checksums else self._world.checksums.discard)(known)
        return replace(view, checksums=checksums)

    async def remove_device(self, device: DeviceId) -> None:
        await self._admit("remove_device")
        self._world.cluster.sps[self._sp].devices.pop(device, None)

    async def put_t1(self, t1: T1, epoch: int) -> None:
        await self._apply("put_t1", PutT1(t1, epoch))

    async def adopt_t1(self, t1: T1, epoch: int) -> None:
        await self._apply("adopt_t1", AdoptT1(t1, epoch))

    async def fence_t1(self, t1: T1Id, epoch: int, known: int) -> None:
        await self._apply("fence_t1", FenceT1(self._sp, t1, epoch, known))

    async def delete_t1(self, t1: T1Id, epoch: int) -> None:
        await self._apply("delete_t1", DeleteT1(self._sp, t1, epoch))

    async def set_access(self, volume: VolumeId, access: Access) -> None:
        await self._admit("set_access")
        model = self._world.cluster.sps[self._sp]
        if volume in model.active or volume in model.staged:
            self._keep_access(volume, access)

    def _keep_access(self, volume: VolumeId, access: Access) -> None:
        held = self._world.accesses.get((self._sp, volume), OPEN)
        if access.version > held.version:
            self._world.accesses[self._sp, volume] = access

    async def access(self, volume: VolumeId) -> Access:
        await self._admit("access")
        return self._world.accesses.get((self._sp, volume), OPEN)

    async def stage_t2(self, t2: T2, access: Access) -> None:
        await self._apply("stage_t2", StageT2(t2))
        self._keep_access(t2.volume, access)
        active = self._world.cluster.sps[self._sp].active
        known = active.get(t2.volume)
        if known is not None and known.version == t2.version:
            active[t2.volume] = t2  # the same tree with other addresses

    async def activate_t2(self, volume: VolumeId, version: int) -> float:
        life = await self._admit("activate_t2")
        model = self._world.cluster.sps[self._sp]
        held = {t2.version for t2 in (model.staged.get(volume), model.active.get(volume)) if t2}
        if version not in held:
            raise VsError("VS3025", Kind.PRECONDITION, f"no version {version} of {volume} staged")
        self._world.cluster.apply(ActivateT2(self._sp, volume, version))
        root = model.active[volume].root
        life.copies = {
            key: copy
            for key, copy in life.copies.items()
            if key[0] != volume or _is_write_only(root, key[1])
        }
        return 0.001

    async def remove_t2(self, volume: VolumeId, version: int) -> None:
        await self._apply("remove_t2", RemoveT2(self._sp, volume, version))
        self._world.accesses.pop((self._sp, volume), None)

    async def drop_reference(self, volume: VolumeId, t1: T1Id) -> None:
        await self._apply("drop_reference", DropReference(self._sp, volume, t1))

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
        life = await self._admit("start_copy")
        t2 = self._world.cluster.sps[self._sp].active[volume]
        assert t2.owner == self._sp and t2.version == version
        assert _is_write_only(t2.root, path) if path else mode.value in ("compare", "repair")
        found = life.copies.get((volume, path))
        self._world.limits[volume, path] = rate, adaptive
        if mode is CopyMode.REPAIR:
            self._world.repairs[volume] = True
        if found is None or found.state is CopyState.FAILED:
            self._world.starts.append(start)
            total = node_size(at(t2.root, path[:-1]))
            copy = CopyView(volume, path, CopyState.RUNNING, start, total, durable=start)
            life.copies[volume, path] = copy

    async def throttle_copy(
        self, volume: VolumeId, path: Path, *, rate: int, adaptive: bool
    ) -> None:
        await self._admit("throttle_copy")
        self._world.limits[volume, path] = rate, adaptive

    async def labels(self) -> tuple[LabelView, ...]:
        await self._admit("labels")
        return self._world.cluster.labels(self._sp)

    async def stop_copy(self, volume: VolumeId, path: Path) -> None:
        (await self._admit("stop_copy")).copies.pop((volume, path), None)

    async def activate_mvsm(self) -> None:
        (await self._admit("activate_mvsm")).mvsm_term = self._term

    async def deactivate_mvsm(self) -> None:
        (await self._admit("deactivate_mvsm")).mvsm_term = None

    async def determine(
        self, current: Volume | None, target: Volume | None
    ) -> tuple[Affected, ...]:
        life = await self._admit("determine")
        if life.mvsm_term != self._term:
            raise VsError("VS3026", Kind.PRECONDITION, f"the MVSM of {self._sp} is not active")
        return mvsm.determine(current, target)


def _is_write_only(root: Node, path: Path) -> bool:
    try:
        parent = at(root, path[:-1])
        return isinstance(parent, Mirror) and parent.legs[path[-1]].state is LegState.WRITE_ONLY
    except IndexError:
        return False


class CrashingStore(MemoryStore):
    """A store whose controller can die at its n-th write, before or after it is made, and
    that tells the model cluster of commit records."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._model = cluster
        self.writes = 0
        #: The write that is the last of this controller, and whether it is made.
        self.crash_at: int | None = None
        self.crash_after = True
        self.crashed = asyncio.Event()
        #: Whether a term can't be raised.
        self.full = False
        #: Awaited on either side of every write: a controller may die there.
        self.point: Callable[[], Awaitable[None]] = nowhere
        #: What writes raise instead of being made.
        self.broken: VsError | None = None

    async def _turn(self, *, after: bool) -> None:
        await self.point()
        if not after:
            self.writes += 1
            if self.broken is not None:
                raise self.broken
        if self.writes == self.crash_at and after == self.crash_after:
            self.crashed.set()
            await asyncio.Event().wait()  # nobody goes on from here
        await asyncio.sleep(0)

    def revive(self) -> None:
        """Another controller takes over."""
        self.crash_at = None
        self.crashed = asyncio.Event()

    async def raise_term(self) -> int:
        if self.full:
            raise VsError("VS9031", Kind.INTERNAL, "the disk is full")
        return await super().raise_term()

    async def put_volume(
        self, volume: Volume, *, expect_version: int | None, who: str, why: str
    ) -> None:
        await self._turn(after=False)
        await super().put_volume(volume, expect_version=expect_version, who=who, why=why)
        self._model.apply(Commit(volume))
        await self._turn(after=True)

    async def delete_volume(self, volume: VolumeId, *, who: str) -> None:
        await self._turn(after=False)
        await super().delete_volume(volume, who=who)
        self._model.apply(Forget(volume))
        await self._turn(after=True)

    async def add_operation(
        self, record: OperationRecord, creates: Collection[T1Id] = ()
    ) -> OperationRecord:
        await self._turn(after=False)
        added = await super().add_operation(record, creates)
        await self._turn(after=True)
        return added

    async def update_operation(
        self, record: OperationRecord, *, expect_cursor: int, creates: Collection[T1Id] = ()
    ) -> None:
        await self._turn(after=False)
        await super().update_operation(record, expect_cursor=expect_cursor, creates=creates)
        await self._turn(after=True)
