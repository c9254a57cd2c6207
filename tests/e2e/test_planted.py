"""Whether the tests would find a bug: each of these is planted in an engine built for that, and
something that the gate runs must fail. Without any, the same passes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.faults import Trial
from tests.e2e.nbd import NbdError
from tests.e2e.process import ROOT

#: Seconds until hosts must go on in a trial: what a bug holds up for good is found after these.
PATIENCE = 20.0
#: How often the faults of a bug happen before it counts as not found: what a single fault meets is
#: a matter of chance, and the first finding ends the trial.
ROUNDS = 4
#: Bugs that the engine's tests look for at the same time.
AT_ONCE = 3
ENGINE = ROOT / "engine"
TARGET = ENGINE / "target" / "planted"

#: Bugs by name, with the faults under which the fault harness must find them.
FOUND_BY_FAULTS = {
    "": ("another SP is killed", "a device fails", "the power fails"),
    "copy_from_itself": ("an SP is away for long",),
    "copy_of_zeroes": ("an SP is away for long",),
    "copy_skips_regions": ("an SP is away for long",),
    "delta_finds_nothing": ("an SP is away for long",),
    "failed_write_acknowledged": ("a device fails",),
    "flush_skipped": ("the power fails",),
    "flush_skips_a_leg": ("the power fails",),
    "fua_ignored": ("the power fails",),
    "half_a_write": (),
    "leg_off_by_a_block": (),
    "read_off_by_a_block": (),
    "remote_leg_skipped": (),
}
#: Bugs that the engine's own tests must find, by file of its server's, or of "io"'s.
FOUND_BY_ENGINE = {
    "checksum_closed_unflushed": "io/checksums",
    "checksum_not_verified": "checksums",
    "checksum_open_trusted": "checksums",
    "checksum_page_not_opened": "checksums",
    "comparison_is_blind": "compare",
    "copy_without_record": "reserve",
    "failing_leg_not_told": "legs",
    "fence_without_compare": "peers",
    "initiator_not_asked": "again_iscsi",
    "last_words_obeyed": "again",
    "late_write_taken": "again",
    "lock_not_held": "order",
    "map_cleared_while_away": "maps",
    "map_not_set": "maps",
    "no_fence": "peers",
    "no_lease": "maps",
    "not_healed": "legs",
    "not_sent_again": "again",
    "parked_forgotten": "cluster",
    "power_loss_ignored": "maps",
    "read_not_tried_elsewhere": "legs",
    "reads_beside_writes": "reads",
    "reservation_not_kept": "reserve",
    "resync_not_awaited": "maps",
    "resync_skipped": "maps",
    "slow_leg_waited_for": "legs",
    "views_not_waited_for": "reserve",
}


def cargo(*argv: str, bug: str = "", crate: str = "") -> subprocess.CompletedProcess[str]:
    """Runs cargo with the bugs compiled in, for all crates or one."""
    return subprocess.run(
        [
            "cargo",
            *argv,
            "--profile",
            "planted",
            "--features",
            "planted",
            "--target-dir",
            str(TARGET),
        ],
        cwd=ENGINE / crate,
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
    shutil.copy(TARGET / "planted" / "lib_engine.so", root / "vswitchd" / "_engine.abi3.so")
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
        for fault in FOUND_BY_FAULTS[bug] * (ROUNDS if bug else 1):
            since = running.writes()
            running.faults.happen(fault)
            running.after(fault, since)
        running.check_all()


@pytest.mark.timeout(300)
def test_the_fault_harness_finds_nothing_where_nothing_is_wrong(code: Path, tmp_path: Path) -> None:
    with planted(code, tmp_path / "cluster", "") as cluster:
        trial(cluster, "")


def found_by_faults(code: Path, root: Path, bug: str) -> str:
    """What the harness says of a bug; empty if it finds nothing."""
    with planted(code, root / bug, bug) as cluster:
        try:
            trial(cluster, bug)
        except (AssertionError, RuntimeError, NbdError) as error:
            return str(error).splitlines()[0][:200]
    return ""


@pytest.fixture(scope="module")
def by_faults(
    code: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[str]]]:
    """What the harness finds, two bugs at a time."""
    root = tmp_path_factory.mktemp("trials")
    with ThreadPoolExecutor(2) as pool:
        bugs = [bug for bug in FOUND_BY_FAULTS if bug]
        yield {bug: pool.submit(found_by_faults, code, root, bug) for bug in bugs}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", [bug for bug in FOUND_BY_FAULTS if bug])
def test_the_fault_harness_finds_what_is_wrong(by_faults: dict[str, Future[str]], bug: str) -> None:
    found = by_faults[bug].result()
    assert found, f"{bug} was not found"
    print(f"{bug}: {found}")


def place_of(test: str) -> tuple[str, str]:
    """The crate of a test file, and its name there."""
    crate, _, file = test.rpartition("/")
    return crate or "server", file


@pytest.fixture(scope="module")
def by_engine() -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """What the engine's tests say of each bug, a few at a time: most of it is waiting."""
    where = {bug: place_of(file) for bug, file in FOUND_BY_ENGINE.items()}
    for crate in sorted({crate for crate, _ in where.values()}):
        files = sorted({file for one, file in where.values() if one == crate})
        tests = [part for file in files for part in ("--test", file)]
        built = cargo("test", "--no-run", *tests, crate=crate)
        assert built.returncode == 0, built.stderr
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            bug: pool.submit(cargo, "test", "--test", file, bug=bug, crate=crate)
            for bug, (crate, file) in where.items()
        }


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", FOUND_BY_ENGINE)
def test_the_engines_tests_find_what_is_wrong(
    by_engine: dict[str, Future[subprocess.CompletedProcess[str]]], bug: str
) -> None:
    ran = by_engine[bug].result()
    assert "test result: FAILED" in ran.stdout, ran.stdout + ran.stderr
    # Not all of it: the bug breaks what it is about, not the build or the rig.
    print(bug, [line for line in ran.stdout.splitlines() if line.endswith("FAILED")])
