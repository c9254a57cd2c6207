"""What must be true of every volume, and of what SPs hold of it. Answers are sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import (
    BLOCK,
    Concat,
    Hole,
    Leaf,
    LegState,
    Mirror,
    Stripe,
    Volume,
    children,
    leaves,
    node_size,
    walk,
)
from vswitchd.model.view import View

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def check_name(name: str, what: str = "volume") -> None:
    """VsError VS1012 unless the name may be used for a volume, an SP or a device."""
    if not NAME.fullmatch(name):
        raise VsError(
            "VS1012",
            Kind.INVALID,
            f"{name[:80]!r} cannot name a {what}; use 1 to 63 of a-z 0-9 . _ - "
            "and begin with a letter or a digit",
        )


def check_sp_name(name: str) -> None:
    """VsError VS1012 unless the name may be an SP's: a layout must be able to say it."""
    check_name(name, "SP")
    if name.isdecimal() or name in ("any", "hole"):
        raise VsError(
            "VS1012",
            Kind.INVALID,
            f"{name!r} cannot name an SP: in a layout it means something else; add a letter",
        )


def problems(volume: Volume, *, moving: bool = False) -> Iterator[str]:
    """What is wrong with a volume, a sentence each.

    `moving`: T1 objects are changing their home, so the tree has holes, and a T1 object
    without a reference for each of them. That state is committed only between the swaps
    of one operation.
    """
    if not NAME.fullmatch(volume.name):
        yield f"the name {volume.name!r} is not allowed"
    if volume.size <= 0 or volume.size % BLOCK:
        yield f"the size {volume.size} is not a positive multiple of {BLOCK}"
    if volume.owner not in volume.serving:
        yield f"the owner {volume.owner} does not serve it"
    if len(set(volume.serving)) != len(volume.serving):
        yield "an SP serves it twice"
    yield from _tree_problems(volume, moving)
    yield from _t1_problems(volume, moving)


def check(volume: Volume, *, moving: bool = False) -> None:
    """VsError VS9010 if anything is wrong with the volume: a defect, not a user's mistake."""
    found = list(problems(volume, moving=moving))
    if found:
        raise VsError("VS9010", Kind.INTERNAL, f"volume {volume.name}: {'; '.join(found)}")


def _tree_problems(volume: Volume, moving: bool) -> Iterator[str]:
    ill = False
    for path, node in walk(volume.root):
        where = f"at {'.'.join(map(str, path)) or 'the root'}"
        match node:
            case Leaf(_, size) | Hole(size):
                if size <= 0 or size % BLOCK:
                    yield f"the size {size} {where} is not a positive multiple of {BLOCK}"
                if isinstance(node, Hole) and not moving:
                    yield f"a hole {where}"
            case Mirror(legs):
                if all(leg.state is not LegState.IN_SYNC for leg in legs):
                    yield f"no leg is in sync {where}"
                if len(legs) < 2:
                    yield f"a mirror with fewer than two legs {where}"
            case Stripe(chunk, columns):
                if chunk < BLOCK or chunk & (chunk - 1):
                    yield f"the chunk {chunk} {where} is not a power of two from {BLOCK}"
                    ill = True
                if len(columns) < 2:
                    yield f"a stripe with fewer than two columns {where}"
            case Concat():
                pass
        if isinstance(node, Mirror | Stripe | Concat) and not children(node):
            yield f"no children {where}"
            ill = True
    if not ill and node_size(volume.root) < volume.size:
        yield f"the tree holds {node_size(volume.root)} bytes of {volume.size}"


def _t1_problems(volume: Volume, moving: bool) -> Iterator[str]:
    t1s = {t1.id: t1 for t1 in volume.t1s}
    if len(t1s) != len(volume.t1s):
        yield "two T1 objects have one id"
    uses = Counter(leaf.t1 for leaf in leaves(volume.root))
    holes = sum(isinstance(node, Hole) for _, node in walk(volume.root))
    unused = [t1 for t1 in t1s if not uses[t1]]
    if len(unused) != (holes if moving else 0):
        yield f"T1 objects without a reference: {', '.join(unused) or 'none'}, holes: {holes}"
    for t1_id, count in uses.items():
        if count > 1:
            yield f"T1 {t1_id} is referred to {count} times"
    for leaf in leaves(volume.root):
        t1 = t1s.get(leaf.t1)
        if t1 is None:
            yield f"there is no T1 {leaf.t1}"
        elif t1.size != leaf.size:
            yield f"T1 {t1.id} has {t1.size} bytes and its leaf {leaf.size}"
    for t1 in t1s.values():
        if t1.volume != volume.id:
            yield f"T1 {t1.id} belongs to volume {t1.volume}"
        if sum(extent.length for extent in t1.extents) < t1.size:
            yield f"the extents of T1 {t1.id} are shorter than its {t1.size} bytes"
        if any(extent.length <= 0 or extent.offset < 0 for extent in t1.extents):
            yield f"T1 {t1.id} has an empty extent"
    spans = sorted(
        (e.device, e.offset, e.offset + e.length) for t in t1s.values() for e in t.extents
    )
    for (device, _, end), (other, start, _) in pairwise(spans):
        if device == other and start < end:
            yield f"extents overlap on device {device} at {start}"


def cluster_problems(views: Iterable[View]) -> Iterator[str]:
    """What is wrong between SPs, a sentence each.

    No active T2 object may refer to a T1 object that its home does not hold (claim 1).
    """
    seen: Sequence[View] = tuple(views)
    by_sp = {view.sp: view for view in seen}
    for view in seen:
        for held in view.t2s:
            if not held.active:
                continue
            for leaf in leaves(held.t2.root):
                home = held.t2.homes.get(leaf.t1)
                if home is None:
                    yield f"the T2 of {held.t2.name} at {view.sp} knows no home of T1 {leaf.t1}"
                elif home not in by_sp:
                    continue  # Not heard: nothing can be said of it.
                elif by_sp[home].t1(leaf.t1) is None:
                    yield (
                        f"the T2 of {held.t2.name} at {view.sp} refers to T1 {leaf.t1} "
                        f"at {home}, which does not hold it"
                    )
