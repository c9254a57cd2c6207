"""The HostService."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from vswitchd.api.errors import servicer_errors
from vswitchd.host.decide import path_of
from vswitchd.host.keeper import Kept
from vswitchd.host.service import Host
from vswitchd.rpc import host_pb2, host_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class HostServicer(host_pb2_grpc.HostServiceServicer):
    """host.proto over a `Host`."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @servicer_errors
    async def AttachVolume(
        self, request: host_pb2.AttachVolumeRequest, _: Context
    ) -> host_pb2.Attachment:
        kept = await self._host.attach(request.volume, request.device, request.boot)
        return self._message(request.volume, kept)

    @servicer_errors
    async def DetachVolume(
        self, request: host_pb2.DetachVolumeRequest, _: Context
    ) -> host_pb2.Attachment:
        kept = await self._host.detach(request.volume, request.boot, request.force)
        if kept is None:
            return host_pb2.Attachment(volume=request.volume)
        return self._message(request.volume, kept)

    @servicer_errors
    async def ListAttachments(
        self, _: host_pb2.ListAttachmentsRequest, __: Context
    ) -> host_pb2.ListAttachmentsResponse:
        attached = [self._message(volume, kept) for volume, kept in self._host.kept.items()]
        waiting = [
            host_pb2.Attachment(
                volume=volume,
                device="" if one.index is None else path_of(one.index),
                state=host_pb2.ATTACHMENT_STATE_WAITING,
                boot=True,
                condition=one.error,
            )
            for volume, one in sorted(self._host.waiting.items())
        ]
        return host_pb2.ListAttachmentsResponse(attachments=attached + waiting)

    def _message(self, volume: str, kept: Kept) -> host_pb2.Attachment:
        addresses = kept.addresses
        linked = {link.address for link in kept.attachment.links}
        # Before the first look at the connections those count that were just given away.
        paths = [
            host_pb2.HostPath(
                address=name,
                connected=addresses[name].connected if name in addresses else name in linked,
                error=addresses[name].error if name in addresses else "",
            )
            for name in kept.attachment.addresses
        ]
        up = sum(path.connected for path in paths)
        state = host_pb2.ATTACHMENT_STATE_STALLED
        if up:
            state = host_pb2.ATTACHMENT_STATE_DEGRADED
        if up == len(paths):
            state = host_pb2.ATTACHMENT_STATE_CONNECTED
        return host_pb2.Attachment(
            volume=volume,
            volume_id=kept.attachment.volume_id,
            device=kept.attachment.device,
            size=kept.size,
            state=state,
            paths=paths,
            boot=volume in self._host.at_boot(),
            condition=kept.condition,
        )
