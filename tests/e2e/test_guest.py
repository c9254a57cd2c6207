"""A real Linux host: its kernel, its filesystems, its mounts, and what is done to the cluster
while it writes. The whole module has one guest and one cluster, whose devices are loop devices.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.e2e.cluster import MIB, Cluster
from tests.e2e.guest.host import (
    SIZES,
    STAMPS,
    Host,
    blocks,
    hosted,
    in_sync,
    journal,
    make_volumes,
    needs_guest,
    restructure,
)
from tests.e2e.guest.image import made
from tests.e2e.guest.machine import OUTSIDE
from tests.e2e.process import wait_for

pytestmark = [needs_guest, pytest.mark.timeout(900)]

CONFIG = "/etc/vswitchd/vswitchd.toml"
#: Seconds after which writes hang, rather than wait: what they wait for is printed, and is some
#: three seconds by default settings (docs/hosts.md); this machine may be busy with other things.
HANGS = 20.0
#: Seconds without any SP.
OUTAGE = 30.0


#: MiB to which `every_restructure` grows a volume.
GROWN = 400
#: Every kind of change of a volume that began as a mirror of sp-a and sp-b, one after the other.
CHANGES = (
    ("mirror", "remove", "--leg", "sp-b"),
    ("mirror", "add", "--sp", "sp-c"),
    ("owner", "--on", "sp-b"),
    ("move", "--from", "sp-a", "--to", "sp-b"),
    ("plan", "--layout", "stripe(sp-a, sp-b, sp-c)"),
    ("plan", "--layout", "mirror(stripe(sp-a, sp-b), sp-c)"),
    ("mirror", "verify"),
    ("grow", "--size", f"{GROWN}M"),
    ("plan", "--layout", "concat(sp-a:100M, mirror(sp-b, sp-c))"),
    ("unserve", "--on", "sp-a"),
    ("serve", "--on", "sp-a"),
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    root = tmp_path_factory.mktemp("guest")
    with hosted(root, made(root / "product.img")) as host:
        port = host.cluster.controller.addresses["--listen"].rpartition(":")[2]
        host.guest.run(
            f"printf '[host]\\ncontroller = \"{OUTSIDE}:{port}\"\\n' > {CONFIG}\n"
            f"vswitchd config check {CONFIG}\n"
            "cp /opt/product/systemd/vswitchd-host.service /etc/systemd/system/\n"
            "systemctl daemon-reload; modprobe nbd"
        )
        yield host


def test_a_plain_nbd_client_sees_nothing_of_any_restructure(host: Host) -> None:
    guest, cluster = host.guest, host.cluster
    make_volumes(cluster, "ext4-plain", "xfs-plain")
    port = cluster.sps["sp-c"].addresses["--nbd"].rpartition(":")[2]
    for number, (kind, volume) in enumerate((("ext4", "ext4-plain"), ("xfs", "xfs-plain"))):
        guest.run(
            f"nbd-client {OUTSIDE} {port} -N {volume} /dev/nbd{number} && "
            f"mkfs.{kind} -q /dev/nbd{number} && mount /dev/nbd{number} /mnt/{kind}"
        )
    host.write("/mnt/ext4", "/mnt/xfs")
    volumes = ("ext4-plain", "xfs-plain")
    every_restructure(host, *volumes)
    guest.run("fstrim -v /mnt/ext4; fstrim -v /mnt/xfs")
    host.phase("every restructure, nbd-client")
    host.end_writing()
    guest.run("umount /mnt/ext4 /mnt/xfs && e2fsck -fn /dev/nbd0 && xfs_repair -n /dev/nbd1")
    guest.run("nbd-client -d /dev/nbd0; nbd-client -d /dev/nbd1")
    guest.assert_well()
    for volume in volumes:
        cluster.ctl("volume", "delete", volume)


def every_restructure(host: Host, *volumes: str) -> None:
    """All changes of the volumes, and an SP emptied, while files are written to them."""
    for change in CHANGES:
        for volume in volumes:
            restructure(host.cluster, volume, change)
        host.goes_on()
    host.cluster.ctl("sp", "drain", "sp-b", "--keep-serving")
    host.goes_on()
    host.cluster.ctl("sp", "undrain", "sp-b")


INITIATOR = "iqn.2026-11.test:guest"
#: Of the guest, and of the target.
SECRETS = ("the secret of the guest", "the secret of the target")
#: What iscsiadm exits with when a login is refused for its secret (open-iscsi, iscsi_err.h).
LOGIN_AUTH_FAILED = 24


def admit_by_chap(cluster: Cluster, volume: str, initiator: str) -> None:
    """Lets an initiator in, by CHAP both ways."""
    argv = ["volume", "access", "allow", volume, "--initiator", initiator]
    for side, user, secret in zip(("chap", "mutual"), ("guest", "vswitchd"), SECRETS, strict=True):
        file = cluster.root / f"{side}-secret"
        file.write_text(secret)
        argv += [f"--{side}-user", user, f"--{side}-secret-file", str(file)]
    cluster.ctl(*argv)


def test_open_iscsi_mounts_a_volume_and_sees_no_restructure(host: Host) -> None:
    guest, cluster = host.guest, host.cluster
    make_volumes(cluster, "ext4-iscsi")
    port = cluster.sps["sp-c"].addresses["--iscsi"].rpartition(":")[2]
    target = "iqn.2026-11.io.vswitchd:ext4-iscsi"
    node = f"iscsiadm -m node -T {target} -p {OUTSIDE}:{port}"
    discover = f"iscsiadm -m discovery -t sendtargets -p {OUTSIDE}:{port}"
    guest.run(
        f"set -e; echo InitiatorName={INITIATOR} > /etc/iscsi/initiatorname.iscsi; "
        "modprobe iscsi_tcp; systemctl start iscsid"
    )
    admit_by_chap(cluster, "ext4-iscsi", "iqn.2026-11.test:another")
    guest.run(f"{discover} | grep -w {target}", status=1)
    admit_by_chap(cluster, "ext4-iscsi", INITIATOR)
    cluster.ctl("volume", "access", "nbd", "ext4-iscsi", "--off")
    auth = {
        "authmethod": "CHAP",
        "chap_algs": "SHA3-256,SHA256,SHA1,MD5",
        "username": "guest",
        "password": "not the secret at all",
        "username_in": "vswitchd",
        "password_in": SECRETS[1],
    }
    options = {f"node.session.auth.{key}": value for key, value in auth.items()}
    options |= {f"node.conn[0].iscsi.{digest}Digest": "CRC32C" for digest in ("Header", "Data")}
    updates = (f"{node} -o update -n '{key}' -v '{value}'" for key, value in options.items())
    guest.run("; ".join(("set -e", f"{discover} | grep -w {target}", *updates)))
    # A wrong secret, and then a target that has not the one that it should have.
    guest.run(f"{node} --login", status=LOGIN_AUTH_FAILED)
    password = f"{node} -o update -n node.session.auth.password"
    guest.run(f"{password} -v '{SECRETS[0]}' && {password}_in -v 'of another target'")
    assert guest.run(f"{node} --login", status=None) and not guest.run(
        "ls /sys/class/iscsi_session"
    )
    guest.run(
        f"set -e; {password}_in -v '{SECRETS[1]}'; {node} --login; udevadm settle; "
        "mkfs.ext4 -q /dev/sda; mount /dev/sda /mnt/ext4"
    )
    host.write("/mnt/ext4")
    every_restructure(host, "ext4-iscsi")
    restructure(cluster, "ext4-iscsi", ("owner", "--on", "sp-c"))
    host.goes_on()
    before = blocks(guest, "ext4")
    guest.run("echo 1 > /sys/block/sda/device/rescan")
    wait_for("the disk to grow", partial(host.has_size, "/dev/sda", GROWN * MIB))
    guest.run("resize2fs /dev/sda; fstrim -v /mnt/ext4")
    assert blocks(guest, "ext4") > before
    host.phase("every restructure, open-iscsi with both digests and CHAP both ways")
    # Its session is broken, and made anew.
    cluster.sps["sp-c"].kill()
    cluster.sps["sp-c"].start()
    cluster.wait_joined("sp-c")
    host.phase("kill -9 of the SP that it is connected to")
    host.end_writing()
    guest.run("umount /mnt/ext4 && e2fsck -fn /dev/sda; iscsiadm -m node --logout")
    guest.run("iscsiadm -m node -o delete; systemctl stop iscsid iscsid.socket")
    guest.assert_well()
    cluster.ctl("volume", "delete", "ext4-iscsi")


def test_an_attached_volume_outlives_everything(host: Host) -> None:
    guest, cluster = host.guest, host.cluster
    make_volumes(cluster, "ext4", "xfs")
    cluster.ctl("volume", "create", "raw", "--size", "32M", "--layout", "mirror(sp-b, sp-c)")
    guest.run("systemctl start vswitchd-host")
    for number, volume in enumerate(("ext4", "xfs", "raw")):
        guest.run(f"vswitchctl host attach {volume} --device /dev/nbd{number}")
    for number, kind in enumerate(("ext4", "xfs")):
        guest.run(f"mkfs.{kind} -q /dev/nbd{number} && mount /dev/nbd{number} /mnt/{kind}")
    host.connected("ext4", "xfs", "raw")
    verify = guest.begin(
        "cd /var/tmp; while ! [ -e raw.stop ]; do fio --name=raw --filename=/dev/nbd2 "
        "--rw=randwrite --bs=4k --size=4M --ioengine=libaio --direct=1 --iodepth=8 "
        "--verify=crc32c --verify_fatal=1 --rate_iops=40 --randrepeat=0 --minimal > raw.log 2>&1 "
        "|| exit 1; done"
    )

    host.write("/mnt/ext4", "/mnt/xfs")

    # One SP is killed, and comes back; then another.
    for sp in ("sp-a", "sp-b"):
        cluster.sps[sp].kill()
        host.goes_on()
        cluster.sps[sp].start()
        cluster.wait_joined(sp)
        host.connected("ext4", "xfs", "raw")
        gap = host.phase(f"kill -9 of {sp}")
        assert gap < HANGS
        # Until it has what it missed, the other leg is the only good one: nobody can do without.
        in_sync(cluster, "ext4", "xfs", "raw")

    # Neither an SP nor the controller for a while; the controller stays away.
    cluster.settled()
    for daemon in cluster.daemons:
        daemon.kill()
    time.sleep(OUTAGE)
    for daemon in cluster.sps.values():
        daemon.launch()
    for daemon in cluster.sps.values():
        wait_for(f"{daemon.name} to be ready", daemon.ready)
    host.goes_on()
    host.connected("ext4", "xfs", "raw")
    cluster.controller.start()
    cluster.wait_joined()
    host.phase(f"nothing at all for {OUTAGE:g} s, the controller for longer")

    # Grown, and never made smaller.
    for number, (volume, grow) in enumerate(
        (("ext4", "resize2fs /dev/nbd0"), ("xfs", "xfs_growfs /mnt/xfs"))
    ):
        size = SIZES[volume] + 64 * MIB
        cluster.ctl("volume", "grow", volume, "--size", str(size))
        device = f"/dev/nbd{number}"
        wait_for(f"{device} to grow", partial(host.has_size, device, size))
        before = blocks(guest, volume)
        guest.run(grow)
        assert blocks(guest, volume) > before
        cluster.ctl("volume", "grow", volume, "--size", str(SIZES[volume]), status=2)
        assert host.size(device) == size
    host.phase("growth")

    # Every process is replaced, one after the other.
    for daemon in [*cluster.sps.values(), cluster.controller]:
        daemon.stop()
        daemon.start()
        cluster.wait_joined()
        host.connected("ext4", "xfs", "raw")
        in_sync(cluster, "ext4", "xfs", "raw")
        host.goes_on()
    host.phase("a rolling restart of all SPs and the controller")

    # The host's own service is killed: at rest, and when a path is dead.
    killed = "systemctl kill -s KILL vswitchd-host || true"
    guest.run(killed)
    cluster.sps["sp-a"].kill()
    host.goes_on()
    guest.run(killed)
    cluster.sps["sp-a"].start()
    cluster.wait_joined("sp-a")
    for _ in range(4):
        guest.run(f"{killed}; sleep 0.$RANDOM")
    wait_for(
        "the host's service",
        lambda: "active" in guest.run("systemctl is-active vswitchd-host || true").split(),
        120,
    )
    host.connected("ext4", "xfs", "raw")
    host.phase("the host's service is killed")

    host.end_writing()

    # What is in use can't be taken away.
    assert "VS3082" in guest.run("vswitchctl host detach ext4", status=4)
    guest.run("touch /var/tmp/raw.stop")
    told = verify.result(120)
    assert told.status == 0, guest.run("cat /var/tmp/raw.log")
    guest.run("umount /mnt/ext4 /mnt/xfs && e2fsck -fn /dev/nbd0 && xfs_repair -n /dev/nbd1")
    guest.run("vswitchctl host detach raw")
    guest.assert_well()


def test_a_host_boots_with_a_volume_in_its_fstab(host: Host) -> None:
    guest = host.guest
    guest.run(
        "vswitchctl host attach ext4 --boot && vswitchctl host attach xfs --boot && "
        "systemctl enable vswitchd-host && cat /etc/vswitchd/hosttab && "
        "printf '/dev/nbd0 /mnt/ext4 ext4 _netdev 0 0\\n/dev/nbd1 /mnt/xfs xfs _netdev 0 0\\n' "
        ">> /etc/fstab && systemctl daemon-reload && mount -a"
    )
    host.write("/mnt/ext4", "/mnt/xfs")
    host.end_writing()
    guest.reboot()
    wait_for(
        "the volumes to be mounted",
        lambda: (
            guest.run("findmnt -n -t ext4,xfs /mnt/ext4; findmnt -n /mnt/xfs").count("/mnt/") == 2
        ),
        120,
    )
    for mount in ("/mnt/ext4", "/mnt/xfs"):
        guest.run(f"python3 {STAMPS} check {mount} {journal(mount)}")
    host.connected("ext4", "xfs")
    guest.run("umount /mnt/ext4 /mnt/xfs")
    for volume in ("ext4", "xfs"):
        guest.run(f"vswitchctl host detach --boot {volume}")
    assert guest.run("cat /etc/vswitchd/hosttab") == ""
    guest.assert_well()


UNITS = ("vswitchd-controller", "vswitchd-sp@sp-g", "vswitchd-host")
#: What `systemd-analyze security` may say of a unit (0: nothing is open, 10: everything is).
EXPOSED = 3.0


def test_the_units_run_a_machine_and_an_upgrade_is_not_seen(host: Host) -> None:
    guest = host.guest
    guest.run(
        "set -e; cd /opt/product/systemd; cp *.service *.socket /etc/systemd/system/; "
        "cp vswitchd.sysusers /usr/lib/sysusers.d/vswitchd.conf; "
        "cp vswitchd.tmpfiles /usr/lib/tmpfiles.d/vswitchd.conf; "
        "systemd-sysusers; systemd-tmpfiles --create vswitchd.conf; "
        'printf \'[processor]\\nname = "sp-g"\\ndevice_root = ["/srv/vswitchd"]\\n\' '
        f">> {CONFIG}; "
        "echo VSWITCHD_PROCESSOR_NBD_ADVERTISED=127.0.0.1:10809 > /etc/vswitchd/sp-sp-g.env; "
        "systemctl daemon-reload; systemctl start vswitchd-controller vswitchd-sp@sp-g.socket; "
        "systemctl start vswitchd-sp@sp-g; systemctl restart vswitchd-host"
    )
    guest.run(
        "vswitchctl device add file:/srv/vswitchd/disk0.img --sp sp-g --size 64M --name disk0 && "
        "vswitchctl volume create v --size 16M --layout sp-g && "
        "nbd-client 127.0.0.1 -N v /dev/nbd5"
    )
    reading = guest.begin(
        "set -e; dd if=/dev/urandom of=/var/tmp/v bs=1M count=4; cd /var/tmp; "
        "while ! [ -e v.stop ]; do dd if=v of=/dev/nbd5 bs=64k oflag=direct status=none; "
        "cmp -n 4194304 v /dev/nbd5; done"
    )
    show = "systemctl show -P MainPID vswitchd-sp@sp-g"
    before = guest.run(show)
    guest.run("systemctl reload vswitchd-sp@sp-g")

    def is_replaced() -> bool:
        return guest.run(show) not in ("0\n", before)

    wait_for("a new process", is_replaced, 120)
    wait_for("it to serve", lambda: "active" in guest.run("systemctl is-active vswitchd-sp@sp-g"))
    assert not reading.done(), reading.result()
    guest.run("touch /var/tmp/v.stop")
    told = reading.result(60)
    assert told.status == 0, told.output
    guest.run("nbd-client -d /dev/nbd5")
    for unit in UNITS:
        shown = guest.run(f"systemd-analyze security --no-pager {unit} | tail -n 1")
        found = re.search(r"(\d+\.\d+)", shown)
        assert found, shown
        print(shown.strip())
        assert float(found[1]) < EXPOSED
    # None of them was ended by its watchdog, or by anything else.
    assert guest.run(
        "systemctl show -P NRestarts vswitchd-controller vswitchd-sp@sp-g"
    ).split() == ["0", "0"]
    guest.run("systemctl stop vswitchd-sp@sp-g.socket vswitchd-sp@sp-g vswitchd-controller")
    guest.assert_well()


def test_a_host_that_can_not_attach_is_told_why(host: Host) -> None:
    guest = host.guest
    host.cluster.ctl("volume", "create", "small", "--size", "16M", "--layout", "sp-c")
    guest.run("systemctl stop vswitchd-host; modprobe -r nbd")
    listens = (
        "for i in $(seq 200); do [ -S /run/vswitchd/host.sock ] && break; sleep 0.2; done; "
        "vswitchctl host attach small; status=$?; kill $!; wait; exit $status"
    )
    service = "rm -f /run/vswitchd/host.sock; {} vswitchd host --state /var/tmp/other &"
    assert "VS3080" in guest.run(f"{service.format('')} {listens}", status=4)
    guest.run("modprobe nbd")
    unprivileged = service.format("setpriv --bounding-set=-sys_admin")
    assert "VS3081" in guest.run(f"{unprivileged} {listens}", status=4)
    # Another client has the device.
    port = host.cluster.sps["sp-c"].addresses["--nbd"].rpartition(":")[2]
    guest.run(
        f"nbd-client {OUTSIDE} {port} -N small /dev/nbd7; systemctl start vswitchd-host || "
        "{ journalctl --no-pager -n 50 -u vswitchd-host; false; }"
    )
    taken = guest.run("vswitchctl host attach small --device /dev/nbd7", status=4)
    assert "VS3083" in taken
    assert "VS2041" in guest.run("vswitchctl host attach nothing", status=3)
    guest.run("nbd-client -d /dev/nbd7")
    guest.assert_well()
