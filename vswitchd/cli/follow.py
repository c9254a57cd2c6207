"""Waiting for an operation's end, behind a progress bar where there is a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from vswitchd.cli import render
from vswitchd.cli.context import Output, context, dump, note, plain
from vswitchd.errors import Kind, VsError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from vswitchd.api.client import operation_pb2


def follow(operation: operation_pb2.Operation, seconds: float | None, output: Output) -> None:
    """Waits for an operation's end, at most `seconds`, and prints how it ended.

    VsError if it failed or was cancelled, if the time is over (the operation goes on), or if the
    controller stays away. Programs get the operation's last known state in each case.
    """
    name = operation.operation_id
    last = operation
    problem: VsError | None = None
    bar = _bar(operation.total_bytes > 0, quiet=output is not Output.TABLE)
    try:
        with bar:
            # What was copied before we looked does not count towards the rate.
            task = bar.add_task(_what(last), total=None, completed=last.copied_bytes)
            for last in context.client.watch(name, seconds):
                _advance(bar, task, last)
        problem = _failure(last)
    except VsError as error:
        problem = error
        if error.kind is Kind.TIMEOUT:
            problem = VsError(
                "VS5030",
                Kind.TIMEOUT,
                f"operation {name} goes on; watch it with `vswitchctl operation watch {name}`",
            )
        elif error.kind is Kind.UNREACHABLE:
            note(f"operation {name} goes on when the controller is back")
    except KeyboardInterrupt:
        note(f"operation {name} goes on; `vswitchctl operation cancel {name}` undoes it")
        raise typer.Exit(130) from None
    if output is not Output.TABLE:
        dump(plain(last), output)
    elif problem is None:
        found = f": {last.report}" if last.report else ""
        note(f"{last.kind} of {last.volume} is done ({name}){found}")
    elif problem.kind is Kind.TIMEOUT:
        render.line(name)
    if problem is not None:
        raise problem


def _failure(operation: operation_pb2.Operation) -> VsError | None:
    """Why an operation that has ended did not do what was asked."""
    if not operation.HasField("error"):
        return None
    return VsError(
        operation.error.code,
        Kind.INTERNAL,
        f"operation {operation.operation_id} {render.enum_text(operation, 'state')}, nothing was "
        f"changed: {operation.error.message}",
    )


def _bar(copies: bool, quiet: bool) -> Progress:
    """Bytes with rate and time left for an operation that copies, else steps."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
    if copies:
        columns += [DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn()]
    else:
        columns += [MofNCompleteColumn(), TextColumn("steps")]
    return Progress(
        *columns,
        console=render.console(stderr=True),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )


def _what(operation: operation_pb2.Operation) -> str:
    """What it is doing, or what it waits for."""
    what = f"{operation.kind} {operation.volume}"
    if operation.waiting_for:
        return f"{what}: waiting for {operation.waiting_for}"
    running = [s.kind for s in operation.steps if render.enum_text(s, "state") == "running"]
    return f"{what}: {running[0]}" if running else what


def _advance(bar: Progress, task: TaskID, operation: operation_pb2.Operation) -> None:
    if operation.total_bytes:
        done, total = operation.copied_bytes, operation.total_bytes
    else:
        done, total = render.steps_done(operation), len(operation.steps)
    bar.update(task, description=_what(operation), completed=done, total=total)
