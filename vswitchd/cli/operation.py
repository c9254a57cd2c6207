"""vswitchctl operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, note, show
from vswitchd.cli.options import OutputOption, Timeout
from vswitchd.model.layout import format_size

if TYPE_CHECKING:
    from vswitchd.api.client import operation_pb2

app = typer.Typer(help="Long work that requests started.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID")]


def _table(operations: list[operation_pb2.Operation]) -> None:
    rows = []
    for one in operations:
        done = sum(render.enum_text(step, "state") == "done" for step in one.steps)
        copied = (
            f"{format_size(one.copied_bytes)} of {format_size(one.total_bytes)}"
            if one.total_bytes
            else "-"
        )
        why = one.error.message if one.HasField("error") else one.waiting_for
        state = render.enum_text(one, "state")
        rows.append(
            (one.operation_id, one.kind, one.volume, state, f"{done}/{len(one.steps)}", copied, why)
        )
    render.table(("id", "kind", "volume", "state", "steps", "copied", ""), rows)


@app.command("list")
def list_(
    volume: Annotated[str, typer.Option(help="only of this volume")] = "",
    open_only: Annotated[bool, typer.Option("--open", help="only what has not ended")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Operations, the newest first."""
    from vswitchd.api.client import operation_pb2

    request = operation_pb2.ListOperationsRequest(volume=volume, open_only=open_only)
    found = list(context.client.call(context.client.operations.ListOperations, request).operations)
    show(found, output, lambda: _table(found))


@app.command("show")
def show_(name: Id, output: OutputOption = Output.TABLE) -> None:
    """One operation with its steps."""
    operation = context.client.operation(name)

    def tables() -> None:
        _table([operation])
        render.plan_table(operation)

    show(operation, output, tables)


@app.command()
def watch(name: Id, timeout: Timeout = None, output: OutputOption = Output.TABLE) -> None:
    """Follow an operation to its end."""
    operation = context.client.operation(name)
    operation = render.follow(context.client, operation, timeout, output is not Output.TABLE)
    show(operation, output, lambda: note(f"{operation.kind} of {operation.volume} is done"))


@app.command()
def cancel(name: Id, output: OutputOption = Output.TABLE) -> None:
    """Undo an operation that has not passed its point of no return."""
    from vswitchd.api.client import operation_pb2

    request = operation_pb2.CancelOperationRequest(operation_id=name)
    operation = context.client.call(context.client.operations.CancelOperation, request)
    show(operation, output, lambda: _table([operation]))
