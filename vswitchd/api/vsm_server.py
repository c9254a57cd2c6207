"""The VSM's servicer: messages to values and back; every decision is the VSM's."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from vswitchd.api import convert
from vswitchd.api.errors import servicer_errors
from vswitchd.model.objects import DeviceId, T1Id, VolumeId
from vswitchd.processor.vsm import Vsm
from vswitchd.rpc import vsm_pb2, vsm_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
ACK = vsm_pb2.Ack()


class VsmServicer(vsm_pb2_grpc.VsmServiceServicer):
    """vsm.proto over a `Vsm`."""

    def __init__(self, vsm: Vsm) -> None:
        self._vsm = vsm

    def _admit(self, caller: vsm_pb2.Caller) -> None:
        self._vsm.admit(caller.cluster_id, caller.term)

    @servicer_errors
    async def GetView(self, request: vsm_pb2.GetViewRequest, _: Context) -> vsm_pb2.View:
        self._vsm.check_cluster(request.caller.cluster_id)
        return convert.view_to_proto(await self._vsm.view())

    @servicer_errors
    async def AddSpDevice(
        self, request: vsm_pb2.AddSpDeviceRequest, _: Context
    ) -> vsm_pb2.DeviceView:
        self._admit(request.caller)
        device = await self._vsm.add_device(request.uri, request.size, DeviceId(request.device_id))
        return convert.device_view_to_proto(device)

    @servicer_errors
    async def RemoveSpDevice(
        self, request: vsm_pb2.RemoveSpDeviceRequest, _: Context
    ) -> vsm_pb2.Ack:
        self._admit(request.caller)
        await self._vsm.remove_device(DeviceId(request.device_id))
        return ACK

    @servicer_errors
    async def PutT1(self, request: vsm_pb2.PutT1Request, _: Context) -> vsm_pb2.Ack:
        self._admit(request.caller)
        await self._vsm.put_t1(convert.t1_from_proto(request.t1), request.epoch)
        return ACK

    @servicer_errors
    async def AdoptT1(self, request: vsm_pb2.PutT1Request, _: Context) -> vsm_pb2.Ack:
        self._admit(request.caller)
        await self._vsm.adopt_t1(convert.t1_from_proto(request.t1), request.epoch)
        return ACK

    @servicer_errors
    async def FenceT1(self, request: vsm_pb2.FenceT1Request, _: Context) -> vsm_pb2.Ack:
        self._admit(request.caller)
        await self._vsm.fence_t1(T1Id(request.t1_id), request.epoch)
        return ACK

    @servicer_errors
    async def DeleteT1(self, request: vsm_pb2.DeleteT1Request, _: Context) -> vsm_pb2.Ack:
        self._admit(request.caller)
        await self._vsm.delete_t1(T1Id(request.t1_id))
        return ACK

    @servicer_errors
    async def StageT2(self, request: vsm_pb2.StageT2Request, _: Context) -> vsm_pb2.Ack:
        self._admit(request.caller)
        await self._vsm.stage_t2(convert.t2_from_proto(request.t2))
        return ACK

    @servicer_errors
    async def ActivateT2(
        self, request: vsm_pb2.ActivateT2Request, _: Context
    ) -> vsm_pb2.ActivateT2Response:
        self._admit(request.caller)
        pause = await self._vsm.activate_t2(VolumeId(request.volume_id), request.version)
        return vsm_pb2.ActivateT2Response(pause_us=pause)

    @servicer_errors
    async def RemoveT2(self, request: vsm_pb2.RemoveT2Request, _: Context) -> vsm_pb2.Ack:
        self._admit(request.caller)
        await self._vsm.remove_t2(VolumeId(request.volume_id))
        return ACK

    @servicer_errors
    async def DropReference(self, request: vsm_pb2.DropReferenceRequest, _: Context) -> vsm_pb2.Ack:
        self._admit(request.caller)
        await self._vsm.drop_reference(VolumeId(request.volume_id), T1Id(request.t1_id))
        return ACK

    @servicer_errors
    async def StartCopy(self, request: vsm_pb2.CopyRequest, _: Context) -> vsm_pb2.Ack:
        self._admit(request.caller)
        await self._vsm.start_copy(VolumeId(request.volume_id), tuple(request.path))
        return ACK

    @servicer_errors
    async def StopCopy(self, request: vsm_pb2.CopyRequest, _: Context) -> vsm_pb2.Ack:
        self._admit(request.caller)
        await self._vsm.stop_copy(VolumeId(request.volume_id), tuple(request.path))
        return ACK

    @servicer_errors
    async def ActivateMvsm(self, request: vsm_pb2.MvsmRequest, _: Context) -> vsm_pb2.Ack:
        self._admit(request.caller)
        self._vsm.activate_mvsm(request.caller.term)
        return ACK

    @servicer_errors
    async def DeactivateMvsm(self, request: vsm_pb2.MvsmRequest, _: Context) -> vsm_pb2.Ack:
        self._admit(request.caller)
        self._vsm.deactivate_mvsm()
        return ACK

    @servicer_errors
    async def Determine(
        self, request: vsm_pb2.DetermineRequest, _: Context
    ) -> vsm_pb2.DetermineResponse:
        self._admit(request.caller)
        has = request.HasField
        affected = self._vsm.determine(
            request.caller.term,
            convert.volume_from_proto(request.current) if has("current") else None,
            convert.volume_from_proto(request.target) if has("target") else None,
        )
        return vsm_pb2.DetermineResponse(
            affected=[convert.affected_to_proto(one) for one in affected]
        )
