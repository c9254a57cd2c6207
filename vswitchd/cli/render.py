"""Tables and trees for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from vswitchd.model.layout import format_size

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console
    from rich.text import Text

    from vswitchd.api.client import common_pb2, operation_pb2

#: Wide enough that nothing is cut or folded where no person looks.
PIPE_WIDTH = 10_000

#: Colours of words that stand alone in a cell, or set apart in a line by two spaces.
STYLES = {
    **dict.fromkeys(("up", "online", "done", "in sync", "OK"), "green"),
    **dict.fromkeys(
        ("degraded", "DEGRADED", "creating", "deleting", "undoing", "WARN", "paused", "drained"),
        "yellow",
    ),
    **dict.fromkeys(("write only", "resync", "parked"), "yellow"),
    **dict.fromkeys(("down", "offline", "failed", "cancelled", "ERROR"), "red"),
}


def console(stderr: bool = False) -> Console:
    """Colours only on a terminal; what is printed is text, never markup."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def _styled(text: str) -> Text:
    from rich.text import Text

    made = Text(text)
    if text in STYLES:
        made.stylize(STYLES[text])
    else:
        for word, style in STYLES.items():
            made.highlight_regex(rf"(?<=  ){word}\b", style)
    return made


def line(text: str) -> None:
    """One line, whole however long it is."""
    console().print(_styled(text), soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table."""
    from rich import box
    from rich.table import Table

    made = Table(*columns, box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for row in rows:
        made.add_row(*(_styled(cell) if cell in STYLES else cell for cell in row))
    out = console()
    with out.capture() as captured:
        out.print(made)
    # The last column's padding is of no use.
    sys.stdout.writelines(f"{row.rstrip()}\n" for row in captured.get().splitlines())


def enum_text(message: Message, field: str) -> str:
    """An enum field's value in lower case, without its prefix; a newer one's number."""
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    number = getattr(message, field)
    if kind is None or number not in kind.values_by_number:
        return str(number)
    prefix = "".join(f"_{c}" if c.isupper() else c for c in kind.name).upper().lstrip("_")
    name = str(kind.values_by_number[number].name)
    return name.removeprefix(prefix + "_").lower().replace("_", " ")


def tree(
    t2: common_pb2.T2Object,
    t1s: Mapping[str, common_pb2.T1Object],
    devices: Mapping[str, str],
    running: operation_pb2.Operation | None,
) -> None:
    """One SP's T2 object."""
    for each in tree_lines(t2, t1s, devices, running):
        line(each)


def tree_lines(
    t2: common_pb2.T2Object,
    t1s: Mapping[str, common_pb2.T1Object],
    devices: Mapping[str, str],
    running: operation_pb2.Operation | None,
) -> Iterator[str]:
    """A T2 object as a tree: each leaf an LRN or an RRN, with its T1 object's home and devices.

    `devices` names device ids; `running` is the operation that changes the volume, whose copy's
    progress a leg that is not in sync shows.
    """

    def leg_state(leg: common_pb2.Leg) -> str:
        state = enum_text(leg, "state")
        if state == "write only" and running is not None and running.total_bytes:
            return f"resync {100 * running.copied_bytes // running.total_bytes}%"
        return state

    def places(t1_id: str) -> str:
        # A tree may be a step ahead of the record, or behind it, while an operation runs.
        if t1_id not in t1s:
            return "?"
        used = dict.fromkeys(extent.device_id for extent in t1s[t1_id].extents)
        return ",".join(devices.get(device, device) for device in used)

    def walk(node: common_pb2.Node, depth: int, state: str) -> Iterator[str]:
        pad = "  " * depth + "- "
        end = f"  {state}" if state else ""
        kind = node.WhichOneof("kind")
        if kind == "leaf":
            leaf = node.leaf
            reference = "LRN" if leaf.home == t2.sp else "RRN"
            where = f"{leaf.home} {places(leaf.t1_id)}"
            yield f"{pad}T1 {leaf.t1_id} {reference} {where} {format_size(leaf.size)}{end}"
        elif kind == "hole":
            yield f"{pad}hole {format_size(node.hole.size)}  parked{end}"
        elif kind == "mirror":
            behind = any(enum_text(leg, "state") != "in sync" for leg in node.mirror.legs)
            yield f"{pad}mirror{'  DEGRADED' if behind else ''}{end}"
            for leg in node.mirror.legs:
                yield from walk(leg.node, depth + 1, leg_state(leg))
        elif kind == "stripe":
            yield f"{pad}stripe chunk {format_size(node.stripe.chunk)}{end}"
            for column in node.stripe.columns:
                yield from walk(column, depth + 1, "")
        elif kind == "concat":
            yield f"{pad}concat{end}"
            for part in node.concat.parts:
                yield from walk(part, depth + 1, "")
        else:
            yield f"{pad}? (a node of a later version){end}"

    yield (
        f"{t2.name} {format_size(t2.size)} v{t2.version} owner {t2.owner} epoch {t2.epoch} "
        f"at {t2.sp}"
    )
    yield from walk(t2.root, 0, "")


def steps_done(operation: operation_pb2.Operation) -> int:
    """How many of its steps are over."""
    return sum(enum_text(step, "state") == "done" for step in operation.steps)


def operations(found: Sequence[operation_pb2.Operation]) -> None:
    """Operations, one a line."""
    rows = []
    for one in found:
        copied = "-"
        if one.total_bytes:
            copied = f"{format_size(one.copied_bytes)} of {format_size(one.total_bytes)}"
        if one.bytes_per_second:
            left = (one.total_bytes - one.copied_bytes) / one.bytes_per_second
            copied += f", {round(one.bytes_per_second / (1 << 20), 1):g} MiB/s, {left:.0f} s left"
        why = one.error.message if one.HasField("error") else one.waiting_for
        progress = f"{steps_done(one)}/{len(one.steps)}"
        state = enum_text(one, "state")
        rows.append((one.operation_id, one.kind, one.volume, state, progress, copied, why))
    table(("id", "kind", "volume", "state", "steps", "copied", ""), rows)


def steps(operation: operation_pb2.Operation) -> None:
    """An operation's steps with their states."""
    columns = ("", "step", "where", "object", "copy", "state")
    table(columns, [(*row, state) for row, state in _steps(operation)])


def _steps(operation: operation_pb2.Operation) -> Iterator[tuple[tuple[str, ...], str]]:
    for number, step in enumerate(operation.steps, 1):
        copy = format_size(step.copy_bytes) if step.copy_bytes else "-"
        row = (str(number), step.kind, step.sp or "store", step.object, copy)
        yield row, enum_text(step, "state")
