"""Failure domains first, then free space, then load."""

from __future__ import annotations

import pytest

from tests.unit.world import World
from vswitchd.errors import VsError
from vswitchd.model.objects import BLOCK, SpId
from vswitchd.restructure.requests import AddLeg, Create
from vswitchd.restructure.vbm import restructure

FOUR = {sp: {f"{sp}0": 50, f"{sp}1": 50} for sp in "abcd"}


def homes(world: World) -> list[list[str]]:
    """The homes of the legs of a mirror of stripes."""
    t1s = iter(world.volume.t1s)
    return [[next(t1s).home for _ in range(2)] for _ in range(len(world.volume.t1s) // 2)]


def test_legs_share_no_sp_as_long_as_there_are_others() -> None:
    for devices in (FOUR, {sp: {f"{sp}0": 50} for sp in "ab"}, {s: {f"{s}0": 50} for s in "abc"}):
        legs = homes(World(devices, "mirror(2, stripe(2, chunk=4K))"))
        assert not set(legs[0]) & set(legs[1]), legs


def test_a_leg_keeps_away_from_where_a_later_one_must_be() -> None:
    world = World({"a": {"a0": 90}, "b": {"b0": 50}}, "mirror(any, a)")
    assert [t1.home for t1 in world.volume.t1s] == ["b", "a"]


def test_columns_use_different_devices() -> None:
    world = World({"a": {"a0": 50, "a1": 20}}, "stripe(2, chunk=4K)")
    assert {t1.extents[0].device for t1 in world.volume.t1s} == {"a0", "a1"}


def test_most_free_space_then_fewest_objects() -> None:
    assert World({"a": {"a0": 50}, "b": {"b0": 60}}).volume.t1s[0].home == "b"
    assert World({"b": {"b0": 60}, "a": {"a0": 60}}).volume.t1s[0].home == "a"


def test_a_new_leg_goes_to_an_sp_that_holds_none_of_the_volume() -> None:
    world = World({"a": {"a0": 90, "a1": 90}, "b": {"b0": 20}}, "a")
    world.do(AddLeg())
    assert [t1.home for t1 in world.volume.t1s] == ["a", "b"]


def test_an_object_may_span_devices_and_runs() -> None:
    world = World({"a": {"a0": 6, "a1": 6}}, blocks=10)
    (t1,) = world.volume.t1s
    assert [extent.length // BLOCK for extent in t1.extents] == [6, 4]


def test_place_on_and_serving_are_honoured() -> None:
    world = World(FOUR, serving=("d",))
    stages = restructure(
        None,
        world.cluster.views(),
        Create(world.volume.id, "v2", 4096, place_on=(SpId("c"),)),
        lambda: "x",
    )
    assert "home='c'" in repr(stages)
    assert world.volume.serving == ("d",) and world.volume.owner == "d"


def test_no_space_says_what_is_free_where() -> None:
    with pytest.raises(VsError, match=r"VS4010: no room for 40K on any SP; free: a/a0 20K, b/b0 "):
        World({"a": {"a0": 5}, "b": {"b0": 7}}, blocks=10)
