"""vswitchctl volume access."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, note, show, usage
from vswitchd.cli.options import Name, OutputOption, noun
from vswitchd.errors import Kind, VsError

if TYPE_CHECKING:
    from vswitchd.api.client import volume_pb2

app = noun("Who may use a volume.")

Initiator = Annotated[
    str, typer.Option(metavar="IQN", help="its name, on Linux in /etc/iscsi/initiatorname.iscsi")
]
#: Bytes that are read of a file with a secret: more than any secret has.
_MOST = 4096


def _secret(file: str) -> str:
    """A secret out of a file or, for -, of standard input: one line, its end left away. Never
    from the command line, which everybody on the machine can read."""
    try:
        if file == "-":
            data = sys.stdin.buffer.read(_MOST)
        else:
            with Path(file).open("rb") as found:
                data = found.read(_MOST)
        return data.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise VsError(
            "VS1094", Kind.INVALID, f"the secret in {file} can't be read ({error.strerror})"
        ) from None
    except UnicodeDecodeError:
        # What it is shows in no message, nor in that of the cause.
        raise VsError(
            "VS1094", Kind.INVALID, f"what is in {file} is no text, so it can't be a secret"
        ) from None


def _chap(user: str, file: str, option: str) -> volume_pb2.ChapSecret | None:
    from vswitchd.api.client import volume_pb2

    if bool(user) != bool(file):
        raise usage(f"--{option}-user and --{option}-secret-file go together")
    return volume_pb2.ChapSecret(user=user, secret=_secret(file)) if user else None


def _ask(method: str, output: Output, **fields: Any) -> None:
    from vswitchd.api.client import volume_pb2

    request = getattr(volume_pb2, f"{method}Request")(**fields)
    access = context.client.call(getattr(context.client.volumes, method), request)
    show(access, output, lambda: _table(access))
    late = [one.sp for one in access.sps if not one.heard or one.version < access.version]
    if late:
        note(
            f"not told yet: {', '.join(late)}; until the controller reaches them they admit by "
            "what they knew before"
        )
    ahead = [one.sp for one in access.sps if one.heard and one.version > access.version]
    if ahead:
        note(
            f"{', '.join(ahead)} knows of a later change than the controller, whose store may be "
            "an old copy, and goes by that until the next change"
        )


def _table(access: volume_pb2.VolumeAccess) -> None:
    render.line(f"{access.name}  access version {access.version}")
    render.line(f"  NBD    {'open' if access.nbd else 'closed'}")
    if not access.initiators:
        render.line("  iSCSI  open: whoever reaches a portal may log in")
        return
    rows = [
        (one.initiator, one.chap_user or "not demanded", one.mutual_user or "-")
        for one in access.initiators
    ]
    render.table(("initiator", "CHAP as", "target as"), rows)


@app.command()
def allow(
    name: Name,
    initiator: Initiator,
    chap_user: Annotated[
        str, typer.Option(metavar="USER", help="what the initiator calls itself by CHAP")
    ] = "",
    chap_secret_file: Annotated[
        str, typer.Option(metavar="FILE", help="its secret, one line of 12 to 255 bytes; - : stdin")
    ] = "",
    mutual_user: Annotated[
        str, typer.Option(metavar="USER", help="what the target calls itself, if it is asked")
    ] = "",
    mutual_secret_file: Annotated[
        str, typer.Option(metavar="FILE", help="the target's secret, another one")
    ] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Let an initiator log in over iSCSI; from the first one on nobody else may. What an initiator
    had before is replaced whole: without --chap-user it need show nothing but its name."""
    if chap_secret_file == mutual_secret_file == "-":
        raise usage("one secret can come from standard input, the other one from a file")
    chap = _chap(chap_user, chap_secret_file, "chap")
    mutual = _chap(mutual_user, mutual_secret_file, "mutual")
    _ask("AllowInitiator", output, name=name, initiator=initiator, chap=chap, mutual=mutual)


@app.command()
def deny(
    name: Name,
    initiator: Initiator,
    open_: Annotated[
        bool,
        typer.Option("--open", help="though it is the last one: whoever comes may log in then"),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let an initiator no longer log in; its sessions have ended when this returns."""
    _ask("DenyInitiator", output, name=name, initiator=initiator, open=open_)


@app.command()
def nbd(
    name: Name,
    on: Annotated[bool | None, typer.Option("--on/--off", help="open or closed")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Open a volume to NBD, which knows no login, or close it; its NBD sessions end then."""
    if on is None:
        raise usage("say --on or --off")
    _ask("SetVolumeNbd", output, name=name, on=on)


@app.command("list")
def list_(name: Name, output: OutputOption = Output.TABLE) -> None:
    """Who may use a volume, and what has to be shown; never the secrets."""
    _ask("GetVolumeAccess", output, name=name)
