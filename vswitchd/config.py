"""Settings: flag > environment (VSWITCHD_<SECTION>_<KEY>) > file > default."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from vswitchd.errors import Kind, VsError

DEFAULT_FILE = Path("/etc/vswitchd/vswitchd.toml")


@dataclass
class Controller:
    """[controller]"""

    state: Path = field(default=Path("/var/lib/vswitchd/controller"))
    listen: str = "127.0.0.1:9440"
    metrics: str = "127.0.0.1:9441"


@dataclass
class Processor:
    """[processor]. `loops` 0: one for each core. `hold_seconds`: how long I/O waits for a peer
    or a new tree before the host gets an error."""

    name: str = ""
    state: Path = field(default=Path("/var/lib/vswitchd/sp"))
    controller: str = "127.0.0.1:9440"
    vsm: str = "127.0.0.1:9450"
    peer: str = "127.0.0.1:9460"
    nbd: list[str] = field(default_factory=lambda: ["127.0.0.1:10809"])
    metrics: str = "127.0.0.1:9451"
    loops: int = 0
    device_root: list[str] = field(default_factory=list)
    hold_seconds: float = 120.0


@dataclass
class Limits:
    """[limits]. Bytes of requests in flight for each connection, and connections in all."""

    inflight_bytes: int = 128 << 20
    connections: int = 4096


@dataclass
class Log:
    """[log]"""

    level: str = "info"


SECTIONS: dict[str, type[Any]] = {
    "controller": Controller,
    "processor": Processor,
    "limits": Limits,
    "log": Log,
}
S = TypeVar("S")


def _unknown(what: str, name: str, known: Sequence[str], where: str) -> VsError:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
    return VsError("VS1042", Kind.INVALID, f"{where}: unknown {what} {name!r}; {hint}")


def _value(raw: object, wanted: Any, where: str) -> Any:
    """`raw` as the type `wanted`; text (from the environment) is parsed."""
    bad = VsError("VS1043", Kind.INVALID, f"{where}: {raw!r} is not a {_type_name(wanted)}")
    if wanted == list[str]:
        items = raw.split(",") if isinstance(raw, str) else raw
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise bad
        return items
    if wanted in (int, float) and isinstance(raw, str | int | float):
        try:
            return wanted(raw) if not isinstance(raw, bool) else None
        except ValueError:
            raise bad from None
    if wanted in (str, Path) and isinstance(raw, str | Path):
        return wanted(raw)
    raise bad


def _type_name(wanted: Any) -> str:
    return {list[str]: "list of strings", int: "number", float: "number", Path: "path"}.get(
        wanted, "string"
    )


def read_file(path: Path) -> dict[str, dict[str, object]]:
    """A file's sections, every name checked; VsError says what is wrong where."""
    try:
        raw = tomllib.loads(path.read_text())
    except OSError as error:
        raise VsError("VS1044", Kind.INVALID, f"{path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise VsError("VS1045", Kind.INVALID, f"{path}: {error}") from None
    for name, body in raw.items():
        if name not in SECTIONS:
            raise _unknown("section", name, list(SECTIONS), str(path))
        if not isinstance(body, dict):
            raise VsError("VS1045", Kind.INVALID, f"{path}: {name} is a section: [{name}]")
        hints = typing.get_type_hints(SECTIONS[name])
        for key, value in body.items():
            if key not in hints:
                raise _unknown("key", key, list(hints), f"{path} [{name}]")
            body[key] = _value(value, hints[key], f"{path} [{name}] {key}")
    return raw


def load(
    section: type[S],
    flags: Mapping[str, object],
    config: Path | None,
    environment: Mapping[str, str] = types.MappingProxyType(os.environ),
) -> S:
    """One section's settings. `config` None: the default file, if there is one."""
    path = config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    name = next(name for name, kind in SECTIONS.items() if kind is section)
    values: dict[str, object] = dict(read_file(path).get(name, {})) if path else {}
    hints = typing.get_type_hints(section)
    for key in (one.name for one in fields(section)):  # type: ignore[arg-type]
        variable = f"VSWITCHD_{name}_{key}".upper()
        if variable in environment:
            values[key] = _value(environment[variable], hints[key], variable)
        if flags.get(key) is not None:
            values[key] = flags[key]
    return section(**values)


def main(argv: Sequence[str]) -> int:
    """`vswitchd config check FILE`."""
    parser = argparse.ArgumentParser(prog="vswitchd config")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="say what is wrong with a configuration file")
    check.add_argument("file", type=Path)
    args = parser.parse_args(argv)
    try:
        read_file(args.file)
    except VsError as error:
        print(f"vswitchd: {error}", file=sys.stderr)
        return 1
    print(f"{args.file}: good")
    return 0
