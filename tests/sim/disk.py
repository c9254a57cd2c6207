"""What outlives every process: devices with their labels and blocks, and SPs' small files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tests.sim.loop import CrashError
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import BLOCK, T1, DeviceId, Extent, SpId, T1Id, VolumeId
from vswitchd.model.view import DeviceView, LabelView, T1View

#: What a block holds: whose it is, which, and the number of the write that made it. None: zeroes.
Stamp = tuple[VolumeId, int, int] | None


@dataclass
class Disk:
    """A device: its label, and its blocks."""

    id: DeviceId
    blocks: int
    t1s: dict[T1Id, tuple[T1, int]] = field(default_factory=dict)
    data: dict[int, Stamp] = field(default_factory=dict)
    #: The write-intent map: blocks that may be unlike on other legs.
    dirty: set[int] = field(default_factory=set)
    generation: int = 0

    def free(self) -> tuple[Extent, ...]:
        runs: list[Extent] = []
        last = 0
        used = [e for t1, _ in self.t1s.values() for e in t1.extents if e.device == self.id]
        for extent in sorted(used, key=lambda e: e.offset):
            if extent.offset > last:
                runs.append(Extent(self.id, last, extent.offset - last))
            assert extent.offset >= last, f"extents overlap on {self.id} at {extent.offset}"
            last = extent.offset + extent.length
        if last < self.blocks * BLOCK:
            runs.append(Extent(self.id, last, self.blocks * BLOCK - last))
        return tuple(runs)

    def view(self) -> DeviceView:
        size = self.blocks * BLOCK
        return DeviceView(self.id, f"file:/{self.id}", size, BLOCK, True, self.free())

    def label(self, cluster: str) -> LabelView:
        held = tuple(T1View(t1, epoch) for t1, epoch in self.t1s.values())
        return LabelView(self.id, f"file:/{self.id}", cluster, self.generation, 2, held)


class Disks:
    """Those that one SP reaches."""

    def __init__(self, disks: dict[DeviceId, Disk]) -> None:
        self._disks = disks

    def all(self) -> list[Disk]:
        return list(self._disks.values())

    def find(self, t1_id: T1Id) -> tuple[T1, int] | None:
        """The T1 object as the labels have it, whosever it is."""
        for disk in self._disks.values():
            if t1_id in disk.t1s:
                return disk.t1s[t1_id]
        return None

    def homed(self, sp: SpId) -> dict[T1Id, tuple[T1, int]]:
        return {
            t1.id: (t1, epoch)
            for disk in self._disks.values()
            for t1, epoch in disk.t1s.values()
            if t1.home == sp
        }

    def write(self, t1: T1, epoch: int) -> None:
        """Puts the object into the label of every device that it lies on."""
        for device in {extent.device for extent in t1.extents}:
            if device not in self._disks:
                raise VsError("VS2020", Kind.NOT_FOUND, f"device {device} is not here")
        for device in sorted({extent.device for extent in t1.extents}):
            self._disks[device].t1s[t1.id] = t1, epoch
            self._disks[device].generation += 1

    def forget(self, t1: T1) -> None:
        for device in {extent.device for extent in t1.extents}:
            self._disks[device].t1s.pop(t1.id, None)
            self._disks[device].generation += 1

    def require_free(self, t1: T1, known: T1 | None) -> None:
        """VsError unless what the object takes beyond `known` is nobody's."""
        old = known.extents if known is not None else ()
        if t1.extents[: len(old)] != old:
            raise VsError("VS3021", Kind.PRECONDITION, f"T1 object {t1.id} is no extension")
        for extent in t1.extents[len(old) :]:
            if extent.device not in self._disks:
                raise VsError("VS2020", Kind.NOT_FOUND, f"device {extent.device} is not here")
            end = extent.offset + extent.length
            free = self._disks[extent.device].free()
            if not any(r.offset <= extent.offset and end <= r.offset + r.length for r in free):
                raise VsError("VS3021", Kind.PRECONDITION, f"{extent} is in use")

    def _place(self, t1: T1, index: int) -> tuple[Disk, int]:
        for extent in t1.extents:
            count = extent.length // BLOCK
            if index < count:
                return self._disks[extent.device], extent.offset // BLOCK + index
            index -= count
        raise AssertionError(f"block {index} is beyond T1 object {t1.id}")

    def get(self, t1: T1, index: int) -> Stamp:
        disk, block = self._place(t1, index)
        return disk.data.get(block)

    def put(self, t1: T1, index: int, value: Stamp) -> None:
        disk, block = self._place(t1, index)
        disk.data[block] = value

    def mark(self, t1: T1, index: int, *, dirty: bool) -> None:
        disk, block = self._place(t1, index)
        (disk.dirty.add if dirty else disk.dirty.discard)(block)

    def marked(self, t1: T1, index: int) -> bool:
        disk, block = self._place(t1, index)
        return block in disk.dirty

    def zero(self, t1: T1, first: int, last: int) -> None:
        for index in range(first, last):
            self.put(t1, index, None)
            self.mark(t1, index, dirty=False)


class SimFiles:
    """`processor.files.Files` that outlive the process. `fault` may say before and after a write
    that it fails or that the process dies there."""

    def __init__(self, sp: str) -> None:
        self._sp = sp
        self._texts: dict[str, str] = {}
        self.fault: Callable[[str], str] = lambda _: ""

    def names(self) -> list[str]:
        return sorted(self._texts)

    def read(self, name: str) -> str:
        return self._texts[name]

    def write(self, name: str, text: str) -> None:
        with self._faults(name):
            self._texts[name] = text

    def rename(self, name: str, into: str) -> None:
        with self._faults(into):
            self._texts[into] = self._texts.pop(name)

    @contextmanager
    def _faults(self, name: str) -> Iterator[None]:
        fault = self.fault(self._sp)
        if fault == "fail":
            raise VsError("VS9022", Kind.INTERNAL, f"can't write {name}")
        if fault == "before":
            raise CrashError(self._sp)
        yield
        if fault == "after":
            raise CrashError(self._sp)

    def remove(self, *names: str, durable: bool = True) -> None:
        for name in names:
            self._texts.pop(name, None)

    def where(self, name: str = "") -> str:
        return f"{self._sp}/{name}"

    def close(self) -> None:
        pass


def homed_by(t1: T1, sp: SpId) -> T1:
    """The object with another home."""
    return replace(t1, home=sp)
