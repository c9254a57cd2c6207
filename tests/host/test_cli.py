"""vswitchctl host against the real service, over a kernel of the tests' own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import structlog

from tests.host.fakes import FakeController, FakeKernel, Server
from tests.host.test_service import SIZE, VOLUME
from vswitchd.api.host import HostServicer
from vswitchd.cli.app import main
from vswitchd.errors import Kind, VsError
from vswitchd.host.paths import Paths
from vswitchd.host.service import Host
from vswitchd.rpc import host_pb2_grpc


class Machine:
    """A host's service in a thread of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "host.sock"
        self.kernel = FakeKernel()
        self.controller = FakeController(Paths(VOLUME, SIZE, ()))
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._ready.wait(20)

    async def _run(self) -> None:
        servers = [Server([]), Server([])]
        for one in servers:
            await one.start()
        self.addresses = tuple(one.address for one in servers)
        self.controller.answer = Paths(VOLUME, SIZE, self.addresses)
        quiet = structlog.wrap_logger(structlog.ReturnLogger())
        state, tab = self.root / "attachments.json", self.root / "hosttab"
        host = Host(self.kernel, self.controller, state, tab, quiet)  # type: ignore[arg-type]
        server = grpc.aio.server()
        host_pb2_grpc.add_HostServiceServicer_to_server(HostServicer(host), server)
        server.add_insecure_port(f"unix:{self.socket}")
        await server.start()
        await host.start(1)
        self._ready.set()
        await self._stop.wait()
        await server.stop(0)
        await host.stop()
        for one in servers:
            await one.stop()

    def end(self) -> None:
        """Ends it."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        for held in self.kernel.held.values():
            held.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.end()


def test_a_volume_is_attached_listed_and_detached(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    def ctl(*argv: str) -> tuple[int, str, str]:
        status = main(["host", *argv, "--socket", str(machine.socket)])
        return status, *capsys.readouterr()

    status, out, _ = ctl("attach", "db", "--device", "/dev/nbd2", "--boot", "-o", "json")
    assert status == 0
    found = json.loads(out)
    assert (found["device"], found["volume_id"], found["boot"]) == ("/dev/nbd2", VOLUME, True)
    assert [path["address"] for path in found["paths"]] == list(machine.addresses)
    assert all(path["connected"] for path in found["paths"])
    status, out, _ = ctl("list")
    assert status == 0
    assert out.splitlines()[1].split()[:5] == ["db", "/dev/nbd2", "1M", "connected", "boot"]
    assert ctl("attach", "db", "--device", "/dev/nbd3")[0] == 4
    assert ctl("attach", "db", "--device", "sda")[0] == 2
    machine.kernel.used = True
    status, _, err = ctl("detach", "db")
    assert (status, "VS3082" in err) == (4, True)
    status, _, err = ctl("detach", "db", "--boot", "--force")
    assert (status, err) == (0, "db is detached\n")
    assert (machine.root / "hosttab").read_text() == ""
    assert ctl("detach", "db")[0] == 3
    assert json.loads(ctl("list", "-o", "json")[1]) == []


def test_what_the_controller_refuses_is_passed_on(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.controller.answer = VsError("VS2041", Kind.NOT_FOUND, "there is no volume 'db'")
    assert main(["host", "attach", "db", "--socket", str(machine.socket)]) == 3
    assert "VS2041: there is no volume 'db'" in capsys.readouterr().err


def test_without_the_service_people_are_told_to_start_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["host", "list", "--socket", str(tmp_path / "none.sock")]) == 6
    assert "systemctl start vswitchd-host" in capsys.readouterr().err
