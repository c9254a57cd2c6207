"""A plan for people: what will be done where, what it copies, how safe the data is meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from vswitchd.cli.render import line, table
from vswitchd.model.layout import format_size

if TYPE_CHECKING:
    from vswitchd.api.client import operation_pb2

#: What copies are taken to move in a second where nobody has said a limit, for "about how long".
USUAL_RATE = 100 << 20

#: Steps in an administrator's words; others show by their own names.
WORDS = {
    "put_t1": "reserve and zero extents",
    "stage_t2": "hand out new trees",
    "fence_t1": "fence the old trees",
    "commit": "commit",
    "activate_t2": "switch over",
    "copy": "copy",
    "await_sync": "wait until legs are alike",
    "await_lease": "wait until a lost owner's lease is over",
    "remove_t2": "stop serving",
    "delete_t1": "free extents",
    "drop_reference": "drop remote references",
    "adopt_t1": "change the home",
    "forget": "forget the volume",
}


def plan(operation: operation_pb2.Operation, devices: Mapping[str, str]) -> None:
    """What an operation would do; `devices` names device ids."""
    for each in header(operation):
        line(each)
    if not operation.steps:
        return
    table(("step", "", "where", "copy", "redundancy", "expected pause"), list(rows(operation)))
    for each in footer(operation, devices):
        line(each)


def header(operation: operation_pb2.Operation) -> Iterator[str]:
    """Which volume, from what to what."""
    before, after = operation.layout_before or "nothing", operation.layout_after or "nothing"
    versions = f"tree version {operation.base_version} -> {operation.target_version or 'gone'}"
    if not operation.base_version:
        versions = f"tree version {operation.target_version}"
    if not operation.steps:
        yield f"{operation.volume}: {operation.kind}: nothing to do"
    elif before == after:
        yield f"{operation.volume}: {operation.kind}   {versions}"
    else:
        yield f"{operation.volume}: {before} -> {after}   {versions}"


def rows(operation: operation_pb2.Operation) -> Iterator[tuple[str, ...]]:
    """The table: steps of one kind that follow one another are one row."""
    number = 0
    for kind, group in groupby(operation.steps, key=lambda step: step.kind):
        steps = list(group)
        first, last = number + 1, number + len(steps)
        number = last
        copy = sum(step.copy_bytes for step in steps)
        pause = max(step.expected_pause_seconds for step in steps)
        yield (
            str(first) if first == last else f"{first}-{last}",
            WORDS.get(kind, kind),
            ", ".join(dict.fromkeys(step.sp or "store" for step in steps)),
            format_size(copy) if copy else "-",
            str(min(step.redundancy for step in steps) or "-"),
            f"< {_milliseconds(pause)} ms" if pause else "-",
        )


def footer(operation: operation_pb2.Operation, devices: Mapping[str, str]) -> Iterator[str]:
    """What it takes, how long about, and how it is applied and taken back."""
    if operation.reserved:
        taken = (
            f"{format_size(one.bytes)} on {one.sp}/{devices.get(one.device_id, one.device_id)}"
            for one in operation.reserved
        )
        yield f"reserves  {', '.join(taken)}"
    if operation.total_bytes:
        rate = operation.options.bytes_per_second or USUAL_RATE
        seconds = operation.total_bytes / rate
        yield (
            f"copies    {format_size(operation.total_bytes)}, about {duration(seconds)} at "
            f"{round(rate / (1 << 20), 1):g} MiB/s"
        )
    yield f"cancel    {_cancellable(operation)}"
    yield f"undo      {operation.undone_by}"
    if operation.operation_id:
        yield (
            f"apply     vswitchctl volume apply {operation.volume} --plan {operation.operation_id}"
        )


def _cancellable(operation: operation_pb2.Operation) -> str:
    steps: Sequence[object] = operation.steps
    if operation.no_return_step >= len(steps):
        return "until its end"
    if operation.no_return_step == 0:
        return "not at all: it is carried through once it has begun"
    return f"until step {operation.no_return_step} is done"


def duration(seconds: float) -> str:
    """A length of time in words: `40 s`, `4 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3600, 1):g} h"


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}"
