"""Tables, trees and progress for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vswitchd.errors import Kind, VsError
from vswitchd.model.layout import format_size

if TYPE_CHECKING:
    from rich.console import Console

    from vswitchd.api.client import Client


def console(stderr: bool = False) -> Console:
    """Colours only on a terminal; wide when piped, so that nothing is cut."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 200
    return Console(file=stream, width=width, highlight=False, soft_wrap=not stream.isatty())


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table."""
    from rich import box
    from rich.table import Table

    made = Table(*columns, box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for row in rows:
        made.add_row(*row)
    console().print(made)


def enum_text(message: Any, field: str) -> str:
    """An enum field's value in lower case, without its prefix."""
    descriptor = message.DESCRIPTOR.fields_by_name[field].enum_type
    value = descriptor.values_by_number[getattr(message, field)].name
    prefix = "".join(f"_{c}" if c.isupper() else c for c in descriptor.name).upper().lstrip("_")
    return str(value).removeprefix(prefix + "_").lower().replace("_", " ")


def tree_lines(volume: Any, sp: str, devices: dict[str, str]) -> Iterator[str]:
    """One SP's T2 object as a tree, each leaf an LRN or RRN."""
    t2 = next(found for found in volume.t2s if found.sp == sp)
    extents = {t1.t1_id: t1.extents for t1 in volume.record.t1s}
    owner = " owner" if t2.owner == sp else f" (owner {t2.owner})"
    yield f"{t2.name} {format_size(t2.size)} v{t2.version} epoch {t2.epoch} at {sp}{owner}"

    def walk(node: Any, depth: int, state: str) -> Iterator[str]:
        pad = "  " * depth + "- "
        kind = node.WhichOneof("kind")
        if kind == "leaf":
            ref = "LRN" if node.leaf.home == sp else "RRN"
            on = sorted({devices.get(e.device_id, e.device_id) for e in extents[node.leaf.t1_id]})
            yield (
                f"{pad}T1 {node.leaf.t1_id} {ref} {node.leaf.home} {','.join(on)} "
                f"{format_size(node.leaf.size)}{state}"
            )
        elif kind == "hole":
            yield f"{pad}hole {format_size(node.hole.size)} (parked){state}"
        elif kind == "mirror":
            behind = [leg for leg in node.mirror.legs if enum_text(leg, "state") != "in sync"]
            yield f"{pad}mirror{' DEGRADED' if behind else ''}{state}"
            for leg in node.mirror.legs:
                yield from walk(leg.node, depth + 1, " " + enum_text(leg, "state"))
        elif kind == "stripe":
            yield f"{pad}stripe chunk {format_size(node.stripe.chunk)}{state}"
            for column in node.stripe.columns:
                yield from walk(column, depth + 1, "")
        else:
            yield f"{pad}concat{state}"
            for part in node.concat.parts:
                yield from walk(part, depth + 1, "")

    yield from walk(t2.root, 0, "")


def plan_table(operation: Any) -> None:
    """An operation's steps."""
    rows = [
        (
            str(number),
            step.kind,
            step.sp or "store",
            step.object,
            format_size(step.copy_bytes) if step.copy_bytes else "-",
            enum_text(step, "state"),
        )
        for number, step in enumerate(operation.steps, 1)
    ]
    table(("", "step", "where", "object", "copy", "state"), rows)


def follow(client: Client, operation: Any, seconds: float | None, quiet: bool) -> Any:
    """Waits for an operation's end behind a progress bar; VsError says why it failed."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    last = operation
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )
    try:
        with bar:
            task = bar.add_task(f"{operation.kind} {operation.volume}", total=None)
            for last in client.watch(operation.operation_id, seconds):
                waiting = f" waiting: {last.waiting_for}" if last.waiting_for else ""
                bar.update(
                    task,
                    description=f"{last.kind} {last.volume}{waiting}",
                    total=last.total_bytes or None,
                    completed=last.copied_bytes,
                )
    except VsError as error:
        if error.kind is Kind.TIMEOUT:
            raise VsError(
                "VS5030",
                Kind.TIMEOUT,
                f"operation {operation.operation_id} goes on; watch it with "
                f"`vswitchctl operation watch {operation.operation_id}`",
            ) from None
        raise
    if last.HasField("error"):
        state = enum_text(last, "state")
        raise VsError(
            last.error.code,
            Kind.INTERNAL,
            f"operation {last.operation_id} {state}, nothing was changed: {last.error.message}",
        )
    return last
