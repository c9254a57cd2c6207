"""Legs that are lost, and legs that come back: who may go on, by votes, and what it then holds.

Voters of a mirror are its legs in sync, and the controller's store where they are even in number
(design/coherency.md, point 2). The store's vote is its commit record; a leg's is the fence of its
T1 objects, durable before that. So of three legs the two that can be reached go on without the
third, of two legs the one with the controller, and one of three alone does not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import (
    Concat,
    Hole,
    Leaf,
    Leg,
    LegState,
    Mirror,
    Node,
    Path,
    SpId,
    Stripe,
    T1Id,
    Volume,
    leaves,
    walk,
)
from vswitchd.model.view import CopyMode
from vswitchd.restructure.legs import homes
from vswitchd.restructure.requests import Become, CopyOnto, Stage
from vswitchd.restructure.stages import following


def majority(in_sync: int, reached: int) -> bool:
    """True if so many legs of those in sync, with the store's vote if they are even in number,
    are more than half of the voters."""
    store = 1 - in_sync % 2
    return 2 * (reached + store) > in_sync + store


def absent(volume: Volume, up: Collection[SpId]) -> frozenset[SpId]:
    """SPs that are not up, do not own the volume, and home nothing of it but legs that are away:
    whatever happens to it, they need not be asked."""
    gone = lost(volume.root)
    needed = {t1.home for t1 in volume.t1s if t1.id not in gone} | {volume.owner}
    return frozenset(t1.home for t1 in volume.t1s) - needed - set(up)


def ejected(volume: Volume, gone: Collection[SpId], failing: Collection[T1Id] = ()) -> Volume:
    """The volume as it goes on without those SPs and T1 objects: legs that have any of them are
    away, another SP is owner if one of them was. Itself if nothing changes. VsError VS6012 if they
    are needed: what they hold is nowhere else, or a majority of a mirror's voters is not left."""
    without = {t1.id for t1 in volume.t1s if t1.home in gone or t1.id in failing}
    root, whole = _without(volume.root, without)
    owner = volume.owner
    names = [*sorted(gone), *sorted(failing)]
    if owner in gone:
        current = [volume.t1(leaf.t1).home for leaf in _in_sync(root)]
        heirs = [sp for sp in volume.serving if sp not in gone]
        if not whole or not heirs:
            what = "no other SP serves it" if whole else "what is left of its legs is no majority"
            raise _needed(volume, names, what)
        owner = min(heirs, key=lambda sp: (sp not in current, sp))
    if (root, owner) == (volume.root, volume.owner):
        if whole:
            return volume
        raise _needed(volume, names, "that is nowhere else, or the legs left are too few")
    return following(volume, root=root, t1s=volume.t1s, owner=owner)


def rejoined(volume: Volume, back: Collection[SpId]) -> list[Stage]:
    """Legs that are away and whose SPs are all back get what they have missed, then are in sync;
    none if there is no such leg."""
    found = [path for path, leg in away(volume.root) if homes(volume, leg.node) <= set(back)]
    if not found:
        return []
    first = following(volume, root=_set(volume.root, found, LegState.WRITE_ONLY), t1s=volume.t1s)
    end = following(first, root=_set(first.root, found, LegState.IN_SYNC), t1s=volume.t1s)
    return [Become(first), *(CopyOnto(path, CopyMode.DELTA) for path in found), Become(end)]


def legs_in(root: Node, state: LegState) -> Iterable[tuple[Path, Leg]]:
    """Every leg in that state, with its path."""
    for path, node in walk(root):
        if isinstance(node, Mirror):
            for index, leg in enumerate(node.legs):
                if leg.state is state:
                    yield (*path, index), leg


def away(root: Node) -> Iterable[tuple[Path, Leg]]:
    """Every leg that is away, with its path."""
    return legs_in(root, LegState.AWAY)


def under(root: Node, state: LegState) -> frozenset[T1Id]:
    """The T1 objects of legs in that state."""
    return frozenset(leaf.t1 for _, leg in legs_in(root, state) for leaf in leaves(leg.node))


def lost(root: Node) -> frozenset[T1Id]:
    """The T1 objects of legs that are away."""
    return under(root, LegState.AWAY)


def _needed(volume: Volume, names: Collection[str], why: str) -> VsError:
    return VsError(
        "VS6012",
        Kind.UNSAFE,
        f"volume {volume.name} can't go on without {', '.join(names)}: {why}; hosts wait until it "
        "is back",
    )


def _without(node: Node, gone: Collection[T1Id]) -> tuple[Node, bool]:
    """The node without those T1 objects, and whether all of its data can still be had."""
    match node:
        case Leaf(t1, _):
            return node, t1 not in gone
        case Hole():
            return node, False
        case Stripe(chunk, columns):
            kept, whole = _each(columns, gone)
            return Stripe(chunk, kept), whole
        case Concat(parts):
            kept, whole = _each(parts, gone)
            return Concat(kept), whole
        case Mirror(legs):
            tried = [_without(leg.node, gone) for leg in legs]
            voters = [n for n, leg in enumerate(legs) if leg.state is LegState.IN_SYNC]
            reached = [n for n in voters if tried[n][1]]
            if not reached or not majority(len(voters), len(reached)):
                return node, False
            # One that was never in sync can't catch up by what it has missed.
            behind = (n for n, leg in enumerate(legs) if leg.state is LegState.WRITE_ONLY)
            if not all(tried[n][1] for n in behind):
                return node, False
            return Mirror(
                tuple(
                    Leg(found, leg.state)
                    if whole and leg.state is not LegState.AWAY
                    else Leg(leg.node, LegState.AWAY)
                    for leg, (found, whole) in zip(legs, tried, strict=True)
                )
            ), True


def _each(nodes: Sequence[Node], gone: Collection[T1Id]) -> tuple[tuple[Node, ...], bool]:
    found = [_without(node, gone) for node in nodes]
    return tuple(node for node, _ in found), all(whole for _, whole in found)


def _set(root: Node, paths: Collection[Path], state: LegState, at: Path = ()) -> Node:
    """The tree with the legs at these paths in that state."""
    match root:
        case Mirror(legs):
            return Mirror(
                tuple(
                    Leg(
                        _set(leg.node, paths, state, (*at, index)),
                        state if (*at, index) in paths else leg.state,
                    )
                    for index, leg in enumerate(legs)
                )
            )
        case Stripe(chunk, columns):
            below = (_set(node, paths, state, (*at, n)) for n, node in enumerate(columns))
            return Stripe(chunk, tuple(below))
        case Concat(parts):
            return Concat(tuple(_set(node, paths, state, (*at, n)) for n, node in enumerate(parts)))
        case _:
            return root


def _in_sync(node: Node) -> Iterable[Leaf]:
    """References under no leg that is behind."""
    match node:
        case Mirror(legs):
            for leg in legs:
                if leg.state is LegState.IN_SYNC:
                    yield from _in_sync(leg.node)
        case Stripe(_, nodes) | Concat(nodes):
            for below in nodes:
                yield from _in_sync(below)
        case Leaf():
            yield node
