"""Volumes made anew from what SPs hold, when the store that knew them is lost. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vswitchd.model.invariants import problems
from vswitchd.model.objects import T1, T2, Hole, Leaf, Node, T1Id, Volume, VolumeId, leaves, walk
from vswitchd.model.objects import replace as put
from vswitchd.model.view import Ejection, LabelView, T2View, View
from vswitchd.restructure.alone import applied


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """`refused`: volumes by name, and why each can't be had. `strangers`: T1 objects that no tree
    refers to."""

    volumes: tuple[Volume, ...]
    refused: dict[str, str]
    strangers: tuple[T1Id, ...]


def rebuild(views: Sequence[View], labels: Sequence[LabelView]) -> Rebuilt:
    """What the SPs' trees and T1 objects come to. Each volume's version and epoch are the highest
    that anybody has; the next ones are made by pushing its trees anew. Whose a T1 object is, its
    label says: an SP that it has just left may still know it."""
    held: dict[T1Id, list[tuple[T1, int]]] = defaultdict(list)
    trees: dict[VolumeId, list[T2View]] = defaultdict(list)
    for label in labels:
        for one in label.t1s:
            places = held[one.t1.id]
            # An object stands in the label of each of its devices, and shared ones are read twice.
            if all((t1.home, t1.extents) != (one.t1.home, one.t1.extents) for t1, _ in places):
                places.append((one.t1, one.epoch))
    for view in views:
        for tree in view.t2s:
            trees[tree.t2.volume].append(tree)
    volumes: list[Volume] = []
    refused: dict[str, str] = {}
    ejections = [one for view in views for one in view.ejections]
    for volume_id, found in trees.items():
        mine = [one for one in ejections if one.t2.volume == volume_id]
        volume, why = _volume(found, held, mine)
        if volume is None:
            refused[found[0].t2.name] = why
        else:
            volumes.append(volume)
    names = [volume.name for volume in volumes]
    for volume in list(volumes):
        if names.count(volume.name) > 1:
            volumes.remove(volume)
            refused[f"{volume.name} ({volume.id})"] = "another volume has the same name"
    used = {t1.id for volume in volumes for t1 in volume.t1s}
    return Rebuilt(
        tuple(sorted(volumes, key=lambda volume: volume.name)),
        refused,
        tuple(sorted(set(held) - used)),
    )


def _volume(
    trees: Sequence[T2View],
    held: dict[T1Id, list[tuple[T1, int]]],
    ejections: Sequence[Ejection],
) -> tuple[Volume | None, str]:
    """The volume, or why there is none. The highest tree that is active counts; one with a range
    that is out for a moment has the same shape as the one before it and the one after it. What its
    owner has made of it counts wherever it is recorded, though no such tree may answer."""
    filled = [replace(tree, t2=_filled(tree.t2, held)) for tree in trees]
    whole = [tree for tree in filled if not _holes(tree.t2.root)]
    if not whole:
        return None, (
            "every tree of it was within a move of several objects of one size when the store was "
            "lost; bring a copy of the store back"
        )
    best = max(whole, key=lambda tree: (tree.active, tree.t2.version, tree.t2.epoch)).t2
    for ejection in sorted(ejections, key=lambda one: one.t2.epoch):
        best = applied(best, ejection) or best
    t1s: list[T1] = []
    epochs = [best.epoch, *(tree.t2.epoch for tree in trees)]
    for leaf in leaves(best.root):
        places = held.get(leaf.t1, [])
        if len(places) != 1:
            return None, _why(leaf, [t1 for t1, _ in places], best.homes.get(leaf.t1, "?"))
        (t1, epoch) = places[0]
        t1s.append(replace(t1, size=leaf.size))
        epochs.append(epoch)
    serving = sorted({tree.t2.sp for tree in trees if tree.active})
    if not serving:
        return None, "no SP that answers serves it; start the others"
    volume = Volume(
        id=best.volume,
        name=best.name,
        size=best.size,
        version=max(best.version, *(tree.t2.version for tree in trees)),
        epoch=max(epochs),
        root=best.root,
        t1s=tuple(t1s),
        serving=tuple(serving),
        owner=best.owner if best.owner in serving else serving[0],
    )
    wrong = list(problems(volume))
    return (None, "; ".join(wrong)) if wrong else (volume, "")


def _holes(root: Node) -> list[int]:
    return [node.size for _, node in walk(root) if isinstance(node, Hole)]


def _filled(t2: T2, held: dict[T1Id, list[tuple[T1, int]]]) -> T2:
    """The tree with the references back that a move has taken out of it: each hole is an object
    of the volume that no leaf refers to. Only where the sizes leave no doubt."""
    sizes = _holes(t2.root)
    used = {leaf.t1 for leaf in leaves(t2.root)}
    out = [
        places[0][0]
        for t1_id, places in held.items()
        if t1_id not in used and places[0][0].volume == t2.volume
    ]
    by_size = {t1.size: t1 for t1 in out}
    if not sizes or len(set(sizes)) != len(sizes) or len(by_size) != len(out):
        return t2
    root = t2.root
    for path, node in list(walk(root)):
        if isinstance(node, Hole) and node.size in by_size:
            root = put(root, path, Leaf(by_size[node.size].id, node.size))
    return replace(t2, root=root)


def _why(leaf: Leaf, places: Sequence[T1], home: str) -> str:
    if not places:
        return f"its T1 object {leaf.t1} is nowhere; SP {home} had it: start it, with its devices"
    homes = ", ".join(sorted(t1.home for t1 in places))
    return f"SPs {homes} all say that they are the home of its T1 object {leaf.t1}"
