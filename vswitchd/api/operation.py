"""The OperationService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from grpc_status import rpc_status

from vswitchd.api.convert_public import operation_to_proto, page
from vswitchd.api.errors import servicer_errors, to_status
from vswitchd.controller.executor import OPEN
from vswitchd.controller.service import Service
from vswitchd.errors import VsError
from vswitchd.rpc import operation_pb2, operation_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

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
        return operation_to_proto(await self._service.operation(request.operation_id))

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
            operations=[operation_to_proto(record) for record in records], next_page_token=token
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
            message = operation_to_proto(record)
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
        record = await self._service.operation(request.operation_id)
        self._service.executor.cancel(record)
        return operation_to_proto(self._service.now(record))
