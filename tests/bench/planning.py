"""What planning one change costs as volumes grow in number: the real planner, MVSM and VBM over a
hundred simulated SPs, which answer as VSMs do (the objects of one volume, all devices)."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from itertools import count

import structlog

from tests.fakes import FakeClock
from vswitchd.controller.collector import Collector
from vswitchd.controller.planner import Planner
from vswitchd.controller.registry import Registry
from vswitchd.model.objects import (
    DeviceId,
    Extent,
    SpId,
    Volume,
    VolumeId,
    project,
)
from vswitchd.model.view import Affected, DeviceView, T1View, T2View, View
from vswitchd.ports import ProcessorRecord
from vswitchd.restructure import mvsm
from vswitchd.restructure.requests import AddLeg, Become, Create, Grow, Move, Relayout, Request
from vswitchd.restructure.vbm import restructure
from vswitchd.store.memory import MemoryStore

SPS = 100
MIB = 1 << 20
#: 8 T1 objects.
LAYOUT = "stripe(4, mirror(2))"
SIZE = 64 * MIB
DEVICE = 1 << 40
#: Times each request is planned.
ROUNDS = 15


@dataclass
class Sp:
    """One simulated SP with one device, filled from its beginning."""

    name: SpId
    used: int = 4 * MIB
    t1s: dict[VolumeId, list[T1View]] = field(default_factory=dict)
    t2s: dict[VolumeId, T2View] = field(default_factory=dict)
    objects: int = 0

    def view(self, volume: VolumeId | None) -> View:
        device = DeviceId(f"{self.name}-d")
        free = (Extent(device, self.used, DEVICE - self.used),)
        held = self.t1s.get(volume, []) if volume is not None else []
        tree = self.t2s.get(volume) if volume is not None else None
        return View(
            sp=self.name,
            incarnation="1",
            term=1,
            mvsm_active=False,
            devices=(DeviceView(device, f"file:/{device}", DEVICE, MIB, True, free),),
            t1s=tuple(held),
            t2s=() if tree is None else (tree,),
            other_t1s=self.objects - len(held),
        )


class Farm:
    """All SPs; `ports.Processors` to them."""

    def __init__(self) -> None:
        self.sps = {SpId(f"sp{n:03}"): Sp(SpId(f"sp{n:03}")) for n in range(SPS)}
        self.peers = {sp: f"{sp}:9460" for sp in self.sps}
        self.ids = count(1)

    def hold(self, volume: Volume) -> None:
        """The SPs hold what the volume is made of."""
        for t1 in volume.t1s:
            sp = self.sps[t1.home]
            sp.t1s.setdefault(volume.id, []).append(T1View(t1, volume.epoch))
            sp.objects += 1
            sp.used = max(sp.used, *(e.offset + e.length for e in t1.extents))
        for name in volume.serving:
            self.sps[name].t2s[volume.id] = T2View(project(volume, name, self.peers), True)

    def connect(self, record: ProcessorRecord, cluster: str, term: int) -> Processor:
        return Processor(self.sps[record.sp])


class Processor:
    """What planning asks of an SP."""

    def __init__(self, sp: Sp) -> None:
        self._sp = sp

    async def view(self, volume: VolumeId | None = None) -> View:
        return self._sp.view(volume)

    async def activate_mvsm(self) -> None:
        pass

    async def deactivate_mvsm(self) -> None:
        pass

    async def determine(
        self, current: Volume | None, target: Volume | None
    ) -> tuple[Affected, ...]:
        return mvsm.determine(current, target)


async def _made(volumes: int) -> tuple[Farm, MemoryStore, Planner]:
    farm, store, clock = Farm(), MemoryStore(), FakeClock()
    log = structlog.wrap_logger(
        structlog.ReturnLogger(), wrapper_class=structlog.make_filtering_bound_logger(50)
    )
    registry = Registry(store, farm, clock, log, lambda _: None)  # type: ignore[arg-type]
    await registry.start()
    for sp in farm.sps:
        record = ProcessorRecord(sp, "1", f"{sp}:1", farm.peers[sp], f"{sp}:3", "")
        await registry.register(record, registry.cluster)
    for number in range(volumes):
        views = [sp.view(None) for sp in farm.sps.values()]
        create = Create(VolumeId(f"v-{number}"), f"v{number}", SIZE, LAYOUT)
        (stage,) = restructure(None, views, create, lambda: f"{next(farm.ids):06x}")
        assert isinstance(stage, Become) and stage.volume is not None
        assert len(stage.volume.t1s) == 8
        await store.put_volume(stage.volume, expect_version=None, who="", why="")
        farm.hold(stage.volume)
    return farm, store, Planner(store, registry, Collector(registry, log))


async def _measure(volumes: int) -> dict[str, float]:
    _, store, planner = await _made(volumes)
    volume = await store.volume(VolumeId(f"v-{volumes // 2}"))
    assert volume is not None
    home = volume.t1s[0].home
    elsewhere = SpId("sp099" if home != "sp099" else "sp098")
    asked: dict[str, Request] = {
        "mirror add": AddLeg(),
        "move": Move(home, elsewhere),
        "grow": Grow(2 * SIZE),
        "relayout": Relayout("mirror(2, stripe(4))"),
    }
    found: dict[str, float] = {}
    for name, request in asked.items():
        took = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            await planner.plan(volume.id, volume, request, [])
            took.append(time.perf_counter() - begun)
        found[name] = statistics.median(took)
    return found


def main() -> None:
    """Prints the table of docs/performance.md."""
    counts = (10, 100, 1000)
    figures = {volumes: asyncio.run(_measure(volumes)) for volumes in counts}
    print(f"planning one change, {SPS} SPs, volumes of 8 T1 objects, median of {ROUNDS}, ms")
    print("| request | " + " | ".join(f"{n:,} volumes" for n in counts) + " | 1,000 / 10 |")
    print("|---|" + "--:|" * (len(counts) + 1))
    for name in figures[10]:
        row = [figures[n][name] * 1000 for n in counts]
        cells = " | ".join(f"{ms:.1f}" for ms in row)
        print(f"| {name} | {cells} | {row[-1] / row[0]:.2f} |")


if __name__ == "__main__":
    main()
