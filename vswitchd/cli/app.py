"""vswitchctl's command line: one noun, one verb, a name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from vswitchd import __version__
from vswitchd.cli import access, check, device, host, mirror, operation, processor, status, volume
from vswitchd.cli.context import EXIT, context, note
from vswitchd.errors import VsError

# Plain help: typer's rich one costs 100 ms of imports.
app = typer.Typer(
    name="vswitchctl",
    help="Administer volumes, devices and storage processors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
volume.app.add_typer(mirror.app, name="mirror")
volume.app.add_typer(access.app, name="access")
app.add_typer(volume.app, name="volume")
app.add_typer(device.app, name="device")
app.add_typer(processor.app, name="sp")
app.add_typer(operation.app, name="operation")
app.add_typer(host.app, name="host")
app.command("status")(status.status)
app.command("explain")(check.explain)
app.command("fsck")(check.fsck)
app.command("recover")(check.recover)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"vswitchctl {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    controller: Annotated[
        str,
        typer.Option(envvar="VSWITCHD_CONTROLLER", metavar="HOST:PORT", help="the controller"),
    ] = context.address,
    version: Annotated[  # noqa: ARG001 - typer calls back and ends
        bool, typer.Option("--version", callback=_version, is_eager=True, help="which this is")
    ] = False,
) -> None:
    """What stands in front of the noun."""
    context.connect(controller)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    0 done, 1 failed, 2 usage, 3 not found, 4 precondition, 5 unsafe, 6 unreachable, 7 timed out;
    `status` and `fsck`: 0 well, 10 warning, 11 error; 130 interrupted.
    """
    try:
        app(args=list(argv) if argv is not None else None)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except VsError as error:
        note(f"vswitchctl: {error}")
        return EXIT[error.kind]
    return 0
