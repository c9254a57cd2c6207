"""vswitchctl volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, note, plain, show, usage, watched
from vswitchd.cli.context import dump as dump_value
from vswitchd.cli.options import DryRun, NoWait, OutputOption, RequestId, Size, Timeout, Watch
from vswitchd.model.layout import format_size

if TYPE_CHECKING:
    from vswitchd.api.client import operation_pb2

app = typer.Typer(help="What hosts mount.", no_args_is_help=True)
mirror = typer.Typer(help="Legs of a mirror.", no_args_is_help=True)
app.add_typer(mirror, name="mirror")

Name = Annotated[str, typer.Argument(metavar="NAME")]
Layout = Annotated[str, typer.Option(help="e.g. 'mirror(sp-a, stripe(2))'")]
OneSp = Annotated[str, typer.Option("--on", metavar="SP")]


def _go(
    method: str,
    request: str,
    dry_run: bool,
    no_wait: bool,
    timeout: float | None,
    output: Output,
    **fields: Any,
) -> None:
    """Sends a request; shows its plan, or follows its operation to the end."""
    from vswitchd.api import client as api

    message = getattr(api.volume_pb2, request)(dry_run=dry_run, **fields)
    client = context.client
    operation = client.call(getattr(client.volumes, method), message)
    if dry_run:
        show(operation, output, lambda: render.plan_table(operation))
        return
    if not no_wait:
        operation = render.follow(client, operation, timeout, quiet=output is not Output.TABLE)
    show(operation, output, lambda: _said(operation, no_wait))


def _said(operation: operation_pb2.Operation, no_wait: bool) -> None:
    if no_wait:
        render.console().print(operation.operation_id)
    else:
        note(f"{operation.kind} of {operation.volume} is done ({operation.operation_id})")


def _layout(layout: str, mirrors: int, stripes: int) -> str:
    if layout and (mirrors or stripes):
        raise usage("--layout says all; leave --mirrors and --stripes away")
    inner = f"stripe({stripes})" if stripes > 1 else ""
    if mirrors > 1:
        return f"mirror({mirrors}, {inner})" if inner else f"mirror({mirrors})"
    return inner or layout


@app.command()
def create(
    name: Name,
    size: Annotated[
        str, typer.Option(metavar="SIZE", help="20G, 512M; may be left to the layout")
    ] = "0",
    layout: Layout = "",
    mirrors: Annotated[int, typer.Option(min=0, help="so many copies")] = 0,
    stripes: Annotated[int, typer.Option(min=0, help="so many columns")] = 0,
    on: Annotated[str, typer.Option(metavar="SP,SP", help="SPs that may hold and serve it")] = "",
    request_id: RequestId = "",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a volume."""
    from vswitchd.model.layout import parse_size

    sps = [sp.strip() for sp in on.split(",") if sp.strip()]
    text = _layout(layout, mirrors, stripes)
    _go(
        "CreateVolume",
        "CreateVolumeRequest",
        dry_run,
        no_wait,
        timeout,
        output,
        name=name,
        size=parse_size(size) if size != "0" else 0,
        layout=text,
        # Places in a layout say where the data lies; --on then says who serves it.
        serving=sps,
        place_on=[] if layout else sps,
        request_id=request_id,
    )


@app.command()
def delete(
    name: Name,
    request_id: RequestId = "",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Remove a volume and all its data."""
    _go(
        "DeleteVolume",
        "DeleteVolumeRequest",
        dry_run,
        no_wait,
        timeout,
        output,
        name=name,
        request_id=request_id,
    )


@app.command()
def grow(
    name: Name,
    size: Size,
    request_id: RequestId = "",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a volume larger, to SIZE."""
    _go(
        "GrowVolume",
        "GrowVolumeRequest",
        dry_run,
        no_wait,
        timeout,
        output,
        name=name,
        size=size,
        request_id=request_id,
    )


@app.command()
def move(
    name: Name,
    from_sp: Annotated[str, typer.Option("--from", metavar="SP")],
    to_sp: Annotated[str, typer.Option("--to", metavar="SP")],
    t1: Annotated[str, typer.Option(metavar="T1", help="one object; else all on --from")] = "",
    request_id: RequestId = "",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Move T1 objects to another SP: at once where it reaches their devices, else by a copy."""
    _go(
        "MoveVolume",
        "MoveVolumeRequest",
        dry_run,
        no_wait,
        timeout,
        output,
        name=name,
        from_sp=from_sp,
        to_sp=to_sp,
        t1_id=t1,
        request_id=request_id,
    )


@app.command()
def serve(
    name: Name,
    on: OneSp,
    request_id: RequestId = "",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let hosts connect at one more SP."""
    _go(
        "ServeVolume",
        "ServeVolumeRequest",
        dry_run,
        no_wait,
        timeout,
        output,
        name=name,
        sp=on,
        request_id=request_id,
    )


@app.command()
def unserve(
    name: Name,
    on: OneSp,
    request_id: RequestId = "",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let hosts no longer connect at an SP."""
    _go(
        "UnserveVolume",
        "UnserveVolumeRequest",
        dry_run,
        no_wait,
        timeout,
        output,
        name=name,
        sp=on,
        request_id=request_id,
    )


@app.command()
def apply(
    name: Name,
    layout: Layout,
    request_id: RequestId = "",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a volume another layout, copying beside the old one while hosts use it."""
    _go(
        "ChangeLayout",
        "ChangeLayoutRequest",
        dry_run,
        no_wait,
        timeout,
        output,
        name=name,
        layout=layout,
        request_id=request_id,
    )


@app.command()
def plan(name: Name, layout: Layout, output: OutputOption = Output.TABLE) -> None:
    """Show what `apply` would do."""
    _go("ChangeLayout", "ChangeLayoutRequest", True, False, None, output, name=name, layout=layout)


@mirror.command("add")
def mirror_add(
    name: Name,
    sp: Annotated[str, typer.Option(metavar="SP", help="where the new leg goes")] = "",
    layout: Layout = "",
    request_id: RequestId = "",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Add a copy of the whole volume."""
    _go(
        "AddMirrorLeg",
        "AddMirrorLegRequest",
        dry_run,
        no_wait,
        timeout,
        output,
        name=name,
        sp=sp,
        layout=layout,
        request_id=request_id,
    )


@mirror.command("remove")
def mirror_remove(
    name: Name,
    leg: Annotated[str, typer.Option(help="the leg's SP, a T1 id in it, or its number from 0")],
    request_id: RequestId = "",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Take a copy away."""
    _go(
        "RemoveMirrorLeg",
        "RemoveMirrorLegRequest",
        dry_run,
        no_wait,
        timeout,
        output,
        name=name,
        leg=leg,
        request_id=request_id,
    )


@app.command("list")
def list_(output: OutputOption = Output.TABLE, watch: Watch = False) -> None:
    """All volumes."""

    def look() -> None:
        volumes = context.client.all_volumes()
        rows = [
            (
                volume.record.name,
                format_size(volume.record.size),
                render.enum_text(volume, "state"),
                volume.layout,
                ",".join(volume.record.serving),
                volume.record.owner,
                f"v{volume.record.version}",
            )
            for volume in volumes
        ]
        columns = ("name", "size", "state", "layout", "served by", "owner", "version")
        show(volumes, output, lambda: render.table(columns, rows))

    watched(look, watch)


@app.command("show")
def show_(
    name: Name,
    tree: Annotated[bool, typer.Option("--tree", help="the T2 tree of each serving SP")] = False,
    sp: Annotated[str, typer.Option(metavar="SP", help="only this SP's tree")] = "",
    output: OutputOption = Output.TABLE,
    watch: Watch = False,
) -> None:
    """One volume."""

    def look() -> None:
        volume = context.client.volume(name)
        if output is not Output.TABLE:
            dump_value(plain(volume), output)
            return
        out = render.console()
        if tree:
            devices = {d.device_id: d.name for d in context.client.all_devices()}
            for t2 in volume.t2s:
                if sp in ("", t2.sp):
                    for line in render.tree_lines(volume, t2.sp, devices):
                        out.print(line, markup=False)
            return
        record = volume.record
        state = render.enum_text(volume, "state")
        out.print(f"{record.name}  {format_size(record.size)}  {state}", markup=False)
        out.print(f"  layout   {volume.layout}", markup=False)
        out.print(f"  version  {record.version}  epoch {record.epoch}  owner {record.owner}")
        for uri in volume.nbd_uris:
            out.print(f"  mount    {uri}", markup=False)
        for condition in volume.conditions:
            out.print(f"  note     {condition}", markup=False)
        if volume.operation_id:
            out.print(f"  running  {volume.operation_id}")

    watched(look, watch)
