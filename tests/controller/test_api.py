"""The public API over a real server: what goes right, what is refused and how."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.controller.world import A, B, C, Controller, World, settled
from tests.fakes import unreachable, until
from vswitchd.api.errors import from_rpc
from vswitchd.controller.app import make_server
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import BLOCK, DeviceId, SpId
from vswitchd.restructure.requests import AddLeg
from vswitchd.rpc import (
    cluster_pb2,
    cluster_pb2_grpc,
    device_pb2,
    device_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    processor_pb2,
    processor_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)

SIZE = 8 * BLOCK
DEADLINE = 20.0


@dataclass
class Api:
    """Clients of one server, and what is behind it."""

    world: World
    controller: Controller
    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.volumes = volume_pb2_grpc.VolumeServiceStub(self.channel)
        self.devices = device_pb2_grpc.DeviceServiceStub(self.channel)
        self.sps = processor_pb2_grpc.ProcessorServiceStub(self.channel)
        self.operations = operation_pb2_grpc.OperationServiceStub(self.channel)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(self.channel)
        self.registry = cluster_pb2_grpc.RegistryServiceStub(self.channel)

    async def call(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        return await method(request, timeout=DEADLINE)

    async def refused(self, method: Callable[..., Awaitable[Any]], request: Any) -> VsError:
        """The error that the call ends with."""
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await self.call(method, request)
        return from_rpc(failed.value, "the controller")

    async def ended(self, operation: operation_pb2.Operation) -> operation_pb2.Operation:
        """Watches it to its end."""
        request = operation_pb2.GetOperationRequest(operation_id=operation.operation_id)
        states = [m async for m in self.operations.WatchOperation(request, timeout=DEADLINE)]
        return states[-1]

    async def create(self, name: str = "v1", **more: Any) -> operation_pb2.Operation:
        request = volume_pb2.CreateVolumeRequest(name=name, size=SIZE, **more)
        operation: operation_pb2.Operation = await self.call(self.volumes.CreateVolume, request)
        return operation

    async def made(self, name: str = "v1", **more: Any) -> volume_pb2.Volume:
        done = await self.ended(await self.create(name, **more))
        assert done.state == operation_pb2.OPERATION_STATE_DONE, done
        return await self.volume(name)

    async def volume(self, name: str = "v1") -> volume_pb2.Volume:
        found = await self.call(self.volumes.GetVolume, volume_pb2.GetVolumeRequest(name=name))
        assert isinstance(found, volume_pb2.Volume)
        return found


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    world = World()
    controller = await world.controller()
    server = await make_server(
        controller.service,
        controller.inventory,
        controller.drainer,
        controller.reconciler,
        controller.recovery,
        controller.admission,
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Api(world, controller, channel)
    await server.stop(None)
    await controller.stop()


async def test_a_volume_from_create_to_delete(api: Api) -> None:
    volume = await api.made(layout="mirror(a, b)")
    assert volume.state == volume_pb2.VOLUME_STATE_ONLINE and not volume.conditions
    assert volume.record.size == SIZE and volume.record.owner == "a"
    assert list(volume.nbd_uris) == ["nbd://a:10809/v1", "nbd://b:10809/v1"]
    assert [t2.sp for t2 in volume.t2s] == ["a", "b"]
    assert volume.layout.startswith("mirror(")
    for method, request in (
        (api.volumes.GrowVolume, volume_pb2.GrowVolumeRequest(name="v1", size=2 * SIZE)),
        (api.volumes.AddMirrorLeg, volume_pb2.AddMirrorLegRequest(name="v1", sp="c")),
        (api.volumes.RemoveMirrorLeg, volume_pb2.RemoveMirrorLegRequest(name="v1", leg="b")),
        (api.volumes.ServeVolume, volume_pb2.ServeVolumeRequest(name="v1", sp="c")),
        (api.volumes.UnserveVolume, volume_pb2.UnserveVolumeRequest(name="v1", sp="b")),
        (
            api.volumes.MoveVolume,
            volume_pb2.MoveVolumeRequest(name="v1", from_sp="a", to_sp="b"),
        ),
        (api.volumes.ChangeLayout, volume_pb2.ChangeLayoutRequest(name="v1", layout="c")),
    ):
        done = await api.ended(await api.call(method, request))
        assert done.state == operation_pb2.OPERATION_STATE_DONE, done
        assert {step.state for step in done.steps} == {operation_pb2.STEP_STATE_DONE}
    after = await api.volume()
    assert after.record.size == 2 * SIZE and list(after.record.serving) == ["a", "c"]
    settled(api.world, await api.controller.volume())
    delete = volume_pb2.DeleteVolumeRequest(name="v1")
    await api.ended(await api.call(api.volumes.DeleteVolume, delete))
    gone = await api.refused(api.volumes.GetVolume, volume_pb2.GetVolumeRequest(name="v1"))
    assert gone.kind is Kind.NOT_FOUND and "v1" in gone.message
    settled(api.world, None)


async def test_a_dry_run_shows_the_plan_and_changes_nothing(api: Api) -> None:
    held = api.world.sps.snapshot()
    plan = await api.create(layout="mirror(a, c)", dry_run=True)
    assert plan.state == operation_pb2.OPERATION_STATE_PLANNED
    assert [step.kind for step in plan.steps if step.sp == "c"] == [
        "put_t1", "stage_t2", "activate_t2"
    ]  # fmt: skip
    assert api.world.sps.snapshot() == held
    assert list(await api.world.store.operations(open_only=True)) == []
    assert not await api.world.store.ledger()


async def test_one_request_id_is_one_operation(api: Api) -> None:
    first = await api.create(request_id="r-1")
    again = await api.create(request_id="r-1")
    assert first.operation_id == again.operation_id
    await api.ended(first)
    late = await api.create(request_id="r-1")
    assert late.operation_id == first.operation_id
    assert late.state == operation_pb2.OPERATION_STATE_DONE
    assert len(await api.world.store.volumes()) == 1


@pytest.mark.parametrize(
    ("request_", "kind", "says"),
    [
        ({"name": "v1"}, Kind.EXISTS, "v1"),
        ({"size": 5000}, Kind.INVALID, "4096"),
        ({"size": 0}, Kind.INVALID, "size"),
        ({"name": "no spaces"}, Kind.INVALID, "no spaces"),
        ({"layout": "mirror(a, )"}, Kind.INVALID, "^"),
        ({"layout": "mirror(a, nowhere)"}, Kind.NOT_FOUND, "nowhere"),
        ({"serving": ["nowhere"]}, Kind.NOT_FOUND, "nowhere"),
        ({"size": 1 << 30}, Kind.NO_SPACE, ""),
        ({"layout": "a/nodisk"}, None, "nodisk"),
    ],
)
async def test_bad_creates_are_refused_and_nothing_is_changed(
    api: Api, request_: dict[str, Any], kind: Kind | None, says: str
) -> None:
    await api.made()
    held = api.world.sps.snapshot()
    fields = {"name": "v2", "size": SIZE, **request_}
    error = await api.refused(api.volumes.CreateVolume, volume_pb2.CreateVolumeRequest(**fields))
    assert kind is None or error.kind is kind, error
    assert error.kind is not Kind.INTERNAL
    assert says in error.message and error.code.startswith("VS")
    assert api.world.sps.snapshot() == held
    assert len(await api.world.store.operations()) == 1


async def test_bad_changes_are_refused(api: Api) -> None:
    await api.made(layout="mirror(a, b)")
    calls: list[tuple[Any, Any, Kind]] = [
        (
            api.volumes.GrowVolume,
            volume_pb2.GrowVolumeRequest(name="v1", size=SIZE),
            Kind.INVALID,
        ),
        (
            api.volumes.GrowVolume,
            volume_pb2.GrowVolumeRequest(name="ghost", size=SIZE),
            Kind.NOT_FOUND,
        ),
        (
            api.volumes.MoveVolume,
            volume_pb2.MoveVolumeRequest(name="v1", from_sp="a", to_sp="ghost"),
            Kind.NOT_FOUND,
        ),
        (
            api.volumes.ServeVolume,
            volume_pb2.ServeVolumeRequest(name="v1", sp="a"),
            Kind.EXISTS,
        ),
        (
            api.volumes.UnserveVolume,
            volume_pb2.UnserveVolumeRequest(name="v1", sp="c"),
            Kind.NOT_FOUND,
        ),
        (
            api.operations.GetOperation,
            operation_pb2.GetOperationRequest(operation_id="op-ghost"),
            Kind.NOT_FOUND,
        ),
        (
            api.operations.CancelOperation,
            operation_pb2.CancelOperationRequest(operation_id="op-ghost"),
            Kind.NOT_FOUND,
        ),
        (api.devices.GetDevice, device_pb2.GetDeviceRequest(name="ghost"), Kind.NOT_FOUND),
        (
            api.sps.GetProcessor,
            processor_pb2.GetProcessorRequest(sp="ghost"),
            Kind.NOT_FOUND,
        ),
        (
            api.sps.RemoveProcessor,
            processor_pb2.RemoveProcessorRequest(sp="a"),
            Kind.PRECONDITION,
        ),
        (
            api.volumes.ListVolumes,
            volume_pb2.ListVolumesRequest(page_token="elsewhere"),
            Kind.INVALID,
        ),
    ]
    for method, request, kind in calls:
        error = await api.refused(method, request)
        assert error.kind is kind, (request, error)
    watch = api.operations.WatchOperation(
        operation_pb2.GetOperationRequest(operation_id="op-ghost"), timeout=DEADLINE
    )
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await watch.read()
    assert from_rpc(failed.value, "").kind is Kind.NOT_FOUND


async def test_an_sp_that_is_down_is_named(api: Api) -> None:
    await api.made(layout="mirror(a, b)")
    api.world.sps.down.add(B)
    api.world.clock.now += 60
    await api.controller.join(A)
    await api.controller.join(C)
    grow = volume_pb2.GrowVolumeRequest(name="v1", size=2 * SIZE)
    error = await api.refused(api.volumes.GrowVolume, grow)
    assert error.kind is Kind.PRECONDITION and "SP b" in error.message
    volume = await api.volume()
    assert volume.state == volume_pb2.VOLUME_STATE_DEGRADED
    assert "SP b is down" in volume.conditions
    status = await api.call(api.cluster.GetStatus, cluster_pb2.GetStatusRequest())
    assert {check.code for check in status.checks} == {"SP_DOWN", "VOLUME_DEGRADED"}
    assert status.health == cluster_pb2.HEALTH_SEVERITY_WARNING
    assert (status.processors_up, status.processors, status.master) == (2, 3, "a")


async def test_one_operation_at_a_time_and_it_can_be_cancelled(api: Api) -> None:
    await api.made(layout="a")
    api.world.sps.hold_copies = True
    request = volume_pb2.AddMirrorLegRequest(name="v1", sp="c")
    running = await api.call(api.volumes.AddMirrorLeg, request)
    await api.world.copying()
    grow = volume_pb2.GrowVolumeRequest(name="v1", size=2 * SIZE)
    busy = await api.refused(api.volumes.GrowVolume, grow)
    assert busy.code == "VS3060" and running.operation_id in busy.message
    removal = processor_pb2.RemoveProcessorRequest(sp="c")
    in_use = await api.refused(api.sps.RemoveProcessor, removal)
    assert in_use.code == "VS3064" and running.operation_id in in_use.message
    assert (await api.volume()).operation_id == running.operation_id
    opens = operation_pb2.ListOperationsRequest(volume="v1", open_only=True)
    listed = await api.call(api.operations.ListOperations, opens)
    assert [one.operation_id for one in listed.operations] == [running.operation_id]
    cancel = operation_pb2.CancelOperationRequest(operation_id=running.operation_id)
    await api.call(api.operations.CancelOperation, cancel)
    ended = await api.ended(running)
    assert ended.state == operation_pb2.OPERATION_STATE_CANCELLED
    assert (await api.refused(api.operations.CancelOperation, cancel)).kind is Kind.PRECONDITION


async def test_a_watch_tells_every_change_and_ends(api: Api) -> None:
    await api.made(layout="a")
    api.world.sps.refuses[C, "put_t1"] = unreachable(C)
    request = volume_pb2.AddMirrorLegRequest(name="v1", sp="c")
    operation = await api.call(api.volumes.AddMirrorLeg, request)
    watch = api.operations.WatchOperation(
        operation_pb2.GetOperationRequest(operation_id=operation.operation_id), timeout=DEADLINE
    )
    seen: list[operation_pb2.Operation] = []
    async for message in watch:
        seen.append(message)
        if message.waiting_for:
            api.world.sps.refuses.clear()
    assert any(unreachable(C).message == message.waiting_for for message in seen)
    assert seen[-1].state == operation_pb2.OPERATION_STATE_DONE
    assert seen[-1].copied_bytes == seen[-1].total_bytes == SIZE
    assert all(a != b for a, b in pairwise(seen))


async def test_lists_come_in_pages(api: Api) -> None:
    for number in range(5):
        await api.made(f"v{number}", layout="c")
    names: list[str] = []
    token, pages = "", 0
    while pages == 0 or token:
        request = volume_pb2.ListVolumesRequest(page_size=2, page_token=token)
        answer = await api.call(api.volumes.ListVolumes, request)
        names += [volume.record.name for volume in answer.volumes]
        token, pages = answer.next_page_token, pages + 1
    assert (names, pages) == ([f"v{n}" for n in range(5)], 3)


async def test_a_caller_that_leaves_does_not_leave_half_a_request(api: Api) -> None:
    """Its operation is either not there at all, or carried out."""
    for moment in range(0, 60, 4):
        name = f"left{moment}"
        call = api.volumes.CreateVolume(
            volume_pb2.CreateVolumeRequest(name=name, size=BLOCK, layout="c"), timeout=DEADLINE
        )
        started = asyncio.ensure_future(call)
        for _ in range(moment):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(started, return_exceptions=True)
    executor = api.controller.executor

    def all_run() -> bool:
        journal = api.world.store._operations.values()
        return all(one.state == "done" or one.id in executor.live for one in journal)

    for _ in range(200):
        await asyncio.sleep(0)
    await until("every journalled one to run", lambda: all_run() and not executor.live)


async def test_a_fault_is_told_without_its_inside(api: Api) -> None:
    secret = RuntimeError("inner words")
    api.world.sps.refuses[A, "determine"] = secret  # type: ignore[assignment]
    create = volume_pb2.CreateVolumeRequest(name="v1", size=SIZE)
    error = await api.refused(api.volumes.CreateVolume, create)
    assert error.code == "VS9002" and "inner words" not in error.message


# Devices, SPs, the server itself.


async def test_a_device_is_known_by_all_of_its_paths(api: Api) -> None:
    api.world.sps.cluster.sps[A].devices.pop("ab")  # type: ignore[call-overload]
    api.world.sps.cluster.sps[B].devices.pop("ab")  # type: ignore[call-overload]
    for sp in ("a", "b"):
        request = device_pb2.AddDeviceRequest(sp=sp, uri="file:/ab", size=60 * BLOCK, name="ab")
        device = await api.call(api.devices.AddDevice, request)
    assert [(path.sp, path.up) for path in device.paths] == [("a", True), ("b", True)]
    listed = await api.call(api.devices.ListDevices, device_pb2.ListDevicesRequest())
    assert [one.name for one in listed.devices] == ["ab"]
    other = device_pb2.AddDeviceRequest(sp="c", uri="file:/c9", size=60 * BLOCK, name="ab")
    taken = await api.refused(api.devices.AddDevice, other)
    assert taken.kind is Kind.EXISTS
    assert "c9" not in api.world.sps.cluster.sps[C].devices, "closed again"
    await api.made(layout="a/ab")
    held = device_pb2.RemoveDeviceRequest(name="ab", sp="a")
    assert (await api.refused(api.devices.RemoveDevice, held)).code == "VS3061"
    remove = device_pb2.RemoveDeviceRequest(name="ab", sp="b")
    left = await api.call(api.devices.RemoveDevice, remove)
    assert [path.sp for path in left.paths] == ["a"]
    nowhere = device_pb2.AddDeviceRequest(sp="ghost", uri="file:/x", size=1 << 20)
    assert (await api.refused(api.devices.AddDevice, nowhere)).kind is Kind.NOT_FOUND


async def test_which_sps_go_past_the_page_cache_is_kept_and_shown(api: Api) -> None:
    for sp in ("a", "b"):
        api.world.sps.cluster.sps[SpId(sp)].devices.pop(DeviceId("ab"))
        direct = sp == "a"
        request = device_pb2.AddDeviceRequest(
            sp=sp, uri="file:/ab", size=60 * BLOCK, name="ab", direct=direct
        )
        device = await api.call(api.devices.AddDevice, request)
    assert [(path.sp, path.direct) for path in device.paths] == [("a", True), ("b", False)]
    assert api.world.sps.direct == {("a", "ab")}
    (stored,) = await api.world.store.devices()
    assert stored.direct == ["a"]
    remove = device_pb2.RemoveDeviceRequest(name="ab", sp="a")
    await api.call(api.devices.RemoveDevice, remove)
    (stored,) = await api.world.store.devices()
    assert stored.direct == []


async def test_a_device_that_is_down_is_an_error_of_the_cluster(api: Api) -> None:
    api.world.sps.closed.add((A, "a0"))  # type: ignore[arg-type]
    status = await api.call(api.cluster.GetStatus, cluster_pb2.GetStatusRequest())
    assert [check.code for check in status.checks] == ["DEVICE_DOWN"]
    assert status.health == cluster_pb2.HEALTH_SEVERITY_ERROR


async def test_an_operation_that_waits_is_shown(api: Api) -> None:
    await api.made(layout="a")
    api.world.sps.refuses[C, "put_t1"] = unreachable(C)
    record = await api.controller.change(AddLeg(sp=C))
    live = api.controller.executor.live[record.id]
    await until("it to wait", lambda: live.record.waiting_for)
    status = await api.call(api.cluster.GetStatus, cluster_pb2.GetStatusRequest())
    assert [check.code for check in status.checks] == ["OPERATION_WAITING"]
    assert status.operations_open == 1
    api.world.sps.refuses.clear()


async def test_sps_join_by_the_api(api: Api) -> None:
    known = api.world.sps.record(C)
    request = cluster_pb2.RegisterRequest(
        cluster_id=api.controller.registry.cluster,
        sp="c",
        incarnation="c-7",
        vsm_address=known.vsm_address,
        peer_address=known.peer_address,
        nbd_address=known.nbd_address,
        version="0",
    )
    answer = await api.registry.Register(request, timeout=DEADLINE)
    assert answer.cluster_id == api.controller.registry.cluster
    assert answer.heartbeat_interval_ms == 500
    beat = cluster_pb2.HeartbeatRequest(sp="c", incarnation="c-7")
    assert (await api.registry.Heartbeat(beat, timeout=DEADLINE)).known
    listed = await api.call(api.sps.ListProcessors, processor_pb2.ListProcessorsRequest())
    assert [(sp.sp, sp.up, sp.master) for sp in listed.processors] == [
        ("a", True, True),
        ("b", True, False),
        ("c", True, False),
    ]
    request.cluster_id = "another"
    assert (await api.refused(api.registry.Register, request)).kind is Kind.UNSAFE


async def test_health_and_reflection(api: Api) -> None:
    health = health_pb2_grpc.HealthStub(api.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflected = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    stream = reflected.ServerReflectionInfo(iter([ask]), timeout=DEADLINE)
    names = {s.name for s in (await stream.read()).list_services_response.service}
    assert {"vswitchd.v1.VolumeService", "vswitchd.v1.RegistryService"} <= names
    stream.cancel()
