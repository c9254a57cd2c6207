"""An SP's client of the controller's RegistryService."""

from __future__ import annotations

import grpc

from vswitchd.api.errors import from_rpc
from vswitchd.api.vsm_client import OPTIONS
from vswitchd.model.objects import SpId
from vswitchd.model.view import Complaint
from vswitchd.ports import ProcessorRecord
from vswitchd.rpc import cluster_pb2, cluster_pb2_grpc

#: Seconds for one call.
DEADLINE = 5.0


class RegistryClient:
    """`processor.register.Registry` over gRPC."""

    def __init__(self, address: str) -> None:
        self._who = f"the controller at {address}"
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._stub = cluster_pb2_grpc.RegistryServiceStub(self._channel)

    async def register(self, record: ProcessorRecord, cluster: str) -> tuple[str, float]:
        request = cluster_pb2.RegisterRequest(
            cluster_id=cluster,
            sp=record.sp,
            incarnation=record.incarnation,
            vsm_address=record.vsm_address,
            peer_address=record.peer_address,
            nbd_address=record.nbd_address,
            version=record.version,
        )
        try:
            answer = await self._stub.Register(request, timeout=DEADLINE)
        except grpc.RpcError as error:
            raise from_rpc(error, self._who) from None
        return answer.cluster_id, answer.heartbeat_interval_ms / 1000

    async def heartbeat(
        self, record: ProcessorRecord, complaint: Complaint, known: int
    ) -> tuple[bool, dict[SpId, str] | None]:
        request = cluster_pb2.HeartbeatRequest(
            sp=record.sp,
            incarnation=record.incarnation,
            failing_t1_ids=sorted(complaint.failing),
            doubtful_t1s={str(t1): epoch for t1, epoch in complaint.doubtful.items()},
            ejections={str(volume): epoch for volume, epoch in complaint.ejections.items()},
            managers_known=known,
        )
        try:
            answer = await self._stub.Heartbeat(request, timeout=DEADLINE)
        except grpc.RpcError as error:
            raise from_rpc(error, self._who) from None
        managers = {SpId(sp): address for sp, address in answer.managers.items()}
        return bool(answer.known), managers if answer.managers_changed else None

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()
