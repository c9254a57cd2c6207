"""A Linux host with its cluster: filesystems whose files are stamped while things happen, and what
is asked of both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.cluster import MIB, Cluster
from tests.e2e.guest.image import Image
from tests.e2e.guest.machine import OUTSIDE, Guest, Told, available
from tests.e2e.loops import Loops
from tests.e2e.process import wait_for

#: Of a module of tests with a guest.
needs_guest = pytest.mark.skipif(
    bool(available()) and "VSWITCHD_GUEST" not in os.environ, reason=available()
)

#: Bytes of a volume, by the filesystem that its name begins with.
SIZES = {"ext4": 128 * MIB, "xfs": 320 * MIB}
STAMPS = "/opt/product/scripts/stamps.py"


def journal(mount: str) -> str:
    """Where it stands in the guest, on a disk of its own, what was made durable below a mount."""
    return f"/var/tmp/{mount.strip('/').replace('/', '-')}.journal"


@dataclass
class Host:
    """The guest with its cluster, and what writes in it."""

    guest: Guest
    cluster: Cluster
    #: Writers by mount point.
    writers: dict[str, Future[Told]] = field(default_factory=dict)
    #: Lines of their journals that belong to phases that are over.
    seen: dict[str, int] = field(default_factory=dict)

    def write(self, *mounts: str) -> None:
        """Has files stamped below the mount points."""
        for mount in mounts:
            # What another filesystem's writer made durable at this place counts no more. Gone
            # before `goes_on` looks: its count would be waited for.
            self.guest.run(f"rm -f {journal(mount)}")
            self.writers[mount] = self.guest.begin(
                f"python3 {STAMPS} write {mount} {journal(mount)}"
            )
            self.seen[mount] = 0
        self.goes_on()

    def written(self, mount: str) -> int:
        """How many files have been made durable so far."""
        line = self.guest.run(f"tail -n 1 {journal(mount)} 2>/dev/null || true").split()
        return int(line[0]) if line else 0

    def goes_on(self, seconds: float = 60.0) -> None:
        """Waits until every writer has come further."""
        before = {mount: self.written(mount) for mount in self.writers}
        for mount, count in before.items():
            assert not self.writers[mount].done(), self.writers[mount].result()
            further = partial(self._is_past, mount, count)
            wait_for(f"{mount} to be written", further, seconds)

    def _is_past(self, mount: str, count: int) -> bool:
        return self.written(mount) > count

    def phase(self, what: str) -> float:
        """The longest that a writer has waited since the phase before, in seconds."""
        self.goes_on()
        longest = 0.0
        for mount in self.writers:
            lines = self.guest.run(f"tail -n +{self.seen[mount] + 1} {journal(mount)}").splitlines()
            times = [float(line.split()[1]) for line in lines if len(line.split()) == 2]
            gap = max(b - a for a, b in pairwise(times))
            # The last is the next phase's first.
            self.seen[mount] += len(lines) - 1
            longest = max(longest, gap)
            print(f"{what}: {mount}: {len(times)} files, longest gap {gap:.2f} s")
        self.guest.assert_well()
        return longest

    def end_writing(self) -> None:
        """Ends the writers, and checks every file."""
        for mount, writer in self.writers.items():
            self.guest.run(f"touch {journal(mount).removesuffix('.journal')}.stop")
            told = writer.result(120)
            assert told.status == 0, told.output
            self.guest.run(f"python3 {STAMPS} check {mount} {journal(mount)}")
        self.writers.clear()
        self.guest.assert_well()

    def missing_paths(self) -> dict[str, float]:
        """By attached volume, to how many SPs that serve it there is no connection. From the
        service's metrics: to start `vswitchctl` takes seconds in here."""
        text = self.guest.run(
            "exec 3<>/dev/tcp/127.0.0.1/9461; "
            "printf 'GET /metrics HTTP/1.1\\r\\n\\r\\n' >&3; cat <&3"
        )
        found = re.findall(
            r'^vswitchd_host_paths\{state="missing",volume="(.+?)"\} (\S+)', text, re.M
        )
        return {volume: float(count) for volume, count in found}

    def connected(self, *volumes: str, seconds: float = 60.0) -> None:
        """Waits until all paths stand."""
        wait_for("all paths", partial(self._are_connected, volumes), seconds)

    def _are_connected(self, volumes: tuple[str, ...]) -> bool:
        missing = self.missing_paths()
        return all(missing[volume] == 0 for volume in volumes)

    def has_size(self, device: str, size: int) -> bool:
        """Whether a block device has that many bytes."""
        return self.size(device) == size

    def size(self, device: str) -> int:
        """Bytes of a block device."""
        return int(self.guest.run(f"blockdev --getsize64 {device}"))


@contextmanager
def hosted(root: Path, image: Image) -> Iterator[Host]:
    """A guest of that image, and a cluster on loop devices whose SPs it reaches."""
    cluster = Cluster(root / "cluster")
    for daemon in cluster.sps.values():
        daemon.argv += ["--nbd-advertised", f"{OUTSIDE}:0", "--device-root", "/dev"]
        daemon.argv += ["--iscsi-advertised", f"{OUTSIDE}:0"]
    with Loops(root) as loops, cluster, Guest(image, root / "machine") as guest:
        for sp in cluster.sps:
            device = loops.make(sp, 1536 * MIB)
            cluster.ctl("device", "add", f"block:{device}", "--sp", sp, "--name", f"disk-{sp}")
        guest.run("mkdir -p /mnt/ext4 /mnt/xfs")
        yield Host(guest, cluster)


def make_volumes(cluster: Cluster, *names: str) -> None:
    for name in names:
        size = SIZES[name.partition("-")[0]]
        layout = "mirror(sp-a, sp-b)"
        where = "sp-a,sp-b,sp-c"
        cluster.ctl(
            *("volume", "create", name, "--size", str(size)), "--layout", layout, "--on", where
        )


def restructure(cluster: Cluster, volume: str, change: tuple[str, ...]) -> None:
    """One change as people ask for it; a plan is shown and then carried out."""
    if change[0] == "plan":
        plan = cluster.ctl("volume", "plan", volume, *change[1:]).json["operation_id"]
        cluster.ctl("volume", "apply", volume, "--plan", plan)
    elif change[0] == "mirror":
        cluster.ctl("volume", "mirror", change[1], volume, *change[2:])
    else:
        cluster.ctl("volume", change[0], volume, *change[1:])


def in_sync(cluster: Cluster, *names: str) -> None:
    """Waits until every leg of the volumes is in sync again."""
    for name in names:
        wait_for(f"{name} to be whole", partial(is_whole, cluster, name), 120)


def is_whole(cluster: Cluster, name: str) -> bool:
    return not cluster.volume(name).conditions


def blocks(guest: Guest, volume: str) -> int:
    """Bytes of a mounted filesystem."""
    return int(guest.run(f"df -B1 --output=size /mnt/{volume} | tail -n 1"))
