"""Holds the store, the SPs and the labels against each other: three accounts of one truth."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.e2e import labels
from tests.e2e.cluster import Cluster, leaves
from vswitchd.rpc import common_pb2, volume_pb2, vsm_pb2


def shape(t1: common_pb2.T1Object) -> tuple[str, str, int, tuple[tuple[str, int, int], ...]]:
    """What all three accounts must say of a T1 object."""
    extents = tuple((e.device_id, e.offset, e.length) for e in t1.extents)
    return t1.t1_id, t1.home, t1.size, extents


def no_dangling(views: dict[str, vsm_pb2.View]) -> None:
    """No active T2 object refers to a T1 object that its home does not hold."""
    held = {(sp, t1.t1.t1_id) for sp, view in views.items() for t1 in view.t1s}
    for sp, view in views.items():
        for t2 in view.t2s:
            if t2.active:
                for leaf in leaves(t2.t2.root):
                    assert (leaf.home, leaf.t1_id) in held, (
                        f"{t2.t2.name} at {sp} refers to {leaf.t1_id}, which {leaf.home} lacks"
                    )


def serving(volumes: Iterable[volume_pb2.Volume], views: dict[str, vsm_pb2.View]) -> bool:
    """Each SP that should serve a volume is active with the stored tree, and no other is."""
    records = {v.record.volume_id: v.record for v in volumes}
    for sp, view in views.items():
        active = {t2.t2.volume_id: t2.t2 for t2 in view.t2s if t2.active}
        due = {i for i, r in records.items() if sp in r.serving}
        assert set(active) == due, f"{sp} serves {set(active)}, due are {due}"
        for volume_id, t2 in active.items():
            record = records[volume_id]
            assert (t2.version, t2.epoch, t2.owner) == (record.version, record.epoch, record.owner)
            assert t2.root == record.root, f"{record.name} at {sp} has another tree"
    no_dangling(views)
    return True


def homes(volumes: Iterable[volume_pb2.Volume], views: dict[str, vsm_pb2.View]) -> None:
    """SPs hold exactly the stored T1 objects."""
    stored = {shape(t1) for v in volumes for t1 in v.record.t1s}
    told = {shape(t1.t1) for view in views.values() for t1 in view.t1s}
    assert told == stored, f"T1 objects: only SPs {told - stored}, only store {stored - told}"


def on_labels(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Every file device's label by device id."""
    found = [labels.read(path) for path in sorted(cluster.devices.iterdir())]
    return {label["device"]: label for label in found}


def store_and_labels(cluster: Cluster, volumes: Iterable[volume_pb2.Volume]) -> None:
    """Every T1 object stands in the label of each of its devices, and nothing else does."""
    by_device = on_labels(cluster)
    due: dict[str, set[object]] = {device: set() for device in by_device}
    for volume in volumes:
        for t1 in volume.record.t1s:
            for extent in t1.extents:
                due[extent.device_id].add(shape(t1))
    for device, label in by_device.items():
        assert label["cluster"] == cluster.status().cluster_id
        told = {
            (
                t1["id"],
                t1["home"],
                t1["size"],
                tuple((e["device"], e["offset"], e["length"]) for e in t1["extents"]),
            )
            for t1 in (entry["t1"] for entry in label["t1s"])
        }
        assert told == due[device], f"label of {device}: {told ^ due[device]}"


def agree(cluster: Cluster) -> bool:
    """True; AssertionError says who contradicts whom."""
    volumes = cluster.volumes()
    views = cluster.views()
    serving(volumes, views)
    homes(volumes, views)
    store_and_labels(cluster, volumes)
    return True
