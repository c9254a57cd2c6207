"""The orders of design/coherency.md, step for step; the numbers are claims."""

from __future__ import annotations

import pytest

from tests.unit.world import SHARED, VOLUME, World, words
from vswitchd.errors import VsError
from vswitchd.model.layout import print_volume
from vswitchd.model.objects import SpId, T1Id
from vswitchd.restructure import vcm
from vswitchd.restructure.requests import (
    AddLeg,
    Delete,
    Grow,
    Move,
    Relayout,
    RemoveLeg,
    Serve,
    Unserve,
)
from vswitchd.restructure.steps import Commit, Copy, PutT1

A, B, C = SpId("a"), SpId("b"), SpId("c")
K = 4096


def test_claims_14_to_18_move_over_a_shared_device() -> None:
    world = World(SHARED, "a/s", serving=("a", "b", "c"))
    plan = world.do(Move(A, B))
    assert words(plan) == [
        # 14: trees without the reference, to the old home, the new one and the third.
        "stage_t2@a",
        "stage_t2@b",
        "stage_t2@c",
        "fence_t1@a",
        "commit@",
        "activate_t2@a",
        "activate_t2@b",
        "activate_t2@c",
        # 15, 16: the remote references go, the new home's first; then the object moves.
        "drop_reference@b",
        "drop_reference@c",
        "fence_t1@a",
        "adopt_t1@b",
        # 17, 18: a local reference at the new home first, then remote ones.
        "stage_t2@b",
        "stage_t2@a",
        "stage_t2@c",
        "commit@",
        "activate_t2@b",
        "activate_t2@a",
        "activate_t2@c",
        "delete_t1@a",
    ]
    assert plan.no_return == words(plan).index("adopt_t1@b")
    (t1,) = world.volume.t1s
    assert t1.home == B
    assert world.cluster.sps[B].active[VOLUME].homes == {t1.id: B}


def test_claim_3_move_by_a_twin() -> None:
    world = World(layout="a", serving=("b",))
    (old,) = world.volume.t1s
    plan = world.do(Move(A, C))
    assert words(plan) == [
        "put_t1@c",
        "stage_t2@b",
        "fence_t1@a",
        "commit@",
        "activate_t2@b",
        "copy@b",
        "stage_t2@b",
        "fence_t1@a",
        "fence_t1@c",
        "commit@",
        "activate_t2@b",
        "await_sync@b",
        "stage_t2@b",
        "fence_t1@a",
        "fence_t1@c",
        "commit@",
        "activate_t2@b",
        "delete_t1@a",
    ]
    assert words(plan)[plan.no_return] == "commit@"
    assert plan.no_return == len(plan.steps) - 3
    (new,) = world.volume.t1s
    assert new.home == C and new.id != old.id


def test_moving_a_leg_joins_its_mirror() -> None:
    world = World(layout="mirror(a, b)", serving=("a",))
    plan = world.do(Move(B, C))
    assert words(plan)[0] == "await_sync@a"
    assert [step.path for step in plan.steps if isinstance(step, Copy)] == [(2,)]
    assert [t1.home for t1 in world.volume.t1s] == ["a", "c"]
    layout = print_volume(world.volume)
    assert layout.startswith("mirror(a/") and "c/" in layout


def test_moving_one_of_two() -> None:
    world = World(layout="stripe(a, a, chunk=4K)", serving=("b",))
    first = world.volume.t1s[0].id
    world.do(Move(A, C, first))
    assert sorted(t1.home for t1 in world.volume.t1s) == ["a", "c"]
    with pytest.raises(VsError, match="VS2016"):
        world.plan(Move(A, B, T1Id("t-none")))


def test_claims_9_and_10_t1_first() -> None:
    world = World(layout="a", serving=("a",))
    steps = words(world.do(AddLeg(sp=B)))
    assert steps.index("put_t1@b") < steps.index("stage_t2@a") < steps.index("activate_t2@a")
    assert steps[-1] == "activate_t2@a" and steps.count("copy@a") == 1


def test_claims_11_to_13_removal() -> None:
    world = World(layout="mirror(a, b)", serving=("a", "b"))
    steps = words(world.do(RemoveLeg("b")))
    assert steps == [
        "await_sync@a",
        "stage_t2@a",
        "stage_t2@b",
        "fence_t1@a",
        "fence_t1@b",
        "commit@",
        "activate_t2@a",
        "activate_t2@b",
        "delete_t1@b",
    ]
    # 12: unserving A leaves its T1 object, that B's tree refers to.
    assert words(world.do(Unserve(A)))[-1] == "remove_t2@a"
    assert [t1.home for t1 in world.volume.t1s] == ["a"]
    plan = world.do(Delete())
    assert words(plan) == ["remove_t2@b", "delete_t1@a", "forget@"]
    assert plan.no_return == 0
    assert VOLUME not in world.cluster.store


def test_the_owner_hands_over_before_it_leaves() -> None:
    world = World(layout="mirror(a, b)", serving=("a", "b"))
    assert world.volume.owner == A
    plan = world.do(Unserve(A))
    commits = [step.volume for step in plan.steps if isinstance(step, Commit)]
    assert [(v.owner, v.serving) for v in commits] == [(B, (A, B)), (B, (B,))]
    assert words(plan)[0] == "await_sync@a"


def test_grow_extends_before_it_fences_and_cannot_be_taken_back_once_seen() -> None:
    world = World(layout="a")
    before = world.volume
    plan = world.do(Grow(20 * K))
    put = plan.steps[0]
    assert isinstance(put, PutT1) and put.epoch == before.epoch
    assert words(plan)[plan.no_return] == "commit@"
    assert world.volume.t1s[0].extents[: len(before.t1s[0].extents)] == before.t1s[0].extents


def test_grow_goes_elsewhere_when_home_is_full() -> None:
    world = World({"a": {"a0": 10}, "b": {"b0": 40}}, "a")
    world.do(Grow(16 * K))
    assert print_volume(world.volume) == "concat(a/a0:32K, b/b0:32K)"
    world.do(Grow(20 * K))
    assert print_volume(world.volume) == "concat(a/a0:32K, b/b0:48K)"


def test_grow_uses_what_an_undone_one_left() -> None:
    world = World(layout="a")
    plan = world.plan(Grow(20 * K))
    for step in plan.steps[: plan.no_return]:
        world.cluster.apply(step)
    for step in vcm.undo(plan, world.volume, world.cluster.peers).steps:
        world.cluster.apply(step)
    assert world.volume.size == 8 * K
    world.do(Grow(12 * K))
    assert (world.volume.size, world.volume.t1s[0].size) == (12 * K, 20 * K)
    world.do(Grow(24 * K))
    assert world.volume.t1s[0].size == 24 * K


def test_relayout_to_anything_and_back() -> None:
    world = World(layout="a", blocks=12, serving=("a", "b"))
    texts = ["mirror(stripe(a, a, chunk=8K), b)", "concat(b:16K, c)", "stripe(3, chunk=4K)"]
    for text in texts:
        world.do(Relayout(text))
    printed = print_volume(world.volume)
    assert printed.startswith("stripe(") and printed.endswith("chunk=4K)")
    assert world.plan(Relayout(printed)).steps == ()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (Serve(A), "VS2014"),
        (Serve(SpId("z")), "VS3010"),
        (Unserve(C), "VS2015"),
        (Grow(8 * K), "VS1015"),
        (Grow(8 * K + 1), "VS1011"),
        (RemoveLeg("5"), "VS2012"),
        (RemoveLeg("c"), "VS2012"),
        (Move(A, A), "VS1016"),
        (Move(C, A), "VS2016"),
        (Grow(900 * K), "VS4010"),
        (Relayout("mirror(a,"), "VS1013"),
        (Relayout("mirror(a:4K, b)"), "VS1014"),
        (AddLeg("a/nope"), "VS2011"),
    ],
)
def test_bad_requests(request_: object, code: str) -> None:
    world = World(layout="mirror(a, b)", serving=("a", "b"))
    with pytest.raises(VsError) as caught:
        world.plan(request_)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_nothing_is_planned_on_the_stores_word_alone() -> None:
    world = World(layout="mirror(a, b)", serving=("a", "b"))
    good = dict(world.cluster.sps)
    del world.cluster.sps[B]
    with pytest.raises(VsError, match=r"VS3010.*SP b"):
        world.plan(Grow(16 * K))
    with pytest.raises(VsError, match=r"VS3010.*SP b"):
        world.plan(Delete())
    world.cluster.sps = good
    held = world.cluster.sps[A].active.pop(VOLUME)
    with pytest.raises(VsError, match=r"VS3011.*SP a"):
        world.plan(Grow(16 * K))
    world.cluster.sps[A].active[VOLUME] = held
    (t1,) = list(world.cluster.sps[A].t1s.values())
    world.cluster.sps[A].t1s.clear()
    with pytest.raises(VsError, match=f"VS3015.*{t1[0].id}"):
        world.plan(Grow(16 * K))


def test_the_last_legs_stay() -> None:
    world = World(layout="mirror(a/a0, a/a1)")
    with pytest.raises(VsError, match="VS6010"):
        world.plan(RemoveLeg("a"))
    with pytest.raises(VsError, match="VS6011"):
        world.plan(Unserve(A))


def test_a_leg_that_would_shift_what_follows_stays() -> None:
    world = World(layout="concat(mirror(a:8K, b:12K), c)")
    with pytest.raises(VsError, match=r"VS3017"):
        world.plan(RemoveLeg("a"))
    world.do(RemoveLeg("b"))


def test_an_sp_that_homes_legs_of_several_mirrors_leaves_all() -> None:
    world = World(layout="stripe(mirror(a, b), mirror(a, b), chunk=4K)")
    world.do(RemoveLeg("a"))
    assert {t1.home for t1 in world.volume.t1s} == {"b"}


def test_the_last_leg_in_sync_stays() -> None:
    """While the other leg is still being copied to, the one that has the data can't go."""
    world = World(layout="a", serving=("a",))
    plan = world.plan(AddLeg(sp=B))
    for step in plan.steps:
        if isinstance(step, Copy):
            break
        world.cluster.apply(step)
    for leg in ("a", "0"):
        with pytest.raises(VsError) as refused:
            world.plan(RemoveLeg(leg))
        assert refused.value.code == "VS6010"
    assert world.plan(RemoveLeg("b")).steps
