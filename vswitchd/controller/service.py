"""What the public API asks of the controller."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.collector import Collector
from vswitchd.controller.executor import Executor
from vswitchd.controller.live import OPEN, PLANNED, RUNNING
from vswitchd.controller.planner import Planner, planned_extents
from vswitchd.controller.registry import Registry
from vswitchd.controller.turns import Turns
from vswitchd.errors import Kind, VsError
from vswitchd.model.layout import parse_layout, places
from vswitchd.model.objects import Extent, SpId, Volume, VolumeId
from vswitchd.ports import Clock, OperationRecord, Store, VersionRecord
from vswitchd.restructure import vcm
from vswitchd.restructure.codec import decode_plan, encode_plan
from vswitchd.restructure.requests import (
    AddLeg,
    Create,
    Evacuate,
    Move,
    Relayout,
    Request,
    Serve,
    Unserve,
)

#: Seconds that a swap is expected to take as long as none has been measured.
PAUSE = 0.02
#: An operation's priority when nobody says another, of 0 to MAX_PRIORITY.
PRIORITY = 5
MAX_PRIORITY = 9


@dataclass(frozen=True, slots=True)
class Options:
    """How a request is to be carried out. `rate`: bytes per second of its copies, 0 for no limit;
    None: as usual."""

    request_id: str = ""
    dry_run: bool = False
    who: str = ""
    rate: int = 0
    adaptive: bool | None = None
    priority: int | None = None

    def __post_init__(self) -> None:
        check_priority(self.priority)


def check_priority(priority: int | None) -> None:
    """VsError VS1051 unless it is one."""
    if priority is not None and not 0 <= priority <= MAX_PRIORITY:
        raise VsError(
            "VS1051", Kind.INVALID, f"the priority {priority} is not one of 0 to {MAX_PRIORITY}"
        )


def stale_plan(record: OperationRecord, volume: Volume | None) -> VsError:
    """What the plan was made for is not there any more."""
    now = "is gone" if volume is None else f"is at version {volume.version}"
    return VsError(
        "VS3075",
        Kind.STALE,
        f"plan {record.id} was made for another version: volume {record.volume_name} {now}; "
        "ask for a new plan and look at it",
    )


def named(request: Request) -> list[SpId]:
    """The SPs that a request names; a name that nobody has is told apart from an SP that is
    down."""
    match request:
        case Create(_, _, _, layout, serving, place_on):
            found = [*serving, *place_on]
        case AddLeg(layout, sp):
            found = [sp] if sp else []
        case Relayout(layout):
            found = []
        case Move(from_sp, to_sp):
            return [from_sp, to_sp]
        case Serve(sp) | Unserve(sp) | Evacuate(sp):
            return [sp]
        case _:
            return []
    if layout:
        found += [SpId(place.sp) for place in places(parse_layout(layout)) if place.sp]
    return found


class Service:
    """Volumes and the operations that change them."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        collector: Collector,
        planner: Planner,
        executor: Executor,
        turns: Turns,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self.store = store
        self.registry = registry
        self.collector = collector
        self.executor = executor
        self._planner = planner
        self._turns = turns
        self._clock = clock
        self._log = log
        #: Requests are planned one at a time, so that no two plans take the same extents.
        self.planning = asyncio.Lock()

    def busy(self) -> set[VolumeId]:
        """Volumes with an open operation."""
        return {live.record.volume for live in self.executor.live.values()}

    # Volumes.

    async def volume(self, name: str) -> Volume:
        """The volume of that name; VsError if there is none."""
        for volume in await self.store.volumes():
            if volume.name == name:
                return volume
        raise VsError(
            "VS2041",
            Kind.NOT_FOUND,
            f"there is no volume {name!r}; `vswitchctl volume list` shows what there is",
        )

    async def version(self, volume: Volume, version: int) -> Volume:
        """The volume as it was then; VsError if its history has no such version."""
        rows = await self.store.history(volume.id)
        for row in rows:
            if row.version == version and row.volume is not None:
                return row.volume
        raise VsError(
            "VS2046",
            Kind.NOT_FOUND,
            f"volume {volume.name} has no version {version}; `vswitchctl volume history "
            f"{volume.name}` shows those it had",
        )

    async def history(self, name: str) -> tuple[VolumeId, Sequence[VersionRecord]]:
        """Every version of a volume, by its name, or by its id if it is deleted."""
        for volume in await self.store.volumes():
            if name in (volume.name, volume.id):
                return volume.id, await self.store.history(volume.id)
        if rows := await self.store.history(VolumeId(name)):
            return VolumeId(name), rows
        raise VsError(
            "VS2041",
            Kind.NOT_FOUND,
            f"there is no volume {name!r}; `vswitchctl volume list` shows what there is, and of "
            "one that is deleted the history is found by its id",
        )

    async def create(self, make: Callable[[VolumeId], Create], options: Options) -> OperationRecord:
        """Makes a new volume."""
        request = make(VolumeId(str(uuid.uuid4())))
        async with self.planning:
            if (known := await self._known(options.request_id)) is not None:
                return known
            await self._require_free(request.name)
            return await self._go("create", None, request.id, request.name, request, options)

    async def change(
        self,
        kind: str,
        name: str,
        request: Request | Callable[[Volume], Awaitable[Request]],
        options: Options,
    ) -> OperationRecord:
        """Restructures or deletes a volume. The request may be made of the volume as it is
        when its turn has come."""
        if (known := await self._known(options.request_id)) is not None:
            return known
        turn = self._turns.of((await self.volume(name)).id)
        async with turn, self.planning:
            if (known := await self._known(options.request_id)) is not None:
                return known
            volume = await self.volume(name)
            self._require_idle(volume)
            what = await request(volume) if callable(request) else request
            return await self._go(kind, volume, volume.id, name, what, options)

    async def apply(self, name: str, plan_id: str, options: Options) -> OperationRecord:
        """Carries out a plan that was shown, exactly; VsError STALE if what it was made for has
        changed since."""
        if (known := await self._known(options.request_id)) is not None:
            return known
        turn = self._turns.of((await self._planned(name, plan_id)).volume)
        async with turn, self.planning:
            if (known := await self._known(options.request_id)) is not None:
                return known
            record = await self._planned(name, plan_id)
            volume = await self.store.volume(record.volume)
            if volume is not None:
                self._require_idle(volume)
            plan = decode_plan(record.plan)
            if plan.base != volume:
                raise stale_plan(record, volume)
            if volume is None:
                await self._require_free(name)
            await self._planner.confirm(record.volume, plan, self._reserved())
            record = replace(
                record,
                request_id=options.request_id,
                state=RUNNING,
                created=self._clock.wall(),
                ended=None,
                requested_by=options.who or record.requested_by,
                rate=options.rate or record.rate,
                adaptive=record.adaptive if options.adaptive is None else options.adaptive,
                priority=record.priority if options.priority is None else options.priority,
            )
            await self.store.update_operation(
                record, expect_cursor=0, creates=list(vcm.created(plan))
            )
            self._start(record, plan.base)
            return record

    async def _planned(self, name: str, plan_id: str) -> OperationRecord:
        record = await self.store.operation(plan_id)
        if record is None or record.volume_name != name:
            raise VsError(
                "VS2045",
                Kind.NOT_FOUND,
                f"there is no plan {plan_id!r} for volume {name}; plans are forgotten in time, so "
                "ask for a new one (--dry-run)",
            )
        if record.state != PLANNED:
            raise VsError(
                "VS3077",
                Kind.PRECONDITION,
                f"plan {plan_id} has been applied already; `vswitchctl operation show {plan_id}` "
                "shows what came of it",
            )
        return record

    async def _require_free(self, name: str) -> None:
        names = {volume.name for volume in await self.store.volumes()}
        names |= {live.record.volume_name for live in self.executor.live.values()}
        if name in names:
            raise VsError(
                "VS2030", Kind.EXISTS, f"there is a volume {name} already; choose another name"
            )

    def _require_idle(self, volume: Volume) -> None:
        for live in self.executor.live.values():
            if live.record.volume == volume.id:
                raise VsError(
                    "VS3060",
                    Kind.PRECONDITION,
                    f"operation {live.record.id} ({live.record.kind}) is changing volume "
                    f"{volume.name}; wait for it (`vswitchctl operation watch {live.record.id}`) "
                    "or cancel it",
                )

    async def _known(self, request_id: str) -> OperationRecord | None:
        if not request_id:
            return None
        record = await self.store.operation_of(request_id)
        return None if record is None else self.now(record)

    async def _go(
        self,
        kind: str,
        volume: Volume | None,
        volume_id: VolumeId,
        name: str,
        request: Request,
        options: Options,
    ) -> OperationRecord:
        for sp in named(request):
            self.registry.record(sp)
        plan = await self._planner.plan(volume_id, volume, request, self._reserved())
        now = self._clock.wall()
        record = OperationRecord(
            id=f"op-{uuid.uuid4().hex[:12]}",
            # What is only shown does not use the request's id up.
            request_id="" if options.dry_run else options.request_id,
            kind=kind,
            volume=volume_id,
            volume_name=name,
            state=PLANNED if options.dry_run else RUNNING,
            plan=encode_plan(plan),
            cursor=0,
            copied=0,
            created=now,
            ended=now if options.dry_run else None,
            requested_by=options.who,
            rate=options.rate,
            adaptive=options.adaptive is not False,
            priority=PRIORITY if options.priority is None else options.priority,
        )
        if options.dry_run:
            return await self.store.add_operation(record)
        held = [t1.id for t1 in volume.t1s] if volume is not None else []
        record = await self.store.add_operation(record, [*held, *vcm.created(plan)])
        self._start(record, plan.base)
        return record

    def _start(self, record: OperationRecord, stored: Volume | None) -> None:
        self._log.info(
            "operation_started",
            operation=record.id,
            kind=record.kind,
            volume=record.volume_name,
            who=record.requested_by,
        )
        self.executor.start(record, stored)

    def _reserved(self) -> list[Extent]:
        return [
            extent for live in self.executor.live.values() for extent in planned_extents(live.plan)
        ]

    # Operations.

    def now(self, record: OperationRecord) -> OperationRecord:
        """The record with what is newer in memory."""
        live = self.executor.live.get(record.id)
        return record if live is None else replace(live.record, copied=live.copied)

    def rate(self, record: OperationRecord) -> int:
        """Bytes per second that its copy moves lately."""
        live = self.executor.live.get(record.id)
        return 0 if live is None else live.rate

    def expected_pause(self) -> float:
        """Seconds that hosts' I/O may wait for a swap of trees: what the longest but a hundredth
        of the last ones took."""
        measured = sorted(self.executor.pauses)
        return measured[len(measured) * 99 // 100] if measured else PAUSE

    async def operations(self, *, open_only: bool = False) -> list[OperationRecord]:
        """All that the store keeps, or those that have not ended; oldest first."""
        return [self.now(record) for record in await self.store.operations(open_only=open_only)]

    async def operation(self, operation_id: str) -> OperationRecord:
        """One; VsError if there is none of that id."""
        if (live := self.executor.live.get(operation_id)) is not None:
            return self.now(live.record)
        if (record := await self.store.operation(operation_id)) is not None:
            return self.now(record)
        raise VsError(
            "VS2042",
            Kind.NOT_FOUND,
            f"there is no operation {operation_id!r}; `vswitchctl operation list` shows them",
        )

    async def changed(self, record: OperationRecord, seconds: float) -> None:
        """Returns when the operation may have changed, or after `seconds`."""
        live = self.executor.live.get(record.id)
        if live is not None:
            try:
                async with asyncio.timeout(seconds):
                    await live.changed.wait()
            except TimeoutError:
                pass

    async def open_operations(self) -> list[OperationRecord]:
        """Those that have not ended."""
        return [record for record in await self.operations(open_only=True) if record.state in OPEN]
