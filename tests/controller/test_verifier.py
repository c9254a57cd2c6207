"""Comparisons by schedule: which volume, when, and what becomes of those that can't be compared."""

from __future__ import annotations

from tests.controller.world import B, Controller, World
from vswitchd.controller.verifier import LATER, WHO, Verifier
from vswitchd.restructure.requests import Eject

WEEK = 604800.0


async def scheduled(layout: str) -> tuple[World, Controller, Verifier]:
    world = World()
    await world.with_volume(layout)
    controller = await world.controller()
    log = controller.service._log
    return world, controller, Verifier(controller.service, world.clock, log, WEEK, 5 << 20)


def passes(world: World, controller: Controller, seconds: float) -> None:
    """So much time, at the end of which all SPs have been heard."""
    world.clock.now += seconds
    controller.hear()


async def compared(controller: Controller) -> list[str]:
    """Who asked for each comparison, all of them ended."""
    for live in list(controller.executor.live.values()):
        await controller.ended(live.record)
    found = [one for one in await controller.service.store.operations() if one.kind == "verify"]
    assert all(one.ended is not None for one in found)
    return [one.requested_by for one in found]


async def test_each_is_compared_once_in_that_time() -> None:
    world, controller, verifier = await scheduled("mirror(a, b)")
    await verifier.look()
    (live,) = controller.executor.live.values()
    assert (live.record.rate, live.record.adaptive, live.record.priority) == (5 << 20, True, 0)
    assert await compared(controller) == [WHO]
    await verifier.look()
    passes(world, controller, WEEK / 2)
    await verifier.look()
    assert await compared(controller) == [WHO]
    passes(world, controller, WEEK / 2 + 1)
    await verifier.look()
    assert await compared(controller) == [WHO] * 2


async def test_what_has_no_two_legs_in_sync_is_left_for_later() -> None:
    world, controller, verifier = await scheduled("mirror(a, b)")
    await controller.ended(await controller.change(Eject((B,))))
    await verifier.look()
    assert await compared(controller) == []
    assert verifier._tries
    passes(world, controller, LATER + 1)
    await verifier.look()
    assert await compared(controller) == []
