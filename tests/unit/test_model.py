"""The layout language, the codecs and the invariants by example."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.world import World
from vswitchd.errors import VsError
from vswitchd.model.codec import (
    decode_node,
    decode_t1,
    decode_t2,
    decode_volume,
    encode_t1,
    encode_t2,
    encode_volume,
)
from vswitchd.model.invariants import (
    check,
    check_name,
    check_sp_name,
    cluster_problems,
    problems,
)
from vswitchd.model.layout import parse_layout, parse_size, print_layout, print_volume
from vswitchd.model.objects import Hole, Leg, LegState, Mirror, SpId, project


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("mirror(2)", "mirror(any, any)"),
        ("mirror(2, stripe(2))", "mirror(stripe(any, any), stripe(any, any))"),
        ("stripe(2, chunk=128K)", "stripe(any, any, chunk=128K)"),
        ("stripe(chunk=64KiB, a, b)", "stripe(a, b)"),
        (" concat( a:10g ,b/d0 : 1.5T)", "concat(a:10G, b/d0:1536G)"),
        ("mirror(stripe(s/d:10G, s/e:10G), t:20G)", "mirror(stripe(s/d:10G, s/e:10G), t:20G)"),
    ],
)
def test_layouts(text: str, printed: str) -> None:
    assert print_layout(parse_layout(text)) == printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mirror(a b)", "mirror(a b)\n         ^\nexpected , or )"),
        ("mirror(a,\n  $)", "  $)\n  ^\nexpected a name"),
        ("mirror(a)", "mirror(a)\n       ^\nexpected from 2 to 64 children"),
        ("stripe(2, chunk=3K)", "                ^\nexpected a power of two from 4K"),
        ("mirror(2, chunk=4K)", "          ^\nexpected a layout"),
        ("a:many", "a:many\n  ^\nexpected a size"),
        ("mirror(a, 2)", "a count stands first"),
        ("hole:1G", "a hole cannot be asked for"),
        ("mirror(64, mirror(64))", "at most 256 T1 objects"),
        ("mirror(" * 12, "at most 8 levels"),
    ],
)
def test_layout_errors_point(text: str, message: str) -> None:
    with pytest.raises(VsError) as caught:
        parse_layout(text)
    assert caught.value.code == "VS1013"
    assert message in caught.value.message


@pytest.mark.parametrize("text", ["", "G", "-1", "1.0001K", "1e3", "9999999P", "10 X", "٣"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(VsError, match="VS1010"):
        parse_size(text)


def test_objects_read_back() -> None:
    world = World(layout="mirror(2, stripe(2, chunk=4K))")
    volume = world.volume
    assert decode_volume(encode_volume(volume)) == volume
    assert decode_t1(encode_t1(volume.t1s[0])) == volume.t1s[0]
    t2 = project(volume, SpId("a"), world.cluster.peers)
    assert decode_t2(encode_t2(t2)) == t2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "leaf", "t1": "t", "size": -1}', "node.size: an unsigned"),
        ('{"kind": "leaf", "t1": "t", "size": true}', "node.size: an unsigned"),
        ('{"kind": "leaf", "t1": "t"}', "node.size: is missing"),
        ('{"kind": "leaf", "t1": "t", "size": 1, "x": 1}', "node.x: is not a known field"),
        ('{"kind": "concat", "parts": [{"kind": "blob"}]}', r"node.parts\[0\].kind: leaf"),
        ('{"kind": "mirror", "legs": []}', "node: a mirror needs children"),
        (
            '{"kind": "mirror", "legs": [{"state": "good", "node": {"kind": "hole", "size": 1}}]}',
            r"node.legs\[0\].state: in_sync, write_only or away",
        ),
    ],
)
def test_decoding_names_the_field(text: str, message: str) -> None:
    with pytest.raises(VsError, match=message):
        decode_node(text)


def test_a_volume_by_device_names() -> None:
    world = World({"a": {"id-0": 50}, "b": {"id-1": 40}}, "mirror(2)")
    assert print_volume(world.volume) == "mirror(a/id-0:32K, b/id-1:32K)"
    names = {
        device: f"disk{device[-1]}" for sp in world.cluster.sps.values() for device in sp.devices
    }
    assert print_volume(world.volume, names) == "mirror(a/disk0:32K, b/disk1:32K)"


def test_each_invariant_is_seen() -> None:
    good = World(layout="mirror(a, b)").volume
    check(good)
    assert isinstance(good.root, Mirror)
    first, second = good.root.legs
    stale = Mirror((Leg(first.node, LegState.WRITE_ONLY), Leg(second.node, LegState.WRITE_ONLY)))
    out = Mirror((Leg(Hole(good.size)), second))
    wrong = {
        "the name": replace(good, name="No"),
        "the size": replace(good, size=4095),
        "the owner": replace(good, owner=SpId("z")),
        "the tree holds": replace(good, size=good.size * 2),
        "no leg is in sync": replace(good, root=stale),
        "fewer than two": replace(good, root=Mirror((first,))),
        "a hole": replace(good, root=out),
        "without a reference": replace(good, root=out),
        "is referred to 2 times": replace(good, root=Mirror((first, first, second))),
        "there is no T1": replace(good, t1s=good.t1s[:1]),
        "and its leaf": replace(good, t1s=(replace(good.t1s[0], size=4096), good.t1s[1])),
        "are shorter": replace(good, t1s=(replace(good.t1s[0], extents=()), good.t1s[1])),
        "extents overlap": replace(
            good, t1s=(replace(good.t1s[0], extents=good.t1s[1].extents), good.t1s[1])
        ),
    }
    for words, volume in wrong.items():
        found = list(problems(volume))
        assert any(words in problem for problem in found), (words, found)
        with pytest.raises(VsError, match="VS9010"):
            check(volume)
    check(replace(good, root=out), moving=True)


def test_names() -> None:
    check_name("v-1.2_3")
    check_sp_name("sp-a")
    for name in ("", "A", "-a", "a" * 64, "a b", "a\n"):
        with pytest.raises(VsError, match="VS1012"):
            check_name(name)
    for name in ("12", "any", "hole"):
        with pytest.raises(VsError, match="VS1012"):
            check_sp_name(name)


def test_the_cluster_is_seen() -> None:
    world = World(layout="mirror(a, b)", serving=("a",))
    assert not list(cluster_problems(world.cluster.views()))
    world.cluster.sps[SpId("b")].t1s.clear()
    (problem,) = cluster_problems(world.cluster.views())
    assert "at b, which does not hold it" in problem
