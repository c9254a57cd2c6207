"""What the public API asks of the controller."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import replace

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.collector import Collector
from vswitchd.controller.executor import OPEN, Executor
from vswitchd.controller.planner import Planner, planned_extents
from vswitchd.controller.registry import Registry
from vswitchd.controller.turns import Turns
from vswitchd.errors import Kind, VsError
from vswitchd.model.layout import parse_layout, places
from vswitchd.model.objects import DeviceId, Extent, SpId, Volume, VolumeId
from vswitchd.ports import Clock, DeviceRecord, OperationRecord, Store
from vswitchd.restructure.codec import describe, encode_plan
from vswitchd.restructure.requests import (
    AddLeg,
    Create,
    Move,
    Relayout,
    Request,
    Serve,
    Unserve,
)

PLANNED = "planned"


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
        case Serve(sp) | Unserve(sp):
            return [sp]
        case _:
            return []
    if layout:
        found += [SpId(place.sp) for place in places(parse_layout(layout)) if place.sp]
    return found


class Service:
    """Requests are planned one at a time, so that no two plans take the same extents."""

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
        self._planning = asyncio.Lock()

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

    async def create(
        self, request_id: str, dry_run: bool, make: Callable[[VolumeId], Create]
    ) -> OperationRecord:
        """Makes a new volume."""
        request = make(VolumeId(str(uuid.uuid4())))
        async with self._planning:
            if (known := await self._known(request_id)) is not None:
                return known
            names = {volume.name for volume in await self.store.volumes()}
            names |= {live.record.volume_name for live in self.executor.live.values()}
            if request.name in names:
                raise VsError(
                    "VS2030",
                    Kind.EXISTS,
                    f"there is a volume {request.name} already; choose another name",
                )
            return await self._go(
                "create", None, request.id, request.name, request, request_id, dry_run
            )

    async def change(
        self, kind: str, name: str, request: Request, request_id: str, dry_run: bool
    ) -> OperationRecord:
        """Restructures or deletes a volume."""
        if (known := await self._known(request_id)) is not None:
            return known
        turn = self._turns.of((await self.volume(name)).id)
        async with turn, self._planning:
            if (known := await self._known(request_id)) is not None:
                return known
            volume = await self.volume(name)
            for live in self.executor.live.values():
                if live.record.volume == volume.id:
                    raise VsError(
                        "VS3060",
                        Kind.PRECONDITION,
                        f"operation {live.record.id} ({live.record.kind}) is changing volume "
                        f"{name}; wait for it (`vswitchctl operation watch {live.record.id}`) "
                        "or cancel it",
                    )
            return await self._go(kind, volume, volume.id, name, request, request_id, dry_run)

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
        request_id: str,
        dry_run: bool,
    ) -> OperationRecord:
        for sp in named(request):
            self.registry.record(sp)
        plan = await self._planner.plan(volume_id, volume, request, self._reserved())
        record = OperationRecord(
            id=f"op-{uuid.uuid4().hex[:12]}",
            request_id=request_id,
            kind=kind,
            volume=volume_id,
            volume_name=name,
            state=PLANNED if dry_run else "running",
            plan=encode_plan(plan),
            cursor=0,
            copied=0,
            created=self._clock.wall(),
        )
        if dry_run:
            return record
        record = await self.store.add_operation(record)
        self._log.info("operation_started", operation=record.id, kind=kind, volume=name)
        self.executor.start(record)
        return record

    def _reserved(self) -> list[Extent]:
        return [
            extent for live in self.executor.live.values() for extent in planned_extents(live.plan)
        ]

    # Operations.

    def now(self, record: OperationRecord) -> OperationRecord:
        """The record with what is newer in memory."""
        live = self.executor.live.get(record.id)
        return record if live is None else replace(live.record, copied=live.copied)

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

    # Devices.

    async def add_device(
        self, sp: SpId, uri: str, size: int, name: str, *, direct: bool
    ) -> DeviceRecord:
        """Gives an SP a device, or a known device another path. With `direct` that SP goes
        past the page cache there."""
        async with self._planning:
            known = {record.id: record for record in await self.store.devices()}
            name = name or uri.rstrip("/").rpartition("/")[2].partition("?")[0] or uri
            for record in known.values():
                if record.name == name and record.paths.get(sp) not in (None, uri):
                    raise VsError(
                        "VS2031",
                        Kind.EXISTS,
                        f"there is a device {name} already; choose another --name",
                    )
            fresh = DeviceId(str(uuid.uuid4()))
            view = await self.registry.processor(sp).add_device(uri, size, fresh, direct=direct)
            old = known.get(view.id)
            if old is None:
                past_cache = [sp] if direct else []
                record = DeviceRecord(view.id, name, view.size, view.unit, {sp: uri}, past_cache)
            else:
                past_cache = sorted({*old.direct} - {sp} | ({sp} if direct else set()))
                record = replace(old, paths={**old.paths, sp: uri}, direct=past_cache)
            try:
                await self.store.put_device(record)
            except VsError:
                await self.registry.processor(sp).remove_device(view.id)
                raise
            await self.collector.collect()
            return record

    async def device(self, name: str) -> DeviceRecord:
        """By name or id."""
        for record in await self.store.devices():
            if name in (record.name, record.id):
                return record
        raise VsError(
            "VS2043",
            Kind.NOT_FOUND,
            f"there is no device {name!r}; `vswitchctl device list` shows what there is",
        )

    async def remove_device(self, name: str, sp: SpId) -> DeviceRecord:
        """Takes an SP's path to a device away; the last path only from an unused device."""
        async with self._planning:
            record = await self.device(name)
            if sp not in record.paths:
                raise VsError(
                    "VS2044", Kind.NOT_FOUND, f"SP {sp} has no path to device {record.name}"
                )
            self._not_in_use(sp)
            for volume in await self.store.volumes():
                for t1 in volume.t1s:
                    here = any(extent.device == record.id for extent in t1.extents)
                    if here and (t1.home == sp or len(record.paths) == 1):
                        raise VsError(
                            "VS3061",
                            Kind.PRECONDITION,
                            f"device {record.name} holds T1 object {t1.id} of volume "
                            f"{volume.name}; move it away first",
                        )
            await self.registry.processor(sp).remove_device(record.id)
            paths = {other: uri for other, uri in record.paths.items() if other != sp}
            past_cache = [other for other in record.direct if other != sp]
            record = replace(record, paths=paths, direct=past_cache)
            if paths:
                await self.store.put_device(record)
            else:
                await self.store.delete_device(record.id)
            return record

    # SPs.

    async def remove_processor(self, sp: SpId) -> None:
        """Forgets an SP that holds nothing."""
        async with self._planning:
            self.registry.record(sp)
            self._not_in_use(sp)
            for volume in await self.store.volumes():
                if sp in volume.serving or any(t1.home == sp for t1 in volume.t1s):
                    raise VsError(
                        "VS3062",
                        Kind.PRECONDITION,
                        f"SP {sp} holds objects of volume {volume.name}; move and unserve it first",
                    )
            for device in await self.store.devices():
                if sp in device.paths:
                    raise VsError(
                        "VS3063",
                        Kind.PRECONDITION,
                        f"SP {sp} has device {device.name}; remove that first",
                    )
            await self.registry.forget(sp)

    def _not_in_use(self, sp: SpId) -> None:
        """VsError while an open operation has a step at the SP."""
        for live in self.executor.live.values():
            if any(describe(step)[1] == sp for step in live.plan.steps):
                raise VsError(
                    "VS3064",
                    Kind.PRECONDITION,
                    f"operation {live.record.id} ({live.record.kind} of volume "
                    f"{live.record.volume_name}) works at SP {sp}; wait for it "
                    f"(`vswitchctl operation watch {live.record.id}`) or cancel it",
                )

    async def open_operations(self) -> list[OperationRecord]:
        """Those that have not ended."""
        return [record for record in await self.operations(open_only=True) if record.state in OPEN]
