"""A controller in this process: the public services over what a test puts in, on a real port."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from vswitchd.api.errors import to_status
from vswitchd.errors import Kind, VsError
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

#: Items on a page of any list, few so that every list has several.
PAGE = 2


class Fake:
    """What the controller holds, and what it was asked."""

    def __init__(self) -> None:
        self.fsck = cluster_pb2.FsckResponse()
        self.status = cluster_pb2.ClusterStatus(health=cluster_pb2.HEALTH_SEVERITY_OK)
        self.volumes: list[volume_pb2.Volume] = []
        self.access = volume_pb2.VolumeAccess()
        self.devices: list[device_pb2.Device] = []
        self.processors: list[processor_pb2.Processor] = []
        #: States of each operation, in the order that a watcher sees them.
        self.operations: dict[str, list[operation_pb2.Operation]] = {}
        #: What every mutation starts, or its error.
        self.starts: operation_pb2.Operation | VsError = operation_pb2.Operation()
        #: (method, request) of every call.
        self.asked: list[tuple[str, Any]] = []
        #: Set when a watcher has seen all there is of an operation that has not ended.
        self.watched = threading.Event()
        self.address = ""
        self._server: grpc.Server | None = None

    def start(self) -> None:
        """Serves; at the address of before, if there was one."""
        self._server = grpc.server(
            futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)]
        )
        volumes = _Volumes(self)  # type: ignore[abstract]  # its mutations are set below
        volume_pb2_grpc.add_VolumeServiceServicer_to_server(volumes, self._server)
        device_pb2_grpc.add_DeviceServiceServicer_to_server(_Devices(self), self._server)
        processor_pb2_grpc.add_ProcessorServiceServicer_to_server(_Processors(self), self._server)
        operation_pb2_grpc.add_OperationServiceServicer_to_server(_Operations(self), self._server)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(_Cluster(self), self._server)
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        """Cuts every call short."""
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None

    def started(self) -> Any:
        """The request of the one mutation that was made, and its method."""
        (only,) = [call for call in self.asked if not call[0].startswith(("Get", "List", "Watch"))]
        return only


def _refuse(context: grpc.ServicerContext, error: VsError) -> Any:
    context.abort_with_status(rpc_status.to_status(to_status(error)))


def _page(answer: Any, field: str, items: Sequence[Message], token: str) -> Any:
    start = int(token or 0)
    getattr(answer, field).extend(items[start : start + PAGE])
    if start + PAGE < len(items):
        answer.next_page_token = str(start + PAGE)
    return answer


def _named(context: Any, items: Sequence[Any], name: str, of: Callable[[Any], str]) -> Any:
    for item in items:
        if of(item) == name:
            return item
    return _refuse(context, VsError("VS2041", Kind.NOT_FOUND, f"there is no {name!r}"))


class _Servicer:
    """Methods that are not written out are mutations."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def note(self, method: str, request: Any) -> None:
        self.fake.asked.append((method, request))

    def mutate(self, method: str, request: Any, context: Any) -> Any:
        self.note(method, request)
        if isinstance(self.fake.starts, VsError):
            return _refuse(context, self.fake.starts)
        return self.fake.starts


class _Volumes(_Servicer, volume_pb2_grpc.VolumeServiceServicer):
    def _access(self, method: str, request: Any) -> Any:
        self.note(method, request)
        return self.fake.access

    def AllowInitiator(self, request: Any, context: Any) -> Any:
        return self._access("AllowInitiator", request)

    def DenyInitiator(self, request: Any, context: Any) -> Any:
        return self._access("DenyInitiator", request)

    def SetVolumeNbd(self, request: Any, context: Any) -> Any:
        return self._access("SetVolumeNbd", request)

    def GetVolumeAccess(self, request: Any, context: Any) -> Any:
        return self._access("GetVolumeAccess", request)

    def GetVolume(self, request: Any, context: Any) -> Any:
        return _named(context, self.fake.volumes, request.name, lambda v: v.record.name)

    def ListVolumes(self, request: Any, context: Any) -> Any:
        answer = volume_pb2.ListVolumesResponse()
        return _page(answer, "volumes", self.fake.volumes, request.page_token)


for _method in volume_pb2.DESCRIPTOR.services_by_name["VolumeService"].methods:
    if _method.output_type.name == "Operation":

        def _mutate(self: Any, request: Any, context: Any, name: str = _method.name) -> Any:
            return self.mutate(name, request, context)

        setattr(_Volumes, _method.name, _mutate)


class _Devices(_Servicer, device_pb2_grpc.DeviceServiceServicer):
    def GetDevice(self, request: Any, context: Any) -> Any:
        return _named(context, self.fake.devices, request.name, lambda d: d.name)

    def ListDevices(self, request: Any, context: Any) -> Any:
        answer = device_pb2.ListDevicesResponse()
        return _page(answer, "devices", self.fake.devices, request.page_token)

    def AddDevice(self, request: Any, context: Any) -> Any:
        self.note("AddDevice", request)
        return device_pb2.Device(name=request.name, size=request.size)

    def RemoveDevice(self, request: Any, context: Any) -> Any:
        self.note("RemoveDevice", request)
        return device_pb2.Device(name=request.name)


class _Processors(_Servicer, processor_pb2_grpc.ProcessorServiceServicer):
    def GetProcessor(self, request: Any, context: Any) -> Any:
        return _named(context, self.fake.processors, request.sp, lambda p: p.sp)

    def ListProcessors(self, request: Any, context: Any) -> Any:
        answer = processor_pb2.ListProcessorsResponse()
        return _page(answer, "processors", self.fake.processors, request.page_token)

    def DrainProcessor(self, request: Any, context: Any) -> Any:
        self.note("DrainProcessor", request)
        return processor_pb2.Processor(sp=request.sp, drained=True, volumes=2)

    def UndrainProcessor(self, request: Any, context: Any) -> Any:
        self.note("UndrainProcessor", request)
        return processor_pb2.Processor(sp=request.sp)

    def RemoveProcessor(self, request: Any, context: Any) -> Any:
        self.note("RemoveProcessor", request)
        return processor_pb2.Processor(sp=request.sp)


class _Operations(_Servicer, operation_pb2_grpc.OperationServiceServicer):
    def GetOperation(self, request: Any, context: Any) -> Any:
        return _named(
            context,
            [states[0] for states in self.fake.operations.values()],
            request.operation_id,
            lambda o: o.operation_id,
        )

    def ListOperations(self, request: Any, context: Any) -> Any:
        self.note("ListOperations", request)
        found = [states[0] for states in self.fake.operations.values()]
        answer = operation_pb2.ListOperationsResponse()
        return _page(answer, "operations", found, request.page_token)

    def WatchOperation(self, request: Any, context: Any) -> Iterator[operation_pb2.Operation]:
        self.note("WatchOperation", request)
        states = self.fake.operations[request.operation_id]
        yield from states
        if not states[-1].HasField("ended"):
            self.fake.watched.set()
            over = threading.Event()
            # Also when the server is stopped; the bound is for a broken test.
            if context.add_callback(over.set):
                over.wait(60)

    def _ask(self, request: Any, method: str) -> Any:
        self.note(method, request)
        return self.fake.operations[request.operation_id][-1]

    def CancelOperation(self, request: Any, context: Any) -> Any:
        return self._ask(request, "CancelOperation")

    def PauseOperation(self, request: Any, context: Any) -> Any:
        return self._ask(request, "PauseOperation")

    def ResumeOperation(self, request: Any, context: Any) -> Any:
        return self._ask(request, "ResumeOperation")

    def ThrottleOperation(self, request: Any, context: Any) -> Any:
        return self._ask(request, "ThrottleOperation")


class _Cluster(_Servicer, cluster_pb2_grpc.ClusterServiceServicer):
    def GetStatus(self, request: Any, context: Any) -> Any:
        self.note("GetStatus", request)
        return self.fake.status

    def Fsck(self, request: Any, context: Any) -> Any:
        self.note("Fsck", request)
        return self.fake.fsck

    def Recover(self, request: Any, context: Any) -> Any:
        self.note("Recover", request)
        return cluster_pb2.RecoverResponse(cluster_id="c-1", sps=["sp-a"], devices=["d0"])

    def Explain(self, request: Any, context: Any) -> Any:
        self.note("Explain", request)
        one = cluster_pb2.Explanation(kind="volume", object=request.object, sentences=["It is."])
        return cluster_pb2.ExplainResponse(explanations=[one])
