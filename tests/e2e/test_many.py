"""Hundreds of volumes on one SP: made, served, and served again after every kind of end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import MIB, Cluster
from tests.e2e.nbd import Client
from tests.e2e.process import wait_for
from vswitchd.rpc import operation_pb2, volume_pb2

COUNT = 250
#: More than COUNT, so that the names' order is not that of their creation.
NAMES = [f"v{number * 7 % 256:03}" for number in range(COUNT)]


def stamp(name: str) -> bytes:
    return name.encode() * 1024


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One SP that serves COUNT volumes, each with its name written on it."""
    with Cluster(tmp_path_factory.mktemp("many"), ("sp-a",)) as cluster:
        cluster.add_device("sp-a", "a0", size=(COUNT + 64) * MIB)
        for name in NAMES:
            request = volume_pb2.CreateVolumeRequest(name=name, size=MIB)
            made = cluster.api.volumes.CreateVolume(request, timeout=60)
            asked = operation_pb2.GetOperationRequest(operation_id=made.operation_id)
            *_, last = cluster.api.operations.WatchOperation(asked, timeout=60)
            assert last.state == operation_pb2.OPERATION_STATE_DONE, str(last)
        for name in NAMES:
            with Client(cluster.sps["sp-a"].addresses["--nbd"], name) as host:
                host.write(0, stamp(name))
                host.flush()
        yield cluster


def all_serve(cluster: Cluster) -> None:
    for name in NAMES:
        with Client(cluster.sps["sp-a"].addresses["--nbd"], name) as host:
            assert host.read(0, len(stamp(name))) == stamp(name)


def names(cluster: Cluster) -> list[str]:
    """What the controller lists, page after page."""
    found, token = [], ""
    while True:
        request = volume_pb2.ListVolumesRequest(page_size=100, page_token=token)
        page = cluster.api.volumes.ListVolumes(request, timeout=60)
        found += [volume.record.name for volume in page.volumes]
        assert {volume.state for volume in page.volumes} == {volume_pb2.VOLUME_STATE_ONLINE}
        if not (token := page.next_page_token):
            return found


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_all_are_served_again_after_an_end(many: Cluster, end: str) -> None:
    sp = many.sps["sp-a"]
    getattr(sp, end)()
    # Ready is said when all are served: `start` waits for it no longer than it should take.
    sp.start()
    all_serve(many)
    many.wait_joined()
    assert names(many) == sorted(NAMES)


def test_the_controller_comes_back_and_finds_them_all(many: Cluster) -> None:
    many.controller.kill()
    many.controller.start()
    many.wait_joined()
    assert names(many) == sorted(NAMES)
    wait_for("health to be good", lambda: not many.status().checks)


def test_a_device_that_comes_late_brings_all_of_them(many: Cluster, tmp_path: Path) -> None:
    sp, path = many.sps["sp-a"], many.devices / "a0.img"
    sp.stop()
    away = path.rename(tmp_path / "away.img")
    sp.start()
    away.rename(path)

    def back() -> bool:
        (device,) = many.view("sp-a").devices
        return device.up

    wait_for("the device to be opened again", back)
    all_serve(many)
