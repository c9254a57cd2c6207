"""What the quickstart puts into its cluster: devices, and a mirrored volume."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import grpc

from vswitchd.api.errors import from_rpc
from vswitchd.errors import Kind, VsError
from vswitchd.rpc import (
    cluster_pb2,
    cluster_pb2_grpc,
    device_pb2,
    device_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)

SPS = ("sp-a", "sp-b", "sp-c")
#: Devices by name and the SPs that reach them.
DEVICES = {"a0": ("sp-a",), "b0": ("sp-b",), "c0": ("sp-c",), "ab": ("sp-a", "sp-b")}
DEVICE_SIZE = 2 << 30
VOLUME = "demo"
VOLUME_SIZE = 256 << 20
LAYOUT = "mirror(sp-a, sp-b)"
SERVING = ("sp-a", "sp-b")

#: Seconds for one call, and until something that was asked for must have happened.
CALL = 30.0
PATIENCE = 60.0

_ENDED = {
    operation_pb2.OPERATION_STATE_DONE,
    operation_pb2.OPERATION_STATE_FAILED,
    operation_pb2.OPERATION_STATE_CANCELLED,
}


async def furnish(controller: str, files: Path) -> None:
    """Makes what is missing of the devices and the volume; VsError says what can't be made."""
    async with grpc.aio.insecure_channel(controller) as channel:
        try:
            async with asyncio.timeout(PATIENCE):
                await _joined(channel)
                await _add_devices(channel, files)
                await _create_volume(channel)
        except grpc.RpcError as error:
            raise from_rpc(error, f"the controller at {controller}") from None
        except TimeoutError:
            raise VsError(
                "VS5070",
                Kind.TIMEOUT,
                f"the cluster was not furnished in {PATIENCE:g} s; the logs beside {files} say why",
            ) from None


async def _joined(channel: grpc.aio.Channel) -> None:
    stub = cluster_pb2_grpc.ClusterServiceStub(channel)
    while True:
        status = await stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=CALL)
        if status.processors_up >= len(SPS) and status.master:
            return
        await asyncio.sleep(0.1)


async def _add_devices(channel: grpc.aio.Channel, files: Path) -> None:
    stub = device_pb2_grpc.DeviceServiceStub(channel)
    known = await stub.ListDevices(device_pb2.ListDevicesRequest(), timeout=CALL)
    reached = {(device.name, path.sp) for device in known.devices for path in device.paths}
    for name, sps in DEVICES.items():
        for sp in sps:
            if (name, sp) not in reached:
                uri = f"file:{files / name}.img"
                request = device_pb2.AddDeviceRequest(sp=sp, uri=uri, size=DEVICE_SIZE, name=name)
                await stub.AddDevice(request, timeout=CALL)


async def _create_volume(channel: grpc.aio.Channel) -> None:
    volumes = volume_pb2_grpc.VolumeServiceStub(channel)
    try:
        await volumes.GetVolume(volume_pb2.GetVolumeRequest(name=VOLUME), timeout=CALL)
        return
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
    operation = await volumes.CreateVolume(
        volume_pb2.CreateVolumeRequest(
            request_id=f"quickstart-{uuid.uuid4()}",
            name=VOLUME,
            size=VOLUME_SIZE,
            layout=LAYOUT,
            serving=SERVING,
        ),
        timeout=CALL,
    )
    operations = operation_pb2_grpc.OperationServiceStub(channel)
    wanted = operation_pb2.GetOperationRequest(operation_id=operation.operation_id)
    while operation.state not in _ENDED:
        await asyncio.sleep(0.1)
        operation = await operations.GetOperation(wanted, timeout=CALL)
    if operation.state != operation_pb2.OPERATION_STATE_DONE:
        why = f"{operation.error.code}: {operation.error.message}"
        raise VsError("VS9071", Kind.INTERNAL, f"volume {VOLUME} could not be created: {why}")
