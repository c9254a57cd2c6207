"""From any layout to any other: what is wanted comes out, what can stay stays, and no copy is at
risk meanwhile."""

from __future__ import annotations

import random
from itertools import count

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.prop.cluster import Cluster
from tests.prop.test_plans import (
    BLOCKS,
    CLUSTERS,
    LAYOUTS,
    VOLUME,
    execute,
    planned,
    undone_from_everywhere,
)
from tests.prop.test_plans import settled as all_settled
from vswitchd.errors import VsError
from vswitchd.model.layout import (
    ConcatOf,
    Layout,
    MirrorOf,
    Place,
    StripeOf,
    parse_layout,
    print_volume,
)
from vswitchd.model.objects import (
    BLOCK,
    Concat,
    Leaf,
    Mirror,
    Node,
    Stripe,
    Volume,
    children,
    node_size,
)
from vswitchd.restructure.preview import preview, redundancy
from vswitchd.restructure.requests import Create, Relayout
from vswitchd.restructure.steps import Copy, Plan, PutT1

#: Random trees beside those that people would ask for.
PLACES = st.sampled_from(["any", "a", "b", "c", "a:16K", "c:16K"])
TREES = st.recursive(
    PLACES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda legs: f"mirror({', '.join(legs)})"),
        st.lists(inner, min_size=2, max_size=2).map(
            lambda columns: f"stripe({', '.join(columns)}, chunk=4K)"
        ),
        st.lists(inner, min_size=2, max_size=2).map(lambda parts: f"concat({', '.join(parts)})"),
    ),
    max_leaves=4,
)
WANTED = LAYOUTS.filter(bool) | TREES


def satisfies(volume: Volume, node: Node, layout: Layout) -> bool:
    """Whether a tree is what a layout says, as far as it says something."""
    match layout, node:
        case Place(sp, device, size), Leaf(t1_id, held):
            t1 = volume.t1(t1_id)
            devices = {str(extent.device) for extent in t1.extents}
            return (
                sp in (None, t1.home)
                and (device is None or devices == {device})
                and size in (None, held)
            )
        case MirrorOf(wanted), Mirror() | Stripe() | Concat():
            pass
        case StripeOf(wanted, chunk), Stripe(has, _) if chunk == has:
            pass
        case ConcatOf(wanted), Concat():
            pass
        case _:
            return False
    kinds = {MirrorOf: Mirror, StripeOf: Stripe, ConcatOf: Concat}
    nodes = children(node)
    return (
        isinstance(node, kinds[type(layout)])
        and len(nodes) == len(wanted)
        and all(satisfies(volume, n, one) for n, one in zip(nodes, wanted, strict=True))
    )


def copied(plan: Plan) -> int:
    return sum(step.bytes for step in plan.steps if isinstance(step, Copy))


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(
    devices=CLUSTERS,
    before=LAYOUTS,
    blocks=BLOCKS,
    wanted=st.lists(WANTED, min_size=1, max_size=3),
    seed=st.integers(0, 1 << 16),
)
def test_any_layout_becomes_any_other(
    devices: dict[str, dict[str, int]],
    before: str,
    blocks: int,
    wanted: list[str],
    seed: int,
) -> None:
    order, ids = random.Random(seed), count(1)
    cluster = Cluster.of(devices)
    try:
        create = planned(cluster, None, Create(VOLUME, "v1", blocks * BLOCK, before), ids)
    except VsError:
        assume(False)
    execute(cluster, create, order)
    cluster.host_io(VOLUME)
    for text in wanted:
        volume = cluster.store[VOLUME]
        try:
            plan = planned(cluster, volume, Relayout(text), ids)
        except VsError as error:
            assert error.code in ("VS4010", "VS1014"), error
            continue
        _is_cheap_and_safe(plan, volume)
        undone_from_everywhere(cluster, plan, order)
        execute(cluster, plan, order)
        now = cluster.store[VOLUME]
        all_settled(cluster, now)
        assert satisfies(now, now.root, parse_layout(text)), (text, print_volume(now))
        assert now.size == volume.size
        for again in (text, print_volume(now)):
            assert not planned(cluster, now, Relayout(again), ids).steps, again


def _is_cheap_and_safe(plan: Plan, volume: Volume) -> None:
    assert copied(plan) <= max(
        volume.size, sum(s.t1.size for s in plan.steps if isinstance(s, PutT1))
    )
    if not plan.steps:
        return
    shown = preview(plan)
    assert shown.target is not None
    least = min(redundancy(volume.root), redundancy(shown.target.root))
    assert all(step.redundancy >= least for step in shown.steps)
    if not copied(plan):
        assert not any(isinstance(step, PutT1) for step in plan.steps)
    assert node_size(shown.target.root) >= volume.size
