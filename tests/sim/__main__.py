"""`python -m tests.sim`: many seeds, or one that is shown; what fails is shrunk."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

from tests.sim.mutants import MUTANTS
from tests.sim.run import Outcome, run
from tests.sim.scenario import Scenario, scenario


def shrunk(seed: int, what: Scenario) -> Scenario:
    """As few of the scenario's actions as still fail, leaving them out in ever smaller runs."""
    size = max(1, len(what.actions) // 2)
    while True:
        start = 0
        while start < len(what.actions):
            less = replace(what, actions=what.actions[:start] + what.actions[start + size :])
            if run(seed, less).breaches:
                what = less
            else:
                start += size
        if size == 1:
            return what
        size //= 2


def show(outcome: Outcome, what: Scenario) -> None:
    """What a failed run was, in words that can be read and repeated."""
    print(f"seed {outcome.seed} fails:")
    for breach in outcome.breaches:
        print(f"  {breach}")
    print(f"  volumes {what.volumes}\n  devices {what.devices}")
    for action in what.actions:
        print(f"  {action}")
    print(f"repeat it: python -m tests.sim --seed {outcome.seed}")


def _many(first: int, count: int, seconds: float, *, first_failure: bool) -> int:
    counts: Counter[str] = Counter()
    failed: list[int] = []
    begun = time.monotonic()
    done = 0
    for seed in range(first, first + count):
        if seconds and time.monotonic() - begun > seconds:
            break
        outcome = run(seed)
        counts += outcome.counts
        done += 1
        if outcome.breaches:
            failed.append(seed)
            print(f"seed {seed}: {outcome.breaches[0]}", file=sys.stderr, flush=True)
            if first_failure:
                break
    print(json.dumps({"seeds": done, "failed": failed, "counts": counts}))
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one, shrink it if it fails")
    parser.add_argument("--noisy", action="store_true", help="with every log line")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first-failure", action="store_true", help="stop there")
    parser.add_argument("--mutant", choices=MUTANTS, help="with this rule broken")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long")
    args = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets must not differ between two runs of a seed.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        return subprocess.call([sys.executable, "-m", "tests.sim", *sys.argv[1:]], env=environment)
    with MUTANTS[args.mutant]() if args.mutant else contextlib.nullcontext():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    if args.seed is None:
        return _many(args.first, args.count, args.seconds, first_failure=args.first_failure)
    outcome = run(args.seed, noisy=args.noisy)
    if not outcome.breaches:
        print(f"seed {args.seed} is well: {dict(outcome.counts)}")
        return 0
    what = shrunk(args.seed, scenario(args.seed))
    show(run(args.seed, what), what)
    return 1


if __name__ == "__main__":
    sys.exit(main())
