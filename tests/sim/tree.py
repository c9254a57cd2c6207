"""Which leaves hold a block: the routing of the engine, written plainly."""

from __future__ import annotations

from dataclasses import dataclass

from vswitchd.model.objects import (
    BLOCK,
    Concat,
    Hole,
    Leaf,
    LegState,
    Mirror,
    Node,
    Path,
    Stripe,
    T1Id,
    at,
    children,
    leaves,
    node_size,
    walk,
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A block of a T1 object. `readable`: every leg above it is in sync."""

    t1: T1Id
    index: int
    readable: bool
    mirrored: bool


def locate(node: Node, block: int, *, readable: bool = True, mirrored: bool = False) -> list[Piece]:
    """Every leaf that holds a block; none if a part of it is out."""
    match node:
        case Leaf(t1, _):
            return [Piece(t1, block, readable, mirrored)]
        case Hole():
            return []
        case Mirror(legs):
            found: list[Piece] = []
            for leg in legs:
                if leg.state is LegState.AWAY:
                    continue
                fresh = readable and leg.state is LegState.IN_SYNC
                pieces = locate(leg.node, block, readable=fresh, mirrored=True)
                if not pieces:
                    return []
                found += pieces
            return found
        case Stripe(chunk, columns):
            per = chunk // BLOCK
            row, column = divmod(block // per, len(columns))
            index = row * per + block % per
            return locate(columns[column], index, readable=readable, mirrored=mirrored)
        case Concat(parts):
            for part in parts:
                blocks = node_size(part) // BLOCK
                if block < blocks:
                    return locate(part, block, readable=readable, mirrored=mirrored)
                block -= blocks
    raise AssertionError("beyond the tree")


def in_sync(node: Node) -> list[T1Id]:
    """T1 objects of mirrors, under legs in sync alone."""

    def below(node: Node, mirrored: bool) -> list[T1Id]:
        match node:
            case Leaf(t1, _):
                return [t1] if mirrored else []
            case Mirror(legs):
                fresh = [leg.node for leg in legs if leg.state is LegState.IN_SYNC]
                return [t1 for leg in fresh for t1 in below(leg, True)]
            case _:
                return [t1 for child in children(node) for t1 in below(child, mirrored)]

    return below(node, False)


def behind(node: Node) -> set[T1Id]:
    """T1 objects under legs that are not in sync."""
    return {
        leaf.t1
        for _, found in walk(node)
        if isinstance(found, Mirror)
        for leg in found.legs
        if leg.state is not LegState.IN_SYNC
        for leaf in leaves(leg.node)
    }


def write_only(root: Node, path: Path) -> bool:
    """Whether there is a write-only leg at `path`."""
    if not path:
        return False
    mirror = at(root, path[:-1])
    return (
        isinstance(mirror, Mirror)
        and path[-1] < len(mirror.legs)
        and mirror.legs[path[-1]].state is LegState.WRITE_ONLY
    )


def volume_block(root: Node, path: Path, index: int) -> int | None:
    """The block of the tree at `root` that is block `index` of the node at `path`; None if no
    block is."""
    for block in range(node_size(root) // BLOCK):
        if _down(root, path, block) == index:
            return block
    return None


def _down(node: Node, path: Path, block: int) -> int | None:
    if not path:
        return block
    head, rest = path[0], path[1:]
    match node:
        case Mirror(legs):
            return _down(legs[head].node, rest, block)
        case Stripe(chunk, columns):
            per = chunk // BLOCK
            row, column = divmod(block // per, len(columns))
            index = row * per + block % per
            return _down(columns[head], rest, index) if column == head else None
        case Concat(parts):
            before = sum(node_size(part) // BLOCK for part in parts[:head])
            inside = 0 <= block - before < node_size(parts[head]) // BLOCK
            return _down(parts[head], rest, block - before) if inside else None
    raise IndexError(path)
