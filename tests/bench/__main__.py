"""`python -m tests.bench`: starts everything, measures in interleaved rounds, prints a table."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench import fio, growth, idle, ours, peers, report, tgt
from tests.bench.targets import verdicts
from tests.bench.work import (
    COMPARED,
    FRONT_GETS,
    LAYOUTS,
    OVER_ISCSI,
    PEERS_GET,
    SUMMED_GETS,
    Figures,
    Load,
    Target,
    Work,
    build,
)
from tests.e2e.cluster import MIB, Cluster


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, help="rounds; the median counts (default 3)")
    parser.add_argument("--seconds", type=float, help="measured, per run (default 0.5)")
    parser.add_argument("--warmup", type=float, default=0.15, help="seconds before that")
    parser.add_argument("--span", type=int, default=64, metavar="MIB", help="size of each export")
    parser.add_argument("--only", metavar="TEXT", default="", help="workloads whose name has it")
    parser.add_argument(
        "--server", metavar="NAME", action="append", default=[], help="these alone; may be repeated"
    )
    parser.add_argument("--peers-only", action="store_true", help="without vswitchd")
    parser.add_argument("--growth", action="store_true", help="how cost grows, and nothing else")
    parser.add_argument("--largest", type=int, default=100_000, help="of what grows")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write the growth as SVG there")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on a disk, not tmpfs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.4 if options.quick else 0.5)
    return options


def _start(
    options: argparse.Namespace, root: Path, ends: ExitStack
) -> tuple[list[Target], list[Target], dict[str, str]]:
    """Ours and the peers that all workloads are for; our other layouts; what is missing."""
    size = options.span * MIB
    missing: dict[str, str] = {}
    found: list[Target] = []
    for peer in peers.PEERS:
        try:
            peers.check(peer)
            found.append(peers.start(peer, root, size, ends))
        except (OSError, AssertionError, subprocess.SubprocessError) as error:
            missing[peer.name] = str(error)
    try:
        found.append(tgt.start(root, size, ends))
    except (OSError, AssertionError, subprocess.SubprocessError) as error:
        missing[tgt.NAME] = str(error)
    if options.peers_only:
        return found, [], missing
    cluster = ends.enter_context(Cluster(root / "cluster"))
    ours.add_devices(cluster, size)
    plain, *layouts = (ours.create(cluster, shape, size) for shape in (*ours.SHAPES, ours.SUMMED))
    other = ends.enter_context(ours.without_map(root / "without-map"))
    ours.add_devices(other, size)
    layouts.append(ours.create(other, ours.NO_MAP, size))
    return [plain, *found], layouts, missing


def _targets(work: Work, compared: list[Target], layouts: list[Target]) -> list[Target]:
    """Who gets a workload: our plain volume and the reference all of them."""
    if work.iscsi:
        return [target for target in compared if target.name in (ours.PLAIN, tgt.NAME)]
    always = (ours.PLAIN, peers.REFERENCE)
    compared = [target for target in compared if target.name != tgt.NAME]
    found = [
        target
        for target in compared
        if target.name in always
        or work in (FRONT_GETS if target.name == peers.FRONT else PEERS_GET)
    ]
    if work in SUMMED_GETS and work not in LAYOUTS:
        found += [target for target in layouts if target.name == ours.SUMMED.name]
    return [*found, *layouts] if work in LAYOUTS else found


def _cross_check(options: argparse.Namespace, both: list[Target], results: report.Results) -> None:
    """fio over our plain volume and the reference."""
    try:
        fio.check()
    except OSError as error:
        results.missing["fio"] = str(error)
        return
    span = options.span * MIB
    for work in fio.WORKS:
        for target in both:
            found: Figures | str
            try:
                found = fio.measure(target, work, span, max(options.seconds, 1.0))
            except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                found = str(error)
            results.add(work, target.name, found)


def _measure(load: Load, work: Work, target: Target, everybody: list[Target]) -> Figures | str:
    """One run, or why there is none."""
    try:
        load.prepare(target, work, everybody)
        return load.measure(target, work)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 if a run failed."""
    options = _options(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    results = report.Results()
    with ExitStack() as ends:
        root = Path(ends.enter_context(tempfile.TemporaryDirectory("", "vs-", options.dir)))
        about: dict[str, Any] = {"machine": report.machine(root)}
        if about["machine"]["filesystem"] == "tmpfs":
            print(f"{options.dir} is on tmpfs: nothing will reach a disk", file=sys.stderr)
        load = Load(build(root), options.span * MIB, options.seconds, options.warmup)
        if options.growth:
            found = growth.measure(load, root, options.largest)
            print(growth.table(found))
            if options.plots:
                growth.write(found, options.plots)
            return 0
        compared, layouts, results.missing = _start(options, root, ends)
        everybody = [*compared, *layouts]
        for target in everybody:
            load.fill(target)
        works = [work for work in [*COMPARED, *OVER_ISCSI] if options.only in work.key]
        print(f"set up in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        for number in range(options.rounds):
            for work in works:
                targets = _targets(work, compared, layouts)
                targets = [one for one in targets if one.name in (options.server or [one.name])]
                if not targets:
                    continue
                # Nobody always follows the same neighbour.
                turn = number * 2 % len(targets)
                for target in targets[turn:] + targets[:turn]:
                    results.add(work, target.name, _measure(load, work, target, everybody))
            if options.only in "fio":
                both = [one for one in compared if one.name in (ours.PLAIN, peers.REFERENCE)]
                _cross_check(options, both, results)
            spent = time.monotonic() - began
            now = f"{spent:.0f} s, the machine otherwise busy with {results.others():.2f} cores"
            print(
                f"round {number + 1} of {options.rounds} after {now}", file=sys.stderr, flush=True
            )
        if not options.peers_only and not options.only:
            rest = str(idle.measure(root / "idle"))
            about["idle"] = rest
    print("machine:", ", ".join(f"{key} {value}" for key, value in about["machine"].items()))
    about["other_cores"] = round(results.others(), 3)
    print(f"other processes used {results.others():.2f} cores meanwhile")
    print(f"{options.rounds} rounds of {options.seconds:g} s over {options.span} MiB each\n")
    print(report.table(results))
    judged = list(verdicts(results))
    if not options.peers_only:
        print(f"\nwhat is to be reached:\n{report.verdict_table(judged)}")
        print(about.get("idle", ""))
    if options.json:
        about["options"] = {key: str(value) for key, value in vars(options).items()}
        options.json.write_text(report.to_json(results, judged, about))
    return 1 if results.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
