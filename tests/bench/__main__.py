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

from tests.bench import ours, peers, report
from tests.bench.work import COMPARED, LAYOUTS, Figures, Load, Target, Work, build
from tests.e2e.cluster import MIB, Cluster


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, help="rounds; the median counts (default 3)")
    parser.add_argument("--seconds", type=float, help="measured, per run (default 0.6)")
    parser.add_argument("--warmup", type=float, default=0.15, help="seconds before that")
    parser.add_argument("--span", type=int, default=64, metavar="MIB", help="size of each export")
    parser.add_argument("--only", metavar="TEXT", default="", help="workloads whose name has it")
    parser.add_argument("--peers-only", action="store_true", help="without vswitchd")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on a disk, not tmpfs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.4 if options.quick else 0.6)
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
    if options.peers_only:
        return found, [], missing
    cluster = ends.enter_context(Cluster(root / "cluster"))
    ours.add_devices(cluster, size)
    plain, *layouts = (ours.create(cluster, shape, size) for shape in ours.SHAPES)
    return [plain, *found], layouts, missing


def _targets(work: Work, compared: list[Target], layouts: list[Target]) -> list[Target]:
    return [*compared, *layouts] if work in LAYOUTS else compared


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
        compared, layouts, results.missing = _start(options, root, ends)
        everybody = [*compared, *layouts]
        for target in everybody:
            load.fill(target)
        works = [work for work in COMPARED if options.only in work.key]
        print(f"set up in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        for number in range(options.rounds):
            for work in works:
                targets = _targets(work, compared, layouts)
                # Nobody always follows the same neighbour.
                turn = number * 2 % len(targets)
                for target in targets[turn:] + targets[:turn]:
                    results.add(work, target.name, _measure(load, work, target, everybody))
            spent = time.monotonic() - began
            now = f"{spent:.0f} s, the machine otherwise busy with {results.others():.2f} cores"
            print(
                f"round {number + 1} of {options.rounds} after {now}", file=sys.stderr, flush=True
            )
    print("machine:", ", ".join(f"{key} {value}" for key, value in about["machine"].items()))
    about["other_cores"] = round(results.others(), 3)
    print(f"other processes used {results.others():.2f} cores meanwhile")
    print(f"{options.rounds} rounds of {options.seconds:g} s over {options.span} MiB each\n")
    print(report.table(results))
    if options.json:
        about["options"] = {key: str(value) for key, value in vars(options).items()}
        options.json.write_text(report.to_json(results, about))
    return 1 if results.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
