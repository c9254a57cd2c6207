"""Plans that are shown, then applied or refused; operations that rest, take limits and turns; SPs
that are emptied; versions that are remembered and come back."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from tests.controller.world import A, B, C, Controller, World, settled
from tests.fakes import until
from vswitchd.controller.service import Options
from vswitchd.errors import Kind, VsError
from vswitchd.model.layout import print_volume
from vswitchd.model.objects import BLOCK, Extent
from vswitchd.ports import OperationRecord
from vswitchd.restructure.codec import decode_plan
from vswitchd.restructure.diff import changes
from vswitchd.restructure.preview import preview
from vswitchd.restructure.requests import (
    AddLeg,
    Evacuate,
    Grow,
    Move,
    Relayout,
    Request,
    Restore,
    Serve,
)
from vswitchd.restructure.steps import ActivateT2, Commit, Copy, FenceT1, pause_points

PLAN = Options(dry_run=True)


async def made(layout: str) -> tuple[World, Controller]:
    world = World()
    await world.with_volume(layout)
    return world, await world.controller()


async def started(world: World, controller: Controller, request: Request) -> OperationRecord:
    """An operation whose copy has begun and goes on only when it is let."""
    world.sps.hold_copies = True
    record = await controller.change(request)
    await world.copying()
    return record


# Plan and apply.


async def test_a_plan_is_applied_as_it_was_shown() -> None:
    world, controller = await made("a")
    plan = await controller.change(AddLeg(sp=C), options=PLAN)
    assert plan.state == "planned" and not controller.executor.live
    applied = await controller.service.apply("v1", plan.id, Options(request_id="r", who="me"))
    assert applied.plan == plan.plan, "exactly that plan"
    again = await controller.service.apply("v1", plan.id, Options(request_id="r"))
    assert again.id == applied.id, "said twice it is done once"
    ended = await controller.ended(applied)
    assert (ended.state, ended.requested_by) == ("done", "me")
    settled(world, await controller.volume())
    with pytest.raises(VsError) as late:
        await controller.service.apply("v1", plan.id, Options())
    assert late.value.code == "VS3077"


async def test_a_plan_for_another_version_is_refused() -> None:
    world, controller = await made("a")
    plan = await controller.change(AddLeg(sp=C), options=PLAN)
    await controller.ended(await controller.change(Serve(B)))
    held = world.sps.snapshot()
    with pytest.raises(VsError) as stale:
        await controller.service.apply("v1", plan.id, Options())
    assert (stale.value.code, stale.value.kind) == ("VS3075", Kind.STALE)
    assert world.sps.snapshot() == held


async def test_a_plan_whose_space_has_gone_is_refused() -> None:
    _, controller = await made("a")
    plan = await controller.change(AddLeg(sp=C), options=PLAN)
    # Another volume takes what was shown as free.
    ended = await controller.ended(await controller.create("v2", "c", 8))
    assert ended.state == "done"
    with pytest.raises(VsError) as stale:
        await controller.service.apply("v1", plan.id, Options())
    assert (stale.value.code, stale.value.kind) == ("VS3076", Kind.STALE)


async def test_a_plan_of_nobody_is_not_found() -> None:
    _, controller = await made("a")
    plan = await controller.change(AddLeg(sp=C), options=PLAN)
    for name, plan_id in (("v1", "op-none"), ("v2", plan.id)):
        with pytest.raises(VsError) as unknown:
            await controller.service.apply(name, plan_id, Options())
        assert unknown.value.code == "VS2045"


async def test_a_creation_can_be_planned_and_applied() -> None:
    world = World()
    controller = await world.controller()
    plan = await controller.service.create(
        lambda volume: _create(volume, "mirror(a, b)"), Options(dry_run=True)
    )
    applied = await controller.service.apply("v1", plan.id, Options())
    assert (await controller.ended(applied)).state == "done"
    settled(world, await controller.volume())


def _create(volume: object, layout: str):  # type: ignore[no-untyped-def]
    from vswitchd.restructure.requests import Create

    return Create(volume, "v1", 8 * BLOCK, layout)  # type: ignore[arg-type]


async def test_a_preview_says_what_is_at_stake() -> None:
    _, controller = await made("mirror(a, b)")
    volume = await controller.volume()
    plan = decode_plan((await controller.change(Relayout("mirror(a, c)"), options=PLAN)).plan)
    shown = preview(plan)
    by_step = list(zip(plan.steps, shown.steps, strict=True))
    assert all(seen.redundancy == 2 for step, seen in by_step if isinstance(step, Copy))
    assert min(seen.redundancy for _, seen in by_step) == 2
    assert shown.reserved == {(C, "c0"): volume.size}
    assert shown.undone_by == f"volume restore v1 --version {volume.version}"
    # Hosts wait from the fence on until the first tree is active: once for each swap.
    waits = [step for step, seen in by_step if seen.pause]
    assert len(waits) == sum(isinstance(step, Commit) for step in plan.steps)
    assert all(isinstance(step, ActivateT2) for step in waits)
    grow = decode_plan((await controller.change(Grow(20 * BLOCK), options=PLAN)).plan)
    assert "can't shrink" in preview(grow).undone_by


# Operations that rest.


async def test_a_paused_copy_goes_on_from_its_checkpoint() -> None:
    world, controller = await made("a")
    world.sps.halfway = True
    record = await controller.change(AddLeg(sp=C))
    await world.copying()
    live = controller.executor.live[record.id]
    await until("a checkpoint", lambda: live.record.checkpoint > 0)
    await controller.executor.pause(record.id)
    await until("it to rest", lambda: live.record.state == "paused")
    checkpoint = live.record.checkpoint
    assert not world.sps.lives[A].copies, "the copy is stopped"
    stored = await world.store.operation(record.id)
    assert stored is not None and (stored.state, stored.checkpoint) == ("paused", checkpoint)
    # A new controller finds it resting.
    await controller.stop()
    second = await world.controller()
    live = second.executor.live[record.id]
    for _ in range(50):
        await asyncio.sleep(0)
    assert live.record.state == "paused" and not world.sps.lives[A].copies
    world.sps.halfway = False
    await second.executor.unpause(record.id)
    assert (await second.ended(record)).state == "done"
    assert world.sps.starts == [0, checkpoint]
    settled(world, await second.volume())


async def test_a_paused_operation_can_be_cancelled() -> None:
    world, controller = await made("a")
    before = await controller.volume()
    record = await started(world, controller, AddLeg(sp=C))
    await controller.executor.pause(record.id)
    live = controller.executor.live[record.id]
    await until("it to rest", lambda: live.record.state == "paused")
    await controller.executor.cancel(record.id)
    assert (await controller.ended(record)).state == "cancelled"
    after = await controller.volume()
    assert after.root == before.root
    settled(world, after)
    for ask in (controller.executor.pause, controller.executor.unpause):
        with pytest.raises(VsError) as late:
            await ask(record.id)
        assert late.value.code == "VS3050"


@pytest.mark.parametrize("name", ["mirror to stripe", "move"])
async def test_it_never_rests_while_hosts_wait(name: str) -> None:
    """Asked for at any moment, it rests only where every block can be read and written."""
    layout, request = {
        "mirror to stripe": ("mirror(a, b)", Relayout("stripe(a, c, chunk=4K)")),
        "move": ("a/ab", Move(A, B)),
    }[name]
    rested = 0
    for moment in range(0, 120, 3):
        world, controller = await made(layout)
        record = await controller.change(request)
        for _ in range(moment):
            await asyncio.sleep(0)
        live = controller.executor.live.get(record.id)
        if live is None:
            break
        try:
            await controller.executor.pause(record.id)
        except VsError:
            break
        await until(
            "it to rest or end",
            lambda live=live, c=controller: live.record.state == "paused" or not c.executor.live,
        )
        if live.record.state == "paused":
            rested += 1
            volume = await controller.volume()
            blocks = len(volume.serving) * volume.size // BLOCK
            assert world.sps.cluster.host_io(volume.id) == blocks, moment
            await controller.executor.unpause(record.id)
        assert (await controller.ended(record)).state == "done"
        settled(world, await controller.volume())
        await controller.stop()
    assert rested > 3


async def test_points_of_rest_lie_outside_of_swaps_and_moves() -> None:
    _, controller = await made("a/ab")
    plan = decode_plan((await controller.change(Move(A, B), options=PLAN)).plan)
    points = sorted(pause_points(plan))
    first_fence = next(i for i, step in enumerate(plan.steps) if isinstance(step, FenceT1))
    last_swap = max(i for i, step in enumerate(plan.steps) if isinstance(step, ActivateT2))
    assert points and all(point <= first_fence or point > last_swap for point in points)


# Limits and turns.


async def test_limits_reach_the_copy_that_runs() -> None:
    world, controller = await made("a")
    world.sps.hold_copies = True
    record = await controller.change(AddLeg(sp=C), options=Options(rate=5 << 20))
    await world.copying()
    (key,) = world.sps.limits
    assert world.sps.limits[key] == (5 << 20, True)
    await controller.executor.throttle(record.id, 1 << 20, False, 7)
    await until("the SP to be told", lambda: world.sps.limits[key] == (1 << 20, False))
    stored = await world.store.operation(record.id)
    assert stored is not None and (stored.rate, stored.priority) == (1 << 20, 7)
    world.sps.hold_copies = False
    assert (await controller.ended(record)).state == "done"


async def test_the_highest_priority_goes_next() -> None:
    world = World()
    controller = await world.controller()
    controller.executor._carrier._copying._slots._count = 1
    for name in ("v1", "v2", "v3"):
        await controller.ended(await controller.create(name, "a/a0", 4))
    world.sps.hold_copies = True
    first = await controller.change(AddLeg("c"), "v1")
    await world.copying()
    low = await controller.change(AddLeg("c"), "v2", options=Options(priority=1))
    high = await controller.change(AddLeg("c"), "v3", options=Options(priority=8))
    lives = controller.executor.live
    for record in (low, high):
        await until("it to wait", lambda r=record: "its turn" in lives[r.id].record.waiting_for)
    assert len(world.sps.starts) == 1
    order: list[str] = []
    world.sps.hold_copies = False
    while lives:
        for record in (first, low, high):
            if record.id not in lives and record.id not in order:
                order.append(record.id)
        await asyncio.sleep(0)
    order += [r.id for r in (first, low, high) if r.id not in order]
    assert order == [first.id, high.id, low.id]


async def test_a_priority_out_of_bounds_is_refused() -> None:
    with pytest.raises(VsError, match="VS1051"):
        Options(priority=10)


async def test_space_is_reserved_before_the_start() -> None:
    """Nothing can take what an operation will need, though nothing of it is there yet."""
    world, controller = await made("a")
    world.sps.refuses[C, "put_t1"] = VsError("VS5001", Kind.UNREACHABLE, "away")
    record = await controller.change(AddLeg("c/c0"))
    taken = controller.service._reserved()
    assert taken == [Extent(taken[0].device, 0, 8 * BLOCK)] and taken[0].device == "c0"
    big = await controller.create("v2", "c/c0", 82)
    world.sps.refuses.clear()
    assert (await controller.ended(big)).state == "done"
    assert (await controller.ended(record)).state == "done"


# Drained SPs.


async def test_a_drained_sp_is_emptied_and_stays_so() -> None:
    world = World()
    controller = await world.controller()
    for name, layout in (("v1", "mirror(a/a0, b)"), ("v2", "a/ab"), ("v3", "stripe(a, c)")):
        await controller.ended(await controller.create(name, layout, 16))
    await controller.inventory.drain(A, False)
    for _ in range(6):
        await controller.drainer.look()
        await until("the operations", lambda c=controller: not c.executor.live)
        await controller.stop()
        controller = await world.controller()  # that it is drained outlives the controller
    assert not controller.drainer.stuck
    assert not world.sps.cluster.sps[A].t1s and not world.sps.cluster.sps[A].active
    for volume in await world.store.volumes():
        assert A not in volume.serving and volume.owner != A
        assert all(t1.home != A for t1 in volume.t1s)
    with pytest.raises(VsError) as refused:
        await controller.create("v4", "a", 4)
    assert refused.value.code == "VS3078"
    with pytest.raises(VsError, match="VS3078"):
        await controller.change(Serve(A), "v2")
    await controller.inventory.drain(A, None)
    assert (await controller.ended(await controller.create("v4", "a", 4))).state == "done"


async def test_a_drain_that_keeps_serving_leaves_hosts_connected() -> None:
    world, controller = await made("mirror(a/a0, b)")
    await controller.inventory.drain(A, True)
    await controller.drainer.look()
    await until("the operation", lambda: not controller.executor.live)
    volume = await controller.volume()
    assert A in volume.serving and volume.owner != A
    assert all(t1.home != A for t1 in volume.t1s)
    await controller.drainer.look()
    assert not controller.executor.live, "nothing is left to do"
    settled(world, volume)


async def test_a_drain_that_finds_no_room_says_so() -> None:
    world = World()
    controller = await world.controller()
    await controller.ended(await controller.create("fill", "mirror(a/a0, b/b0)", 60))
    await controller.ended(await controller.create("big", "c/c0", 90))
    await controller.inventory.drain(C, False)
    await controller.drainer.look()
    assert "no room" in controller.drainer.stuck[C, "big"]
    assert (await controller.volume("big")).t1s[0].home == C


# Versions.


async def test_every_version_is_remembered_and_comes_back() -> None:
    _, controller = await made("a/a0")
    for request in (AddLeg(sp=C), Relayout("mirror(b, c)"), Grow(16 * BLOCK)):
        ended = await controller.ended(await controller.change(request, options=Options(who="ann")))
        assert ended.state == "done", ended
    volume = await controller.volume()
    _, rows = await controller.service.history("v1")
    assert [row.version for row in rows] == list(range(1, volume.version + 1))
    assert {row.who for row in rows[1:]} == {"ann"}
    for before, after in pairwise(rows):
        assert changes(before.volume, after.volume), after.version
    first = await controller.service.version(volume, 1)
    ended = await controller.ended(await controller.change(Restore(first)))
    assert ended.state == "done"
    assert print_volume(await controller.volume()) == "a/a0:64K", "its place, at today's size"
    with pytest.raises(VsError, match="VS2046"):
        await controller.service.version(volume, 999)
    with pytest.raises(VsError, match="VS2041"):
        await controller.service.history("nobody")


async def test_a_moment_within_a_move_is_not_restored() -> None:
    _, controller = await made("a/ab")
    await controller.ended(await controller.change(Move(A, B)))
    _, rows = await controller.service.history("v1")
    (out,) = [row.volume for row in rows if row.volume and "hole" in print_volume(row.volume)]
    with pytest.raises(VsError, match="VS3074"):
        await controller.change(Restore(out))


async def test_an_sp_that_has_nothing_is_evacuated_at_once() -> None:
    _, controller = await made("a")
    record = await controller.change(Evacuate(C), options=PLAN)
    assert decode_plan(record.plan).steps == ()
