"""JSON text <-> objects, strictly: the shapes of docs/engine.md.

Decoding accepts exactly the known fields and names the one that is wrong (VS1020). A
`Volume` is its fields, its T1 objects as T1 JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import (
    T1,
    T2,
    Concat,
    DeviceId,
    Extent,
    Hole,
    Leaf,
    Leg,
    LegState,
    Mirror,
    Node,
    SpId,
    Stripe,
    T1Id,
    Volume,
    VolumeId,
    children,
)
from vswitchd.model.view import Ejection

Json = dict[str, Any]
_T = TypeVar("_T")
_E = TypeVar("_E", bound=StrEnum)

#: Deepest tree that is decoded; more is a mistake or an attack.
MAX_DEPTH = 16

_LEG_STATES = {state.value: state for state in LegState}


def malformed(where: str, problem: str) -> VsError:
    """The error for JSON that is not of the shape expected."""
    return VsError("VS1020", Kind.INVALID, f"{where}: {problem}")


class Fields:
    """A JSON object being taken apart: every field is asked for, or refused by `done`."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise malformed(where, f"an object was expected, not {type(value).__name__}")
        self._left: Json = dict(value)
        self._where = where

    def path(self, name: str) -> str:
        """The field's place in words, for an error."""
        return f"{self._where}.{name}"

    def take(self, name: str) -> object:
        """The field's raw value; VsError if it is missing."""
        if name not in self._left:
            raise malformed(self.path(name), "is missing")
        return self._left.pop(name)

    def text(self, name: str) -> str:
        """A string field."""
        value = self.take(name)
        if not isinstance(value, str):
            raise malformed(self.path(name), f"a string was expected, not {value!r}")
        return value

    def number(self, name: str) -> int:
        """An unsigned 64-bit integer field."""
        value = self.take(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
            raise malformed(
                self.path(name), f"an unsigned 64-bit integer was expected, not {value!r}"
            )
        return value

    def one_of(self, name: str, kind: type[_E]) -> _E:
        """A field that is one of an enumeration's values."""
        value = self.text(name)
        if value not in {one.value for one in kind}:
            known = ", ".join(one.value for one in kind)
            raise malformed(self.path(name), f"one of {known} was expected, not {value!r}")
        return kind(value)

    def items(self, name: str, decode: Callable[[object, str], _T]) -> tuple[_T, ...]:
        """A list field, each item decoded."""
        value = self.take(name)
        if not isinstance(value, list):
            raise malformed(self.path(name), f"a list was expected, not {type(value).__name__}")
        return tuple(decode(item, f"{self.path(name)}[{i}]") for i, item in enumerate(value))

    def texts(self, name: str) -> dict[str, str]:
        """A field that maps strings to strings."""
        value = self.take(name)
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise malformed(self.path(name), "an object of strings was expected")
        return value

    def numbers(self, name: str) -> dict[str, int]:
        """A field that maps strings to whole numbers."""
        value = self.take(name)
        if not isinstance(value, dict) or not all(type(v) is int for v in value.values()):
            raise malformed(self.path(name), "an object of whole numbers was expected")
        return value

    def done(self) -> None:
        """Refuses fields that nobody asked for."""
        if self._left:
            raise malformed(self.path(min(self._left)), "is not a known field")


def as_text(value: object, where: str) -> str:
    """An item that must be a string."""
    if not isinstance(value, str):
        raise malformed(where, f"a string was expected, not {value!r}")
    return value


def loads(text: str, where: str) -> object:
    """Parses JSON text; VsError names `where`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise malformed(where, f"not JSON: {error}") from None


def dumps(value: object) -> str:
    """Compact JSON text with sorted keys, so that equal values give equal text."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def node_to_json(node: Node) -> Json:
    """A tree as plain JSON values."""
    match node:
        case Leaf(t1, size):
            return {"kind": "leaf", "t1": t1, "size": size}
        case Hole(size):
            return {"kind": "hole", "size": size}
        case Mirror(legs):
            return {
                "kind": "mirror",
                "legs": [
                    {"state": leg.state.value, "node": node_to_json(leg.node)} for leg in legs
                ],
            }
        case Stripe(chunk, columns):
            return {"kind": "stripe", "chunk": chunk, "columns": [node_to_json(c) for c in columns]}
        case Concat(parts):
            return {"kind": "concat", "parts": [node_to_json(p) for p in parts]}


def node_from_json(value: object, where: str = "node", depth: int = 0) -> Node:
    """A tree from plain JSON values."""
    if depth > MAX_DEPTH:
        raise malformed(where, f"the tree is deeper than {MAX_DEPTH}")
    fields = Fields(value, where)
    kind = fields.text("kind")
    node: Node

    def child(item: object, place: str) -> Node:
        return node_from_json(item, place, depth + 1)

    def leg(item: object, place: str) -> Leg:
        inner = Fields(item, place)
        state = _LEG_STATES.get(text := inner.text("state"))
        if state is None:
            raise malformed(
                inner.path("state"), f"in_sync, write_only or away was expected, not {text!r}"
            )
        found = Leg(child(inner.take("node"), inner.path("node")), state)
        inner.done()
        return found

    match kind:
        case "leaf":
            node = Leaf(T1Id(fields.text("t1")), fields.number("size"))
        case "hole":
            node = Hole(fields.number("size"))
        case "mirror":
            node = Mirror(fields.items("legs", leg))
        case "stripe":
            node = Stripe(fields.number("chunk"), fields.items("columns", child))
        case "concat":
            node = Concat(fields.items("parts", child))
        case _:
            raise malformed(
                fields.path("kind"), f"leaf, hole, mirror, stripe or concat expected, not {kind!r}"
            )
    if isinstance(node, Stripe) and node.chunk == 0:
        raise malformed(fields.path("chunk"), "must be above 0")
    if isinstance(node, Mirror | Stripe | Concat) and not children(node):
        raise malformed(where, f"a {kind} needs children")
    fields.done()
    return node


def extent_to_json(extent: Extent) -> Json:
    """An extent as plain JSON values."""
    return {"device": extent.device, "offset": extent.offset, "length": extent.length}


def extent_from_json(value: object, where: str = "extent") -> Extent:
    """An extent from plain JSON values."""
    fields = Fields(value, where)
    extent = Extent(
        DeviceId(fields.text("device")), fields.number("offset"), fields.number("length")
    )
    fields.done()
    return extent


def t1_to_json(t1: T1) -> Json:
    """A T1 object as plain JSON values."""
    return {
        "id": t1.id,
        "volume": t1.volume,
        "size": t1.size,
        "extents": [extent_to_json(e) for e in t1.extents],
        "home": t1.home,
    }


def t1_from_json(value: object, where: str = "t1") -> T1:
    """A T1 object from plain JSON values."""
    fields = Fields(value, where)
    t1 = T1(
        id=T1Id(fields.text("id")),
        volume=VolumeId(fields.text("volume")),
        size=fields.number("size"),
        extents=fields.items("extents", extent_from_json),
        home=SpId(fields.text("home")),
    )
    fields.done()
    return t1


def t2_to_json(t2: T2) -> Json:
    """A T2 object as plain JSON values."""
    return {
        "volume": t2.volume,
        "name": t2.name,
        "size": t2.size,
        "version": t2.version,
        "epoch": t2.epoch,
        "sp": t2.sp,
        "owner": t2.owner,
        "root": node_to_json(t2.root),
        "homes": dict(t2.homes),
        "peers": dict(t2.peers),
    }


def t2_from_json(value: object, where: str = "t2") -> T2:
    """A T2 object from plain JSON values."""
    fields = Fields(value, where)
    t2 = T2(
        volume=VolumeId(fields.text("volume")),
        name=fields.text("name"),
        size=fields.number("size"),
        version=fields.number("version"),
        epoch=fields.number("epoch"),
        sp=SpId(fields.text("sp")),
        owner=SpId(fields.text("owner")),
        root=node_from_json(fields.take("root"), fields.path("root")),
        homes={T1Id(t1): SpId(sp) for t1, sp in fields.texts("homes").items()},
        peers={SpId(sp): address for sp, address in fields.texts("peers").items()},
    )
    fields.done()
    return t2


def encode_ejection(ejection: Ejection) -> str:
    """What an owner has made of a volume by itself, as JSON text."""
    body = {"t2": t2_to_json(ejection.t2), "base": ejection.base, "since": ejection.since}
    return dumps(body)


def decode_ejection(text: str) -> Ejection:
    """The same from JSON text; VsError VS1020 names the field that is wrong."""
    fields = Fields(loads(text, "ejection"), "ejection")
    ejection = Ejection(
        t2_from_json(fields.take("t2"), fields.path("t2")),
        fields.number("base"),
        fields.number("since"),
    )
    fields.done()
    return ejection


def volume_to_json(volume: Volume) -> Json:
    """A volume as plain JSON values."""
    return {
        "id": volume.id,
        "name": volume.name,
        "size": volume.size,
        "version": volume.version,
        "epoch": volume.epoch,
        "root": node_to_json(volume.root),
        "t1s": [t1_to_json(t1) for t1 in volume.t1s],
        "serving": list(volume.serving),
        "owner": volume.owner,
    }


def volume_from_json(value: object, where: str = "volume") -> Volume:
    """A volume from plain JSON values."""
    fields = Fields(value, where)
    volume = Volume(
        id=VolumeId(fields.text("id")),
        name=fields.text("name"),
        size=fields.number("size"),
        version=fields.number("version"),
        epoch=fields.number("epoch"),
        root=node_from_json(fields.take("root"), fields.path("root")),
        t1s=fields.items("t1s", t1_from_json),
        serving=tuple(SpId(sp) for sp in fields.items("serving", as_text)),
        owner=SpId(fields.text("owner")),
    )
    fields.done()
    return volume


def encode_node(node: Node) -> str:
    """A tree as JSON text."""
    return dumps(node_to_json(node))


def decode_node(text: str) -> Node:
    """A tree from JSON text; VsError VS1020 names the field that is wrong."""
    return node_from_json(loads(text, "node"))


def encode_t1(t1: T1) -> str:
    """A T1 object as JSON text."""
    return dumps(t1_to_json(t1))


def decode_t1(text: str) -> T1:
    """A T1 object from JSON text; VsError VS1020 names the field that is wrong."""
    return t1_from_json(loads(text, "t1"))


def encode_t2(t2: T2) -> str:
    """A T2 object as JSON text."""
    return dumps(t2_to_json(t2))


def decode_t2(text: str) -> T2:
    """A T2 object from JSON text; VsError VS1020 names the field that is wrong."""
    return t2_from_json(loads(text, "t2"))


def encode_volume(volume: Volume) -> str:
    """A volume as JSON text."""
    return dumps(volume_to_json(volume))


def decode_volume(text: str) -> Volume:
    """A volume from JSON text; VsError VS1020 names the field that is wrong."""
    return volume_from_json(loads(text, "volume"))
