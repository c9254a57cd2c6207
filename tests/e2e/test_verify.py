"""`volume mirror verify` while hosts write: rot is found, told, and repaired on request."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.cluster import MIB, Cluster
from tests.e2e.metrics import samples
from tests.e2e.nbd import Client
from tests.e2e.process import wait_for
from tests.e2e.stamps import Stamper, Writer

SIZE = 32 * MIB


def rot(cluster: Cluster, t1: str, device: Path, offset: int) -> None:
    """Changes a byte of a T1 object on its device, past the product, whose SP is not running."""
    record = cluster.volume("db").record
    (extent,) = next(one for one in record.t1s if one.t1_id == t1).extents
    with device.open("r+b") as file:
        file.seek(extent.offset + offset)
        file.write(b"\xff")


def test_rot_is_found_and_repaired_under_load(cluster: Cluster) -> None:
    words = ("--size", "32M", "--layout", "mirror(sp-a/a0, sp-b/b0)", "--on", "sp-a,sp-b")
    cluster.ctl("volume", "create", "db", *words)
    a, b = cluster.sps["sp-a"], cluster.sps["sp-b"]
    with Client(a.addresses["--nbd"], "db") as host:
        host.write(20 * MIB, bytes([7]) * MIB)
        host.flush()
    # What is in the map when its SP stops is copied to it again, and rot there with it.
    wait_for(
        "no region to be open",
        lambda: not any(sum(samples(sp, "vswitchd_volume_dirty_bytes")) for sp in (a, b)),
    )
    (t1,) = (one.t1_id for one in cluster.volume("db").record.t1s if one.home == "sp-b")
    b.stop()
    rot(cluster, t1, cluster.devices / "b0.img", 20 * MIB + 5000)
    b.start()
    cluster.wait_joined()
    wait_for(
        "the leg to be back",
        lambda: all(leg.state == 1 for leg in cluster.volume("db").record.root.mirror.legs),
        60.0,
    )
    cluster.settled()
    addresses = [(sp.addresses["--nbd"], "db") for sp in (a, b)]
    with Writer(Stamper(0, 2048, 3), addresses):
        found = cluster.ctl("volume", "mirror", "verify", "db", status=1)
        assert "VS6014" in found.err and f"{20 * MIB + 4096}+4096" in found.err, found
        repaired = cluster.ctl("volume", "mirror", "verify", "db", "--repair").json
        assert "4096 bytes differed" in repaired["report"], repaired
        assert cluster.ctl("volume", "mirror", "verify", "db").json["report"] == (
            "the legs are alike"
        )
    assert cluster.volume("db").record.version == found_version(cluster), "no tree has changed"
    with Client(b.addresses["--nbd"], "db") as host:
        assert host.read(20 * MIB, MIB) == bytes([7]) * MIB


def found_version(cluster: Cluster) -> int:
    """The version that the last change of the tree made."""
    done = [one for one in cluster.operations() if one.kind not in ("verify",)]
    return max((one.target_version for one in done if one.volume == "db"), default=0)


def test_what_has_one_leg_is_not_compared(cluster: Cluster) -> None:
    cluster.ctl("volume", "create", "one", "--size", "8M", "--layout", "sp-a/a0")
    refused = cluster.ctl("volume", "mirror", "verify", "one", status=4)
    assert "VS3018" in refused.err and "mirror add one" in refused.err
