"""Which legs a request to remove one means, and the tree without them."""

from __future__ import annotations

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import (
    Concat,
    LegState,
    Mirror,
    Node,
    Path,
    SpId,
    Volume,
    at,
    leaves,
    node_size,
    replace,
    walk,
)
from vswitchd.model.view import CopyMode
from vswitchd.restructure.requests import CopyOnto, Stage


def verified(volume: Volume, *, repair: bool) -> Stage:
    """Legs in sync held against each other. VsError VS3018 if no mirror has two."""
    mirrors = (node for _, node in walk(volume.root) if isinstance(node, Mirror))
    in_sync = (sum(leg.state is LegState.IN_SYNC for leg in node.legs) for node in mirrors)
    if max(in_sync, default=0) < 2:
        raise VsError(
            "VS3018",
            Kind.PRECONDITION,
            f"no mirror of volume {volume.name} has two legs in sync, so there is nothing to "
            f"compare; add one with `vswitchctl volume mirror add {volume.name}`",
        )
    return CopyOnto((), CopyMode.REPAIR if repair else CopyMode.COMPARE)


def remove_leg(volume: Volume, leg: str) -> Node:
    """The tree without the leg that `leg` names: an index in the root mirror, a T1 id (the
    innermost leg with it), or an SP (each outermost leg that it homes whole). A mirror that
    is left with one leg becomes that leg. VsError VS6010 if no leg in sync would be left."""
    root = volume.root
    # Right to left and inner ones first, so that the paths of the rest stay true.
    for path, indices in sorted(_named(volume, leg).items(), reverse=True):
        mirror = at(root, path)
        assert isinstance(mirror, Mirror)
        kept = tuple(one for i, one in enumerate(mirror.legs) if i not in indices)
        if not any(one.state is LegState.IN_SYNC for one in kept):
            raise VsError(
                "VS6010",
                Kind.UNSAFE,
                f"removing leg {leg} of volume {volume.name} would leave no leg in sync at "
                f"{_words(path)}; add another leg first",
            )
        left = kept[0].node if len(kept) == 1 else Mirror(kept)
        _require_same_mapping(volume, root, path, left)
        root = replace(root, path, left)
    return root


def _named(volume: Volume, leg: str) -> dict[Path, set[int]]:
    """Mirrors by path, and which of their legs are meant."""
    mirrors = {path: node for path, node in walk(volume.root) if isinstance(node, Mirror)}
    found: dict[Path, set[int]] = {}
    if leg.isascii() and leg.isdecimal() and isinstance(volume.root, Mirror):
        if int(leg[:9]) < len(volume.root.legs):
            found[()] = {int(leg[:9])}
    elif any(t1.id == leg for t1 in volume.t1s):
        holding = [
            (path, index)
            for path, mirror in mirrors.items()
            for index, one in enumerate(mirror.legs)
            if any(leaf.t1 == leg for leaf in leaves(one.node))
        ]
        if holding:
            path, index = max(holding, key=lambda held: len(held[0]))
            found[path] = {index}
    else:
        gone: list[Path] = []
        for path, mirror in mirrors.items():
            if any(path[: len(outer)] == outer for outer in gone):
                continue
            whole = {i for i, one in enumerate(mirror.legs) if homes(volume, one.node) == {leg}}
            if whole:
                found[path] = whole
                gone += [(*path, index) for index in whole]
    if not found:
        raise VsError(
            "VS2012",
            Kind.NOT_FOUND,
            f"volume {volume.name} has no mirror with a leg {leg}; name a leg by its index, by "
            "the SP that homes all of it, or by a T1 id in it (`vswitchctl volume show --tree`)",
        )
    return found


def homes(volume: Volume, node: Node) -> set[SpId]:
    """The SPs that home what lies under a node of the volume's tree."""
    return {volume.t1(leaf.t1).home for leaf in leaves(node)}


def _require_same_mapping(volume: Volume, root: Node, path: Path, new: Node) -> None:
    """A part of a concat that changes its size would shift those after it."""
    if node_size(new) == node_size(at(root, path)):
        return
    for depth, index in enumerate(path):
        outer = at(root, path[:depth])
        if isinstance(outer, Concat) and index < len(outer.parts) - 1:
            raise VsError(
                "VS3017",
                Kind.PRECONDITION,
                f"the legs of volume {volume.name} at {_words(path)} differ in size within a "
                "concat, so removing one would shift what follows; change the layout instead",
            )


def _words(path: Path) -> str:
    return ".".join(map(str, path)) or "the root"
