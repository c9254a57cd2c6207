"""The public messages made from records and views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from vswitchd.api.convert import t2_to_proto, volume_to_proto
from vswitchd.controller.health import conditions
from vswitchd.controller.registry import Registry
from vswitchd.errors import Kind, VsError
from vswitchd.model.access import Access
from vswitchd.model.layout import print_volume
from vswitchd.model.objects import DeviceId, SpId, Volume, VolumeId
from vswitchd.model.view import View
from vswitchd.ports import (
    AccessRecord,
    DeviceRecord,
    OperationRecord,
    ProcessorRecord,
    VersionRecord,
)
from vswitchd.restructure.codec import decode_plan, describe
from vswitchd.restructure.diff import changes
from vswitchd.restructure.preview import preview
from vswitchd.restructure.steps import Copy
from vswitchd.rpc import device_pb2, operation_pb2, processor_pb2, volume_pb2

T = TypeVar("T")

#: Items on a page when the request does not say, and at most.
PAGE = 100
MAX_PAGE = 1000


def page(items: Sequence[T], size: int, token: str) -> tuple[Sequence[T], str]:
    """One page and the next one's token; tokens are offsets."""
    if token and not token.isdigit():
        raise VsError("VS1050", Kind.INVALID, "the page token is not one of this server's")
    start = int(token or 0)
    end = start + min(size or PAGE, MAX_PAGE)
    return items[start:end], str(end) if end < len(items) else ""


def stamp(seconds: float) -> Timestamp:
    """Seconds since the Unix epoch as a message."""
    message = Timestamp()
    message.FromNanoseconds(int(seconds * 1e9))
    return message


def operation_to_proto(
    record: OperationRecord,
    names: Mapping[DeviceId, str],
    expected_pause: float,
    rate: int = 0,
) -> operation_pb2.Operation:
    """An operation with its steps in words. `names`: what people call devices; `expected_pause`:
    seconds that hosts may wait for a swap; `rate`: bytes per second that it copies lately."""
    plan = decode_plan(record.plan)
    shown = preview(plan)
    current = next((g for g in plan.groups if g[1] > record.cursor), (0, 0))
    running = record.state in ("running", "undoing")
    steps = []
    for index, (step, seen) in enumerate(zip(plan.steps, shown.steps, strict=True)):
        kind, sp, what, size = describe(step)
        if index < record.cursor or record.state == "done":
            state = operation_pb2.STEP_STATE_DONE
        elif running and current[0] <= index < current[1]:
            state = operation_pb2.STEP_STATE_RUNNING
        else:
            state = operation_pb2.STEP_STATE_PENDING
        steps.append(
            operation_pb2.OperationStep(
                kind=kind,
                sp=sp,
                object=what,
                state=state,
                copy_bytes=size,
                redundancy=seen.redundancy,
                expected_pause_seconds=expected_pause if seen.pause else 0.0,
            )
        )
    message = operation_pb2.Operation(
        operation_id=record.id,
        kind=record.kind,
        volume=record.volume_name,
        state=operation_pb2.OperationState.Value(f"OPERATION_STATE_{record.state.upper()}"),
        steps=steps,
        copied_bytes=record.copied,
        total_bytes=sum(step.bytes for step in plan.steps if isinstance(step, Copy)),
        created=stamp(record.created),
        request_id=record.request_id,
        base_version=plan.base.version if plan.base else 0,
        waiting_for=record.waiting_for,
        target_version=shown.target.version if shown.target else 0,
        no_return_step=plan.no_return,
        undone_by=shown.undone_by,
        reserved=[
            operation_pb2.Reservation(sp=sp, device_id=device, bytes=size)
            for (sp, device), size in sorted(shown.reserved.items())
        ],
        layout_before=print_volume(plan.base, names) if plan.base else "",
        layout_after=print_volume(shown.target, names) if shown.target else "",
        options=operation_pb2.OperationOptions(
            priority=record.priority, bytes_per_second=record.rate, adaptive=record.adaptive
        ),
        bytes_per_second=rate,
        requested_by=record.requested_by,
        report=record.report,
    )
    if record.ended is not None and record.state != "planned":
        message.ended.CopyFrom(stamp(record.ended))
    if record.error_code:
        message.error.code = record.error_code
        message.error.message = record.error
    return message


def volume_message(
    volume: Volume,
    views: Mapping[SpId, View],
    registry: Registry,
    names: Mapping[DeviceId, str],
    operation: OperationRecord | None,
    access: Access,
) -> volume_pb2.Volume:
    """A volume with its state, and what each SP said it holds."""
    state, why = conditions(volume, views)
    if operation is not None and operation.kind == "delete":
        state = "deleting"
    elif operation is not None and operation.kind == "create" and state == "offline":
        state = "creating"
    held = [
        t2.t2
        for _, view in sorted(views.items())
        for t2 in view.t2s
        if t2.active and t2.t2.volume == volume.id
    ]
    return volume_pb2.Volume(
        record=volume_to_proto(volume),
        state=volume_pb2.VolumeState.Value(f"VOLUME_STATE_{state.upper()}"),
        layout=print_volume(volume, names),
        operation_id=operation.id if operation is not None else "",
        t2s=[t2_to_proto(t2) for t2 in held],
        nbd_uris=nbd_uris(volume, registry, access),
        conditions=why,
    )


def history_message(
    volume_id: VolumeId,
    rows: Sequence[VersionRecord],
    names: Mapping[DeviceId, str],
    access: Sequence[AccessRecord],
) -> volume_pb2.VolumeHistory:
    """Every version of a volume, with what each changed, and every change of who may use it."""
    history = volume_pb2.VolumeHistory(volume_id=volume_id)
    before: Volume | None = None
    for row in rows:
        volume = row.volume
        version = history.versions.add(
            version=row.version,
            at=stamp(row.at),
            who=row.who,
            why=row.why,
            changes=changes(before, volume, names),
            deleted=volume is None,
        )
        if volume is not None:
            history.name = volume.name
            version.layout = print_volume(volume, names)
            version.size = volume.size
            version.serving.extend(volume.serving)
            version.owner = volume.owner
        before = volume
    for one in access:
        history.access.add(version=one.version, at=stamp(one.at), who=one.who, what=one.what)
    return history


def nbd_uris(volume: Volume, registry: Registry, access: Access) -> list[str]:
    """Where hosts may connect, at the owner first; nowhere if the volume is closed to NBD."""
    if not access.nbd:
        return []
    sps = sorted(volume.serving, key=lambda sp: sp != volume.owner)
    known = [registry.records[sp] for sp in sps if sp in registry.records]
    return [_nbd_uri(record.nbd_address, volume.name) for record in known]


def _nbd_uri(address: str, volume: str) -> str:
    """The URI of a volume at an SP's NBD address."""
    if address.startswith("unix:"):
        return f"nbd+unix:///{volume}?socket={address.removeprefix('unix:')}"
    return f"nbd://{address}/{volume}"


def processor_message(
    record: ProcessorRecord, registry: Registry, view: View | None, *, drained: bool, volumes: int
) -> processor_pb2.Processor:
    """An SP as administrators see it; `volumes` have something there."""
    return processor_pb2.Processor(
        sp=record.sp,
        up=registry.is_up(record.sp),
        master=registry.master == record.sp,
        vsm_address=record.vsm_address,
        peer_address=record.peer_address,
        nbd_address=record.nbd_address,
        incarnation=record.incarnation,
        t1_objects=len(view.t1s) if view else 0,
        t2_objects=sum(t2.active for t2 in view.t2s) if view else 0,
        version=record.version,
        drained=drained,
        volumes=volumes,
    )


def device_message(record: DeviceRecord, views: Mapping[SpId, View]) -> device_pb2.Device:
    """A device with all of its paths."""
    seen = [d for view in views.values() for d in view.devices if d.id == record.id and d.up]
    free = min((sum(run.length for run in d.free) for d in seen), default=record.size)
    paths = []
    for sp, uri in sorted(record.paths.items()):
        device = views[sp].device(record.id) if sp in views else None
        up = device is not None and device.up
        direct = sp in record.direct
        paths.append(device_pb2.DevicePath(sp=sp, uri=uri, up=up, direct=direct))
    return device_pb2.Device(
        device_id=record.id,
        name=record.name,
        size=record.size,
        allocated=record.size - free,
        allocation_unit=record.unit,
        paths=paths,
        checksums=record.checksums,
    )
