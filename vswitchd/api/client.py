"""A client of the public services for programs that wait: the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc

from vswitchd.api.errors import from_rpc
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

__all__ = [
    "Client",
    "cluster_pb2",
    "device_pb2",
    "operation_pb2",
    "processor_pb2",
    "volume_pb2",
]

A = TypeVar("A")

#: Seconds for one call: a request is planned while its caller waits.
DEADLINE = 30.0


class Client:
    """The controller at an address. Calls raise VsError."""

    def __init__(self, address: str) -> None:
        self._who = f"the controller at {address}"
        self._channel = grpc.insecure_channel(address)
        self.volumes = volume_pb2_grpc.VolumeServiceStub(self._channel)
        self.devices = device_pb2_grpc.DeviceServiceStub(self._channel)
        self.processors = processor_pb2_grpc.ProcessorServiceStub(self._channel)
        self.operations = operation_pb2_grpc.OperationServiceStub(self._channel)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(self._channel)

    def call(self, method: Callable[..., A], request: object) -> A:
        """One call with a deadline."""
        try:
            return method(request, timeout=DEADLINE)
        except grpc.RpcError as error:
            raise from_rpc(error, self._who) from None

    def status(self) -> cluster_pb2.ClusterStatus:
        return self.call(self.cluster.GetStatus, cluster_pb2.GetStatusRequest())

    def volume(self, name: str) -> volume_pb2.Volume:
        return self.call(self.volumes.GetVolume, volume_pb2.GetVolumeRequest(name=name))

    def all_volumes(self) -> list[volume_pb2.Volume]:
        found: list[volume_pb2.Volume] = []
        token = ""
        while True:
            request = volume_pb2.ListVolumesRequest(page_token=token)
            answer = self.call(self.volumes.ListVolumes, request)
            found += answer.volumes
            token = answer.next_page_token
            if not token:
                return found

    def all_devices(self) -> list[device_pb2.Device]:
        found: list[device_pb2.Device] = []
        token = ""
        while True:
            request = device_pb2.ListDevicesRequest(page_token=token)
            answer = self.call(self.devices.ListDevices, request)
            found += answer.devices
            token = answer.next_page_token
            if not token:
                return found

    def all_processors(self) -> list[processor_pb2.Processor]:
        found: list[processor_pb2.Processor] = []
        token = ""
        while True:
            request = processor_pb2.ListProcessorsRequest(page_token=token)
            answer = self.call(self.processors.ListProcessors, request)
            found += answer.processors
            token = answer.next_page_token
            if not token:
                return found

    def operation(self, operation_id: str) -> operation_pb2.Operation:
        request = operation_pb2.GetOperationRequest(operation_id=operation_id)
        return self.call(self.operations.GetOperation, request)

    def watch(self, operation_id: str, seconds: float | None) -> Iterator[operation_pb2.Operation]:
        """The operation whenever it changes, until it has ended or `seconds` are over (VsError
        TIMEOUT)."""
        request = operation_pb2.GetOperationRequest(operation_id=operation_id)
        try:
            yield from self.operations.WatchOperation(request, timeout=seconds)
        except grpc.RpcError as error:
            raise from_rpc(error, self._who) from None
