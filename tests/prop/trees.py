"""Random trees and layouts."""

from __future__ import annotations

from hypothesis import strategies as st

from vswitchd.model.layout import ConcatOf, Layout, MirrorOf, Place, StripeOf
from vswitchd.model.objects import (
    BLOCK,
    Concat,
    Hole,
    Leaf,
    Leg,
    LegState,
    Mirror,
    Node,
    Stripe,
    T1Id,
)

SIZES = st.integers(1, 1 << 40).map(lambda n: n * BLOCK)
CHUNKS = st.integers(12, 30).map(lambda n: 1 << n)
NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,12}", fullmatch=True).filter(
    lambda name: name not in ("any", "hole") and not name.isdecimal()
)


def _places() -> st.SearchStrategy[Layout]:
    size = st.none() | SIZES
    return st.builds(Place, st.none(), st.none(), size) | st.builds(
        Place, NAMES, st.none() | NAMES, size
    )


def _groups(inner: st.SearchStrategy[Layout]) -> st.SearchStrategy[Layout]:
    several = st.lists(inner, min_size=2, max_size=4).map(tuple)
    return (
        st.builds(MirrorOf, several)
        | st.builds(StripeOf, several, CHUNKS)
        | st.builds(ConcatOf, several)
    )


LAYOUTS: st.SearchStrategy[Layout] = st.recursive(_places(), _groups, max_leaves=12)


def _inner(node: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    several = st.lists(node, min_size=1, max_size=4).map(tuple)
    leg = st.builds(Leg, node, st.sampled_from(LegState))
    legs = st.lists(leg, min_size=1, max_size=4).map(tuple)
    return st.builds(Mirror, legs) | st.builds(Stripe, CHUNKS, several) | st.builds(Concat, several)


NODES: st.SearchStrategy[Node] = st.recursive(
    st.builds(Leaf, st.uuids().map(lambda u: T1Id(f"t-{u.hex}")), SIZES) | st.builds(Hole, SIZES),
    _inner,
    max_leaves=12,
)
