"""An SP's process replaced while hosts are connected: an upgrade that nobody sees."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.cluster import MIB, Cluster
from tests.e2e.nbd import Client
from tests.e2e.process import ROOT, Daemon, guarded, wait_for
from tests.e2e.stamps import Stamper, Writer

SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@pytest.fixture
def heirs() -> Iterator[list[int]]:
    """Processes that SPs have started in their place: they are this test's to end."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    found: list[int] = []
    yield found
    for pid in inherited():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    libc.prctl(SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def inherited() -> list[int]:
    """Children of this process that took over from another."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"--inherit" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def running(daemon: Daemon) -> int:
    """The id of the process that serves now."""
    found = json.loads((daemon.state / "endpoints.json").read_text())
    return int(found["pid"])


def replaced(daemon: Daemon, heirs: list[int]) -> None:
    """Asks for a new process, and waits until it serves and the old one has ended."""
    old = running(daemon)
    os.kill(old, signal.SIGUSR2)

    def is_new() -> bool:
        pid = running(daemon)
        return pid != old

    wait_for(f"{daemon.name} to be replaced", is_new)
    heirs.append(running(daemon))
    if old in heirs:
        heirs.remove(old)
        os.waitpid(old, 0)
    else:
        assert daemon.process is not None
        assert daemon.process.wait(30) == 0


def test_plain_clients_see_nothing_of_an_upgrade(cluster: Cluster, heirs: list[int]) -> None:
    layout, where = "mirror(sp-a, sp-b)", "sp-a,sp-b"
    create = ("volume", "create", "db", "--size", "64M", "--layout", layout)
    cluster.ctl(*create, "--on", where)
    # One connection each, and none other is made: `keep` makes a lost one an error.
    idle = Client(str(cluster.root / "sp-a.sock"), "db")
    with ExitStack() as ends:
        stampers = []
        for number, sp in enumerate(("sp-a", "sp-b")):
            path = [(cluster.sps[sp].addresses["--nbd"], "db")]
            writer = Writer(Stamper(number * 64, 48, seed=number), path)
            stampers.append(ends.enter_context(writer))
        for sp in ("sp-a", "sp-b", "sp-a"):
            go_on(stampers)
            replaced(cluster.sps[sp], heirs)
            wait_for(f"{sp} to be up", partial(known, cluster, sp))
        go_on(stampers)
    idle.write(32 * MIB, b"x" * 4096)
    idle.flush()
    idle.close()
    with Client(cluster.sps["sp-b"].addresses["--nbd"], "db") as client:
        assert client.read(32 * MIB, 4096) == b"x" * 4096
    # It was a clean end each time: nothing had to be copied.
    assert not cluster.volume("db").conditions


def go_on(stampers: list[Stamper]) -> None:
    """Waits until all of them have written more."""
    for stamper in stampers:
        wait_for("writes", partial(stamper.wrote_more_than, stamper.writes + 20))


def known(cluster: Cluster, sp: str) -> bool:
    """The controller has heard the process that serves now."""
    told = json.loads((cluster.sps[sp].state / "endpoints.json").read_text())
    return any(
        p.sp == sp and p.up and p.incarnation == told["incarnation"] for p in cluster.processors()
    )


def test_an_upgrade_that_does_not_run_changes_nothing(tmp_path: Path, heirs: list[int]) -> None:
    with Cluster(tmp_path / "cluster", ("sp-a",)) as cluster:
        cluster.add_device("sp-a", "a0")
        cluster.ctl("volume", "create", "db", "--size", "16M", "--layout", "sp-a")
        sp = cluster.sps["sp-a"]
        # What is installed next does not even start.
        cluster.end()
        broken = tmp_path / "installed"
        (broken / "vswitchd").parent.mkdir()
        (broken / "vswitchd").symlink_to(ROOT / "vswitchd")
        sp.code = broken
        cluster.controller.start()
        sp.start()
        with Client(sp.addresses["--nbd"], "db") as client:
            client.write(0, b"y" * 4096)
            (broken / "vswitchd").unlink()
            (broken / "vswitchd").mkdir()
            (broken / "vswitchd" / "__init__.py").touch()
            (broken / "vswitchd" / "__main__.py").write_text("raise SystemExit('broken')\n")
            os.kill(sp.pid, signal.SIGUSR2)
            wait_for(
                "the refusal",
                lambda: any("VS5090" in str(event.get("error")) for event in sp.events()),
            )
            assert client.read(0, 4096) == b"y" * 4096
        assert not inherited()


def test_systemd_s_sockets_are_listened_on(tmp_path: Path) -> None:
    """Socket activation, with the descriptors where systemd puts them."""
    with Cluster(tmp_path / "cluster", ("sp-a",)) as cluster:
        cluster.add_device("sp-a", "a0")
        cluster.ctl("volume", "create", "db", "--size", "16M", "--layout", "sp-a")
        sp = cluster.sps["sp-a"]
        sp.stop()
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
            # A host that comes before the SP is there waits.
            early = socket.create_connection(server.getsockname())
            options = [p for o in sp.addresses.items() for p in o if o[0] != "--nbd"]
            start = (
                "import os, sys; os.dup2(int(sys.argv[1]), 3);"
                "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', "
                "LISTEN_FDNAMES='nbd'); os.execv(sys.executable, "
                "[sys.executable, '-m', 'vswitchd', *sys.argv[2:]])"
            )
            argv = [sys.executable, "-c", start, str(server.fileno()), *sp.argv, *options]
            with sp.log.open("ab") as log:
                sp.process = subprocess.Popen(
                    guarded(*argv),
                    cwd=ROOT,
                    pass_fds=[server.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            wait_for("it to be ready", lambda: running(sp) == sp.pid)
        assert sp.endpoints["nbd"] == [address]
        early.settimeout(10)
        assert early.recv(8) == b"NBDMAGIC"
        early.close()
        with Client(address, "db") as client:
            client.write(0, b"z" * 4096)


def test_systemd_is_told_that_it_is_ready_and_that_it_turns(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(30)
        cluster = Cluster(tmp_path / "cluster", ())
        told_of = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        cluster.controller.environment = told_of
        try:
            cluster.controller.start()
            said = [told.recv(4096).decode() for _ in range(6)]
            assert "READY=1" in said
            assert said.count("WATCHDOG=1") >= 4
            # A loop that stands still tells nothing, and systemd ends it.
            os.kill(cluster.controller.pid, signal.SIGSTOP)
            told.settimeout(0.5)
            with pytest.raises(TimeoutError):
                while True:
                    told.recv(4096)
        finally:
            cluster.end()
