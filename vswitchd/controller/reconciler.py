"""Making what SPs hold what the store says: after restarts, and of leftovers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.collector import Collector
from vswitchd.controller.drift import drift, volumes_at
from vswitchd.controller.registry import Registry
from vswitchd.controller.staging import stage
from vswitchd.controller.turns import Turns
from vswitchd.errors import VsError
from vswitchd.model.objects import SpId, T1Id, Volume, VolumeId
from vswitchd.model.view import View
from vswitchd.ports import Clock, DeviceRecord, Store

#: Seconds for which an object stays in the ledger after it was last in use: a request to make it
#: that comes late must still be known for what it is.
KEPT = 600.0
#: Seconds between looks while nobody joins.
INTERVAL = 10.0


class Reconciler:
    """Only volumes without an open operation are touched: those are the executor's."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        collector: Collector,
        turns: Turns,
        clock: Clock,
        log: FilteringBoundLogger,
        busy: Callable[[], set[VolumeId]],
    ) -> None:
        self._store = store
        self._registry = registry
        self._collector = collector
        self._turns = turns
        self._clock = clock
        self._log = log
        self._busy = busy
        self._wake = asyncio.Event()
        #: Since when objects of the ledger have been in no volume, as far as this life knows.
        self._idle: dict[T1Id, float] = {}

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
        """One look at every SP that is up. What fails at one device or volume is logged and
        does not keep the others from it."""
        views = await self._collector.collect()
        devices = await self._store.devices()
        volumes = {volume.id: volume for volume in await self._store.volumes()}
        ledger = await self._store.ledger()
        await asyncio.gather(
            *(self._processor(view, views, devices, volumes, ledger) for view in views.values())
        )
        await self._close_ledger(ledger, views)

    async def _processor(
        self,
        view: View,
        views: Mapping[SpId, View],
        devices: Sequence[DeviceRecord],
        volumes: Mapping[VolumeId, Volume],
        ledger: Collection[T1Id],
    ) -> None:
        for device in devices:
            await self._try(self._device(view, device), sp=view.sp, device=device.id)
        for volume_id in volumes_at(view, volumes.values()):
            # A first look without the lock: nearly always there is nothing to do.
            await self._try(self._access(view, volume_id), sp=view.sp, volume=volume_id)
            peers = self._registry.peers
            if drift(view, volume_id, volumes.get(volume_id), peers, views.values(), ledger):
                await self._try(
                    self._volume(view, views, volume_id, ledger), sp=view.sp, volume=volume_id
                )

    async def _try(self, work: Coroutine[None, None, None], **what: str) -> None:
        try:
            await work
        except VsError as error:
            self._log.warning("reconcile_failed", **what, error=str(error))

    async def _device(self, view: View, record: DeviceRecord) -> None:
        uri = record.paths.get(view.sp)
        found = view.device(record.id)
        if uri is not None and (found is None or not found.up):
            await self._registry.processor(view.sp).add_device(
                uri,
                0,
                record.id,
                direct=view.sp in record.direct,
                checksums=record.checksums,
            )
            self._log.info("device_reopened", sp=view.sp, device=record.id)

    async def _access(self, view: View, volume_id: VolumeId) -> None:
        """Tells who may use a volume where less is known of it, also while an operation changes
        the volume: that may take hours, and the SP may admit somebody who was denied. One that
        knows more has it from a store that this is an old copy of, and keeps it until somebody
        says something new."""
        access = await self._store.access(volume_id)
        if any(held.access < access.version for held in view.t2s_of(volume_id)):
            await self._registry.processor(view.sp).set_access(volume_id, access)
            self._log.info("access_pushed", sp=view.sp, volume=volume_id, version=access.version)

    async def _volume(
        self,
        view: View,
        views: Mapping[SpId, View],
        volume_id: VolumeId,
        ledger: Collection[T1Id],
    ) -> None:
        """Judged by the store as it is now. While this has the volume's turn no request on it
        begins; and an operation that has ended since the view was made is in the store, as it
        is seen to be idle before the store is read. So what is not there now is a leftover,
        however old the view."""
        async with self._turns.of(volume_id):
            if volume_id in self._busy():
                return
            volume = await self._store.volume(volume_id)
            found = drift(view, volume_id, volume, self._registry.peers, views.values(), ledger)
            at = self._registry.processor(view.sp)
            if found.push is not None:
                version = found.push.version
                await stage(self._store, at, found.push)
                await at.activate_t2(volume_id, version)
                self._log.info("tree_pushed", sp=view.sp, volume=volume_id, version=version)
            if found.remove:
                await at.remove_t2(volume_id, found.remove)
                self._log.info("tree_removed", sp=view.sp, volume=volume_id)
            for t1, epoch in found.leftovers:
                await at.delete_t1(t1, epoch)
                self._log.info("leftover_removed", sp=view.sp, t1=t1)

    async def _close_ledger(self, ledger: Collection[T1Id], views: Mapping[SpId, View]) -> None:
        """Takes out of the ledger what can't be anywhere: no volume has it, no open operation
        may make it, every SP there is was asked afresh and holds it in no label, and no tree
        refers to it."""
        volumes = {volume.id: volume for volume in await self._store.volumes()}
        now = self._clock.monotonic()
        unused = set(ledger) - {t1.id for volume in volumes.values() for t1 in volume.t1s}
        self._idle = {t1: self._idle.get(t1, now) for t1 in unused}
        idle = {t1 for t1, since in self._idle.items() if now - since >= KEPT}
        if not idle or self._busy() or set(views) != set(self._registry.records):
            return
        seen = {t1 for view in views.values() for held in view.t2s for t1 in held.t2.homes}
        for sp in sorted(self._registry.records):
            try:
                labels = await self._registry.processor(sp).labels()
            except VsError:
                return
            if any(label.error for label in labels):
                return
            seen |= {held.t1.id for label in labels for held in label.t1s}
        # An operation that has begun meanwhile has entered what it makes after `ledger` was read.
        if idle - seen and not self._busy():
            await self._store.forget_t1s(idle - seen)
