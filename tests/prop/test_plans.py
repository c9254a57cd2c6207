"""Random requests on random clusters: every plan, run on a model step by step under host I/O,
keeps every order and every byte; and is undone from everywhere it can be."""

from __future__ import annotations

import copy
import random
from itertools import count

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.prop.cluster import Cluster
from vswitchd.errors import Kind, VsError
from vswitchd.model.invariants import check
from vswitchd.model.objects import BLOCK, SpId, Volume, VolumeId, project
from vswitchd.restructure import vcm
from vswitchd.restructure.codec import decode_plan, encode_plan
from vswitchd.restructure.mvsm import determine
from vswitchd.restructure.requests import (
    AddLeg,
    Become,
    Create,
    Delete,
    Grow,
    Move,
    Relayout,
    RemoveLeg,
    Request,
    Serve,
    Unserve,
)
from vswitchd.restructure.steps import Plan
from vswitchd.restructure.vbm import restructure

VOLUME = VolumeId("7d9f0000-0000-4000-8000-000000000001")
SPS = ("a", "b", "c")
SP = st.sampled_from([SpId(sp) for sp in SPS])
CLUSTERS = st.sampled_from(
    [
        # Private devices alone; one that two SPs reach; one that all reach.
        {"a": {"a0": 60, "a1": 60}, "b": {"b0": 60, "b1": 40}, "c": {"c0": 80}},
        {"a": {"a0": 30, "ab": 80}, "b": {"ab": 80, "b0": 30}, "c": {"c0": 90}},
        {"a": {"s": 200}, "b": {"s": 200}, "c": {"s": 200, "c0": 50}},
    ]
)
LAYOUTS = st.sampled_from(
    [
        "",
        "any",
        "mirror(2)",
        "mirror(3)",
        "stripe(2, chunk=4K)",
        "stripe(3, chunk=8K)",
        "mirror(2, stripe(2, chunk=4K))",
        "stripe(2, mirror(2), chunk=8K)",
        "mirror(a, b)",
        "concat(a:12K, b)",
        "concat(mirror(2), stripe(2, chunk=8K))",
        "mirror(concat(a:8K, any), stripe(2, chunk=8K))",
    ]
)
BLOCKS = st.integers(1, 14)
REQUESTS = st.one_of(
    st.builds(lambda n: Grow(n * BLOCK), st.integers(2, 24)),
    st.builds(AddLeg, LAYOUTS, st.none() | SP),
    st.builds(RemoveLeg, st.sampled_from(["0", "1", "2", *SPS])),
    st.builds(Move, SP, SP),
    st.builds(Serve, SP),
    st.builds(Unserve, SP),
    st.builds(Relayout, LAYOUTS.filter(bool)),
)


def planned(cluster: Cluster, volume: Volume | None, request: Request, ids: count[int]) -> Plan:
    stages = restructure(volume, cluster.views(), request, lambda: f"{next(ids):04x}")
    answers = [determine(*pair) if pair else () for pair in vcm.transitions(volume, stages)]
    plan = vcm.plan(volume, stages, answers, cluster.peers)
    assert decode_plan(encode_plan(plan)) == plan
    covered = [index for start, end in plan.groups for index in range(start, end)]
    assert covered == list(range(len(plan.steps))), "groups cover the steps, in order"
    assert not [s for s in stages if isinstance(s, Become) and s.volume == volume]
    return plan


def settled(cluster: Cluster, volume: Volume | None) -> None:
    """Every SP holds just what the store says."""
    assert cluster.store.get(VOLUME) == volume
    for sp in cluster.sps.values():
        assert not sp.staged
        homed = {t1.id: t1 for t1 in volume.t1s if t1.home == sp.name} if volume else {}
        assert set(sp.t1s) == set(homed)
        for t1_id, t1 in homed.items():
            held = sp.t1s[t1_id][0]
            # An extension that was undone stays.
            assert held.extents[: len(t1.extents)] == t1.extents and held.size >= t1.size
            assert sp.t1s[t1_id][1] == (volume.epoch if volume else 0)
        if volume and sp.name in volume.serving:
            assert sp.active[VOLUME] == project(volume, sp.name, cluster.peers)
        else:
            assert VOLUME not in sp.active
    if volume:
        check(volume)
        everywhere = len(volume.serving) * volume.size // BLOCK
        assert cluster.host_io(VOLUME) == everywhere


def execute(cluster: Cluster, plan: Plan, order: random.Random) -> None:
    """Every group in some order, then said again, as after a crash of the controller."""
    for start, end in plan.groups:
        for _ in range(2):
            for index in order.sample(range(start, end), end - start):
                cluster.apply(plan.steps[index])
                cluster.host_io(VOLUME)


def undone_from_everywhere(cluster: Cluster, plan: Plan, order: random.Random) -> None:
    """Stops after every step that leaves a way back, and takes it."""
    trial = copy.deepcopy(cluster)
    for index, step in enumerate(plan.steps[: plan.no_return]):
        if index == 0:
            back_again(trial, plan, order)
        trial.apply(step)
        trial.host_io(VOLUME)
        if index + 1 <= plan.no_return:
            back_again(trial, plan, order)


def back_again(trial: Cluster, plan: Plan, order: random.Random) -> None:
    world = copy.deepcopy(trial)
    back = vcm.undo(plan, world.store.get(VOLUME), world.peers)
    assert back.no_return == 0
    assert decode_plan(encode_plan(back)) == back
    execute(world, back, order)
    after = world.store.get(VOLUME)
    settled(world, after)
    if plan.base is None:
        assert after is None
    else:
        assert after is not None
        same = ("name", "size", "root", "t1s", "serving", "owner")
        assert [getattr(after, f) for f in same] == [getattr(plan.base, f) for f in same]


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(
    devices=CLUSTERS,
    layout=LAYOUTS,
    blocks=BLOCKS,
    serving=st.lists(SP, unique=True, max_size=3),
    requests=st.lists(REQUESTS, min_size=1, max_size=5),
    seed=st.integers(0, 1 << 16),
)
def test_any_requests_keep_orders_and_data(
    devices: dict[str, dict[str, int]],
    layout: str,
    blocks: int,
    serving: list[SpId],
    requests: list[Request],
    seed: int,
) -> None:
    order = random.Random(seed)
    ids = count(1)
    cluster = Cluster.of(devices)
    create = Create(VOLUME, "v1", blocks * BLOCK, layout, tuple(serving))
    for request in (create, *requests, Delete()):
        volume = cluster.store.get(VOLUME)
        try:
            plan = planned(cluster, volume, request, ids)
        except VsError as error:
            assert error.kind is not Kind.INTERNAL, error
            event(f"{type(request).__name__} {error.code}")
            if volume is None:
                return
            continue
        event(f"{type(request).__name__} done")
        undone_from_everywhere(cluster, plan, order)
        if plan.no_return and order.random() < 0.2:
            # Go on from an undone state, slack and all.
            for step in plan.steps[: order.randrange(plan.no_return)]:
                cluster.apply(step)
            execute(cluster, vcm.undo(plan, cluster.store.get(VOLUME), cluster.peers), order)
            if volume is None:
                return
            continue
        execute(cluster, plan, order)
        final = None if isinstance(request, Delete) else cluster.store[VOLUME]
        settled(cluster, final)
