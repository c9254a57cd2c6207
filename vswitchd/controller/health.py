"""What is well and what is not: states of volumes and the cluster's checks. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from vswitchd.model.objects import LegState, Mirror, SpId, Volume, walk
from vswitchd.model.view import View
from vswitchd.ports import OperationRecord


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is not well. `code` is stable; `severity` warning or error."""

    code: str
    severity: str
    message: str


def conditions(volume: Volume, views: Mapping[SpId, View]) -> tuple[str, list[str]]:
    """("online" | "degraded" | "offline", why)."""
    why: list[str] = []
    needed = {t1.home for t1 in volume.t1s} | set(volume.serving)
    why += [f"SP {sp} is down" for sp in sorted(needed - set(views))]
    served = []
    for sp in volume.serving:
        held = views[sp].t2(volume.id) if sp in views else None
        if held is not None:
            served.append(sp)
            if held.resync_percent < 100:
                why.append(f"resync {held.resync_percent}%")
        elif sp in views:
            why.append(f"SP {sp} does not serve it yet")
    homes = {t1.home: views[t1.home] for t1 in volume.t1s if t1.home in views}
    why += [
        f"SP {t1.home} lacks T1 object {t1.id}"
        for t1 in volume.t1s
        if t1.home in homes and homes[t1.home].t1(t1.id) is None
    ]
    for _, node in walk(volume.root):
        if isinstance(node, Mirror):
            behind = sum(leg.state is not LegState.IN_SYNC for leg in node.legs)
            if behind:
                why.append(f"{len(node.legs) - behind} of {len(node.legs)} legs in sync")
    if not served:
        return "offline", why
    return ("degraded" if why else "online"), why


def concerns(volume: Volume, sp: SpId, *, keep_serving: bool = False) -> bool:
    """The volume has something at the SP that has to go before it is empty."""
    serves = sp == volume.owner if keep_serving else sp in volume.serving
    return serves or any(t1.home == sp for t1 in volume.t1s)


def checks(
    known: Iterable[SpId],
    up: Collection[SpId],
    master: SpId | None,
    volumes: Iterable[Volume],
    views: Mapping[SpId, View],
    operations: Iterable[OperationRecord],
    drained: Mapping[SpId, bool],
    stuck: Mapping[tuple[SpId, str], str],
) -> list[Check]:
    """Everything that an operator should know of. `stuck`: why (SP, volume) can't be drained."""
    found = [Check("SP_DOWN", "warning", f"SP {sp} is down") for sp in known if sp not in up]
    if master is None:
        text = "no SP is master: nothing can be restructured until one is"
        found.append(Check("NO_MASTER", "warning", text))
    volumes = tuple(volumes)
    for volume in volumes:
        state, why = conditions(volume, views)
        if state == "offline":
            found.append(Check("VOLUME_OFFLINE", "error", f"{volume.name}: {', '.join(why)}"))
        elif state == "degraded":
            found.append(Check("VOLUME_DEGRADED", "warning", f"{volume.name}: {', '.join(why)}"))
    for sp, view in sorted(views.items()):
        found += [
            Check("DEVICE_DOWN", "error", f"{device.uri} at SP {sp}: {device.error}")
            for device in view.devices
            if not device.up
        ]
    for sp, keep in sorted(drained.items()):
        if left := sum(concerns(volume, sp, keep_serving=keep) for volume in volumes):
            found.append(Check("SP_DRAINING", "warning", f"{sp}: {left} volumes left to move"))
    found += [
        Check("DRAIN_STUCK", "warning", f"{name} can't leave {sp}: {why}")
        for (sp, name), why in sorted(stuck.items())
    ]
    operations = tuple(operations)
    found += [
        Check("OPERATION_PAUSED", "warning", f"{op.kind} of {op.volume_name} ({op.id}) is paused")
        for op in operations
        if op.state == "paused"
    ]
    found += [
        Check("OPERATION_WAITING", "warning", f"{op.kind} of {op.volume_name}: {op.waiting_for}")
        for op in operations
        if op.waiting_for
    ]
    return found
