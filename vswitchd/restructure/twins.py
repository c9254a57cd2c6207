"""Write-only twins: the one mechanism by which any part of a tree becomes another, live.

A twin joins beside what it replaces, is copied to, joins in sync, and stays alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as with_fields

from vswitchd.model.objects import (
    Concat,
    Hole,
    Leaf,
    Leg,
    LegState,
    Mirror,
    Node,
    Path,
    Stripe,
    T1Id,
    children,
    walk,
)


def with_children(node: Node, new: tuple[Node, ...]) -> Node:
    """The node with other children, as many; leg states are kept."""
    match node:
        case Mirror(legs):
            return Mirror(tuple(with_fields(leg, node=n) for leg, n in zip(legs, new, strict=True)))
        case Stripe(chunk, _):
            return Stripe(chunk, new)
        case Concat():
            return Concat(new)
        case Leaf() | Hole():
            return node


def beside(node: Node, twins: Mapping[T1Id, Leaf]) -> Node:
    """The tree with a write-only twin beside each leaf named: one more leg of the mirror that
    the leaf is a leg of, otherwise of a new one."""
    if isinstance(node, Leaf):
        if node.t1 not in twins:
            return node
        return Mirror((Leg(node), Leg(twins[node.t1], LegState.WRITE_ONLY)))
    if isinstance(node, Mirror):
        kept: list[Leg] = []
        added: list[Leg] = []
        for leg in node.legs:
            if isinstance(leg.node, Leaf):
                kept.append(leg)
                if leg.node.t1 in twins:
                    added.append(Leg(twins[leg.node.t1], LegState.WRITE_ONLY))
            else:
                kept.append(with_fields(leg, node=beside(leg.node, twins)))
        return Mirror((*kept, *added))
    return with_children(node, tuple(beside(child, twins) for child in children(node)))


def in_place(node: Node, leaves: Mapping[T1Id, Leaf | Hole]) -> Node:
    """The tree with each leaf named replaced."""
    if isinstance(node, Leaf):
        return leaves.get(node.t1, node)
    return with_children(node, tuple(in_place(child, leaves) for child in children(node)))


def write_only(node: Node) -> tuple[Path, ...]:
    """The paths of all write-only legs."""
    return tuple(
        (*path, index)
        for path, found in walk(node)
        if isinstance(found, Mirror)
        for index, leg in enumerate(found.legs)
        if leg.state is LegState.WRITE_ONLY
    )


def in_sync(node: Node) -> Node:
    """The tree with every leg in sync."""
    if isinstance(node, Mirror):
        return Mirror(tuple(Leg(in_sync(leg.node)) for leg in node.legs))
    return with_children(node, tuple(in_sync(child) for child in children(node)))
