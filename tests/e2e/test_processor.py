"""An SP's process: what it refuses at its start, what it remembers over its end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import ANY, MIB, Cluster
from tests.e2e.conftest import make
from tests.e2e.nbd import Client
from tests.e2e.process import ROOT, wait_for

SIZE = 8 * MIB


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two SPs with a mirrored volume `db`, owned by sp-a."""
    cluster = make(tmp_path_factory.mktemp("two"), ("sp-a", "sp-b"))
    layout = "mirror(sp-a/a0, sp-b/b0)"
    cluster.ctl("volume", "create", "db", "--size", str(SIZE), "--layout", layout)
    assert cluster.volume("db").record.owner == "sp-a"
    yield cluster
    cluster.end()


def refused(two: Cluster, *argv: str) -> str:
    """What `vswitchd sp` says as it ends by itself, with a status that is not 0."""
    options = {
        "--name": "sp-x",
        "--state": str(two.root / "sp-x"),
        "--controller": two.controller.addresses["--listen"],
        "--vsm": ANY,
        "--peer": ANY,
        "--nbd": ANY,
        "--metrics": ANY,
        **dict(zip(argv[::2], argv[1::2], strict=True)),
    }
    done = subprocess.run(
        [sys.executable, "-m", "vswitchd", "sp", *(w for pair in options.items() for w in pair)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("vswitchd: VS"), done.stderr
    assert "Traceback" not in done.stderr
    assert not (Path(options["--state"]) / "endpoints.json").exists()
    return said


@pytest.mark.parametrize("option", ["--vsm", "--peer", "--nbd", "--metrics"])
def test_a_port_in_use_is_named(two: Cluster, option: str) -> None:
    taken = two.sps["sp-a"].addresses[option]
    said = refused(two, option, taken)
    assert taken in said
    assert option.removeprefix("--") in said


def test_a_state_directory_has_one_sp_and_one_process(two: Cluster) -> None:
    state = str(two.sps["sp-a"].state)
    alive = two.sps["sp-a"].state / "endpoints.json"
    before = alive.read_text()
    done = subprocess.run(
        [sys.executable, "-m", "vswitchd", "sp", "--name", "sp-a", "--state", state],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "VS3027" in done.stderr
    assert alive.read_text() == before
    two.sps["sp-b"].stop()
    try:
        assert "sp-b, not of sp-x" in refused(
            two, "--state", str(two.sps["sp-b"].state), "--vsm", ANY
        )
    finally:
        two.sps["sp-b"].start()
        two.wait_joined()


def test_names_and_addresses_that_cannot_be(two: Cluster) -> None:
    assert "VS1012" in refused(two, "--name", "SP 1")
    assert "VS1012" in refused(two, "--name", "any")
    assert "by which they reach it" in refused(two, "--peer", "0.0.0.0:0")
    assert "HOST:PORT" in refused(two, "--vsm", "nonsense")


def test_another_clusters_controller_is_refused(two: Cluster, tmp_path: Path) -> None:
    """An SP with a past is told that it came to the wrong place."""
    with Cluster(tmp_path / "other", ("sp-c",)) as other:
        other.sps["sp-c"].stop()
        said = refused(two, "--name", "sp-c", "--state", str(other.sps["sp-c"].state))
        assert other.status().cluster_id in said
        assert two.status().cluster_id in said


def resync(two: Cluster) -> int:
    """Percent done of db's resync at its owner."""
    return next(v.resync_percent for v in two.view("sp-a").t2s if v.active)


def test_a_clean_end_needs_no_resync_and_an_unclean_one_does(two: Cluster) -> None:
    sp = two.sps["sp-a"]

    def activations() -> list[dict[str, object]]:
        return [event for event in sp.events() if event["event"] == "ended"]

    with Client(sp.addresses["--nbd"], "db") as client:
        client.write(0, b"first".ljust(4096, b"."))
    assert sp.stop() == 0
    assert not (sp.state / "endpoints.json").exists()
    assert activations()[-1]["clean"] is True
    assert '"mirrored":[]' in (sp.state / "processor.json").read_text()
    sp.start()
    two.wait_joined()
    assert '"mirrored":[]' not in (sp.state / "processor.json").read_text()
    sp.kill()
    assert '"mirrored":[]' not in (sp.state / "processor.json").read_text()
    sp.start()
    two.wait_joined()
    wait_for("the resync to end", lambda: resync(two) == 100)
    with Client(sp.addresses["--nbd"], "db") as client:
        assert client.read(0, 4096) == b"first".ljust(4096, b".")


def test_sps_serve_and_restart_without_the_controller(two: Cluster) -> None:
    two.controller.kill()
    try:
        for sp in two.sps.values():
            sp.kill()
        for sp in two.sps.values():
            sp.start()
        with Client(two.sps["sp-b"].addresses["--nbd"], "db") as client:
            client.write(4096, b"alone".ljust(4096, b"."))
        with Client(two.sps["sp-a"].addresses["--nbd"], "db") as client:
            assert client.read(4096, 4096) == b"alone".ljust(4096, b".")
    finally:
        two.controller.start()
    two.wait_joined()


def test_a_device_that_was_away_is_used_again_when_it_is_back(two: Cluster) -> None:
    """And what stands in its place meanwhile is not taken for it."""
    sp = two.sps["sp-b"]
    device, aside = two.devices / "b0.img", two.devices / "aside"
    sp.stop()
    device.rename(aside)
    with device.open("wb") as blank:
        blank.truncate(1024 * MIB)
    sp.start()
    two.wait_joined()
    (found,) = [d for d in two.view("sp-b").devices if d.uri.endswith("b0.img")]
    assert not found.up
    assert "blank" in found.error
    assert not any(device.read_bytes()[: 4 * MIB])
    aside.rename(device)
    wait_for("b0 to be up", lambda: all(d.up for d in two.view("sp-b").devices))
    with Client(sp.addresses["--nbd"], "db") as client:
        assert client.read(0, 4096) == b"first".ljust(4096, b".")
