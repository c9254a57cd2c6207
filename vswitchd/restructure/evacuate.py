"""All that one SP has of a volume goes elsewhere: its T1 objects, then its part in serving it."""

from __future__ import annotations

from collections.abc import Sequence

from vswitchd.errors import Kind, VsError
from vswitchd.model.layout import Place
from vswitchd.model.objects import T1, Leaf, SpId, T1Id, Volume
from vswitchd.model.view import View
from vswitchd.restructure import twins
from vswitchd.restructure.placement import Placement
from vswitchd.restructure.requests import Become, Evacuate, Stage
from vswitchd.restructure.space import Space
from vswitchd.restructure.stages import copied, following, handed_over, last, rehomed


def evacuate(
    volume: Volume, request: Evacuate, views: Sequence[View], space: Space, placement: Placement
) -> list[Stage]:
    """The stages; none if the SP has nothing of the volume. `placement` and `space` know that
    nothing may go to the SP itself."""
    sp = request.sp
    leaving = [t1 for t1 in volume.t1s if t1.home == sp]
    homes = {t1.id: home for t1 in leaving if (home := _other_home(t1, views, space)) is not None}
    stages: list[Stage] = []
    apart = [t1 for t1 in leaving if t1.id not in homes]
    if apart:
        # What copies comes first: it can be undone until its old legs leave.
        stages += _by_twins(volume, apart, placement)
        volume = last(stages)
    if homes:
        stages += rehomed(volume, homes)
        volume = last(stages)
    if sp in volume.serving:
        stages += _served_elsewhere(volume, request, space)
    return stages


def _other_home(t1: T1, views: Sequence[View], space: Space) -> SpId | None:
    """The SP that reaches all that the object lies on and has least to do, if there is one."""
    needed = {extent.device for extent in t1.extents}
    reach = [
        view.sp
        for view in views
        if view.sp in space.sps() and needed <= {d.id for d in view.devices if d.up}
    ]
    return min(reach, key=lambda other: (space.objects(other), other), default=None)


def _by_twins(volume: Volume, leaving: Sequence[T1], placement: Placement) -> list[Stage]:
    stay = [t1 for t1 in volume.t1s if t1 not in leaving]
    by_old: dict[T1Id, Leaf] = {}
    for t1 in leaving:
        twin = placement.place(Place(None, None, t1.size), [*stay, *placement.t1s])
        assert isinstance(twin, Leaf)
        by_old[t1.id] = twin
    root = twins.beside(volume.root, by_old)
    stages = copied(following(volume, root=root, t1s=(*volume.t1s, *placement.t1s)))
    final = twins.in_place(volume.root, by_old)
    return [*stages, Become(following(last(stages), root=final))]


def _served_elsewhere(volume: Volume, request: Evacuate, space: Space) -> list[Stage]:
    stages: list[Stage] = []
    sp = request.sp
    if all(other == sp or other not in space.sps() for other in volume.serving):
        homes = [t1.home for t1 in volume.t1s if t1.home in space.sps()]
        heir = next(iter([*homes, *space.sps()]), None)
        if heir is None:
            raise VsError(
                "VS3072",
                Kind.PRECONDITION,
                f"no SP that is up and not drained can serve volume {volume.name} instead of "
                f"{sp}; start or undrain one",
            )
        if heir not in volume.serving:
            volume = following(volume, serving=tuple(sorted((*volume.serving, heir))))
            stages.append(Become(volume))
    if sp == volume.owner or not request.keep_serving:
        stages += handed_over(volume, sp, keep_serving=request.keep_serving)
    return stages
