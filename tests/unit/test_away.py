"""Who may go on without whom: votes, legs that are away, and their way back."""

from __future__ import annotations

import pytest

from vswitchd.errors import VsError
from vswitchd.model.objects import (
    T1,
    Concat,
    DeviceId,
    Extent,
    Leaf,
    Leg,
    LegState,
    Mirror,
    Node,
    SpId,
    Stripe,
    T1Id,
    Volume,
    VolumeId,
    at,
    next_epoch,
)
from vswitchd.model.view import CopyMode, Trouble
from vswitchd.restructure import mvsm, vcm
from vswitchd.restructure.away import absent, away, ejected, lost, majority, rejoined
from vswitchd.restructure.requests import Become, CopyOnto
from vswitchd.restructure.steps import AwaitLease, Commit, FenceT1, place

SIZE = 64 << 20
A, B, C = SpId("a"), SpId("b"), SpId("c")


def leaf(sp: str, number: int = 0) -> Leaf:
    return Leaf(T1Id(f"{sp}{number}"), SIZE)


def mirror(*nodes: Node) -> Mirror:
    return Mirror(tuple(Leg(node) for node in nodes))


def volume(root: Node, serving: str = "abc", owner: str = "a") -> Volume:
    ids = sorted({node.t1 for node in _leaves(root)})
    t1s = tuple(
        T1(t1, VolumeId("v"), SIZE, (Extent(DeviceId(f"d-{t1}"), 0, SIZE),), SpId(t1[0]))
        for t1 in ids
    )
    sps = tuple(SpId(sp) for sp in serving)
    return Volume(VolumeId("v"), "v", SIZE, 4, 4, root, t1s, sps, SpId(owner))


def fails(*t1s: str) -> Trouble:
    return Trouble(failing=frozenset(map(T1Id, t1s)))


def _leaves(node: Node) -> list[Leaf]:
    match node:
        case Leaf():
            return [node]
        case Mirror(legs):
            return [found for leg in legs for found in _leaves(leg.node)]
        case Stripe(_, nodes) | Concat(nodes):
            return [found for below in nodes for found in _leaves(below)]
    return []


def states(root: Node) -> list[LegState]:
    assert isinstance(root, Mirror)
    return [leg.state for leg in root.legs]


@pytest.mark.parametrize(
    ("in_sync", "enough"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4)]
)
def test_a_majority_of_legs_and_of_the_store_where_they_are_even(in_sync: int, enough: int) -> None:
    assert [majority(in_sync, reached) for reached in range(in_sync + 1)] == [
        reached >= enough for reached in range(in_sync + 1)
    ]
    # Two sides of a partition, one of them with the store, never both have one.
    store = 1 - in_sync % 2
    for mine in range(in_sync + 1):
        theirs = in_sync - mine
        assert not (majority(in_sync, mine) and 2 * theirs > in_sync + store)


def test_of_two_legs_one_goes_on() -> None:
    base = volume(mirror(leaf("a"), leaf("b")))
    after = ejected(base, [B])
    assert states(after.root) == [LegState.IN_SYNC, LegState.AWAY]
    assert (after.version, after.epoch, after.owner, after.t1s) == (5, 6, A, base.t1s)
    # Once more changes nothing, and the last one stays.
    assert ejected(after, [B]) is after
    with pytest.raises(VsError, match="VS6012"):
        ejected(after, [A])


def test_of_three_legs_two_go_on_and_one_does_not() -> None:
    base = volume(mirror(leaf("a"), leaf("b"), leaf("c")))
    assert states(ejected(base, [C]).root) == [LegState.IN_SYNC] * 2 + [LegState.AWAY]
    with pytest.raises(VsError, match="VS6012"):
        ejected(base, [B, C])


def test_another_is_owner_who_homes_a_leg() -> None:
    base = volume(mirror(leaf("a"), leaf("c")))
    after = ejected(base, [A])
    assert (after.owner, states(after.root)) == (C, [LegState.AWAY, LegState.IN_SYNC])
    with pytest.raises(VsError, match="no other SP serves it"):
        ejected(volume(mirror(leaf("a"), leaf("b")), serving="a"), [A])
    # An owner that homes nothing can be left behind too.
    assert ejected(volume(mirror(leaf("b"), leaf("c"))), [A]).owner == B


def test_what_is_nowhere_else_is_waited_for() -> None:
    part = Concat((mirror(leaf("a"), leaf("b")), leaf("c")))
    with pytest.raises(VsError, match="VS6012"):
        ejected(volume(part), [C])
    # The mirror beside it goes on all the same.
    after = ejected(volume(part), [B, C])
    assert states(at(after.root, (0,))) == [LegState.IN_SYNC, LegState.AWAY]
    # But not with another owner, who could not know what is there.
    with pytest.raises(VsError, match="no majority"):
        ejected(volume(part, owner="c"), [B, C])


def test_a_leg_is_away_as_a_whole_unless_it_is_mirrored_within() -> None:
    striped = mirror(Stripe(65536, (leaf("a"), leaf("b"))), leaf("c"))
    assert states(ejected(volume(striped), [B]).root) == [LegState.AWAY, LegState.IN_SYNC]
    within = mirror(mirror(leaf("a"), leaf("b")), leaf("c"))
    after = ejected(volume(within), [B])
    assert states(after.root) == [LegState.IN_SYNC, LegState.IN_SYNC]
    assert states(at(after.root, (0,))) == [LegState.IN_SYNC, LegState.AWAY]


def test_a_leg_that_was_never_in_sync_is_not_left_behind() -> None:
    new = Mirror((Leg(leaf("a")), Leg(leaf("b"), LegState.WRITE_ONLY)))
    with pytest.raises(VsError, match="VS6012"):
        ejected(volume(new), [B])


def test_legs_come_back_by_what_they_have_missed() -> None:
    after = ejected(volume(mirror(leaf("a"), leaf("b"))), [B])
    assert rejoined(after, [C]) == []
    first, copy, last = rejoined(after, [B, C])
    assert isinstance(first, Become) and isinstance(last, Become)
    assert first.volume is not None and last.volume is not None
    assert states(first.volume.root) == [LegState.IN_SYNC, LegState.WRITE_ONLY]
    assert copy == CopyOnto((1,), CopyMode.DELTA)
    assert states(last.volume.root) == [LegState.IN_SYNC] * 2
    assert not list(away(last.volume.root))


def test_who_homes_nothing_but_what_is_away_need_not_be_asked() -> None:
    after = ejected(volume(mirror(leaf("a"), leaf("b"))), [B])
    assert absent(after, [A, C]) == {B}
    assert absent(after, [A, B, C]) == frozenset()
    assert absent(volume(mirror(leaf("a"), leaf("b"))), [A]) == frozenset()


def test_an_owner_is_never_left_out() -> None:
    """Copies are its work: a leg would be called in sync that nobody has copied to."""
    base = volume(
        mirror(Concat((leaf("a"), leaf("b"))), mirror(leaf("a", 1), leaf("c"))), "ab", "b"
    )
    lonely = ejected(ejected(base, [A]), [])
    assert lonely.owner == B and absent(lonely, [A, C]) == frozenset()
    stages = rejoined(lonely, [A])
    assert [type(stage) for stage in stages] == [Become, CopyOnto, Become]
    answers = [mvsm.determine(*asked) if asked else () for asked in vcm.transitions(lonely, stages)]
    peers = {A: "a:1", B: "b:1", C: "c:1"}
    with pytest.raises(VsError, match=r"VS3010.*SP b is needed"):
        vcm.plan(lonely, stages, answers, peers, [B])


def test_an_object_whose_device_fails_takes_its_leg_along() -> None:
    base = volume(
        mirror(Stripe(65536, (leaf("a"), leaf("b"))), Stripe(65536, (leaf("a", 1), leaf("c"))))
    )
    after = ejected(base, [], fails("a1"))
    assert states(after.root) == [LegState.IN_SYNC, LegState.AWAY]
    assert lost(after.root) == {"a1", "c0"} and after.owner == A
    with pytest.raises(VsError, match="can't go on without b0"):
        ejected(after, [], fails("b0"))


def test_what_is_away_is_not_fenced_and_the_lost_are_asked_for_nothing() -> None:
    base = volume(mirror(leaf("a"), leaf("b")))
    peers = {A: "a:1", B: "b:1", C: "c:1"}
    failing = ejected(base, [], fails("b0"))
    answer = mvsm.determine(base, failing)
    plan = vcm.plan(base, [Become(failing)], [answer], peers)
    assert [step.t1 for step in plan.steps if isinstance(step, FenceT1)] == ["a0"]
    assert not any(isinstance(step, AwaitLease) for step in plan.steps)
    gone = ejected(base, [A])
    plan = vcm.plan(base, [Become(gone)], [mvsm.determine(base, gone)], peers, [A])
    assert {place(step) for step in plan.steps} == {None, B, C}
    # There is no way back to legs that have missed what was acknowledged since.
    assert isinstance(plan.steps[plan.no_return], Commit)
    kinds = [type(step).__name__ for step in plan.steps]
    assert kinds.index("FenceT1") < kinds.index("AwaitLease") < kinds.index("Commit")


def test_what_comes_back_is_fenced_before_hosts_wait_for_anything() -> None:
    after = ejected(volume(mirror(leaf("a"), leaf("b"))), [], fails("b0"))
    first = rejoined(after, [B])[0]
    assert isinstance(first, Become) and first.volume is not None
    answer = mvsm.determine(after, first.volume)
    plan = vcm.plan(after, [first], [answer], {A: "a:1", B: "b:1", C: "c:1"})
    fences = [n for n, step in enumerate(plan.steps) if isinstance(step, FenceT1)]
    assert [plan.steps[n].t1 for n in fences] == ["b0", "a0"]  # type: ignore[union-attr]
    # Not at once: a device that does not answer is no reason to hold hosts.
    assert [group for group in plan.groups if group[0] in fences] == [(n, n + 1) for n in fences]


def doubt(*t1s: str) -> Trouble:
    return Trouble(doubtful=frozenset(map(T1Id, t1s)))


IN, OUT = LegState.IN_SYNC, LegState.AWAY


@pytest.mark.parametrize(
    ("legs", "gone", "doubtful", "kept"),
    [
        ("ab", "", "b0", [IN, OUT]),
        ("ab", "", "a0", [OUT, IN]),
        # Power was lost under all: one of them, for two may lack different writes.
        ("ab", "", "a0 b0", [IN, OUT]),
        ("abc", "", "a0 c0", [OUT, IN, OUT]),
        ("abc", "", "a0 b0 c0", [IN, OUT, OUT]),
        ("abc", "c", "a0", [OUT, IN, OUT]),
        # One that is gone may have what these lack.
        ("ab", "b", "a0", None),
        ("abc", "c", "a0 b0", None),
    ],
)
def test_after_a_loss_of_power_a_leg_that_had_none_goes_on(
    legs: str, gone: str, doubtful: str, kept: list[LegState] | None
) -> None:
    base = volume(mirror(*map(leaf, legs)))
    trouble = doubt(*doubtful.split())
    if kept is None:
        with pytest.raises(VsError, match="VS6012"):
            ejected(base, [SpId(sp) for sp in gone], trouble)
    else:
        assert states(ejected(base, [SpId(sp) for sp in gone], trouble).root) == kept
        return
    forced = ejected(base, [SpId(sp) for sp in gone], trouble, forced=True)
    assert states(forced.root) == [IN] + [OUT] * (len(legs) - 1)


def test_the_only_leg_goes_on_under_a_new_epoch_though_it_is_in_doubt() -> None:
    alone = ejected(volume(mirror(leaf("a"), leaf("b"))), [B])
    after = ejected(alone, [], doubt("a0"))
    assert (after.root, after.epoch) == (alone.root, next_epoch(alone.epoch))


def test_forced_one_of_three_goes_on_and_nothing_goes_on_without_its_data() -> None:
    base = volume(mirror(leaf("a"), leaf("b"), leaf("c")))
    assert states(ejected(base, [B, C], forced=True).root) == [IN, OUT, OUT]
    with pytest.raises(VsError, match="VS6012"):
        ejected(base, [A, B, C], forced=True)
