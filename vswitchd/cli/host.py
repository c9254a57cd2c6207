"""vswitchctl host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, note, show, watched
from vswitchd.cli.options import Name, OutputOption, Watch, noun
from vswitchd.model.layout import format_size

if TYPE_CHECKING:
    from vswitchd.api.host_client import HostClient, host_pb2

app = noun("Volumes as block devices of this Linux host.")

SocketOption = Annotated[
    Path,
    typer.Option("--socket", envvar="VSWITCHD_HOST_SOCKET", help="where `vswitchd host` listens"),
]
#: As in config.Host; the command line knows the API only.
SOCKET = Path("/run/vswitchd/host.sock")


def _client(path: Path) -> HostClient:
    from vswitchd.api.host_client import HostClient

    return HostClient(path)


def _path(one: host_pb2.HostPath) -> str:
    return one.address if one.connected else f"({one.address})"


def _table(attachments: list[host_pb2.Attachment]) -> None:
    from vswitchd.api.host_client import host_pb2

    rows = [
        (
            one.volume,
            one.device,
            format_size(one.size) if one.size else "",
            host_pb2.AttachmentState.Name(one.state).removeprefix("ATTACHMENT_STATE_").lower(),
            "boot" if one.boot else "",
            " ".join(map(_path, one.paths)),
        )
        for one in attachments
    ]
    render.table(("volume", "device", "size", "state", "", "paths"), rows)
    for one in attachments:
        for text in [one.condition, *(path.error for path in one.paths if not path.connected)]:
            if text:
                note(f"{one.volume}: {text}")


@app.command()
def attach(
    name: Name,
    device: Annotated[str, typer.Option(metavar="/dev/nbdN", help="default: a free one")] = "",
    boot: Annotated[
        bool, typer.Option("--boot", help="at every boot from now on, too (hosttab)")
    ] = False,
    socket: SocketOption = SOCKET,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a volume a block device that outlives any one SP and grows with the volume."""
    from vswitchd.api.host_client import host_pb2

    client = _client(socket)
    request = host_pb2.AttachVolumeRequest(volume=name, device=device, boot=boot)
    one = client.call(client.host.AttachVolume, request)
    show(one, output, lambda: _table([one]))


@app.command()
def detach(
    name: Name,
    boot: Annotated[bool, typer.Option("--boot", help="no longer at boot, too (hosttab)")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="even if it is in use: its users get errors")
    ] = False,
    socket: SocketOption = SOCKET,
    output: OutputOption = Output.TABLE,
) -> None:
    """Take the block device away; unmount it before."""
    from vswitchd.api.host_client import host_pb2

    client = _client(socket)
    request = host_pb2.DetachVolumeRequest(volume=name, boot=boot, force=force)
    one = client.call(client.host.DetachVolume, request)
    show(one, output, lambda: note(f"{one.volume} is detached"))


@app.command("list")
def list_(
    socket: SocketOption = SOCKET, output: OutputOption = Output.TABLE, watch: Watch = False
) -> None:
    """What is attached here, and over which SPs; those in brackets are not connected."""
    from vswitchd.api.host_client import host_pb2

    client = _client(socket)

    def look() -> None:
        found = client.call(client.host.ListAttachments, host_pb2.ListAttachmentsRequest())
        attachments = list(found.attachments)
        show(attachments, output, lambda: _table(attachments))

    watched(look, watch)
