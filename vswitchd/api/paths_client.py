"""A host's client of the controller."""

from __future__ import annotations

import grpc

from vswitchd.api.errors import from_rpc
from vswitchd.api.vsm_client import OPTIONS
from vswitchd.host.paths import Paths, address_of
from vswitchd.rpc import volume_pb2, volume_pb2_grpc

#: Seconds for one call.
DEADLINE = 5.0


class PathsClient:
    """`host.paths.Controller` over gRPC."""

    def __init__(self, address: str) -> None:
        self._who = f"the controller at {address}"
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._stub = volume_pb2_grpc.VolumeServiceStub(self._channel)

    async def paths(self, volume: str) -> Paths:
        request = volume_pb2.GetVolumePathsRequest(name=volume)
        try:
            answer = await self._stub.GetVolumePaths(request, timeout=DEADLINE)
        except grpc.RpcError as error:
            raise from_rpc(error, self._who) from None
        return Paths(answer.volume_id, answer.size, tuple(map(address_of, answer.nbd_uris)))

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()
