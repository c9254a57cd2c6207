"""Thousands of seeds, each twice the same, and the proof that broken rules are seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.sim.__main__ import shrunk
from tests.sim.mutants import MUTANTS
from tests.sim.run import run
from tests.sim.scenario import scenario

#: Seeds of the gate, shared out between two processes; `make soak` goes on from there.
SEEDS = 2000
#: A broken rule must be seen within so many.
PATIENCE = 600
#: Where the search for those that are seldom seen begins: a seed that saw it once. If the scenarios
#: have changed since, it takes longer, and no more.
FIRST = {
    "a copy ends early": 18,
    "a fence does not wait": 128,
    "an owner reads without a lease": 53,
    "no resync of an owner": 128,
    "an owner's votes are not compared": 46,
    "the controller does not look for records": 140,
    "two legs lose one without the controller": 53,
    "an owner's tree before its records": 13,
    "the controller never learns": 13,
    "owners and the controller share epochs": 46,
}


def many(*argv: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    words = [sys.executable, "-W", "ignore", "-m", "tests.sim", *argv]
    return subprocess.Popen(
        words, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.timeout(1200)
def test_seeds() -> None:
    half = SEEDS // 2
    parts = [many("--first", str(first), "--count", str(half)) for first in (0, half)]
    counts: dict[str, int] = {}
    for part in parts:
        out, err = part.communicate()
        assert part.returncode == 0, err[-3000:]
        found = json.loads(out.splitlines()[-1])
        assert found["seeds"] == half
        for kind, count in found["counts"].items():
            counts[kind] = counts.get(kind, 0) + count
    print(json.dumps(counts, indent=1, sort_keys=True))
    # Every kind of fault was met, and work was done all the while.
    for kind in (
        "kill sp",
        "kill controller",
        "kill master",
        "message stopped by a partition",
        "request lost",
        "answer lost",
        "request repeated",
        "store full",
        "controller dies before a store write",
        "controller dies after a store write",
        "SP's file write: before",
        "SP's file write: after",
        "SP's file write: fail",
        "operation paused, resumed, cancelled or throttled",
        "host's connection ended",
        "drain",
        "operation undone",
        "left behind by an owner",
        "left behind by an owner beside a controller",
        "learnt by the controller",
    ):
        assert counts.get(kind, 0) >= 10, kind
    assert counts["operation done"] > SEEDS and counts["write answered"] > 50 * SEEDS


def test_a_seed_is_the_same_run_each_time() -> None:
    texts = []
    for _ in range(2):
        out, _ = many("--seed", "17", "--noisy").communicate()
        texts.append(out)
    assert texts[0] == texts[1] and len(texts[0].splitlines()) > 20


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_seen(name: str) -> None:
    where = ("--first", str(FIRST.get(name, 0)), "--count", str(PATIENCE), "--first-failure")
    out, err = many("--mutant", name, *where).communicate()
    assert json.loads(out.splitlines()[-1])["failed"], err[-2000:]


def test_a_failure_is_shrunk() -> None:
    with MUTANTS["a fence is forgotten"]():
        seed = next(seed for seed in range(PATIENCE) if run(seed).breaches)
        whole = scenario(seed)
        small = shrunk(seed, whole)
        assert run(seed, small).breaches
    assert 0 < len(small.actions) <= 3 and len(small.actions) <= len(whole.actions)
