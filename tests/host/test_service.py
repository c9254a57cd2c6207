"""The host's service over a kernel that does as drivers/block/nbd.c, and real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from tests.host.fakes import GONE, FakeController, FakeKernel, Server, served
from vswitchd.errors import Kind, VsError
from vswitchd.host import app, handshake
from vswitchd.host.paths import Paths
from vswitchd.host.service import Host

VOLUME = "6f0cb3d4-0000-4000-8000-000000000001"
SIZE = 1 << 20


async def until(what: str, probe: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for a condition, not for a time."""
    try:
        async with asyncio.timeout(seconds):
            while not probe():  # noqa: ASYNC110 - a condition of another's making
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited in vain for {what}") from None


@dataclass
class Rig:
    """Two servers of a volume, a host, and its kernel."""

    kernel: FakeKernel
    controller: FakeController
    servers: list[Server]
    root: Path
    host: Host | None = None

    async def boot(self, patience: float = 0.1) -> Host:
        """The service starts, anew."""
        if self.host:
            await self.host.stop()
        log = structlog.wrap_logger(structlog.ReturnLogger())
        state, tab = self.root / "attachments.json", self.root / "hosttab"
        self.host = Host(self.kernel, self.controller, state, tab, log)  # type: ignore[arg-type]
        await self.host.start(patience)
        return self.host

    @property
    def addresses(self) -> list[str]:
        return [server.address for server in self.servers]

    def connected(self) -> set[str]:
        return {link.remote for link in self.kernel.held}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    servers = [Server([]), Server([])]
    for server in servers:
        await server.start()
    paths = Paths(VOLUME, SIZE, tuple(server.address for server in servers))
    one = Rig(FakeKernel(), FakeController(paths), servers, tmp_path)
    yield one
    if one.host:
        await one.host.stop()
    for server in servers:
        await server.stop()
    for held in one.kernel.held.values():
        held.close()


async def test_a_volume_is_connected_to_every_sp_and_again_when_one_comes_back(rig: Rig) -> None:
    host = await rig.boot()
    kept = await host.attach("db", "", boot=False)
    assert kept.attachment.device == "/dev/nbd0"
    await until("both", lambda: rig.connected() == set(rig.addresses))
    first = rig.servers[0]
    await first.stop()
    rig.kernel.lose(first.address)
    await until("the loss", lambda: rig.connected() == {rig.servers[1].address})
    await until("a refusal", lambda: bool(kept.addresses[first.address].error))
    await first.start()
    await until("both again", lambda: rig.connected() == set(rig.addresses))
    assert kept.counters.reconnections == 2
    assert rig.kernel.dropped == 0


async def test_a_restarted_service_knows_its_connections_and_mends_what_broke(rig: Rig) -> None:
    host = await rig.boot()
    await host.attach("db", "", boot=False)
    await until("both", lambda: rig.connected() == set(rig.addresses))
    accepted = [server.accepted for server in rig.servers]
    await host.stop()
    rig.host = None
    rig.kernel.lose(rig.addresses[1])
    rig.controller.answer = GONE
    host = await rig.boot()
    await until("both again", lambda: rig.connected() == set(rig.addresses))
    # The one that stood was left alone.
    assert [server.accepted for server in rig.servers] == [accepted[0], accepted[1] + 1]
    assert rig.kernel.devices == {0: (VOLUME, SIZE)}


async def test_a_device_grows_and_never_shrinks(rig: Rig) -> None:
    host = await rig.boot()
    kept = await host.attach("db", "", boot=False)
    rig.controller.answer = Paths(VOLUME, 2 * SIZE, tuple(rig.addresses))
    await until("growth", lambda: rig.kernel.devices[0][1] == 2 * SIZE)
    rig.controller.answer = Paths(VOLUME, SIZE, tuple(rig.addresses))
    await until("a refusal", lambda: "VS6040" in kept.condition)
    assert rig.kernel.devices[0][1] == 2 * SIZE
    # An SP that has not grown yet is not connected to.
    rig.kernel.lose(rig.addresses[0])
    await until("its refusal", lambda: "VS5081" in kept.addresses[rig.addresses[0]].error)
    rig.servers[0].size = 2 * SIZE
    await until("both again", lambda: rig.connected() == set(rig.addresses))


async def test_another_sp_is_used_and_one_that_serves_no_more_is_left_alone(rig: Rig) -> None:
    rig.controller.answer = Paths(VOLUME, SIZE, (rig.addresses[0],))
    host = await rig.boot()
    await host.attach("db", "", boot=False)
    rig.controller.answer = Paths(VOLUME, SIZE, tuple(rig.addresses))
    await until("the new one", lambda: rig.connected() == set(rig.addresses))
    rig.controller.answer = Paths(VOLUME, SIZE, (rig.addresses[1],))
    kept = host.kept["db"]
    await until("the news", lambda: kept.attachment.addresses == (rig.addresses[1],))
    rig.kernel.lose(rig.addresses[0])
    await until(
        "a look", lambda: [one.address for one in kept.attachment.links] == [*kept.addresses]
    )
    assert rig.connected() == {rig.addresses[1]}


async def test_what_hosttab_names_is_attached_at_boot_without_a_controller(rig: Rig) -> None:
    host = await rig.boot()
    await host.attach("db", "/dev/nbd3", boot=True)
    await until("both", lambda: rig.connected() == set(rig.addresses))
    assert host.at_boot() == {"db": 3}
    # The host is booted: the kernel knows nothing any more.
    await host.stop()
    rig.host = None
    rig.kernel.disconnect(3)
    rig.controller.answer = GONE
    await rig.servers[0].stop()
    host = await rig.boot(patience=10)
    assert rig.kernel.devices == {3: (VOLUME, SIZE)}
    assert rig.connected() == {rig.addresses[1]}
    await rig.servers[0].start()
    await until("both", lambda: rig.connected() == set(rig.addresses))


async def test_a_boot_goes_on_without_what_is_not_there_and_attaches_it_later(rig: Rig) -> None:
    (rig.root / "hosttab").write_text("db\n")
    answer, rig.controller.answer = rig.controller.answer, GONE
    host = await rig.boot()
    assert list(host.waiting) == ["db"]
    await until("the reason", lambda: "VS5001" in host.waiting["db"].error)
    rig.controller.answer = answer
    await until("db", lambda: not host.waiting)
    assert rig.kernel.devices


async def test_a_device_that_is_in_use_is_not_taken_away(rig: Rig) -> None:
    host = await rig.boot()
    await host.attach("db", "", boot=True)
    rig.kernel.used = True
    with pytest.raises(VsError, match="unmount"):
        await host.detach("db", boot=True, force=False)
    assert rig.kernel.devices
    await host.detach("db", boot=True, force=True)
    assert not rig.kernel.devices
    assert host.at_boot() == {}
    with pytest.raises(VsError, match="host list") as error:
        await host.detach("db", boot=False, force=False)
    assert error.value.kind is Kind.NOT_FOUND


async def test_a_volume_is_one_device(rig: Rig) -> None:
    host = await rig.boot()
    first = await host.attach("db", "/dev/nbd1", boot=False)
    assert await host.attach("db", "", boot=False) is first
    with pytest.raises(VsError, match="/dev/nbd1 already"):
        await host.attach("db", "/dev/nbd2", boot=False)


async def test_a_device_made_by_a_process_that_died_is_found(rig: Rig) -> None:
    host = await rig.boot()
    await host.attach("db", "", boot=False)
    await until("both", lambda: rig.connected() == set(rig.addresses))
    (rig.root / "attachments.json").unlink()
    host = await rig.boot()
    assert not host.kept
    await host.attach("db", "", boot=False)
    assert rig.kernel.devices == {0: (VOLUME, SIZE)}


async def test_a_volume_made_anew_under_the_name_is_not_taken_for_the_old(rig: Rig) -> None:
    host = await rig.boot()
    kept = await host.attach("db", "", boot=False)
    rig.controller.answer = Paths(VOLUME[:-1] + "2", 4 * SIZE, tuple(rig.addresses))
    await until("the complaint", lambda: "VS2060" in kept.condition)
    assert rig.kernel.devices == {0: (VOLUME, SIZE)}


async def test_another_tools_disconnection_is_told(rig: Rig) -> None:
    host = await rig.boot()
    kept = await host.attach("db", "", boot=False)
    rig.kernel.disconnect(0)
    await until("the complaint", lambda: "VS3085" in kept.condition)


async def test_nobody_lets_the_host_in(rig: Rig) -> None:
    host = await rig.boot()
    await rig.servers[0].stop()
    rig.servers[1].replies = [((1 << 31) + 6, b"")]
    with pytest.raises(VsError, match="does not serve 'db'") as error:
        await host.attach("db", "", boot=False)
    assert error.value.code == "VS5082"
    assert not rig.kernel.devices


@pytest.mark.parametrize(
    ("replies", "text"),
    [
        ([((1 << 31) + 1, b"no such luck")], "no such luck"),
        ([(3, b"")] * 65, "never came to an end"),
        ([(1, b"")] * 65, "never came to an end"),
        ([(1, b"x" * 70000)], "no NBD"),
        (served(SIZE)[:2], "does not answer|timed out"),
    ],
)
async def test_a_server_that_misbehaves_is_refused_in_time(
    replies: list[tuple[int, bytes]], text: str
) -> None:
    server = Server(replies)
    await server.start()
    with pytest.raises(VsError, match=text) as error:
        await asyncio.to_thread(handshake.connect, server.address, "db", 3)
    assert error.value.code == "VS5080"
    assert server.address in str(error.value)
    await server.stop()


async def test_a_time_out_that_is_too_short_is_refused() -> None:
    for words in (["--timeout-seconds", "2"], ["--hold-seconds", "0"]):
        with pytest.raises(VsError, match="timeout_seconds is 3 or more") as error:
            await app.run(app.arguments(words))
        assert error.value.code == "VS1082"


async def test_the_servers_smallest_block_is_known() -> None:
    server = Server(served(SIZE, block=4096, flags=0x105))
    await server.start()
    connection, export = await asyncio.to_thread(handshake.connect, server.address, "db", 3)
    connection.close()
    assert export == handshake.Export(SIZE, 0x105, 4096)
    await server.stop()
