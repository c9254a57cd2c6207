"""Who is taken for lost, and what becomes of volumes then: over fake SPs and a fake clock."""

from __future__ import annotations

from tests.controller.world import A, B, C, Controller, World, settled
from vswitchd.controller.guardian import FIRST_PATIENCE, GRACE, INTERVAL, SUSPECT, Guardian
from vswitchd.errors import VsError
from vswitchd.model.objects import LegState, Mirror, SpId, T1Id
from vswitchd.model.view import Complaint
from vswitchd.ports import ProcessorRecord
from vswitchd.restructure.requests import AddLeg, RemoveLeg

LOST_AFTER = 5.0
REPLACE_AFTER = 300.0


def fails(t1: T1Id) -> Complaint:
    return Complaint(frozenset({t1}))


class Guarded:
    """A controller with its guardian; time passes only by `look`."""

    def __init__(self, world: World, controller: Controller) -> None:
        self.world = world
        self.controller = controller
        #: SPs whose process has ended: nobody listens.
        self.ended: set[SpId] = set()
        self.guardian = Guardian(
            controller.service,
            controller.learner,
            self,
            world.clock,
            controller.service._log,
            LOST_AFTER,
            REPLACE_AFTER,
        )

    async def listens(self, record: ProcessorRecord) -> bool:
        return record.sp not in self.ended

    def connect(self, record: ProcessorRecord, cluster: str, term: int) -> object:
        raise AssertionError("the guardian asks no SP for anything")

    async def look(self, seconds: float = INTERVAL) -> None:
        """Looks every interval for so long, and lets operations end."""
        for _ in range(max(1, round(seconds / INTERVAL))):
            await self.world.clock.sleep(INTERVAL)
            await self.guardian.look()
            for live in list(self.controller.executor.live.values()):
                if not self.world.sps.hold_copies:
                    await self.controller.ended(live.record)

    async def lose(self, sp: SpId) -> None:
        """Its process ends, and that is noticed."""
        self.ended.add(sp)
        self.world.sps.down.add(sp)
        await self.look(SUSPECT + 2 * INTERVAL)

    async def back(self, sp: SpId) -> None:
        self.ended.discard(sp)
        self.world.sps.down.discard(sp)
        self.world.sps.restart(sp)
        await self.controller.join(sp)
        await self.controller.reconciler.reconcile()

    async def states(self) -> list[LegState]:
        root = (await self.controller.volume()).root
        assert isinstance(root, Mirror)
        return [leg.state for leg in root.legs]


async def guarded(layout: str = "mirror(a, b)") -> Guarded:
    world = World()
    await world.with_volume(layout)
    return Guarded(world, await world.controller())


IN, AWAY = LegState.IN_SYNC, LegState.AWAY


async def test_a_leg_whose_process_has_ended_is_left_behind_and_catches_up() -> None:
    it = await guarded()
    await it.look(3.0)
    assert await it.states() == [IN, IN], "nobody is lost"
    await it.lose(B)
    assert await it.states() == [IN, AWAY]
    assert it.world.sps.cluster.host_io((await it.controller.volume()).id)
    await it.look(3.0)
    assert (await it.controller.volume()).version == 2, "once is enough"
    await it.back(B)
    await it.look(FIRST_PATIENCE + INTERVAL)
    assert await it.states() == [IN, IN]
    it.world.sps.cluster.host_io((await it.controller.volume()).id)
    settled(it.world, await it.controller.volume())


async def test_one_that_is_silent_but_there_has_longer() -> None:
    it = await guarded()
    it.world.sps.down.add(B)
    await it.look(LOST_AFTER - 2 * INTERVAL)
    assert await it.states() == [IN, IN]
    await it.look(4 * INTERVAL)
    assert await it.states() == [IN, AWAY]


async def test_a_leg_whose_device_fails_is_left_behind_and_tried_again_ever_less_often() -> None:
    it = await guarded()
    (bad,) = [t1.id for t1 in (await it.controller.volume()).t1s if t1.home == B]
    life = it.world.sps.lives[A].incarnation
    for _ in range(3):
        it.world.clock.passed = lambda: it.controller.registry.heartbeat(A, life, fails(bad))
        for sp in (B, C):
            it.controller.registry.heartbeat(sp, it.world.sps.lives[sp].incarnation)
        await it.guardian.look()
        for live in list(it.controller.executor.live.values()):
            await it.controller.ended(live.record)
        it.controller.registry.heartbeat(A, life, fails(bad))
        await it.guardian.look()
        for live in list(it.controller.executor.live.values()):
            await it.controller.ended(live.record)
        assert await it.states() == [IN, AWAY]
        it.world.clock.passed = it.controller.hear
        it.controller.hear()
        await it.look(8.0)
        assert await it.states() == [IN, IN]
    history = await it.controller.service.history("v1")
    times = [one.at for one in history[1] if one.why.startswith("rejoin")][::2]
    assert len(times) == 3


async def test_another_becomes_owner() -> None:
    it = await guarded()
    assert (await it.controller.volume()).owner == A
    await it.lose(A)
    assert (await it.controller.volume()).owner == B
    assert "await_lease" in it.controller.steps
    await it.back(A)
    await it.look(2.0)
    assert await it.states() == [IN, IN]
    assert (await it.controller.volume()).owner == B


async def test_what_can_not_go_on_waits_and_is_not_planned_for() -> None:
    it = await guarded("b")
    calls = it.world.sps.calls.copy()
    await it.lose(B)
    assert it.controller.events.count("volume_waits") == 1
    assert not [
        key for key in it.world.sps.calls - calls if key[1] not in ("activate_mvsm", "view")
    ]
    assert not it.controller.executor.live


async def test_sps_that_were_never_heard_may_be_starting() -> None:
    it = await guarded()
    await it.controller.stop()
    it.world.sps.down.add(B)
    second = Guarded(it.world, await it.world.controller())
    second.ended.add(B)
    await second.look(GRACE - 2 * INTERVAL)
    assert await second.states() == [IN, IN]
    await second.look(4 * INTERVAL)
    assert await second.states() == [IN, AWAY]


async def test_who_is_lost_again_and_again_has_to_be_back_for_longer() -> None:
    it = await guarded()
    for _ in range(4):
        await it.lose(B)
        assert await it.states() == [IN, AWAY]
        await it.back(B)
        await it.look(FIRST_PATIENCE * 8 + 2 * INTERVAL)
        assert await it.states() == [IN, IN]
    await it.lose(B)
    await it.back(B)
    await it.look(FIRST_PATIENCE * 8)
    assert await it.states() == [IN, AWAY], "the fifth time it is twice as long"


async def test_an_operation_gives_way_and_its_undo_goes_on_without_the_lost_one() -> None:
    it = await guarded()
    it.world.sps.hold_copies = True
    record = await it.controller.change(AddLeg(sp=C))
    await it.world.copying()
    await it.lose(B)
    it.world.sps.hold_copies = False
    ended = await it.controller.ended(record)
    assert ended.state == "cancelled"
    await it.look(1.0)
    assert await it.states() == [IN, AWAY]
    assert it.world.sps.cluster.host_io((await it.controller.volume()).id)


async def test_an_operation_whose_new_leg_fails_gives_way() -> None:
    it = await guarded()
    it.world.sps.hold_copies = True
    record = await it.controller.change(AddLeg(sp=C))
    await it.world.copying()
    (new,) = [t1.id for t1 in (await it.controller.volume()).t1s if t1.home == C]
    life = it.world.sps.lives[A].incarnation
    it.world.clock.passed = lambda: it.controller.registry.heartbeat(A, life, fails(new))
    it.world.clock.passed()
    await it.guardian.look()
    it.world.clock.passed = it.controller.hear
    it.world.sps.hold_copies = False
    assert (await it.controller.ended(record)).state == "cancelled"
    assert await it.states() == [IN, IN]
    assert it.world.sps.cluster.host_io((await it.controller.volume()).id)


async def test_a_lost_leg_can_be_given_up() -> None:
    it = await guarded()
    await it.lose(B)
    try:
        await it.controller.change(AddLeg(sp=C))
    except VsError as error:
        assert error.code == "VS3014"
    ended = await it.controller.ended(await it.controller.change(RemoveLeg("b")))
    assert ended.state == "done", ended
    volume = await it.controller.volume()
    assert not isinstance(volume.root, Mirror)
    assert it.world.sps.cluster.host_io(volume.id)
    # Its object goes when it is back.
    await it.back(B)
    await it.controller.reconciler.reconcile()
    await it.controller.reconciler.reconcile()
    assert not it.world.sps.cluster.sps[B].t1s


async def test_a_leg_that_stays_away_is_replaced() -> None:
    it = await guarded()
    await it.lose(B)
    await it.look(REPLACE_AFTER / 2)
    assert await it.states() == [IN, AWAY]
    await it.look(REPLACE_AFTER / 2 + 2 * INTERVAL)
    assert await it.states() == [IN, IN]
    volume = await it.controller.volume()
    assert {t1.home for t1 in volume.t1s} == {A, C}
    it.world.sps.cluster.host_io(volume.id)
    await it.back(B)
    await it.look(FIRST_PATIENCE + INTERVAL)
    await it.controller.reconciler.reconcile()
    settled(it.world, await it.controller.volume())


async def test_where_there_is_no_room_for_another_it_is_waited_for() -> None:
    it = await guarded("mirror(a, b, c)")
    await it.lose(B)
    await it.look(REPLACE_AFTER + 20.0)
    assert await it.states() == [IN, AWAY, IN]
    await it.back(B)
    await it.look(FIRST_PATIENCE + INTERVAL)
    assert await it.states() == [IN, IN, IN]
