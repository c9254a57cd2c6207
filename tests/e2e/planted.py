"""Whether the tests would find a bug: each of these is planted in an engine built for that, and
something that the gate runs must fail. Without any, the same passes. `make planted` runs it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.faults import Trial
from tests.e2e.nbd import NbdError
from tests.e2e.process import ROOT

#: Seconds until hosts must go on in a trial: what a bug holds up for good is found after these.
PATIENCE = 20.0
ENGINE = ROOT / "engine"
TARGET = ENGINE / "target" / "planted"

#: Bugs by name, with the faults under which the fault harness must find them.
FOUND_BY_FAULTS = {
    "": ("another SP is killed", "a device fails", "the power fails"),
    "copy_from_itself": ("another SP is killed",),
    "copy_of_zeroes": ("another SP is killed",),
    "copy_skips_regions": ("another SP is killed",),
    "delta_finds_nothing": ("another SP is killed",),
    "failed_write_acknowledged": ("a device fails",),
    "flush_skipped": ("the power fails",),
    "flush_skips_a_leg": ("the power fails",),
    "fua_ignored": ("the power fails",),
    "half_a_write": (),
    "leg_off_by_a_block": (),
    "map_cleared_while_away": ("an SP is away for long",),
    "map_not_set": ("another SP is killed",),
    "not_sent_again": ("all SPs are killed", "all SPs are killed"),
    "parked_forgotten": ("the owner is moved",) * 4,
    "read_not_tried_elsewhere": ("a device can't be read",),
    "read_off_by_a_block": (),
    "remote_leg_skipped": (),
}
#: Bugs that the engine's own tests must find, by file.
FOUND_BY_ENGINE = {
    "comparison_is_blind": "compare",
    "failing_leg_not_told": "legs",
    "lock_not_held": "copies",
    "no_fence": "peers",
    "no_lease": "maps",
    "not_healed": "legs",
    "resync_skipped": "maps",
    "slow_leg_waited_for": "legs",
}


def cargo(*argv: str, bug: str = "") -> subprocess.CompletedProcess[str]:
    """Runs cargo with the bugs compiled in."""
    return subprocess.run(
        ["cargo", *argv, "--release", "--features", "planted", "--target-dir", str(TARGET)],
        cwd=ENGINE / "server" if argv[0] == "test" else ENGINE,
        env={**os.environ, "VSWITCHD_PLANTED": bug},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tree of the product whose engine has the bugs."""
    built = cargo("build", "-p", "vs-py")
    assert built.returncode == 0, built.stderr
    root = tmp_path_factory.mktemp("planted")
    skip = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "vswitchd", root / "vswitchd", ignore=skip)
    shutil.copy(TARGET / "release" / "lib_engine.so", root / "vswitchd" / "_engine.abi3.so")
    yield root


def planted(code: Path, root: Path, bug: str) -> Cluster:
    """A cluster of SPs with that bug."""
    config = root / "vswitchd.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("[processor]\nmap_clear_seconds = 0.5\n")
    cluster = Cluster(root)
    for daemon in cluster.sps.values():
        daemon.code = code
        daemon.environment = {"VSWITCHD_PLANTED": bug}
        daemon.argv += ["--config", str(config)]
    return cluster


def trial(cluster: Cluster, bug: str) -> None:
    """Fails if the harness finds anything wrong."""
    for sp in cluster.sps:
        cluster.add_device(sp, f"{sp.removeprefix('sp-')}0")
    with Trial(cluster, 1, PATIENCE) as running:
        for stamper in running.stampers["power"]:
            # A flush of a device covers what was written with FUA, and the other way round.
            if bug.startswith("flush"):
                stamper.fua, stamper.flushes = 0.0, 0.05
            if bug.startswith("fua"):
                stamper.flushes = 0.0
        running.after("the beginning", running.writes())
        for fault in FOUND_BY_FAULTS[bug]:
            since = running.writes()
            running.faults.happen(fault)
            running.after(fault, since)
        running.check_all()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", FOUND_BY_FAULTS)
def test_the_fault_harness_finds_what_is_wrong(code: Path, tmp_path: Path, bug: str) -> None:
    with planted(code, tmp_path / "cluster", bug) as cluster:
        if not bug:
            trial(cluster, bug)
            return
        with pytest.raises((AssertionError, RuntimeError, NbdError)) as found:
            trial(cluster, bug)
        print(f"{bug}: {str(found.value).splitlines()[0][:200]}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", FOUND_BY_ENGINE)
def test_the_engines_tests_find_what_is_wrong(bug: str) -> None:
    ran = cargo("test", "--test", FOUND_BY_ENGINE[bug], bug=bug)
    assert "test result: FAILED" in ran.stdout, ran.stdout + ran.stderr
    # Not all of it: the bug breaks what it is about, not the build or the rig.
    print(bug, [line for line in ran.stdout.splitlines() if line.endswith("FAILED")])
