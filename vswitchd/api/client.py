"""A client of the public services for programs that wait: the command line."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import grpc

from vswitchd.api.errors import from_rpc
from vswitchd.errors import Kind, VsError
from vswitchd.rpc import (
    cluster_pb2,
    cluster_pb2_grpc,
    common_pb2,
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
    "common_pb2",
    "device_pb2",
    "operation_pb2",
    "processor_pb2",
    "volume_pb2",
]

A = TypeVar("A")
T = TypeVar("T")

#: What the controller is told of who asks (api/operation.py reads it).
WHO = "vswitch-user"

#: Seconds for one call: a request is planned while its caller waits.
DEADLINE = 30.0

#: Seconds that a watch waits for a controller that has gone away to come back.
PATIENCE = 60.0


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class Client:
    """The controller at an address (host:port). Calls raise VsError."""

    def __init__(self, address: str) -> None:
        self._who = f"the controller at {address}"
        # Reconnecting every second at the slowest: somebody is looking at the screen.
        channel = grpc.insecure_channel(address, options=[("grpc.max_reconnect_backoff_ms", 1000)])
        self.volumes = volume_pb2_grpc.VolumeServiceStub(channel)
        self.devices = device_pb2_grpc.DeviceServiceStub(channel)
        self.processors = processor_pb2_grpc.ProcessorServiceStub(channel)
        self.operations = operation_pb2_grpc.OperationServiceStub(channel)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(channel)

    def call(self, method: Callable[..., A], request: object) -> A:
        """One call with a deadline."""
        try:
            return method(request, timeout=DEADLINE, metadata=((WHO, _who()),))
        except grpc.RpcError as error:
            raise from_rpc(error, self._who) from None

    def pages(
        self,
        method: Callable[..., Any],
        request: Callable[[str], object],
        items: Callable[[Any], Iterable[T]],
    ) -> list[T]:
        """A whole list: `request` makes the one for a page token, `items` takes an answer apart."""
        found: list[T] = []
        token = ""
        while True:
            answer = self.call(method, request(token))
            found += items(answer)
            token = answer.next_page_token
            if not token:
                return found

    def status(self) -> cluster_pb2.ClusterStatus:
        """The cluster on one screen."""
        return self.call(self.cluster.GetStatus, cluster_pb2.GetStatusRequest())

    def volume(self, name: str) -> volume_pb2.Volume:
        """The volume of that name, its T2 objects collected afresh."""
        return self.call(self.volumes.GetVolume, volume_pb2.GetVolumeRequest(name=name))

    def all_volumes(self) -> list[volume_pb2.Volume]:
        """Every volume."""
        return self.pages(
            self.volumes.ListVolumes,
            lambda token: volume_pb2.ListVolumesRequest(page_token=token),
            lambda answer: answer.volumes,
        )

    def all_devices(self) -> list[device_pb2.Device]:
        """Every device."""
        return self.pages(
            self.devices.ListDevices,
            lambda token: device_pb2.ListDevicesRequest(page_token=token),
            lambda answer: answer.devices,
        )

    def all_processors(self) -> list[processor_pb2.Processor]:
        """Every SP."""
        return self.pages(
            self.processors.ListProcessors,
            lambda token: processor_pb2.ListProcessorsRequest(page_token=token),
            lambda answer: answer.processors,
        )

    def all_operations(self, volume: str, open_only: bool) -> list[operation_pb2.Operation]:
        """Operations, the newest first: of one volume unless that is empty."""
        return self.pages(
            self.operations.ListOperations,
            lambda token: operation_pb2.ListOperationsRequest(
                volume=volume, open_only=open_only, page_token=token
            ),
            lambda answer: answer.operations,
        )

    def operation(self, operation_id: str) -> operation_pb2.Operation:
        """The operation of that id."""
        request = operation_pb2.GetOperationRequest(operation_id=operation_id)
        return self.call(self.operations.GetOperation, request)

    def watch(self, operation_id: str, seconds: float | None) -> Iterator[operation_pb2.Operation]:
        """The operation whenever it changes, until it has ended or `seconds` are over (VsError
        TIMEOUT). A controller that goes away meanwhile is waited for: operations outlive it."""
        request = operation_pb2.GetOperationRequest(operation_id=operation_id)
        ends = None if seconds is None else time.monotonic() + seconds

        def left(most: float | None = None) -> float | None:
            if ends is None:
                return most
            rest = max(ends - time.monotonic(), 0.0)
            return rest if most is None else min(rest, most)

        while True:
            try:
                yield from self.operations.WatchOperation(request, timeout=left())
                return
            except grpc.RpcError as error:
                gone = from_rpc(error, self._who)
            if gone.kind is not Kind.UNREACHABLE:
                raise gone
            self._await(request, left(PATIENCE), gone, late=lambda: left() == 0.0)

    def _await(
        self,
        request: operation_pb2.GetOperationRequest,
        seconds: float | None,
        gone: VsError,
        late: Callable[[], bool],
    ) -> None:
        """Returns when the controller answers again; else `gone`, or what is wrong now."""
        try:
            self.operations.GetOperation(request, timeout=seconds, wait_for_ready=True)
        except grpc.RpcError as error:
            problem = from_rpc(error, self._who)
            if problem.kind is Kind.TIMEOUT and not late():
                raise gone from None
            raise problem from None
