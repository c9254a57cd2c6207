"""The part of the VolumeService that says who may use a volume."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from vswitchd.api.convert_access import access_message, chap_from_proto
from vswitchd.api.errors import servicer_errors
from vswitchd.api.operation import who
from vswitchd.controller.access import Admission, Told
from vswitchd.rpc import volume_pb2, volume_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class AccessServicer(volume_pb2_grpc.VolumeServiceServicer):
    """Those methods, over the controller's `Admission`."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    @servicer_errors
    async def AllowInitiator(
        self, request: volume_pb2.AllowInitiatorRequest, context: Context
    ) -> volume_pb2.VolumeAccess:
        told = await self._admission.allow(
            request.name,
            request.initiator,
            chap_from_proto(request.chap) if request.HasField("chap") else None,
            chap_from_proto(request.mutual) if request.HasField("mutual") else None,
            who(context),
        )
        return _message(told)

    @servicer_errors
    async def DenyInitiator(
        self, request: volume_pb2.DenyInitiatorRequest, context: Context
    ) -> volume_pb2.VolumeAccess:
        told = await self._admission.deny(
            request.name, request.initiator, whoever=request.open, who=who(context)
        )
        return _message(told)

    @servicer_errors
    async def SetVolumeNbd(
        self, request: volume_pb2.SetVolumeNbdRequest, context: Context
    ) -> volume_pb2.VolumeAccess:
        return _message(await self._admission.set_nbd(request.name, request.on, who(context)))

    @servicer_errors
    async def GetVolumeAccess(
        self, request: volume_pb2.GetVolumeAccessRequest, _: Context
    ) -> volume_pb2.VolumeAccess:
        return _message(await self._admission.told(request.name))


def _message(told: Told) -> volume_pb2.VolumeAccess:
    return access_message(told.volume, told.access, told.held)
