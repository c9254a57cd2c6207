"""Who may use a volume: CHAP both ways with real initiators, changes that end sessions, SPs that
begin to serve, restart or were away, NBD closed, and that no secret is written where others read.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.e2e.cluster import MIB, Cluster, Ran
from tests.e2e.iscsi import PREFIX, Initiator, RefusedError
from tests.e2e.nbd import Client
from tests.e2e.process import wait_for

SIZE = 16 * MIB
HOST, OTHER = "iqn.2026-11.test:host", "iqn.2026-11.test:other"
USER, SECRET = "host-user", "a-secret-of-the-host-1"
TARGET, OURS = "target-user", "a-secret-of-the-target-2"
CHANGED = "a-changed-secret-of-the-host-3"
SPS = ("sp-a", "sp-b", "sp-c")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("access")) as made:
        for sp in SPS:
            made.add_device(sp, f"disk-{sp[-1]}")
        yield made


@pytest.fixture
def volume(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """The test's own volume, served by sp-a and sp-b."""
    name = request.node.name[5:40].replace("_", "-").rstrip("-")
    made = ("create", name, "--size", str(SIZE), "--layout", "mirror(sp-a, sp-b)")
    cluster.ctl("volume", *made, "--on", "sp-a,sp-b")
    yield name
    cluster.ctl("volume", "delete", name)


class Secrets:
    """Files with secrets."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def file(self, secret: str) -> str:
        path = self._root / f"secret-{len(list(self._root.iterdir()))}"
        path.write_text(secret + "\n")
        return str(path)


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    return Secrets(tmp_path)


def allow(
    cluster: Cluster,
    volume: str,
    secrets: Secrets,
    initiator: str = HOST,
    secret: str = SECRET,
    ours: str = "",
    status: int = 0,
) -> Ran:
    argv = ["volume", "access", "allow", volume, "--initiator", initiator]
    if secret:
        argv += ["--chap-user", USER, "--chap-secret-file", secrets.file(secret)]
    if ours:
        argv += ["--mutual-user", TARGET, "--mutual-secret-file", secrets.file(ours)]
    return cluster.ctl(*argv, status=status)


def portal(cluster: Cluster, sp: str = "sp-a") -> str:
    return cluster.sps[sp].addresses["--iscsi"]


def refused(cluster: Cluster, volume: str, sp: str = "sp-a", **login: object) -> str:
    """The status of a login that does not succeed."""
    with pytest.raises(RefusedError) as error:
        Initiator(portal(cluster, sp), volume, **login)  # type: ignore[arg-type]
    return str(error.value)


def inquire(
    address: str, volume: str, who: str, *, initiator: str = HOST, ours: str = ""
) -> subprocess.CompletedProcess[str]:
    """libiscsi's iscsi-inq; `who`: user%secret; `ours`: what the target must show."""
    mutual = {}
    if ours:
        names = ("LIBISCSI_CHAP_TARGET_USERNAME", "LIBISCSI_CHAP_TARGET_PASSWORD")
        mutual = dict(zip(names, (TARGET, ours), strict=True))
    return subprocess.run(
        ["iscsi-inq", "-i", initiator, f"iscsi://{who}@{address}/{PREFIX}{volume}/1"],
        env={**os.environ, **mutual},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_libiscsi_logs_in_by_chap_both_ways(
    cluster: Cluster, volume: str, secrets: Secrets
) -> None:
    said = allow(cluster, volume, secrets, ours=OURS).json
    assert said["initiators"] == [
        {"initiator": HOST, "chap_user": USER, "mutual_user": TARGET},
    ]
    for sp in ("sp-a", "sp-b"):
        address = portal(cluster, sp)
        right = inquire(address, volume, f"{USER}%{SECRET}", ours=OURS)
        assert right.returncode == 0, right.stderr
        assert "vswitchd" in right.stdout.lower(), right.stdout
        # The target need not be asked.
        assert inquire(address, volume, f"{USER}%{SECRET}").returncode == 0
        # A wrong secret, a wrong name, a target that shows another secret than it should.
        assert inquire(address, volume, f"{USER}%{CHANGED}").returncode != 0
        assert inquire(address, volume, f"other%{SECRET}").returncode != 0
        assert inquire(address, volume, f"{USER}%{SECRET}", ours=CHANGED).returncode != 0
        assert refused(cluster, volume, sp) == "0201"
        assert refused(cluster, volume, sp, name=OTHER, chap=(USER, SECRET)) == "0202"
    failed = urlopen(f"http://{cluster.sps['sp-a'].addresses['--metrics']}/metrics", timeout=10)
    text = failed.read().decode()
    for reason in ("authentication", "authorization"):
        assert f'vswitchd_logins_failed_total{{reason="{reason}"}}' in text


def test_qemu_reads_and_writes_behind_chap(
    cluster: Cluster, volume: str, secrets: Secrets, tmp_path: Path
) -> None:
    qemu = "iqn.2008-11.org.linux-kvm"
    allow(cluster, volume, secrets, initiator=qemu)
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * (SIZE // 256))

    def url(sp: str, secret: str) -> str:
        return f"iscsi://{USER}%{secret}@{portal(cluster, sp)}/{PREFIX}{volume}/1"

    def run(*argv: str) -> int:
        ran = subprocess.run(["qemu-img", *argv], capture_output=True, timeout=120, check=False)
        return ran.returncode

    write = ("convert", "-n", "-f", "raw", "-O", "raw", str(image))
    assert run(*write, url("sp-a", CHANGED)) != 0
    assert run(*write, url("sp-a", SECRET)) == 0
    compare = ("compare", "-f", "raw", "-F", "raw", str(image))
    assert run(*compare, url("sp-b", SECRET)) == 0


def test_discovery_tells_an_initiator_of_what_is_for_it(
    cluster: Cluster, volume: str, secrets: Secrets
) -> None:
    def listed(initiator: str) -> str:
        argv = ["iscsi-ls", "-i", initiator, f"iscsi://{portal(cluster)}"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout

    assert volume in listed(OTHER)
    allow(cluster, volume, secrets)
    assert volume in listed(HOST)
    assert volume not in listed(OTHER)


def test_a_change_ends_the_sessions_that_it_does_not_admit(
    cluster: Cluster, volume: str, secrets: Secrets
) -> None:
    allow(cluster, volume, secrets, secret="")
    allow(cluster, volume, secrets, initiator=OTHER)
    sessions = [
        Initiator(portal(cluster, sp), volume, **login)
        for sp in ("sp-a", "sp-b")
        for login in ({"name": HOST}, {"name": OTHER, "chap": (USER, SECRET)})
    ]
    hosts, others = sessions[::2], sessions[1::2]
    for one in sessions:
        one.ready()
    first = cluster.ctl("volume", "access", "list", volume).json
    # Said twice, it has happened once, and nobody is disturbed.
    again = allow(cluster, volume, secrets, initiator=OTHER).json
    assert again == first
    allow(cluster, volume, secrets, initiator=OTHER, secret=CHANGED)
    for one in others:
        with pytest.raises(ConnectionError):
            one.run(bytes(6))
    for one in hosts:
        one.ready()
    assert refused(cluster, volume, name=OTHER, chap=(USER, SECRET)) == "0201"
    with Initiator(portal(cluster), volume, name=OTHER, chap=(USER, CHANGED)) as back:
        back.ready()
        cluster.ctl("volume", "access", "deny", volume, "--initiator", HOST)
        for one in hosts:
            with pytest.raises(ConnectionError):
                one.run(bytes(6))
        back.ready()
    assert refused(cluster, volume, sp="sp-b") == "0202"
    # Nobody is let in by the way because the last one was kept out.
    last = ("volume", "access", "deny", volume, "--initiator", OTHER)
    assert "VS6050" in cluster.ctl(*last, status=5).err
    assert refused(cluster, volume) == "0202"
    cluster.ctl(*last, "--open")
    with Initiator(portal(cluster), volume) as whoever:
        whoever.ready()
    whats = [one["what"] for one in cluster.ctl("volume", "history", volume).json["access"]]
    assert f"denied {HOST}" in whats and f"allowed {OTHER}, by CHAP as {USER}" in whats


def test_an_sp_admits_by_what_was_said_whenever_it_begins(
    cluster: Cluster, volume: str, secrets: Secrets
) -> None:
    allow(cluster, volume, secrets)
    # Where the volume was not served before.
    cluster.ctl("volume", "serve", volume, "--on", "sp-c")
    assert refused(cluster, volume, sp="sp-c") == "0201"
    with Initiator(portal(cluster, "sp-c"), volume, chap=(USER, SECRET)) as host:
        host.ready()
    # After a restart, without the controller.
    cluster.controller.kill()
    cluster.sps["sp-c"].kill()
    cluster.sps["sp-c"].start()
    assert refused(cluster, volume, sp="sp-c") == "0201"
    assert refused(cluster, volume, sp="sp-c", name=OTHER) == "0202"
    with Initiator(portal(cluster, "sp-c"), volume, chap=(USER, SECRET)) as host:
        host.ready()
    cluster.controller.start()
    cluster.wait_joined()
    # After a change that it has missed.
    cluster.sps["sp-c"].kill()
    missed = allow(cluster, volume, secrets, secret=CHANGED)
    told = {one["sp"]: one for one in missed.json["sps"]}
    assert not told["sp-c"]["heard"] or told["sp-c"]["version"] < int(missed.json["version"])
    assert "sp-c" in missed.err
    cluster.sps["sp-c"].start()

    def is_told() -> bool:
        found = cluster.ctl("volume", "access", "list", volume)
        return not found.err and len(found.json["sps"]) == 3

    wait_for("sp-c to be told", is_told, 60)
    assert refused(cluster, volume, sp="sp-c", chap=(USER, SECRET)) == "0201"
    with Initiator(portal(cluster, "sp-c"), volume, chap=(USER, CHANGED)) as host:
        host.ready()


def test_a_volume_that_is_closed_to_nbd(cluster: Cluster, volume: str, secrets: Secrets) -> None:
    allow(cluster, volume, secrets)
    address = cluster.sps["sp-a"].addresses["--nbd"]
    with Client(address, volume) as client:
        client.write(0, b"n" * 4096)
        cluster.ctl("volume", "access", "nbd", volume, "--off")
        with pytest.raises(OSError):
            client.read(0, 4096)
    for sp in ("sp-a", "sp-b"):
        done = subprocess.run(
            ["nbdinfo", cluster.uri(volume, sp)], capture_output=True, timeout=30, check=False
        )
        assert done.returncode != 0
        listed = subprocess.run(
            ["nbdinfo", "--list", f"nbd://{cluster.sps[sp].addresses['--nbd']}"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert volume not in listed.stdout
    assert not cluster.volume(volume).nbd_uris
    with Initiator(portal(cluster), volume, chap=(USER, SECRET)) as host:
        host.ready()
        assert host.read(0, 8) == b"n" * 4096
    cluster.ctl("volume", "access", "nbd", volume, "--on")
    with Client(address, volume) as client:
        assert client.read(0, 4096) == b"n" * 4096


def test_what_can_not_be_is_refused(cluster: Cluster, volume: str, secrets: Secrets) -> None:
    def wrong(code: str, **what: str) -> None:
        assert code in allow(cluster, volume, secrets, status=2, **what).err

    wrong("VS1090", initiator="host")
    wrong("VS1091", secret="elevenbytes")
    wrong("VS1091", secret="s" * 256)
    wrong("VS1092", ours=SECRET)
    missing = ("volume", "access", "allow", volume, "--initiator", HOST, "--chap-user", USER)
    assert "VS1060" in cluster.ctl(*missing, status=2).err
    assert "VS1094" in cluster.ctl(*missing, "--chap-secret-file", "/nothing", status=2).err
    assert "VS2041" in cluster.ctl("volume", "access", "list", "nothing", status=3).err
    assert cluster.ctl("volume", "access", "list", volume).json["version"] == "0"


def test_no_secret_is_written_where_others_read(
    cluster: Cluster, volume: str, secrets: Secrets
) -> None:
    said = [allow(cluster, volume, secrets, ours=OURS)]
    inquire(portal(cluster), volume, f"{USER}%{SECRET}", ours=OURS)
    inquire(portal(cluster), volume, f"{USER}%{CHANGED}")
    for argv in (
        ("volume", "access", "list", volume),
        ("volume", "show", volume),
        ("volume", "show", volume, "--tree"),
        ("volume", "list"),
        ("volume", "history", volume),
        ("volume", "serve", volume, "--on", "sp-c"),
        ("operation", "list"),
        ("sp", "list"),
        ("status",),
        ("fsck",),
    ):
        said.append(cluster.ctl(*argv, status=None))
    said.append(allow(cluster, volume, secrets, ours=SECRET, status=2))
    written = {str(ran.argv): ran.out + ran.err for ran in said}
    for daemon in cluster.daemons:
        address = daemon.addresses["--metrics"]
        written[f"metrics of {daemon}"] = urlopen(f"http://{address}/metrics").read().decode()
    hidden = 0
    for path in cluster.root.rglob("*"):
        if not path.is_file() or path.parent == cluster.devices:
            continue
        text = path.read_bytes().decode(errors="replace")
        if stat.S_IMODE(path.stat().st_mode) & 0o077 == 0:
            # Its owner alone reads it: the store, and what SPs remember.
            hidden += SECRET in text
        else:
            written[str(path)] = text
    # The store's log at least, and three SPs.
    assert hidden >= 4
    assert any(name.endswith(".log") for name in written)
    for name, text in written.items():
        for secret in (SECRET, OURS, CHANGED):
            assert secret not in text, name
