"""vswitchctl device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, show
from vswitchd.cli.options import OutputOption
from vswitchd.model.layout import format_size, parse_size

if TYPE_CHECKING:
    from vswitchd.api.client import device_pb2

app = typer.Typer(help="Storage that SPs reach.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME")]
Sp = Annotated[str, typer.Option(metavar="SP")]


def _table(devices: list[device_pb2.Device]) -> None:
    rows = [
        (
            device.name,
            format_size(device.size),
            format_size(device.size - device.allocated),
            " ".join(f"{p.sp}{'' if p.up else '(down)'}" for p in device.paths),
            device.paths[0].uri if device.paths else "",
            device.device_id,
        )
        for device in devices
    ]
    render.table(("name", "size", "free", "SPs", "uri", "id"), rows)


@app.command()
def add(
    uri: Annotated[str, typer.Argument(help="file:/path, block:/dev/x, nbd://host:port/export")],
    sp: Sp,
    size: Annotated[str, typer.Option(metavar="SIZE", help="file: made sparse if missing")] = "0",
    name: Annotated[str, typer.Option(help="for people; else from the URI")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Give an SP a device; a blank one is labelled, foreign data is never taken."""
    from vswitchd.api.client import device_pb2

    wanted = parse_size(size) if size != "0" else 0
    request = device_pb2.AddDeviceRequest(sp=sp, uri=uri, size=wanted, name=name)
    device = context.client.call(context.client.devices.AddDevice, request)
    show(device, output, lambda: _table([device]))


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """All devices."""
    devices = context.client.all_devices()
    show(devices, output, lambda: _table(devices))


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
