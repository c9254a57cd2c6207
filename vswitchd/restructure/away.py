"""Legs that are lost, and legs that come back: who may go on, by votes, and what it then holds.

Voters of a mirror are its legs in sync, and the controller's store where they are even in number
(design/coherency.md, point 2). The store's vote is its commit record; a leg's is the fence of its
T1 objects, durable before that. So of three legs the two that can be reached go on without the
third, of two legs the one with the controller, and one of three alone does not.

A leg under which power was lost votes, but is not what the volume goes on with if there is another:
it may lack writes that the others have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import (
    T1,
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
    at,
    leaves,
    replace,
    walk,
)
from vswitchd.model.view import NO_TROUBLE, CopyMode, Trouble
from vswitchd.restructure.legs import homes
from vswitchd.restructure.requests import Become, CopyOnto, Stage
from vswitchd.restructure.stages import following

_TOO_FEW = "that is nowhere else, or the legs left are too few"


def majority(in_sync: int, reached: int, *, store: bool = True) -> bool:
    """True if so many legs of those in sync, with the store's vote if they are even in number,
    are more than half of the voters. Where it has a vote nothing changes without the `store`."""
    has_vote = 1 - in_sync % 2
    if has_vote and not store:
        return reached == in_sync
    return 2 * (reached + has_vote) > in_sync + has_vote


def absent(volume: Volume, up: Collection[SpId]) -> frozenset[SpId]:
    """SPs that are not up, do not own the volume, and home nothing of it but legs that are away:
    whatever happens to it, they need not be asked."""
    gone = lost(volume.root)
    needed = {t1.home for t1 in volume.t1s if t1.id not in gone} | {volume.owner}
    return frozenset(t1.home for t1 in volume.t1s) - needed - set(up)


def ejected(
    volume: Volume,
    gone: Collection[SpId],
    trouble: Trouble = NO_TROUBLE,
    *,
    forced: bool = False,
    store: bool = True,
) -> Volume:
    """The volume as it goes on without those SPs and failing T1 objects: legs that have any of
    them are away, another SP is owner if one of them was. A doubtful leg stays only where no leg
    is left that is not. Itself if nothing changes.

    VsError VS6012 if they are needed: what they hold is nowhere else, a majority of a mirror's
    voters is not left, or it is where newer writes may be than on doubtful legs. `forced`: then
    it goes on all the same, with what there is. `store` False: the store can't be asked.
    """
    without = {t1.id for t1 in volume.t1s if t1.home in gone} | trouble.failing
    doubtful = trouble.doubtful - without
    root, quality = _Without(frozenset(without), doubtful, forced, store).of(volume.root)
    whole = quality is not Quality.LOST
    owner = volume.owner
    names = [*sorted(gone), *sorted(trouble.failing), *sorted(trouble.doubtful)]
    if owner in gone:
        current = [volume.t1(leaf.t1).home for leaf in _in_sync(root)]
        heirs = [sp for sp in volume.serving if sp not in gone]
        if not whole or not heirs:
            what = "no other SP serves it" if whole else "what is left of its legs is no majority"
            raise _needed(volume, names, what)
        owner = min(heirs, key=lambda sp: (sp not in current, sp))
    kept = {leaf.t1 for leaf in _in_sync(root)} & doubtful
    if (root, owner) == (volume.root, volume.owner) and not kept:
        if whole:
            return volume
        raise _needed(volume, names, _TOO_FEW)
    if kept and not whole:
        raise _needed(volume, names, _TOO_FEW)
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


def replaced(volume: Volume, path: Path, new: Node, t1s: Sequence[T1]) -> list[Stage]:
    """A new leg gets its data beside the one at `path`, which is away, and takes its place."""
    outer, index = path[:-1], path[-1]
    mirror = at(volume.root, outer)
    assert isinstance(mirror, Mirror)
    grown = Mirror((*mirror.legs, Leg(new, LegState.WRITE_ONLY)))
    first = following(volume, root=replace(volume.root, outer, grown), t1s=(*volume.t1s, *t1s))
    kept = (*mirror.legs[:index], *mirror.legs[index + 1 :], Leg(new))
    end = following(first, root=replace(volume.root, outer, Mirror(kept)))
    return [Become(first), CopyOnto((*outer, len(mirror.legs))), Become(end)]


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


class Quality(IntEnum):
    """What there is of some data."""

    LOST = 0
    #: Writes may be missing that were acknowledged and not flushed when power was lost.
    DOUBTFUL = 1
    GOOD = 2


@dataclass(frozen=True, slots=True)
class _Without:
    """Takes T1 objects out of a tree."""

    gone: frozenset[T1Id]
    doubtful: frozenset[T1Id]
    forced: bool
    store: bool

    def of(self, node: Node) -> tuple[Node, Quality]:
        """The node without them, and what there is of its data."""
        match node:
            case Leaf(t1, _):
                if t1 in self.gone:
                    return node, Quality.LOST
                return node, Quality.DOUBTFUL if t1 in self.doubtful else Quality.GOOD
            case Hole():
                return node, Quality.LOST
            case Stripe(chunk, columns):
                kept, quality = self._each(columns)
                return Stripe(chunk, kept), quality
            case Concat(parts):
                kept, quality = self._each(parts)
                return Concat(kept), quality
            case Mirror():
                return self._mirror(node)

    def _mirror(self, node: Mirror) -> tuple[Node, Quality]:
        tried = [self.of(leg.node) for leg in node.legs]
        voters = [n for n, leg in enumerate(node.legs) if leg.state is LegState.IN_SYNC]
        reached = [n for n in voters if tried[n][1] is not Quality.LOST]
        good = [n for n in reached if tried[n][1] is Quality.GOOD]
        enough = majority(len(voters), len(reached), store=self.store)
        if not reached or not (self.forced or enough):
            return node, Quality.LOST
        if not good and len(reached) < len(voters) and not self.forced:
            # One that is gone may have what these lack.
            return node, Quality.LOST
        # One that was never in sync can't catch up by what it has missed.
        behind = (n for n, leg in enumerate(node.legs) if leg.state is LegState.WRITE_ONLY)
        if not all(tried[n][1] is Quality.GOOD for n in behind):
            return node, Quality.LOST
        # Two that lack something may each lack something else.
        kept = good or reached[:1]
        legs = (
            Leg(found, leg.state)
            if n in kept or leg.state is LegState.WRITE_ONLY
            else Leg(leg.node, LegState.AWAY)
            for n, (leg, (found, _)) in enumerate(zip(node.legs, tried, strict=True))
        )
        return Mirror(tuple(legs)), Quality.GOOD if good else Quality.DOUBTFUL

    def _each(self, nodes: Sequence[Node]) -> tuple[tuple[Node, ...], Quality]:
        found = [self.of(node) for node in nodes]
        return tuple(node for node, _ in found), min(quality for _, quality in found)


def _set(root: Node, paths: Collection[Path], state: LegState, here: Path = ()) -> Node:
    """The tree with the legs at these paths in that state."""
    match root:
        case Mirror(legs):
            return Mirror(
                tuple(
                    Leg(
                        _set(leg.node, paths, state, (*here, index)),
                        state if (*here, index) in paths else leg.state,
                    )
                    for index, leg in enumerate(legs)
                )
            )
        case Stripe(chunk, columns):
            below = (_set(node, paths, state, (*here, n)) for n, node in enumerate(columns))
            return Stripe(chunk, tuple(below))
        case Concat(parts):
            return Concat(
                tuple(_set(node, paths, state, (*here, n)) for n, node in enumerate(parts))
            )
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
