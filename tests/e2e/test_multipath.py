"""dm-multipath over iSCSI in a Linux guest: a volume's SPs as paths, with ALUA. Debian's cloud
kernel has no scsi_dh_alua, so this guest has the other one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import pytest

from tests.e2e.cluster import MIB
from tests.e2e.guest.host import Host, blocks, hosted, make_volumes, needs_guest, restructure
from tests.e2e.guest.host import in_sync as whole
from tests.e2e.guest.image import made
from tests.e2e.guest.machine import OUTSIDE
from tests.e2e.process import ROOT, wait_for

pytestmark = [needs_guest, pytest.mark.timeout(900)]

KERNEL = "linux-image-amd64"
TARGET = "iqn.2026-11.io.vswitchd:ext4"
SPS = ("sp-a", "sp-b")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    root = tmp_path_factory.mktemp("multipath")
    with hosted(root, made(root / "product.img", KERNEL, ("multipath-tools",))) as host:
        # A path's errors are what its map is there for; the map's own are not spared.
        host.guest.spared = re.compile(r"dev sd[a-z]\b")
        yield host


def portals(host: Host) -> list[str]:
    """Where the guest reaches each SP."""
    found = (host.cluster.sps[sp].addresses["--iscsi"] for sp in SPS)
    return [f"{OUTSIDE}:{address.rpartition(':')[2]}" for address in found]


def groups(host: Host) -> list[tuple[int, list[str]]]:
    """The map's path groups: their priority, and the states of their paths."""
    shown = host.guest.run("multipath -ll")
    found: list[tuple[int, list[str]]] = []
    for line in shown.splitlines():
        if priority := re.search(r"policy=.* prio=(\d+) status=", line):
            found.append((int(priority[1]), []))
        elif path := re.search(r" \d+:\d+:\d+:\d+ +sd\w+ +\d+:\d+ +(.+)$", line):
            found[-1][1].append(path[1].strip())
    return found


def preferred(host: Host) -> str:
    """The SP of the path that the map takes: of the group with the highest priority."""
    shown = host.guest.run(
        "multipathd show paths raw format '%d %p %P'; "
        "for d in /sys/class/iscsi_session/*/device/target*/*/block/*; do :; done; "
        "iscsiadm -m session -P 3 | grep -E 'Current Portal|Attached scsi disk'"
    )
    portal, best = "", ("", -1)
    disks = {}
    for line in shown.splitlines():
        if "Current Portal" in line:
            portal = line.split()[-1].partition(",")[0]
        elif disk := re.search(r"Attached scsi disk (\w+)", line):
            disks[disk[1]] = portal
        elif path := re.fullmatch(r"(sd\w+) (\d+) .*", line.strip()):
            best = max(best, (path[1], int(path[2])), key=lambda found: found[1])
    return dict(zip(portals(host), SPS, strict=True))[disks[best[0]]]


def prefers(host: Host, sp: str) -> bool:
    return preferred(host) == sp


def stands(host: Host) -> bool:
    """All paths of the map are in use."""
    states = [state for _, paths in groups(host) for state in paths]
    return len(states) == len(SPS) and all("active ready running" in state for state in states)


def test_paths_are_killed_and_the_owner_is_moved(host: Host) -> None:
    guest, cluster = host.guest, host.cluster
    make_volumes(cluster, "ext4")
    config = (ROOT / "deploy" / "multipath.conf").read_text()
    guest.run(f"cat > /etc/multipath.conf <<'END'\n{config}END\n")
    guest.run(
        "set -e; modprobe iscsi_tcp; modprobe dm_multipath; modprobe scsi_dh_alua; "
        "systemctl start iscsid; systemctl restart multipathd; "
        + "".join(
            f"iscsiadm -m node -T {TARGET} -p {portal} -o new; "
            f"iscsiadm -m node -T {TARGET} -p {portal} --login; "
            for portal in portals(host)
        )
    )
    wait_for("both paths", partial(stands, host), 60)
    # One group for each state; the owner's has the higher priority.
    assert [len(paths) for _, paths in groups(host)] == [1, 1]
    device = guest.run("ls /dev/mapper/*VSWITCHD* | head -n 1").strip()
    wait_for("the owner's path to be preferred", partial(prefers, host, "sp-a"), 60)
    guest.run(f"mkfs.ext4 -q {device} && mount {device} /mnt/ext4")
    host.write("/mnt/ext4")

    for owner in ("sp-b", "sp-a"):
        cluster.ctl("volume", "owner", "ext4", "--on", owner)
        wait_for("the map to follow the owner", partial(prefers, host, owner), 90)
        host.phase(f"{owner} becomes the owner")

    for sp in SPS:
        cluster.sps[sp].kill()
        host.goes_on()
        cluster.sps[sp].start()
        cluster.wait_joined(sp)
        host.phase(f"kill -9 of {sp}")
        wait_for("both paths", partial(stands, host), 120)
        whole(cluster, "ext4")

    for change in (
        ("mirror", "remove", "--leg", "sp-b"),
        ("mirror", "add", "--sp", "sp-c"),
        ("unserve", "--on", "sp-b"),
        ("serve", "--on", "sp-b"),
        ("grow", "--size", "200M"),
    ):
        restructure(cluster, "ext4", change)
        host.goes_on()
    wait_for("both paths", partial(stands, host), 120)
    before = blocks(guest, "ext4")
    guest.run("for d in /sys/block/sd?/device/rescan; do echo 1 > $d; done")
    name = device.rpartition("/")[2]
    guest.run(f"multipathd resize map {name}")
    wait_for("the map to grow", partial(host.has_size, device, 200 * MIB))
    guest.run(f"resize2fs {device}")
    assert blocks(guest, "ext4") > before
    host.phase("restructures and growth")

    host.end_writing()
    guest.run(f"umount /mnt/ext4 && e2fsck -fn {device} && multipath -f {name}")
    guest.run("iscsiadm -m node --logout; systemctl stop multipathd iscsid iscsid.socket")
    guest.assert_well()
    cluster.ctl("volume", "delete", "ext4")
