"""The VSM: what this SP holds, and what it does when the controller tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from structlog.typing import FilteringBoundLogger

from vswitchd.errors import Kind, VsError
from vswitchd.model.access import Access
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
from vswitchd.model.view import (
    Affected,
    Complaint,
    CopyMode,
    DeviceView,
    LabelView,
    T2View,
    View,
)
from vswitchd.processor.calls import EngineCalls
from vswitchd.processor.state import State
from vswitchd.processor.voter import Voter
from vswitchd.restructure.mvsm import determine


@dataclass(frozen=True, slots=True)
class Caller:
    """Who tells this SP what to do: a controller of a cluster, in a term."""

    cluster: str
    term: int


#: The allocation unit told of a device that is down, until it can be asked.
UNIT = 1 << 20
#: The object that is locked while devices come and go.
_DEVICES = "devices"


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
    """One SP's manager. Calls for one object happen one after the other; every call but
    `view` may be VsError VS6021 (another cluster) or VS3023 (a term that is over)."""

    def __init__(
        self, state: State, engine: EngineCalls, incarnation: str, log: FilteringBoundLogger
    ) -> None:
        self._state = state
        self._engine = engine
        self._incarnation = incarnation
        self._log = log
        #: One for each object that a call is at work on; forgotten with the last of them.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        #: The term that this SP's MVSM is active for; lost at a restart, as it must be.
        self._mvsm_term: int | None = None
        self._down: dict[DeviceId, DeviceView] = {}
        #: Volumes of which the engine knows who may use them; to others it would admit anybody.
        self._told: set[VolumeId] = set()
        self.sp = SpId(state.identity.sp)
        self.voter = Voter(state, engine, self._lock, self._swap, log)

    @property
    def mvsm_term(self) -> int | None:
        """The term for which its MVSM is active, if it is."""
        return self._mvsm_term

    @property
    def term(self) -> int:
        """The highest term that it has seen, in any life."""
        return self._state.identity.term

    # Who may call.

    def check_cluster(self, caller: Caller) -> None:
        """Refuses another cluster's controller."""
        mine = self._state.identity.cluster_id
        if caller.cluster != mine:
            raise VsError(
                "VS6021",
                Kind.UNSAFE,
                f"SP {self.sp} belongs to cluster {mine}, not to {caller.cluster}; "
                "check the addresses",
            )

    def _admit(self, caller: Caller) -> None:
        """Refuses another cluster and a term that is over; remembers a higher one first."""
        self.check_cluster(caller)
        seen = self._state.identity.term
        if caller.term < seen:
            raise VsError(
                "VS3023",
                Kind.STALE,
                f"term {caller.term} is over: SP {self.sp} has seen term {seen}",
            )
        if caller.term > seen:
            self._state.set_term(caller.term)
            self._mvsm_term = None

    def _lock(self, key: str) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    @asynccontextmanager
    async def _turn(self, caller: Caller, key: str) -> AsyncIterator[None]:
        """Waits until nothing else is done to the object, then admits the caller: its term
        may have ended while it waited."""
        async with self._lock(key):
            self._admit(caller)
            yield

    # What it holds.

    async def start(self) -> None:
        """Opens the devices and serves what was committed. A tree that is out of date can do
        no harm: T1 objects that were fenced since refuse its epoch. What can't be opened or
        served is logged and missing from the view."""
        for device, uri in sorted(self._state.identity.devices.items()):
            await self._reopen(DeviceId(device), uri)
        # At once, since each write is durable: a thousand of them would take many seconds.
        self._own_mirrors(self._state.committed.values())
        for t2 in self._state.committed.values():
            try:
                await self._activate(t2, resync=t2.volume in self._state.unclean)
            except VsError as error:
                self._log.error("volume_down", volume=t2.volume, name=t2.name, error=str(error))

    async def reopen(self) -> None:
        """Tries the devices again that could not be opened."""
        for view in list(self._down.values()):
            async with self._lock(_DEVICES):
                if view.id in self._down:
                    await self._reopen(view.id, view.uri)

    async def _reopen(self, device: DeviceId, uri: str) -> None:
        direct = device in self._state.identity.direct
        checksums = device in self._state.identity.checksums
        try:
            # Without an id to give: a device that has become blank is not labelled anew.
            found = await self._engine.device_add(
                uri, 0, DeviceId(""), direct=direct, checksums=checksums
            )
            if found.id == device:
                if self._down.pop(device, None):
                    self._log.info("device_up", device=device, uri=uri)
                return
            await self._engine.device_remove(found.id)
            problem = f"{uri} is device {found.id} now, not {device}"
        except VsError as error:
            problem = error.message
        if device not in self._down:
            self._log.error("device_down", device=device, uri=uri, error=problem)
        self._down[device] = DeviceView(device, uri, 0, UNIT, False, (), problem, direct, checksums)

    async def view(self, volume: VolumeId | None = None) -> View:
        """All of it, or of objects and copies one volume's, as the engine and the state say."""
        percents = await self._engine.resync_percents(volume)
        committed, staged = self._state.committed, self._state.staged
        if volume is not None:
            committed = {volume: committed[volume]} if volume in committed else {}
            staged = {volume: staged[volume]} if volume in staged else {}
        active = [t2 for t2 in committed.values() if t2.volume in percents]
        t1s, others = await self._engine.t1s(volume)
        return View(
            sp=self.sp,
            incarnation=self._incarnation,
            term=self._state.identity.term,
            mvsm_active=self._mvsm_term is not None,
            devices=await self.devices(),
            t1s=t1s,
            t2s=(
                *(self._t2_view(t2, True, percents[t2.volume]) for t2 in active),
                *(self._t2_view(t2, False, 100) for t2 in staged.values()),
            ),
            copies=tuple(
                copy
                for copy in await self._engine.copies()
                if volume is None or copy.volume == volume
            ),
            other_t1s=others,
            ejections=tuple(
                ejection for id_, ejection in self._state.ejections.items() if volume in (None, id_)
            ),
        )

    def _t2_view(self, t2: T2, active: bool, resync_percent: int) -> T2View:
        return T2View(t2, active, resync_percent, self._state.access(t2.volume).version)

    async def trouble(self) -> Complaint:
        """What the controller is to hear of it with every heartbeat."""
        found = await self._engine.trouble()
        recorded = {id_: one.t2.epoch for id_, one in self._state.ejections.items()}
        return replace(found, ejections=recorded)

    async def devices(self) -> tuple[DeviceView, ...]:
        """Those that are open, and those that should be."""
        found = await self._engine.devices()
        known = {device.id for device in found}
        return (*found, *(device for device in self._down.values() if device.id not in known))

    async def labels(self, caller: Caller) -> tuple[LabelView, ...]:
        """What its devices' labels say; those that are not open say why."""
        self.check_cluster(caller)
        found = await self._engine.labels()
        known = {label.device for label in found}
        down = (
            LabelView(view.id, view.uri, error=view.error)
            for view in self._down.values()
            if view.id not in known
        )
        return (*found, *down)

    # What it is told.

    async def add_device(
        self,
        caller: Caller,
        uri: str,
        size: int,
        device: DeviceId,
        *,
        direct: bool,
        checksums: bool,
    ) -> DeviceView:
        """Opens a device, and labels it if it is blank and was not known here, with checksums if
        they are wanted (VS3029 where another label says otherwise). With `direct` hosts' data goes
        past the page cache, now and after every restart."""
        async with self._turn(caller, _DEVICES):
            if device in self._state.identity.devices:
                device = DeviceId("")
            found = await self._engine.device_add(
                uri, size, device, direct=direct, checksums=checksums
            )
            self._state.set_device(found.id, uri, direct=direct, checksums=found.checksums)
            self._down.pop(found.id, None)
        self._log.info(
            "add_device", device=found.id, uri=uri, direct=direct, checksums=found.checksums
        )
        return found

    async def remove_device(self, caller: Caller, device: DeviceId) -> None:
        """Closes a device that nothing here lies on."""
        async with self._turn(caller, _DEVICES):
            await self._engine.device_remove(device)
            self._state.set_device(device, None)
            self._down.pop(device, None)
        self._log.info("remove_device", device=device)

    async def put_t1(self, caller: Caller, t1: T1, epoch: int) -> None:
        """Creates or extends a T1 object."""
        async with self._turn(caller, t1.id):
            await self._engine.t1_put(t1, epoch)
        self._log.info("put_t1", t1=t1.id, volume_id=t1.volume, epoch=epoch)

    async def adopt_t1(self, caller: Caller, t1: T1, epoch: int) -> None:
        """Becomes the home of a T1 object."""
        async with self._turn(caller, t1.id):
            await self._engine.t1_adopt(t1, epoch)
        self._log.info("adopt_t1", t1=t1.id, volume_id=t1.volume, epoch=epoch)

    async def fence_t1(self, caller: Caller, t1: T1Id, epoch: int, known: int) -> None:
        """Raises a T1 object's epoch and waits for lower ones' I/O. An object that has left
        this SP needs no fence: nobody can reach it here. VsError VS3087 if a tree of it of a
        higher epoch than `known` is recorded here: its owner has left legs behind."""
        async with self._turn(caller, t1):
            records = [one for one in self._state.ejections.values() if t1 in one.t2.homes]
            for record in records:
                if record.t2.epoch > known:
                    raise VsError(
                        "VS3087",
                        Kind.STALE,
                        f"volume {record.t2.name} has moved on to version {record.t2.version}: its "
                        f"owner {record.t2.owner} has left legs behind",
                    )
            try:
                await self._engine.t1_fence(t1, epoch, None)
            except VsError as error:
                if error.kind is not Kind.NOT_FOUND or self._down:
                    raise
            for record in records:
                self._state.forget(record.t2.volume, known)
        self._log.info("fence_t1", t1=t1, epoch=epoch)

    async def delete_t1(self, caller: Caller, t1: T1Id, epoch: int) -> None:
        """Forgets a T1 object. One that has been fenced above `epoch` stays: it has come back
        here since this was asked."""
        async with self._turn(caller, t1):
            await self._engine.t1_delete(t1, epoch)
            for record in list(self._state.ejections.values()):
                # Where nothing of the volume is left there is nothing to vote with.
                others, _ = await self._engine.t1s(record.t2.volume)
                if t1 in record.t2.homes and not others and epoch >= record.t2.epoch:
                    self._state.forget(record.t2.volume, epoch)
        self._log.info("delete_t1", t1=t1)

    async def stage_t2(self, caller: Caller, t2: T2, access: Access) -> None:
        """Keeps a T2 object durably, inactive, and before it who may use the volume: nobody is
        admitted here by less than was known when this was asked."""
        if t2.sp != self.sp:
            raise VsError("VS1031", Kind.INVALID, f"a T2 object of {t2.sp} came to {self.sp}")
        async with self._turn(caller, t2.volume):
            current = self._state.committed.get(t2.volume)
            # An owner and the controller may have made one version each; one of them came to be.
            now = t2.version, t2.epoch
            if current is not None and now < (current.version, current.epoch):
                raise VsError(
                    "VS3024",
                    Kind.STALE,
                    f"volume {t2.name}: version {t2.version} is older than {current.version}",
                )
            staged = self._state.staged.get(t2.volume)
            if staged is not None and now < (staged.version, staged.epoch):
                raise VsError(
                    "VS3024",
                    Kind.STALE,
                    f"volume {t2.name}: version {t2.version} is older than {staged.version}, "
                    "which is staged",
                )
            gone = self._state.identity.removed.get(t2.volume, 0)
            if t2.version <= gone:
                raise VsError(
                    "VS3024",
                    Kind.STALE,
                    f"volume {t2.name}: version {t2.version} is older than {gone}, with which it "
                    "was taken out of service here",
                )
            await self._take_access(t2.volume, access)
            if current != t2:
                self._state.stage(t2)
        self._log.info(
            "stage_t2", volume=t2.volume, name=t2.name, version=t2.version, epoch=t2.epoch
        )

    async def set_access(self, caller: Caller, volume: VolumeId, access: Access) -> None:
        """Says who may use a volume that has a tree here; one that has none gets it with its tree.
        Sessions that are not admitted any more have ended when this returns."""
        async with self._turn(caller, volume):
            if volume in self._state.committed or volume in self._state.staged:
                await self._take_access(volume, access)
        self._log.info("set_access", volume=volume, version=access.version)

    async def _take_access(self, volume: VolumeId, access: Access) -> None:
        """A later word than is known here is kept first, then obeyed."""
        self._state.set_access(volume, access)
        await self._tell_access(volume)

    async def _tell_access(self, volume: VolumeId) -> None:
        await self._engine.access_set(volume, self._state.access(volume))
        self._told.add(volume)

    async def access(self, caller: Caller, volume: VolumeId) -> Access:
        """Who may use a volume, as this SP knows it."""
        self.check_cluster(caller)
        return self._state.access(volume)

    async def activate_t2(self, caller: Caller, volume: VolumeId, version: int) -> int:
        """Swaps to the staged T2 object; returns the pause in microseconds."""
        async with self._turn(caller, volume):
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
            pause = await self._swap(target)
            # The controller knows of this one, and so of what came before.
            self._state.forget(volume, target.epoch)
        self._log.info(
            "activate_t2",
            volume=volume,
            name=target.name,
            version=version,
            epoch=target.epoch,
            pause_us=pause,
        )
        return pause

    async def _swap(self, target: T2) -> int:
        """Activates a tree, for good; returns the pause in microseconds."""
        current = self._state.committed.get(target.volume)
        # After an unclean end a copy may lack what was in flight then: legs that come
        # into sync in this life are made alike once more.
        new_legs = current is None or in_sync_legs(target.root) != in_sync_legs(current.root)
        unclean = target.volume in self._state.unclean and new_legs
        # So it may after an owner that has died, and who was it is not for this one to know.
        heir = current is not None and current.owner != self.sp == target.owner
        pause = await self._activate(target, resync=(unclean or heir) and current != target)
        self._state.commit(target)
        return pause

    async def _activate(self, t2: T2, *, resync: bool) -> int:
        self._own_mirrors([t2])
        if t2.volume not in self._told:
            await self._tell_access(t2.volume)
        return await self._engine.t2_activate(t2, resync=resync)

    def _own_mirrors(self, t2s: Iterable[T2]) -> None:
        """Remembers whose mirrors this SP owns: durable before the first write that could leave
        legs unlike."""
        own = {
            t2.volume
            for t2 in t2s
            if t2.owner == self.sp and any(isinstance(node, Mirror) for _, node in walk(t2.root))
        }
        if own:
            self._state.set_mirrored({*self._state.identity.mirrored, *own})

    async def remove_t2(self, caller: Caller, volume: VolumeId, version: int) -> None:
        """Takes the volume out of service here, and refuses its trees up to that version from
        then on: a request that comes late must not bring one back. VsError VS3024 if a later one
        is here already."""
        async with self._turn(caller, volume):
            current = self._state.committed.get(volume)
            if current is not None and current.version > version:
                raise VsError(
                    "VS3024",
                    Kind.STALE,
                    f"volume {current.name}: version {version} is older than {current.version}",
                )
            self._state.set_removed(volume, version)
            self._told.discard(volume)
            await self._engine.t2_remove(volume)
            self._state.remove(volume)
            record = self._state.ejections.get(volume)
            if record is not None and record.t2.version <= version:
                self._state.forget(volume, record.t2.epoch)
            self._state.set_mirrored(set(self._state.identity.mirrored) - {volume})
            self._state.unclean.discard(volume)
        self._log.info("remove_t2", volume=volume)

    async def drop_reference(self, caller: Caller, volume: VolumeId, t1: T1Id) -> None:
        """Closes the remote reference to a T1 object."""
        async with self._turn(caller, volume):
            await self._engine.reference_drop(volume, t1)
        self._log.info("drop_reference", t1=t1, volume_id=volume)

    async def start_copy(
        self,
        caller: Caller,
        volume: VolumeId,
        version: int,
        path: Path,
        *,
        start: int,
        rate: int,
        adaptive: bool,
        mode: CopyMode,
    ) -> None:
        """Copies onto the write-only leg at `path` of the tree of that version what lies from
        `start` on: an earlier copy has made the bytes before it durable there. At most
        `rate` bytes per second (0: no limit); `adaptive`: less while hosts' latency suffers;
        by `mode` all of it, or what the write-intent maps have; or holds the legs against each
        other, `path` being empty. One that runs takes the new limits. VsError VS3028 if another
        version is active."""
        async with self._turn(caller, volume):
            current = self._state.committed.get(volume)
            if current is None or current.version != version:
                here = "none" if current is None else f"version {current.version}"
                raise VsError(
                    "VS3028",
                    Kind.PRECONDITION,
                    f"a copy for version {version} of volume {volume}: SP {self.sp} has {here}",
                )
            await self._engine.copy_start(
                volume, path, start=start, rate=rate, adaptive=adaptive, mode=mode
            )
        self._log.info("start_copy", volume=volume, path=path, start=start, rate=rate, mode=mode)

    async def throttle_copy(
        self, caller: Caller, volume: VolumeId, path: Path, *, rate: int, adaptive: bool
    ) -> None:
        """Changes the limits of a copy that runs."""
        async with self._turn(caller, volume):
            await self._engine.copy_throttle(volume, path, rate=rate, adaptive=adaptive)
        self._log.info("throttle_copy", volume=volume, path=path, rate=rate, adaptive=adaptive)

    async def stop_copy(self, caller: Caller, volume: VolumeId, path: Path) -> None:
        """Ends a copy."""
        async with self._turn(caller, volume):
            await self._engine.copy_stop(volume, path)
        self._log.info("stop_copy", volume=volume, path=path)

    # The master.

    def activate_mvsm(self, caller: Caller) -> None:
        """This SP's MVSM answers for the caller's term."""
        self._admit(caller)
        self._mvsm_term = caller.term
        self._log.info("activate_mvsm", term=caller.term)

    def deactivate_mvsm(self, caller: Caller) -> None:
        """This SP's MVSM answers nobody."""
        self._admit(caller)
        self._mvsm_term = None
        self._log.info("deactivate_mvsm", term=caller.term)

    def determine(
        self, caller: Caller, current: Volume | None, target: Volume | None
    ) -> tuple[Affected, ...]:
        """Which objects the target affects; the active MVSM alone says."""
        self._admit(caller)
        if self._mvsm_term != caller.term:
            raise VsError(
                "VS3026",
                Kind.PRECONDITION,
                f"the MVSM of SP {self.sp} is not active for term {caller.term}",
            )
        affected = determine(current, target)
        volume = target or current
        self._log.info("determine", volume=volume.id if volume else "", objects=len(affected))
        return affected

    # The end.

    async def resyncing(self) -> bool:
        """True while some mirror's legs are still being made alike."""
        percents = await self._engine.resync_percents()
        return any(percent < 100 for percent in percents.values())

    def ended(self) -> None:
        """The engine has answered and flushed everything, and no resync was left undone: the
        legs of each mirror are alike."""
        self._state.set_mirrored(set())
        self._state.set_boot("")

    async def is_certain(self) -> bool:
        """All devices are open, and no T1 object on them is in doubt."""
        return not self._down and not (await self._engine.trouble()).doubtful
