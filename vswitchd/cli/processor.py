"""vswitchctl sp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, show
from vswitchd.cli.options import OutputOption

if TYPE_CHECKING:
    from vswitchd.api.client import processor_pb2

app = typer.Typer(help="Storage processors.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="SP")]


def _table(processors: list[processor_pb2.Processor]) -> None:
    rows = [
        (
            one.sp,
            "up" if one.up else "down",
            "master" if one.master else "",
            str(one.t1_objects),
            str(one.t2_objects),
            one.nbd_address,
            one.peer_address,
        )
        for one in processors
    ]
    render.table(("sp", "state", "", "T1", "T2", "nbd", "peer"), rows)


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """All SPs."""
    processors = context.client.all_processors()
    show(processors, output, lambda: _table(processors))


@app.command("show")
def show_(name: Name, output: OutputOption = Output.TABLE) -> None:
    """One SP."""
    from vswitchd.api.client import processor_pb2

    request = processor_pb2.GetProcessorRequest(sp=name)
    one = context.client.call(context.client.processors.GetProcessor, request)
    show(one, output, lambda: _table([one]))


@app.command()
def remove(name: Name, output: OutputOption = Output.TABLE) -> None:
    """Forget an SP that holds nothing."""
    from vswitchd.api.client import processor_pb2

    request = processor_pb2.RemoveProcessorRequest(sp=name)
    one = context.client.call(context.client.processors.RemoveProcessor, request)
    show(one, output, lambda: _table([one]))
