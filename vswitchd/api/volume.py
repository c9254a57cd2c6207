"""The VolumeService."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc

from vswitchd.api.convert_public import history_message, nbd_uris, page, volume_message
from vswitchd.api.errors import servicer_errors
from vswitchd.api.operation import operation_message, options
from vswitchd.api.volume_access import AccessServicer
from vswitchd.controller.access import Admission
from vswitchd.controller.service import Service
from vswitchd.model.objects import DeviceId, SpId, T1Id, Volume, VolumeId
from vswitchd.model.view import View
from vswitchd.ports import OperationRecord
from vswitchd.restructure import requests
from vswitchd.rpc import operation_pb2, volume_pb2

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class VolumeServicer(AccessServicer):
    """volume.proto over the controller's `Service` and `Admission`."""

    def __init__(self, service: Service, admission: Admission) -> None:
        super().__init__(admission)
        self._service = service

    async def _change(
        self,
        kind: str,
        request: Any,
        context: Context,
        what: requests.Request | Callable[[Volume], Awaitable[requests.Request]],
    ) -> operation_pb2.Operation:
        record = await self._service.change(kind, request.name, what, options(request, context))
        return await operation_message(self._service, record)

    @servicer_errors
    async def CreateVolume(
        self, request: volume_pb2.CreateVolumeRequest, context: Context
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

        record = await self._service.create(make, options(request, context))
        return await operation_message(self._service, record)

    @servicer_errors
    async def DeleteVolume(
        self, request: volume_pb2.DeleteVolumeRequest, context: Context
    ) -> operation_pb2.Operation:
        return await self._change("delete", request, context, requests.Delete())

    @servicer_errors
    async def GrowVolume(
        self, request: volume_pb2.GrowVolumeRequest, context: Context
    ) -> operation_pb2.Operation:
        return await self._change("grow", request, context, requests.Grow(request.size))

    @servicer_errors
    async def AddMirrorLeg(
        self, request: volume_pb2.AddMirrorLegRequest, context: Context
    ) -> operation_pb2.Operation:
        sp = SpId(request.sp) if request.sp else None
        return await self._change(
            "mirror_add", request, context, requests.AddLeg(request.layout, sp)
        )

    @servicer_errors
    async def RemoveMirrorLeg(
        self, request: volume_pb2.RemoveMirrorLegRequest, context: Context
    ) -> operation_pb2.Operation:
        return await self._change(
            "mirror_remove", request, context, requests.RemoveLeg(request.leg)
        )

    @servicer_errors
    async def VerifyMirror(
        self, request: volume_pb2.VerifyMirrorRequest, context: Context
    ) -> operation_pb2.Operation:
        return await self._change("verify", request, context, requests.Verify(request.repair))

    @servicer_errors
    async def MoveVolume(
        self, request: volume_pb2.MoveVolumeRequest, context: Context
    ) -> operation_pb2.Operation:
        t1 = T1Id(request.t1_id) if request.t1_id else None
        move = requests.Move(SpId(request.from_sp), SpId(request.to_sp), t1)
        return await self._change("move", request, context, move)

    @servicer_errors
    async def ServeVolume(
        self, request: volume_pb2.ServeVolumeRequest, context: Context
    ) -> operation_pb2.Operation:
        return await self._change("serve", request, context, requests.Serve(SpId(request.sp)))

    @servicer_errors
    async def UnserveVolume(
        self, request: volume_pb2.UnserveVolumeRequest, context: Context
    ) -> operation_pb2.Operation:
        return await self._change("unserve", request, context, requests.Unserve(SpId(request.sp)))

    @servicer_errors
    async def SetVolumeOwner(
        self, request: volume_pb2.SetVolumeOwnerRequest, context: Context
    ) -> operation_pb2.Operation:
        return await self._change("owner", request, context, requests.Own(SpId(request.sp)))

    @servicer_errors
    async def ForceVolume(
        self, request: volume_pb2.ForceVolumeRequest, context: Context
    ) -> operation_pb2.Operation:
        async def make(volume: Volume) -> requests.Eject:
            registry = self._service.registry
            homes = {t1.home for t1 in volume.t1s} | {volume.owner}
            gone = tuple(sorted(sp for sp in homes if not registry.is_up(sp)))
            return requests.Eject(gone, registry.trouble(volume), forced=True)

        return await self._change("force", request, context, make)

    @servicer_errors
    async def ChangeLayout(
        self, request: volume_pb2.ChangeLayoutRequest, context: Context
    ) -> operation_pb2.Operation:
        return await self._change("relayout", request, context, requests.Relayout(request.layout))

    @servicer_errors
    async def ApplyPlan(
        self, request: volume_pb2.ApplyPlanRequest, context: Context
    ) -> operation_pb2.Operation:
        record = await self._service.apply(request.name, request.plan_id, options(request, context))
        return await operation_message(self._service, record)

    @servicer_errors
    async def RestoreVolume(
        self, request: volume_pb2.RestoreVolumeRequest, context: Context
    ) -> operation_pb2.Operation:
        async def earlier(volume: Volume) -> requests.Request:
            return requests.Restore(await self._service.version(volume, request.version))

        return await self._change("restore", request, context, earlier)

    @servicer_errors
    async def GetVolumeHistory(
        self, request: volume_pb2.GetVolumeHistoryRequest, _: Context
    ) -> volume_pb2.VolumeHistory:
        volume_id, rows = await self._service.history(request.name)
        names = {DeviceId(d.id): d.name for d in await self._service.store.devices()}
        access = await self._service.store.access_history(volume_id)
        return history_message(volume_id, rows, names, access)

    @servicer_errors
    async def GetVolume(
        self, request: volume_pb2.GetVolumeRequest, _: Context
    ) -> volume_pb2.Volume:
        volume = await self._service.volume(request.name)
        views = await self._service.collector.collect(volume.id)
        (message,) = await self._messages([volume], views)
        return message

    @servicer_errors
    async def GetVolumePaths(
        self, request: volume_pb2.GetVolumePathsRequest, _: Context
    ) -> volume_pb2.VolumePaths:
        volume = await self._service.volume(request.name)
        return volume_pb2.VolumePaths(
            volume_id=volume.id,
            name=volume.name,
            size=volume.size,
            nbd_uris=nbd_uris(
                volume, self._service.registry, await self._service.store.access(volume.id)
            ),
        )

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
            volume_message(
                volume,
                views,
                service.registry,
                names,
                busy.get(volume.id),
                await service.store.access(volume.id),
            )
            for volume in volumes
        ]
