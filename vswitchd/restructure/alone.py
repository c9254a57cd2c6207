"""What a volume's owner makes of it by itself, and what the controller makes of that.

While the controller can't be reached the owner leaves legs behind where the legs that stay are a
majority of the mirror's voters without the store: an odd number in sync, most of them left
(design/coherency.md, points 2 and 12). It goes about it in this order:

    its proposal is durable           one for each tree: what comes back from a crash is the same
    every T1 object that stays fenced from just the epoch of its own tree: two can't both do that
    recorded at all of their homes    refused where somebody has fenced them higher meanwhile
    its tree activated, then others'

So whoever fences a majority of the voters later meets either the record, or a fence of its own
before which none could be made.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import (
    T1,
    T2,
    Concat,
    Leaf,
    Leg,
    LegState,
    Mirror,
    Node,
    SpId,
    Stripe,
    T1Id,
    Volume,
    leaves,
    own_epoch,
    walk,
)
from vswitchd.model.view import Ejection, Trouble
from vswitchd.restructure.away import ejected, lost


def is_own(epoch: int) -> bool:
    """True if only an owner gives such epochs."""
    return epoch % 2 == 1 and epoch > 1


def left_behind(
    t2: T2, since: int, gone: Collection[SpId], failing: Collection[T1Id]
) -> Ejection | None:
    """What the owner of a tree makes of it without those SPs and T1 objects; None if that is the
    same. VsError VS6012 if it may not by itself."""
    before = _known(t2)
    after = ejected(before, gone, Trouble(failing=frozenset(failing)), store=False)
    if after is before:
        return None
    own = replace(t2, root=after.root, version=t2.version + 1, epoch=own_epoch(t2.epoch))
    needed = {t1: home for t1, home in stays(own).items() if home in gone or t1 in failing}
    if needed:
        # All that stays is fenced; the controller could do without what has one copy.
        raise VsError(
            "VS6012",
            Kind.UNSAFE,
            f"volume {t2.name} can't go on without {', '.join(sorted(needed))} on SP "
            f"{', '.join(sorted(set(needed.values())))}: that is nowhere else, and the controller "
            "is away; hosts wait until it is back",
        )
    return Ejection(own, t2.epoch, since)


def stays(t2: T2) -> dict[T1Id, SpId]:
    """The T1 objects of a tree that are not away, and their homes: what must be fenced."""
    away = lost(t2.root)
    return {t1: home for t1, home in t2.homes.items() if t1 not in away}


def may_be_alone(t2: T2) -> bool:
    """True if some mirror could lose a leg without the controller."""
    return any(
        isinstance(node, Mirror)
        and (count := sum(leg.state is LegState.IN_SYNC for leg in node.legs)) > 1
        and count % 2 == 1
        for _, node in walk(t2.root)
    )


def applied(t2: T2, ejection: Ejection) -> T2 | None:
    """Another SP's tree after an ejection; None if its tree is not one that it follows."""
    if not ejection.since <= t2.epoch < ejection.t2.epoch or t2.owner != ejection.t2.owner:
        return None
    to = ejection.t2
    return replace(t2, root=to.root, version=to.version, epoch=to.epoch)


def succeeds(volume: Volume, ejection: Ejection) -> Volume | None:
    """The stored volume after an ejection that the store has not heard of; None if it is no
    successor of what is stored. One that is recorded anywhere has all fences that it needs, and
    whatever was decided beside it has a higher epoch: so it does not matter where."""
    t2 = ejection.t2
    follows = ejection.since == volume.epoch < t2.epoch and t2.version > volume.version
    if not follows or not is_own(t2.epoch) or t2.owner != volume.owner:
        return None
    if not _only_away(volume.root, t2.root):
        return None
    return replace(volume, version=t2.version, epoch=t2.epoch, root=t2.root)


def without(volume: Volume, gone: Collection[T1Id]) -> Volume:
    """A volume with the legs away that have any of those T1 objects, by a decision that was made
    on a later tree of it."""
    root, _ = _away(volume.root, frozenset(gone))
    return replace(volume, root=root)


def _known(t2: T2) -> Volume:
    """The volume as its owner knows it: without extents, and whoever else serves it."""
    sizes = {leaf.t1: leaf.size for leaf in leaves(t2.root)}
    t1s = (T1(t1, t2.volume, sizes[t1], (), home) for t1, home in t2.homes.items())
    return Volume(
        id=t2.volume,
        name=t2.name,
        size=t2.size,
        version=t2.version,
        epoch=t2.epoch,
        root=t2.root,
        t1s=tuple(t1s),
        serving=(t2.sp,),
        owner=t2.owner,
    )


def _only_away(old: Node, new: Node) -> bool:
    """True if the new tree is the old one with some legs in sync away."""
    match old, new:
        case Mirror(before), Mirror(after):
            if len(before) != len(after):
                return False
            for one, other in zip(before, after, strict=True):
                left = (one.state, other.state) == (LegState.IN_SYNC, LegState.AWAY)
                if one.state is not other.state and not left:
                    return False
                if not _only_away(one.node, other.node):
                    return False
            return any(leg.state is LegState.IN_SYNC for leg in after)
        case Stripe(chunk, before), Stripe(size, after) if chunk == size:
            return _each_only_away(before, after)
        case Concat(before), Concat(after):
            return _each_only_away(before, after)
        case _:
            return old == new


def _each_only_away(old: tuple[Node, ...], new: tuple[Node, ...]) -> bool:
    return len(old) == len(new) and all(map(_only_away, old, new))


def _away(node: Node, gone: frozenset[T1Id]) -> tuple[Node, bool]:
    """The node with legs away that lack something, and whether it lacks nothing itself."""
    match node:
        case Leaf(t1, _):
            return node, t1 not in gone
        case Mirror(legs):
            tried = [_away(leg.node, gone) for leg in legs]
            found = [
                Leg(inner, leg.state)
                if whole or leg.state is not LegState.IN_SYNC
                else Leg(leg.node, LegState.AWAY)
                for leg, (inner, whole) in zip(legs, tried, strict=True)
            ]
            whole = any(leg.state is LegState.IN_SYNC for leg in found)
            return (Mirror(tuple(found)) if whole else node), whole
        case Stripe(chunk, columns):
            each = [_away(column, gone) for column in columns]
            return Stripe(chunk, tuple(one for one, _ in each)), all(whole for _, whole in each)
        case Concat(parts):
            each = [_away(part, gone) for part in parts]
            return Concat(tuple(one for one, _ in each)), all(whole for _, whole in each)
        case _:
            return node, True
