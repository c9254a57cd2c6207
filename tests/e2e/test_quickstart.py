"""`vswitchd quickstart`: the first five minutes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.nbd import Client
from tests.e2e.process import ROOT, guarded, wait_for

SECONDS = 90.0


class Quickstart:
    """One run in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory.with_name(f"{directory.name}.out")
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                guarded(sys.executable, "-m", "vswitchd", "quickstart", "--dir", str(directory)),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def said(self) -> str:
        return self.log.read_text()

    def wait_ready(self) -> str:
        """What it tells people to do."""

        def told() -> str | None:
            if self.process.poll() is not None:
                raise RuntimeError(f"ended with {self.process.returncode}:\n{self.said()}")
            return self.said() if "Ctrl-C ends everything" in self.said() else None

        return wait_for("the quickstart to be ready", told, SECONDS)

    def children(self) -> dict[str, int]:
        """Its daemons' pids."""
        return {
            file.parent.name: json.loads(file.read_text())["pid"]
            for file in self.directory.glob("*/endpoints.json")
        }

    def end(self) -> int:
        """Ctrl-C, and the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(SECONDS)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "qs"


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_volume_to_try_and_the_same_data_the_second_time(directory: Path) -> None:
    first = Quickstart(directory)
    text = first.wait_ready()
    found = re.search(r"nbd://(127\.0\.0\.1:\d+)/demo", text)
    assert found
    with Client(found[1], "demo") as client:
        assert client.size == 256 << 20
        client.write(4096, b"kept".ljust(4096, b"."))
    # Its own words work as they stand.
    environment = dict(re.findall(r"export (\w+)=(\S+)", text))
    line = next(line for line in text.splitlines() if "volume show demo" in line)
    shown = subprocess.run(
        shlex.split(line),
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.returncode == 0, shown.stderr
    assert "mirror" in shown.stdout
    children = first.children()
    assert children.keys() == {"controller", "sp-a", "sp-b", "sp-c"}
    assert first.end() == 0
    assert all(gone(pid) for pid in children.values())
    assert not first.children()
    second = Quickstart(directory)
    second.wait_ready()
    with Client(found[1], "demo") as client:
        assert client.read(4096, 4096) == b"kept".ljust(4096, b".")
    third = Quickstart(directory)
    assert third.process.wait(SECONDS) == 1
    assert "already" in third.said()
    assert second.end() == 0


def test_a_child_that_dies_is_reported_and_all_ends(directory: Path) -> None:
    run = Quickstart(directory)
    run.wait_ready()
    children = run.children()
    os.kill(children["sp-b"], signal.SIGKILL)
    assert run.process.wait(SECONDS) == 1
    assert "sp-b ended with status -9" in run.said()
    assert str(directory / "sp-b.log") in run.said()
    assert all(gone(pid) for pid in children.values())
