"""VBM: a request and the collected state -> the states that the volume goes through.

Each `Become` is one swap of trees, one version and one epoch above the one before; a
`CopyOnto` between them fills a write-only leg. Pure and deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from vswitchd.errors import Kind, VsError
from vswitchd.model.invariants import check, check_name
from vswitchd.model.layout import Layout, Place, format_size, parse_layout
from vswitchd.model.objects import (
    T1,
    DeviceId,
    Hole,
    Leaf,
    Leg,
    LegState,
    Mirror,
    Path,
    SpId,
    T1Id,
    Volume,
    at,
    node_size,
    walk,
)
from vswitchd.model.view import View
from vswitchd.restructure import twins
from vswitchd.restructure.away import absent, ejected, rejoined, replaced
from vswitchd.restructure.collected import (
    require_agreement,
    require_reachable,
    require_settled,
    view_of,
)
from vswitchd.restructure.evacuate import evacuate
from vswitchd.restructure.grow import Grower
from vswitchd.restructure.legs import homes, remove_leg, verified
from vswitchd.restructure.placement import (
    Placement,
    check_size,
    drained_error,
    layout_size,
    sized,
)
from vswitchd.restructure.relayout import relayout
from vswitchd.restructure.requests import (
    AddLeg,
    Become,
    Create,
    Delete,
    Eject,
    Evacuate,
    Grow,
    Move,
    Own,
    Recover,
    Rejoin,
    Relayout,
    RemoveLeg,
    Replace,
    Request,
    Restore,
    Serve,
    Stage,
    Unserve,
    Verify,
)
from vswitchd.restructure.restored import restored
from vswitchd.restructure.space import Space
from vswitchd.restructure.stages import copied, following, handed_over, last, rehomed


def restructure(
    volume: Volume | None,
    views: Sequence[View],
    request: Request,
    new_id: Callable[[], str],
    device_names: Mapping[DeviceId, str] | None = None,
    drained: Collection[SpId] = (),
) -> tuple[Stage, ...]:
    """The target states that fulfil the request, in order; none if it is fulfilled already.

    `volume`: as the store has it, None for a create; `views`: of every SP that is up;
    `new_id`: a fresh random id in hexadecimal at each call; `device_names`: what people
    call devices in layouts, beside their ids; `drained`: SPs that are to hold nothing new.
    """
    work = _Work(tuple(views), new_id, device_names or {}, frozenset(drained))
    if isinstance(request, Create):
        stages = work.create(request)
    elif volume is None:
        raise VsError("VS2013", Kind.NOT_FOUND, "there is no such volume; create it first")
    else:
        stages = work.change(volume, request)
    for stage in stages:
        if isinstance(stage, Become) and stage.volume is not None:
            moving = any(isinstance(node, Hole) for _, node in walk(stage.volume.root))
            check(stage.volume, moving=moving)
    return tuple(stages)


@dataclass(frozen=True, slots=True)
class _Work:
    """One request's inputs."""

    views: tuple[View, ...]
    new_id: Callable[[], str]
    names: Mapping[DeviceId, str]
    drained: frozenset[SpId]

    def change(self, volume: Volume, request: Request) -> list[Stage]:
        if isinstance(request, Delete | Recover):
            require_reachable(volume, self.views)
            return [Become(None if isinstance(request, Delete) else following(volume))]
        up = {view.sp for view in self.views}
        if isinstance(request, Eject):
            target = ejected(volume, request.sps, request.trouble, forced=request.forced)
            without = absent(volume, up) | set(request.sps)
            require_agreement(volume, self.views, without, request.trouble.failing)
            return [] if target is volume else [Become(target)]
        if isinstance(request, Rejoin):
            # Who comes back is fenced before it is written to: it must be there.
            require_agreement(volume, self.views, absent(volume, up) - set(request.sps))
            return rejoined(volume, request.sps)
        held = require_agreement(volume, self.views, absent(volume, up))
        match request:
            case Verify(repair):
                return [verified(volume, repair=repair)]
            case RemoveLeg(leg):
                return [Become(following(volume, root=remove_leg(volume, leg)))]
            case Serve(sp):
                return self.serve(volume, sp)
            case Unserve(sp):
                return self.unserve(volume, sp)
            case Own(sp):
                return self.own(volume, sp)
            case Replace(path):
                return self.replace(volume, path)
        require_settled(volume)
        match request:
            case Grow(size):
                return self.grow(volume, size, held)
            case AddLeg():
                return self.add_leg(volume, request)
            case Move():
                return self.move(volume, request)
            case Relayout(layout):
                return self.relayout(volume, parse_layout(layout))
            case Restore(version):
                return self.relayout(volume, restored(version, volume.size))
            case Evacuate(sp):
                space = Space(self.views, {*self.drained, sp})
                placement = Placement(volume.id, space, self.new_id, self.names)
                return evacuate(volume, request, self.views, space, placement)
        raise AssertionError(request)

    def create(self, request: Create) -> list[Stage]:
        check_name(request.name)
        layout = parse_layout(request.layout) if request.layout else Place()
        size = request.size or layout_size(layout)
        check_size(size)
        for sp in (*request.serving, *request.place_on):
            view_of(self.views, sp)
            self._not_drained(sp)
        placement = Placement(
            request.id,
            Space(self.views, self.drained),
            self.new_id,
            self.names,
            request.place_on,
        )
        root = placement.place(sized(layout, size))
        homes = [t1.home for t1 in placement.t1s]
        serving = tuple(sorted(set(request.serving or homes)))
        owner = next((home for home in homes if home in serving), serving[0])
        t1s = tuple(placement.t1s)
        return [Become(Volume(request.id, request.name, size, 1, 1, root, t1s, serving, owner))]

    def serve(self, volume: Volume, sp: SpId) -> list[Stage]:
        view_of(self.views, sp)
        self._not_drained(sp)
        if sp in volume.serving:
            raise VsError(
                "VS2014", Kind.EXISTS, f"SP {sp} serves volume {volume.name} already; nothing to do"
            )
        return [Become(following(volume, serving=tuple(sorted((*volume.serving, sp)))))]

    def unserve(self, volume: Volume, sp: SpId) -> list[Stage]:
        rest = tuple(other for other in volume.serving if other != sp)
        if len(rest) == len(volume.serving):
            raise VsError(
                "VS2015",
                Kind.NOT_FOUND,
                f"SP {sp} does not serve volume {volume.name}; {', '.join(rest)} do",
            )
        if not rest:
            raise VsError(
                "VS6011",
                Kind.UNSAFE,
                f"SP {sp} is the last that serves volume {volume.name}; let another serve it "
                "first, or delete the volume",
            )
        return handed_over(volume, sp)

    def own(self, volume: Volume, sp: SpId) -> list[Stage]:
        view_of(self.views, sp)
        if sp not in volume.serving:
            raise VsError(
                "VS2015",
                Kind.NOT_FOUND,
                f"SP {sp} does not serve volume {volume.name}; {', '.join(volume.serving)} do; "
                f"`vswitchctl volume serve {volume.name} --on {sp}` comes first",
            )
        return [] if sp == volume.owner else [Become(following(volume, owner=sp))]

    def grow(self, volume: Volume, size: int, held: Mapping[T1Id, T1]) -> list[Stage]:
        check_size(size)
        if size <= volume.size:
            raise VsError(
                "VS1015",
                Kind.INVALID,
                f"volume {volume.name} has {format_size(volume.size)}; growing needs a size "
                f"above it, not {format_size(size)}",
            )
        placement = self._placement(volume)
        grower = Grower({t1.id: t1 for t1 in volume.t1s}, held, placement)
        root = grower.grow(volume.root, size)
        t1s = (*grower.t1s.values(), *placement.t1s)
        return [Become(following(volume, size=size, root=root, t1s=t1s))]

    def add_leg(self, volume: Volume, request: AddLeg) -> list[Stage]:
        layout = parse_layout(request.layout) if request.layout else Place()
        placement = self._placement(volume)
        new = placement.place(sized(layout, volume.size), volume.t1s, request.sp)
        leg = Leg(new, LegState.WRITE_ONLY)
        match volume.root:
            case Mirror(legs):
                root = Mirror((*legs, leg))
            case _:
                root = Mirror((Leg(volume.root), leg))
        return copied(following(volume, root=root, t1s=(*volume.t1s, *placement.t1s)))

    def replace(self, volume: Volume, path: Path) -> list[Stage]:
        placement = self._placement(volume)
        mirror = at(volume.root, path[:-1])
        new = placement.place(sized(Place(), node_size(mirror)), volume.t1s)
        assert isinstance(mirror, Mirror)
        others = (leg.node for leg in mirror.legs if leg.state is not LegState.AWAY)
        shared = {home for node in others for home in homes(volume, node)}
        if found := shared & {t1.home for t1 in placement.t1s}:
            raise VsError(
                "VS3019",
                Kind.PRECONDITION,
                f"volume {volume.name} has a leg that is away, and another in its place would lie "
                f"on SP {', '.join(sorted(found))}, which has a leg already; it is waited for. Add "
                "an SP or room, or take the leg out with "
                f"`vswitchctl volume mirror remove {volume.name}`",
            )
        return replaced(volume, path, new, placement.t1s)

    def move(self, volume: Volume, request: Move) -> list[Stage]:
        target = view_of(self.views, request.to_sp)
        self._not_drained(request.to_sp)
        chosen = self._chosen(volume, request)
        up = {device.id for device in target.devices if device.up}
        shared = [t1 for t1 in chosen if all(extent.device in up for extent in t1.extents)]
        apart = [t1 for t1 in chosen if t1 not in shared]
        stages: list[Stage] = []
        # What copies comes first: it can be undone until its old legs leave.
        if apart:
            stages += self._by_twins(volume, apart, request.to_sp)
            volume = last(stages)
        if shared:
            stages += rehomed(volume, {t1.id: request.to_sp for t1 in shared})
        return stages

    def relayout(self, volume: Volume, layout: Layout) -> list[Stage]:
        def reaches(sp: SpId, device: DeviceId) -> bool:
            if sp in self.drained:
                raise drained_error(sp)
            found = view_of(self.views, sp).device(device)
            return found is not None and found.up

        placement = partial(self._placement, volume)
        return relayout(volume, layout, self.names, reaches, placement)

    def _by_twins(self, volume: Volume, chosen: Iterable[T1], to_sp: SpId) -> list[Stage]:
        placement = self._placement(volume)
        by_old: dict[T1Id, Leaf] = {}
        for t1 in chosen:
            twin = placement.place(Place(to_sp, None, t1.size), (*volume.t1s, *placement.t1s))
            assert isinstance(twin, Leaf)
            by_old[t1.id] = twin
        root = twins.beside(volume.root, by_old)
        stages = copied(following(volume, root=root, t1s=(*volume.t1s, *placement.t1s)))
        return [*stages, Become(following(last(stages), root=twins.in_place(volume.root, by_old)))]

    def _chosen(self, volume: Volume, request: Move) -> list[T1]:
        if request.from_sp == request.to_sp:
            raise VsError(
                "VS1016", Kind.INVALID, f"moving from SP {request.from_sp} to itself; name another"
            )
        chosen = [
            t1 for t1 in volume.t1s if t1.home == request.from_sp and request.t1 in (None, t1.id)
        ]
        if not chosen:
            what = f"no T1 {request.t1}" if request.t1 else "nothing"
            homes = ", ".join(sorted({t1.home for t1 in volume.t1s}))
            raise VsError(
                "VS2016",
                Kind.NOT_FOUND,
                f"volume {volume.name} has {what} on SP {request.from_sp}; it is on {homes}",
            )
        return chosen

    def _not_drained(self, sp: SpId) -> None:
        if sp in self.drained:
            raise drained_error(sp)

    def _placement(self, volume: Volume) -> Placement:
        space = Space(self.views, self.drained)
        return Placement(volume.id, space, self.new_id, self.names)
