"""Growing a tree at its end without moving a byte that hosts have."""

from __future__ import annotations

from collections.abc import Mapping

from vswitchd.model.layout import Place
from vswitchd.model.objects import (
    T1,
    Concat,
    Hole,
    Leaf,
    Leg,
    Mirror,
    Node,
    Stripe,
    T1Id,
    leaves,
    node_size,
)
from vswitchd.restructure.placement import Placement


class Grower:
    """Makes nodes larger; `t1s` holds every T1 object as it then is, new ones in `placement`."""

    def __init__(
        self, stored: Mapping[T1Id, T1], held: Mapping[T1Id, T1], placement: Placement
    ) -> None:
        self.t1s = dict(stored)
        self._held = held
        self._placement = placement

    def grow(self, node: Node, need: int, avoid: tuple[T1, ...] = ()) -> Node:
        """The node holding at least `need` bytes, its old bytes where they were.

        `avoid`: T1 objects of other legs, from which new ones keep away.
        """
        if node_size(node) >= need:
            return node
        match node:
            case Leaf():
                return self._leaf(node, need, avoid)
            case Mirror(legs):
                return Mirror(tuple(self._leg(node, i, need, avoid) for i in range(len(legs))))
            case Stripe(chunk, columns):
                column = -(-need // (len(columns) * chunk)) * chunk
                return Stripe(chunk, tuple(self.grow(c, column, avoid) for c in columns))
            case Concat(parts):
                before = sum(map(node_size, parts[:-1]))
                last = self.grow(parts[-1], need - before, avoid)
                tail = last.parts if isinstance(last, Concat) else (last,)
                return Concat((*parts[:-1], *tail))
            case Hole():
                raise AssertionError("a settled volume has no holes")

    def _leaf(self, leaf: Leaf, need: int, avoid: tuple[T1, ...]) -> Node:
        grown = self._placement.extend(self._held[leaf.t1], need)
        if grown is not None:
            self.t1s[leaf.t1] = grown
            return Leaf(leaf.t1, grown.size)
        more = self._placement.place(Place(size=need - leaf.size), avoid)
        return Concat((leaf, more))

    def _leg(self, mirror: Mirror, index: int, need: int, avoid: tuple[T1, ...]) -> Leg:
        others = [leg.node for i, leg in enumerate(mirror.legs) if i != index]
        away = tuple(self.t1s[leaf.t1] for node in others for leaf in leaves(node))
        leg = mirror.legs[index]
        return Leg(self.grow(leg.node, need, (*avoid, *away)), leg.state)
