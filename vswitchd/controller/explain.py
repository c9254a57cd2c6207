"""Why an object is as it is, in sentences: where it is, who made it so, what refers to it, what it
waits for. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vswitchd.controller.health import concerns, conditions
from vswitchd.model.layout import format_size, print_volume
from vswitchd.model.objects import (
    T1,
    DeviceId,
    LegState,
    Mirror,
    SpId,
    Volume,
    VolumeId,
    leaves,
    walk,
)
from vswitchd.model.view import View
from vswitchd.ports import DeviceRecord, OperationRecord, ProcessorRecord, VersionRecord
from vswitchd.restructure.diff import changes


@dataclass(frozen=True, slots=True)
class Known:
    """All that answers are made from. `history` is of the volumes that were asked for."""

    volumes: Sequence[Volume]
    devices: Sequence[DeviceRecord]
    processors: Mapping[SpId, ProcessorRecord]
    operations: Sequence[OperationRecord]
    drained: Mapping[SpId, bool]
    views: Mapping[SpId, View]
    history: Mapping[VolumeId, Sequence[VersionRecord]]
    master: SpId | None

    @property
    def names(self) -> dict[DeviceId, str]:
        """What people call devices."""
        return {record.id: record.name for record in self.devices}


@dataclass(frozen=True, slots=True)
class Explanation:
    """One object's sentences."""

    kind: str
    object: str
    sentences: tuple[str, ...]


def explain(name: str, known: Known) -> list[Explanation]:
    """Of every object that has the name or id; none if there is none."""
    found: list[Explanation] = []
    for volume in known.volumes:
        if name in (volume.name, volume.id):
            found.append(Explanation("volume", volume.name, tuple(_volume(volume, known))))
        found += [
            Explanation("t1", t1.id, tuple(_t1(t1, volume, known)))
            for t1 in volume.t1s
            if t1.id == name
        ]
    for device in known.devices:
        if name in (device.name, device.id):
            found.append(Explanation("device", device.name, tuple(_device(device, known))))
    if SpId(name) in known.processors:
        found.append(Explanation("sp", name, tuple(_processor(SpId(name), known))))
    for operation in known.operations:
        if operation.id == name:
            found.append(Explanation("operation", name, tuple(_operation(operation))))
    return found


def _volume(volume: Volume, known: Known) -> Iterator[str]:
    yield (
        f"It has {format_size(volume.size)} as {print_volume(volume, known.names)}, tree version "
        f"{volume.version}, epoch {volume.epoch}."
    )
    yield (
        f"Hosts may connect at {', '.join(volume.serving)}; {volume.owner} is the owner, which "
        "puts writes to mirrors in order."
    )
    yield from _last_change(volume, known)
    state, why = conditions(volume, known.views)
    yield f"It is {state}{': ' + '; '.join(why) if why else ''}."
    for operation in known.operations:
        if operation.volume == volume.id and operation.ended is None:
            yield from _operation(operation)
    if why:
        yield (
            f"Next: `vswitchctl volume show {volume.name} --tree` shows where, `vswitchctl fsck` "
            "what mends it."
        )


def _last_change(volume: Volume, known: Known) -> Iterator[str]:
    rows = known.history.get(volume.id, ())
    for index, row in enumerate(rows):
        if row.version == volume.version:
            before = rows[index - 1].volume if index else None
            what = "; ".join(changes(before, row.volume, known.names)) or "nothing to be seen"
            yield f"{row.why} by {row.who or 'nobody known'} made it so: {what}."


def _t1(t1: T1, volume: Volume, known: Known) -> Iterator[str]:
    places = ", ".join(
        f"{known.names.get(e.device, e.device)} at {e.offset} ({format_size(e.length)})"
        for e in t1.extents
    )
    yield f"It holds {format_size(t1.size)} of volume {volume.name}: {places}."
    yield f"Its home is SP {t1.home}; the tree there refers to it as an LRN, others as an RRN."
    behind = any(
        leg.state is not LegState.IN_SYNC and any(leaf.t1 == t1.id for leaf in leaves(leg.node))
        for _, node in walk(volume.root)
        if isinstance(node, Mirror)
        for leg in node.legs
    )
    yield "It is being copied to, and not read yet." if behind else "It is in sync."
    for row in known.history.get(volume.id, ()):
        if row.volume is not None and any(one.id == t1.id for one in row.volume.t1s):
            yield f"It is there since version {row.version} ({row.why})."
            break
    view = known.views.get(t1.home)
    held = view.t1(t1.id) if view is not None else None
    if view is None:
        yield f"SP {t1.home} does not answer: I/O to it waits. Next: start that SP."
    elif held is None:
        yield (
            f"SP {t1.home} does not hold it now: I/O to it waits. Next: look at its devices "
            f"(`vswitchctl explain {t1.home}`)."
        )
    else:
        yield f"It serves epochs from {held.epoch} on; the volume's is {volume.epoch}."
    users = [
        f"{sp} ({'LRN' if sp == t1.home else 'RRN'})"
        for sp, seen in sorted(known.views.items())
        if any(t1.id in tree.t2.homes for tree in seen.t2s_of(volume.id) if tree.active)
    ]
    yield f"Trees that refer to it now: {', '.join(users) or 'none'}."


def _device(record: DeviceRecord, known: Known) -> Iterator[str]:
    sums = ", with checksums" if record.checksums else ""
    yield f"It has {format_size(record.size)}, in units of {format_size(record.unit)}{sums}."
    for sp, uri in sorted(record.paths.items()):
        view = known.views.get(sp)
        device = view.device(record.id) if view is not None else None
        if device is None or not device.up:
            why = "SP does not answer" if view is None else device.error if device else "not open"
            yield f"At SP {sp} it is down ({uri}): {why}. Next: bring it back there."
        else:
            free = sum(run.length for run in device.free)
            direct = ", past the page cache" if sp in record.direct else ""
            yield f"At SP {sp} it is up ({uri}{direct}), {format_size(free)} free."
    for volume in known.volumes:
        held = [t1.id for t1 in volume.t1s if any(e.device == record.id for e in t1.extents)]
        if held:
            yield f"It holds {', '.join(held)} of volume {volume.name}."


def _processor(sp: SpId, known: Known) -> Iterator[str]:
    record = known.processors[sp]
    up = sp in known.views
    yield (
        f"It is {'up' if up else 'down'}{', and master' if sp == known.master else ''}; its VSM is "
        f"at {record.vsm_address}, peers reach it at {record.peer_address}, hosts at "
        f"{record.nbd_address}."
    )
    held = [volume for volume in known.volumes if concerns(volume, sp)]
    for volume in held:
        objects = [t1.id for t1 in volume.t1s if t1.home == sp]
        parts = [f"is home of {', '.join(objects)}"] if objects else []
        parts += ["serves it"] if sp in volume.serving else []
        parts += ["is its owner"] if sp == volume.owner else []
        yield f"Of volume {volume.name} it {' and '.join(parts)}."
    if sp in known.drained:
        left = f"{len(held)} volumes are left to move" if held else "it is empty"
        yield f"It is drained: nothing new goes there, {left}."
    if not up:
        yield "Next: start it; what it holds is not reached until then."


def _operation(operation: OperationRecord) -> Iterator[str]:
    who = f" for {operation.requested_by}" if operation.requested_by else ""
    yield (
        f"Operation {operation.id} ({operation.kind} of {operation.volume_name}{who}) is "
        f"{operation.state}, {operation.cursor} steps done."
    )
    if operation.waiting_for:
        yield f"It waits: {operation.waiting_for}."
    if operation.error:
        yield f"It was undone because: {operation.error}."
    if operation.state == "paused":
        yield f"Next: `vswitchctl operation resume {operation.id}`."
