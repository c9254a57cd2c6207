"""vswitchctl operation."""

from __future__ import annotations

from typing import Annotated

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, show, usage, watched
from vswitchd.cli.follow import follow
from vswitchd.cli.options import Adaptive, OutputOption, Priority, Timeout, Watch, noun, rate_of

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


def _ask(method: str, name: str, output: Output, **fields: object) -> None:
    from vswitchd.api.client import operation_pb2

    request = getattr(operation_pb2, f"{method}Request")(operation_id=name, **fields)
    operation = context.client.call(getattr(context.client.operations, method), request)
    show(operation, output, lambda: render.operations([operation]))


@app.command()
def cancel(name: Id, output: OutputOption = Output.TABLE) -> None:
    """Undo an operation that has not passed its point of no return."""
    _ask("CancelOperation", name, output)


@app.command()
def pause(name: Id, output: OutputOption = Output.TABLE) -> None:
    """Have an operation rest at the next point where hosts don't wait."""
    _ask("PauseOperation", name, output)


@app.command()
def resume(name: Id, output: OutputOption = Output.TABLE) -> None:
    """Have a paused operation go on, a copy from its last checkpoint."""
    _ask("ResumeOperation", name, output)


@app.command()
def throttle(
    name: Id,
    rate: Annotated[str | None, typer.Option(metavar="SIZE", help="bytes/s; none: all")] = None,
    priority: Priority = None,
    adaptive: Adaptive = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change an operation's limits while it runs; what is not said stays."""
    if rate is None and priority is None and adaptive is None:
        raise usage("say what to change: --rate, --priority, --adaptive or --no-adaptive")
    fields: dict[str, object] = {"priority": priority, "adaptive": adaptive}
    if rate is not None:
        fields["bytes_per_second"] = rate_of(rate)
    _ask("ThrottleOperation", name, output, **fields)
