"""vswitchctl sp."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, note, show, watched
from vswitchd.cli.options import OutputOption, Timeout, Watch, noun
from vswitchd.errors import Kind, VsError

if TYPE_CHECKING:
    from vswitchd.api.client import processor_pb2

app = noun("Storage processors.")

#: Seconds between looks at an SP that is being drained.
LOOK = 0.5

SpName = Annotated[str, typer.Argument(metavar="SP")]


def _drained(one: processor_pb2.Processor) -> str:
    if not one.drained:
        return ""
    return f"draining, {one.volumes} volumes left" if one.volumes else "drained"


def _table(processors: list[processor_pb2.Processor]) -> None:
    rows = [
        (
            one.sp,
            "up" if one.up else "down",
            "master" if one.master else "",
            _drained(one),
            str(one.t1_objects),
            str(one.t2_objects),
            one.nbd_address,
            one.peer_address,
        )
        for one in processors
    ]
    render.table(("sp", "state", "", "", "T1", "T2", "nbd", "peer"), rows)


@app.command("list")
def list_(output: OutputOption = Output.TABLE, watch: Watch = False) -> None:
    """All SPs."""

    def look() -> None:
        processors = context.client.all_processors()
        show(processors, output, lambda: _table(processors))

    watched(look, watch)


@app.command("show")
def show_(name: SpName, output: OutputOption = Output.TABLE) -> None:
    """One SP."""
    from vswitchd.api.client import processor_pb2

    request = processor_pb2.GetProcessorRequest(sp=name)
    one = context.client.call(context.client.processors.GetProcessor, request)
    show(one, output, lambda: _table([one]))


@app.command()
def remove(name: SpName, output: OutputOption = Output.TABLE) -> None:
    """Forget an SP that holds nothing."""
    from vswitchd.api.client import processor_pb2

    request = processor_pb2.RemoveProcessorRequest(sp=name)
    one = context.client.call(context.client.processors.RemoveProcessor, request)
    show(one, output, lambda: _table([one]))


@app.command()
def drain(
    name: SpName,
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="hosts may go on connecting there")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="return at once")] = False,
    timeout: Timeout = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Move all that an SP holds to others and keep new objects away, until `undrain`.

    Without --keep-serving it stops serving too: hosts that are connected there need another
    path (`vswitchctl volume show` lists where a volume is served).
    """
    from vswitchd.api.client import processor_pb2

    client = context.client
    request = processor_pb2.DrainProcessorRequest(sp=name, keep_serving=keep_serving)
    one = client.call(client.processors.DrainProcessor, request)
    deadline = None if timeout is None else time.monotonic() + timeout
    said = -1
    while one.volumes and not no_wait:
        if deadline is not None and time.monotonic() > deadline:
            raise VsError(
                "VS5031",
                Kind.TIMEOUT,
                f"SP {name} still holds something of {one.volumes} volumes; draining goes on: "
                "`vswitchctl operation list --open` shows how far it is, `vswitchctl status` why "
                "it is stuck if it is",
            )
        if one.volumes != said:
            said = one.volumes
            note(f"{said} volumes left on {name}")
        time.sleep(LOOK)
        look = processor_pb2.GetProcessorRequest(sp=name)
        one = client.call(client.processors.GetProcessor, look)
    show(one, output, lambda: _table([one]))


@app.command()
def undrain(name: SpName, output: OutputOption = Output.TABLE) -> None:
    """Let a drained SP hold objects again; what has left it does not come back by itself."""
    from vswitchd.api.client import processor_pb2

    request = processor_pb2.UndrainProcessorRequest(sp=name)
    one = context.client.call(context.client.processors.UndrainProcessor, request)
    show(one, output, lambda: _table([one]))
