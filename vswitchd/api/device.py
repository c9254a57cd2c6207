"""The DeviceService."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from vswitchd.api.convert_public import device_message, page
from vswitchd.api.errors import servicer_errors
from vswitchd.controller.inventory import Inventory
from vswitchd.controller.service import Service
from vswitchd.model.objects import SpId
from vswitchd.rpc import device_pb2, device_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class DeviceServicer(device_pb2_grpc.DeviceServiceServicer):
    """device.proto over the controller's `Service`."""

    def __init__(self, service: Service, inventory: Inventory) -> None:
        self._service = service
        self._inventory = inventory

    @servicer_errors
    async def AddDevice(
        self, request: device_pb2.AddDeviceRequest, _: Context
    ) -> device_pb2.Device:
        record = await self._inventory.add_device(
            SpId(request.sp),
            request.uri,
            request.size,
            request.name,
            direct=request.direct,
            checksums=request.checksums,
        )
        return device_message(record, self._service.collector.last)

    @servicer_errors
    async def GetDevice(
        self, request: device_pb2.GetDeviceRequest, _: Context
    ) -> device_pb2.Device:
        record = await self._inventory.device(request.name)
        return device_message(record, await self._service.collector.collect())

    @servicer_errors
    async def ListDevices(
        self, request: device_pb2.ListDevicesRequest, _: Context
    ) -> device_pb2.ListDevicesResponse:
        views = await self._service.collector.collect()
        records, token = page(
            list(await self._service.store.devices()), request.page_size, request.page_token
        )
        return device_pb2.ListDevicesResponse(
            devices=[device_message(record, views) for record in records], next_page_token=token
        )

    @servicer_errors
    async def RemoveDevice(
        self, request: device_pb2.RemoveDeviceRequest, _: Context
    ) -> device_pb2.Device:
        record = await self._inventory.remove_device(request.name, SpId(request.sp))
        return device_message(record, self._service.collector.last)
