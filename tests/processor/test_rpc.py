"""The VSM over a real gRPC server: the controller's port speaks to it, errors and all."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator

import grpc
import pytest

from tests.processor.conftest import CLUSTER, DEVICE, SP, URI, VOLUME, Life, t1, t2
from vswitchd.api.vsm_client import VsmProcessors
from vswitchd.api.vsm_server import VsmServicer
from vswitchd.errors import Kind, VsError
from vswitchd.model.access import OPEN
from vswitchd.model.objects import DeviceId, Leaf, T1Id, Volume
from vswitchd.ports import Processor, ProcessorRecord
from vswitchd.rpc import vsm_pb2_grpc


def record(address: str) -> ProcessorRecord:
    return ProcessorRecord(SP, "i-1", address, "", "", "1")


class Served:
    """A VSM behind a server, and the controller's clients of it."""

    def __init__(self, life: Life, servicer: VsmServicer, address: str) -> None:
        self.life = life
        self.servicer = servicer
        self.address = address
        self.processors = VsmProcessors()

    def client(self, term: int = 1, cluster: str = CLUSTER) -> Processor:
        return self.processors.connect(record(self.address), cluster, term)


@pytest.fixture
async def served(life: Life) -> AsyncIterator[Served]:
    server = grpc.aio.server()
    servicer = VsmServicer(life.vsm)
    vsm_pb2_grpc.add_VsmServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    one = Served(life, servicer, f"127.0.0.1:{port}")
    yield one
    await one.processors.close()
    await server.stop(None)


def volume(version: int) -> Volume:
    root = Leaf(T1Id("t-0"), t1().size)
    return Volume(VOLUME, "db", t1().size, version, version, root, (t1(),), (SP,), SP)


async def test_a_volumes_life_through_the_port(served: Served) -> None:
    sp = served.client()
    await sp.activate_mvsm()
    affected = await sp.determine(None, volume(1))
    assert {a.object_id for a in affected} == {"t-0", VOLUME}
    await sp.put_t1(t1(), 1)
    await sp.stage_t2(t2(1), OPEN)
    assert await sp.activate_t2(VOLUME, 1) == 0.0
    await sp.stage_t2(t2(2), OPEN)
    await sp.fence_t1(T1Id("t-0"), 2, 1)
    assert await sp.activate_t2(VOLUME, 2) == pytest.approx(1234e-6)
    view = await sp.view()
    assert view.mvsm_active
    assert view.t1(T1Id("t-0")) is not None
    assert [(v.t2, v.active) for v in view.t2s] == [(t2(2), True)]
    await sp.remove_t2(VOLUME, 9)
    await sp.delete_t1(T1Id("t-0"), 9)
    await sp.remove_device(DEVICE)
    await sp.deactivate_mvsm()
    view = await sp.view()
    assert (view.t1s, view.t2s, view.devices, view.mvsm_active) == ((), (), (), False)


async def test_a_device_through_the_port(served: Served) -> None:
    sp = served.client()
    added = await sp.add_device(URI, 0, DeviceId("d-7"), direct=True, checksums=False)
    assert (added.id, added.up, added.direct) == (DEVICE, True, True)
    with pytest.raises(VsError) as refused:
        await sp.add_device(URI, 0, DeviceId("d-7"), direct=True, checksums=True)
    assert (refused.value.code, refused.value.kind) == ("VS3029", Kind.PRECONDITION)
    other = await sp.add_device("file:/x", 1 << 30, DeviceId("d-8"), direct=False, checksums=True)
    assert other.checksums
    assert added.free[0].device == DEVICE


async def test_errors_keep_their_code_kind_and_words(served: Served) -> None:
    with pytest.raises(VsError) as stale:
        await served.client(term=3).activate_t2(VOLUME, 9)
    assert (stale.value.code, stale.value.kind) == ("VS3025", Kind.PRECONDITION)
    assert "no version 9" in stale.value.message
    with pytest.raises(VsError, match=r"VS3023.*term 2 is over"):
        await served.client(term=2).delete_t1(T1Id("t-0"), 9)
    with pytest.raises(VsError, match="VS6021"):
        await served.client(cluster="c-2").view()
    # A controller that was away learns the present term.
    assert (await served.client(term=1).view()).term == 3


async def test_an_sp_that_is_not_there_is_unreachable_by_name() -> None:
    processors = VsmProcessors()
    try:
        with pytest.raises(VsError) as error:
            await processors.connect(record("127.0.0.1:1"), CLUSTER, 1).view()
    finally:
        await processors.close()
    assert error.value.kind is Kind.UNREACHABLE
    assert "sp-a" in error.value.message
    assert "127.0.0.1:1" in error.value.message


async def test_a_new_life_is_reached_at_once_however_often_the_dead_one_was_tried(
    life: Life,
) -> None:
    """Its first call does not wait out, nor fail for, the pause after the last failed try."""
    processors = VsmProcessors()
    server = grpc.aio.server()
    vsm_pb2_grpc.add_VsmServiceServicer_to_server(VsmServicer(life.vsm), server)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        # Tried until the pauses between tries are as long as they get.
        async with asyncio.timeout(10):
            for _ in range(40):
                with pytest.raises(VsError):
                    await processors.connect(record(address), CLUSTER, 1).view()
                await asyncio.sleep(0.05)  # the time that a life takes, not a wait
    server.add_insecure_port(address)
    await server.start()
    try:
        # Calls to the dead life are still on their way.
        dead = [
            asyncio.create_task(processors.connect(record(address), CLUSTER, 1).view())
            for _ in range(3)
        ]
        await asyncio.sleep(0)
        reborn = dataclasses.replace(record(address), incarnation="i-2")
        await processors.connect(reborn, CLUSTER, 1).view()
        await asyncio.gather(*dead, return_exceptions=True)
    finally:
        await processors.close()
        await server.stop(None)


async def test_a_call_goes_on_to_its_end_when_its_caller_has_gone(served: Served) -> None:
    """A swap that is done in the engine is recorded, even if nobody waits for the answer."""
    sp = served.client()
    await sp.stage_t2(t2(1), OPEN)
    lock = served.life.vsm._lock(VOLUME)
    async with lock:
        call = asyncio.create_task(sp.activate_t2(VOLUME, 1))
        async with asyncio.timeout(10):
            while not served.servicer.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await served.servicer.finish()
    assert served.life.state.committed == {VOLUME: t2(1)}
