"""The ProcessorService and the RegistryService."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from vswitchd.api.convert_public import page, processor_message
from vswitchd.api.errors import servicer_errors
from vswitchd.controller.health import concerns
from vswitchd.controller.inventory import Inventory
from vswitchd.controller.registry import HEARTBEAT, Registry
from vswitchd.controller.service import Service
from vswitchd.model.objects import SpId, T1Id, VolumeId
from vswitchd.model.view import Complaint, fingerprint
from vswitchd.ports import ProcessorRecord
from vswitchd.rpc import cluster_pb2, cluster_pb2_grpc, processor_pb2, processor_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ProcessorServicer(processor_pb2_grpc.ProcessorServiceServicer):
    """processor.proto over the controller's `Service`."""

    def __init__(self, service: Service, inventory: Inventory) -> None:
        self._service = service
        self._inventory = inventory

    async def _message(self, sp: SpId) -> processor_pb2.Processor:
        service = self._service
        volumes = await service.store.volumes()
        drained = await service.store.drained()
        keep_serving = drained.get(sp, False)
        return processor_message(
            service.registry.record(sp),
            service.registry,
            service.collector.last.get(sp),
            drained=sp in drained,
            # Of an SP that goes on serving, what keeps it from being drained.
            volumes=sum(concerns(one, sp, keep_serving=keep_serving) for one in volumes),
        )

    @servicer_errors
    async def GetProcessor(
        self, request: processor_pb2.GetProcessorRequest, _: Context
    ) -> processor_pb2.Processor:
        self._service.registry.record(SpId(request.sp))
        await self._service.collector.collect()
        return await self._message(SpId(request.sp))

    @servicer_errors
    async def DrainProcessor(
        self, request: processor_pb2.DrainProcessorRequest, _: Context
    ) -> processor_pb2.Processor:
        await self._inventory.drain(SpId(request.sp), request.keep_serving)
        return await self._message(SpId(request.sp))

    @servicer_errors
    async def UndrainProcessor(
        self, request: processor_pb2.UndrainProcessorRequest, _: Context
    ) -> processor_pb2.Processor:
        await self._inventory.drain(SpId(request.sp), None)
        return await self._message(SpId(request.sp))

    @servicer_errors
    async def ListProcessors(
        self, request: processor_pb2.ListProcessorsRequest, _: Context
    ) -> processor_pb2.ListProcessorsResponse:
        await self._service.collector.collect()
        sps, token = page(
            sorted(self._service.registry.records), request.page_size, request.page_token
        )
        return processor_pb2.ListProcessorsResponse(
            processors=[await self._message(sp) for sp in sps], next_page_token=token
        )

    @servicer_errors
    async def RemoveProcessor(
        self, request: processor_pb2.RemoveProcessorRequest, _: Context
    ) -> processor_pb2.Processor:
        sp = SpId(request.sp)
        self._service.registry.record(sp)
        message = await self._message(sp)
        await self._inventory.remove_processor(sp)
        return message


class RegistryServicer(cluster_pb2_grpc.RegistryServiceServicer):
    """How SPs join."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @servicer_errors
    async def Register(
        self, request: cluster_pb2.RegisterRequest, _: Context
    ) -> cluster_pb2.RegisterResponse:
        record = ProcessorRecord(
            sp=SpId(request.sp),
            incarnation=request.incarnation,
            vsm_address=request.vsm_address,
            peer_address=request.peer_address,
            nbd_address=request.nbd_address,
            version=request.version,
        )
        await self._registry.register(record, request.cluster_id)
        return cluster_pb2.RegisterResponse(
            cluster_id=self._registry.cluster,
            term=self._registry.election.term,
            heartbeat_interval_ms=int(HEARTBEAT * 1000),
        )

    @servicer_errors
    async def Heartbeat(
        self, request: cluster_pb2.HeartbeatRequest, _: Context
    ) -> cluster_pb2.HeartbeatResponse:
        complaint = Complaint(
            frozenset(map(T1Id, request.failing_t1_ids)),
            {T1Id(t1): epoch for t1, epoch in request.doubtful_t1s.items()},
            {VolumeId(volume): epoch for volume, epoch in request.ejections.items()},
        )
        known = self._registry.heartbeat(SpId(request.sp), request.incarnation, complaint)
        managers = self._registry.managers
        changed = fingerprint(managers) != request.managers_known
        return cluster_pb2.HeartbeatResponse(
            known=known,
            term=self._registry.election.term,
            managers_changed=changed,
            managers={str(sp): address for sp, address in managers.items()} if changed else {},
        )
