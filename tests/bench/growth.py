"""How cost grows: with volumes, connections, the width and depth of a tree, and the extents of a
T1 object. Trees and extents are given to an engine in this process: a control plane would add
nothing to the path of a request."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import idle
from tests.bench.plot import Line, chart
from tests.bench.work import Load, Target, Work
from tests.e2e.cluster import MIB, Cluster
from tests.e2e.process import wait_for
from vswitchd._engine import Engine

READ = Work("4k read qd32", "rr")
LABEL = 4 * MIB


@dataclass
class Growth:
    """One row of points for each thing that grows: (how much, IOPS, CPU us per I/O)."""

    name: str
    across: str
    points: list[tuple[int, float, float]] = field(default_factory=list)
    note: str = ""


class _Sp:
    """An engine with one file device, and nothing else around it."""

    def __init__(self, root: Path, size: int) -> None:
        root.mkdir(parents=True)
        self.file = root / "disk"
        config = {"cluster_id": "c", "sp": "sp-a", "incarnation": "i", "loops": 2}
        self.engine = Engine(json.dumps(config))
        self.socket = self.engine.listen_nbd(f"unix:{root / 'socket'}").removeprefix("unix:")
        self.engine.device_add(f"file:{self.file}", LABEL + size, "d", False, False)

    def put(self, t1: str, extents: Sequence[tuple[int, int]]) -> None:
        """A T1 object on these (offset, length) runs of the device's data."""
        runs = [
            {"device": "d", "offset": LABEL + offset, "length": length}
            for offset, length in extents
        ]
        size = sum(length for _, length in extents)
        spec = {"id": t1, "volume": "v", "size": size, "extents": runs, "home": "sp-a"}
        self.engine.t1_put(json.dumps(spec), 1)

    def serve(self, name: str, root: dict[str, Any], t1s: Sequence[str]) -> Target:
        """A volume of that tree."""
        spec = {
            "volume": f"v-{name}",
            "name": name,
            "size": root["size"],
            "version": 1,
            "epoch": 1,
            "sp": "sp-a",
            "owner": "sp-a",
            "root": {key: value for key, value in root.items() if not _implied(root, key)},
            "homes": dict.fromkeys(t1s, "sp-a"),
            "peers": {},
        }
        self.engine.t2_activate(json.dumps(spec), False, 30.0)
        return Target(name, self.socket, "", name, (), (self.file,))

    def end(self) -> None:
        """Ends the threads."""
        self.engine.shutdown(10.0)


def _implied(node: dict[str, Any], key: str) -> bool:
    return key == "size" and node["kind"] not in ("leaf", "hole")


def leaf(t1: str, size: int) -> dict[str, Any]:
    """A leaf of a tree."""
    return {"kind": "leaf", "t1": t1, "size": size}


@contextmanager
def _sp(root: Path, size: int) -> Iterator[_Sp]:
    sp = _Sp(root, size)
    try:
        yield sp
    finally:
        sp.end()


def _measure(load: Load, target: Target) -> tuple[float, float]:
    """IOPS and CPU of the server per I/O, once all is cached; the best of three short runs, since
    it is the cost that grows and not the machine's moods that is looked for."""
    load.fill(target)
    load.measure(target, READ)
    found = [load.measure(target, READ) for _ in range(3)]
    best = max(found, key=lambda figures: figures["iops"])
    return best["iops"], best["server_cpu_us"]


def volumes(load: Load, root: Path, counts: Sequence[int]) -> tuple[Growth, Growth]:
    """A cluster's SP with that many volumes; and how long it takes to serve them all again."""
    grown = Growth("Volumes on one SP", "volumes")
    start = Growth("Start of an SP until all volumes are served, seconds", "volumes")
    with Cluster(root) as cluster:
        cluster.add_device("sp-a", "disk", (max(counts) + 64) * 2 * MIB)
        idle.create(cluster, "loaded", "sp-a/disk", load.span)
        made = 1
        for count in counts:
            for number in range(made, count):
                idle.create(cluster, f"v{number}", "sp-a/disk", MIB)
            made = max(made, count)
            sp = cluster.sps["sp-a"]
            target = Target("loaded", str(cluster.root / "sp-a.sock"), "", "loaded", (sp.pid,), ())
            grown.points.append((count, *_measure(load, target)))
            sp.stop()
            begun = time.monotonic()
            sp.start()
            wait_for(
                f"{count} volumes to be served",
                lambda count=count: len(cluster.view("sp-a").t2s) == count,  # type: ignore[misc]
                120,
            )
            start.points.append((count, time.monotonic() - begun, 0.0))
    return grown, start


def connections(load: Load, root: Path, counts: Sequence[int]) -> Growth:
    """That many connections to one volume, 32 requests on each."""
    grown = Growth("Connections to one volume", "connections")
    with _sp(root, load.span) as sp:
        sp.put("t", [(0, load.span)])
        target = sp.serve("loaded", leaf("t", load.span), ["t"])
        _measure(load, target)
        for count in counts:
            many = Work("4k read qd32", "rr", conns=count)
            best = max((load.measure(target, many) for _ in range(3)), key=lambda f: f["iops"])
            grown.points.append((count, best["iops"], best["client_cpu_us"]))
    return grown


def _trees(load: Load, root: Path, grown: Growth, shapes: Sequence[tuple[int, Any]]) -> Growth:
    """A volume for each shape, on leaves of equal size within one device."""
    for count, shape in shapes:
        with _sp(
            root / f"{grown.across.split()[0]}-{count}", max(load.span, count * MIB) * 2
        ) as sp:
            size = max(load.span // count // MIB, 1) * MIB
            names: list[str] = []

            def fresh(size: int = size, names: list[str] = names, sp: _Sp = sp) -> dict[str, Any]:
                name = f"t{len(names)}"
                sp.put(name, [(len(names) * size, size)])
                names.append(name)
                return leaf(name, size)

            tree = shape(count, fresh)
            target = sp.serve("loaded", tree, names)
            grown.points.append((count, *_measure(load, target)))
    return grown


Fresh = Callable[[], dict[str, Any]]


def stripe(count: int, fresh: Fresh) -> dict[str, Any]:
    """So many columns."""
    columns = [fresh() for _ in range(count)]
    size = columns[0]["size"] * count
    return {"kind": "stripe", "chunk": 65536, "columns": columns, "size": size}


def mirror(count: int, fresh: Fresh) -> dict[str, Any]:
    """So many legs."""
    nodes = [fresh() for _ in range(count)]
    legs = [{"state": "in_sync", "node": node} for node in nodes]
    return {"kind": "mirror", "legs": legs, "size": nodes[0]["size"]}


def concat(count: int, fresh: Fresh) -> dict[str, Any]:
    """So many parts."""
    parts = [fresh() for _ in range(count)]
    return {"kind": "concat", "parts": parts, "size": parts[0]["size"] * count}


def nested(count: int, fresh: Fresh) -> dict[str, Any]:
    """So many levels: each a concat of a leaf and the rest."""
    node = fresh()
    for _ in range(count - 1):
        part = fresh()
        size = part["size"] + node["size"]
        inner = {key: value for key, value in node.items() if not _implied(node, key)}
        node = {"kind": "concat", "parts": [part, inner], "size": size}
    return node


def extents(load: Load, root: Path, counts: Sequence[int]) -> Growth:
    """One T1 object of that many runs, no two of them neighbours; requests go to the last."""
    grown = Growth("Extents of one T1 object", "extents")
    for count in counts:
        with _sp(root / f"extents-{count}", (2 * count + 2) * MIB) as sp:
            try:
                sp.put("t", [(number * 2 * MIB, MIB) for number in range(count)])
            except Exception as error:
                grown.note = f"{count} extents: {error}"
                break
            target = sp.serve("loaded", leaf("t", count * MIB), ["t"])
            grown.points.append((count, *_measure(load, target)))
    return grown


def measure(load: Load, root: Path, largest: int) -> list[Growth]:
    """All of it; counts up to `largest` only, for a quick look."""

    def some(*counts: int) -> list[int]:
        return [count for count in counts if count <= largest]

    wide = some(1, 2, 4, 8, 16, 32, 64)
    found = [connections(load, root / "connections", some(1, 2, 4, 8, 16, 32, 64, 128, 256))]
    for name, shape, counts in (
        ("Columns of a stripe", stripe, wide[1:]),
        ("Legs of a mirror", mirror, wide[1:]),
        ("Parts of a concat", concat, wide[1:]),
        ("Depth of a tree", nested, some(1, 2, 4, 8)),
    ):
        grown = Growth(name, name.split()[0].lower())
        found.append(_trees(load, root / grown.across, grown, [(n, shape) for n in counts]))
    found.append(extents(load, root / "extents", some(1, 10, 100, 1000, 10_000, 100_000)))
    found += volumes(load, root / "volumes", some(1, 10, 100, 1000))
    return found


def table(grown: Sequence[Growth]) -> str:
    """Markdown."""
    lines = []
    for one in grown:
        lines += [f"**{one.name}**", "", "| " + " | ".join([one.across, *_counts(one)]) + " |"]
        lines.append("|" + "---|" * (len(one.points) + 1))
        unit = "seconds" if one.name.startswith("Start") else "IOPS"
        shown = [f"{y:.2f}" if unit == "seconds" else f"{y:,.0f}" for _, y, _ in one.points]
        lines.append("| " + " | ".join([unit, *shown]) + " |")
        if one.note:
            lines += ["", one.note]
        lines.append("")
    return "\n".join(lines)


def _counts(one: Growth) -> list[str]:
    return [f"{count:,}" for count, _, _ in one.points]


def write(grown: Sequence[Growth], directory: Path) -> None:
    """A plot for each, as `<what grows>.svg`."""
    directory.mkdir(parents=True, exist_ok=True)
    for one in grown:
        if not one.points:
            continue
        seconds = one.name.startswith("Start")
        name = "start" if seconds else one.across.split()[0]
        up = "seconds" if seconds else "IOPS, 4k random reads"
        line = Line("vswitchd", [(x, y) for x, y, _ in one.points])
        (directory / f"{name}.svg").write_text(chart(one.name, one.across, up, [line]))
