"""vswitchctl operation."""

from __future__ import annotations

from typing import Annotated

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, show, watched
from vswitchd.cli.follow import follow
from vswitchd.cli.options import OutputOption, Timeout, Watch, noun

app = noun("Long work that requests started.")

Id = Annotated[str, typer.Argument(metavar="ID")]


@app.command("list")
def list_(
    volume: Annotated[str, typer.Option(help="only of this volume")] = "",
    open_only: Annotated[bool, typer.Option("--open", help="only what has not ended")] = False,
    output: OutputOption = Output.TABLE,
    watch: Watch = False,
) -> None:
    """Operations, the newest first."""

    def look() -> None:
        found = context.client.all_operations(volume, open_only)
        show(found, output, lambda: render.operations(found))

    watched(look, watch)


@app.command("show")
def show_(name: Id, output: OutputOption = Output.TABLE) -> None:
    """One operation with its steps."""
    operation = context.client.operation(name)

    def tables() -> None:
        render.operations([operation])
        render.line("")
        render.steps(operation)

    show(operation, output, tables)


@app.command()
def watch(name: Id, timeout: Timeout = None, output: OutputOption = Output.TABLE) -> None:
    """Follow an operation to its end; exits as the request that started it would have."""
    follow(context.client.operation(name), timeout, output)


@app.command()
def cancel(name: Id, output: OutputOption = Output.TABLE) -> None:
    """Undo an operation that has not passed its point of no return."""
    from vswitchd.api.client import operation_pb2

    request = operation_pb2.CancelOperationRequest(operation_id=name)
    operation = context.client.call(context.client.operations.CancelOperation, request)
    show(operation, output, lambda: render.operations([operation]))
