"""vswitchctl volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, note, show, usage, watched
from vswitchd.cli.mutation import Asked, mutation, send
from vswitchd.cli.options import Layout, Name, OnSp, OutputOption, Size, Watch, noun
from vswitchd.errors import Kind, VsError
from vswitchd.model.layout import format_size, parse_size

if TYPE_CHECKING:
    from vswitchd.api.client import volume_pb2

app = noun("What hosts mount.")


def layout_text(layout: str, mirrors: int, stripes: int) -> str:
    """The layout that --layout, or --mirrors and --stripes, ask for."""
    if layout and (mirrors or stripes):
        raise usage("--layout says all; leave --mirrors and --stripes away")
    inner = f"stripe({stripes})" if stripes > 1 else ""
    if mirrors > 1:
        return f"mirror({mirrors}, {inner})" if inner else f"mirror({mirrors})"
    return inner or layout


@mutation(app)
def create(
    name: Name,
    size: Annotated[
        str, typer.Option(metavar="SIZE", help="20G, 512M; may be left to the layout")
    ] = "0",
    layout: Layout = "",
    mirrors: Annotated[int, typer.Option(min=0, help="so many copies")] = 0,
    stripes: Annotated[int, typer.Option(min=0, help="so many columns")] = 0,
    on: Annotated[str, typer.Option(metavar="SP,SP", help="SPs that may hold and serve it")] = "",
) -> Asked:
    """Make a volume."""
    sps = [sp.strip() for sp in on.split(",") if sp.strip()]
    return "CreateVolume", {
        "name": name,
        "size": parse_size(size) if size != "0" else 0,
        "layout": layout_text(layout, mirrors, stripes),
        # Places in a layout say where the data lies; --on then says who serves it.
        "serving": sps,
        "place_on": [] if layout else sps,
    }


@mutation(app)
def delete(name: Name) -> Asked:
    """Remove a volume and all its data."""
    return "DeleteVolume", {"name": name}


@mutation(app)
def grow(name: Name, size: Size) -> Asked:
    """Make a volume larger, to SIZE."""
    return "GrowVolume", {"name": name, "size": size}


@mutation(app)
def move(
    name: Name,
    from_sp: Annotated[str, typer.Option("--from", metavar="SP")],
    to_sp: Annotated[str, typer.Option("--to", metavar="SP")],
    t1: Annotated[str, typer.Option(metavar="T1", help="one object; else all on --from")] = "",
) -> Asked:
    """Move T1 objects to another SP: at once where it reaches their devices, else by a copy."""
    return "MoveVolume", {"name": name, "from_sp": from_sp, "to_sp": to_sp, "t1_id": t1}


@mutation(app)
def serve(name: Name, on: OnSp) -> Asked:
    """Let hosts connect at one more SP."""
    return "ServeVolume", {"name": name, "sp": on}


@mutation(app)
def unserve(name: Name, on: OnSp) -> Asked:
    """Let hosts no longer connect at an SP."""
    return "UnserveVolume", {"name": name, "sp": on}


@mutation(app)
def owner(name: Name, on: OnSp) -> Asked:
    """Have another serving SP order the writes to its mirrors."""
    return "SetVolumeOwner", {"name": name, "sp": on}


@mutation(app)
def force(name: Name) -> Asked:
    """Go on with the SPs that can be reached, though others may have newer data: what was
    acknowledged may be lost. For when those will not come back; the history keeps it."""
    return "ForceVolume", {"name": name}


@mutation(app)
def apply(
    name: Name,
    layout: Layout = "",
    plan: Annotated[str, typer.Option(metavar="ID", help="a plan that a --dry-run showed")] = "",
) -> Asked:
    """Give a volume another layout, or carry out a plan exactly as it was shown."""
    if bool(layout) == bool(plan):
        raise usage("say either --layout, or --plan with the id that a --dry-run printed")
    if plan:
        return "ApplyPlan", {"name": name, "plan_id": plan}
    return "ChangeLayout", {"name": name, "layout": layout}


@mutation(app)
def restore(
    name: Name,
    version: Annotated[int, typer.Option(min=1, help="as `volume history` shows it")],
) -> Asked:
    """Give a volume the layout that an earlier version had."""
    return "RestoreVolume", {"name": name, "version": version}


@app.command()
def history(name: Name, output: OutputOption = Output.TABLE) -> None:
    """Every version: when, by whom, why, and what it changed."""
    from vswitchd.api.client import volume_pb2

    request = volume_pb2.GetVolumeHistoryRequest(name=name)
    found = context.client.call(context.client.volumes.GetVolumeHistory, request)

    def tables() -> None:
        rows = [
            (
                f"v{one.version}",
                one.at.ToDatetime().strftime("%Y-%m-%d %H:%M:%S"),
                one.who or "-",
                one.why,
                "; ".join(one.changes) or "-",
            )
            for one in found.versions
        ]
        render.table(("version", "at (UTC)", "who", "why", "what changed"), rows)
        if found.access:
            changes = [
                (
                    str(one.version),
                    one.at.ToDatetime().strftime("%Y-%m-%d %H:%M:%S"),
                    one.who or "-",
                    one.what,
                )
                for one in found.access
            ]
            render.line("")
            render.table(("access", "at (UTC)", "who", "what changed"), changes)

    show(found, output, tables)


@app.command()
def plan(name: Name, layout: Layout, output: OutputOption = Output.TABLE) -> None:
    """Show what `apply` would do; the same as `apply --dry-run`."""
    send(("ChangeLayout", {"name": name, "layout": layout}), dry_run=True, output=output)


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
    tree: Annotated[bool, typer.Option("--tree", help="the T2 tree of each SP that holds one")] = (
        False
    ),
    sp: Annotated[str, typer.Option(metavar="SP", help="the T2 tree of this SP alone")] = "",
    output: OutputOption = Output.TABLE,
    watch: Watch = False,
) -> None:
    """One volume."""

    def look() -> None:
        volume = context.client.volume(name)
        if sp:
            _keep(volume, sp)
        show(volume, output, lambda: _trees(volume) if tree or sp else _summary(volume))

    watched(look, watch)


def _keep(volume: volume_pb2.Volume, sp: str) -> None:
    """Leaves of a volume's T2 objects only that of one SP."""
    held = [t2 for t2 in volume.t2s if t2.sp == sp]
    if not held:
        others = ", ".join(t2.sp for t2 in volume.t2s) or "no SP does now"
        raise VsError(
            "VS2051",
            Kind.NOT_FOUND,
            f"SP {sp} holds no T2 object of volume {volume.record.name}; these do: {others}",
        )
    del volume.t2s[:]
    volume.t2s.extend(held)


def _trees(volume: volume_pb2.Volume) -> None:
    if not volume.t2s:
        note(f"no SP that answers holds a T2 object of volume {volume.record.name} now")
    devices = {d.device_id: d.name for d in context.client.all_devices()}
    running = context.client.operation(volume.operation_id) if volume.operation_id else None
    for t2 in volume.t2s:
        render.tree(t2, {t1.t1_id: t1 for t1 in volume.record.t1s}, devices, running)


def _summary(volume: volume_pb2.Volume) -> None:
    record = volume.record
    render.line(f"{record.name}  {format_size(record.size)}  {render.enum_text(volume, 'state')}")
    render.line(f"  layout   {volume.layout}")
    render.line(f"  version  {record.version}  epoch {record.epoch}  owner {record.owner}")
    for uri in volume.nbd_uris:
        render.line(f"  mount    {uri}")
    for condition in volume.conditions:
        render.line(f"  note     {condition}")
    if volume.operation_id:
        render.line(f"  running  {volume.operation_id}")
