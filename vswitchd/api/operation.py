"""The OperationService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from grpc_status import rpc_status

from vswitchd.api.convert_public import operation_to_proto, page
from vswitchd.api.errors import servicer_errors, to_status
from vswitchd.controller.live import OPEN
from vswitchd.controller.service import Options, Service, check_priority
from vswitchd.errors import VsError
from vswitchd.model.objects import DeviceId
from vswitchd.ports import OperationRecord
from vswitchd.rpc import operation_pb2, operation_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

#: What the caller says of who it is, in the call's metadata.
WHO = "vswitch-user"
#: Longest such name that is kept.
MAX_WHO = 100


def who(context: Context) -> str:
    """On whose behalf a call is made: what the caller says, or its address."""
    said = dict(context.invocation_metadata() or ()).get(WHO)
    name = said if isinstance(said, str) and said.isprintable() else context.peer()
    return name[:MAX_WHO]


def options(request: Any, context: Context) -> Options:
    """How a mutation is to be carried out."""
    given = request.options
    return Options(
        request_id=request.request_id,
        dry_run=getattr(request, "dry_run", False),
        who=who(context),
        rate=given.bytes_per_second,
        adaptive=given.adaptive if given.HasField("adaptive") else None,
        priority=given.priority if given.HasField("priority") else None,
    )


async def operation_message(service: Service, record: OperationRecord) -> operation_pb2.Operation:
    """An operation as people see it."""
    names = {DeviceId(device.id): device.name for device in await service.store.devices()}
    return operation_to_proto(record, names, service.expected_pause(), service.rate(record))


#: Seconds after which a watch looks even if it was told of no change.
LOOK = 5.0


class OperationServicer(operation_pb2_grpc.OperationServiceServicer):
    """operation.proto over the controller's `Service`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @servicer_errors
    async def GetOperation(
        self, request: operation_pb2.GetOperationRequest, _: Context
    ) -> operation_pb2.Operation:
        return await self._message(request.operation_id)

    @servicer_errors
    async def ListOperations(
        self, request: operation_pb2.ListOperationsRequest, _: Context
    ) -> operation_pb2.ListOperationsResponse:
        found = [
            record
            for record in reversed(await self._service.operations(open_only=request.open_only))
            if (not request.volume or record.volume_name == request.volume)
            and (not request.open_only or record.state in OPEN)
        ]
        records, token = page(found, request.page_size, request.page_token)
        return operation_pb2.ListOperationsResponse(
            operations=[await operation_message(self._service, record) for record in records],
            next_page_token=token,
        )

    async def WatchOperation(
        self, request: operation_pb2.GetOperationRequest, context: Context
    ) -> AsyncIterator[operation_pb2.Operation]:
        said: operation_pb2.Operation | None = None
        while True:
            try:
                record = await self._service.operation(request.operation_id)
            except VsError as error:
                await context.abort_with_status(rpc_status.to_status(to_status(error)))
            message = await operation_message(self._service, record)
            if message != said:
                said = message
                yield message
            if record.state not in OPEN:
                return
            await self._service.changed(record, LOOK)

    @servicer_errors
    async def CancelOperation(
        self, request: operation_pb2.CancelOperationRequest, _: Context
    ) -> operation_pb2.Operation:
        await self._service.operation(request.operation_id)
        await self._service.executor.cancel(request.operation_id)
        return await self._message(request.operation_id)

    @servicer_errors
    async def PauseOperation(
        self, request: operation_pb2.PauseOperationRequest, _: Context
    ) -> operation_pb2.Operation:
        await self._service.operation(request.operation_id)
        await self._service.executor.pause(request.operation_id)
        return await self._message(request.operation_id)

    @servicer_errors
    async def ResumeOperation(
        self, request: operation_pb2.ResumeOperationRequest, _: Context
    ) -> operation_pb2.Operation:
        await self._service.operation(request.operation_id)
        await self._service.executor.unpause(request.operation_id)
        return await self._message(request.operation_id)

    @servicer_errors
    async def ThrottleOperation(
        self, request: operation_pb2.ThrottleOperationRequest, _: Context
    ) -> operation_pb2.Operation:
        await self._service.operation(request.operation_id)
        priority = request.priority if request.HasField("priority") else None
        check_priority(priority)
        await self._service.executor.throttle(
            request.operation_id,
            request.bytes_per_second if request.HasField("bytes_per_second") else None,
            request.adaptive if request.HasField("adaptive") else None,
            priority,
        )
        return await self._message(request.operation_id)

    async def _message(self, operation_id: str) -> operation_pb2.Operation:
        return await operation_message(self._service, await self._service.operation(operation_id))
