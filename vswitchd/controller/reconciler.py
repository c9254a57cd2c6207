"""Making what SPs hold what the store says: after restarts, and of leftovers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.collector import Collector
from vswitchd.controller.registry import Registry
from vswitchd.errors import VsError
from vswitchd.model.objects import DeviceId, SpId, Volume, VolumeId, project
from vswitchd.model.view import View
from vswitchd.ports import Clock, DeviceRecord, Store

#: Seconds between looks while nobody joins.
INTERVAL = 10.0


class Reconciler:
    """Only volumes without an open operation are touched: those are the executor's."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        collector: Collector,
        clock: Clock,
        log: FilteringBoundLogger,
        busy: Callable[[], set[VolumeId]],
    ) -> None:
        self._store = store
        self._registry = registry
        self._collector = collector
        self._clock = clock
        self._log = log
        self._busy = busy
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look soon: an SP has joined."""
        self._wake.set()

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            try:
                async with asyncio.timeout(INTERVAL):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self.reconcile()
            except VsError as error:
                self._log.warning("reconcile_failed", error=str(error))

    async def reconcile(self) -> None:
        """One look. Views come before the store is read, so that what is younger than a view
        is in the store or busy, and never taken for a leftover."""
        views = await self._collector.collect()
        busy = self._busy()
        volumes = {v.id: v for v in await self._store.volumes()}
        busy |= self._busy()
        devices = await self._store.devices()
        for sp, view in sorted(views.items()):
            try:
                await self._devices(sp, view, devices)
                await self._trees(sp, view, volumes, busy)
                await self._leftovers(sp, view, volumes, busy)
            except VsError as error:
                self._log.warning("reconcile_failed", sp=sp, error=str(error))

    async def _devices(self, sp: SpId, view: View, devices: Sequence[DeviceRecord]) -> None:
        for record in devices:
            uri = record.paths.get(sp)
            found = view.device(record.id)
            if uri is None or (found is not None and found.up):
                continue
            try:
                # Without an id to give: a device that has become blank is not labelled anew.
                opened = await self._registry.processor(sp).add_device(uri, 0, DeviceId(""))
            except VsError as error:
                self._log.warning("device_down", sp=sp, device=record.id, error=str(error))
                continue
            if opened.id == record.id:
                self._log.info("device_reopened", sp=sp, device=record.id)
            else:
                self._log.error("device_replaced", sp=sp, device=record.id, by=opened.id, uri=uri)

    async def _trees(
        self, sp: SpId, view: View, volumes: dict[VolumeId, Volume], busy: set[VolumeId]
    ) -> None:
        at = self._registry.processor(sp)
        for volume in volumes.values():
            held = view.t2(volume.id)
            if volume.id in busy or sp not in volume.serving:
                continue
            try:
                t2 = project(volume, sp, self._registry.peers)
            except KeyError:
                continue  # a peer that never registered: nothing could be reached by it
            if held is None or held.t2.version < volume.version:
                await at.stage_t2(t2)
                await at.activate_t2(volume.id, volume.version)
                self._log.info("tree_pushed", sp=sp, volume=volume.id, version=volume.version)
            elif held.t2.version == volume.version and held.t2.peers != t2.peers:
                # A peer came back at another address: the same tree, told anew.
                await at.stage_t2(t2)
                await at.activate_t2(volume.id, volume.version)
                self._log.info("addresses_pushed", sp=sp, volume=volume.id)
        for held_id in {v.t2.volume for v in view.t2s}:
            known = volumes.get(held_id)
            if held_id not in busy and (known is None or sp not in known.serving):
                await at.remove_t2(held_id)
                self._log.info("tree_removed", sp=sp, volume=held_id)

    async def _leftovers(
        self, sp: SpId, view: View, volumes: dict[VolumeId, Volume], busy: set[VolumeId]
    ) -> None:
        homes = {t1.id: t1.home for volume in volumes.values() for t1 in volume.t1s}
        for held in view.t1s:
            if held.t1.volume in busy or homes.get(held.t1.id) == sp:
                continue
            await self._registry.processor(sp).delete_t1(held.t1.id)
            self._log.info("leftover_removed", sp=sp, t1=held.t1.id)
