"""What the cluster is made of: devices and SPs, added and taken away."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

from vswitchd.controller.collector import Collector
from vswitchd.controller.executor import Executor
from vswitchd.controller.registry import Registry
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import DeviceId, SpId
from vswitchd.ports import DeviceRecord, Store
from vswitchd.restructure.codec import describe


class Inventory:
    """Devices and SPs. `planning` is held by whatever must not meet a request being planned."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        collector: Collector,
        executor: Executor,
        planning: asyncio.Lock,
    ) -> None:
        self._store = store
        self._registry = registry
        self._collector = collector
        self._executor = executor
        self._planning = planning

    # Devices.

    async def add_device(
        self, sp: SpId, uri: str, size: int, name: str, *, direct: bool, checksums: bool
    ) -> DeviceRecord:
        """Gives an SP a device, or a known device another path. With `direct` that SP goes
        past the page cache there. With `checksums` a blank one gets them; VS3029 where its label
        says that it has none."""
        async with self._planning:
            known = {record.id: record for record in await self._store.devices()}
            name = name or uri.rstrip("/").rpartition("/")[2].partition("?")[0] or uri
            for record in known.values():
                if record.name == name and record.paths.get(sp) not in (None, uri):
                    raise VsError(
                        "VS2031",
                        Kind.EXISTS,
                        f"there is a device {name} already; choose another --name",
                    )
            fresh = DeviceId(str(uuid.uuid4()))
            view = await self._registry.processor(sp).add_device(
                uri, size, fresh, direct=direct, checksums=checksums
            )
            old = known.get(view.id)
            if old is None:
                past_cache = [sp] if direct else []
                record = DeviceRecord(
                    view.id, name, view.size, view.unit, {sp: uri}, past_cache, view.checksums
                )
            else:
                past_cache = sorted({*old.direct} - {sp} | ({sp} if direct else set()))
                record = replace(old, paths={**old.paths, sp: uri}, direct=past_cache)
            try:
                await self._store.put_device(record)
            except VsError:
                await self._registry.processor(sp).remove_device(view.id)
                raise
            await self._collector.collect()
            return record

    async def device(self, name: str) -> DeviceRecord:
        """By name or id."""
        for record in await self._store.devices():
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
            for volume in await self._store.volumes():
                for t1 in volume.t1s:
                    here = any(extent.device == record.id for extent in t1.extents)
                    if here and (t1.home == sp or len(record.paths) == 1):
                        raise VsError(
                            "VS3061",
                            Kind.PRECONDITION,
                            f"device {record.name} holds T1 object {t1.id} of volume "
                            f"{volume.name}; move it away first",
                        )
            await self._registry.processor(sp).remove_device(record.id)
            paths = {other: uri for other, uri in record.paths.items() if other != sp}
            past_cache = [other for other in record.direct if other != sp]
            record = replace(record, paths=paths, direct=past_cache)
            if paths:
                await self._store.put_device(record)
            else:
                await self._store.delete_device(record.id)
            return record

    # SPs.

    async def drain(self, sp: SpId, keep_serving: bool | None) -> None:
        """Has an SP hold nothing, or, with None, lets it hold something again."""
        async with self._planning:
            self._registry.record(sp)
            await self._store.set_drained(sp, keep_serving)

    async def remove_processor(self, sp: SpId) -> None:
        """Forgets an SP that holds nothing."""
        async with self._planning:
            self._registry.record(sp)
            self._not_in_use(sp)
            for volume in await self._store.volumes():
                if sp in volume.serving or any(t1.home == sp for t1 in volume.t1s):
                    raise VsError(
                        "VS3062",
                        Kind.PRECONDITION,
                        f"SP {sp} holds objects of volume {volume.name}; move and unserve it first",
                    )
            for device in await self._store.devices():
                if sp in device.paths:
                    raise VsError(
                        "VS3063",
                        Kind.PRECONDITION,
                        f"SP {sp} has device {device.name}; remove that first",
                    )
            await self._registry.forget(sp)

    def _not_in_use(self, sp: SpId) -> None:
        """VsError while an open operation has a step at the SP."""
        for live in self._executor.live.values():
            if any(describe(step)[1] == sp for step in live.plan.steps):
                raise VsError(
                    "VS3064",
                    Kind.PRECONDITION,
                    f"operation {live.record.id} ({live.record.kind} of volume "
                    f"{live.record.volume_name}) works at SP {sp}; wait for it "
                    f"(`vswitchctl operation watch {live.record.id}`) or cancel it",
                )
