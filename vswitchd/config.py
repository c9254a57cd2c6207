"""Settings: flag > environment (VSWITCHD_<SECTION>_<KEY>) > file > default."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import math
import os
import sys
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vswitchd.errors import Kind, VsError

DEFAULT_FILE = Path("/etc/vswitchd/vswitchd.toml")


@dataclass
class Controller:
    """[controller]. `copies_at_once`: how many copies of data run at the same time, in all volumes
    together; the others wait, the highest priority first. `lost_after_seconds`: so long an SP
    may be silent, if its process has not ended, until volumes go on without its legs.
    `replace_after_seconds`: so long a leg may be away until another takes its place; 0: for good.
    `verify_every_seconds`: so often the legs of each mirror are held against each other, with at
    most `verify_bytes_per_second`, 0 for no limit but hosts' latency; 0: only when asked for."""

    state: Path = field(default=Path("/var/lib/vswitchd/controller"))
    listen: str = "127.0.0.1:9440"
    metrics: str = "127.0.0.1:9441"
    copies_at_once: int = 4
    lost_after_seconds: float = 5.0
    replace_after_seconds: float = 1800.0
    verify_every_seconds: float = 0.0
    verify_bytes_per_second: int = 0


@dataclass
class Processor:
    """[processor]. `loops` 0: one for each core. `hold_seconds`: how long I/O waits for a peer
    or a new tree before the host gets an error. `spin_microseconds`: how long a busy event loop
    looks for more to do before it sleeps; 0: not at all. `map_region_bytes`: of a region of the
    write-intent map, on devices that are added from now on; a region stays in the map for about
    `map_clear_seconds` after its last write. `leg_deadline_seconds`: so long a mirror's leg may
    keep a request waiting until the volume goes on without it. `alone_after_seconds`: so long the
    controller may be silent until the owner of a mirror leaves legs behind by itself, where those
    that stay are a majority; 0: never. `nbd_advertised`: the HOST:PORT
    by which hosts reach the SP, if that is not the first address of `nbd`. `iscsi`: HOST:PORT of
    its iSCSI portals, as the portal group of that tag, which no other SP of the cluster may have;
    initiators are told to come to `iscsi_advertised`, or where they have come."""

    name: str = ""
    state: Path = field(default=Path("/var/lib/vswitchd/sp"))
    controller: str = "127.0.0.1:9440"
    vsm: str = "127.0.0.1:9450"
    peer: str = "127.0.0.1:9460"
    nbd: list[str] = field(default_factory=lambda: ["127.0.0.1:10809"])
    nbd_advertised: str = ""
    iscsi: list[str] = field(default_factory=list)
    iscsi_advertised: str = ""
    iscsi_portal_group: int = 1
    metrics: str = "127.0.0.1:9451"
    loops: int = 0
    device_root: list[str] = field(default_factory=list)
    hold_seconds: float = 120.0
    spin_microseconds: int = 50
    map_region_bytes: int = 1 << 20
    map_clear_seconds: float = 5.0
    leg_deadline_seconds: float = 5.0
    alone_after_seconds: float = 3.0


@dataclass
class Host:
    """[host]. `timeout_seconds`, 3 or more: so long a request has on one connection until it is
    tried on another. `hold_seconds`: how long I/O waits when no SP can be reached, until it fails.
    `boot_seconds`: how long the service, and with it the mounts that need it, waits at its start
    for what hosttab names."""

    state: Path = field(default=Path("/var/lib/vswitchd/host"))
    controller: str = "127.0.0.1:9440"
    socket: Path = field(default=Path("/run/vswitchd/host.sock"))
    hosttab: Path = field(default=Path("/etc/vswitchd/hosttab"))
    metrics: str = "127.0.0.1:9461"
    timeout_seconds: int = 3
    hold_seconds: int = 300
    boot_seconds: float = 60.0


@dataclass
class Limits:
    """[limits]. Bytes of requests in flight for each connection, connections in all, and how much
    of the memory that the process may have is for file and block devices to be kept mapped and
    locked in."""

    inflight_bytes: int = 128 << 20
    connections: int = 4096
    resident_percent: int = 12


@dataclass
class Log:
    """[log]"""

    level: str = "info"


SECTIONS: dict[str, type[Any]] = {
    "controller": Controller,
    "processor": Processor,
    "host": Host,
    "limits": Limits,
    "log": Log,
}
S = TypeVar("S")


def _unknown(what: str, name: str, known: Sequence[str], where: str) -> VsError:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
    return VsError("VS1042", Kind.INVALID, f"{where}: unknown {what} {name!r}; {hint}")


#: What a setting of a type is called.
_NAMES = {
    list[str]: "a list of strings",
    int: "a whole number of 0 or more",
    float: "a number of 0 or more",
    Path: "a path",
    str: "a string",
}


def _parse(raw: str, wanted: Any) -> object:
    """Text of the environment as the type `wanted`; ValueError if it is none."""
    return raw.split(",") if wanted == list[str] else wanted(raw)


def _checked(value: object, wanted: Any, where: str) -> Any:
    """The value as the type `wanted`; VsError names the place if it is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted == list[str]:
        good = isinstance(value, list) and all(isinstance(item, str) for item in value)
    elif wanted is int:
        good = is_number and isinstance(value, int) and value >= 0
    elif wanted is float:
        good = is_number and 0 <= float(value) < math.inf  # type: ignore[arg-type]
    else:
        good = isinstance(value, str | Path)
    if not good:
        raise VsError("VS1043", Kind.INVALID, f"{where}: {value!r} is not {_NAMES[wanted]}")
    return value if wanted == list[str] else wanted(value)


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
            body[key] = _checked(value, hints[key], f"{path} [{name}] {key}")
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
    prefix = f"VSWITCHD_{name}_".upper()
    variables = {f"{prefix}{key}".upper(): key for key in hints}
    for variable in sorted(environment):
        if not variable.startswith(prefix):
            continue
        if variable not in variables:
            raise _unknown("variable", variable, list(variables), "the environment")
        wanted = hints[variables[variable]]
        value: object = environment[variable]
        with contextlib.suppress(ValueError):
            value = _parse(environment[variable], wanted)
        values[variables[variable]] = _checked(value, wanted, variable)
    for key, wanted in hints.items():
        if flags.get(key) is not None:
            values[key] = _checked(flags[key], wanted, f"--{key.replace('_', '-')}")
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
