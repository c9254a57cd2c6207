"""Faults of many kinds, singly and in pairs, under hosts that write stamped blocks through all SPs.

A short part runs in the gate; `make soak` goes on for as long as it is told. The seed is printed.
"""

from __future__ import annotations

import os

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.faults import Trial

#: Of the gate; and, as `VSWITCHD_FAULTS`, of a soak.
FAULTS = int(os.environ.get("VSWITCHD_FAULTS", "29"))
SEED = int(os.environ.get("VSWITCHD_SEED", "1"))


@pytest.mark.timeout(12000)
def test_no_fault_loses_or_mixes_up_data(cluster: Cluster) -> None:
    print(f"seed {SEED}")
    with Trial(cluster, SEED) as trial:
        for _ in range(FAULTS):
            since = trial.writes()
            trial.after(trial.faults.next(), since)
        trial.check_all()
    print(dict(sorted(trial.faults.counts.items())))
