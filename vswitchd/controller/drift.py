"""What an SP holds against what the store says it should. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from vswitchd.model.objects import T2, SpId, T1Id, Volume, VolumeId, project
from vswitchd.model.view import View


@dataclass(frozen=True, slots=True)
class Drift:
    """What to do at one SP about one volume: a tree to push, or the version up to which trees are
    to go (0: none is), and T1 objects that nothing refers to, with the epochs they are at."""

    push: T2 | None = None
    remove: int = 0
    leftovers: tuple[tuple[T1Id, int], ...] = ()

    def __bool__(self) -> bool:
        return self.push is not None or bool(self.remove or self.leftovers)


def volumes_at(view: View, volumes: Iterable[Volume]) -> list[VolumeId]:
    """Every volume that the SP holds something of, or should."""
    held = {t1.t1.volume for t1 in view.t1s} | {t2.t2.volume for t2 in view.t2s}
    return sorted(held | {volume.id for volume in volumes if view.sp in volume.serving})


def drift(
    view: View,
    volume_id: VolumeId,
    volume: Volume | None,
    peers: Mapping[SpId, str],
    views: Collection[View],
    ledger: Collection[T1Id],
) -> Drift:
    """The difference for a volume that no operation is changing; `volume` None: the store has
    none. A T1 object that some tree in `views` still refers to here is left for a later look:
    references go first. What the `ledger` does not know is not ours to remove: the store may have
    been brought back from an old copy, or the device from another cluster's hands. Nor is anything
    while an SP that serves the volume is away: its tree may refer to it."""
    away = volume is not None and not set(volume.serving) <= {other.sp for other in views}
    serves = volume is not None and view.sp in volume.serving
    trees = view.t2s_of(volume_id)
    ours = volume is not None or any(t1 in ledger for held in trees for t1 in held.t2.homes)
    remove = bool(trees) and not serves and ours
    homes = {t1.id: t1.home for t1 in volume.t1s} if volume is not None else {}
    referred = {
        t1
        for other in views
        if not (remove and other.sp == view.sp)
        for held in other.t2s_of(volume_id)
        for t1, home in held.t2.homes.items()
        if home == view.sp
    }
    return Drift(
        push=_push(view, volume, peers) if volume is not None and serves else None,
        remove=max(held.t2.version for held in trees) if remove else 0,
        leftovers=tuple(
            (held.t1.id, held.epoch)
            for held in view.t1s_of(volume_id)
            if not away
            and homes.get(held.t1.id) != view.sp
            and held.t1.id not in referred
            and held.t1.id in ledger
        ),
    )


def _push(view: View, volume: Volume, peers: Mapping[SpId, str]) -> T2 | None:
    try:
        t2 = project(volume, view.sp, dict(peers))
    except KeyError:
        return None  # a peer that never registered: nothing could be reached by it
    held = view.t2(volume.id)
    if held is None:
        return t2
    has, wanted = (held.t2.version, held.t2.epoch), (volume.version, volume.epoch)
    if has < wanted:
        return t2
    # A peer came back at another address: the same tree, told anew.
    return t2 if has == wanted and held.t2.peers != t2.peers else None
