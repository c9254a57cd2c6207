"""Every error code is explained, every explained one is used, each has one meaning."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from vswitchd.errors import Kind
from vswitchd.errors_text import EXPLAIN

PACKAGE = Path(__file__).resolve().parents[2] / "vswitchd"
CODE = re.compile(r"VS\d{4}")
#: What the first digit of a code says.
DIGITS = {
    "1": {Kind.INVALID},
    "2": {Kind.NOT_FOUND, Kind.EXISTS},
    "3": {Kind.PRECONDITION, Kind.STALE},
    "4": {Kind.NO_SPACE},
    "5": {Kind.UNREACHABLE, Kind.TIMEOUT},
    "6": {Kind.UNSAFE},
    "9": {Kind.INTERNAL},
}


class Raised(NamedTuple):
    """One place that makes an error: where, of what kind, and the words it always says."""

    where: str
    kind: Kind
    words: tuple[str, ...]


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent.name not in ("errors_text", "rpc"):
            yield path, ast.parse(path.read_text())


def used() -> set[str]:
    """Codes that stand in the code as strings of their own."""
    return {
        node.value
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and CODE.fullmatch(node.value)
    }


def kind_of(node: ast.expr) -> Kind | None:
    """The kind that `Kind.NAME` means."""
    if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "Kind":
        return Kind[node.attr]
    return None


def words_of(node: ast.expr) -> tuple[str, ...]:
    """A message's words; what is filled in stands as `{}`."""
    match node:
        case ast.Constant(value=str(text)):
            return tuple(text.split())
        case ast.JoinedStr(values=parts):
            return tuple(
                "".join(
                    part.value if isinstance(part, ast.Constant) else "{}" for part in parts
                ).split()
            )
        case _:
            return ()


def raised() -> dict[str, list[Raised]]:
    """Every `VsError("VSnnnn", Kind.K, message)`, by code."""
    found: dict[str, list[Raised]] = defaultdict(list)
    for path, tree in sources():
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Name(id="VsError"), args=[ast.Constant(value=str(code)), kind, message]
                ):
                    known = kind_of(kind)
                    where = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                    assert known is not None, f"{where}: write the kind out as Kind.NAME"
                    found[code].append(Raised(where, known, words_of(message)))
    return found


def chosen() -> Iterator[tuple[str, Kind]]:
    """Codes that a table {Kind.K: "VSnnnn"} gives."""
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    kind = None if key is None else kind_of(key)
                    if kind and isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield value.value, kind


def runs(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Every three words that follow one another."""
    return {words[at : at + 3] for at in range(len(words) - 2)}


def test_every_code_used_is_explained() -> None:
    assert sorted(used() - set(EXPLAIN)) == []


def test_every_code_that_is_mentioned_is_explained() -> None:
    """In docstrings and comments too, and in what people read."""
    root = PACKAGE.parent
    texts = [p for p in PACKAGE.rglob("*.py") if p.parent.name != "rpc"]
    texts += [*root.glob("*.md"), *root.glob("docs/*.md")]
    # errors.py gives an example of what a code looks like; it is a real one.
    mentioned = {code for path in texts for code in CODE.findall(path.read_text())}
    assert sorted(mentioned - set(EXPLAIN)) == []


def test_every_explained_code_is_used() -> None:
    assert sorted(set(EXPLAIN) - used()) == []


def test_a_code_that_is_compared_with_is_raised_somewhere() -> None:
    made = set(raised()) | {code for code, _ in chosen()}
    # Given to an operation's record, and to `.get` as what remains.
    assert used() - made <= {"VS3052", "VS9021"}


def test_a_code_has_one_kind_and_its_first_digit_says_which() -> None:
    kinds: dict[str, set[Kind]] = defaultdict(set)
    for code, places in raised().items():
        kinds[code] |= {place.kind for place in places}
    for code, kind in chosen():
        kinds[code].add(kind)
    assert {code: found for code, found in kinds.items() if len(found) > 1} == {}
    wrong = {
        code: found for code, found in kinds.items() if not found <= DIGITS.get(code[2], set())
    }
    assert wrong == {}


def test_a_code_that_several_modules_raise_says_the_same_in_each() -> None:
    """Their messages share at least three words in a row: one condition."""
    for code, places in raised().items():
        modules = {place.where.partition(":")[0] for place in places}
        if len(modules) > 1:
            shared = set.intersection(*(runs(place.words) for place in places))
            assert shared, f"{code} means several things: {[place.where for place in places]}"


def test_a_code_of_a_table_is_raised_nowhere_else() -> None:
    """The engine's codes are the engine's alone."""
    assert {code for code, _ in chosen()} & set(raised()) == set()


@pytest.mark.parametrize("code", sorted(EXPLAIN))
def test_an_explanation_is_sentences(code: str) -> None:
    for text in EXPLAIN[code]:
        assert text.endswith(".") and text[0].isupper(), text
        assert "  " not in text and len(text) < 400, text
    assert len(set(EXPLAIN[code])) == 2


def test_codes_stand_in_order() -> None:
    assert list(EXPLAIN) == sorted(EXPLAIN)
