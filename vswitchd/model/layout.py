"""The layout language: the text form of a tree, the same in requests, answers and the history.

    layout = ("mirror" | "stripe" | "concat") "(" item {"," item} ")" | place
    item   = count | "chunk=" size | layout        (count first, chunk for stripe alone)
    place  = ("any" | sp | sp "/" device) [":" size]

A count stands for that many times the layout after it (or `any`). Places and sizes that are
left out are chosen by placement. Sizes are binary: 4096, 64K, 10G, 1.5T, 10GiB.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TypeAlias

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import Concat, DeviceId, Hole, Leaf, Mirror, Node, Stripe, Volume

DEFAULT_CHUNK = 64 << 10
#: Most children of one node, T1 objects in all, and levels, that a layout may ask for.
MAX_CHILDREN = 64
MAX_PLACES = 256
MAX_DEPTH = 8

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGTP]?)(?:iB|B)?", re.IGNORECASE)
_TOKEN = re.compile(r"\s*([(),:/=]|[A-Za-z0-9][A-Za-z0-9._-]*)")


def parse_size(text: str) -> int:
    """Bytes from `4096`, `64K`, `10G`, `1.5T`, `10GiB`; VsError VS1010."""
    match = _SIZE.fullmatch(text.strip())
    try:
        if match:
            size = Decimal(match[1]) * _UNITS[match[2].upper()]
            if size == int(size) and size < 1 << 63:
                return int(size)
    except (InvalidOperation, OverflowError):
        pass
    raise VsError(
        "VS1010",
        Kind.INVALID,
        f"{text[:40]!r} is not a size; write whole bytes or K, M, G, T, P (binary), like 20G",
    )


def format_size(size: int) -> str:
    """The shortest exact text that `parse_size` reads back: `10G`, `1536M`, `4095`."""
    for unit, factor in reversed(_UNITS.items()):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


@dataclass(frozen=True, slots=True)
class Place:
    """One T1 object to be: where, and how large; None is left to placement."""

    sp: str | None = None
    device: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class MirrorOf:
    """The same bytes on each."""

    legs: tuple[Layout, ...]


@dataclass(frozen=True, slots=True)
class StripeOf:
    """Chunks in turn."""

    columns: tuple[Layout, ...]
    chunk: int = DEFAULT_CHUNK


@dataclass(frozen=True, slots=True)
class ConcatOf:
    """One after the other."""

    parts: tuple[Layout, ...]


Layout: TypeAlias = Place | MirrorOf | StripeOf | ConcatOf


def places(layout: Layout) -> tuple[Place, ...]:
    """Every place of a layout, left to right."""
    match layout:
        case Place():
            return (layout,)
        case MirrorOf(inner) | StripeOf(inner) | ConcatOf(inner):
            return tuple(place for child in inner for place in places(child))


def parse_layout(text: str) -> Layout:
    """The layout that a text asks for; VsError VS1013 points at what is wrong in it."""
    return _Parser(text).whole()


def print_layout(layout: Layout) -> str:
    """Text that `parse_layout` reads back as the same layout."""
    match layout:
        case Place(sp, device, size):
            where = "any" if sp is None else sp if device is None else f"{sp}/{device}"
            return where if size is None else f"{where}:{format_size(size)}"
        case MirrorOf(legs):
            return f"mirror({', '.join(map(print_layout, legs))})"
        case ConcatOf(parts):
            return f"concat({', '.join(map(print_layout, parts))})"
        case StripeOf(columns, chunk):
            inner = ", ".join(map(print_layout, columns))
            option = "" if chunk == DEFAULT_CHUNK else f", chunk={format_size(chunk)}"
            return f"stripe({inner}{option})"


def layout_of(volume: Volume, device_names: Mapping[DeviceId, str] | None = None) -> Layout:
    """The layout that a volume has. A T1 object on several devices is shown by its SP alone."""
    names = device_names or {}

    def of(node: Node) -> Layout:
        match node:
            case Leaf(t1_id, size):
                t1 = volume.t1(t1_id)
                devices = {extent.device for extent in t1.extents}
                device = devices.pop() if len(devices) == 1 else None
                name = None if device is None else names.get(device, device)
                return Place(t1.home, name, size)
            case Hole(size):
                return Place("hole", None, size)
            case Mirror(legs):
                return MirrorOf(tuple(of(leg.node) for leg in legs))
            case Stripe(chunk, columns):
                return StripeOf(tuple(map(of, columns)), chunk)
            case Concat(parts):
                return ConcatOf(tuple(map(of, parts)))

    return of(volume.root)


def print_volume(volume: Volume, device_names: Mapping[DeviceId, str] | None = None) -> str:
    """The volume's layout as text; a range that is out for a moment shows as `hole`."""
    return print_layout(layout_of(volume, device_names))


class _Parser:
    """Recursive descent over the text, with the position for errors."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, int]] = []
        self._next = 0
        at = 0
        end = len(text.rstrip())
        while at < end:
            found = _TOKEN.match(text, at)
            if not found:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise self._error(at, "a name, a size or one of ( ) , : / =")
            self._tokens.append((found[1], found.start(1)))
            at = found.end()
        self._end = end

    def whole(self) -> Layout:
        layout = self._layout(0)
        if self._next < len(self._tokens):
            raise self._error(self._position(), "the end of the layout")
        return layout

    def _error(self, position: int, expected: str) -> VsError:
        start = self._text.rfind("\n", 0, position) + 1
        line = self._text[start:].split("\n", 1)[0].replace("\t", " ")
        caret = " " * (position - start) + "^"
        return VsError("VS1013", Kind.INVALID, f"layout:\n{line}\n{caret}\nexpected {expected}")

    def _peek(self, ahead: int = 0) -> str:
        index = self._next + ahead
        return self._tokens[index][0] if index < len(self._tokens) else ""

    def _position(self) -> int:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else self._end

    def _skip(self, token: str, expected: str) -> None:
        if self._peek() != token:
            raise self._error(self._position(), expected)
        self._next += 1

    def _name(self, expected: str) -> str:
        token = self._peek()
        if not token or not token[0].isalnum():
            raise self._error(self._position(), expected)
        self._next += 1
        return token

    def _size(self) -> int:
        position = self._position()
        try:
            return parse_size(self._name("a size, like 10G"))
        except VsError as error:
            if error.code != "VS1010":
                raise
            raise self._error(position, "a size, like 10G") from None

    def _layout(self, depth: int) -> Layout:
        if depth > MAX_DEPTH:
            raise self._error(self._position(), f"at most {MAX_DEPTH} levels")
        if self._peek() in ("mirror", "stripe", "concat") and self._peek(1) == "(":
            return self._group(depth)
        return self._place()

    def _place(self) -> Place:
        position = self._position()
        sp = self._name("an SP, any, mirror(..), stripe(..) or concat(..)")
        if sp.isdecimal():
            raise self._error(position, "an SP or any; a count stands first in mirror(..)")
        if sp == "hole":
            raise self._error(position, "an SP or any; a hole cannot be asked for")
        device = size = None
        if sp != "any" and self._peek() == "/":
            self._next += 1
            device = self._name("a device's name")
        if self._peek() == ":":
            self._next += 1
            size = self._size()
        return Place(None if sp == "any" else sp, device, size)

    def _group(self, depth: int) -> Layout:
        kind = self._name("a kind")
        self._skip("(", "(")
        position = self._position()
        count: int | None = None
        chunk: int | None = None
        children: list[Layout] = []
        if self._peek().isdecimal() and self._peek(1) in (",", ")"):
            count = int(self._peek()[:9])
            if not 2 <= count <= MAX_CHILDREN:
                raise self._error(position, f"a count from 2 to {MAX_CHILDREN}")
            self._next += 1
        while count is None or self._peek() != ")":
            if count is not None or children or chunk is not None:
                self._skip(",", ", or )")
            if self._peek() == "chunk" and self._peek(1) == "=":
                chunk = self._chunk(kind, chunk)
            elif count is not None and children:
                raise self._error(self._position(), ") after the layout that is counted")
            else:
                children.append(self._layout(depth + 1))
            if self._peek() == ")":
                break
        self._skip(")", ")")
        if count is not None:
            children = (children or [Place()]) * count
        if not 2 <= len(children) <= MAX_CHILDREN:
            raise self._error(position, f"from 2 to {MAX_CHILDREN} children of {kind}")
        if sum(len(places(child)) for child in children) > MAX_PLACES:
            raise self._error(position, f"at most {MAX_PLACES} T1 objects in all")
        match kind:
            case "mirror":
                return MirrorOf(tuple(children))
            case "stripe":
                return StripeOf(tuple(children), DEFAULT_CHUNK if chunk is None else chunk)
            case _:
                return ConcatOf(tuple(children))

    def _chunk(self, kind: str, already: int | None) -> int:
        if kind != "stripe" or already is not None:
            raise self._error(self._position(), "a layout (one chunk=, and in stripe alone)")
        self._next += 2
        position = self._position()
        chunk = self._size()
        if chunk < 4096 or chunk & (chunk - 1):
            raise self._error(position, "a power of two from 4K")
        return chunk
