"""Free space: what is taken is gone, what is left is free, however broken up it is."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from vswitchd.model.objects import DeviceId, SpId, VolumeId
from vswitchd.model.view import DeviceView, Extent, View
from vswitchd.restructure import vcm
from vswitchd.restructure.codec import decode_plan, encode_plan
from vswitchd.restructure.requests import Create
from vswitchd.restructure.space import Run, Space, less
from vswitchd.restructure.vbm import restructure

UNIT = 1 << 20
DISK = DeviceId("d")
CUTS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)).map(lambda r: (r[0], sum(r))))


def separate(runs: list[Run]) -> list[Run]:
    """Those that overlap none before them, in the order given."""
    kept: list[Run] = []
    for run in runs:
        if all(run[1] <= first or end <= run[0] for first, end in kept):
            kept.append(run)
    return kept


def units(runs: list[Run]) -> set[int]:
    return {unit for first, end in runs for unit in range(first, end)}


@given(CUTS.map(separate), CUTS)
def test_less_is_the_difference(runs: list[Run], taken: list[Run]) -> None:
    left = less(runs, taken)
    assert units(left) == units(runs) - units(taken)
    assert left == sorted(left) and all(first < end for first, end in left)
    assert separate(left) == left


def view(sp: str, runs: list[Run]) -> View:
    free = tuple(Extent(DISK, first * UNIT, (end - first) * UNIT) for first, end in sorted(runs))
    device = DeviceView(DISK, "file:/d", 1 << 50, UNIT, True, free)
    return View(SpId(sp), "1", 1, False, (device,))


@given(CUTS.map(separate), CUTS.map(separate), st.integers(1, 80))
def test_what_all_call_free_is_taken_once(mine: list[Run], theirs: list[Run], size: int) -> None:
    space = Space([view("a", mine), view("b", theirs)])
    both = units(mine) & units(theirs)
    assert space.free(DISK) == len(both) * UNIT
    taken = space.take([DISK], size * UNIT)
    if taken is None:
        assert len(both) < size
        return
    got = [(e.offset // UNIT, (e.offset + e.length) // UNIT) for e in taken]
    assert len(units(got)) == sum(end - first for first, end in got) == size
    assert units(got) <= both
    assert space.free(DISK) == (len(both) - size) * UNIT
    space.release(taken)
    assert space.free(DISK) == len(both) * UNIT


def test_a_volume_of_a_hundred_thousand_extents_is_planned() -> None:
    """By the square of their number it would take hours."""
    extents = 100_000
    disk = view("a", [(2 * index + 4, 2 * index + 5) for index in range(extents)])
    request = Create(VolumeId("v"), "v", extents * UNIT, "", (SpId("a"),))
    numbers = count()
    stages = restructure(None, [disk], request, lambda: f"{next(numbers):x}", {})
    answers = [() for _ in vcm.transitions(None, stages)]
    plan = vcm.plan(None, stages, answers, {SpId("a"): "a:1"})
    assert decode_plan(encode_plan(plan)) == plan
    (t1,) = stages[-1].volume.t1s  # type: ignore[union-attr]
    assert len(t1.extents) == extents
