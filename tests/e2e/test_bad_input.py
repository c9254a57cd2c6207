"""Bad input, on the wire and on the command line: a clear error, and nothing changed."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import nbd
from tests.e2e.cluster import MIB, Cluster
from tests.e2e.conftest import make
from tests.e2e.nbd import Client, NbdError, RefusedError
from tests.e2e.process import ROOT

SIZE = 16 * MIB
USAGE, NOT_FOUND, PRECONDITION, UNSAFE, UNREACHABLE = 2, 3, 4, 5, 6


@pytest.fixture(scope="module")
def one(shared: Cluster) -> Cluster:
    """A cluster with one mirrored volume `db`, stamped at both ends."""
    shared.ctl(
        "volume", "create", "db", "--size", str(SIZE), "--layout", "mirror(sp-a/a0, sp-b/b0)"
    )
    with Client(shared.sps["sp-a"].addresses["--nbd"], "db") as client:
        client.write(0, b"first".ljust(4096, b"."))
        client.write(SIZE - 4096, b"last".ljust(4096, b"."))
    return shared


def state(cluster: Cluster) -> object:
    """All that bad input must leave as it is."""
    return (
        [v.record.SerializeToString(deterministic=True) for v in cluster.volumes()],
        cluster.status().allocated_bytes,
        cluster.status().devices,
        {sp: [t1.SerializeToString() for t1 in view.t1s] for sp, view in cluster.views().items()},
    )


@pytest.fixture
def unchanged(one: Cluster) -> Iterator[Cluster]:
    """The cluster; fails if the test changed anything, its data included."""
    before = state(one)
    yield one
    assert state(one) == before
    with Client(one.sps["sp-a"].addresses["--nbd"], "db") as client:
        assert client.read(0, 4096) == b"first".ljust(4096, b".")
        assert client.read(SIZE - 4096, 4096) == b"last".ljust(4096, b".")


@pytest.fixture(params=["tcp", "unix"])
def address(unchanged: Cluster, request: pytest.FixtureRequest) -> str:
    """Where sp-a serves NBD, over both transports in turn."""
    if request.param == "unix":
        return str(unchanged.root / "sp-a.sock")
    return unchanged.sps["sp-a"].addresses["--nbd"]


# On the wire.


def test_an_unknown_export_is_refused_and_the_session_goes_on(address: str) -> None:
    with Client(address) as client:
        for wrong in ("nosuch", "", "db ", "x" * 4000):
            with pytest.raises(RefusedError) as refused:
                client.go(wrong)
            assert refused.value.reply == nbd.REP_ERR_UNKNOWN
        assert "db" in client.list()
        client.go("db")
        assert client.size == SIZE


def test_an_unknown_option_is_refused_and_the_session_goes_on(address: str) -> None:
    with Client(address) as client:
        with pytest.raises(RefusedError) as refused:
            client.option(4242, b"what")
        assert refused.value.reply == nbd.REP_ERR_UNSUP
        client.go("db")


def test_an_unknown_old_style_export_closes_the_connection(address: str) -> None:
    with Client(address) as client:
        head = struct.pack(">QII", nbd.IHAVEOPT, nbd.OPT_EXPORT_NAME, 6)
        client.socket.sendall(head + b"nosuch")
        with pytest.raises(ConnectionError):
            client.receive(10)


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b"\xff" * 64])
def test_junk_instead_of_options_closes_that_connection_only(address: str, junk: bytes) -> None:
    with Client(address, "db") as other, Client(address) as client:
        client.socket.sendall(junk)
        with pytest.raises(ConnectionError):
            while True:
                client.receive(1)
        assert len(other.read(0, 4096)) == 4096


def test_a_request_of_bad_magic_closes_that_connection_only(address: str) -> None:
    with Client(address, "db") as other, Client(address, "db") as client:
        client.send(nbd.READ, 0, 4096, magic=0x12345678)
        with pytest.raises(ConnectionError):
            client.receive(1)
        assert len(other.read(0, 4096)) == 4096


PAST: list[tuple[str, Callable[[Client], object], int]] = [
    ("read over the end", lambda c: c.read(SIZE - 512, 1024), nbd.EINVAL),
    ("read past the end", lambda c: c.read(SIZE, 1), nbd.EINVAL),
    ("read far past the end", lambda c: c.read((1 << 64) - 4096, 4096), nbd.EINVAL),
    ("write over the end", lambda c: c.write(SIZE - 512, bytes(1024)), nbd.ENOSPC),
    ("write past the end", lambda c: c.write(SIZE + 4096, bytes(512)), nbd.ENOSPC),
    ("write that wraps", lambda c: c.write((1 << 64) - 512, bytes(1024)), nbd.ENOSPC),
    ("zero over the end", lambda c: c.zero(SIZE - 4096, 8192), nbd.ENOSPC),
    ("trim past the end", lambda c: c.trim(SIZE, 4096), nbd.EINVAL),
]


@pytest.mark.parametrize(("request_", "number"), [p[1:] for p in PAST], ids=[p[0] for p in PAST])
def test_a_request_past_the_end_is_an_error_and_the_session_goes_on(
    address: str, request_: Callable[[Client], object], number: int
) -> None:
    with Client(address, "db") as client:
        with pytest.raises(NbdError) as error:
            request_(client)
        assert error.value.number == number
        assert len(client.read(0, 512)) == 512


def test_an_unaligned_request_within_the_volume_is_served(address: str) -> None:
    """The smallest block is advertised as one byte: alignment is asked for, not demanded."""
    with Client(address, "db") as client:
        client.write(8191, b"abc")
        assert client.read(8190, 5) == b"\0abc\0"
        client.write(8191, bytes(3))


@pytest.mark.parametrize("command", [nbd.READ, nbd.TRIM])
def test_an_unknown_flag_is_an_error_and_the_session_goes_on(address: str, command: int) -> None:
    with Client(address, "db") as client:
        client.send(command, 0, 4096, flags=0x8000)
        with pytest.raises(NbdError) as error:
            client.answer()
        assert error.value.number == nbd.EINVAL
        assert len(client.read(0, 512)) == 512


def test_an_unknown_command_is_an_error_and_the_session_goes_on(address: str) -> None:
    with Client(address, "db") as client:
        client.send(99, 0, 0)
        with pytest.raises(NbdError) as error:
            client.answer()
        assert error.value.number == nbd.EINVAL
        assert len(client.read(0, 512)) == 512


def test_an_oversize_read_is_an_error_and_the_session_goes_on(address: str) -> None:
    with Client(address, "db") as client:
        client.send(nbd.READ, 0, (64 << 20) + 4096)
        with pytest.raises(NbdError) as error:
            client.answer()
        assert error.value.number in (nbd.EINVAL, nbd.EOVERFLOW)
        assert len(client.read(0, 512)) == 512


def test_an_oversize_write_is_refused_and_hurts_nobody_else(address: str) -> None:
    """Its payload cannot sensibly be read away, so the server may hang up on that connection."""
    with Client(address, "db") as other, Client(address, "db") as client:
        client.send(nbd.WRITE, 0, 0xFFFFFFFF)
        with pytest.raises((NbdError, ConnectionError)):
            client.answer()
        assert len(other.read(0, 4096)) == 4096


def test_a_connection_cut_in_the_middle_of_a_write_changes_nothing(address: str) -> None:
    with Client(address, "db") as client:
        client.send(nbd.WRITE, 0, 4096, b"half of it")
        client.socket.shutdown(socket.SHUT_RDWR)


# On the command line.


def refused(cluster: Cluster, status: int, pattern: str, *argv: str) -> None:
    """vswitchctl ends with that status, an error code, and a message that matches."""
    ran = cluster.ctl(*argv, status=None)
    assert ran.status == status, str(ran)
    assert re.search(r"\bVS\d{4}\b", ran.err), str(ran)
    assert re.search(pattern, ran.err), str(ran)
    assert "Traceback" not in ran.err, str(ran)


CREATE = ("volume", "create")
COMMANDS: list[tuple[int, str, tuple[str, ...]]] = [
    (USAGE, r"4096", (*CREATE, "x", "--size", "1000")),
    (USAGE, r"size|expected", (*CREATE, "x", "--size", "lots")),
    (USAGE, r"(?i)name", (*CREATE, "Not_OK!", "--size", "8M")),
    (USAGE, r"\^", (*CREATE, "x", "--size", "8M", "--layout", "mirror(sp-a,")),
    (USAGE, r"\^", (*CREATE, "x", "--size", "8M", "--layout", "raid5(sp-a, sp-b)")),
    (USAGE, r"chunk|\^", (*CREATE, "x", "--size", "8M", "--layout", "stripe(2, chunk=5K)")),
    (NOT_FOUND, r"sp-x", (*CREATE, "x", "--size", "8M", "--layout", "mirror(sp-a, sp-x)")),
    (NOT_FOUND, r"nodev", (*CREATE, "x", "--size", "8M", "--layout", "sp-a/nodev")),
    (PRECONDITION, r"db", (*CREATE, "db", "--size", "8M")),
    (PRECONDITION, r"(?i)space|free", (*CREATE, "x", "--size", "800G")),
    (PRECONDITION, r"(?i)space|free", (*CREATE, "x", "--size", "3G", "--layout", "sp-c/c0")),
    (NOT_FOUND, r"nosuch", ("volume", "show", "nosuch")),
    (NOT_FOUND, r"nosuch", ("volume", "delete", "nosuch")),
    (NOT_FOUND, r"nosuch", ("volume", "grow", "nosuch", "--size", "1G")),
    (NOT_FOUND, r"sp-x", ("volume", "serve", "db", "--on", "sp-x")),
    (NOT_FOUND, r"sp-x", ("volume", "move", "db", "--from", "sp-a", "--to", "sp-x")),
    (USAGE, r"4096", ("volume", "grow", "db", "--size", str(SIZE + 1))),
    (NOT_FOUND, r"sp-x", ("sp", "show", "sp-x")),
    (NOT_FOUND, r"nosuch", ("device", "show", "nosuch")),
    (NOT_FOUND, r"nosuch", ("operation", "show", "nosuch")),
]


@pytest.mark.parametrize(("status", "pattern", "argv"), COMMANDS, ids=lambda v: str(v)[:60])
def test_the_command_line_says_what_is_wrong(
    unchanged: Cluster, status: int, pattern: str, argv: tuple[str, ...]
) -> None:
    refused(unchanged, status, pattern, *argv)


def test_what_is_unsafe_or_out_of_state_is_refused(unchanged: Cluster) -> None:
    any_of = (PRECONDITION, UNSAFE)
    for argv in (
        ("volume", "grow", "db", "--size", str(SIZE // 2)),
        ("volume", "mirror", "remove", "db", "--leg", "7"),
        ("volume", "unserve", "db", "--on", "sp-c"),
        ("volume", "move", "db", "--from", "sp-c", "--to", "sp-a"),
        ("device", "remove", "a0", "--sp", "sp-a"),
        ("sp", "remove", "sp-a"),
    ):
        ran = unchanged.ctl(*argv, status=None)
        assert ran.status in (*any_of, USAGE, NOT_FOUND), str(ran)
        assert re.search(r"\bVS\d{4}\b", ran.err), str(ran)


def test_a_foreign_or_missing_device_is_refused(unchanged: Cluster) -> None:
    foreign = unchanged.devices / "foreign.img"
    foreign.write_bytes(b"someone's data".ljust(64 * MIB, b"\0"))
    try:
        refused(unchanged, UNSAFE, r"foreign", *adding(foreign))
        assert foreign.read_bytes().startswith(b"someone's data")
    finally:
        foreign.unlink()
    refused(unchanged, NOT_FOUND, r"missing", *adding(unchanged.devices / "missing.img"))
    refused(unchanged, USAGE, r"(?i)root|allow", *adding(Path("/dev/null")))
    small = unchanged.devices / "small.img"
    refused(unchanged, USAGE, r"(?i)size|small", *adding(small), "--size", "1M")
    assert not small.exists()


def adding(path: Path) -> tuple[str, ...]:
    """The words that give sp-a a device."""
    return ("device", "add", f"file:{path}", "--sp", "sp-a")


def test_another_clusters_device_and_another_volumes_file_are_refused(
    unchanged: Cluster, tmp_path: Path
) -> None:
    other = make(tmp_path / "other", ("sp-a", "sp-b"))
    try:
        theirs = other.devices / "a0.img"
        before = theirs.read_bytes()[: 4 * MIB]
        link = unchanged.devices / "theirs.img"
        link.hardlink_to(theirs)
        refused(unchanged, UNSAFE, re.escape(other.status().cluster_id), *adding(link))
        link.unlink()
        assert theirs.read_bytes()[: 4 * MIB] == before
    finally:
        other.end()
    # A file that is already this SP's device, under another name: the same device, not a new one.
    again = unchanged.devices / "again.img"
    again.hardlink_to(unchanged.devices / "a0.img")
    try:
        unchanged.ctl(*adding(again), status=None)
    finally:
        again.unlink()


def test_a_controller_that_is_not_there_is_exit_6(unchanged: Cluster) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-m", "vswitchd.cli", "--controller", f"127.0.0.1:{port}", "status"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == UNREACHABLE, done.stderr
    assert f"127.0.0.1:{port}" in done.stderr


def test_wrong_words_are_usage(unchanged: Cluster) -> None:
    for argv in (("volume",), ("volume", "frobnicate"), ("volume", "create"), ("nonsense",)):
        ran = unchanged.ctl(*argv, status=None)
        assert ran.status == USAGE, str(ran)
