"""nbdkit in front of a volume, with its filters, and behind one, as a device."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.cluster import MIB, Cluster
from tests.e2e.nbd import EIO, Client, NbdError, RefusedError
from tests.e2e.process import ROOT, guarded, wait_for

PLUGIN = ROOT / "vswitchd" / "nbdkit" / "plugin.py"
CTL = ROOT / ".venv" / "bin" / "vswitchctl"
SIZE = 16 * MIB


@contextmanager
def nbdkit(root: Path, name: str, *options: str, filters: tuple[str, ...] = ()) -> Iterator[str]:
    """nbdkit with the plugin and these options; the path of its socket."""
    path = root / f"{name}.sock"
    argv = ["nbdkit", "-f", "-U", str(path), *(f"--filter={one}" for one in filters)]
    argv += ["python", str(PLUGIN), f"vswitchctl={CTL}", *options]
    with (root / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(guarded(*argv), stdin=subprocess.DEVNULL, stderr=log)
    try:
        wait_for("nbdkit to listen", path.exists)
        yield str(path)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def options(shared: Cluster, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """What says where the test's own volume is."""
    name = request.node.name[5:40].replace("_", "-").rstrip("-")
    create = ("volume", "create", name, "--size", str(SIZE), "--layout", "mirror(sp-a, sp-b)")
    shared.ctl(*create)
    yield [f"volume={name}", f"controller={shared.controller.addresses['--listen']}"]
    shared.ctl("volume", "delete", name)


def name_of(options: list[str]) -> str:
    return options[0].partition("=")[2]


def test_a_volume_is_served_through_nbdkit(
    shared: Cluster, options: list[str], tmp_path: Path
) -> None:
    with nbdkit(tmp_path, "plain", *options) as path, Client(path, "") as client:
        assert client.size == SIZE
        client.write(4096, b"a" * 8192, fua=True)
        assert client.read(4096, 8192) == b"a" * 8192
        client.zero(4096, 4096)
        client.trim(8192, 4096)
        client.flush()
        assert client.read(0, 16384) == bytes(16384)
        client.write(MIB, b"b" * MIB)
        with pytest.raises(NbdError):
            client.write(SIZE - 4096, b"c" * 8192)
        with Client(shared.sps["sp-b"].addresses["--nbd"], name_of(options)) as direct:
            assert direct.read(MIB, MIB) == b"b" * MIB
        uri = f"nbd+unix:///?socket={path}"
        done = subprocess.run(
            ["qemu-img", "compare", "-f", "raw", "-F", "raw", uri, uri], timeout=60, check=False
        )
        assert done.returncode == 0


def test_the_cow_filter_keeps_writes_away_from_the_volume(
    shared: Cluster, options: list[str], tmp_path: Path
) -> None:
    with nbdkit(tmp_path, "plain", *options) as path, Client(path, "") as client:
        client.write(0, b"1" * 4096)
    with nbdkit(tmp_path, "cow", *options, filters=("cow",)) as path, Client(path, "") as client:
        client.write(4096, b"2" * 4096)
        assert client.read(0, 8192) == b"1" * 4096 + b"2" * 4096
    with Client(shared.sps["sp-a"].addresses["--nbd"], name_of(options)) as direct:
        assert direct.read(0, 8192) == b"1" * 4096 + bytes(4096)


def test_the_rate_and_error_filters_work_in_front_of_a_volume(
    options: list[str], tmp_path: Path
) -> None:
    trigger = tmp_path / "fails"
    more = ["rate=1G", "error-pwrite=EIO", "error-pwrite-rate=100%"]
    more += [f"error-pwrite-file={trigger}"]
    with (
        nbdkit(tmp_path, "both", *options, *more, filters=("rate", "error")) as path,
        Client(path, "") as client,
    ):
        client.write(0, b"1" * 4096)
        trigger.touch()
        with pytest.raises(NbdError) as error:
            client.write(0, b"2" * 4096)
        assert error.value.number == EIO
        trigger.unlink()
        assert client.read(0, 4096) == b"1" * 4096


def test_another_sp_is_asked_when_one_is_lost(cluster: Cluster, tmp_path: Path) -> None:
    create = ("volume", "create", "db", "--size", str(SIZE), "--layout", "mirror(sp-a, sp-b)")
    cluster.ctl(*create, "--on", "sp-a,sp-b")
    where = f"controller={cluster.controller.addresses['--listen']}"
    with nbdkit(tmp_path, "plain", "volume=db", where) as path, Client(path, "") as client:
        client.write(0, b"1" * 4096)
        owner = cluster.volume("db").record.owner
        cluster.sps[owner].kill()
        client.write(4096, b"2" * 4096)
        assert client.read(0, 8192) == b"1" * 4096 + b"2" * 4096


def test_what_can_not_work_is_refused(shared: Cluster, tmp_path: Path) -> None:
    for bad in (["volume=x", "vswitchctl=/nowhere"], ["volume=x", "hold=-1"], ["x=y"], []):
        argv = ["nbdkit", "-f", "-U", str(tmp_path / "s"), "python", str(PLUGIN), *bad]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1, done
        assert "Error" in done.stderr
    where = f"controller={shared.controller.addresses['--listen']}"
    with (
        nbdkit(tmp_path, "none", "volume=none", where) as path,
        pytest.raises((RefusedError, ConnectionError)),
    ):
        Client(path, "")


def test_a_plugin_of_nbdkit_is_a_device(shared: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "behind.sock"
    argv = ["nbdkit", "-f", "-U", str(path), "memory", "1G"]
    process = subprocess.Popen(guarded(*argv), stdin=subprocess.DEVNULL)
    try:
        wait_for("nbdkit to listen", path.exists)
        shared.ctl("device", "add", f"nbd+unix:///?socket={path}", "--sp", "sp-c", "--name", "mem")
        shared.ctl("volume", "create", "inmem", "--size", "16M", "--layout", "sp-c/mem")
        with Client(shared.sps["sp-c"].addresses["--nbd"], "inmem") as client:
            client.write(0, b"m" * 65536)
            client.flush()
            assert client.read(0, 65536) == b"m" * 65536
        shared.ctl("volume", "delete", "inmem")
        shared.ctl("device", "remove", "mem", "--sp", "sp-c")
    finally:
        process.kill()
        process.wait()
