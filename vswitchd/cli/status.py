"""vswitchctl status and explain."""

from __future__ import annotations

from typing import Annotated

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, show, watched
from vswitchd.cli.options import OutputOption, Watch
from vswitchd.errors import Kind, VsError
from vswitchd.model.layout import format_size

WARNING, ERROR = 2, 3


def status(output: OutputOption = Output.TABLE, watch: Watch = False) -> None:
    """The cluster on one screen; exits 0 when well, 10 on a warning, 11 on an error."""
    worst = [0]

    def look() -> None:
        now = context.client.status()
        worst[0] = {WARNING: 10, ERROR: 11}.get(now.health, 0)

        def table() -> None:
            out = render.console()
            word = {10: "WARN", 11: "ERROR"}.get(worst[0], "OK")
            lines = [f"{check.code}: {check.message}" for check in now.checks]
            out.print(f"health   {word:<6} {lines[0] if lines else ''}", markup=False)
            for line in lines[1:]:
                out.print(f"                {line}", markup=False)
            out.print(f"cluster  {now.cluster_id}   term {now.term}   master {now.master or '-'}")
            out.print(
                f"SPs      {now.processors_up}/{now.processors} up   devices {now.devices}   "
                f"volumes {now.volumes}   allocated {format_size(now.allocated_bytes)} of "
                f"{format_size(now.capacity_bytes)}"
            )
            if now.operations_open:
                out.print(f"running  {now.operations_open} operations")

        show(now, output, table)

    watched(look, watch)
    raise typer.Exit(worst[0])


def explain(code: Annotated[str, typer.Argument(metavar="CODE", help="VSnnnn")]) -> None:
    """What an error's code means, and what to do."""
    from vswitchd.errors_text import EXPLAIN

    if code.upper() not in EXPLAIN:
        raise VsError("VS2050", Kind.NOT_FOUND, f"there is no error {code}; codes are VSnnnn")
    meaning, remedy = EXPLAIN[code.upper()]
    out = render.console()
    out.print(f"{code.upper()}: {meaning}", markup=False)
    out.print(f"What to do: {remedy}", markup=False)
