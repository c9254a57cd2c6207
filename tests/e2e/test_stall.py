"""Slow and odd devices: one that does not answer for as long as a test wants, behind a file and
behind an NBD address, beside a good one at the same SP; and devices past the page cache."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.e2e.cluster import MIB, Cluster
from tests.e2e.nbd import FLUSH, FUA, READ, TRIM, WRITE, Client
from tests.e2e.process import END, guarded, wait_for

SIZE = 64 * MIB
DEVICE = 256 * MIB
#: More than the threads that an SP has for one device.
HANGING = 12
#: Where nothing was written or read before: what is read there has to come from the device.
COLD = 32 * MIB
ROUNDS = 25


class Staller:
    """nbdkit on a file, which stops answering when told to; and the same as a file by nbdfuse."""

    def __init__(self, root: Path, mount: Path) -> None:
        self._backing = root / "slow.backing"
        self._sock = root / "slow.sock"
        self._control = root / "slow.control"
        self._mount = mount
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *, delay: str = "0") -> None:
        """Starts nbdkit; it answers, each request after that delay."""
        with self._backing.open("wb") as file:
            file.truncate(DEVICE)
        argv = ["nbdkit", "-f", "-U", str(self._sock), "--filter=pause"]
        argv += ["--filter=delay", "file", str(self._backing)]
        argv += [f"pause-control={self._control}", f"rdelay={delay}", f"wdelay={delay}"]
        self._running.append(subprocess.Popen(guarded(*argv)))
        wait_for("nbdkit to listen", lambda: self._sock.exists() and self._control.exists())

    def mount(self) -> Path:
        """Has it looked at as a file."""
        self._mount.mkdir()
        file = self._mount / "disk"
        # Ended by SIGTERM it unmounts by itself, also if this test is killed.
        argv = ["setpriv", "--pdeathsig", "TERM", "--", "nbdfuse", str(file), self.uri]
        self._running.append(subprocess.Popen(argv))
        wait_for("nbdfuse to mount", file.exists)
        return file

    @property
    def uri(self) -> str:
        """Its NBD URI."""
        return f"nbd+unix:///?socket={self._sock}"

    def _tell(self, letter: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(END)
            control.connect(str(self._control))
            control.sendall(letter)
            assert control.recv(1) == letter.upper()

    def stall(self) -> None:
        """No request that comes from now on is answered."""
        self._tell(b"p")

    def resume(self) -> None:
        """All that wait are answered."""
        self._tell(b"r")

    def let_go(self) -> None:
        """Resumes if it runs, however a test has ended: nobody can be killed who waits for it."""
        if self._running:
            with suppress(OSError):
                self.resume()

    def end(self) -> None:
        """Unmounts and ends all of it."""
        self.let_go()
        for process in reversed(self._running):
            process.terminate()
            process.wait(END)


@pytest.fixture
def staller(tmp_path: Path) -> Iterator[Staller]:
    made = Staller(tmp_path, tmp_path / "devices" / "slow")
    yield made
    made.end()


@pytest.fixture
def one(tmp_path: Path, staller: Staller) -> Iterator[Cluster]:
    """A cluster of one SP with a good file device and an NBD or file device that can stall."""
    with Cluster(tmp_path, ("sp-a",)) as cluster:
        cluster.add_device("sp-a", "good", DEVICE)
        yield cluster
        staller.let_go()


def _evict(path: Path) -> None:
    """Has a file read from its disk again."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _has_fuse() -> bool:
    usable = os.access("/dev/fuse", os.R_OK | os.W_OK)
    return usable and (os.geteuid() == 0 or shutil.which("fusermount3") is not None)


def _block(seed: int) -> bytes:
    return seed.to_bytes(8, "big") * 512


@pytest.mark.parametrize("kind", ["file", "nbd"])
def test_a_device_that_stalls_holds_up_its_own_requests_only(
    one: Cluster, staller: Staller, kind: str
) -> None:
    if kind == "file" and not _has_fuse():
        pytest.skip("no FUSE here: /dev/fuse is missing or may not be used")
    staller.start()
    uri = f"file:{staller.mount()}" if kind == "file" else staller.uri
    one.ctl("device", "add", uri, "--sp", "sp-a", "--name", "slow")
    for name in ("slow", "good"):
        one.ctl("volume", "create", name, "--size", str(SIZE), "--layout", f"sp-a/{name}")
    nbd = one.sps["sp-a"].addresses["--nbd"]
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(nbd, "slow")) for _ in range(HANGING)]
        good = stack.enter_context(Client(nbd, "good"))
        clients[0].write(COLD, b"before")
        for block in range(ROUNDS):
            good.write(COLD + block * MIB, _block(block))
        good.flush()

        staller.stall()
        # Reads that have to go to the device on most connections, and the rest of what there is.
        for number, client in enumerate(clients):
            what = number % 4 if number >= HANGING // 2 else 0
            where = COLD - (number + 1) * MIB
            match what:
                case 0:
                    client.send(READ, where, 4096)
                case 1:
                    client.send(WRITE, where, 4096, _block(number))
                case 2:
                    client.send(TRIM, where, 65536)
                case _:
                    client.send(FLUSH)
        for block in range(ROUNDS):
            at = COLD + block * MIB
            _evict(one.devices / "good.img")
            assert good.read(at, 4096) == _block(block)
            good.write(at, _block(block + 100))
            good.write(at + 4096, _block(block + 200), fua=True)
            good.flush()
            good.trim(at + 8192, 4096)
            good.zero(at + 16384, 4096)
        # A connection that comes now, on whichever loop, is served too.
        for _ in range(4):
            with Client(nbd, "good") as late:
                assert late.read(COLD, 4096) == _block(100)
        assert one.sps["sp-a"].ready()

        reading = [client for number, client in enumerate(clients) if number < HANGING // 2]
        answered, _, _ = select.select([client.socket for client in reading], [], [], 0)
        assert not answered, "they did hang all the while"
        staller.resume()
        for number, client in enumerate(clients):
            what = number % 4 if number >= HANGING // 2 else 0
            assert client.answer(4096 if what == 0 else 0) == (bytes(4096) if what == 0 else b"")
        for number in range(HANGING // 2, HANGING):
            if number % 4 == 1:
                assert clients[0].read(COLD - (number + 1) * MIB, 4096) == _block(number)
        clients[0].flush()
        assert clients[0].read(COLD, 6) == b"before"
    listed = {d["name"]: d["paths"][0] for d in one.ctl("device", "list").json}
    assert listed["slow"]["up"] and listed["good"]["up"]


@pytest.mark.parametrize("kind", ["file", "nbd"])
def test_a_device_that_is_slow_at_everything_is_served(
    one: Cluster, staller: Staller, kind: str
) -> None:
    """Nothing that it is used for gives up: not labels, nor control calls, nor requests."""
    if kind == "file" and not _has_fuse():
        pytest.skip("no FUSE here: /dev/fuse is missing or may not be used")
    staller.start(delay="200ms")
    uri = f"file:{staller.mount()}" if kind == "file" else staller.uri
    one.ctl("device", "add", uri, "--sp", "sp-a", "--name", "slow")
    for name in ("slow", "good"):
        one.ctl("volume", "create", name, "--size", str(SIZE), "--layout", f"sp-a/{name}")
    nbd = one.sps["sp-a"].addresses["--nbd"]
    with Client(nbd, "slow") as slow, Client(nbd, "good") as good:
        for number in range(5):
            slow.send(WRITE, COLD + number * MIB, 4096, _block(number), flags=FUA)
            for block in range(ROUNDS):
                good.write(block * MIB, _block(block), fua=True)
                assert good.read(block * MIB, 4096) == _block(block)
            slow.answer()
            assert slow.read(COLD + number * MIB, 4096) == _block(number)
            assert slow.read(number * MIB, 4096) == bytes(4096)
        slow.flush()
    one.ctl("volume", "grow", "slow", "--size", str(2 * SIZE))
    one.ctl("volume", "delete", "slow")


def test_a_direct_device_serves_any_alignment_and_outlives_a_restart(tmp_path: Path) -> None:
    with Cluster(tmp_path, ("sp-a",)) as cluster:
        path = cluster.devices / "fast.img"
        add = ("device", "add", f"file:{path}", "--sp", "sp-a", "--name", "fast")
        cluster.ctl(*add, "--size", str(DEVICE), "--direct")
        cluster.ctl("volume", "create", "db", "--size", str(SIZE), "--layout", "sp-a/fast")
        nbd = cluster.sps["sp-a"].addresses["--nbd"]
        flat = bytearray(MIB)
        with Client(nbd, "db") as client:
            for number, (at, length) in enumerate(
                [(0, 4096), (5, 1), (4000, 9999), (123457, 65537)]
            ):
                data = os.urandom(length)
                client.write(at, data, fua=number % 2 == 0)
                flat[at : at + length] = data
            client.zero(4097, 8191)
            flat[4097 : 4097 + 8191] = bytes(8191)
            client.flush()
            assert client.read(0, MIB) == flat
        assert "direct" in _shown(cluster)
        for action in ("kill", "restart"):
            cluster.sps["sp-a"].kill()
            cluster.sps["sp-a"].start()
            cluster.wait_joined()
            assert "direct" in _shown(cluster), action
            with Client(nbd, "db") as client:
                assert client.read(0, MIB) == flat
                client.write(999, b"after")
                flat[999:1004] = b"after"
        # The other way it can't be had while it is open.
        again = cluster.ctl(*add, status=None)
        assert again.status != 0
        assert "is open with --direct" in again.err


def _shown(cluster: Cluster) -> str:
    argv = [sys.executable, "-m", "vswitchd.cli", *cluster.ctl_options, "device", "show", "fast"]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout


def test_an_nbd_device_refuses_direct(one: Cluster, staller: Staller) -> None:
    staller.start()
    ran = one.ctl("device", "add", staller.uri, "--sp", "sp-a", "--direct", status=None)
    assert ran.status != 0
    assert "without --direct" in ran.err
    assert [d["name"] for d in one.ctl("device", "list").json] == ["good"]
