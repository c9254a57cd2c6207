"""Messages that the tests share."""

from __future__ import annotations

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from vswitchd.rpc import common_pb2, device_pb2, operation_pb2, processor_pb2, volume_pb2

GIB = 1 << 30

RUNNING = operation_pb2.OPERATION_STATE_RUNNING
DONE = operation_pb2.OPERATION_STATE_DONE
FAILED = operation_pb2.OPERATION_STATE_FAILED
CANCELLED = operation_pb2.OPERATION_STATE_CANCELLED


def operation(
    state: operation_pb2.OperationState.ValueType = RUNNING,
    *,
    copied: int = 0,
    total: int = 0,
    code: str = "",
    message: str = "",
    name: str = "op-1",
    waiting_for: str = "",
) -> operation_pb2.Operation:
    """A mirror_add of db1 with two steps, the first of them done."""
    made = operation_pb2.Operation(
        operation_id=name,
        kind="mirror_add",
        volume="db1",
        state=state,
        copied_bytes=copied,
        total_bytes=total,
        base_version=12,
        waiting_for=waiting_for,
        steps=[
            operation_pb2.OperationStep(
                kind="put_t1", sp="sp-b", object="t-02", state=operation_pb2.STEP_STATE_DONE
            ),
            operation_pb2.OperationStep(
                kind="copy",
                sp="sp-a",
                object="leg 1",
                state=operation_pb2.STEP_STATE_RUNNING,
                copy_bytes=total,
            ),
        ],
    )
    if code:
        made.error.code = code
        made.error.message = message
    if state in (DONE, FAILED, CANCELLED):
        made.ended.CopyFrom(Timestamp(seconds=1))
    return made


def leaf(t1_id: str, home: str, size: int = 20 * GIB) -> common_pb2.Node:
    return common_pb2.Node(leaf=common_pb2.Leaf(t1_id=t1_id, size=size, home=home))


def mirror(*legs: tuple[common_pb2.Node, common_pb2.LegState.ValueType]) -> common_pb2.Node:
    return common_pb2.Node(
        mirror=common_pb2.Mirror(
            legs=[common_pb2.Leg(node=node, state=state) for node, state in legs]
        )
    )


def volume(name: str = "db1") -> volume_pb2.Volume:
    """20 GiB mirrored, its second leg being copied to, served from sp-a and sp-c."""
    root = mirror(
        (leaf("t-01", "sp-a"), common_pb2.LEG_STATE_IN_SYNC),
        (leaf("t-02", "sp-b"), common_pb2.LEG_STATE_WRITE_ONLY),
    )
    t1s = [
        common_pb2.T1Object(
            t1_id=t1_id,
            size=20 * GIB,
            home=home,
            extents=[common_pb2.Extent(device_id=device, offset=1 << 22, length=20 * GIB)],
        )
        for t1_id, home, device in (("t-01", "sp-a", "id-0"), ("t-02", "sp-b", "id-3"))
    ]
    about: dict[str, Any] = {
        "name": name,
        "size": 20 * GIB,
        "version": 13,
        "epoch": 9,
        "owner": "sp-a",
    }
    return volume_pb2.Volume(
        record=common_pb2.VolumeRecord(**about, root=root, t1s=t1s, serving=["sp-a", "sp-c"]),
        state=volume_pb2.VOLUME_STATE_DEGRADED,
        layout="mirror(sp-a/disk0:20G, sp-b/disk3:20G)",
        operation_id="op-1",
        t2s=[common_pb2.T2Object(**about, sp=sp, root=root) for sp in ("sp-a", "sp-b")],
        nbd_uris=[f"nbd://127.0.0.1:10809/{name}"],
        conditions=["1 of 2 legs in sync"],
    )


def device(name: str, device_id: str) -> device_pb2.Device:
    return device_pb2.Device(
        device_id=device_id,
        name=name,
        size=100 * GIB,
        allocated=20 * GIB,
        paths=[device_pb2.DevicePath(sp="sp-a", uri=f"nbd://[fe80::1]:10809/{name}", up=True)],
    )


def processor(sp: str) -> processor_pb2.Processor:
    return processor_pb2.Processor(
        sp=sp, up=sp != "sp-c", master=sp == "sp-b", t1_objects=3, nbd_address="127.0.0.1:10809"
    )


def planned() -> operation_pb2.Operation:
    """The plan of a mirror_add of db1."""
    steps = [
        operation_pb2.OperationStep(kind="put_t1", sp="sp-b", redundancy=1),
        operation_pb2.OperationStep(
            kind="activate_t2", sp="sp-a", redundancy=1, expected_pause_seconds=0.02
        ),
        operation_pb2.OperationStep(kind="activate_t2", sp="sp-b", redundancy=1),
        operation_pb2.OperationStep(kind="copy", sp="sp-a", redundancy=1, copy_bytes=20 * GIB),
    ]
    return operation_pb2.Operation(
        operation_id="op-7",
        kind="mirror_add",
        volume="db1",
        state=operation_pb2.OPERATION_STATE_PLANNED,
        base_version=12,
        target_version=14,
        layout_before="sp-a/disk0:20G",
        layout_after="mirror(sp-a/disk0:20G, sp-b/disk3:20G)",
        total_bytes=20 * GIB,
        no_return_step=3,
        undone_by="volume restore db1 --version 12",
        reserved=[operation_pb2.Reservation(sp="sp-b", device_id="id-3", bytes=20 * GIB)],
        steps=steps,
    )
