"""Messages of common.proto and vsm.proto <-> the model's values, strictly."""

from __future__ import annotations

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import (
    T1,
    T2,
    Concat,
    DeviceId,
    Extent,
    Hole,
    Leaf,
    Leg,
    LegState,
    Mirror,
    Node,
    SpId,
    Stripe,
    T1Id,
    Volume,
    VolumeId,
)
from vswitchd.model.view import (
    Affected,
    Change,
    CopyMode,
    CopyState,
    CopyView,
    DeviceView,
    DifferingRange,
    Ejection,
    LabelView,
    ObjectKind,
    T1View,
    T2View,
    View,
)
from vswitchd.rpc import common_pb2, vsm_pb2

_LEG_STATES = {
    common_pb2.LEG_STATE_IN_SYNC: LegState.IN_SYNC,
    common_pb2.LEG_STATE_WRITE_ONLY: LegState.WRITE_ONLY,
    common_pb2.LEG_STATE_AWAY: LegState.AWAY,
}
_COPY_STATES = {
    vsm_pb2.COPY_STATE_RUNNING: CopyState.RUNNING,
    vsm_pb2.COPY_STATE_DONE: CopyState.DONE,
    vsm_pb2.COPY_STATE_FAILED: CopyState.FAILED,
}
_COPY_MODES = {
    vsm_pb2.COPY_MODE_FULL: CopyMode.FULL,
    vsm_pb2.COPY_MODE_DELTA: CopyMode.DELTA,
    vsm_pb2.COPY_MODE_COMPARE: CopyMode.COMPARE,
    vsm_pb2.COPY_MODE_REPAIR: CopyMode.REPAIR,
}
_KINDS = {
    vsm_pb2.OBJECT_KIND_T1: ObjectKind.T1,
    vsm_pb2.OBJECT_KIND_T2: ObjectKind.T2,
}
_CHANGES = {
    vsm_pb2.CHANGE_ADDED: Change.ADDED,
    vsm_pb2.CHANGE_REMOVED: Change.REMOVED,
    vsm_pb2.CHANGE_CHANGED: Change.CHANGED,
}
_LEG_CODES = {state: code for code, state in _LEG_STATES.items()}
_COPY_CODES = {state: code for code, state in _COPY_STATES.items()}
COPY_MODE_CODES = {mode: code for code, mode in _COPY_MODES.items()}
_KIND_CODES = {kind: code for code, kind in _KINDS.items()}
_CHANGE_CODES = {change: code for code, change in _CHANGES.items()}


def _bad(what: str) -> VsError:
    return VsError("VS1001", Kind.INVALID, f"the message holds {what}; are both sides one version?")


def node_to_proto(node: Node, homes: dict[T1Id, SpId]) -> common_pb2.Node:
    """A tree; `homes` fills in each leaf's home."""
    match node:
        case Leaf(t1, size):
            leaf = common_pb2.Leaf(t1_id=t1, size=size, home=homes.get(t1, ""))
            return common_pb2.Node(leaf=leaf)
        case Hole(size):
            return common_pb2.Node(hole=common_pb2.Hole(size=size))
        case Mirror(legs):
            made = [
                common_pb2.Leg(state=_LEG_CODES[leg.state], node=node_to_proto(leg.node, homes))
                for leg in legs
            ]
            return common_pb2.Node(mirror=common_pb2.Mirror(legs=made))
        case Stripe(chunk, columns):
            inner = [node_to_proto(column, homes) for column in columns]
            return common_pb2.Node(stripe=common_pb2.Stripe(chunk=chunk, columns=inner))
        case Concat(parts):
            inner = [node_to_proto(part, homes) for part in parts]
            return common_pb2.Node(concat=common_pb2.Concat(parts=inner))


def node_from_proto(message: common_pb2.Node, homes: dict[T1Id, SpId]) -> Node:
    """A tree; each leaf's home is put into `homes`."""
    match message.WhichOneof("kind"):
        case "leaf":
            t1 = T1Id(message.leaf.t1_id)
            homes[t1] = SpId(message.leaf.home)
            return Leaf(t1, message.leaf.size)
        case "hole":
            return Hole(message.hole.size)
        case "mirror":
            legs = []
            for leg in message.mirror.legs:
                if leg.state not in _LEG_STATES:
                    raise _bad("a leg without a state")
                legs.append(Leg(node_from_proto(leg.node, homes), _LEG_STATES[leg.state]))
            return Mirror(tuple(legs))
        case "stripe":
            columns = tuple(node_from_proto(c, homes) for c in message.stripe.columns)
            return Stripe(message.stripe.chunk, columns)
        case "concat":
            return Concat(tuple(node_from_proto(part, homes) for part in message.concat.parts))
        case _:
            raise _bad("a node of no kind")


def extent_to_proto(extent: Extent) -> common_pb2.Extent:
    return common_pb2.Extent(device_id=extent.device, offset=extent.offset, length=extent.length)


def extent_from_proto(message: common_pb2.Extent) -> Extent:
    return Extent(DeviceId(message.device_id), message.offset, message.length)


def t1_to_proto(t1: T1) -> common_pb2.T1Object:
    return common_pb2.T1Object(
        t1_id=t1.id,
        volume_id=t1.volume,
        size=t1.size,
        extents=[extent_to_proto(extent) for extent in t1.extents],
        home=t1.home,
    )


def t1_from_proto(message: common_pb2.T1Object) -> T1:
    return T1(
        id=T1Id(message.t1_id),
        volume=VolumeId(message.volume_id),
        size=message.size,
        extents=tuple(extent_from_proto(extent) for extent in message.extents),
        home=SpId(message.home),
    )


def t2_to_proto(t2: T2) -> common_pb2.T2Object:
    return common_pb2.T2Object(
        volume_id=t2.volume,
        name=t2.name,
        size=t2.size,
        version=t2.version,
        epoch=t2.epoch,
        sp=t2.sp,
        owner=t2.owner,
        root=node_to_proto(t2.root, t2.homes),
        peers={str(sp): address for sp, address in t2.peers.items()},
    )


def t2_from_proto(message: common_pb2.T2Object) -> T2:
    homes: dict[T1Id, SpId] = {}
    root = node_from_proto(message.root, homes)
    return T2(
        volume=VolumeId(message.volume_id),
        name=message.name,
        size=message.size,
        version=message.version,
        epoch=message.epoch,
        sp=SpId(message.sp),
        owner=SpId(message.owner),
        root=root,
        homes=homes,
        peers={SpId(sp): address for sp, address in message.peers.items()},
    )


def volume_to_proto(volume: Volume) -> common_pb2.VolumeRecord:
    homes = {t1.id: t1.home for t1 in volume.t1s}
    return common_pb2.VolumeRecord(
        volume_id=volume.id,
        name=volume.name,
        size=volume.size,
        version=volume.version,
        epoch=volume.epoch,
        root=node_to_proto(volume.root, homes),
        t1s=[t1_to_proto(t1) for t1 in volume.t1s],
        serving=volume.serving,
        owner=volume.owner,
    )


def volume_from_proto(message: common_pb2.VolumeRecord) -> Volume:
    return Volume(
        id=VolumeId(message.volume_id),
        name=message.name,
        size=message.size,
        version=message.version,
        epoch=message.epoch,
        root=node_from_proto(message.root, {}),
        t1s=tuple(t1_from_proto(t1) for t1 in message.t1s),
        serving=tuple(SpId(sp) for sp in message.serving),
        owner=SpId(message.owner),
    )


def device_view_to_proto(device: DeviceView) -> vsm_pb2.DeviceView:
    return vsm_pb2.DeviceView(
        device_id=device.id,
        uri=device.uri,
        size=device.size,
        allocation_unit=device.unit,
        up=device.up,
        free=[extent_to_proto(extent) for extent in device.free],
        error=device.error,
        direct=device.direct,
        checksums=device.checksums,
    )


def device_view_from_proto(message: vsm_pb2.DeviceView) -> DeviceView:
    device = DeviceId(message.device_id)
    return DeviceView(
        id=device,
        uri=message.uri,
        size=message.size,
        unit=message.allocation_unit,
        up=message.up,
        free=tuple(Extent(device, run.offset, run.length) for run in message.free),
        error=message.error,
        direct=message.direct,
        checksums=message.checksums,
    )


def view_to_proto(view: View) -> vsm_pb2.View:
    return vsm_pb2.View(
        sp=view.sp,
        incarnation=view.incarnation,
        term=view.term,
        mvsm_active=view.mvsm_active,
        devices=[device_view_to_proto(device) for device in view.devices],
        t1s=[_t1_view_to_proto(held) for held in view.t1s],
        t2s=[_t2_view_to_proto(v) for v in view.t2s],
        copies=[
            vsm_pb2.CopyView(
                volume_id=copy.volume,
                path=copy.path,
                state=_COPY_CODES[copy.state],
                copied_bytes=copy.copied,
                total_bytes=copy.total,
                error=copy.error,
                durable_bytes=copy.durable,
                bytes_per_second=copy.rate,
                differing_bytes=copy.differing_bytes,
                differing=[
                    vsm_pb2.DifferingRange(path=one.path, offset=one.offset, length=one.length)
                    for one in copy.differing
                ],
            )
            for copy in view.copies
        ],
        other_t1s=view.other_t1s,
        ejections=map(ejection_to_proto, view.ejections),
    )


def ejection_to_proto(ejection: Ejection) -> vsm_pb2.Ejection:
    return vsm_pb2.Ejection(
        t2=t2_to_proto(ejection.t2), base_epoch=ejection.base, since_epoch=ejection.since
    )


def ejection_from_proto(message: vsm_pb2.Ejection) -> Ejection:
    return Ejection(t2_from_proto(message.t2), message.base_epoch, message.since_epoch)


def copy_mode_from_proto(code: vsm_pb2.CopyMode.ValueType) -> CopyMode:
    """VsError VS1045 for a mode that is none."""
    if code not in _COPY_MODES:
        raise _bad("a copy without a mode")
    return _COPY_MODES[code]


def _copy_from_proto(message: vsm_pb2.CopyView) -> CopyView:
    if message.state not in _COPY_STATES:
        raise _bad("a copy without a state")
    return CopyView(
        volume=VolumeId(message.volume_id),
        path=tuple(message.path),
        state=_COPY_STATES[message.state],
        copied=message.copied_bytes,
        total=message.total_bytes,
        error=message.error,
        durable=message.durable_bytes,
        rate=message.bytes_per_second,
        differing_bytes=message.differing_bytes,
        differing=tuple(
            DifferingRange(tuple(one.path), one.offset, one.length) for one in message.differing
        ),
    )


def label_to_proto(label: LabelView) -> vsm_pb2.DeviceLabel:
    return vsm_pb2.DeviceLabel(
        device_id=label.device,
        uri=label.uri,
        cluster_id=label.cluster,
        generation=label.generation,
        copies=label.copies,
        t1s=[_t1_view_to_proto(held) for held in label.t1s],
        error=label.error,
    )


def label_from_proto(message: vsm_pb2.DeviceLabel) -> LabelView:
    return LabelView(
        device=DeviceId(message.device_id),
        uri=message.uri,
        cluster=message.cluster_id,
        generation=message.generation,
        copies=message.copies,
        t1s=tuple(map(_t1_view_from_proto, message.t1s)),
        error=message.error,
    )


def _t2_view_to_proto(held: T2View) -> vsm_pb2.T2View:
    return vsm_pb2.T2View(
        t2=t2_to_proto(held.t2),
        active=held.active,
        resync_percent=held.resync_percent,
        access_version=held.access,
    )


def _t2_view_from_proto(message: vsm_pb2.T2View) -> T2View:
    t2 = t2_from_proto(message.t2)
    return T2View(t2, message.active, message.resync_percent, message.access_version)


def _t1_view_to_proto(held: T1View) -> vsm_pb2.T1View:
    return vsm_pb2.T1View(t1=t1_to_proto(held.t1), epoch=held.epoch)


def _t1_view_from_proto(message: vsm_pb2.T1View) -> T1View:
    return T1View(t1_from_proto(message.t1), message.epoch)


def view_from_proto(message: vsm_pb2.View) -> View:
    return View(
        sp=SpId(message.sp),
        incarnation=message.incarnation,
        term=message.term,
        mvsm_active=message.mvsm_active,
        devices=tuple(device_view_from_proto(device) for device in message.devices),
        t1s=tuple(map(_t1_view_from_proto, message.t1s)),
        t2s=tuple(map(_t2_view_from_proto, message.t2s)),
        copies=tuple(_copy_from_proto(copy) for copy in message.copies),
        other_t1s=message.other_t1s,
        ejections=tuple(map(ejection_from_proto, message.ejections)),
    )


def affected_to_proto(affected: Affected) -> vsm_pb2.AffectedObject:
    return vsm_pb2.AffectedObject(
        sp=affected.sp,
        kind=_KIND_CODES[affected.kind],
        object_id=affected.object_id,
        change=_CHANGE_CODES[affected.change],
    )


def affected_from_proto(message: vsm_pb2.AffectedObject) -> Affected:
    if message.kind not in _KINDS or message.change not in _CHANGES:
        raise _bad("an affected object of no kind or change")
    return Affected(
        SpId(message.sp), _KINDS[message.kind], message.object_id, _CHANGES[message.change]
    )
