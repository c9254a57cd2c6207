"""What programs read: JSON, YAML, pipes; and what a terminal gets."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.json_format import ParseDict

from tests.cli.conftest import Ctl
from tests.cli.fake import Fake
from tests.cli.samples import GIB, device, operation, processor, volume
from vswitchd.rpc import cluster_pb2, device_pb2, operation_pb2, processor_pb2, volume_pb2

ROOT = Path(__file__).resolve().parents[2]
ESCAPE = "\x1b"


@pytest.fixture
def full(fake: Fake) -> Fake:
    """A controller with some of everything."""
    fake.status = cluster_pb2.ClusterStatus(
        health=cluster_pb2.HEALTH_SEVERITY_OK, capacity_bytes=1 << 63, term=3
    )
    fake.volumes = [volume("db0"), volume("db1"), volume("db2")]
    fake.devices = [device("disk0", "id-0"), device("disk3", "id-3")]
    fake.processors = [processor("sp-a"), processor("sp-b")]
    fake.operations = {"op-1": [operation(copied=41 * GIB, total=100 * GIB)]}
    fake.starts = operation(total=GIB)
    return fake


PRINTS: list[tuple[str, type[Any]]] = [
    ("status", cluster_pb2.ClusterStatus),
    ("volume show db1", volume_pb2.Volume),
    ("volume show db1 --tree", volume_pb2.Volume),
    ("volume list", volume_pb2.Volume),
    ("volume plan db1 --layout any", operation_pb2.Operation),
    ("volume delete db1 --no-wait", operation_pb2.Operation),
    ("device list", device_pb2.Device),
    ("device show disk0", device_pb2.Device),
    ("device remove disk0 --sp sp-a", device_pb2.Device),
    ("sp list", processor_pb2.Processor),
    ("sp show sp-a", processor_pb2.Processor),
    ("operation list", operation_pb2.Operation),
    ("operation show op-1", operation_pb2.Operation),
    ("operation cancel op-1", operation_pb2.Operation),
]


@pytest.mark.parametrize(("words", "kind"), PRINTS)
def test_json_and_yaml_are_the_protos_own(
    full: Fake, ctl: Ctl, words: str, kind: type[Any]
) -> None:
    ran = ctl(*words.split(" "), "-o", "json")
    assert (ran.status, ran.err) == (0, "")
    value = json.loads(ran.out)
    for each in value if isinstance(value, list) else [value]:
        # Strict: a name that is not the proto's is an error; each field is there though empty.
        ParseDict(each, kind())
        assert {f.name for f in kind.DESCRIPTOR.fields if not f.has_presence} <= set(each)
    assert yaml.safe_load(ctl(*words.split(" "), "-o", "yaml").out) == value


def test_json_says_exactly_what_the_controller_said(full: Fake, ctl: Ctl) -> None:
    shown = json.loads(ctl("volume", "show", "db1", "-o", "json").out)
    assert ParseDict(shown, volume_pb2.Volume()) == volume("db1")
    # 64-bit numbers are strings in canonical JSON.
    assert shown["record"]["size"] == str(20 * GIB)
    one = json.loads(ctl("volume", "show", "db1", "--sp", "sp-b", "-o", "json").out)
    assert [t2["sp"] for t2 in one["t2s"]] == ["sp-b"]


def run(fake: Fake, *argv: str, **options: Any) -> subprocess.Popen[str]:
    """vswitchctl as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "vswitchd.cli", "--controller", fake.address, *argv],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("words", ["status", "volume list", "volume show db1 --tree", "--help"])
def test_a_pipe_gets_no_colour(full: Fake, words: str) -> None:
    process = run(full, *words.split(" "), stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out and ESCAPE not in out


def test_a_terminal_gets_colour(full: Fake) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    process = run(full, "volume", "show", "db1", "--tree", stdout=theirs, env=environment)
    os.close(theirs)
    out = b""
    try:
        while more := os.read(ours, 4096):
            out += more
    except OSError:
        pass  # the other side is closed
    finally:
        os.close(ours)
    assert process.wait(60) == 0
    assert b"\x1b[33mDEGRADED" in out


def test_a_reader_that_leaves_early_is_no_traceback(full: Fake) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = run(full, "volume", "list", "-o", "json", stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err and "Exception" not in err, err


def test_an_interrupt_leaves_the_operation_running_and_says_so(full: Fake) -> None:
    process = run(full, "volume", "delete", "db1", stdout=subprocess.PIPE)
    assert full.watched.wait(60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert "operation op-1 goes on" in err
    assert "CancelOperation" not in [method for method, _ in full.asked]


def test_watch_looks_again_until_interrupted(full: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    process = run(full, "status", "--watch", "-o", "json", stdout=subprocess.PIPE)
    assert process.stdout is not None
    documents = 0
    while documents < 2:
        line = process.stdout.readline()
        assert line, "ended early"
        documents += line == "}\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


def test_help_loads_nothing_heavy() -> None:
    """This is what keeps `vswitchctl --help` under 200 ms; a clock would be flaky."""
    script = (
        "import sys; from vswitchd.cli.app import main; main(['volume', '--help']); "
        "print([m for m in ('grpc', 'google.protobuf', 'rich', 'yaml', 'asyncio') "
        "if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == "[]\n"
