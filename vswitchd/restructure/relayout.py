"""From a tree to a layout with the least to copy: what can stay, stays.

First it is decided what becomes of every node (`decide`, nothing is placed), then the two trees
are built: the interim one, where write-only twins stand beside what has to move, and the final one.
Until all twins are in sync no leg leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vswitchd.errors import Kind, VsError
from vswitchd.model.layout import ConcatOf, Layout, MirrorOf, Place, StripeOf, places
from vswitchd.model.objects import (
    BLOCK,
    T1,
    Concat,
    DeviceId,
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
    children,
    leaves,
    node_size,
)
from vswitchd.restructure.matching import match
from vswitchd.restructure.placement import Placement, layout_size, sized
from vswitchd.restructure.requests import Become, Stage
from vswitchd.restructure.stages import copied, following, last, rehomed
from vswitchd.restructure.twins import with_children

#: Whether an SP reaches a device.
Reaches: TypeAlias = Callable[[SpId, DeviceId], bool]


@dataclass(frozen=True, slots=True)
class Stay:
    """The node is what is wanted. `home`: but at this SP, which reaches its devices too."""

    home: SpId | None = None


@dataclass(frozen=True, slots=True)
class Twin:
    """The node is replaced by a new one of that layout."""

    layout: Layout


@dataclass(frozen=True, slots=True)
class Inside:
    """The node stays; each of its children becomes something."""

    parts: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class Legs:
    """The node, as a mirror's legs or as a single one: for each wanted leg the one that becomes
    it and how, or the layout of a new one. What is not mentioned leaves."""

    wanted: tuple[tuple[int, Decision] | Twin, ...]


Decision: TypeAlias = Stay | Twin | Inside | Legs


class _UnfitError(Exception):
    """What follows the node would shift: it has to be replaced whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path


@dataclass(frozen=True, slots=True)
class _Built:
    """A node on its way: beside its twins, and in the end."""

    interim: Node
    final: Node


def relayout(
    volume: Volume,
    layout: Layout,
    names: Mapping[DeviceId, str],
    reaches: Reaches,
    placement: Callable[[], Placement],
) -> list[Stage]:
    """The stages by which a settled volume takes a layout; none if it has it. `placement`: a
    fresh one at each call. VsError VS1014 if the layout's sizes don't come to the volume's."""
    sized(layout, volume.size)
    whole: frozenset[Path] = frozenset()
    short: VsError | None = None
    while True:
        decider = _Decider(volume, names, reaches, whole)
        decision, _ = decider.decide(volume.root, layout, volume.size, ())
        try:
            return _stages(volume, decision, placement())
        except _UnfitError as unfit:
            whole |= {unfit.path}
        except VsError as error:
            # What copies least may find no room where a whole twin does.
            if error.kind is not Kind.NO_SPACE or () in whole:
                raise short or error from None
            short, whole = error, whole | {()}


def _stages(volume: Volume, decision: Decision, placement: Placement) -> list[Stage]:
    builder = _Builder(volume, placement)
    built = builder.build(volume.root, decision, volume.size, (), ())
    stages: list[Stage] = []
    now = volume
    if built.interim != now.root:
        stages += copied(following(now, root=built.interim, t1s=(*now.t1s, *placement.t1s)))
        now = last(stages)
    if built.final != now.root:
        now = following(now, root=built.final)
        stages.append(Become(now))
    if builder.homes:
        stages += rehomed(now, builder.homes)
    return stages


class _Decider:
    """What becomes of each node, and how many bytes that copies."""

    def __init__(
        self,
        volume: Volume,
        names: Mapping[DeviceId, str],
        reaches: Reaches,
        whole: frozenset[Path],
    ) -> None:
        self._volume = volume
        self._names = names
        self._reaches = reaches
        self._whole = whole

    def decide(self, node: Node, layout: Layout, need: int, path: Path) -> tuple[Decision, int]:
        """The cheapest for a node that has to hold `need` bytes, and what it costs."""
        if path not in self._whole:
            found = self._kept(node, layout, need, path)
            if found is not None and found[1] <= _anew(layout, need):
                return found
        return Twin(layout), _anew(layout, need)

    def _kept(
        self, node: Node, layout: Layout, need: int, path: Path
    ) -> tuple[Decision, int] | None:
        if isinstance(node, Mirror) or isinstance(layout, MirrorOf):
            return self._legs(node, layout, need, path)
        match node, layout:
            case Leaf(), Place():
                return self._leaf(node, layout, need)
            case Stripe(chunk, columns), StripeOf(wanted, wanted_chunk):
                if chunk != wanted_chunk or len(columns) != len(wanted):
                    return None
                column = -(-need // (len(columns) * chunk)) * chunk
                return self._inside(columns, wanted, [column] * len(columns), path)
            case Concat(parts), ConcatOf(wanted):
                needs = _needs(parts, wanted, need)
                return None if needs is None else self._inside(parts, wanted, needs, path)
        return None

    def _leaf(self, leaf: Leaf, place: Place, need: int) -> tuple[Decision, int] | None:
        t1 = self._volume.t1(leaf.t1)
        devices = {extent.device for extent in t1.extents}
        called = {name for device in devices for name in (device, self._names.get(device))}
        there = place.device is None or (len(devices) == 1 and place.device in called)
        if not there or leaf.size < need or place.size not in (None, leaf.size):
            return None
        if place.sp in (None, t1.home):
            return Stay(), 0
        home = SpId(place.sp or "")
        return (Stay(home), 0) if all(self._reaches(home, d) for d in devices) else None

    def _inside(
        self,
        nodes: Sequence[Node],
        wanted: Sequence[Layout],
        needs: Sequence[int],
        path: Path,
    ) -> tuple[Decision, int]:
        parts = [
            self.decide(node, layout, need, (*path, index))
            for index, (node, layout, need) in enumerate(zip(nodes, wanted, needs, strict=True))
        ]
        return Inside(tuple(part for part, _ in parts)), sum(cost for _, cost in parts)

    def _legs(self, node: Node, layout: Layout, need: int, path: Path) -> tuple[Decision, int]:
        there = children(node) if isinstance(node, Mirror) else (node,)
        wanted = layout.legs if isinstance(layout, MirrorOf) else (layout,)
        # A single node that becomes a mirror's leg has its own path; its inner ones stay true.
        inner = [(*path, i) if isinstance(node, Mirror) else path for i in range(len(there))]
        ways: list[list[tuple[Decision, int]]] = [
            [self._leg(leg, want, need, inner[index]) for want in wanted]
            for index, leg in enumerate(there)
        ]
        new = [_anew(want, need) for want in wanted]
        chosen = match([[cost for _, cost in row] for row in ways], new)
        found: list[tuple[int, Decision] | Twin] = []
        cost = 0
        for column, (index, want) in enumerate(zip(chosen, wanted, strict=True)):
            way, copies = (Twin(want), new[column]) if index is None else ways[index][column]
            found.append(Twin(want) if index is None else (index, way))
            cost += copies
        return Legs(tuple(found)), cost

    def _leg(self, leg: Node, want: Layout, need: int, path: Path) -> tuple[Decision, int]:
        """A leg that would be replaced whole is another leg."""
        if isinstance(want, MirrorOf) or isinstance(leg, Mirror):
            # Mirrors in mirrors are taken as they are, or not at all.
            kept = self._legs(leg, want, need, path) if isinstance(leg, Mirror) else None
        else:
            kept = self._kept(leg, want, need, path)
        return kept if kept is not None else (Twin(want), _anew(want, need))


def _anew(layout: Layout, need: int) -> int:
    """How many bytes are written to make a layout of at least `need` bytes anew."""
    try:
        return sum(place.size or 0 for place in places(sized(layout, need)))
    except VsError:
        # Its sizes don't fit here, so it can't be a twin here.
        return 1 << 62


def _needs(parts: Sequence[Node], wanted: Sequence[Layout], need: int) -> list[int] | None:
    """What each part has to hold so that nothing shifts; None if the layout says otherwise."""
    if len(parts) != len(wanted):
        return None
    needs = []
    for node, layout in zip(parts[:-1], wanted[:-1], strict=True):
        size = node_size(node)
        if layout_size(layout) not in (0, size):
            return None
        needs.append(size)
        # Parts before the last may have room for all of it, by rounding.
        need = max(BLOCK, need - size)
    return [*needs, need]


class _Builder:
    """Makes the trees; new T1 objects are in its placement, new homes of old ones in `homes`."""

    def __init__(self, volume: Volume, placement: Placement) -> None:
        self._volume = volume
        self._placement = placement
        self.homes: dict[T1Id, SpId] = {}

    def build(
        self, node: Node, decision: Decision, need: int, path: Path, avoid: tuple[T1, ...]
    ) -> _Built:
        """`avoid`: T1 objects that hold the same data."""
        match decision:
            case Stay(home):
                if home is not None and isinstance(node, Leaf):
                    self.homes[node.t1] = home
                return _Built(node, node)
            case Twin(layout):
                new = self._place(layout, need, avoid)
                return _Built(Mirror((Leg(node), Leg(new, LegState.WRITE_ONLY))), new)
            case Inside(parts):
                return self._inside(node, parts, need, path, avoid)
            case Legs(wanted):
                return self._legs(node, wanted, need, path, avoid)

    def _inside(
        self,
        node: Node,
        parts: tuple[Decision, ...],
        need: int,
        path: Path,
        avoid: tuple[T1, ...],
    ) -> _Built:
        there = children(node)
        if isinstance(node, Stripe):
            needs = [-(-need // (len(there) * node.chunk)) * node.chunk] * len(there)
        else:
            before = [node_size(part) for part in there[:-1]]
            needs = [*before, max(BLOCK, need - sum(before))]
        built = [
            self.build(child, part, size, (*path, index), avoid)
            for index, (child, part, size) in enumerate(zip(there, parts, needs, strict=True))
        ]
        if isinstance(node, Concat):
            for old, new in zip(there[:-1], built[:-1], strict=True):
                if not node_size(old) == node_size(new.interim) == node_size(new.final):
                    raise _UnfitError(path)
        return _Built(
            with_children(node, tuple(one.interim for one in built)),
            with_children(node, tuple(one.final for one in built)),
        )

    def _legs(
        self,
        node: Node,
        wanted: tuple[tuple[int, Decision] | Twin, ...],
        need: int,
        path: Path,
        avoid: tuple[T1, ...],
    ) -> _Built:
        there = children(node) if isinstance(node, Mirror) else (node,)
        kept = [pair for pair in wanted if not isinstance(pair, Twin)]
        if not kept:
            # All anew: placed as one, so that its legs keep away from one another.
            layouts = tuple(new.layout for new in wanted if isinstance(new, Twin))
            whole = layouts[0] if len(layouts) == 1 else MirrorOf(layouts)
            new = self._place(whole, need, avoid)
            legs = children(new) if isinstance(new, Mirror) and len(layouts) > 1 else (new,)
            return _Built(_beside(there, legs), new)
        others = {
            index: (*avoid, *self._of([leg for i, leg in enumerate(there) if i != index]))
            for index in range(len(there))
        }
        built = {
            index: self.build(
                there[index],
                how,
                need,
                (*path, index) if isinstance(node, Mirror) else path,
                others[index],
            )
            for index, how in kept
        }
        held = (*avoid, *self._of([one.final for one in built.values()]))
        final: list[Node | None] = [
            None if isinstance(one, Twin) else built[one[0]].final for one in wanted
        ]
        new_legs: dict[int, Node] = {}
        # Those whose places are said come first: the others can then keep away from them.
        for index, one in sorted(enumerate(wanted), key=lambda each: _open(each[1])):
            if isinstance(one, Twin):
                leg = self._place(one.layout, need, held)
                held = (*held, *self._of([leg]))
                new_legs[index] = final[index] = leg
        stay = tuple(built[i].interim if i in built else leg for i, leg in enumerate(there))
        nodes = tuple(leg for leg in final if leg is not None)
        interim = _beside(stay, tuple(new_legs[index] for index in sorted(new_legs)))
        return _Built(interim, nodes[0] if len(nodes) == 1 else Mirror(tuple(map(Leg, nodes))))

    def _place(self, layout: Layout, need: int, avoid: tuple[T1, ...]) -> Node:
        return self._placement.place(sized(layout, need), avoid)

    def _of(self, nodes: Sequence[Node]) -> tuple[T1, ...]:
        known = {t1.id: t1 for t1 in (*self._volume.t1s, *self._placement.t1s)}
        return tuple(known[leaf.t1] for node in nodes for leaf in leaves(node))


def _beside(there: Sequence[Node], new: Sequence[Node]) -> Node:
    """Legs that are in sync, and write-only ones beside them."""
    if len(there) == 1 and not new:
        return there[0]
    old = tuple(Leg(node) for node in there)
    return Mirror((*old, *(Leg(node, LegState.WRITE_ONLY) for node in new)))


def _open(leg: tuple[int, Decision] | Twin) -> bool:
    return isinstance(leg, Twin) and any(place.sp is None for place in places(leg.layout))
