"""`volume show --tree`: the tree as each SP holds it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.cli.conftest import Ctl
from tests.cli.fake import Fake
from tests.cli.samples import GIB, device, leaf, mirror, operation, volume
from vswitchd.cli import render
from vswitchd.rpc import common_pb2

IN_SYNC, WRITE_ONLY = common_pb2.LEG_STATE_IN_SYNC, common_pb2.LEG_STATE_WRITE_ONLY

AT_A = """\
db1 20G v13 owner sp-a epoch 9 at sp-a
- mirror  DEGRADED
  - T1 t-01 LRN sp-a disk0 20G  in sync
  - T1 t-02 RRN sp-b disk3 20G  resync 41%
"""
AT_B = """\
db1 20G v13 owner sp-a epoch 9 at sp-b
- mirror  DEGRADED
  - T1 t-01 RRN sp-a disk0 20G  in sync
  - T1 t-02 LRN sp-b disk3 20G  resync 41%
"""


def ready(fake: Fake) -> None:
    fake.volumes = [volume()]
    fake.devices = [device("disk0", "id-0"), device("disk3", "id-3")]
    fake.operations = {"op-1": [operation(copied=41 * GIB, total=100 * GIB)]}


def test_the_tree_of_each_sp_that_holds_one(fake: Fake, ctl: Ctl) -> None:
    ready(fake)
    ran = ctl("volume", "show", "db1", "--tree")
    assert (ran.status, ran.out, ran.err) == (0, AT_A + AT_B, "")


def test_the_tree_of_one_sp(fake: Fake, ctl: Ctl) -> None:
    ready(fake)
    assert ctl("volume", "show", "db1", "--tree", "--sp", "sp-b").out == AT_B
    assert ctl("volume", "show", "db1", "--sp", "sp-a").out == AT_A


def test_an_sp_that_holds_none(fake: Fake, ctl: Ctl) -> None:
    ready(fake)
    ran = ctl("volume", "show", "db1", "--tree", "--sp", "sp-c")
    assert (ran.status, ran.out) == (3, "")
    assert "VS2051" in ran.err and "sp-a, sp-b" in ran.err


def test_a_volume_that_no_sp_holds(fake: Fake, ctl: Ctl) -> None:
    ready(fake)
    del fake.volumes[0].t2s[:]
    ran = ctl("volume", "show", "db1", "--tree")
    assert (ran.status, ran.out) == (0, "")
    assert "no SP" in ran.err


def t2(root: common_pb2.Node, sp: str = "sp-a") -> common_pb2.T2Object:
    return common_pb2.T2Object(
        name="v", size=GIB, version=1, epoch=1, sp=sp, owner="sp-a", root=root
    )


def test_every_kind_of_node() -> None:
    stripe = common_pb2.Node(
        stripe=common_pb2.Stripe(
            chunk=65536, columns=[leaf("t-1", "sp-a", GIB), leaf("t-2", "sp-b", GIB)]
        )
    )
    hole = common_pb2.Node(hole=common_pb2.Hole(size=1 << 20))
    root = mirror(
        (stripe, IN_SYNC),
        (common_pb2.Node(concat=common_pb2.Concat(parts=[hole, leaf("t-3", "sp-c")])), WRITE_ONLY),
    )
    t1 = common_pb2.T1Object(
        t1_id="t-1",
        extents=[common_pb2.Extent(device_id=d) for d in ("id-1", "id-2", "id-1")],
    )
    lines = list(render.tree_lines(t2(root), {"t-1": t1}, {"id-1": "d1"}, None))
    assert lines == [
        "v 1G v1 owner sp-a epoch 1 at sp-a",
        "- mirror  DEGRADED",
        "  - stripe chunk 64K  in sync",
        "    - T1 t-1 LRN sp-a d1,id-2 1G",
        "    - T1 t-2 RRN sp-b ? 1G",
        "  - concat  write only",
        "    - hole 1M  parked",
        "    - T1 t-3 RRN sp-c ? 20G",
    ]


SPS = ("sp-a", "sp-b", "sp-c")
LEAVES = st.builds(leaf, st.uuids().map(str), st.sampled_from(SPS))


def _inner(children: st.SearchStrategy[common_pb2.Node]) -> st.SearchStrategy[common_pb2.Node]:
    several: Any = st.lists(children, min_size=1, max_size=3)
    legs = st.lists(st.tuples(children, st.sampled_from([IN_SYNC, WRITE_ONLY])), min_size=1)
    return st.one_of(
        legs.map(lambda found: mirror(*found[:3])),
        several.map(
            lambda found: common_pb2.Node(stripe=common_pb2.Stripe(chunk=4096, columns=found))
        ),
        several.map(lambda found: common_pb2.Node(concat=common_pb2.Concat(parts=found))),
    )


def homes(node: common_pb2.Node) -> list[tuple[str, str]]:
    """(T1 id, home) of the leaves, left to right."""
    match node.WhichOneof("kind"):
        case "mirror":
            inner = [leg.node for leg in node.mirror.legs]
        case "stripe":
            inner = list(node.stripe.columns)
        case "concat":
            inner = list(node.concat.parts)
        case _:
            return [(node.leaf.t1_id, node.leaf.home)]
    return [found for child in inner for found in homes(child)]


@given(st.recursive(LEAVES, _inner, max_leaves=12), st.sampled_from(SPS))
def test_each_leaf_is_one_line_and_local_exactly_where_its_home_is(
    root: common_pb2.Node, sp: str
) -> None:
    lines = list(render.tree_lines(t2(root, sp), {}, {}, None))
    said = [line.split()[2:5] for line in lines if line.lstrip().startswith("- T1 ")]
    assert said == [[t1, "LRN" if home == sp else "RRN", home] for t1, home in homes(root)]
