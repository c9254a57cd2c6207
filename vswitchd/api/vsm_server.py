"""The VSM's servicer: messages to values and back; every decision is the VSM's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeAlias, TypeVar

import grpc

from vswitchd.api import convert
from vswitchd.api.convert_access import access_from_proto, access_to_proto
from vswitchd.api.errors import servicer_errors
from vswitchd.model.objects import DeviceId, T1Id, VolumeId
from vswitchd.model.view import Ejection
from vswitchd.processor.vsm import Caller, Vsm
from vswitchd.rpc import vsm_pb2, vsm_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
ACK = vsm_pb2.Ack()

Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


def carried_out(method: Method) -> Method:
    """Makes a method go on to its end when its caller has gone: the engine can't be stopped in
    the middle, and what it did must be recorded. VsError is answered as a status."""

    @wraps(method)
    async def whole(self: VsmServicer, request: Any, context: Context) -> Any:
        task = asyncio.ensure_future(method(self, request, context))
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        # An error is seen here even if nobody is left to be told.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    return servicer_errors(whole)  # type: ignore[return-value]


def _caller(request: Any) -> Caller:
    return Caller(request.caller.cluster_id, request.caller.term)


class VsmServicer(vsm_pb2_grpc.VsmServiceServicer):
    """vsm.proto over a `Vsm`."""

    def __init__(self, vsm: Vsm) -> None:
        self._vsm = vsm
        self.running: set[asyncio.Future[Any]] = set()

    async def finish(self) -> None:
        """Waits until all calls that have begun are carried out."""
        if self.running:
            await asyncio.wait(self.running)

    @servicer_errors
    async def GetView(self, request: vsm_pb2.GetViewRequest, _: Context) -> vsm_pb2.View:
        # Whatever its term: a controller that was away learns the present one from the view.
        self._vsm.check_cluster(_caller(request))
        volume = VolumeId(request.volume_id) if request.volume_id else None
        return convert.view_to_proto(await self._vsm.view(volume))

    @carried_out
    async def AddSpDevice(
        self, request: vsm_pb2.AddSpDeviceRequest, _: Context
    ) -> vsm_pb2.DeviceView:
        device = await self._vsm.add_device(
            _caller(request),
            request.uri,
            request.size,
            DeviceId(request.device_id),
            direct=request.direct,
            checksums=request.checksums,
        )
        return convert.device_view_to_proto(device)

    @carried_out
    async def RemoveSpDevice(
        self, request: vsm_pb2.RemoveSpDeviceRequest, _: Context
    ) -> vsm_pb2.Ack:
        await self._vsm.remove_device(_caller(request), DeviceId(request.device_id))
        return ACK

    @carried_out
    async def PutT1(self, request: vsm_pb2.PutT1Request, _: Context) -> vsm_pb2.Ack:
        await self._vsm.put_t1(_caller(request), convert.t1_from_proto(request.t1), request.epoch)
        return ACK

    @carried_out
    async def AdoptT1(self, request: vsm_pb2.PutT1Request, _: Context) -> vsm_pb2.Ack:
        await self._vsm.adopt_t1(_caller(request), convert.t1_from_proto(request.t1), request.epoch)
        return ACK

    @carried_out
    async def FenceT1(self, request: vsm_pb2.FenceT1Request, _: Context) -> vsm_pb2.Ack:
        await self._vsm.fence_t1(
            _caller(request), T1Id(request.t1_id), request.epoch, request.known_epoch
        )
        return ACK

    @carried_out
    async def DeleteT1(self, request: vsm_pb2.DeleteT1Request, _: Context) -> vsm_pb2.Ack:
        await self._vsm.delete_t1(_caller(request), T1Id(request.t1_id), request.epoch)
        return ACK

    @carried_out
    async def StageT2(self, request: vsm_pb2.StageT2Request, _: Context) -> vsm_pb2.Ack:
        t2, access = convert.t2_from_proto(request.t2), access_from_proto(request.access)
        await self._vsm.stage_t2(_caller(request), t2, access)
        return ACK

    @carried_out
    async def SetAccess(self, request: vsm_pb2.SetAccessRequest, _: Context) -> vsm_pb2.Ack:
        access = access_from_proto(request.access)
        await self._vsm.set_access(_caller(request), VolumeId(request.volume_id), access)
        return ACK

    @servicer_errors
    async def GetAccess(self, request: vsm_pb2.GetAccessRequest, _: Context) -> vsm_pb2.Access:
        volume = VolumeId(request.volume_id)
        return access_to_proto(await self._vsm.access(_caller(request), volume))

    @carried_out
    async def ActivateT2(
        self, request: vsm_pb2.ActivateT2Request, _: Context
    ) -> vsm_pb2.ActivateT2Response:
        pause = await self._vsm.activate_t2(
            _caller(request), VolumeId(request.volume_id), request.version
        )
        return vsm_pb2.ActivateT2Response(pause_us=pause)

    @carried_out
    async def RemoveT2(self, request: vsm_pb2.RemoveT2Request, _: Context) -> vsm_pb2.Ack:
        await self._vsm.remove_t2(_caller(request), VolumeId(request.volume_id), request.version)
        return ACK

    @carried_out
    async def DropReference(self, request: vsm_pb2.DropReferenceRequest, _: Context) -> vsm_pb2.Ack:
        await self._vsm.drop_reference(
            _caller(request), VolumeId(request.volume_id), T1Id(request.t1_id)
        )
        return ACK

    @carried_out
    async def StartCopy(self, request: vsm_pb2.StartCopyRequest, _: Context) -> vsm_pb2.Ack:
        await self._vsm.start_copy(
            _caller(request),
            VolumeId(request.volume_id),
            request.version,
            tuple(request.path),
            start=request.start_bytes,
            rate=request.bytes_per_second,
            adaptive=request.adaptive,
            mode=convert.copy_mode_from_proto(request.mode),
        )
        return ACK

    @carried_out
    async def ThrottleCopy(self, request: vsm_pb2.ThrottleCopyRequest, _: Context) -> vsm_pb2.Ack:
        await self._vsm.throttle_copy(
            _caller(request),
            VolumeId(request.volume_id),
            tuple(request.path),
            rate=request.bytes_per_second,
            adaptive=request.adaptive,
        )
        return ACK

    @carried_out
    async def StopCopy(self, request: vsm_pb2.StopCopyRequest, _: Context) -> vsm_pb2.Ack:
        await self._vsm.stop_copy(
            _caller(request), VolumeId(request.volume_id), tuple(request.path)
        )
        return ACK

    @servicer_errors
    async def GetLabels(
        self, request: vsm_pb2.GetLabelsRequest, _: Context
    ) -> vsm_pb2.GetLabelsResponse:
        labels = await self._vsm.labels(_caller(request))
        return vsm_pb2.GetLabelsResponse(labels=map(convert.label_to_proto, labels))

    def _ejection(self, request: vsm_pb2.EjectionRequest) -> Ejection:
        # From another SP: it says no term, and its epochs say whether it is the owner.
        self._vsm.check_cluster(Caller(request.cluster_id, 0))
        return convert.ejection_from_proto(request.ejection)

    @servicer_errors
    async def AskEjection(self, request: vsm_pb2.EjectionRequest, _: Context) -> vsm_pb2.Ack:
        await self._vsm.voter.ask(self._ejection(request))
        return ACK

    @carried_out
    async def FenceEjection(self, request: vsm_pb2.EjectionRequest, _: Context) -> vsm_pb2.Ack:
        await self._vsm.voter.fence(self._ejection(request))
        return ACK

    @carried_out
    async def RecordEjection(self, request: vsm_pb2.EjectionRequest, _: Context) -> vsm_pb2.Ack:
        await self._vsm.voter.record(self._ejection(request))
        return ACK

    @carried_out
    async def FollowEjection(self, request: vsm_pb2.EjectionRequest, _: Context) -> vsm_pb2.Ack:
        await self._vsm.voter.follow(self._ejection(request))
        return ACK

    @carried_out
    async def ActivateMvsm(self, request: vsm_pb2.MvsmRequest, _: Context) -> vsm_pb2.Ack:
        self._vsm.activate_mvsm(_caller(request))
        return ACK

    @carried_out
    async def DeactivateMvsm(self, request: vsm_pb2.MvsmRequest, _: Context) -> vsm_pb2.Ack:
        self._vsm.deactivate_mvsm(_caller(request))
        return ACK

    @carried_out
    async def Determine(
        self, request: vsm_pb2.DetermineRequest, _: Context
    ) -> vsm_pb2.DetermineResponse:
        has = request.HasField
        affected = self._vsm.determine(
            _caller(request),
            convert.volume_from_proto(request.current) if has("current") else None,
            convert.volume_from_proto(request.target) if has("target") else None,
        )
        return vsm_pb2.DetermineResponse(
            affected=[convert.affected_to_proto(one) for one in affected]
        )
