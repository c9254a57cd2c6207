"""Every real NBD client that a host may bring, over TCP and over a unix socket."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import MIB, Cluster
from tests.e2e.process import END, guarded, wait_for

SIZE = 64 * MIB
LAYOUTS = {
    "linear": "sp-a/a0",
    "mirror": "mirror(sp-a/a0, sp-b/b0)",
    "stripe": "stripe(sp-a/a0, sp-b/b0, chunk=64K)",
    "remote": "sp-b/b0",
}


def run(*argv: str, status: int = 0, seconds: float = 120.0) -> str:
    """Runs a client to its end; its output, or a failure that shows it."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == status, f"{argv} -> {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def volumes(shared: Cluster) -> Cluster:
    """One volume per layout, each served at sp-a."""
    for name, layout in LAYOUTS.items():
        shared.ctl("volume", "create", name, "--size", str(SIZE), "--layout", layout)
        if name == "remote":
            shared.ctl("volume", "serve", name, "--on", "sp-a")
    return shared


@pytest.fixture(params=["tcp", "unix"])
def uri(volumes: Cluster, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """volume -> its NBD URI at sp-a, over both transports in turn."""
    return lambda name: volumes.uri(name, "sp-a", unix=request.param == "unix")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A local image: random runs, zero runs and holes, as big as a volume."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        for index in range(0, SIZE // MIB, 4):
            file.seek(index * MIB)
            file.write(os.urandom(MIB) + bytes(MIB) + os.urandom(4096))
        file.truncate(SIZE)
    return path


def test_nbdinfo_lists_and_describes(volumes: Cluster, uri: Callable[[str], str]) -> None:
    found = json.loads(run("nbdinfo", "--json", uri("linear")))
    export = found["exports"][0]
    assert found["protocol"] == "newstyle-fixed"
    assert export["export-name"] == "linear"
    assert export["export-size"] == SIZE
    assert not export["is_read_only"]
    assert export["can_multi_conn"] and export["can_fua"] and export["can_trim"]
    assert export["block_size_minimum"] == 1 and export["block_size_preferred"] == 4096
    assert {"base:allocation", "vswitch:health"} <= set(export["contexts"])
    listed = json.loads(run("nbdinfo", "--list", "--json", uri("linear")))
    assert set(LAYOUTS) <= {e["export-name"] for e in listed["exports"]}
    run("nbdinfo", "--can", "structured-reply", uri("linear"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_nbdcopy_both_ways_and_qemu_img_compare(
    uri: Callable[[str], str], image: Path, tmp_path: Path, name: str
) -> None:
    run("nbdcopy", "--flush", str(image), uri(name))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), uri(name))
    back = tmp_path / "back"
    run("nbdcopy", uri(name), str(back))
    run("cmp", str(image), str(back))


@pytest.mark.parametrize("name", LAYOUTS)
def test_qemu_io_writes_zeroes_discards_and_reads_back(
    uri: Callable[[str], str], name: str
) -> None:
    script = (
        "write -P 0x5a 1M 2M",
        "write -z 1M 64k",
        "write -z -u 1088k 64k",
        "write -f -P 0x77 3M 4k",
        "discard 2M 1M",
        "flush",
        "read -P 0 1M 128k",
        "read -P 0x5a 1152k 896k",
        "read -P 0 2M 1M",
        "read -P 0x77 3M 4k",
        "aio_write -P 0x11 8M 4M",
        "aio_write -P 0x22 16M 4M",
        "aio_flush",
        "read -P 0x11 8M 4M",
        "read -P 0x22 16M 4M",
    )
    commands = [part for command in script for part in ("-c", command)]
    out = run("qemu-io", "-f", "raw", "-d", "unmap", *commands, uri(name))
    assert "failed" not in out and "verification" not in out, out


@pytest.mark.parametrize("name", LAYOUTS)
def test_libnbd_python(uri: Callable[[str], str], name: str) -> None:
    script = Path(__file__).with_name("libnbd_script.py")
    # -P: the `nbd` of Debian, not the client beside the script.
    run("/usr/bin/python3", "-P", str(script), uri(name))


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts nbdkit in front of a URI with filters; returns the URI of nbdkit's socket."""
    started: list[subprocess.Popen[bytes]] = []

    def start(uri: str, *filters: str) -> str:
        sock = tmp_path / f"front{len(started)}.sock"
        options = [f"--filter={name}" for name in filters]
        settings = ["statsfile=/dev/null"] if "stats" in filters else []
        argv = guarded("nbdkit", "-f", "-U", str(sock), *options, "nbd", f"uri={uri}", *settings)
        started.append(subprocess.Popen(argv))
        wait_for("nbdkit to listen", sock.exists)
        return f"nbd+unix:///?socket={sock}"

    yield start
    for process in started:
        process.terminate()
        process.wait(END)


@pytest.mark.parametrize("filters", [("blocksize",), ("cow",), ("stats", "readahead")])
def test_nbdkit_filters_in_front(
    uri: Callable[[str], str],
    front: Callable[..., str],
    image: Path,
    filters: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    via = front(uri("mirror"), *filters)
    run("nbdcopy", str(image), via)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), via)


def test_fio_verifies(uri: Callable[[str], str], tmp_path: Path) -> None:
    argv = ("fio", "--name=v", "--ioengine=nbd", f"--uri={uri('mirror')}", "--rw=randwrite")
    run(
        *argv,
        *("--bssplit=4k/70:64k/30", "--serialize_overlap=1", "--size=32M", "--iodepth=16"),
        *(
            "--verify=crc32c",
            "--verify_backlog=64",
            "--verify_state_save=0",
            "--fsync=100",
            f"--output={tmp_path / 'fio'}",
        ),
    )


def test_block_status_shows_what_was_written_and_what_was_not(
    volumes: Cluster, uri: Callable[[str], str]
) -> None:
    run("qemu-io", "-f", "raw", "-d", "unmap", "-c", "discard 0 64M", uri("stripe"))
    run("qemu-io", "-f", "raw", "-c", "write -P 1 16M 1M", uri("stripe"))
    out = run("nbdinfo", "--map", uri("stripe"))
    data = [
        (int(m[1]), int(m[2]))
        for line in out.splitlines()
        if (m := re.match(r"\s*(\d+)\s+(\d+)\s+(\d+)\s", line)) and int(m[3]) & 1 == 0
    ]
    assert data and all(o >= 16 * MIB and o + n <= 17 * MIB for o, n in data), out
    assert sum(n for _, n in data) == MIB, out
