"""Faults of many kinds, singly and in pairs, under hosts that write stamped blocks through all SPs:
after each, every block holds its last acknowledged write, or one that was sent after it.

A short part runs in the gate; `make soak` goes on for as long as it is told. The seed is printed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.disk import disks
from tests.e2e.faults import Faults, writers
from tests.e2e.lost import SOON, alike, in_sync
from tests.e2e.nbd import Client
from tests.e2e.process import wait_for
from tests.e2e.stamps import Stamper

#: Of the gate; and, as `VSWITCHD_FAULTS`, of a soak.
FAULTS = int(os.environ.get("VSWITCHD_FAULTS", "28"))
SEED = int(os.environ.get("VSWITCHD_SEED", "1"))
#: Layouts by name. "power" loses what was not flushed when its disks are killed.
VOLUMES = {
    "power": "mirror(sp-b/pb, sp-c/pc)",
    "three": "mirror(sp-a/a0, sp-b/b0, sp-c/full)",
    "two": "mirror(sp-a/a0, sp-b/bad)",
}
DISKS: dict[str, dict[str, object]] = {
    "bad": {},
    "full": {"error": "ENOSPC"},
    "pb": {"forgets": True},
    "pc": {"forgets": True},
}
HOMES = {"bad": "sp-b", "full": "sp-c", "pb": "sp-b", "pc": "sp-c"}


@pytest.mark.timeout(12000)
def test_no_fault_loses_or_mixes_up_data(cluster: Cluster) -> None:
    print(f"seed {SEED}")
    with disks(cluster.root, **DISKS) as made:
        for name, disk in made.items():
            cluster.ctl("device", "add", disk.uri, "--sp", HOMES[name], "--name", name)
        for name, layout in VOLUMES.items():
            words = ("--size", "64M", "--layout", layout, "--on", ",".join(cluster.sps))
            cluster.ctl("volume", "create", name, *words)
        with writers(cluster, VOLUMES, SEED) as stampers:
            faults = Faults(cluster, random.Random(SEED), made, stampers)
            every = [stamper for found in stampers.values() for stamper in found]
            for _ in range(FAULTS):
                since = [stamper.writes for stamper in every]
                kind = faults.next()
                assert all(disk.is_up() for disk in made.values()), f"{kind}: a disk has ended"
                for name, layout in VOLUMES.items():
                    in_sync(cluster, name, layout.count("/"))
                    alike(cluster, name)
                for stamper, before in zip(every, since, strict=True):
                    wait_for(f"writes after: {kind}", _more(stamper, before), SOON)
                    assert not stamper.faults, f"{kind}: {stamper.faults[:3]}"
        for volume, found in stampers.items():
            for stamper in found:
                for sp in cluster.sps.values():
                    with Client(sp.addresses["--nbd"], volume) as client:
                        stamper.check_all(client)
    print(dict(sorted(faults.counts.items())))


def _more(stamper: Stamper, before: int) -> Callable[[], bool]:
    return lambda: bool(stamper.faults) or stamper.wrote_more_than(before + 20)
