"""Medians over the rounds, ratios to the reference, the table and the JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.peers import REFERENCE
from tests.bench.work import Figures, Work

#: By server, then by round; a round that failed is None.
Rounds = dict[str, list[Figures | None]]
HEAD = ("", "IOPS", "MB/s", "p50 us", "p99 us", "CPU us/IO", "own us/IO", "x IOPS", "x CPU")


@dataclass
class Results:
    """Everything that was measured, by workload."""

    works: dict[str, Rounds] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, work: Work, server: str, found: Figures | str) -> None:
        """One run, or why there is none; rounds come in their order."""
        if isinstance(found, str):
            self.failures.append(f"{work.key}: {server}: {found}")
        figures = None if isinstance(found, str) else found
        self.works.setdefault(work.key, {}).setdefault(server, []).append(figures)

    def others(self) -> float:
        """Cores that neither the servers nor the generator used, on average: above a tenth or
        two, somebody else was at work, and the figures are worth less."""
        runs = [
            run["other_cores"]
            for rounds in self.works.values()
            for figures in rounds.values()
            for run in figures
            if run
        ]
        return sum(runs) / len(runs) if runs else 0.0

    def ratio(self, key: str, server: str, to: str, figure: str) -> float | None:
        """The median of the ratios that two servers' figures had within each round."""
        rounds = self.works.get(key, {})
        pairs = zip(rounds.get(server, []), rounds.get(to, []), strict=False)
        ratios = [a[figure] / b[figure] for a, b in pairs if a and b and b[figure]]
        return median(ratios) if ratios else None

    def summary(self) -> Iterator[tuple[str, str, Figures | None]]:
        """Medians with ratios by workload and server; None for a server that never finished."""
        for key, rounds in self.works.items():
            for server, runs in rounds.items():
                yield key, server, _middle(runs, rounds.get(REFERENCE, []))


def _middle(runs: Sequence[Figures | None], reference: Sequence[Figures | None]) -> Figures | None:
    good = [run for run in runs if run]
    if not good:
        return None
    found = {name: median(run[name] for run in good) for name in good[0]}
    # Ratios within a round, then their median: a drift of the machine cancels out.
    pairs = [(a, b) for a, b in zip(runs, reference, strict=False) if a and b]
    for name, of in (("iops_ratio", "iops"), ("cpu_ratio", "server_cpu_us")):
        ratios = [a[of] / b[of] for a, b in pairs if b[of]]
        if ratios:
            found[name] = median(ratios)
    return found


def _row(server: str, figures: Figures | None) -> tuple[str, ...]:
    if figures is None:
        return (server, "failed", *("" for _ in HEAD[2:]))
    ratios = (figures.get(name) for name in ("iops_ratio", "cpu_ratio"))
    return (
        server,
        f"{figures['iops']:,.0f}",
        f"{figures['mb_s']:,.0f}",
        f"{figures['p50_us']:,.0f}",
        f"{figures['p99_us']:,.0f}",
        f"{figures['server_cpu_us']:.1f}",
        f"{figures['client_cpu_us']:.1f}",
        *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
    )


def table(results: Results) -> str:
    """All of it for people: one block for each workload."""
    blocks: dict[str, list[tuple[str, ...]]] = {}
    for key, server, figures in results.summary():
        blocks.setdefault(key, []).append(_row(server, figures))
    rows = [row for block in blocks.values() for row in block]
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    widths[0] = max([widths[0], *(len(key) for key in blocks)])
    lines = []
    for key, block in blocks.items():
        lines.append(_line((key, *HEAD[1:]), widths))
        lines.append("-" * len(lines[-1]))
        lines += [_line(row, widths) for row in block]
        lines.append("")
    lines += [f"missing: {name}: {why}" for name, why in results.missing.items()]
    lines += [f"failed: {failure}" for failure in results.failures]
    lines.append(f"x: to {REFERENCE} in the same round. own: the load generator's CPU time.")
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = cells
    padded = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
    return "  ".join([first.ljust(widths[0]), *padded]).rstrip()


@dataclass(frozen=True)
class Verdict:
    """One row of what is to be reached: a ratio against its bound. `found` None: not measured."""

    name: str
    bound: float
    found: float | None
    #: The bound is the most that it may be.
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """None if it was not measured."""
        if self.found is None:
            return None
        # As printed: a figure of two decimals is not missed by the third.
        found = round(self.found, 2)
        return found <= self.bound if self.at_most else found >= self.bound


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """The rows for people."""
    width = max(len(verdict.name) for verdict in verdicts)
    words = {True: "met", False: "missed", None: "not measured"}
    lines = [
        f"{verdict.name.ljust(width)}  {'<=' if verdict.at_most else '>='} {verdict.bound:5.2f}  "
        f"{'-' if verdict.found is None else f'{verdict.found:.2f}':>6}  {words[verdict.met]}"
        for verdict in verdicts
    ]
    return "\n".join(lines)


def filesystem(path: Path) -> str:
    """The type of the filesystem that holds `path`."""
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        mount, found = line.split()[1:3]
        if path.is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def machine(data: Path) -> dict[str, str]:
    """What it was measured on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory_gib": str(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30),
        "kernel": platform.release(),
        "filesystem": filesystem(data),
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def to_json(results: Results, verdicts: Sequence[Verdict], about: dict[str, Any]) -> str:
    """All of it for programs, every round included."""
    found = [
        {
            "workload": key,
            "server": server,
            "median": figures,
            "rounds": results.works[key][server],
        }
        for key, server, figures in results.summary()
    ]
    whole = {
        **about,
        "reference": REFERENCE,
        "targets": [asdict(verdict) for verdict in verdicts],
        "results": found,
        "missing": results.missing,
        "failures": results.failures,
    }
    return json.dumps(whole, indent=1) + "\n"
