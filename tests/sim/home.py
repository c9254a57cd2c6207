"""What an engine does as the home of T1 objects: their labels, their fences, their blocks, and the
write-intent map."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

from tests.sim.disk import Disks, Stamp, homed_by
from tests.sim.loop import Expected
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import BLOCK, T1, DeviceId, SpId, T1Id, VolumeId
from vswitchd.model.view import DeviceView, LabelView, T1View

#: Seconds until a drain gives up.
DRAIN = 20.0
#: Mean seconds of a device's work, and seconds between looks of what waits.
WORK = 0.001
LOOK = 0.05
#: How often a device is slow, and for how long at most.
SLOW = 0.03
SLOWEST = 1.5


class StaleError(Expected):
    """The tree of the request is over: it waits for the next."""


class Home:
    """One SP's. `checked` is called after everything that changes what SPs hold."""

    def __init__(
        self,
        sp: SpId,
        cluster: str,
        disks: Disks,
        rng: random.Random,
        checked: Callable[[str, SpId, object], None],
        counts: Counter[str],
    ) -> None:
        self.sp = sp
        self._cluster = cluster
        self._disks = disks
        self._rng = rng
        self._checked = checked
        self._counts = counts
        #: Requests at work on each T1 object, by the epoch that they came with.
        self.running: Counter[tuple[T1Id, int]] = Counter()

    # Devices and T1 objects.

    async def device_add(
        self, uri: str, size: int, device: DeviceId, *, direct: bool, checksums: bool
    ) -> DeviceView:
        for disk in self._disks.all():
            if f"file:/{disk.id}" == uri:
                return disk.view()
        raise VsError("VS2020", Kind.NOT_FOUND, f"{uri} is not here")

    async def device_remove(self, device: DeviceId) -> None:
        raise VsError("VS3021", Kind.PRECONDITION, f"device {device} is in use")

    async def devices(self) -> tuple[DeviceView, ...]:
        return tuple(disk.view() for disk in self._disks.all())

    async def labels(self) -> tuple[LabelView, ...]:
        return tuple(disk.label(self._cluster) for disk in self._disks.all())

    def held(self) -> dict[T1Id, tuple[T1, int]]:
        """The T1 objects that are homed here."""
        return self._disks.homed(self.sp)

    async def t1s(self, volume: VolumeId | None = None) -> tuple[tuple[T1View, ...], int]:
        held = self.held()
        shown = [T1View(t1, e) for t1, e in held.values() if volume in (None, t1.volume)]
        return tuple(shown), len(held) - len(shown)

    async def t1_put(self, t1: T1, epoch: int) -> None:
        await asyncio.sleep(self._pause())
        if t1.home != self.sp:
            raise VsError("VS1030", Kind.INVALID, f"the home of {t1.id} is {t1.home}")
        found = self._disks.find(t1.id)
        known = None if found is None else found[0]
        if known is not None and (known.home != self.sp or known.volume != t1.volume):
            raise VsError("VS2021", Kind.EXISTS, f"T1 object {t1.id} is there otherwise")
        if (
            known is not None
            and known.size >= t1.size
            and known.extents[: len(t1.extents)] == (t1.extents)
        ):
            return
        self._disks.require_free(t1, known)
        first = known.size // BLOCK if known is not None else 0
        self._disks.zero(t1, first, t1.size // BLOCK)
        self._disks.write(t1, max(epoch, found[1] if found is not None else 0))
        self._checked("put_t1", self.sp, t1)

    async def t1_adopt(self, t1: T1, epoch: int) -> None:
        await asyncio.sleep(self._pause())
        found = self._disks.find(t1.id)
        if found is None:
            raise VsError("VS2020", Kind.NOT_FOUND, f"T1 object {t1.id} is not there")
        if found[0].home == self.sp:
            return  # said again, and it may have grown since
        if found[1] > epoch:
            raise VsError("VS3022", Kind.STALE, f"T1 object {t1.id} is at epoch {found[1]}")
        self._checked("adopt_t1", self.sp, t1)
        self._disks.write(homed_by(t1, self.sp), max(epoch, found[1]))
        self._checked("adopted", self.sp, t1)

    async def t1_fence(self, t1: T1Id, epoch: int, base: int | None) -> None:
        await asyncio.sleep(self._pause())
        found = self.held().get(t1)
        if found is None:
            raise VsError("VS2020", Kind.NOT_FOUND, f"T1 object {t1} is not homed here")
        if epoch < found[1]:
            raise VsError("VS3022", Kind.STALE, f"T1 object {t1} is at epoch {found[1]}")
        if base is not None and not self._is_at(found[1], base, epoch):
            raise VsError("VS3022", Kind.STALE, f"T1 object {t1} is at epoch {found[1]}")
        self._disks.write(found[0], epoch)
        self._checked("fence_t1", self.sp, t1)

        def lower() -> bool:
            return any(n and i == t1 and e < epoch for (i, e), n in self.running.items())

        async with bounded("its I/O does not end"):
            while lower():  # noqa: ASYNC110 - simulated time
                await asyncio.sleep(LOOK)

    async def t1_delete(self, t1: T1Id, epoch: int) -> None:
        await asyncio.sleep(self._pause())
        found = self.held().get(t1)
        if found is not None and found[1] > epoch:
            raise VsError("VS3022", Kind.STALE, f"T1 object {t1} is at epoch {found[1]}")
        if found is not None:
            self._checked("delete_t1", self.sp, found[0])
            self._disks.forget(found[0])
            self._checked("deleted", self.sp, found[0])

    # At a T1 object's home.

    def _found(self, t1_id: T1Id, epoch: int) -> T1:
        found = self.held().get(t1_id)
        if found is None or not self._serves(epoch, found[1]):
            raise StaleError
        return found[0]

    async def t1_vouch(self, t1_id: T1Id, epoch: int) -> None:
        """StaleError if a later epoch is known."""
        self._found(t1_id, epoch)

    async def t1_dirty(self, t1_id: T1Id, epoch: int, index: int) -> bool:
        """Whether the write-intent map has the block."""
        return self._disks.marked(self._found(t1_id, epoch), index)

    async def t1_clean(self, t1_id: T1Id, epoch: int, index: int) -> None:
        """Takes a block out of the map."""
        t1 = self._found(t1_id, epoch)
        if self._disks.marked(t1, index):
            self._counts["block cleared in a map"] += 1
        self._disks.mark(t1, index, dirty=False)

    async def t1_io(
        self,
        t1_id: T1Id,
        epoch: int,
        index: int,
        value: Stamp,
        *,
        write: bool,
        intent: bool = False,
    ) -> Stamp:
        """One block, if the epoch is not over; what is mirrored goes into the map first."""
        found = self.held().get(t1_id)
        if found is None or not self._serves(epoch, found[1]):
            raise StaleError
        key = t1_id, epoch
        self._checked("io", self.sp, (*key, found[1]))
        self.running[key] += 1
        try:
            await asyncio.sleep(self._pause())
            # As it is now: a fence waits for this, an extension may have come.
            t1 = self.held()[t1_id][0]
            if write:
                if intent:
                    self._disks.mark(t1, index, dirty=True)
                self._disks.put(t1, index, value)
                return value
            return self._disks.get(t1, index)
        finally:
            self.running[key] -= 1

    @staticmethod
    def _is_at(now: int, base: int, epoch: int) -> bool:
        """Whether a fence that compares raises an object from where it is."""
        return now in (base, epoch)

    @staticmethod
    def _serves(epoch: int, fenced: int) -> bool:
        """Whether a T1 object that is fenced at an epoch takes a request of another."""
        return epoch >= fenced

    def _pause(self) -> float:
        if self._rng.random() < SLOW:
            return self._rng.uniform(0.0, SLOWEST)
        return self._rng.expovariate(1 / WORK)


def bounded(what: str) -> asyncio.Timeout:
    """A wait that ends with the engine's own time-out."""
    return _Drain(what)


class _Drain(asyncio.Timeout):
    """A bounded wait whose end is the engine's own time-out."""

    def __init__(self, what: str) -> None:
        super().__init__(asyncio.get_running_loop().time() + DRAIN)
        self._what = what

    async def __aexit__(self, kind, error, trace):  # type: ignore[no-untyped-def]
        try:
            return await super().__aexit__(kind, error, trace)
        except TimeoutError:
            raise VsError("VS5010", Kind.TIMEOUT, f"{self._what}; try again") from None
