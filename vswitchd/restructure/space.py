"""Free space as the views show it, and taking from it while a request is worked out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from vswitchd.model.objects import DeviceId, Extent, SpId
from vswitchd.model.view import DeviceView, View

Run = tuple[int, int]
"""A free run as (first, end), bytes on its device."""


class Space:
    """Free runs of every device that is up, by device. Runs that are taken are gone.

    A device that several SPs reach is one device: only what all of their views call free
    is used. At a `drained` SP there is no room.
    """

    def __init__(self, views: Iterable[View], drained: Collection[SpId] = ()) -> None:
        self.drained = frozenset(drained)
        self._runs: dict[DeviceId, list[Run]] = {}
        self._units: dict[DeviceId, int] = {}
        self._reach: dict[SpId, list[DeviceId]] = {}
        self._objects: dict[SpId, int] = {}
        for view in sorted(views, key=lambda v: v.sp):
            self._objects[view.sp] = len(view.t1s) + view.other_t1s
            up = [device for device in view.devices if device.up]
            if view.sp not in self.drained:
                self._reach[view.sp] = sorted(device.id for device in up)
            for device in up:
                runs = _aligned(device)
                known = self._runs.get(device.id)
                self._runs[device.id] = runs if known is None else _common(known, runs)
                self._units[device.id] = device.unit

    def sps(self) -> list[SpId]:
        """Every SP that was heard and that may hold something."""
        return sorted(self._reach)

    def devices(self, sp: SpId) -> list[DeviceId]:
        """The devices that an SP reaches."""
        return self._reach.get(sp, [])

    def free(self, device: DeviceId) -> int:
        """Free bytes on a device."""
        return sum(end - first for first, end in self._runs[device])

    def objects(self, sp: SpId) -> int:
        """How many T1 objects an SP homes, those planned here included."""
        return self._objects[sp]

    def homed(self, sp: SpId) -> None:
        """One more T1 object is planned at the SP."""
        self._objects[sp] += 1

    def fits(self, device: DeviceId, size: int) -> bool:
        """Whether `size` bytes, rounded up to the device's unit, are free."""
        return self.free(device) >= _round_up(size, self._units[device])

    def take(self, devices: Sequence[DeviceId], size: int) -> tuple[Extent, ...] | None:
        """At least `size` bytes from the devices, in their order; None if there is not as
        much. From each device the smallest run that does alone, else the largest first."""
        plan: list[Extent] = []
        for device in devices:
            plan += self._some(device, size - sum(extent.length for extent in plan))
        if sum(extent.length for extent in plan) < size:
            return None
        for device in dict.fromkeys(extent.device for extent in plan):
            taken = [(e.offset, e.offset + e.length) for e in plan if e.device == device]
            self._runs[device] = less(self._runs[device], taken)
        return tuple(plan)

    def release(self, extents: Iterable[Extent]) -> None:
        """Gives back what `take` gave."""
        for extent in extents:
            runs = self._runs[extent.device]
            runs.append((extent.offset, extent.offset + extent.length))
            self._runs[extent.device] = _joined(runs)

    def _some(self, device: DeviceId, size: int) -> list[Extent]:
        if size <= 0:
            return []
        need = _round_up(size, self._units[device])
        runs = self._runs[device]
        fitting = [run for run in runs if run[1] - run[0] >= need]
        if fitting:
            first, _ = min(fitting, key=lambda run: (run[1] - run[0], run[0]))
            return [Extent(device, first, need)]
        chosen: list[Extent] = []
        for first, end in sorted(runs, key=lambda run: (run[0] - run[1], run[0])):
            if need == 0:
                break
            length = min(end - first, need)
            chosen.append(Extent(device, first, length))
            need -= length
        return chosen


def less(runs: Iterable[Run], taken: Iterable[Run]) -> list[Run]:
    """What of `runs` is not `taken`, in order. Each side may be in any order; the runs of one do
    not overlap one another, what is taken may."""
    left: list[Run] = []
    cuts = sorted(taken)
    at = 0
    for first, end in sorted(runs):
        # A cut that ends before this run ends before all that follow.
        while at < len(cuts) and cuts[at][1] <= first:
            at += 1
        index = at
        while index < len(cuts) and cuts[index][0] < end and first < end:
            if first < cuts[index][0]:
                left.append((first, cuts[index][0]))
            first = max(first, cuts[index][1])
            index += 1
        if first < end:
            left.append((first, end))
    return left


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _aligned(device: DeviceView) -> list[Run]:
    runs = []
    for extent in device.free:
        first = _round_up(extent.offset, device.unit)
        end = (extent.offset + extent.length) // device.unit * device.unit
        if first < end:
            runs.append((first, end))
    return sorted(runs)


def _common(some: list[Run], others: list[Run]) -> list[Run]:
    return less(some, less(some, others))


def _joined(runs: list[Run]) -> list[Run]:
    joined: list[Run] = []
    for first, end in sorted(runs):
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((first, end))
    return joined
