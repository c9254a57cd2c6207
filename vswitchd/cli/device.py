"""vswitchctl device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, show, watched
from vswitchd.cli.options import Name, OutputOption, Sp, Watch, noun
from vswitchd.model.layout import format_size, parse_size

if TYPE_CHECKING:
    from vswitchd.api.client import device_pb2

app = noun("Storage that SPs reach.")


def _path(path: device_pb2.DevicePath) -> str:
    marks = [mark for mark, on in (("direct", path.direct), ("down", not path.up)) if on]
    return f"{path.sp}({','.join(marks)})" if marks else path.sp


def _table(devices: list[device_pb2.Device]) -> None:
    rows = [
        (
            device.name,
            format_size(device.size),
            format_size(device.size - device.allocated),
            "crc32c" if device.checksums else "",
            " ".join(map(_path, device.paths)),
            device.paths[0].uri if device.paths else "",
            device.device_id,
        )
        for device in devices
    ]
    render.table(("name", "size", "free", "checksums", "SPs", "uri", "id"), rows)


@app.command()
def add(
    uri: Annotated[str, typer.Argument(help="file:/path, block:/dev/x, nbd://host:port/export")],
    sp: Sp,
    size: Annotated[str, typer.Option(metavar="SIZE", help="file: made sparse if missing")] = "0",
    name: Annotated[str, typer.Option(help="for people; else from the URI")] = "",
    direct: Annotated[
        bool, typer.Option("--direct", help="past the page cache (O_DIRECT); file and block only")
    ] = False,
    checksums: Annotated[
        bool,
        typer.Option("--checksums", help="of every 4 KiB, checked on read; file and block only"),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give an SP a device; a blank one is labelled, foreign data is never taken."""
    from vswitchd.api.client import device_pb2

    wanted = parse_size(size) if size != "0" else 0
    request = device_pb2.AddDeviceRequest(
        sp=sp, uri=uri, size=wanted, name=name, direct=direct, checksums=checksums
    )
    device = context.client.call(context.client.devices.AddDevice, request)
    show(device, output, lambda: _table([device]))


@app.command("list")
def list_(output: OutputOption = Output.TABLE, watch: Watch = False) -> None:
    """All devices."""

    def look() -> None:
        devices = context.client.all_devices()
        show(devices, output, lambda: _table(devices))

    watched(look, watch)


@app.command("show")
def show_(name: Name, output: OutputOption = Output.TABLE) -> None:
    """One device, by name or id."""
    from vswitchd.api.client import device_pb2

    request = device_pb2.GetDeviceRequest(name=name)
    device = context.client.call(context.client.devices.GetDevice, request)
    show(device, output, lambda: _table([device]))


@app.command()
def remove(name: Name, sp: Sp, output: OutputOption = Output.TABLE) -> None:
    """Take a device away from an SP."""
    from vswitchd.api.client import device_pb2

    request = device_pb2.RemoveDeviceRequest(name=name, sp=sp)
    device = context.client.call(context.client.devices.RemoveDevice, request)
    show(device, output, lambda: _table([device]))
