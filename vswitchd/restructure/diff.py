"""What is otherwise in one version of a volume than in another, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vswitchd.model.layout import format_size, print_volume
from vswitchd.model.objects import DeviceId, LegState, Mirror, Volume, walk


def changes(
    before: Volume | None, after: Volume | None, names: Mapping[DeviceId, str] | None = None
) -> tuple[str, ...]:
    """A sentence for each change; none if nothing that people can see has changed."""
    if after is None:
        return ("deleted",) if before is not None else ()
    if before is None:
        return (f"created as {print_volume(after, names)}, served by {', '.join(after.serving)}",)
    return tuple(_changes(before, after, names))


def _changes(before: Volume, after: Volume, names: Mapping[DeviceId, str] | None) -> Iterator[str]:
    if after.name != before.name:
        yield f"name {before.name} -> {after.name}"
    if after.size != before.size:
        yield f"size {format_size(before.size)} -> {format_size(after.size)}"
    old, new = print_volume(before, names), print_volume(after, names)
    if old != new:
        yield f"layout {old} -> {new}"
    then, now = _behind(before), _behind(after)
    if then != now:
        yield f"legs not in sync {then} -> {now}"
    homes = {t1.id: t1.home for t1 in before.t1s}
    for t1 in after.t1s:
        if t1.id not in homes:
            yield f"T1 {t1.id} added at {t1.home}"
        elif homes[t1.id] != t1.home:
            yield f"T1 {t1.id} moved from {homes[t1.id]} to {t1.home}"
    kept = {t1.id for t1 in after.t1s}
    for t1_id, home in homes.items():
        if t1_id not in kept:
            yield f"T1 {t1_id} removed from {home}"
    for sp in after.serving:
        if sp not in before.serving:
            yield f"served by {sp} too"
    for sp in before.serving:
        if sp not in after.serving:
            yield f"no longer served by {sp}"
    if after.owner != before.owner:
        yield f"owner {before.owner} -> {after.owner}"


def _behind(volume: Volume) -> int:
    return sum(
        leg.state is not LegState.IN_SYNC
        for _, node in walk(volume.root)
        if isinstance(node, Mirror)
        for leg in node.legs
    )
