"""Devices with checksums, with real processes: rot in a leg is read around, counted, told and
repaired, though the leg is the first; and a killed SP takes nothing for rot.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import MIB, Cluster
from tests.e2e.metrics import samples
from tests.e2e.nbd import Client, NbdError
from tests.e2e.process import wait_for

SIZE = 32 * MIB
ROTTEN = "vswitchd_device_checksum_errors_total"
HEALED = "vswitchd_volume_healed_bytes_total"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Devices s0 at sp-a and s1 at sp-b, with checksums."""
    with Cluster(tmp_path_factory.mktemp("cluster"), ("sp-a", "sp-b", "sp-c")) as cluster:
        for sp, name in (("sp-a", "s0"), ("sp-b", "s1")):
            cluster.add_device(sp, name, 256 * MIB, "--checksums")
        cluster.add_device("sp-a", "plain", 256 * MIB)
        yield cluster


def block(number: int) -> bytes:
    return number.to_bytes(8, "little") * 512


def leg(cluster: Cluster, volume: str, sp: str, device: Path) -> tuple[Path, int]:
    """The device's file, and where the leg begins there."""
    record = cluster.volume(volume).record
    (extent,) = next(one for one in record.t1s if one.home == sp).extents
    return device, extent.offset


def rot(place: tuple[Path, int], offset: int) -> None:
    """Changes a byte behind the back of the SP, which is running."""
    device, start = place
    with device.open("r+b") as file:
        file.seek(start + offset)
        (byte,) = file.read(1)
        file.seek(start + offset)
        file.write(bytes([byte ^ 1]))


def held(place: tuple[Path, int], offset: int, length: int) -> bytes:
    device, start = place
    with device.open("rb") as file:
        file.seek(start + offset)
        return file.read(length)


def test_a_device_says_that_it_has_them(cluster: Cluster) -> None:
    shown = cluster.ctl("device", "show", "s0").json
    assert shown["checksums"] is True
    # The label, and a page of 4 KiB for each MiB, in whole MiB.
    assert int(shown["allocated"]) == 5 * MIB
    assert not cluster.ctl("device", "show", "plain").json.get("checksums")
    assert "with checksums" in cluster.ctl("explain", "s0").out
    uri = f"file:{cluster.devices / 'plain.img'}"
    refused = cluster.ctl("device", "add", uri, "--sp", "sp-a", "--checksums", status=4)
    assert "VS3029" in refused.err
    # What the label says is so, asked for or not.
    uri = f"file:{cluster.devices / 's0.img'}"
    cluster.ctl("device", "add", uri, "--sp", "sp-c", "--name", "s0")
    assert cluster.ctl("device", "show", "s0").json["checksums"] is True


def test_rot_in_the_first_leg_is_read_around_healed_told_and_repaired(cluster: Cluster) -> None:
    words = ("--size", "32M", "--layout", "mirror(sp-a/s0, sp-b/s1)", "--on", "sp-a,sp-b")
    cluster.ctl("volume", "create", "db", *words)
    first = leg(cluster, "db", "sp-a", cluster.devices / "s0.img")
    owner = cluster.sps["sp-a"]
    with Client(owner.addresses["--nbd"], "db") as host:
        for number in range(2048):
            host.write(number * 4096, block(number))
        host.flush()
        rot(first, 100 * 4096 + 7)

        def healed() -> bool:
            assert host.read(100 * 4096, 4096) == block(100)
            return sum(samples(owner, HEALED, volume="db")) >= 4096

        wait_for("the rot to be healed", healed)
        assert held(first, 100 * 4096, 4096) == block(100)
        assert sum(samples(owner, ROTTEN)) >= 1
        # What nobody reads is found by a comparison.
        rot(first, 1500 * 4096)
        found = cluster.ctl("volume", "mirror", "verify", "db", status=1)
        assert "VS6014" in found.err, found
        assert held(first, 1500 * 4096, 4096) != block(1500), "told, and left alone"
        repaired = cluster.ctl("volume", "mirror", "verify", "db", "--repair").json
        assert "differed" in repaired["report"], repaired
        assert held(first, 1500 * 4096, 4096) == block(1500), "by the leg that was right"
        again = cluster.ctl("volume", "mirror", "verify", "db").json
        assert again["report"] == "the legs are alike"
        for number in range(0, 2048, 64):
            assert host.read(number * 4096, 4096) == block(number)
    assert all(leg.state == 1 for leg in cluster.volume("db").record.root.mirror.legs)


def test_a_killed_sp_takes_nothing_for_rot(cluster: Cluster) -> None:
    cluster.ctl("volume", "create", "one", "--size", "32M", "--layout", "sp-a/s0", "--on", "sp-a")
    sp = cluster.sps["sp-a"]
    with Client(sp.addresses["--nbd"], "one") as host:
        for number in range(1024):
            host.write(number * 4096, block(number))
        for number in range(0, 1024, 3):
            host.write(number * 4096 + 100, b"a part")
    sp.kill()
    sp.start()
    cluster.wait_joined()
    place = leg(cluster, "one", "sp-a", cluster.devices / "s0.img")

    def expected(number: int) -> bytes:
        whole = bytearray(block(number))
        if number % 3 == 0:
            whole[100:106] = b"a part"
        return bytes(whole)

    wait_for("the volume", lambda: "sp-a" in cluster.volume("one").record.serving)
    with Client(sp.addresses["--nbd"], "one") as host:
        for number in range(1024):
            assert host.read(number * 4096, 4096) == expected(number), number
        assert sum(samples(sp, ROTTEN)) == 0
        # It has been read, and is known again: one copy alone is an error, not wrong bytes.
        rot(place, 77 * 4096)
        with pytest.raises(NbdError):
            host.read(77 * 4096, 4096)
        assert sum(samples(sp, ROTTEN)) >= 1
        host.write(77 * 4096, block(7))
        assert host.read(77 * 4096, 4096) == block(7)
