"""Cancelling: as before, or refused; never lost."""

from __future__ import annotations

import asyncio

import pytest

from tests.controller.world import A, C, World, settled
from tests.fakes import unreachable, until
from vswitchd.errors import VsError
from vswitchd.restructure.requests import AddLeg, Relayout


async def test_cancelled_in_the_copy_it_is_as_before() -> None:
    world = World()
    before = await world.with_volume("a")
    controller = await world.controller()
    world.sps.hold_copies = True
    record = await controller.change(AddLeg(sp=C))
    await world.copying()
    await controller.executor.cancel(record.id)
    ended = await controller.ended(record)
    assert ended.state == "cancelled"
    after = await controller.volume()
    assert (after.root, after.t1s) == (before.root, before.t1s)
    assert not world.sps.lives[A].copies
    settled(world, after)
    with pytest.raises(VsError) as late:
        await controller.executor.cancel(ended.id)
    assert late.value.code == "VS3050"


async def test_cancelled_while_it_waits_for_an_sp() -> None:
    world = World()
    controller = await world.controller()
    world.sps.refuses[C, "put_t1"] = unreachable(C)
    record = await controller.create(layout="mirror(a, c)")
    live = controller.executor.live[record.id]
    await until("it to wait", lambda: live.record.waiting_for)
    await controller.executor.cancel(record.id)
    assert (await controller.ended(record)).state == "cancelled"
    settled(world, None)


async def test_a_cancel_that_was_taken_is_never_lost() -> None:
    """Asked for at any moment it is refused, or the operation ends cancelled."""
    for moment in range(200):
        world = World()
        await world.with_volume("a")
        controller = await world.controller()
        record = await controller.change(AddLeg(sp=C))
        for _ in range(moment):
            await asyncio.sleep(0)
        live = controller.executor.live.get(record.id)
        if live is None:
            assert moment > 20, "over before anything could be tried"
            return
        taken = True
        try:
            await controller.executor.cancel(record.id)
        except VsError as error:
            assert error.code in ("VS3050", "VS3051")
            taken = False
        ended = await controller.ended(record)
        assert ended.state == ("cancelled" if taken else "done"), moment
        settled(world, await controller.volume())
    raise AssertionError("it never ended")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_way_back_survives_the_controller(after: bool) -> None:
    """Cancelled, then killed at any write of the way back."""
    write = 0
    while True:
        write += 1
        world = World()
        before = await world.with_volume("mirror(a, b)")
        first = await world.controller()
        world.sps.hold_copies = True
        record = await first.change(Relayout("stripe(a, c, chunk=4K)"))
        await world.copying()
        world.store.writes = 0
        world.store.crash_at, world.store.crash_after = write, after
        asked = asyncio.create_task(first.executor.cancel(record.id))
        crashed = await first.crashed_or_over()
        answered = asked.done()
        asked.cancel()
        await first.stop()
        world.store.revive()
        world.sps.hold_copies = False
        second = await world.controller()
        ended = await second.ended(record)
        # Who was answered may rely on it; killed before, the wish may be lost with the answer.
        unknown = write == 1 and not after
        assert not (unknown and answered)
        assert ended.state == ("done" if unknown else "cancelled")
        volume = await second.volume()
        assert unknown or (volume.root, volume.t1s) == (before.root, before.t1s)
        settled(world, volume)
        await second.stop()
        if not crashed:
            return
