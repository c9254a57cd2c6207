"""An owner alone, and the votes that it asks for: the VSM over its real state directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.processor.conftest import CLUSTER, MIB, SP, VOLUME, Life, caller, mirror, t1
from vswitchd.errors import Kind, VsError
from vswitchd.model.access import OPEN
from vswitchd.model.objects import T2, LegState, SpId, T1Id
from vswitchd.model.view import Ejection
from vswitchd.obs import log
from vswitchd.processor.lone import Lone
from vswitchd.restructure.alone import left_behind
from vswitchd.restructure.away import lost

B, C = SpId("sp-b"), SpId("sp-c")
IN_SYNC = LegState.IN_SYNC
GONE = VsError("VS5001", Kind.UNREACHABLE, "SP can't be reached")


def tree(owner: SpId = SP) -> T2:
    """Three legs, one at each SP, at version and epoch 4."""
    homes = {T1Id("t-0"): SP, T1Id("t-1"): B, T1Id("t-2"): C}
    root = mirror(IN_SYNC, IN_SYNC, IN_SYNC)
    return T2(VOLUME, "db", 4 * MIB, 4, 4, SP, owner, root, homes, {B: "b:1", C: "c:1"})


def ejection(of: T2 | None = None, gone: SpId = C) -> Ejection:
    found = left_behind(of or tree(), 4, {gone}, ())
    assert found is not None
    return found


async def served(life: Life, t2: T2 | None = None) -> None:
    await life.vsm.put_t1(caller(), t1("t-0"), 4)
    await life.push(t2 or tree())
    life.state.set_managers({SP: "a:0", B: "b:0", C: "c:0"})


class Others:
    """`ports.Neighbours` that note what they are asked; those in `down` do not answer."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, SpId]] = []
        self.down: set[SpId] = set()
        self.refuses: dict[str, VsError] = {}

    def _call(self, what: str, sp: SpId) -> None:
        self.calls.append((what, sp))
        if sp in self.down:
            raise GONE
        if what in self.refuses:
            raise self.refuses[what]

    async def ask(self, sp: SpId, address: str, ejection: Ejection) -> None:
        self._call("ask", sp)

    async def fence(self, sp: SpId, address: str, ejection: Ejection) -> None:
        self._call("fence", sp)

    async def record(self, sp: SpId, address: str, ejection: Ejection) -> None:
        self._call("record", sp)

    async def follow(self, sp: SpId, address: str, ejection: Ejection) -> None:
        self._call("follow", sp)


class Owner:
    """A `Lone` whose controller has been silent for as long as it is told."""

    def __init__(self, life: Life) -> None:
        self.others = Others()
        self.silent = 10.0
        self.lone = Lone(
            life.state,
            life.vsm._engine,
            life.vsm.voter,
            self.others,
            lambda: self.silent,
            3.0,
            log.set_up("error"),
        )


async def refused(code: str, work: object) -> None:
    with pytest.raises(VsError) as error:
        await work  # type: ignore[misc]
    assert error.value.code == code


async def test_an_owner_leaves_a_leg_behind_in_order(life: Life) -> None:
    await served(life)
    owner = Owner(life)
    life.engine.failing = {"t-2"}
    owner.others.down = {C}
    await owner.lone.look()
    assert owner.others.calls == [
        ("ask", B),
        ("fence", B),
        ("record", B),
        ("follow", B),
        ("follow", C),
    ]
    now = life.state.committed[VOLUME]
    assert (now.version, now.epoch) == (5, 5) and lost(now.root) == {"t-2"}
    assert life.state.ejections[VOLUME].t2 == now and not life.state.proposals
    # Whoever did not hear it is told again, the others are not.
    owner.others.calls.clear()
    owner.others.down.clear()
    life.engine.failing.clear()
    await owner.lone.look()
    await owner.lone.look()
    assert owner.others.calls == [("follow", C)]
    complaint = await life.vsm.trouble()
    assert complaint.ejections == {VOLUME: 5}
    assert (await life.vsm.view()).ejections == (life.state.ejections[VOLUME],)


async def test_it_does_nothing_while_the_controller_is_there_or_all_is_well(life: Life) -> None:
    await served(life)
    owner = Owner(life)
    await owner.lone.look()
    life.engine.failing = {"t-2"}
    owner.silent = 2.0
    await owner.lone.look()
    assert not owner.others.calls and life.state.committed[VOLUME].epoch == 4


async def test_one_of_three_is_no_majority(life: Life) -> None:
    await served(life)
    owner = Owner(life)
    life.engine.failing = {"t-2"}
    owner.others.down = {B, C}
    await owner.lone.look()
    assert owner.others.calls == [("ask", B)]
    assert not life.state.proposals and life.state.committed[VOLUME].epoch == 4


@pytest.mark.parametrize("at", ["fence", "record"])
async def test_what_was_begun_is_carried_on_after_a_crash_and_nothing_else(
    life: Life, live: Callable[[], Life], at: str
) -> None:
    await served(life)
    owner = Owner(life)
    life.engine.failing = {"t-2"}
    owner.others.refuses[at] = GONE
    await owner.lone.look()
    begun = life.state.proposals[VOLUME]
    assert life.state.committed[VOLUME].epoch == 4
    life.crash()
    again = live()
    await again.vsm.start()
    # The controller is back, and another leg fails: it is the same all the same.
    owner = Owner(again)
    owner.silent = 0.0
    again.engine.failing = {"t-1"}
    await owner.lone.look()
    assert again.state.committed[VOLUME] == begun.t2
    assert again.state.ejections[VOLUME] == begun and not again.state.proposals


async def test_a_proposal_is_over_when_another_tree_has_come(life: Life) -> None:
    await served(life)
    owner = Owner(life)
    life.engine.failing = {"t-2"}
    owner.others.refuses["fence"] = GONE
    await owner.lone.look()
    assert life.state.proposals
    await life.push(replace(tree(), version=5, epoch=6))
    life.engine.failing.clear()
    await owner.lone.look()
    assert not life.state.proposals and not life.state.ejections


async def test_votes_are_given_from_just_the_owners_epoch(life: Life) -> None:
    await served(life, tree(owner=B))
    mine = replace(ejection(), t2=replace(ejection().t2, owner=B, sp=B))
    voter = life.vsm.voter
    await refused("VS3088", voter.ask(ejection()))  # not the owner
    await voter.ask(mine)
    await refused("VS3088", voter.record(mine))  # not fenced
    await voter.fence(mine)
    await voter.fence(mine)
    await voter.ask(mine)
    await voter.record(mine)
    assert life.state.ejections[VOLUME] == mine
    await voter.follow(mine)
    await voter.follow(mine)
    assert life.state.committed[VOLUME].epoch == 5
    assert life.state.committed[VOLUME].peers == tree().peers


async def test_votes_are_refused_once_somebody_has_fenced_higher(life: Life) -> None:
    await served(life, tree(owner=B))
    mine = replace(ejection(), t2=replace(ejection().t2, owner=B, sp=B))
    await life.vsm.voter.fence(mine)
    await life.vsm.fence_t1(caller(), T1Id("t-0"), 6, 4)
    for work in (life.vsm.voter.ask, life.vsm.voter.fence, life.vsm.voter.record):
        await refused("VS3088", work(mine))
    assert not life.state.ejections


async def test_a_t1_object_in_doubt_has_no_vote(life: Life) -> None:
    await served(life)
    life.engine.doubtful = {"t-0"}
    await refused("VS3088", life.vsm.voter.ask(ejection()))
    await refused("VS3088", life.vsm.voter.fence(ejection()))


async def test_the_controllers_fences_meet_what_it_does_not_know(life: Life) -> None:
    await served(life)
    voter = life.vsm.voter
    await voter.fence(ejection())
    await voter.record(ejection())
    await refused("VS3087", life.vsm.fence_t1(caller(), T1Id("t-0"), 6, 4))
    assert life.engine._here()["t-0"][1] == 5
    await life.vsm.fence_t1(caller(), T1Id("t-0"), 8, 5)
    assert not life.state.ejections, "it knows it now"


async def test_the_later_of_two_trees_of_one_version_counts(life: Life) -> None:
    await served(life)
    await life.vsm.voter.fence(ejection())
    await life.vsm.voter.record(ejection())
    await life.vsm.voter.follow(ejection())
    await refused("VS3024", life.vsm.stage_t2(caller(), replace(tree(), version=5, epoch=4), OPEN))
    await life.push(replace(ejection().t2))
    assert not life.state.ejections, "the controller has pushed it itself"


async def test_what_is_recorded_outlives_the_process(life: Life, live: Callable[[], Life]) -> None:
    await served(life)
    await life.vsm.voter.fence(ejection())
    await life.vsm.voter.record(ejection())
    life.state.propose(ejection())
    life.crash()
    again = live()
    assert again.state.ejections == again.state.proposals == {VOLUME: ejection()}
    assert again.state.committed.keys() == {VOLUME}
    assert again.state.managers[B] == "b:0" and again.state.identity.cluster_id == CLUSTER
    await again.vsm.start()
    await again.vsm.remove_t2(caller(), VOLUME, 4)
    assert again.state.ejections, "a later tree than the one that was removed"
    await again.vsm.delete_t1(caller(), T1Id("t-0"), 5)
    assert not again.state.ejections
