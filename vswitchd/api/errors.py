"""VsError <-> gRPC status with a google.rpc.ErrorInfo, in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

import grpc
import structlog
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
    # A server that ends cancels the calls that it still has; our own cancelled calls raise nothing.
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return VsError("VS5001", Kind.UNREACHABLE, f"{who} can't be reached; is it running?")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return VsError("VS5002", Kind.TIMEOUT, f"{who} did not answer in time; try again")
    return VsError("VS9001", Kind.INTERNAL, f"{who} failed: {code.name}: {text}")


#: Calls that run on though their callers have gone.
_left: set[asyncio.Future[Any]] = set()


def _ended(work: asyncio.Future[Any]) -> None:
    _left.discard(work)
    error = None if work.cancelled() else work.exception()
    if error is not None and not isinstance(error, VsError):
        structlog.get_logger().error("fault", exc_info=error)


def servicer_errors(method: Method) -> Method:
    """Makes a servicer's unary method answer VsError as a status, and a fault as VS9002 with
    the details in the log alone.

    Once begun, the method runs to its end: a caller that goes away or whose deadline passes
    must not leave half of a change.
    """

    @wraps(method)
    async def answered(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        work = asyncio.ensure_future(method(self, request, context))
        _left.add(work)
        work.add_done_callback(_ended)
        try:
            return await asyncio.shield(work)
        except VsError as error:
            told = error
        except Exception:  # logged by `_ended`
            told = VsError(
                "VS9002",
                Kind.INTERNAL,
                f"{method.__name__} met a fault of vswitchd; its log says more, please report it",
            )
        return await context.abort_with_status(rpc_status.to_status(to_status(told)))

    return answered  # type: ignore[return-value]
