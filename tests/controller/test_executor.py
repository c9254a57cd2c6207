"""Operations from request to end: done, waiting, undone, cancelled, refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.controller.world import A, B, C, World, settled
from tests.fakes import unreachable, until
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import BLOCK, SpId
from vswitchd.model.view import CopyState
from vswitchd.restructure.requests import (
    AddLeg,
    Delete,
    Grow,
    Move,
    Relayout,
    RemoveLeg,
    Request,
    Serve,
    Unserve,
)

#: A volume to begin with, and a request on it; `ab` is reached by a and b.
SCENARIOS: dict[str, tuple[str, Request]] = {
    "grow": ("mirror(a, b)", Grow(12 * BLOCK)),
    "add leg": ("a", AddLeg(sp=C)),
    "remove leg": ("mirror(a, b)", RemoveLeg("b")),
    "move, device shared": ("a/ab", Move(A, B)),
    "move, by copying": ("a/a0", Move(A, C)),
    "serve": ("a", Serve(C)),
    "unserve": ("mirror(a, b)", Unserve(B)),
    "hand over and unserve": ("mirror(a, b)", Unserve(A)),
    "mirror to stripe": ("mirror(a, b)", Relayout("stripe(a, c, chunk=4K)")),
    "delete": ("mirror(a, b)", Delete()),
}
BROKEN = VsError("VS9010", Kind.INTERNAL, "the device said no")


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_request_is_carried_out_whole(name: str) -> None:
    layout, request = SCENARIOS[name]
    world = World()
    await world.with_volume(layout)
    controller = await world.controller()
    record = await controller.ended(await controller.change(request))
    assert (record.state, record.error, record.waiting_for) == ("done", "", "")
    assert record.ended is not None and record.ended >= record.created
    volume = None if isinstance(request, Delete) else await controller.volume()
    settled(world, volume)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("restart", [False, True], ids=["", "sps-restart"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_controller_that_dies_at_any_write_is_taken_over(
    name: str, after: bool, restart: bool
) -> None:
    """Killed before or after its n-th write, for every n: the next one ends the operation, or
    it never began."""
    layout, request = SCENARIOS[name]
    write = 0
    while True:
        write += 1
        world = World()
        before = await world.with_volume(layout)
        first = await world.controller()
        world.store.writes = 0
        world.store.crash_at, world.store.crash_after = write, after
        begun = asyncio.ensure_future(first.change(request))
        crashed = await first.crashed_or_over(begun)
        begun.cancel()
        await first.stop()
        world.store.revive()
        if restart:
            for sp in (A, B, C):
                world.sps.restart(sp)
        second = await world.controller()
        for record in await world.store.operations():
            ended = await second.ended(record)
            assert ended.state == "done", (write, ended)
        volumes = await world.store.volumes()
        if len(await world.store.operations()) == 1:
            assert list(volumes) == [before], "the operation never began"
        settled(world, volumes[0] if volumes else None)
        await second.stop()
        if not crashed:
            assert write > 3, "no write was tried"
            return


async def test_an_sp_that_is_away_is_waited_for() -> None:
    world = World()
    await world.with_volume("mirror(a, b)")
    controller = await world.controller()
    world.sps.refuses[B, "activate_t2"] = unreachable(B)
    record = await controller.change(Serve(C))
    live = controller.executor.live[record.id]
    await until("it to wait", lambda: live.record.waiting_for)
    assert live.record.waiting_for == unreachable(B).message
    assert "step_waits" in controller.events
    assert (await controller.service.operation(record.id)).state == "running"
    told = controller.events.count("step_waits")
    tries = world.sps.calls[B, "activate_t2"]
    await until("more tries", lambda: world.sps.calls[B, "activate_t2"] > tries + 5)
    assert controller.events.count("step_waits") == told, "said once, not at every try"
    world.sps.refuses.clear()
    ended = await controller.ended(record)
    assert (ended.state, ended.waiting_for) == ("done", "")
    settled(world, await controller.volume())


@pytest.mark.parametrize(
    ("name", "sp", "method"),
    [
        ("add leg", C, "put_t1"),
        ("add leg", A, "stage_t2"),
        ("add leg", A, "start_copy"),
        ("move, by copying", C, "put_t1"),
        ("mirror to stripe", C, "put_t1"),
        ("mirror to stripe", B, "fence_t1"),
        ("grow", B, "put_t1"),
        ("serve", C, "stage_t2"),
    ],
)
async def test_a_step_that_fails_for_good_is_undone(name: str, sp: SpId, method: str) -> None:
    layout, request = SCENARIOS[name]
    world = World()
    before = await world.with_volume(layout)
    controller = await world.controller()
    world.sps.refuses[sp, method] = BROKEN
    record = await controller.change(request)
    live = controller.executor.live[record.id]
    await until("it to turn back", lambda: live.record.state == "undoing")
    world.sps.refuses.clear()  # a fence is part of the way back too
    ended = await controller.ended(record)
    assert (ended.state, ended.error_code, ended.error) == ("failed", "VS9010", BROKEN.message)
    after = await controller.volume()
    assert (after.root, after.t1s, after.size) == (before.root, before.t1s, before.size)
    settled(world, after)
    again = await controller.ended(await controller.change(request))
    assert again.state == "done", "a later try is not in the way of the first"


async def test_a_create_that_fails_leaves_nothing() -> None:
    world = World()
    controller = await world.controller()
    world.sps.refuses[C, "put_t1"] = BROKEN
    ended = await controller.ended(await controller.create(layout="mirror(a, c)"))
    assert ended.state == "failed"
    settled(world, None)
    assert list(await world.store.volumes()) == []
    world.sps.refuses.clear()
    assert (await controller.ended(await controller.create())).state == "done"


async def test_a_failure_is_not_held_up_by_a_neighbour_that_is_away() -> None:
    world = World()
    controller = await world.controller()
    world.sps.refuses[A, "put_t1"] = unreachable(A)
    world.sps.refuses[C, "put_t1"] = unreachable(C)
    record = await controller.create(layout="mirror(a, c)")
    live = controller.executor.live[record.id]
    await until("both to wait", lambda: len(live.waits) == 2)
    assert live.record.waiting_for == f"{unreachable(A).message}; {unreachable(C).message}"
    world.sps.refuses[C, "put_t1"] = BROKEN
    await until("it to turn back", lambda: live.record.state == "undoing")
    assert live.record.error == BROKEN.message
    world.sps.refuses.clear()
    assert (await controller.ended(record)).state == "failed"
    settled(world, None)


async def test_past_the_point_of_no_return_it_only_goes_on() -> None:
    world = World()
    await world.with_volume("a/ab")
    controller = await world.controller()
    world.sps.refuses[B, "adopt_t1"] = BROKEN
    record = await controller.change(Move(A, B))
    live = controller.executor.live[record.id]
    await until("it to wait", lambda: BROKEN.message in live.record.waiting_for)
    with pytest.raises(VsError) as late:
        await controller.executor.cancel(record.id)
    assert late.value.code == "VS3051"
    world.sps.refuses.clear()
    assert (await controller.ended(record)).state == "done"
    settled(world, await controller.volume())


# Copies.


async def test_a_copy_shows_its_progress_and_starts_again_with_its_owner() -> None:
    world = World()
    await world.with_volume("a")
    controller = await world.controller()
    world.sps.hold_copies = True
    record = await controller.change(AddLeg(sp=C))
    await world.copying()
    world.sps.restart(A)
    await controller.join(A)
    await until("the copy to start again", lambda: world.sps.lives[A].copies)
    live = controller.executor.live[record.id]
    seen: set[int] = set()
    world.sps.hold_copies = False

    def over() -> bool:
        seen.add(live.copied)
        return record.id not in controller.executor.live

    await until("it to end", over)
    assert seen == {0, 4 * BLOCK, 8 * BLOCK}
    assert (await controller.ended(record)).copied == 8 * BLOCK
    settled(world, await controller.volume())


async def test_a_copy_that_fails_is_undone_with_its_reason() -> None:
    world = World()
    before = await world.with_volume("a")
    controller = await world.controller()
    world.sps.hold_copies = True
    record = await controller.change(AddLeg(sp=C))
    await world.copying()
    copies = world.sps.lives[A].copies
    for key, copy in copies.items():
        copies[key] = replace(copy, state=CopyState.FAILED, error="disk c0 is gone")
    ended = await controller.ended(record)
    assert (ended.state, ended.error_code) == ("failed", "VS9040")
    assert "disk c0 is gone" in ended.error
    after = await controller.volume()
    assert after.root == before.root
    settled(world, after)


# What must not happen.


async def test_a_store_that_fails_is_waited_for_and_nothing_is_let_go() -> None:
    world = World()
    await world.with_volume("a")
    controller = await world.controller()
    world.sps.hold_copies = True
    record = await controller.change(AddLeg(sp=C))
    await world.copying()
    world.store.broken = VsError("VS9031", Kind.INTERNAL, "the disk is full")
    world.sps.hold_copies = False
    live = controller.executor.live[record.id]
    await until("it to wait", lambda: live.record.waiting_for == "the disk is full")
    await controller.reconciler.reconcile()
    with pytest.raises(VsError) as second:
        await controller.change(Serve(B))
    assert second.value.code == "VS3060" and record.id in second.value.message
    world.store.broken = None
    assert (await controller.ended(record)).state == "done"
    settled(world, await controller.volume())


async def test_a_fault_leaves_the_volume_to_its_operation() -> None:
    """Whatever goes wrong in the executor itself: nobody tidies up after a move half done."""
    world = World()
    await world.with_volume("a/ab")
    controller = await world.controller()
    fault = RuntimeError("a bug")
    world.sps.refuses[B, "stage_t2"] = fault  # type: ignore[assignment]
    world.sps.refuses[A, "stage_t2"] = fault  # type: ignore[assignment]
    record = await controller.change(Move(A, B))
    live = controller.executor.live[record.id]
    await until("it to be stuck", lambda: "operation_stuck" in controller.events)
    assert "a bug" in live.record.waiting_for
    held = world.sps.snapshot()
    await controller.reconciler.reconcile()
    assert world.sps.snapshot() == held
    with pytest.raises(VsError) as refused:
        await controller.change(Serve(C))
    assert refused.value.code == "VS3060"
    await controller.stop()
    world.sps.refuses.clear()
    second = await world.controller()
    assert (await second.ended(record)).state == "done", "a restart goes on"
    settled(world, await second.volume())


async def test_another_controllers_journal_is_not_written_over() -> None:
    world = World()
    await world.with_volume("a")
    controller = await world.controller()
    world.sps.hold_copies = True
    record = await controller.change(AddLeg(sp=C))
    await world.copying()
    (stored,) = [o for o in await world.store.operations() if o.id == record.id]
    theirs = replace(stored, cursor=stored.cursor + 1)
    await world.store.update_operation(theirs, expect_cursor=stored.cursor)
    world.sps.hold_copies = False
    await until("it to stop", lambda: "operation_stuck" in controller.events)
    assert theirs in list(await world.store.operations())
    assert record.id in controller.executor.live


async def test_a_term_that_is_over_passes() -> None:
    world = World()
    await world.with_volume("a")
    controller = await world.controller()
    world.sps.hold_copies = True
    record = await controller.change(AddLeg(sp=C))
    await world.copying()
    await controller.join(A)  # the master joins anew: a new term
    world.sps.hold_copies = False
    assert (await controller.ended(record)).state == "done"


async def test_staged_trees_carry_the_addresses_of_now() -> None:
    world = World()
    await world.with_volume("mirror(a, c)")
    controller = await world.controller()
    world.sps.refuses[A, "stage_t2"] = unreachable(A)
    record = await controller.change(Serve(B))
    live = controller.executor.live[record.id]
    await until("it to wait", lambda: live.record.waiting_for)
    moved = replace(world.sps.record(C), incarnation="c-9", peer_address="elsewhere:9460")
    await controller.registry.register(moved, controller.registry.cluster)
    world.sps.refuses.clear()
    await controller.ended(record)
    volume = await controller.volume()
    held = world.sps.cluster.sps[A].active[volume.id]
    assert held.peers[C] == "elsewhere:9460"
