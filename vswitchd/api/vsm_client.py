"""The controller's port to SPs over gRPC: `ports.Processors` and `ports.Processor`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from vswitchd.api import convert
from vswitchd.api.convert_access import access_from_proto, access_to_proto
from vswitchd.api.errors import from_rpc
from vswitchd.errors import Kind, VsError
from vswitchd.model.access import Access
from vswitchd.model.objects import T1, T2, DeviceId, Path, SpId, T1Id, Volume, VolumeId
from vswitchd.model.view import Affected, CopyMode, DeviceView, LabelView, View
from vswitchd.ports import ProcessorRecord
from vswitchd.rpc import vsm_pb2, vsm_pb2_grpc

#: Seconds for calls that only look or note something.
SHORT = 10.0
#: Seconds for a connection that is made to see whether anybody listens.
PROBE = 0.5
#: Seconds for calls that drain I/O or zero extents.
LONG = 60.0
#: Most bytes of one message: a view of an SP with a hundred thousand extents.
MAX_MESSAGE = 64 << 20
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # Or channels to one address share their connection, and so the pause after its last failure.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A peer that is silent for 10 seconds is taken for unreachable, whatever a call's deadline:
    # hosts may be waiting for the next try.
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.max_pings_without_data", 0),
]
#: For servers. Without the first, two processes could share a port, and each get some calls; the
#: others let clients ask every 5 seconds whether they are there.
SERVER_OPTIONS = [
    *OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 4000),
    ("grpc.http2.max_ping_strikes", 0),
]

Q = TypeVar("Q")
A = TypeVar("A")


class VsmProcessors:
    """Clients of VSMs. Each life of an SP gets a channel of its own: one that has met a dead
    process would wait before it tries again."""

    def __init__(self) -> None:
        self._channels: dict[SpId, tuple[str, grpc.aio.Channel]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def connect(self, record: ProcessorRecord, cluster: str, term: int) -> VsmProcessor:
        """A client whose calls carry the cluster's id and the term."""
        address = record.vsm_address
        life, channel = self._channels.get(record.sp, ("", None))
        if channel is None or life != record.incarnation:
            if channel is not None:
                task = asyncio.create_task(channel.close(None))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            channel = grpc.aio.insecure_channel(address, options=OPTIONS)
            self._channels[record.sp] = (record.incarnation, channel)
        stub = vsm_pb2_grpc.VsmServiceStub(channel)
        caller = vsm_pb2.Caller(cluster_id=cluster, term=term)
        return VsmProcessor(record.sp, address, stub, caller)

    async def listens(self, record: ProcessorRecord) -> bool:
        """False if the connection is refused."""
        host, _, port = record.vsm_address.rpartition(":")
        try:
            async with asyncio.timeout(PROBE):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except ConnectionRefusedError:
            return False
        except (OSError, TimeoutError):
            return True
        writer.close()
        return True

    async def close(self) -> None:
        """Closes every channel."""
        for _, channel in self._channels.values():
            await channel.close()


class VsmProcessor:
    """One SP's VSM; every call has a deadline and raises VsError."""

    def __init__(
        self,
        sp: SpId,
        address: str,
        stub: vsm_pb2_grpc.VsmServiceAsyncStub,
        caller: vsm_pb2.Caller,
    ) -> None:
        self._who = f"SP {sp} at {address}"
        self._stub = stub
        self._caller = caller

    async def _call(
        self, method: Callable[..., Awaitable[A]], request: object, seconds: float = SHORT
    ) -> A:
        try:
            return await method(request, timeout=seconds)
        except grpc.RpcError as error:
            raise from_rpc(error, self._who) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not this task: the channel was closed under the call, as the SP began a new life.
            raise VsError(
                "VS5001", Kind.UNREACHABLE, f"{self._who} can't be reached; is it running?"
            ) from None

    async def view(self, volume: VolumeId | None = None) -> View:
        request = vsm_pb2.GetViewRequest(caller=self._caller, volume_id=volume or "")
        return convert.view_from_proto(await self._call(self._stub.GetView, request))

    async def add_device(
        self, uri: str, size: int, device: DeviceId, *, direct: bool, checksums: bool
    ) -> DeviceView:
        request = vsm_pb2.AddSpDeviceRequest(
            caller=self._caller,
            uri=uri,
            size=size,
            device_id=device,
            direct=direct,
            checksums=checksums,
        )
        answer = await self._call(self._stub.AddSpDevice, request, LONG)
        return convert.device_view_from_proto(answer)

    async def remove_device(self, device: DeviceId) -> None:
        request = vsm_pb2.RemoveSpDeviceRequest(caller=self._caller, device_id=device)
        await self._call(self._stub.RemoveSpDevice, request)

    async def put_t1(self, t1: T1, epoch: int) -> None:
        request = vsm_pb2.PutT1Request(caller=self._caller, t1=convert.t1_to_proto(t1), epoch=epoch)
        await self._call(self._stub.PutT1, request, LONG)

    async def adopt_t1(self, t1: T1, epoch: int) -> None:
        request = vsm_pb2.PutT1Request(caller=self._caller, t1=convert.t1_to_proto(t1), epoch=epoch)
        await self._call(self._stub.AdoptT1, request, LONG)

    async def fence_t1(self, t1: T1Id, epoch: int, known: int) -> None:
        request = vsm_pb2.FenceT1Request(
            caller=self._caller, t1_id=t1, epoch=epoch, known_epoch=known
        )
        await self._call(self._stub.FenceT1, request, LONG)

    async def delete_t1(self, t1: T1Id, epoch: int) -> None:
        request = vsm_pb2.DeleteT1Request(caller=self._caller, t1_id=t1, epoch=epoch)
        await self._call(self._stub.DeleteT1, request, LONG)

    async def stage_t2(self, t2: T2, access: Access) -> None:
        request = vsm_pb2.StageT2Request(
            caller=self._caller, t2=convert.t2_to_proto(t2), access=access_to_proto(access)
        )
        await self._call(self._stub.StageT2, request)

    async def set_access(self, volume: VolumeId, access: Access) -> None:
        request = vsm_pb2.SetAccessRequest(
            caller=self._caller, volume_id=volume, access=access_to_proto(access)
        )
        await self._call(self._stub.SetAccess, request)

    async def access(self, volume: VolumeId) -> Access:
        request = vsm_pb2.GetAccessRequest(caller=self._caller, volume_id=volume)
        return access_from_proto(await self._call(self._stub.GetAccess, request))

    async def activate_t2(self, volume: VolumeId, version: int) -> float:
        request = vsm_pb2.ActivateT2Request(caller=self._caller, volume_id=volume, version=version)
        answer = await self._call(self._stub.ActivateT2, request, LONG)
        return answer.pause_us / 1e6

    async def remove_t2(self, volume: VolumeId, version: int) -> None:
        request = vsm_pb2.RemoveT2Request(caller=self._caller, volume_id=volume, version=version)
        await self._call(self._stub.RemoveT2, request, LONG)

    async def drop_reference(self, volume: VolumeId, t1: T1Id) -> None:
        request = vsm_pb2.DropReferenceRequest(caller=self._caller, volume_id=volume, t1_id=t1)
        await self._call(self._stub.DropReference, request)

    async def start_copy(
        self,
        volume: VolumeId,
        version: int,
        path: Path,
        *,
        start: int,
        rate: int,
        adaptive: bool,
        mode: CopyMode,
    ) -> None:
        request = vsm_pb2.StartCopyRequest(
            caller=self._caller,
            volume_id=volume,
            version=version,
            path=path,
            start_bytes=start,
            bytes_per_second=rate,
            adaptive=adaptive,
            mode=convert.COPY_MODE_CODES[mode],
        )
        await self._call(self._stub.StartCopy, request)

    async def throttle_copy(
        self, volume: VolumeId, path: Path, *, rate: int, adaptive: bool
    ) -> None:
        request = vsm_pb2.ThrottleCopyRequest(
            caller=self._caller,
            volume_id=volume,
            path=path,
            bytes_per_second=rate,
            adaptive=adaptive,
        )
        await self._call(self._stub.ThrottleCopy, request)

    async def stop_copy(self, volume: VolumeId, path: Path) -> None:
        request = vsm_pb2.StopCopyRequest(caller=self._caller, volume_id=volume, path=path)
        await self._call(self._stub.StopCopy, request)

    async def labels(self) -> tuple[LabelView, ...]:
        request = vsm_pb2.GetLabelsRequest(caller=self._caller)
        answer = await self._call(self._stub.GetLabels, request)
        return tuple(convert.label_from_proto(label) for label in answer.labels)

    async def activate_mvsm(self) -> None:
        await self._call(self._stub.ActivateMvsm, vsm_pb2.MvsmRequest(caller=self._caller))

    async def deactivate_mvsm(self) -> None:
        await self._call(self._stub.DeactivateMvsm, vsm_pb2.MvsmRequest(caller=self._caller))

    async def determine(
        self, current: Volume | None, target: Volume | None
    ) -> tuple[Affected, ...]:
        request = vsm_pb2.DetermineRequest(
            caller=self._caller,
            current=None if current is None else convert.volume_to_proto(current),
            target=None if target is None else convert.volume_to_proto(target),
        )
        answer = await self._call(self._stub.Determine, request)
        return tuple(convert.affected_from_proto(affected) for affected in answer.affected)
