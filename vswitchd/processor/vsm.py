"""The VSM: what this SP holds, and what it does when the controller tells it to."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from vswitchd.errors import Kind, VsError
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
    walk,
)
from vswitchd.model.view import Affected, DeviceView, T2View, View
from vswitchd.processor.state import State
from vswitchd.restructure.mvsm import determine


class EngineCalls(Protocol):
    """What the VSM needs of the engine; `processor.engine.Engine` has it."""

    async def device_add(self, uri: str, size: int, device: DeviceId) -> DeviceView: ...
    async def device_remove(self, device: DeviceId) -> None: ...
    async def devices(self) -> tuple[DeviceView, ...]: ...
    async def t1_put(self, t1: T1, epoch: int) -> None: ...
    async def t1_adopt(self, t1: T1, epoch: int) -> None: ...
    async def t1_fence(self, t1: T1Id, epoch: int) -> None: ...
    async def t1_delete(self, t1: T1Id) -> None: ...
    async def t1s(self) -> tuple[object, ...]: ...
    async def t2_activate(self, t2: T2, *, resync: bool) -> int: ...
    async def t2_remove(self, volume: VolumeId) -> None: ...
    async def resync_percents(self) -> dict[VolumeId, int]: ...
    async def reference_drop(self, volume: VolumeId, t1: T1Id) -> None: ...
    async def copy_start(self, volume: VolumeId, path: Path) -> None: ...
    async def copy_stop(self, volume: VolumeId, path: Path) -> None: ...
    async def copies(self) -> tuple[object, ...]: ...


def in_sync_legs(root: Node) -> set[tuple[Path, int]]:
    """Every (mirror, leg) that may be read."""
    return {
        (path, index)
        for path, node in walk(root)
        if isinstance(node, Mirror)
        for index, leg in enumerate(node.legs)
        if leg.state is LegState.IN_SYNC
    }


class Vsm:
    """One SP's manager. Calls for one volume happen one after the other."""

    def __init__(
        self, state: State, engine: EngineCalls, incarnation: str, log: FilteringBoundLogger
    ) -> None:
        self._state = state
        self._engine = engine
        self._incarnation = incarnation
        self._log = log
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        #: The term that this SP's MVSM is active for; lost at a restart, as it must be.
        self._mvsm_term: int | None = None
        self._down: dict[DeviceId, DeviceView] = {}
        self.sp = SpId(state.identity.sp)

    # Who may call.

    def check_cluster(self, cluster: str) -> None:
        """Refuses another cluster's controller."""
        mine = self._state.identity.cluster_id
        if cluster != mine:
            raise VsError(
                "VS6021",
                Kind.UNSAFE,
                f"SP {self.sp} belongs to cluster {mine}, not to {cluster}; check the addresses",
            )

    def admit(self, cluster: str, term: int) -> None:
        """Refuses another cluster and a term that is over; remembers a higher one first."""
        self.check_cluster(cluster)
        seen = self._state.identity.term
        if term < seen:
            raise VsError(
                "VS3023",
                Kind.STALE,
                f"term {term} is over: SP {self.sp} has seen term {seen}",
            )
        if term > seen:
            self._state.set_term(term)
            self._mvsm_term = None

    # What it holds.

    async def start(self) -> None:
        """Opens the devices and serves what was committed. A tree that is out of date can do
        no harm: T1 objects that were fenced since refuse its epoch."""
        for device, uri in sorted(self._state.identity.devices.items()):
            try:
                await self._engine.device_add(uri, 0, DeviceId(device))
            except VsError as error:
                self._log.error("device_down", device=device, uri=uri, error=str(error))
                view = DeviceView(DeviceId(device), uri, 0, 1 << 20, False, (), error.message)
                self._down[view.id] = view
        for t2 in self._state.committed.values():
            await self._activate(t2, resync=t2.volume in self._state.unclean)

    async def view(self) -> View:
        """All of it, as the engine and the state say."""
        percents = await self._engine.resync_percents()
        active = [t2 for t2 in self._state.committed.values() if t2.volume in percents]
        open_devices = await self._engine.devices()
        known = {device.id for device in open_devices}
        down = [device for device in self._down.values() if device.id not in known]
        return View(
            sp=self.sp,
            incarnation=self._incarnation,
            term=self._state.identity.term,
            mvsm_active=self._mvsm_term is not None,
            devices=(*open_devices, *down),
            t1s=await self._engine.t1s(),  # type: ignore[arg-type]
            t2s=(
                *(T2View(t2, True, percents[t2.volume]) for t2 in active),
                *(T2View(t2, False) for t2 in self._state.staged.values()),
            ),
            copies=await self._engine.copies(),  # type: ignore[arg-type]
        )

    # What it is told.

    async def add_device(self, uri: str, size: int, device: DeviceId) -> DeviceView:
        """Opens a device, and labels it if it is blank."""
        found = await self._engine.device_add(uri, size, device)
        self._state.set_device(found.id, uri)
        self._down.pop(found.id, None)
        self._log.info("add_device", device=found.id, uri=uri)
        return found

    async def remove_device(self, device: DeviceId) -> None:
        """Closes a device that nothing here lies on."""
        await self._engine.device_remove(device)
        self._state.set_device(device, None)
        self._down.pop(device, None)
        self._log.info("remove_device", device=device)

    async def put_t1(self, t1: T1, epoch: int) -> None:
        """Creates or extends a T1 object."""
        async with self._locks[t1.id]:
            await self._engine.t1_put(t1, epoch)
        self._log.info("put_t1", t1=t1.id, volume_id=t1.volume, epoch=epoch)

    async def adopt_t1(self, t1: T1, epoch: int) -> None:
        """Becomes the home of a T1 object."""
        async with self._locks[t1.id]:
            await self._engine.t1_adopt(t1, epoch)
        self._log.info("adopt_t1", t1=t1.id, volume_id=t1.volume, epoch=epoch)

    async def fence_t1(self, t1: T1Id, epoch: int) -> None:
        """Raises a T1 object's epoch and waits for lower ones' I/O. An object that has left
        this SP needs no fence: nobody can reach it here."""
        async with self._locks[t1]:
            try:
                await self._engine.t1_fence(t1, epoch)
            except VsError as error:
                if error.kind is not Kind.NOT_FOUND or self._down:
                    raise
        self._log.info("fence_t1", t1=t1, epoch=epoch)

    async def delete_t1(self, t1: T1Id) -> None:
        """Forgets a T1 object."""
        async with self._locks[t1]:
            await self._engine.t1_delete(t1)
        self._log.info("delete_t1", t1=t1)

    async def stage_t2(self, t2: T2) -> None:
        """Keeps a T2 object durably, inactive."""
        if t2.sp != self.sp:
            raise VsError("VS1031", Kind.INVALID, f"a T2 object of {t2.sp} came to {self.sp}")
        async with self._locks[t2.volume]:
            current = self._state.committed.get(t2.volume)
            if current is not None and t2.version < current.version:
                raise VsError(
                    "VS3024",
                    Kind.STALE,
                    f"volume {t2.name}: version {t2.version} is older than {current.version}",
                )
            if current != t2:
                self._state.stage(t2)
        self._log.info(
            "stage_t2", volume=t2.volume, name=t2.name, version=t2.version, epoch=t2.epoch
        )

    async def activate_t2(self, volume: VolumeId, version: int) -> int:
        """Swaps to the staged T2 object; returns the pause in microseconds."""
        async with self._locks[volume]:
            current = self._state.committed.get(volume)
            staged = self._state.staged.get(volume)
            if staged is not None and staged.version == version:
                target = staged
            elif current is not None and current.version == version:
                target = current
            else:
                raise VsError(
                    "VS3025",
                    Kind.PRECONDITION,
                    f"SP {self.sp} has no version {version} of volume {volume} staged",
                )
            # After an unclean end a copy may lack what was in flight then: legs that come
            # into sync in this life are made alike once more.
            new_legs = current is None or in_sync_legs(target.root) != in_sync_legs(current.root)
            pause = await self._activate(
                target, resync=volume in self._state.unclean and new_legs and current != target
            )
            self._state.commit(target)
        self._log.info(
            "activate_t2",
            volume=volume,
            name=target.name,
            version=version,
            epoch=target.epoch,
            pause_us=pause,
        )
        return pause

    async def _activate(self, t2: T2, *, resync: bool) -> int:
        mirrored = any(isinstance(node, Mirror) for _, node in walk(t2.root))
        if mirrored and t2.owner == self.sp:
            # Durable before the first write that could leave legs unlike.
            self._state.set_mirrored({*self._state.identity.mirrored, t2.volume})
        return await self._engine.t2_activate(t2, resync=resync)

    async def remove_t2(self, volume: VolumeId) -> None:
        """Takes the volume out of service here."""
        async with self._locks[volume]:
            await self._engine.t2_remove(volume)
            self._state.remove(volume)
            self._state.set_mirrored(set(self._state.identity.mirrored) - {volume})
            self._state.unclean.discard(volume)
        self._log.info("remove_t2", volume=volume)

    async def drop_reference(self, volume: VolumeId, t1: T1Id) -> None:
        """Closes the remote reference to a T1 object."""
        await self._engine.reference_drop(volume, t1)
        self._log.info("drop_reference", t1=t1, volume_id=volume)

    async def start_copy(self, volume: VolumeId, path: Path) -> None:
        """Copies onto the write-only leg at `path`."""
        await self._engine.copy_start(volume, path)
        self._log.info("start_copy", volume=volume, path=path)

    async def stop_copy(self, volume: VolumeId, path: Path) -> None:
        """Ends a copy."""
        await self._engine.copy_stop(volume, path)
        self._log.info("stop_copy", volume=volume, path=path)

    # The master.

    def activate_mvsm(self, term: int) -> None:
        """This SP's MVSM answers for the term."""
        self._mvsm_term = term
        self._log.info("activate_mvsm", term=term)

    def deactivate_mvsm(self) -> None:
        """This SP's MVSM answers nobody."""
        self._mvsm_term = None
        self._log.info("deactivate_mvsm")

    def determine(
        self, term: int, current: Volume | None, target: Volume | None
    ) -> tuple[Affected, ...]:
        """Which objects the target affects; the active MVSM alone says."""
        if self._mvsm_term != term:
            raise VsError(
                "VS3026",
                Kind.PRECONDITION,
                f"the MVSM of SP {self.sp} is not active for term {term}",
            )
        affected = determine(current, target)
        volume = target or current
        self._log.info("determine", volume=volume.id if volume else "", objects=len(affected))
        return affected

    async def ended(self, *, clean: bool) -> None:
        """The engine has stopped; after a clean end no legs can differ, unless a resync was
        not done."""
        if clean and not self.resyncing:
            self._state.set_mirrored(set())

    #: Set before the engine stops: some mirror's legs are not alike yet.
    resyncing = False

    async def note_resync(self) -> None:
        """Looks whether a resync still runs."""
        percents = await self._engine.resync_percents()
        self.resyncing = any(percent < 100 for percent in percents.values())
