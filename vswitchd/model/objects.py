"""Extents, T1 objects, the logical tree, and the volume that holds them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType, TypeAlias

SpId = NewType("SpId", str)
DeviceId = NewType("DeviceId", str)
VolumeId = NewType("VolumeId", str)
T1Id = NewType("T1Id", str)

#: Smallest unit a host may address and the alignment of every T1 object's size.
BLOCK = 4096
#: Seconds for which an owner may read its own leg on the word of the other legs' homes, and what
#: is added to that by who waits for its end.
LEASE_SECONDS = 1.0
LEASE_MARGIN = 0.25


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes on one device, aligned to the device's allocation unit."""

    device: DeviceId
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class T1:
    """Tier 1: one logical partition of a volume as physical blocks.

    `size` is at most the sum of the extents' lengths; the rest is rounding to the
    allocation unit and never addressed.
    """

    id: T1Id
    volume: VolumeId
    size: int
    extents: tuple[Extent, ...]
    home: SpId


class LegState(StrEnum):
    """Whether a mirror's leg may be read, and is written. One that is away was in sync once, and
    has missed writes since it was lost; the write-intent maps of the others know which."""

    IN_SYNC = "in_sync"
    WRITE_ONLY = "write_only"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A reference to a T1 object; seen from an SP it is an LRN or an RRN."""

    t1: T1Id
    size: int


@dataclass(frozen=True, slots=True)
class Hole:
    """A range whose reference has been taken away for a moment: I/O on it is parked."""

    size: int


@dataclass(frozen=True, slots=True)
class Leg:
    """One child of a mirror."""

    node: Node
    state: LegState = LegState.IN_SYNC


@dataclass(frozen=True, slots=True)
class Mirror:
    """The same bytes on every leg. Its size is that of its smallest leg."""

    legs: tuple[Leg, ...]


@dataclass(frozen=True, slots=True)
class Stripe:
    """Chunk k lies on column k mod n, at row k div n. Its size is n times the
    smallest column, each column cut down to whole chunks."""

    chunk: int
    columns: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """Its parts one after the other."""

    parts: tuple[Node, ...]


Node: TypeAlias = Leaf | Hole | Mirror | Stripe | Concat

#: Child indices from the root to a node.
Path: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Volume:
    """A whole volume, independent of SPs.

    `version` rises at every committed restructure, `epoch` with it; T1 objects refuse
    I/O that carries a lower epoch than they were fenced at. `size` is what hosts see,
    at most the root's size. `owner` is one of `serving`.
    """

    id: VolumeId
    name: str
    size: int
    version: int
    epoch: int
    root: Node
    t1s: tuple[T1, ...]
    serving: tuple[SpId, ...]
    owner: SpId

    def t1(self, t1_id: T1Id) -> T1:
        """The T1 object of that id; KeyError if the volume has none."""
        for t1 in self.t1s:
            if t1.id == t1_id:
                return t1
        raise KeyError(t1_id)


@dataclass(frozen=True, slots=True)
class T2:
    """Tier 2: a volume's logical configuration as one SP holds it. A leaf is an LRN if this SP is
    its T1 object's home, an RRN if not.

    `homes` says which SP is home of each T1 object that the tree refers to; `peers` is
    the peer address of every other SP that this one must reach (homes, and the owner).
    """

    volume: VolumeId
    name: str
    size: int
    version: int
    epoch: int
    sp: SpId
    owner: SpId
    root: Node
    homes: dict[T1Id, SpId] = field(default_factory=dict)
    peers: dict[SpId, str] = field(default_factory=dict)


def next_epoch(epoch: int) -> int:
    """The epoch of what the controller makes of a tree: an even one, above the one that the
    tree's owner may give by itself."""
    return own_epoch(epoch) + 1


def own_epoch(epoch: int) -> int:
    """The epoch of what a tree's owner makes of it by itself (`restructure.alone`): an odd one, so
    that the two never share one."""
    return epoch + 1 + epoch % 2


def children(node: Node) -> tuple[Node, ...]:
    """A node's children in order; empty for leaves and holes."""
    match node:
        case Mirror(legs):
            return tuple(leg.node for leg in legs)
        case Stripe(_, columns):
            return columns
        case Concat(parts):
            return parts
        case _:
            return ()


def node_size(node: Node) -> int:
    """How many bytes a node can hold."""
    match node:
        case Leaf(_, size) | Hole(size):
            return size
        case Mirror(legs):
            return min(node_size(leg.node) for leg in legs)
        case Stripe(chunk, columns):
            return len(columns) * min(node_size(c) // chunk * chunk for c in columns)
        case Concat(parts):
            return sum(node_size(p) for p in parts)


def walk(node: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """Every node with its path, parents before children."""
    yield path, node
    for index, child in enumerate(children(node)):
        yield from walk(child, (*path, index))


def at(node: Node, path: Path) -> Node:
    """The node at `path`; IndexError if there is none."""
    for index in path:
        node = children(node)[index]
    return node


def leaves(node: Node) -> Iterator[Leaf]:
    """Every reference to a T1 object, left to right."""
    for _, found in walk(node):
        if isinstance(found, Leaf):
            yield found


def replace(node: Node, path: Path, new: Node) -> Node:
    """The tree with the node at `path` replaced by `new`; leg states are kept."""
    if not path:
        return new
    head, rest = path[0], path[1:]
    match node:
        case Mirror(legs):
            leg = Leg(replace(legs[head].node, rest, new), legs[head].state)
            return Mirror((*legs[:head], leg, *legs[head + 1 :]))
        case Stripe(chunk, columns):
            column = replace(columns[head], rest, new)
            return Stripe(chunk, (*columns[:head], column, *columns[head + 1 :]))
        case Concat(parts):
            part = replace(parts[head], rest, new)
            return Concat((*parts[:head], part, *parts[head + 1 :]))
        case _:
            raise IndexError(path)


def project(volume: Volume, sp: SpId, peers: dict[SpId, str]) -> T2:
    """The T2 object that `sp` holds of the volume.

    `peers` maps SPs to peer addresses; only those needed are kept. KeyError names the
    SP whose address is missing.
    """
    homes = {leaf.t1: volume.t1(leaf.t1).home for leaf in leaves(volume.root)}
    needed = sorted((set(homes.values()) | {volume.owner}) - {sp})
    return T2(
        volume=volume.id,
        name=volume.name,
        size=volume.size,
        version=volume.version,
        epoch=volume.epoch,
        sp=sp,
        owner=volume.owner,
        root=volume.root,
        homes=homes,
        peers={other: peers[other] for other in needed},
    )
