"""The programs: SPs with the real VSM, and the controller, each a process that can die."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from structlog.typing import FilteringBoundLogger

from tests.sim.disk import Disks, SimFiles
from tests.sim.engine import SimEngine
from tests.sim.loop import Process, SimClock
from tests.sim.net import Net
from vswitchd.controller.collector import Collector
from vswitchd.controller.drainer import Drainer
from vswitchd.controller.executor import Executor
from vswitchd.controller.guardian import Guardian
from vswitchd.controller.inventory import Inventory
from vswitchd.controller.learner import Learner
from vswitchd.controller.planner import Planner
from vswitchd.controller.reconciler import Reconciler
from vswitchd.controller.registry import HEARTBEAT, Registry
from vswitchd.controller.service import Service
from vswitchd.controller.turns import Turns
from vswitchd.model.access import Access
from vswitchd.model.objects import T1, T2, DeviceId, Path, SpId, T1Id, Volume, VolumeId
from vswitchd.model.view import (
    Affected,
    Complaint,
    CopyMode,
    DeviceView,
    Ejection,
    LabelView,
    View,
    fingerprint,
)
from vswitchd.ports import ProcessorRecord
from vswitchd.processor.lone import Lone
from vswitchd.processor.register import Registration
from vswitchd.processor.state import State
from vswitchd.processor.voter import Voter
from vswitchd.processor.vsm import Caller, Vsm

if TYPE_CHECKING:
    from tests.sim.world import World

R = TypeVar("R")

CONTROLLER = "controller"
#: Seconds for calls that only look, and for those that may drain (api/vsm_client.py).
SHORT, LONG = 10.0, 60.0
#: Seconds of silence until an SP is lost.
LOST_AFTER = 5.0
#: Seconds without the controller until owners leave legs behind by themselves.
ALONE_AFTER = 3.0


class Quiet:
    """A log that nobody reads."""

    def bind(self, **_: object) -> Quiet:
        return self

    def info(self, *_: object, **__: object) -> None:
        pass

    debug = warning = error = exception = info


def quiet() -> FilteringBoundLogger:
    return Quiet()  # type: ignore[return-value]


class Noisy(Quiet):
    """A log on standard output, with the simulated time."""

    def __init__(self, world: World, **bound: object) -> None:
        self._world = world
        self._bound = bound

    def bind(self, **more: object) -> Noisy:
        return Noisy(self._world, **self._bound, **more)

    def info(self, event: object, **what: object) -> None:
        words = " ".join(f"{k}={v}" for k, v in {**self._bound, **what}.items())
        print(f"{self._world.loop.time():9.3f}  {event}  {words}")

    debug = warning = error = exception = info


class Sp:
    """One SP: what it keeps, and its present life."""

    def __init__(self, world: World, name: SpId, disks: Disks) -> None:
        self.world = world
        self.name = name
        self.disks = disks
        self.files = SimFiles(name)
        self.files.fault = world.file_fault
        self.lives = 0
        self.process: Process | None = None
        self.vsm: Vsm | None = None
        self.engine: SimEngine | None = None
        self.state: State | None = None

    @property
    def up(self) -> bool:
        """It has begun to serve, and lives."""
        return self.process is not None and self.process.alive and self.vsm is not None

    def start(self) -> None:
        """A new life."""
        self.lives += 1
        self.vsm = self.engine = None
        self.process = Process(self.world.loop, self.name)
        self.process.main(self._run(self.process))

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    async def _run(self, process: Process) -> None:
        world = self.world
        state = State(self.files, self.name)
        life = f"{self.name}-{self.lives}"
        registration = Registration(_Registry(world.net, self.name), state, world.log)
        bare = ProcessorRecord(self.name, life, "", "", "", "sim")
        if not state.identity.cluster_id:
            joined = await registration.join(bare, "")
            state.set_cluster(joined[0])
        engine = SimEngine(
            self.name,
            state.identity.cluster_id,
            self.disks,
            world.net,
            process,
            world.rng,
            world.checked,
            world.counts,
        )
        vsm = Vsm(state, engine, life, world.log.bind(sp=self.name))
        self.engine = engine
        for disk in self.disks.all():
            if disk.id not in state.identity.devices:
                state.set_device(disk.id, f"file:/{disk.id}", direct=False)
        await vsm.start()
        self.vsm, self.state = vsm, state
        neighbours = Neighbours(world.net, self.name, state.identity.cluster_id)
        log = world.log.bind(sp=self.name)
        lone = Lone(state, engine, vsm.voter, neighbours, registration.silent, ALONE_AFTER, log)
        process.main(lone.run())
        world.net.listen(self.name, process, engine)
        world.net.listen(f"{self.name}/vsm", process, vsm)
        record = ProcessorRecord(self.name, life, self.name, self.name, self.name, "sim")
        await registration.keep(record, state.identity.cluster_id, vsm.trouble)


class _Registry:
    """`processor.register.Registry` over the network."""

    def __init__(self, net: Net, sp: SpId) -> None:
        self._net = net
        self._sp = sp

    async def register(self, record: ProcessorRecord, cluster: str) -> tuple[str, float]:
        async def work(registry: Registry) -> tuple[str, float]:
            await registry.register(record, cluster)
            return registry.cluster, HEARTBEAT

        return await self._net.call(self._sp, CONTROLLER, SHORT, work)

    async def heartbeat(
        self, record: ProcessorRecord, complaint: Complaint, known: int
    ) -> tuple[bool, dict[SpId, str] | None]:
        async def work(registry: Registry) -> tuple[bool, dict[SpId, str] | None]:
            changed = fingerprint(registry.managers) != known
            heard = registry.heartbeat(record.sp, record.incarnation, complaint)
            return heard, registry.managers if changed else None

        return await self._net.call(self._sp, CONTROLLER, SHORT, work)


class Neighbours:
    """`ports.Neighbours` over the network."""

    def __init__(self, net: Net, sp: SpId, cluster: str) -> None:
        self._net = net
        self._sp = sp
        self._caller = Caller(cluster, 0)

    async def _call(
        self, sp: SpId, seconds: float, work: Callable[[Voter], Coroutine[Any, Any, None]]
    ) -> None:
        async def admitted(vsm: Vsm) -> None:
            vsm.check_cluster(self._caller)
            await work(vsm.voter)

        await self._net.call(f"{self._sp}/vsm", f"{sp}/vsm", seconds, admitted)

    async def ask(self, sp: SpId, address: str, ejection: Ejection) -> None:
        await self._call(sp, 1.0, lambda voter: voter.ask(ejection))

    async def fence(self, sp: SpId, address: str, ejection: Ejection) -> None:
        await self._call(sp, LONG, lambda voter: voter.fence(ejection))

    async def record(self, sp: SpId, address: str, ejection: Ejection) -> None:
        await self._call(sp, SHORT, lambda voter: voter.record(ejection))

    async def follow(self, sp: SpId, address: str, ejection: Ejection) -> None:
        await self._call(sp, LONG, lambda voter: voter.follow(ejection))


class Processors:
    """`ports.Processors` over the network."""

    def __init__(self, net: Net, breach: Callable[[str], None]) -> None:
        self._net = net
        self._breach = breach

    async def listens(self, record: ProcessorRecord) -> bool:
        process, _ = self._net.nodes.get(record.vsm_address, (None, None))
        return process is not None and process.alive

    def connect(self, record: ProcessorRecord, cluster: str, term: int) -> SimProcessor:
        return SimProcessor(self._net, record.sp, Caller(cluster, term), self._breach)


class SimProcessor:
    """`ports.Processor`: each call a message to the SP's VSM."""

    def __init__(self, net: Net, sp: SpId, caller: Caller, breach: Callable[[str], None]) -> None:
        self._net = net
        self._breach = breach
        self._sp = sp
        self._caller = caller

    async def _call(
        self, work: Callable[[Vsm], Coroutine[Any, Any, R]], seconds: float = SHORT
    ) -> R:
        async def obeyed(vsm: Vsm) -> R:
            seen = vsm.term
            result = await work(vsm)
            if self._caller.term < seen:
                self._breach(f"{self._sp} has seen term {seen} and obeyed {self._caller.term}")
            return result

        return await self._net.call(CONTROLLER, f"{self._sp}/vsm", seconds, obeyed)

    async def _look(
        self, work: Callable[[Vsm], Coroutine[Any, Any, R]], seconds: float = SHORT
    ) -> R:
        """What changes nothing is answered in any term."""
        return await self._net.call(CONTROLLER, f"{self._sp}/vsm", seconds, work)

    async def view(self, volume: VolumeId | None = None) -> View:
        async def work(vsm: Vsm) -> View:
            vsm.check_cluster(self._caller)
            return await vsm.view(volume)

        return await self._look(work)

    async def add_device(
        self, uri: str, size: int, device: DeviceId, *, direct: bool, checksums: bool
    ) -> DeviceView:
        return await self._call(
            lambda vsm: vsm.add_device(
                self._caller, uri, size, device, direct=direct, checksums=checksums
            ),
            LONG,
        )

    async def remove_device(self, device: DeviceId) -> None:
        await self._call(lambda vsm: vsm.remove_device(self._caller, device))

    async def put_t1(self, t1: T1, epoch: int) -> None:
        await self._call(lambda vsm: vsm.put_t1(self._caller, t1, epoch), LONG)

    async def adopt_t1(self, t1: T1, epoch: int) -> None:
        await self._call(lambda vsm: vsm.adopt_t1(self._caller, t1, epoch), LONG)

    async def fence_t1(self, t1: T1Id, epoch: int, known: int) -> None:
        await self._call(lambda vsm: vsm.fence_t1(self._caller, t1, epoch, known), LONG)

    async def delete_t1(self, t1: T1Id, epoch: int) -> None:
        await self._call(lambda vsm: vsm.delete_t1(self._caller, t1, epoch), LONG)

    async def stage_t2(self, t2: T2, access: Access) -> None:
        await self._call(lambda vsm: vsm.stage_t2(self._caller, t2, access))

    async def set_access(self, volume: VolumeId, access: Access) -> None:
        await self._call(lambda vsm: vsm.set_access(self._caller, volume, access))

    async def access(self, volume: VolumeId) -> Access:
        return await self._look(lambda vsm: vsm.access(self._caller, volume))

    async def activate_t2(self, volume: VolumeId, version: int) -> float:
        return await self._call(lambda vsm: vsm.activate_t2(self._caller, volume, version), LONG)

    async def remove_t2(self, volume: VolumeId, version: int) -> None:
        await self._call(lambda vsm: vsm.remove_t2(self._caller, volume, version), LONG)

    async def drop_reference(self, volume: VolumeId, t1: T1Id) -> None:
        await self._call(lambda vsm: vsm.drop_reference(self._caller, volume, t1))

    async def start_copy(
        self,
        volume: VolumeId,
        version: int,
        path: Path,
        *,
        start: int,
        rate: int,
        adaptive: bool,
        mode: CopyMode,
    ) -> None:
        limits = {"rate": rate, "adaptive": adaptive, "mode": mode}
        await self._call(
            lambda vsm: vsm.start_copy(self._caller, volume, version, path, start=start, **limits)
        )

    async def throttle_copy(
        self, volume: VolumeId, path: Path, *, rate: int, adaptive: bool
    ) -> None:
        await self._call(
            lambda vsm: vsm.throttle_copy(self._caller, volume, path, rate=rate, adaptive=adaptive)
        )

    async def stop_copy(self, volume: VolumeId, path: Path) -> None:
        await self._call(lambda vsm: vsm.stop_copy(self._caller, volume, path))

    async def labels(self) -> tuple[LabelView, ...]:
        return await self._look(lambda vsm: vsm.labels(self._caller))

    async def activate_mvsm(self) -> None:
        async def work(vsm: Vsm) -> None:
            vsm.activate_mvsm(self._caller)

        await self._call(work)

    async def deactivate_mvsm(self) -> None:
        async def work(vsm: Vsm) -> None:
            vsm.deactivate_mvsm(self._caller)

        await self._call(work)

    async def determine(
        self, current: Volume | None, target: Volume | None
    ) -> tuple[Affected, ...]:
        async def work(vsm: Vsm) -> tuple[Affected, ...]:
            return vsm.determine(self._caller, current, target)

        return await self._call(work)


class Controller:
    """One life of the controller: the wiring of `controller/app.py`."""

    def __init__(self, world: World) -> None:
        self.process = Process(world.loop, CONTROLLER)
        store, clock, log = world.store, SimClock(world.loop), world.log.bind(program=CONTROLLER)
        processors = Processors(world.net, world.breach)
        self.registry = Registry(store, processors, clock, log, lambda _: self.reconciler.wake())
        self.collector = Collector(self.registry, log)
        self.executor = Executor(store, self.registry, clock, log, lambda *_: None, copies=2)
        planner = Planner(store, self.registry, self.collector)
        turns = Turns()
        self.service = Service(
            store, self.registry, self.collector, planner, self.executor, turns, clock, log
        )
        self.inventory = Inventory(
            store, self.registry, self.collector, self.executor, self.service.planning
        )
        self.drainer = Drainer(self.service, clock, log)
        self.reconciler = Reconciler(
            store, self.registry, self.collector, turns, clock, log, self.service.busy
        )
        learner = Learner(store, self.registry, self.collector, self.executor, turns, log)
        self.guardian = Guardian(self.service, learner, processors, clock, log, LOST_AFTER, 0.0)
        self.process.main(self._run(world))

    async def _run(self, world: World) -> None:
        while True:
            try:
                await self.registry.start()
                break
            except Exception:  # the store is full: the service manager starts it again
                await asyncio.sleep(1.0)
        await self.executor.resume()
        world.net.listen(CONTROLLER, self.process, self.registry)
        await asyncio.gather(
            self.registry.run(), self.reconciler.run(), self.drainer.run(), self.guardian.run()
        )


def rng_ids(rng: random.Random) -> Callable[[int], str]:
    """`secrets.token_hex` that a seed repeats."""
    return lambda count: f"{rng.getrandbits(8 * count):0{2 * count}x}"
