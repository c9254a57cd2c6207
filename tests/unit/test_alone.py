"""What an owner may do alone, and what the controller makes of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vswitchd.errors import VsError
from vswitchd.model.codec import decode_ejection, encode_ejection
from vswitchd.model.objects import (
    BLOCK,
    T1,
    T2,
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
    leaves,
    next_epoch,
    own_epoch,
    project,
)
from vswitchd.model.view import LabelView, T1View, T2View, View
from vswitchd.restructure.alone import (
    applied,
    is_own,
    left_behind,
    may_be_alone,
    stays,
    succeeds,
    without,
)
from vswitchd.restructure.away import lost, majority
from vswitchd.restructure.rebuilt import rebuild

NAMES = tuple(SpId(f"sp-{letter}") for letter in "abcdefg")
PEERS = {sp: f"{sp}:1" for sp in NAMES}


def mirror(*homes: SpId, prefix: str = "t", state: LegState = LegState.IN_SYNC) -> Mirror:
    return Mirror(tuple(Leg(Leaf(T1Id(f"{prefix}@{sp}"), BLOCK), state) for sp in homes))


def volume(root: Node, owner: SpId = NAMES[0], epoch: int = 4) -> Volume:
    found = sorted(leaf.t1 for leaf in leaves(root))
    t1s = tuple(
        T1(
            t1,
            VolumeId("v"),
            BLOCK,
            (Extent(DeviceId(f"d-{n}"), 0, BLOCK),),
            SpId(t1[t1.index("@") + 1 :]),
        )
        for n, t1 in enumerate(found)
    )
    serving = tuple(sorted({owner, NAMES[1]}))
    return Volume(VolumeId("v"), "db", BLOCK, 7, epoch, root, t1s, serving, owner)


def own(of: Volume) -> T2:
    return project(of, of.owner, PEERS)


def test_three_legs_lose_one_and_not_two() -> None:
    before = volume(mirror(*NAMES[:3]))
    found = left_behind(own(before), 4, {NAMES[2]}, ())
    assert found is not None
    assert lost(found.t2.root) == {"t@sp-c"} and stays(found.t2).keys() == {"t@sp-a", "t@sp-b"}
    assert (found.t2.version, found.t2.epoch, found.base, found.since) == (8, 5, 4, 4)
    with pytest.raises(VsError, match="VS6012"):
        left_behind(own(before), 4, {NAMES[1], NAMES[2]}, ())
    assert left_behind(own(before), 4, (), ()) is None


@pytest.mark.parametrize("legs", [2, 4])
def test_an_even_number_of_legs_loses_none_alone(legs: int) -> None:
    before = own(volume(mirror(*NAMES[:legs])))
    assert not may_be_alone(before)
    with pytest.raises(VsError, match="VS6012"):
        left_behind(before, 4, (), {T1Id("t@sp-b")})


def test_five_legs_lose_two_at_once_and_one_more() -> None:
    before = own(volume(mirror(*NAMES[:5])))
    first = left_behind(before, 4, NAMES[3:5], ())
    assert first is not None and may_be_alone(first.t2)
    second = left_behind(first.t2, 4, {NAMES[2]}, ())
    assert second is not None and not may_be_alone(second.t2)
    assert (second.base, second.since, second.t2.epoch) == (5, 4, 7)
    after = succeeds(volume(mirror(*NAMES[:5])), second)
    assert after is not None and (after.version, after.epoch) == (9, 7)


def test_what_is_nowhere_else_is_waited_for() -> None:
    root = Concat((mirror(*NAMES[:3]), Leaf(T1Id("one@sp-c"), BLOCK)))
    with pytest.raises(VsError, match="VS6012"):
        left_behind(own(volume(root)), 4, {NAMES[2]}, ())
    # A leg's device alone may fail.
    found = left_behind(own(volume(root)), 4, (), {T1Id("t@sp-c")})
    assert found is not None and "one@sp-c" in stays(found.t2)


def test_epochs_of_owners_and_of_the_controller_are_never_the_same() -> None:
    for epoch in range(1, 40):
        assert epoch < own_epoch(epoch) < next_epoch(epoch)
        assert is_own(own_epoch(epoch)) and not is_own(next_epoch(epoch))


def test_the_store_takes_only_what_follows_what_it_has() -> None:
    before = volume(mirror(*NAMES[:3]))
    found = left_behind(own(before), 4, {NAMES[2]}, ())
    assert found is not None
    after = succeeds(before, found)
    assert after is not None
    assert after == replace(before, version=8, epoch=5, root=found.t2.root)
    for other in (
        replace(before, epoch=6),
        replace(before, epoch=2),
        replace(before, owner=NAMES[1]),
        replace(before, version=8),
        replace(before, root=mirror(*NAMES[:3], prefix="u")),
        replace(before, root=mirror(*NAMES[:2])),
        after,
    ):
        assert succeeds(other, found) is None
    assert succeeds(before, replace(found, t2=replace(found.t2, epoch=6))) is None
    whole = replace(found.t2, root=mirror(*NAMES[:3], state=LegState.AWAY))
    assert succeeds(before, replace(found, t2=whole)) is None


def test_another_sp_takes_the_tree_if_it_follows_its_own() -> None:
    before = volume(mirror(*NAMES[:3]))
    found = left_behind(own(before), 4, {NAMES[2]}, ())
    assert found is not None
    other = project(before, NAMES[1], PEERS)
    taken = applied(other, found)
    after = succeeds(before, found)
    assert after is not None and taken == project(after, NAMES[1], PEERS)
    assert applied(replace(other, epoch=3), found) is None
    assert applied(replace(other, epoch=5), found) is None
    assert applied(replace(other, owner=NAMES[1]), found) is None


def test_what_was_left_behind_later_is_away_in_an_earlier_tree_too() -> None:
    before = volume(Stripe(BLOCK, (mirror(*NAMES[:3]), mirror(*NAMES[:3], prefix="u"))))
    after = without(before, {T1Id("t@sp-c"), T1Id("new@sp-g")})
    assert lost(after.root) == {"t@sp-c"}
    assert without(before, ()) == before
    inner = Mirror((Leg(mirror(*NAMES[:2])), Leg(mirror(*NAMES[2:4])), Leg(mirror(*NAMES[4:6]))))
    nested = without(volume(inner), {T1Id("t@sp-c"), T1Id("t@sp-d")}).root
    first, second, third = inner.legs
    assert nested == Mirror((first, Leg(second.node, LegState.AWAY), third))


def test_a_record_is_read_as_it_was_written() -> None:
    found = left_behind(own(volume(mirror(*NAMES[:3]))), 4, {NAMES[2]}, ())
    assert found is not None and decode_ejection(encode_ejection(found)) == found


@settings(deadline=None)
@given(st.sampled_from([3, 5, 7]), st.data())
def test_two_sides_never_both_have_enough(legs: int, data: st.DataObject) -> None:
    """What an owner must fence, and what the controller must, always have a leg in common."""
    root = mirror(*NAMES[:legs])
    before = volume(root)
    gone = data.draw(st.sets(st.sampled_from(NAMES[1:legs])))
    try:
        found = left_behind(own(before), 4, gone, ())
    except VsError:
        assert not majority(legs, legs - len(gone), store=False)
        return
    kept = set(stays(found.t2)) if found is not None else {t1.id for t1 in before.t1s}
    for count in range(1, legs + 1):
        if majority(legs, count):
            for side in combinations([t1.id for t1 in before.t1s], count):
                assert kept & set(side)


def test_a_store_that_is_lost_is_rebuilt_with_what_the_owner_had_made() -> None:
    """The owner does not answer, and its tree with it; the record is at another home."""
    before = volume(mirror(*NAMES[:3]))
    found = left_behind(own(before), 4, {NAMES[2]}, ())
    assert found is not None
    tree = T2View(project(before, NAMES[1], PEERS), active=True)
    views = [
        View(NAMES[1], "i", 1, False, t2s=(tree,), ejections=(found,)),
        View(NAMES[2], "i", 1, False),
    ]
    held = tuple(T1View(t1, 5 if t1.home != NAMES[2] else 4) for t1 in before.t1s)
    rebuilt = rebuild(views, [LabelView(DeviceId("d"), "file:/d", t1s=held)])
    (after,) = rebuilt.volumes
    assert lost(after.root) == {"t@sp-c"} and (after.version, after.epoch) == (8, 5)
