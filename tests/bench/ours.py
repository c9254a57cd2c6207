"""Our volumes, from a running cluster: a controller, three SPs, devices on files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.bench.work import Target
from tests.e2e.cluster import MIB, Cluster
from tests.e2e.iscsi import PREFIX
from tests.e2e.process import wait_for

PLAIN = "vswitchd"
#: A device's label lies in front of its data, and its checksums.
ROOM = 16 * MIB
DEVICES = {"a0": "sp-a", "a1": "sp-a", "b0": "sp-b"}
#: The same with checksums, at sp-a.
SUMMED_DEVICE = "s0"


@dataclass(frozen=True)
class Shape:
    """A volume by its layout (`half` stands for half its size), always served by sp-a, and the
    SPs that work for it."""

    name: str
    volume: str
    layout: str
    sps: tuple[str, ...] = ("sp-a",)
    devices: tuple[str, ...] = ("a0",)


BOTH = ("sp-a", "sp-b")
MAPPED = "mirror, both local"
SHAPES = [
    Shape(PLAIN, "plain", "sp-a/a0"),
    Shape("stripe of 4, local", "stripe4", "stripe(4, sp-a/a0)"),
    Shape(MAPPED, "mirror-ll", "mirror(sp-a/a0, sp-a/a1)", devices=("a0", "a1")),
    Shape("mirror, local+remote", "mirror-lr", "mirror(sp-a/a0, sp-b/b0)", BOTH, ("a0", "b0")),
    Shape("half remote", "half", "concat(sp-a/a0:{half}, sp-b/b0:{half})", BOTH, ("a0", "b0")),
    Shape("all remote", "remote", "sp-b/b0", BOTH, ("b0",)),
]
SUMMED = Shape(
    f"{PLAIN} with checksums", "summed", f"sp-a/{SUMMED_DEVICE}", devices=(SUMMED_DEVICE,)
)


#: On devices whose write-intent map is one region: once that is in it, nothing is ever entered.
NO_MAP = Shape(
    f"{MAPPED}, without map", "mirror-nm", "mirror(sp-a/a0, sp-a/a1)", devices=("a0", "a1")
)
NO_MAP_CONFIG = f"[processor]\nmap_region_bytes = {1 << 40}\nmap_clear_seconds = 86400\n"


def without_map(root: Path) -> Cluster:
    """A cluster whose SPs keep no write-intent map to speak of."""
    root.mkdir()
    config = root / "vswitchd.toml"
    config.write_text(NO_MAP_CONFIG)
    cluster = Cluster(root, ("sp-a", "sp-b"))
    for daemon in cluster.sps.values():
        daemon.argv += ["--config", str(config)]
    return cluster


def add_devices(cluster: Cluster, size: int) -> None:
    """Devices with room for every shape."""
    for name, sp in DEVICES.items():
        cluster.add_device(sp, name, size * len(SHAPES) + ROOM)
    cluster.add_device("sp-a", SUMMED_DEVICE, size + ROOM, "--checksums")


def create(cluster: Cluster, shape: Shape, size: int) -> Target:
    """Makes a volume of that shape and waits until sp-a serves it."""
    layout = shape.layout.format(half=size // 2)
    argv = ["--size", str(size), "--layout", layout, "--on", "sp-a"]
    cluster.ctl("volume", "create", shape.volume, *argv)
    wait_for(
        f"{shape.volume} to be served",
        lambda: "sp-a" in cluster.volume(shape.volume).record.serving,
    )
    return Target(
        shape.name,
        str(cluster.root / "sp-a.sock"),
        _port(cluster, "sp-a"),
        shape.volume,
        tuple(cluster.sps[sp].pid for sp in shape.sps),
        tuple(cluster.devices / f"{device}.img" for device in shape.devices),
        iscsi=f"iscsi:{cluster.sps['sp-a'].addresses['--iscsi']}",
        unit=f"{PREFIX}{shape.volume}/1",
    )


def _port(cluster: Cluster, sp: str) -> str:
    bound = cluster.sps[sp].endpoints["nbd"]
    assert isinstance(bound, list)
    return next(str(address) for address in bound if not str(address).startswith("unix:"))
