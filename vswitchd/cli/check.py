"""vswitchctl fsck, recover and explain."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, note, show
from vswitchd.cli.follow import follow
from vswitchd.cli.options import NoWait, OutputOption
from vswitchd.errors import Kind, VsError
from vswitchd.model.layout import format_size

if TYPE_CHECKING:
    from vswitchd.api.client import cluster_pb2

_CODE = re.compile(r"VS\d{4}", re.IGNORECASE)
#: The worst severity of all findings -> the exit status, as of `status`.
STATUS = {"warning": 10, "error": 11}


def fsck(
    repair: Annotated[
        bool, typer.Option("--repair", help="do at once what the controller would do by itself")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Hold the store, the SPs and the devices' labels against each other.

    Exits 0 when all agree, 10 on a warning, 11 on an error. Each finding says what mends it.
    """
    from vswitchd.api.client import cluster_pb2

    request = cluster_pb2.FsckRequest(repair=repair)
    found = context.client.call(context.client.cluster.Fsck, request)

    def text() -> None:
        for one in found.findings:
            severity = render.enum_text(one, "severity").upper()
            render.line(f"{severity:<8} {one.code}: {one.object}: {one.evidence}")
            render.line(f"         {one.repair}")
        if not found.findings:
            render.line("the store, the SPs and the labels agree")

    show(found, output, text)
    worst = {render.enum_text(one, "severity") for one in found.findings}
    raise typer.Exit(max((STATUS.get(one, 11) for one in worst), default=0))


def recover(
    force: Annotated[
        bool, typer.Option("--force", help="leave behind what can't be had now")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would come back; change nothing")
    ] = False,
    no_wait: NoWait = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Rebuild the store of a controller that has lost it, from what the SPs and labels hold.

    Start the controller with an empty --state at its old address; the SPs that still run come by
    themselves. Hosts stay connected. The history, and what devices were called, is lost.
    """
    from vswitchd.api.client import cluster_pb2

    request = cluster_pb2.RecoverRequest(force=force, dry_run=dry_run)
    found = context.client.call(context.client.cluster.Recover, request)
    show(found, output, lambda: _recovered(found))
    for volume in found.volumes if not no_wait and output is Output.TABLE else ():
        if volume.operation_id:
            follow(context.client.operation(volume.operation_id), None, output)


def _recovered(found: cluster_pb2.RecoverResponse) -> None:
    render.line(f"cluster  {found.cluster_id}")
    render.line(f"SPs      {', '.join(found.sps)}")
    render.line(f"devices  {', '.join(found.devices)}")
    rows = [
        (one.name, format_size(one.size), one.layout, f"v{one.version}")
        if not one.refused
        else (one.name, "-", one.refused, "not recovered")
        for one in found.volumes
    ]
    render.table(("volume", "size", "layout", ""), rows)
    for stranger in found.strangers:
        note(f"T1 object {stranger} belongs to no tree and stays where it is")


def explain(
    what: Annotated[str, typer.Argument(metavar="CODE|OBJECT")], output: OutputOption = Output.TABLE
) -> None:
    """What an error's code means; or why a volume, SP, device, T1 object, operation is as it is."""
    if _CODE.fullmatch(what):
        return _explain_code(what.upper())
    from vswitchd.api.client import cluster_pb2

    request = cluster_pb2.ExplainRequest(object=what)
    found = context.client.call(context.client.cluster.Explain, request)

    def text() -> None:
        for one in found.explanations:
            render.line(f"{one.kind} {one.object}")
            for sentence in one.sentences:
                render.line(f"  {sentence}")

    show(found, output, text)
    return None


def _explain_code(code: str) -> None:
    from vswitchd.errors_text import EXPLAIN

    if code not in EXPLAIN:
        raise VsError("VS2050", Kind.NOT_FOUND, f"there is no error {code}; codes are VSnnnn")
    meaning, remedy = EXPLAIN[code]
    render.line(f"{code}: {meaning}")
    render.line(f"What to do: {remedy}")
