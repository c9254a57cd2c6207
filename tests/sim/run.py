"""One run: a scenario carried out, healed, and judged."""

from __future__ import annotations

import asyncio
import gc
import random
import warnings
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from tests.sim.checks import legs_differ, settled
from tests.sim.loop import SimLoop, StuckError
from tests.sim.nodes import rng_ids
from tests.sim.scenario import BUSY, Action, Scenario, scenario
from tests.sim.world import BreachError, World
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import BLOCK, SpId, VolumeId
from vswitchd.ports import OperationRecord
from vswitchd.restructure.requests import Create, Delete, Request

#: Simulated seconds within which all must be well after everything has healed.
HEALED = 400.0
#: Events after which a run is called endless.
MOST_STEPS = 400_000
HOSTS = 4


@dataclass
class Outcome:
    """How a run ended. `breaches` is empty if all was well."""

    seed: int
    breaches: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def run(seed: int, what: Scenario | None = None, *, noisy: bool = False) -> Outcome:
    """Runs a seed's scenario, or another with the seed's chances."""
    what = what or scenario(seed)
    loop = SimLoop()
    world = World(loop, seed, what.devices, noisy=noisy)
    ids = rng_ids(random.Random(f"ids {seed}"))
    # What programs draw at random must come from the seed too.
    with (
        mock.patch("vswitchd.controller.planner.secrets.token_hex", ids),
        mock.patch("vswitchd.controller.service.uuid.uuid4", lambda: _Uuid(ids(16))),
    ):
        asyncio._set_running_loop(loop)
        main = loop.create_task(Run(world, what, seed).all())
        try:
            while not main.done() and not world.breaches and not loop.faults:
                loop._run_once()  # type: ignore[attr-defined]
                if loop.steps > MOST_STEPS:
                    raise StuckError(f"{MOST_STEPS} steps and no end")
            if main.done():
                main.result()
        except (StuckError, BreachError, AssertionError, TimeoutError) as error:
            world.breaches.append(f"{loop.time():.3f}: {type(error).__name__}: {error}")
        world.breaches += [f"a fault: {error!r}" for error in loop.faults]
        asyncio._set_running_loop(None)
    loop.close()
    with warnings.catch_warnings():
        # What was killed was never awaited to its end.
        warnings.simplefilter("ignore")
        gc.collect()
    return Outcome(seed, world.breaches, world.counts, loop.time())


class _Uuid(str):
    """An id that looks like a UUID where it is asked for its digits."""

    __slots__ = ()

    @property
    def hex(self) -> str:
        return str(self)


class Run:
    """Carries a scenario out."""

    def __init__(self, world: World, what: Scenario, seed: int) -> None:
        self._world = world
        self._what = what
        self._rng = random.Random(f"run {seed}")

    async def all(self) -> None:
        world = self._world
        world.start_controller()
        for sp in world.sps.values():
            sp.start()
        await self._until("every SP to be up", lambda: all(sp.up for sp in world.sps.values()), 60)
        await self._until("a master", lambda: world.controller.registry.master, 60)  # type: ignore[union-attr]
        for name, layout, blocks, serving in self._what.volumes:
            await self._create(name, layout, blocks, serving)
        begun = world.loop.time()
        for _ in range(HOSTS):
            world.outside.spawn(world.hosts.run())
        for action in self._what.actions:
            await asyncio.sleep(max(0.0, begun + action.at - world.loop.time()))
            self._act(action)
        await asyncio.sleep(max(0.0, begun + BUSY - world.loop.time()))
        await self._heal()

    async def _until(self, what: str, true: Any, seconds: float) -> None:
        deadline = self._world.loop.time() + seconds
        while not true():
            if self._world.loop.time() > deadline:
                raise BreachError(f"waited {seconds:g} s in vain for {what}")
            await asyncio.sleep(0.1)

    async def _create(self, name: str, layout: str, blocks: int, serving: tuple[str, ...]) -> None:
        def make(volume: VolumeId) -> Create:
            return Create(volume, name, blocks * BLOCK, layout, tuple(map(SpId, serving)))

        from vswitchd.controller.service import Options

        world = self._world
        assert world.controller is not None
        record = await world.controller.service.create(make, Options())
        await self._until("the volume", lambda: record.id not in _live(world), 60)

    # The faults.

    def _act(self, action: Action) -> None:
        if action.kind not in ("request", "pause", "resume", "cancel", "throttle", "delete"):
            self._world.counts[action.kind.replace("_", " ")] += 1
        getattr(self, action.kind)(*action.detail)

    def _later(self, seconds: float, work: Any) -> None:
        self._world.loop.outside(seconds, work)

    def kill_sp(self, name: str, down: float) -> None:
        sp = self._world.sps[SpId(name)]
        sp.kill()
        self._later(down, lambda: self._revive(name))

    def _revive(self, name: str) -> None:
        sp = self._world.sps[SpId(name)]
        if sp.process is None or not sp.process.alive:
            sp.start()

    def kill_controller(self, down: float) -> None:
        self._world.kill_controller()
        self._later(down, self._world.start_controller)

    def kill_master(self, down: float) -> None:
        controller = self._world.controller
        if controller is not None and controller.registry.election.master is not None:
            self.kill_sp(controller.registry.election.master, down)

    def partition(self, one: str, other: str, one_way: bool, seconds: float) -> None:
        cuts = [(a, b) for a in _nodes(one) for b in _nodes(other)]
        if not one_way:
            cuts += [(b, a) for a, b in cuts]
        self._world.net.cut |= set(cuts)
        self._later(seconds, lambda: self._world.net.cut.difference_update(cuts))

    def loss(self, share: float, seconds: float) -> None:
        self._world.net.loss = share
        self._later(seconds, lambda: setattr(self._world.net, "loss", 0.0))

    def repeats(self, share: float, seconds: float) -> None:
        self._world.net.twice = share
        self._later(seconds, lambda: setattr(self._world.net, "twice", 0.0))

    def keen(self, seconds: float) -> None:
        self._world.hosts.keen = True
        self._later(seconds, lambda: setattr(self._world.hosts, "keen", False))

    def store_full(self, seconds: float) -> None:
        self._world.store.full = True
        self._later(seconds, lambda: setattr(self._world.store, "full", False))

    def die_at_store_write(self, left: int, side: str) -> None:
        self._world.store_fault = left, side
        self._later(5.0, self._world.start_controller)

    def file_fault(self, name: str, left: int, fault: str) -> None:
        self._world.file_faults[name] = left, fault
        self._later(4.0, lambda: self._revive(name))

    # What administrators do.

    def request(self, volume: str, request: Request) -> None:
        from vswitchd.controller.service import Options

        self._ask(lambda s: s.change(type(request).__name__.lower(), volume, request, Options()))

    def delete(self, name: str) -> None:
        for volume in self._world.store.now():
            if volume.name == name:
                self._world.hosts.unmounted.add(volume.id)
        self.request(name, Delete())

    def drain(self, name: str) -> None:
        world = self._world

        async def work() -> None:
            assert world.controller is not None
            await world.controller.inventory.drain(SpId(name), False)

        self._spawn(work())

    def pause(self, volume: str) -> None:
        self._wish(volume, lambda e, op: e.pause(op))

    def resume(self, volume: str) -> None:
        self._wish(volume, lambda e, op: e.unpause(op))

    def cancel(self, volume: str) -> None:
        self._wish(volume, lambda e, op: e.cancel(op))

    def throttle(self, volume: str) -> None:
        self._wish(volume, lambda e, op: e.throttle(op, 1 << 20, False, 7))

    def _wish(self, volume: str, tell: Any) -> None:
        controller = self._world.controller
        assert controller is not None
        for live in list(controller.executor.live.values()):
            if live.record.volume_name == volume:
                self._world.counts["operation paused, resumed, cancelled or throttled"] += 1
                self._spawn(tell(controller.executor, live.record.id))

    def _ask(self, ask: Any) -> None:
        controller = self._world.controller
        if controller is not None and controller.process.alive:
            self._spawn(ask(controller.service))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        controller = self._world.controller
        assert controller is not None
        controller.process.spawn(self._refusable(work))

    async def _refusable(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            record = await work
            if isinstance(record, OperationRecord):
                self._world.counts[f"operation {record.kind} begun"] += 1
        except VsError as error:
            if error.kind is Kind.INTERNAL and error.code != "VS9031":
                self._world.breach(f"a request met a defect: {error}")
            self._world.counts["request refused"] += 1

    # The end.

    async def _heal(self) -> None:
        world = self._world
        world.net.cut.clear()
        world.net.loss = world.net.twice = 0.0
        world.store.full = False
        world.store_fault = None
        world.file_faults.clear()
        world.start_controller()
        for name in list(world.sps):
            self._revive(name)
        assert world.controller is not None
        executor, registry = world.controller.executor, world.controller.registry
        await self._until("the controller to go on", lambda: registry.election.master, 60)
        for live in list(executor.live.values()):
            if live.record.wish == "pause":
                await self._refusable(executor.unpause(live.record.id))
        await self._until("SPs to register", lambda: set(registry.records) == set(world.sps), 60)
        for sp in list(await world.store.drained()):
            await world.controller.inventory.drain(sp, None)
        try:
            await self._until("every operation to end", lambda: not world.store.open(), HEALED)
        except BreachError as error:
            waits = [live.record for live in executor.live.values()]
            raise BreachError(f"{error}; {waits}") from None
        await asyncio.sleep(12.0)  # the reconciler looks every 10 s
        try:
            await self._until("what is left over to go", lambda: not settled(world), 200)
        except BreachError:
            raise BreachError("; ".join(settled(world))) from None
        world.hosts.active = False
        await self._until("hosts to get their answers", lambda: not world.hosts.busy, 60)
        await self._until("resyncs to end", self._resynced, 120)
        await self._read_all()
        if problems := [*settled(world), *legs_differ(world)]:
            raise BreachError("; ".join(problems))
        world.checked.one_master()
        world.counts["operation done"] += sum(
            r.state == "done" for r in await world.store.operations()
        )
        world.counts["operation undone"] += sum(
            r.state in ("failed", "cancelled") for r in await world.store.operations()
        )

    def _resynced(self) -> bool:
        engines = [sp.engine for sp in self._world.sps.values() if sp.engine is not None]
        return not any(active.resync for e in engines for active in e.volumes.values())

    async def _read_all(self) -> None:
        """Every block at every SP that serves it."""
        world = self._world
        for volume in world.store.now():
            for sp in volume.serving:
                for block in range(volume.size // BLOCK):
                    await asyncio.wait_for(
                        world.hosts.request(volume, sp, block, write=False), 30.0
                    )


def _live(world: World) -> Any:
    return world.controller.executor.live if world.controller is not None else {}


def _nodes(name: str) -> list[str]:
    return [name] if name == "controller" else [name, f"{name}/vsm"]
