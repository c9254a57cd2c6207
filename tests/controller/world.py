"""A controller without sockets: the real shells over fake SPs, a fake clock, a store in memory."""

from __future__ import annotations

import asyncio

import structlog

from tests.fakes import CrashingStore, FakeClock, FakeSps, until
from vswitchd.controller.access import Admission
from vswitchd.controller.collector import Collector
from vswitchd.controller.drainer import Drainer
from vswitchd.controller.executor import Executor
from vswitchd.controller.inventory import Inventory
from vswitchd.controller.learner import Learner
from vswitchd.controller.live import OPEN
from vswitchd.controller.planner import Planner
from vswitchd.controller.reconciler import Reconciler
from vswitchd.controller.recover import Recovery
from vswitchd.controller.registry import Registry
from vswitchd.controller.service import Options, Service
from vswitchd.controller.turns import Turns
from vswitchd.model.access import Access
from vswitchd.model.objects import BLOCK, SpId, Volume, VolumeId
from vswitchd.ports import OperationRecord, Processors
from vswitchd.restructure.requests import Create, Request

A, B, C = SpId("a"), SpId("b"), SpId("c")
#: Blocks of each SP's devices; a and b both reach `ab`.
DEVICES = {"a": {"a0": 60, "ab": 60}, "b": {"b0": 60, "ab": 60}, "c": {"c0": 90}}


class World:
    """SPs and a store that outlive controllers."""

    def __init__(self) -> None:
        self.sps = FakeSps(DEVICES)
        #: How controllers reach the SPs.
        self.processors: Processors = self.sps
        self.store = CrashingStore(self.sps.cluster)
        self.clock = FakeClock()

    async def with_volume(self, layout: str) -> Volume:
        """Volume `v1`, made and written to by a controller that has ended."""
        controller = await self.controller()
        record = await controller.ended(await controller.create(layout=layout))
        assert record.state == "done", record
        volume = await controller.volume()
        self.sps.cluster.host_io(volume.id)
        await controller.stop()
        return volume

    def accesses(self, volume: VolumeId) -> dict[SpId, Access]:
        """Who may use a volume, as each SP knows it."""
        return {sp: access for (sp, of), access in self.sps.accesses.items() if of == volume}

    async def copying(self) -> None:
        """Waits for a copy to be under way."""
        await until("the copy", lambda: any(life.copies for life in self.sps.lives.values()))

    async def controller(self) -> Controller:
        """A controller that has just started, with every SP that is up registered."""
        controller = Controller(self)
        await controller.start()
        return controller


class Controller:
    """The wiring of `controller/app.py` without servers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._capture = structlog.testing.LogCapture()
        log = structlog.wrap_logger(
            structlog.PrintLogger(),
            processors=[self._capture],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )
        store, clock = world.store, world.clock
        self.joined: list[SpId] = []
        self.steps: list[str] = []
        self.registry = Registry(store, world.processors, clock, log, self.joined.append)
        self.collector = Collector(self.registry, log)
        self.executor = Executor(
            store, self.registry, clock, log, lambda step, _: self.steps.append(step)
        )
        planner = Planner(store, self.registry, self.collector)
        turns = Turns()
        self.service = Service(
            store, self.registry, self.collector, planner, self.executor, turns, clock, log
        )
        self.inventory = Inventory(
            store, self.registry, self.collector, self.executor, self.service.planning
        )
        self.drainer = Drainer(self.service, clock, log)
        self.recovery = Recovery(self.service, self.registry, world.processors, clock, log)
        self.learner = Learner(store, self.registry, self.collector, self.executor, turns, log)
        self.reconciler = Reconciler(
            store, self.registry, self.collector, turns, clock, log, self.service.busy
        )
        self.admission = Admission(self.service, self.reconciler.wake, log)

    async def start(self) -> None:
        """Begins, and has every SP that is up register."""
        self.world.clock.passed = self.hear
        await self.registry.start()
        await self.executor.resume()
        for sp in sorted(set(self.world.sps.lives) - self.world.sps.down):
            await self.join(sp)

    @property
    def events(self) -> list[str]:
        """The log's events so far."""
        return [str(entry["event"]) for entry in self._capture.entries]

    async def join(self, sp: SpId) -> None:
        await self.registry.register(self.world.sps.record(sp), self.registry.cluster)

    def hear(self) -> None:
        """Every SP that is not down beats."""
        for sp in set(self.world.sps.lives) - self.world.sps.down:
            self.registry.heartbeat(sp, self.world.sps.lives[sp].incarnation)

    async def create(
        self, name: str = "v1", layout: str = "", blocks: int = 8, serving: tuple[SpId, ...] = ()
    ) -> OperationRecord:
        """Starts to create a volume."""

        def make(volume: VolumeId) -> Create:
            return Create(volume, name, blocks * BLOCK, layout, serving)

        return await self.service.create(make, Options())

    async def change(
        self, request: Request, name: str = "v1", kind: str = "x", options: Options | None = None
    ) -> OperationRecord:
        """Starts to change a volume."""
        return await self.service.change(kind, name, request, options or Options())

    async def ended(self, record: OperationRecord) -> OperationRecord:
        """The operation when it is over."""
        await until(f"{record.id} to end", lambda: record.id not in self.executor.live)
        found = await self.service.operation(record.id)
        assert found.state not in OPEN
        return found

    async def volume(self, name: str = "v1") -> Volume:
        return await self.service.volume(name)

    async def crashed_or_over(self, begun: asyncio.Future[OperationRecord] | None = None) -> bool:
        """Waits for this controller to die at its write, or to have ended what it does."""
        crashed = self.world.store.crashed

        def over() -> bool:
            return (begun is None or begun.done()) and not self.executor.live

        await until("the crash", lambda: crashed.is_set() or over())
        return crashed.is_set()

    async def stop(self) -> None:
        """The end of this controller, as by kill -9: nothing more is written."""
        await self.executor.stop()


def settled(world: World, volume: Volume | None) -> None:
    """Every SP holds just what the store says of the one volume, and every block that hosts
    wrote reads back at every SP that serves it."""
    for sp in world.sps.cluster.sps.values():
        homed = {t1.id for t1 in volume.t1s if t1.home == sp.name} if volume else set()
        assert set(sp.t1s) == homed, f"{sp.name} homes {set(sp.t1s)}, the store says {homed}"
        assert not sp.staged, f"{sp.name} has {sp.staged} staged"
        versions = [t2.version for t2 in sp.active.values()]
        serves = volume is not None and sp.name in volume.serving
        assert versions == ([volume.version] if volume and serves else []), sp.name
    if volume:
        blocks = len(volume.serving) * volume.size // BLOCK
        assert world.sps.cluster.host_io(volume.id) == blocks, "some I/O is parked"
