"""Every kind of request, its controller killed at every point where it could be: on either side of
every store write and of every call of an SP. The next controller ends what was begun, the same way
as if nothing had happened, or nothing was begun. And again with the next one killed too."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.controller.world import DEVICES, A, B, C, Controller, World, settled
from vswitchd.controller.service import Options
from vswitchd.model.layout import print_volume
from vswitchd.model.objects import BLOCK, SpId, Volume
from vswitchd.ports import OperationRecord, ProcessorRecord
from vswitchd.restructure.away import away
from vswitchd.restructure.requests import (
    AddLeg,
    Delete,
    Eject,
    Evacuate,
    Grow,
    Move,
    Own,
    Recover,
    Rejoin,
    Relayout,
    RemoveLeg,
    Replace,
    Request,
    Restore,
    Serve,
    Unserve,
    Verify,
)

#: With it every pair of points is tried; without it each point once as the second of a pair.
SOAK = bool(os.environ.get("VSWITCHD_SOAK"))

Ask = Callable[[Controller], Awaitable[OperationRecord]]


def change(request: Request) -> Ask:
    return lambda controller: controller.change(request)


async def restore(controller: Controller) -> OperationRecord:
    """Back to what the volume was before its first change."""
    volume = await controller.volume()
    (first, *_) = await controller.world.store.history(volume.id)
    assert first.volume is not None
    return await controller.change(Restore(first.volume))


async def apply(controller: Controller) -> OperationRecord:
    """A plan that was shown before."""
    plan = await controller.change(AddLeg(sp=C), options=Options(dry_run=True))
    return await controller.service.apply("v1", plan.id, Options())


#: What there is before (None: nothing), what was done to it, and what is asked.
KINDS: dict[str, tuple[str | None, tuple[Request, ...], Ask]] = {
    "create": (None, (), lambda c: c.create(layout="mirror(a, b)")),
    "create, striped": (None, (), lambda c: c.create(layout="stripe(a, mirror(b, c), chunk=4K)")),
    "delete": ("mirror(a, b)", (), change(Delete())),
    "grow": ("mirror(a, b)", (), change(Grow(20 * BLOCK))),
    "grow elsewhere": ("concat(a/a0, c)", (), change(Grow(60 * BLOCK))),
    "add leg": ("a", (), change(AddLeg(sp=C))),
    "remove leg": ("mirror(a, b)", (), change(RemoveLeg("b"))),
    "move, device shared": ("a/ab", (Serve(B), Serve(C)), change(Move(A, B))),
    "move, by copying": ("a/a0", (), change(Move(A, C))),
    "move, both": ("stripe(a/a0, a/ab, chunk=4K)", (), change(Move(A, B))),
    "serve": ("a", (), change(Serve(C))),
    "unserve": ("mirror(a, b)", (), change(Unserve(B))),
    "hand over and unserve": ("mirror(a, b)", (), change(Unserve(A))),
    "relayout": ("mirror(a, b)", (), change(Relayout("stripe(a, c, chunk=4K)"))),
    "verify": ("mirror(a, b)", (), change(Verify())),
    "verify and repair": ("mirror(a, b)", (), change(Verify(repair=True))),
    "restore": ("a", (Relayout("mirror(b, c)"),), restore),
    "evacuate": ("mirror(a/a0, b)", (), change(Evacuate(A))),
    "evacuate the only one": ("a/a0", (), change(Evacuate(A))),
    "evacuate, device shared": ("stripe(a/ab, a/a0, chunk=4K)", (), change(Evacuate(A))),
    "recover": ("mirror(a, c)", (), change(Recover())),
    "apply": ("a", (), apply),
    "owner": ("mirror(a, b)", (), change(Own(B))),
    "eject": ("mirror(a, b)", (), change(Eject((B,)))),
    "eject the owner": ("mirror(a, b)", (), change(Eject((A,)))),
    "force": ("mirror(a, b, c)", (), change(Eject((A, B), forced=True))),
    "replace": ("mirror(a, b)", (Eject((B,)),), change(Replace((1,)))),
    "rejoin": ("mirror(a, b)", (Eject((B,)),), change(Rejoin((B,)))),
}


class Points:
    """Counts the points at which a controller may die, and lets it die at one."""

    def __init__(self) -> None:
        self.passed = 0
        self.target: int | None = None
        self.dead = asyncio.Event()

    async def point(self) -> None:
        self.passed += 1
        if self.passed == self.target:
            self.dead.set()
        if self.dead.is_set():
            await asyncio.Event().wait()

    def arm(self, target: int | None) -> None:
        self.passed, self.target, self.dead = 0, target, asyncio.Event()


class Processors:
    """`ports.Processors` with a point on either side of every call that does something."""

    def __init__(self, world: World, points: Points) -> None:
        self._world = world
        self._points = points

    async def listens(self, record: ProcessorRecord) -> bool:
        return await self._world.sps.listens(record)

    def connect(self, record: ProcessorRecord, cluster: str, term: int) -> Any:
        return _Processor(self._world.sps.connect(record, cluster, term), self._points)


class _Processor:
    def __init__(self, inner: Any, points: Points) -> None:
        self._inner = inner
        self._points = points

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name == "view":
            return method

        async def call(*args: Any, **options: Any) -> Any:
            await self._points.point()
            result = await method(*args, **options)
            await self._points.point()
            return result

        return call


async def world_of(layout: str | None, before: tuple[Request, ...]) -> tuple[World, Points]:
    world, points = World(), Points()
    if layout is not None:
        await world.with_volume(layout)
        controller = await world.controller()
        for request in before:
            ended = await controller.ended(await controller.change(request))
            assert ended.state == "done", ended
        await controller.reconciler.reconcile()
        volume = await controller.volume()
        world.sps.cluster.host_io(volume.id)
        await controller.stop()
    world.processors = Processors(world, points)
    world.store.point = points.point
    return world, points


async def dies(world: World, points: Points, target: int | None, ask: Ask | None) -> bool:
    """A controller that dies at a point, or ends what it does (False)."""
    points.arm(target)
    controller = Controller(world)
    starting = asyncio.ensure_future(controller.start())
    while not starting.done() and not points.dead.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0)
    if points.dead.is_set():
        starting.cancel()
        await controller.stop()
        return True
    starting.result()
    begun = None if ask is None else asyncio.ensure_future(ask(controller))
    while not points.dead.is_set():
        if (begun is None or begun.done()) and not controller.executor.live:
            break
        await asyncio.sleep(0)
    if begun is not None:
        if begun.done():
            begun.result()
        begun.cancel()
    await controller.stop()
    return points.dead.is_set()


def shape(volume: Volume | None) -> object:
    """What must be the same however often it was interrupted; ids and versions are not."""
    if volume is None:
        return None
    lost = [path for path, _ in away(volume.root)]
    return print_volume(volume), volume.size, volume.serving, volume.owner, lost


async def outcome(world: World) -> Volume | None:
    volumes = await world.store.volumes()
    return volumes[0] if volumes else None


async def judge(world: World, wanted: object, before: object, operations: int, where: str) -> None:
    """Whole, or not at all."""
    volume = await outcome(world)
    if volume is not None and any(away(volume.root)):
        # Nobody waited for the SP that was left behind.
        controller = await world.controller()
        await controller.reconciler.reconcile()
        await controller.stop()
    settled(world, volume)
    records = await world.store.operations()
    begun = [record for record in records if record.state != "planned"]
    assert all(record.state == "done" for record in begun), (where, begun)
    assert shape(volume) == (before if len(begun) == operations else wanted), where
    ours = {t1.id for t1 in volume.t1s} if volume is not None else set()
    assert ours <= set(await world.store.ledger()), f"{where}: not in the ledger"


@pytest.mark.parametrize("name", KINDS)
async def test_killed_anywhere_it_is_whole_or_not_at_all(name: str) -> None:
    layout, made, ask = KINDS[name]
    world, points = await world_of(layout, made)
    before = shape(await outcome(world))
    operations = len(await world.store.operations())
    assert not await dies(world, points, None, ask)
    wanted = shape(await outcome(world))
    total = points.passed
    leaves = ("recover", "verify", "verify and repair")
    assert total > 10 and wanted != (before if name not in leaves else None)
    for first in range(1, total + 1):
        world, points = await world_of(layout, made)
        assert await dies(world, points, first, ask), first
        await dies(world, points, None, None)
        await judge(world, wanted, before, operations, f"killed at {first} of {total}")


@pytest.mark.parametrize("name", KINDS)
async def test_and_killed_again_while_it_recovers(name: str) -> None:
    layout, made, ask = KINDS[name]
    world, points = await world_of(layout, made)
    before = shape(await outcome(world))
    operations = len(await world.store.operations())
    await dies(world, points, None, ask)
    wanted, total = shape(await outcome(world)), points.passed
    for first in range(1, total + 1):
        seconds = range(1, 2 * total) if SOAK else [1 + first * 7 % total]
        for second in seconds:
            world, points = await world_of(layout, made)
            await dies(world, points, first, ask)
            died = await dies(world, points, second, None)
            await dies(world, points, None, None)
            where = f"killed at {first} of {total}, then at {second}"
            await judge(world, wanted, before, operations, where)
            if not died:
                break  # the recovery has fewer points


async def test_the_kinds_are_all_there_are() -> None:
    """A request that is added must be added here."""
    asked = set(Request.__args__)  # type: ignore[attr-defined]
    here = {"Create"} | {"Restore"}
    for _, _, ask in KINDS.values():
        closure = getattr(ask, "__closure__", None) or ()
        here |= {type(cell.cell_contents).__name__ for cell in closure}
    assert {kind.__name__ for kind in asked} <= here
    assert SpId("a") in DEVICES
