"""Faults of many kinds, singly and in pairs, under hosts that write stamped blocks through all SPs.

A short part runs in the gate; `make soak` goes on for as long as it is told. The seed is printed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.faults import Trial
from tests.e2e.network import Network
from tests.e2e.process import ROOT, guarded

#: Of the gate; and, as `VSWITCHD_FAULTS` and `VSWITCHD_CUTS`, of a soak.
FAULTS = int(os.environ.get("VSWITCHD_FAULTS", "10"))
CUTS = int(os.environ.get("VSWITCHD_CUTS", "4"))
SEED = int(os.environ.get("VSWITCHD_SEED", "1"))


def run(cluster: Cluster, faults: int) -> None:
    """So many faults, one after the other."""
    print(f"seed {SEED}")
    with Trial(cluster, SEED) as trial:
        for _ in range(faults):
            since = trial.writes()
            trial.after(trial.faults.next(), since)
        trial.check_all()
    print(dict(sorted(trial.faults.counts.items())))


@pytest.mark.timeout(12000)
def test_no_fault_loses_or_mixes_up_data(cluster: Cluster) -> None:
    run(cluster, FAULTS)


@pytest.mark.timeout(12000)
def test_no_partition_does_either(tmp_path: Path) -> None:
    argv = ["unshare", "--net", sys.executable, "-m", "tests.e2e.test_faults", str(tmp_path)]
    done = subprocess.run(
        guarded(*argv), cwd=ROOT, capture_output=True, text=True, timeout=11000, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def main(root: Path) -> None:
    """Partitions, in a network namespace that is this process's own."""
    sps = ("sp-a", "sp-b", "sp-c")
    with Network("controller", *sps) as network:
        cluster = Cluster(root / "cluster", sps, network)
        try:
            with cluster:
                for sp in sps:
                    cluster.add_device(sp, f"{sp.removeprefix('sp-')}0")
                run(cluster, CUTS)
        except BaseException:
            print(cluster.logs(), file=sys.stderr)
            raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
