"""A client of a host's own service, for `vswitchctl host`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import grpc

from vswitchd.api.errors import from_rpc
from vswitchd.errors import Kind, VsError
from vswitchd.rpc import host_pb2, host_pb2_grpc

__all__ = ["HostClient", "host_pb2"]

A = TypeVar("A")

#: Seconds for one call: to attach asks the controller and several SPs.
DEADLINE = 30.0


class HostClient:
    """The service of `vswitchd host` on this machine. Calls raise VsError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._channel = grpc.insecure_channel(f"unix:{path}")
        self.host = host_pb2_grpc.HostServiceStub(self._channel)

    def call(self, method: Callable[..., A], request: object) -> A:
        """One call with a deadline."""
        try:
            return method(request, timeout=DEADLINE)
        except grpc.RpcError as error:
            found = from_rpc(error, f"the host service at {self._path}")
        if found.kind is Kind.UNREACHABLE:
            raise VsError(
                "VS5083",
                Kind.UNREACHABLE,
                f"the host service at {self._path} can't be reached: it runs as root (`systemctl "
                "start vswitchd-host`, or `vswitchd host`), and root alone may speak to it",
            ) from None
        raise found from None
