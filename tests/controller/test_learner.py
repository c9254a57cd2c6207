"""What an owner has made of a volume while the controller was away, taken into the store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.controller.world import Controller, World
from vswitchd.controller.live import Live
from vswitchd.model.objects import SpId, Volume, project
from vswitchd.model.view import Complaint, Ejection, View
from vswitchd.restructure.alone import left_behind
from vswitchd.restructure.away import lost
from vswitchd.restructure.requests import AddLeg, Grow

A, B, C = SpId("a"), SpId("b"), SpId("c")


def alone(volume: Volume) -> Ejection:
    peers = {sp: f"{sp}:9460" for sp in (A, B, C)}
    gone = next(sp for sp in (A, B, C) if sp != volume.owner)
    found = left_behind(project(volume, volume.owner, peers), volume.epoch, {gone}, ())
    assert found is not None
    return found


class Told:
    """A controller with a volume of three legs, to which SPs say what they have recorded."""

    def __init__(self, world: World, controller: Controller, volume: Volume) -> None:
        self.world, self.controller, self.volume = world, controller, volume
        self.right = controller.collector.collect
        self.records: dict[SpId, Ejection] = {}
        controller.collector.collect = self.collect  # type: ignore[method-assign]

    async def collect(self, volume: object = None) -> dict[SpId, View]:
        views = await self.right(volume)  # type: ignore[arg-type]
        return {
            sp: replace(view, ejections=(self.records[sp],)) if sp in self.records else view
            for sp, view in views.items()
        }

    def record(self, ejection: Ejection, *at: SpId) -> None:
        """Recorded there, and the T1 objects that stay fenced, as an owner goes about it."""
        for sp in at:
            self.records[sp] = ejection
            said = Complaint(ejections={ejection.t2.volume: ejection.t2.epoch})
            self.controller.registry.complaints[sp] = said


@pytest.fixture
async def told() -> Told:
    world = World()
    controller = Controller(world)
    await controller.start()
    await controller.ended(await controller.create(layout="mirror(a/a0, b/b0, c)", serving=(A, B)))
    return Told(world, controller, await controller.volume())


async def test_it_is_learnt_once_and_kept_in_the_history(told: Told) -> None:
    learner, volume = told.controller.learner, told.volume
    assert not learner.is_news(volume)
    found = alone(volume)
    told.record(found, volume.owner)
    assert learner.is_news(volume) and await learner.learn(volume)
    now = await told.controller.volume()
    assert (now.version, now.epoch) == (found.t2.version, found.t2.epoch)
    assert len(lost(now.root)) == 1 and not learner.is_news(now)
    row = (await told.world.store.history(volume.id))[-1]
    assert row.who == volume.owner and "while the controller was away" in row.why
    assert not await learner.learn(now)


async def test_what_does_not_follow_is_not_learnt(told: Told) -> None:
    learner, volume = told.controller.learner, told.volume
    found = alone(volume)
    told.record(replace(found, since=volume.epoch + 2), volume.owner)
    assert not await learner.learn(volume)
    assert await told.controller.volume() == volume
    assert "not_learnt" in told.controller.events


async def test_an_operation_that_was_planned_before_is_undone(told: Told) -> None:
    controller, world, volume = told.controller, told.world, told.volume
    world.sps.hold_copies = True
    record = await controller.change(AddLeg("", A), kind="mirror_add")
    live = controller.executor.live[record.id]
    while await controller.volume() == volume:
        await world.clock.sleep(0.1)
    between = await controller.volume()
    found = alone(between)
    told.record(found, between.owner)
    assert await controller.learner.learn(between)
    assert live.overtaken
    world.sps.hold_copies = False
    ended = await controller.ended(record)
    assert (ended.state, ended.error_code) == ("failed", "VS3086")
    now = await controller.volume()
    assert {t1.id for t1 in now.t1s} == {t1.id for t1 in volume.t1s}
    assert lost(now.root) == lost(found.t2.root), "what was left behind is away in the old tree too"
    assert now.epoch > found.t2.epoch and now.epoch % 2 == 0
    assert world.sps.cluster.sps[A].active[volume.id].epoch == now.epoch


async def test_nothing_is_overtaken_by_what_it_knows(told: Told) -> None:
    controller, volume = told.controller, told.volume
    record = await controller.change(Grow(volume.size * 2), kind="grow")
    assert (await controller.ended(record)).state == "done"
    assert not await controller.learner.learn(await controller.volume())


async def test_what_is_learnt_while_an_operation_is_turned_back_counts(told: Told) -> None:
    controller, world, volume = told.controller, told.world, told.volume
    world.sps.hold_copies = True
    record = await controller.change(AddLeg("", A), kind="mirror_add")
    while await controller.volume() == volume:
        await world.clock.sleep(0.1)
    between = await controller.volume()
    found = alone(between)
    told.record(found, between.owner)
    right, learnt = controller.executor._stored, []

    async def stored(live: Live) -> Volume | None:
        before = await right(live)
        if not learnt:
            # After the plan that turns it back was made, before it is in the journal.
            learnt.append(await controller.learner.learn(between))
        return before

    controller.executor._stored = stored  # type: ignore[method-assign]
    await controller.executor.cancel(record.id)
    world.sps.hold_copies = False
    ended = await controller.ended(record)
    assert learnt == [True] and ended.state == "cancelled"
    now = await controller.volume()
    assert lost(now.root) == lost(found.t2.root) and now.epoch > found.t2.epoch
