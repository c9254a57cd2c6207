"""VsError <-> gRPC status with a google.rpc.ErrorInfo, in both directions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from vswitchd.errors import Kind, VsError

DOMAIN = "vswitchd"

_CODES = {
    Kind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Kind.EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Kind.PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Kind.UNSAFE: grpc.StatusCode.FAILED_PRECONDITION,
    Kind.UNREACHABLE: grpc.StatusCode.UNAVAILABLE,
    Kind.TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Kind.STALE: grpc.StatusCode.ABORTED,
    Kind.NO_SPACE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Kind.INTERNAL: grpc.StatusCode.INTERNAL,
}

Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


def to_status(error: VsError) -> status_pb2.Status:
    """The status that carries an error: its code's reason is the stable VS code."""
    info = error_details_pb2.ErrorInfo(
        reason=error.code, domain=DOMAIN, metadata={"kind": error.kind.value}
    )
    detail = any_pb2.Any()
    detail.Pack(info)
    code = _CODES[error.kind].value[0]
    return status_pb2.Status(code=code, message=error.message, details=[detail])


def from_rpc(error: grpc.RpcError, who: str) -> VsError:
    """The error that a failed call to `who` means."""
    status = rpc_status.from_call(error)
    if status is not None:
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                return VsError(info.reason, Kind(info.metadata["kind"]), status.message)
    told = isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    code = error.code() if told else grpc.StatusCode.UNKNOWN
    text = str(error.details() if told else error)
    if code is grpc.StatusCode.UNAVAILABLE:
        return VsError("VS5001", Kind.UNREACHABLE, f"{who} can't be reached; is it running?")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return VsError("VS5002", Kind.TIMEOUT, f"{who} did not answer in time; try again")
    return VsError("VS9001", Kind.INTERNAL, f"{who} failed: {code.name}: {text}")


def servicer_errors(method: Method) -> Method:
    """Makes a servicer's unary method answer VsError as a status, and hide what is a bug."""

    @wraps(method)
    async def answered(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await method(self, request, context)
        except VsError as error:
            await context.abort_with_status(rpc_status.to_status(to_status(error)))

    return answered  # type: ignore[return-value]
