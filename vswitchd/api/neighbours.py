"""Other SPs' VSMs over gRPC, for a volume's owner while the controller is away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import grpc

from vswitchd.api import convert
from vswitchd.api.errors import from_rpc
from vswitchd.api.vsm_client import LONG, OPTIONS
from vswitchd.model.objects import SpId
from vswitchd.model.view import Ejection
from vswitchd.rpc import vsm_pb2, vsm_pb2_grpc

#: Seconds for a question, on which it depends whether an SP counts as lost; and for a record.
ASK = 1.0
RECORD = 10.0

_Method: TypeAlias = Callable[..., Awaitable[vsm_pb2.Ack]]


class VsmNeighbours:
    """`ports.Neighbours`: a channel for each SP, made anew when it has another address."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._channels: dict[SpId, tuple[str, grpc.aio.Channel]] = {}

    async def _stub(self, sp: SpId, address: str) -> vsm_pb2_grpc.VsmServiceAsyncStub:
        known, channel = self._channels.get(sp, ("", None))
        if channel is None or known != address:
            made = grpc.aio.insecure_channel(address, options=OPTIONS)
            self._channels[sp] = address, made
            if channel is not None:
                await channel.close(None)
            channel = made
        stub: vsm_pb2_grpc.VsmServiceAsyncStub = vsm_pb2_grpc.VsmServiceStub(channel)
        return stub

    async def _call(self, method: _Method, sp: SpId, ejection: Ejection, seconds: float) -> None:
        request = vsm_pb2.EjectionRequest(
            cluster_id=self._cluster, ejection=convert.ejection_to_proto(ejection)
        )
        try:
            await method(request, timeout=seconds)
        except grpc.RpcError as error:
            raise from_rpc(error, f"SP {sp}") from None

    async def ask(self, sp: SpId, address: str, ejection: Ejection) -> None:
        stub = await self._stub(sp, address)
        await self._call(stub.AskEjection, sp, ejection, ASK)

    async def fence(self, sp: SpId, address: str, ejection: Ejection) -> None:
        stub = await self._stub(sp, address)
        await self._call(stub.FenceEjection, sp, ejection, LONG)

    async def record(self, sp: SpId, address: str, ejection: Ejection) -> None:
        stub = await self._stub(sp, address)
        await self._call(stub.RecordEjection, sp, ejection, RECORD)

    async def follow(self, sp: SpId, address: str, ejection: Ejection) -> None:
        stub = await self._stub(sp, address)
        await self._call(stub.FollowEjection, sp, ejection, LONG)

    async def close(self) -> None:
        """Closes every channel."""
        for _, channel in self._channels.values():
            await channel.close()
