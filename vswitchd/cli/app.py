"""vswitchctl's command line: one noun, one verb, a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from vswitchd.cli import device, operation, processor, status, volume
from vswitchd.cli.context import EXIT, context, note
from vswitchd.errors import VsError

app = typer.Typer(
    name="vswitchctl",
    help="Administer volumes, devices and storage processors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(volume.app, name="volume")
app.add_typer(device.app, name="device")
app.add_typer(processor.app, name="sp")
app.add_typer(operation.app, name="operation")
app.command("status")(status.status)
app.command("explain")(status.explain)


@app.callback()
def options(
    controller: Annotated[
        str,
        typer.Option(envvar="VSWITCHD_CONTROLLER", metavar="HOST:PORT", help="the controller"),
    ] = context.address,
) -> None:
    """What stands in front of the noun."""
    context.address = controller


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status (docs: 0 done ... 8 denied)."""
    try:
        app(args=list(argv) if argv is not None else None)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except VsError as error:
        note(f"vswitchctl: {error}")
        return EXIT[error.kind]
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    return 0
