"""What tests of lost SPs and failing devices share."""

from __future__ import annotations

from tests.e2e.cluster import Cluster
from tests.e2e.process import wait_for
from vswitchd.rpc import common_pb2

#: Seconds until hosts must go on, on a machine that does other things too.
SOON = 20.0


def states(cluster: Cluster, name: str) -> list[str]:
    """The states of the legs of the root mirror, as the controller says."""
    root = cluster.volume(name).record.root
    return [
        common_pb2.LegState.Name(leg.state).removeprefix("LEG_STATE_").lower()
        for leg in root.mirror.legs
    ]


def in_sync(cluster: Cluster, name: str, legs: int) -> None:
    wait_for("all legs to be in sync", lambda: states(cluster, name) == ["in_sync"] * legs, 150.0)
    cluster.settled()
