"""Messages and values: what is sent is what arrives, and what is malformed is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.prop.trees import NODES
from vswitchd.api import convert
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import (
    T1,
    T2,
    DeviceId,
    Extent,
    Node,
    SpId,
    T1Id,
    Volume,
    VolumeId,
    leaves,
)
from vswitchd.model.view import (
    Affected,
    Change,
    CopyState,
    CopyView,
    DeviceView,
    ObjectKind,
    T1View,
    T2View,
    View,
)
from vswitchd.rpc import common_pb2, vsm_pb2

NUMBERS = st.integers(0, (1 << 64) - 1)
TEXT = st.text(max_size=12)
SPS = TEXT.map(SpId)
VOLUMES = TEXT.map(VolumeId)
EXTENTS = st.builds(Extent, TEXT.map(DeviceId), NUMBERS, NUMBERS)
T1S = st.builds(T1, TEXT.map(T1Id), VOLUMES, NUMBERS, st.lists(EXTENTS, max_size=3).map(tuple), SPS)


@st.composite
def t2s(draw: st.DrawFn) -> T2:
    root: Node = draw(NODES)
    return T2(
        volume=draw(VOLUMES),
        name=draw(TEXT),
        size=draw(NUMBERS),
        version=draw(NUMBERS),
        epoch=draw(NUMBERS),
        sp=draw(SPS),
        owner=draw(SPS),
        root=root,
        homes={leaf.t1: draw(SPS) for leaf in leaves(root)},
        peers=draw(st.dictionaries(SPS, TEXT, max_size=3)),
    )


@st.composite
def devices(draw: st.DrawFn) -> DeviceView:
    device = DeviceId(draw(TEXT))
    runs = draw(st.lists(st.builds(Extent, st.just(device), NUMBERS, NUMBERS), max_size=3))
    up = draw(st.booleans())
    error, direct, checksums = draw(TEXT), draw(st.booleans()), draw(st.booleans())
    uri, size, unit = draw(TEXT), draw(NUMBERS), draw(NUMBERS)
    return DeviceView(device, uri, size, unit, up, tuple(runs), error, direct, checksums)


COPIES = st.builds(
    CopyView,
    VOLUMES,
    st.lists(st.integers(0, 1 << 31), max_size=4).map(tuple),
    st.sampled_from(CopyState),
    NUMBERS,
    NUMBERS,
    TEXT,
)
VIEWS = st.builds(
    View,
    SPS,
    TEXT,
    NUMBERS,
    st.booleans(),
    st.lists(devices(), max_size=2).map(tuple),
    st.lists(st.builds(T1View, T1S, NUMBERS), max_size=2).map(tuple),
    st.lists(st.builds(T2View, t2s(), st.booleans(), st.integers(0, 100)), max_size=2).map(tuple),
    st.lists(COPIES, max_size=2).map(tuple),
    NUMBERS,
)
AFFECTED = st.builds(Affected, SPS, st.sampled_from(ObjectKind), TEXT, st.sampled_from(Change))


@given(VIEWS)
def test_views_arrive_as_they_were(view: View) -> None:
    wire = convert.view_to_proto(view).SerializeToString()
    assert convert.view_from_proto(vsm_pb2.View.FromString(wire)) == view


@given(st.data())
def test_volumes_arrive_as_they_were(data: st.DataObject) -> None:
    root = data.draw(NODES)
    volume = Volume(
        id=data.draw(VOLUMES),
        name=data.draw(TEXT),
        size=data.draw(NUMBERS),
        version=data.draw(NUMBERS),
        epoch=data.draw(NUMBERS),
        root=root,
        t1s=tuple(data.draw(st.lists(T1S, max_size=3))),
        serving=tuple(data.draw(st.lists(SPS, max_size=3))),
        owner=data.draw(SPS),
    )
    wire = convert.volume_to_proto(volume).SerializeToString()
    assert convert.volume_from_proto(common_pb2.VolumeRecord.FromString(wire)) == volume


@given(AFFECTED)
def test_affected_objects_arrive_as_they_were(affected: Affected) -> None:
    assert convert.affected_from_proto(convert.affected_to_proto(affected)) == affected


LEAF = common_pb2.Node(leaf=common_pb2.Leaf(t1_id="t", size=4096, home="a"))


@pytest.mark.parametrize(
    "node",
    [
        common_pb2.Node(),
        common_pb2.Node(concat=common_pb2.Concat(parts=[common_pb2.Node()])),
        common_pb2.Node(mirror=common_pb2.Mirror(legs=[common_pb2.Leg(node=LEAF)])),
        common_pb2.Node(mirror=common_pb2.Mirror(legs=[common_pb2.Leg(state=77, node=LEAF)])),  # type: ignore[arg-type]
    ],
)
def test_a_malformed_tree_is_refused(node: common_pb2.Node) -> None:
    with pytest.raises(VsError) as refused:
        convert.node_from_proto(node, {})
    assert refused.value.kind is Kind.INVALID


def test_unknown_states_are_refused() -> None:
    with pytest.raises(VsError, match="VS1001"):
        convert.view_from_proto(vsm_pb2.View(copies=[vsm_pb2.CopyView(volume_id="v")]))
    with pytest.raises(VsError, match="VS1001"):
        convert.affected_from_proto(vsm_pb2.AffectedObject(sp="a", kind=1))
