"""The states that a volume goes through, put together: what every restructure is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace as with_fields

from vswitchd.model.objects import T1, Hole, Node, SpId, T1Id, Volume, leaves, next_epoch
from vswitchd.restructure import twins
from vswitchd.restructure.requests import Become, CopyOnto, Stage


def following(
    volume: Volume,
    *,
    size: int | None = None,
    root: Node | None = None,
    t1s: tuple[T1, ...] | None = None,
    serving: tuple[SpId, ...] | None = None,
    owner: SpId | None = None,
) -> Volume:
    """The volume one version and one of the controller's epochs on. With a new root and no `t1s`,
    only those T1 objects stay that the root refers to."""
    tree = volume.root if root is None else root
    if t1s is None:
        used = {leaf.t1 for leaf in leaves(tree)}
        t1s = tuple(t1 for t1 in volume.t1s if t1.id in used)
    return with_fields(
        volume,
        size=volume.size if size is None else size,
        version=volume.version + 1,
        epoch=next_epoch(volume.epoch),
        root=tree,
        t1s=t1s,
        serving=volume.serving if serving is None else serving,
        owner=volume.owner if owner is None else owner,
    )


def copied(volume: Volume) -> list[Stage]:
    """A volume with write-only legs, their copies, then all of them in sync."""
    copies = [CopyOnto(path) for path in twins.write_only(volume.root)]
    return [Become(volume), *copies, Become(following(volume, root=twins.in_sync(volume.root)))]


def last(stages: Sequence[Stage]) -> Volume:
    """The volume that stages end with."""
    end = stages[-1]
    assert isinstance(end, Become) and end.volume is not None
    return end.volume


def rehomed(volume: Volume, homes: Mapping[T1Id, SpId]) -> list[Stage]:
    """Claims 14 to 18: trees without the references, then trees with them at the new homes."""
    holes = {t1.id: Hole(t1.size) for t1 in volume.t1s if t1.id in homes}
    out = following(volume, root=twins.in_place(volume.root, holes), t1s=volume.t1s)
    t1s = tuple(with_fields(t1, home=homes[t1.id]) if t1.id in homes else t1 for t1 in volume.t1s)
    return [Become(out), Become(following(out, root=volume.root, t1s=t1s))]


def handed_over(volume: Volume, sp: SpId, *, keep_serving: bool = False) -> list[Stage]:
    """The volume without `sp` as its owner, and, unless it keeps serving, without it at all.
    Another SP serves it already."""
    rest = tuple(other for other in volume.serving if other != sp)
    stages: list[Stage] = []
    if sp == volume.owner:
        homes = {t1.home for t1 in volume.t1s}
        heir = min(rest, key=lambda other: (other not in homes, other))
        volume = following(volume, owner=heir)
        stages.append(Become(volume))
    if not keep_serving:
        stages.append(Become(following(volume, serving=rest)))
    return stages
