"""SPs come to hold what the store says; nothing that is in use is touched."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.controller.world import A, B, C, Controller, World, settled
from tests.fakes import unreachable, until
from vswitchd.controller.reconciler import KEPT
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import BLOCK, T1, DeviceId, Extent, SpId, T1Id, VolumeId
from vswitchd.ports import DeviceRecord
from vswitchd.restructure.requests import AddLeg, Delete, Serve
from vswitchd.store.memory import MemoryStore

STRAY = T1(T1Id("stray"), VolumeId("gone"), BLOCK, (Extent(DeviceId("c0"), 0, BLOCK),), C)


async def made(layout: str = "mirror(a, b)") -> tuple[World, Controller]:
    world = World()
    await world.with_volume(layout)
    return world, await world.controller()


async def test_what_is_as_it_should_be_is_left_alone() -> None:
    world, controller = await made()
    calls = dict(world.sps.calls)
    await controller.reconciler.reconcile()
    changed = {key for key, n in world.sps.calls.items() if n != calls.get(key, 0)}
    assert {method for _, method in changed} == {"view"}


async def test_a_tree_that_an_sp_lost_or_has_an_old_one_of_is_pushed() -> None:
    world, controller = await made()
    volume = await controller.volume()
    old = world.sps.cluster.sps[B].active[volume.id]
    world.sps.cluster.sps[A].active.clear()
    world.sps.cluster.sps[B].active[volume.id] = replace(old, version=0)
    await controller.reconciler.reconcile()
    settled(world, volume)


async def test_a_peers_new_address_is_told() -> None:
    world, controller = await made()
    volume = await controller.volume()
    world.sps.restart(B)
    moved = replace(world.sps.record(B), peer_address="b:1")
    await controller.registry.register(moved, controller.registry.cluster)
    await controller.reconciler.reconcile()
    held = world.sps.cluster.sps[A].active[volume.id]
    assert (held.version, held.peers) == (volume.version, {B: "b:1"})


async def test_leftovers_go_when_the_ledger_knows_them() -> None:
    """An object that no operation of this store was to make is nobody's to remove: the store may
    be an old copy of itself. One that it was to make, and that no volume has, goes."""
    world, controller = await made()
    volume = await controller.volume()
    world.sps.cluster.sps[C].t1s[STRAY.id] = STRAY, 1
    world.sps.cluster.homes[STRAY.id] = C
    await controller.reconciler.reconcile()
    assert STRAY.id in world.sps.cluster.sps[C].t1s
    ended = await controller.ended(await controller.change(Serve(C)))
    await world.store.update_operation(ended, expect_cursor=ended.cursor, creates=[STRAY.id])
    await controller.reconciler.reconcile()
    assert STRAY.id not in world.sps.cluster.sps[C].t1s
    settled(world, await controller.volume())
    assert volume.version < (await controller.volume()).version
    # Seen gone everywhere, it leaves the ledger too, but not before what is late has come.
    assert STRAY.id in await world.store.ledger()
    world.clock.now += KEPT
    controller.hear()
    for sp in (A, B, C):
        await controller.join(sp)
    await controller.reconciler.reconcile()
    assert await world.store.ledger() == {t1.id for t1 in volume.t1s}


async def test_a_tree_of_an_unknown_volume_is_left_alone() -> None:
    """Hosts may have it mounted, though this store has never heard of it."""
    world, controller = await made("b")
    volume = await controller.volume()
    await MemoryStore.delete_volume(world.store, volume.id, who="me")
    await world.store.forget_t1s({t1.id for t1 in volume.t1s})
    held = world.sps.snapshot()
    await controller.reconciler.reconcile()
    assert world.sps.snapshot() == held


async def test_references_go_before_what_they_refer_to() -> None:
    """A volume that the store does not have, with a tree at one SP and its object at another:
    claim 13 holds while it is tidied away, in two looks."""
    world, controller = await made("b")
    ended = await controller.ended(await controller.change(Serve(A)))
    assert ended.state == "done"
    volume = await controller.volume()
    await MemoryStore.delete_volume(
        world.store, volume.id, who="me"
    )  # the model cluster is not told
    world.sps.refuses[A, "remove_t2"] = unreachable(A)
    await controller.reconciler.reconcile()
    assert world.sps.cluster.sps[B].t1s, "a tree at a still refers to it"
    world.sps.refuses.clear()
    await controller.reconciler.reconcile()
    await controller.reconciler.reconcile()
    settled(world, None)


async def test_a_volume_that_is_being_changed_is_left_to_its_operation() -> None:
    world, controller = await made("a")
    world.sps.hold_copies = True
    record = await controller.change(AddLeg(sp=C))
    await world.copying()
    held = world.sps.snapshot()
    await controller.reconciler.reconcile()
    assert world.sps.snapshot() == held
    world.sps.hold_copies = False
    assert (await controller.ended(record)).state == "done"
    await controller.reconciler.reconcile()
    settled(world, await controller.volume())


@pytest.mark.parametrize("moment", range(0, 60, 3))
async def test_operations_may_begin_and_end_while_it_looks(moment: int) -> None:
    """Every view may be old by the time it is acted upon."""
    world, controller = await made("a")
    looks = asyncio.create_task(_look(controller))
    for _ in range(moment):
        await asyncio.sleep(0)
    for request in (AddLeg(sp=C), Serve(B)):
        ended = await controller.ended(await controller.change(request))
        assert ended.state == "done", ended
    settled(world, await controller.volume())
    await controller.ended(await controller.change(Delete()))
    settled(world, None)
    created = await controller.ended(await controller.create(layout="mirror(b, c)"))
    assert created.state == "done"
    settled(world, await controller.volume())
    assert not looks.done(), looks.exception()
    looks.cancel()


async def _look(controller: Controller) -> None:
    while True:
        await controller.reconciler.reconcile()


async def test_a_push_and_a_request_take_turns() -> None:
    """A push that is under way is not overtaken by a new tree that it would then replace."""
    world, controller = await made()
    volume = await controller.volume()
    world.sps.restart(B)
    moved = replace(world.sps.record(B), peer_address="b:1")
    await controller.registry.register(moved, controller.registry.cluster)
    gate, reached = asyncio.Event(), asyncio.Event()
    connect = world.sps.connect

    class Slow:
        def __init__(self, inner: object) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

        async def stage_t2(self, t2: object, access: object) -> None:
            reached.set()
            await gate.wait()
            await self._inner.stage_t2(t2, access)  # type: ignore[attr-defined]

    world.sps.connect = lambda *args: Slow(connect(*args))  # type: ignore[method-assign, assignment]
    look = asyncio.create_task(controller.reconciler.reconcile())
    await reached.wait()
    request = asyncio.create_task(controller.change(Serve(C)))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not request.done() and not controller.executor.live
    gate.set()
    await look
    assert (await controller.ended(await request)).state == "done"
    after = await controller.volume()
    assert after.version > volume.version
    settled(world, after)


async def test_devices_are_opened_again_and_one_that_is_gone_holds_nothing_up() -> None:
    world, controller = await made()
    volume = await controller.volume()
    for name, sp in (("a0", A), ("ab", A), ("b0", B)):
        paths = {sp: f"file:/{name}"}
        record = DeviceRecord(DeviceId(name), name, 60 * BLOCK, BLOCK, paths, [SpId("b")])
        await world.store.put_device(record)
        world.sps.closed.add((sp, record.id))
    world.sps.refuses[A, "add_device"] = VsError("VS2011", Kind.NOT_FOUND, "no such file")
    world.sps.cluster.sps[A].active.clear()
    await controller.reconciler.reconcile()
    assert world.sps.reopened == [(B, DeviceId("b0"))]
    assert world.sps.direct == {(B, DeviceId("b0"))}, "as it was added"
    assert world.sps.calls[A, "add_device"] == 2, "each is tried"
    settled(world, volume)


async def test_an_sp_that_does_not_answer_holds_no_other_up() -> None:
    world, controller = await made()
    volume = await controller.volume()
    world.sps.cluster.sps[A].active.clear()
    world.sps.cluster.sps[B].active.clear()
    world.sps.refuses[A, "stage_t2"] = unreachable(A)
    await controller.reconciler.reconcile()
    assert volume.id in world.sps.cluster.sps[B].active
    assert "reconcile_failed" in controller.events


async def test_it_looks_when_an_sp_joins() -> None:
    world, controller = await made()
    volume = await controller.volume()
    world.sps.cluster.sps[B].active.clear()
    task = asyncio.create_task(controller.reconciler.run())
    controller.reconciler.wake()
    await until("the tree", lambda: SpId("b") in _serving(world, volume.id))
    task.cancel()


def _serving(world: World, volume: VolumeId) -> set[SpId]:
    return {sp.name for sp in world.sps.cluster.sps.values() if volume in sp.active}
