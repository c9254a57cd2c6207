"""What a change of layout copies, and what it leaves where it is."""

from __future__ import annotations

import pytest

from tests.unit.world import SHARED, World
from vswitchd.model.layout import print_volume
from vswitchd.model.objects import SpId
from vswitchd.restructure.matching import match
from vswitchd.restructure.requests import Relayout
from vswitchd.restructure.steps import AdoptT1, Copy, PutT1

K = 4096
#: From, to, blocks copied of a volume of 16, and how many of the T1 objects stay.
TABLE = [
    ("a", "mirror(a, b)", 16, 1),
    ("mirror(a, b)", "a", 0, 1),
    ("mirror(a, b)", "b", 0, 1),
    ("mirror(a, b)", "mirror(b, a)", 0, 2),
    ("mirror(a, b)", "mirror(a, c)", 16, 1),
    ("mirror(a, b)", "mirror(a, b, c)", 16, 2),
    ("a", "mirror(a, b, c)", 32, 1),
    ("mirror(a, b, c)", "mirror(c, b)", 0, 2),
    ("stripe(a, b, chunk=4K)", "stripe(a, c, chunk=4K)", 8, 1),
    ("stripe(a, b, chunk=4K)", "stripe(a, b, chunk=8K)", 16, 0),
    ("stripe(a, b, chunk=4K)", "stripe(a, b, c, chunk=4K)", 16, 0),
    ("stripe(a, b, chunk=4K)", "mirror(stripe(a, b, chunk=4K), c)", 16, 2),
    ("stripe(a, b, chunk=4K)", "stripe(mirror(a, c), b, chunk=4K)", 8, 2),
    ("mirror(stripe(a, b, chunk=4K), c)", "mirror(stripe(a, a, chunk=4K), c)", 8, 2),
    ("concat(a:16K, b)", "concat(a:16K, c)", 12, 1),
    ("concat(a:16K, b)", "concat(c:16K, b)", 4, 1),
    ("concat(a:16K, b)", "concat(a, mirror(b, c))", 12, 2),
    ("concat(a:16K, b)", "concat(a:32K, b)", 16, 0),
    ("concat(a:16K, b)", "a", 16, 0),
    ("a", "any", 0, 1),
    ("mirror(a, b)", "mirror(2)", 0, 2),
    ("mirror(a, b)", "mirror(any, c)", 16, 1),
    ("stripe(a, b, chunk=4K)", "stripe(2, chunk=4K)", 0, 2),
]


@pytest.mark.parametrize(("before", "wanted", "blocks", "stay"), TABLE)
def test_what_can_stay_stays(before: str, wanted: str, blocks: int, stay: int) -> None:
    world = World(layout=before, blocks=16)
    held = {t1.id for t1 in world.volume.t1s}
    plan = world.do(Relayout(wanted))
    assert sum(step.bytes for step in plan.steps if isinstance(step, Copy)) == blocks * K
    assert len(held & {t1.id for t1 in world.volume.t1s}) == stay
    printed = print_volume(world.volume)
    assert world.plan(Relayout(printed)).steps == () == world.plan(Relayout(wanted)).steps


def test_what_another_sp_reaches_changes_its_home_without_a_copy() -> None:
    world = World(SHARED, "a/s", serving=("a", "b"))
    plan = world.do(Relayout("b/s"))
    assert not any(isinstance(step, Copy | PutT1) for step in plan.steps)
    assert any(isinstance(step, AdoptT1) for step in plan.steps)
    assert [t1.home for t1 in world.volume.t1s] == ["b"]
    world.do(Relayout("a"))
    assert [t1.home for t1 in world.volume.t1s] == ["a"]


def test_a_new_leg_keeps_away_from_those_that_stay() -> None:
    world = World(layout="mirror(a, b)")
    world.do(Relayout("mirror(a, any)"))
    assert [t1.home for t1 in world.volume.t1s] == ["a", "b"], "b satisfies it"
    world.do(Relayout("mirror(any, any, any)"))
    assert sorted(t1.home for t1 in world.volume.t1s) == ["a", "b", "c"]


def test_where_the_cheapest_finds_no_room_the_whole_is_tried() -> None:
    devices = {"a": {"a0": 30}, "b": {"b0": 17, "b1": 8, "b2": 8}}
    world = World(devices, "a", blocks=16)
    world.do(Relayout("stripe(b, b, chunk=4K)"))
    assert {t1.home for t1 in world.volume.t1s} == {SpId("b")}


def test_matching() -> None:
    assert match([[0, 9], [9, 0]], [9, 9]) == [0, 1]
    assert match([[9, 0], [0, 9]], [9, 9]) == [1, 0]
    assert match([[9, 9]], [9, 9]) == [None, None]
    # The pair that costs nothing alone may cost more in all.
    assert match([[0, 1], [4, 9]], [9, 9]) == [1, 0]
    many = [[0 if row == column else 9 for column in range(8)] for row in range(8)]
    assert match(many, [9] * 8) == list(range(8))
