"""vswitchctl status."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, show, watched
from vswitchd.cli.options import OutputOption, Watch
from vswitchd.model.layout import format_size

if TYPE_CHECKING:
    from vswitchd.api.client import cluster_pb2

#: The worst severity of all checks -> the word for people, and the exit status.
HEALTH = {"ok": ("OK", 0), "warning": ("WARN", 10), "error": ("ERROR", 11)}


def _health(now: cluster_pb2.ClusterStatus) -> tuple[str, int]:
    # What says nothing, or says what is not known here, is not taken for well.
    return HEALTH.get(render.enum_text(now, "health"), ("UNKNOWN", 11))


def _screen(now: cluster_pb2.ClusterStatus) -> None:
    lines = [f"{check.code}: {check.message}" for check in now.checks] or [""]
    render.line(f"health   {_health(now)[0]:<6} {lines[0]}".rstrip())
    for each in lines[1:]:
        render.line(f"                {each}")
    render.line(f"cluster  {now.cluster_id}   term {now.term}   master {now.master or '-'}")
    render.line(
        f"SPs      {now.processors_up}/{now.processors} up   devices {now.devices}   "
        f"volumes {now.volumes}   allocated {format_size(now.allocated_bytes)} of "
        f"{format_size(now.capacity_bytes)}"
    )
    if now.operations_open:
        render.line(
            f"running  {now.operations_open} operations (`vswitchctl operation list --open`)"
        )


def status(output: OutputOption = Output.TABLE, watch: Watch = False) -> None:
    """The cluster on one screen; exits 0 when well, 10 on a warning, 11 on an error."""
    code = 0

    def look() -> None:
        nonlocal code
        now = context.client.status()
        code = _health(now)[1]
        show(now, output, lambda: _screen(now))

    watched(look, watch)
    raise typer.Exit(code)
