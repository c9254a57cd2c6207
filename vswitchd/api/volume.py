"""The VolumeService."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import grpc

from vswitchd.api.convert_public import operation_to_proto, page, volume_message
from vswitchd.api.errors import servicer_errors
from vswitchd.controller.service import Service
from vswitchd.model.objects import DeviceId, SpId, T1Id, Volume, VolumeId
from vswitchd.model.view import View
from vswitchd.ports import OperationRecord
from vswitchd.restructure import requests
from vswitchd.rpc import operation_pb2, volume_pb2, volume_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class VolumeServicer(volume_pb2_grpc.VolumeServiceServicer):
    """volume.proto over the controller's `Service`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def _change(
        self, kind: str, request: Any, what: requests.Request
    ) -> operation_pb2.Operation:
        record = await self._service.change(
            kind, request.name, what, request.request_id, request.dry_run
        )
        return operation_to_proto(record)

    @servicer_errors
    async def CreateVolume(
        self, request: volume_pb2.CreateVolumeRequest, _: Context
    ) -> operation_pb2.Operation:
        def make(volume: VolumeId) -> requests.Create:
            return requests.Create(
                id=volume,
                name=request.name,
                size=request.size,
                layout=request.layout,
                serving=tuple(SpId(sp) for sp in request.serving),
                place_on=tuple(SpId(sp) for sp in request.place_on),
            )

        record = await self._service.create(request.request_id, request.dry_run, make)
        return operation_to_proto(record)

    @servicer_errors
    async def DeleteVolume(
        self, request: volume_pb2.DeleteVolumeRequest, _: Context
    ) -> operation_pb2.Operation:
        return await self._change("delete", request, requests.Delete())

    @servicer_errors
    async def GrowVolume(
        self, request: volume_pb2.GrowVolumeRequest, _: Context
    ) -> operation_pb2.Operation:
        return await self._change("grow", request, requests.Grow(request.size))

    @servicer_errors
    async def AddMirrorLeg(
        self, request: volume_pb2.AddMirrorLegRequest, _: Context
    ) -> operation_pb2.Operation:
        sp = SpId(request.sp) if request.sp else None
        return await self._change("mirror_add", request, requests.AddLeg(request.layout, sp))

    @servicer_errors
    async def RemoveMirrorLeg(
        self, request: volume_pb2.RemoveMirrorLegRequest, _: Context
    ) -> operation_pb2.Operation:
        return await self._change("mirror_remove", request, requests.RemoveLeg(request.leg))

    @servicer_errors
    async def MoveVolume(
        self, request: volume_pb2.MoveVolumeRequest, _: Context
    ) -> operation_pb2.Operation:
        t1 = T1Id(request.t1_id) if request.t1_id else None
        move = requests.Move(SpId(request.from_sp), SpId(request.to_sp), t1)
        return await self._change("move", request, move)

    @servicer_errors
    async def ServeVolume(
        self, request: volume_pb2.ServeVolumeRequest, _: Context
    ) -> operation_pb2.Operation:
        return await self._change("serve", request, requests.Serve(SpId(request.sp)))

    @servicer_errors
    async def UnserveVolume(
        self, request: volume_pb2.UnserveVolumeRequest, _: Context
    ) -> operation_pb2.Operation:
        return await self._change("unserve", request, requests.Unserve(SpId(request.sp)))

    @servicer_errors
    async def ChangeLayout(
        self, request: volume_pb2.ChangeLayoutRequest, _: Context
    ) -> operation_pb2.Operation:
        return await self._change("relayout", request, requests.Relayout(request.layout))

    @servicer_errors
    async def GetVolume(
        self, request: volume_pb2.GetVolumeRequest, _: Context
    ) -> volume_pb2.Volume:
        volume = await self._service.volume(request.name)
        views = await self._service.collector.collect(volume.id)
        (message,) = await self._messages([volume], views)
        return message

    @servicer_errors
    async def ListVolumes(
        self, request: volume_pb2.ListVolumesRequest, _: Context
    ) -> volume_pb2.ListVolumesResponse:
        views = await self._service.collector.collect()
        volumes, token = page(
            list(await self._service.store.volumes()), request.page_size, request.page_token
        )
        return volume_pb2.ListVolumesResponse(
            volumes=await self._messages(list(volumes), views), next_page_token=token
        )

    async def _messages(
        self, volumes: list[Volume], views: Mapping[SpId, View]
    ) -> list[volume_pb2.Volume]:
        service = self._service
        names = {DeviceId(d.id): d.name for d in await service.store.devices()}
        busy: dict[VolumeId, OperationRecord] = {
            live.record.volume: live.record for live in service.executor.live.values()
        }
        return [
            volume_message(volume, views, service.registry, names, busy.get(volume.id))
            for volume in volumes
        ]
