"""The collected state held against the store's word, before anything is planned on it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import T1, Hole, LegState, Mirror, SpId, T1Id, Volume, walk
from vswitchd.model.view import View


def view_of(views: Sequence[View], sp: str) -> View:
    """The SP's view; VsError VS3010 if it was not heard."""
    for view in views:
        if view.sp == sp:
            return view
    raise VsError(
        "VS3010",
        Kind.PRECONDITION,
        f"SP {sp} is not known to be up; `vswitchctl sp list` shows those that are",
    )


def require_reachable(volume: Volume, views: Sequence[View]) -> None:
    """Every SP that holds an object of the volume was heard."""
    for sp in sorted({t1.home for t1 in volume.t1s} | set(volume.serving)):
        view_of(views, sp)


def require_agreement(
    volume: Volume,
    views: Sequence[View],
    absent: Collection[SpId] = (),
    failing: Collection[T1Id] = (),
) -> dict[T1Id, T1]:
    """Every SP but the absent ones holds just what the store says; the T1 objects as their homes
    hold them, but for those that fail.

    A T1 object may be longer than the store says: an extension that was undone stays.
    """
    held = {
        t1.id: _held(t1, view_of(views, t1.home))
        for t1 in volume.t1s
        if t1.home not in absent and t1.id not in failing
    }
    for sp in volume.serving:
        if sp in absent:
            continue
        active = view_of(views, sp).t2(volume.id)
        now = None if active is None else (active.t2.version, active.t2.epoch)
        if active is None or now != (volume.version, volume.epoch):
            has = "no active T2 object" if active is None else f"version {active.t2.version}"
            raise VsError(
                "VS3011",
                Kind.PRECONDITION,
                f"SP {sp} holds {has} of volume {volume.name}, the store says version "
                f"{volume.version}; wait until the SP has caught up, then try again",
            )
    return held


def require_settled(volume: Volume) -> None:
    """No leg is being copied to and no range is out: VsError VS3014."""
    for path, node in walk(volume.root):
        unsettled = isinstance(node, Hole) or (
            isinstance(node, Mirror) and any(leg.state is not LegState.IN_SYNC for leg in node.legs)
        )
        if unsettled:
            place = ".".join(map(str, path)) or "the root"
            raise VsError(
                "VS3014",
                Kind.PRECONDITION,
                f"volume {volume.name} has a leg that is not in sync at {place}; remove the leg "
                "or let its operation end first",
            )


def _held(t1: T1, view: View) -> T1:
    found = view.t1(t1.id)
    if found is None or found.t1.extents[: len(t1.extents)] != t1.extents:
        problem = "does not hold" if found is None else "has other extents for"
        raise VsError(
            "VS3015",
            Kind.PRECONDITION,
            f"SP {view.sp} {problem} T1 {t1.id}, unlike the store; check its devices",
        )
    for extent in t1.extents:
        device = view.device(extent.device)
        if device is None or not device.up:
            why = "it does not reach it" if device is None else device.error or "it is down"
            raise VsError(
                "VS3012",
                Kind.PRECONDITION,
                f"T1 {t1.id} on SP {view.sp} needs device {extent.device}: {why}; "
                "bring it back, then try again",
            )
    return found.t1
