"""What tests of lost SPs and failing devices share."""

from __future__ import annotations

import uuid

import grpc

from tests.e2e.cluster import Cluster
from tests.e2e.process import wait_for
from vswitchd.rpc import common_pb2, volume_pb2

#: Seconds until hosts must go on, on a machine that does other things too.
SOON = 20.0


def states(cluster: Cluster, name: str) -> list[str]:
    """The states of the legs of the root mirror, as the controller says."""
    root = cluster.volume(name).record.root
    return [
        common_pb2.LegState.Name(leg.state).removeprefix("LEG_STATE_").lower()
        for leg in root.mirror.legs
    ]


def alike(cluster: Cluster, name: str, seconds: float = 60.0) -> None:
    """Holds the legs against each other; RuntimeError says where they differ."""
    begun: list[str] = []

    def compared() -> bool:
        if not begun:
            request = volume_pb2.VerifyMirrorRequest(request_id=str(uuid.uuid4()), name=name)
            try:
                begun.append(cluster.api.volumes.VerifyMirror(request, timeout=30).operation_id)
            except grpc.RpcError:
                return False  # somebody is changing it
        found = cluster.operation(begun[0])
        if not found.HasField("ended"):
            return False
        begun.clear()
        if found.report and found.report != "the legs are alike":
            raise RuntimeError(f"{name}: {found.report}")
        return bool(found.report)

    wait_for(f"the legs of {name} to be compared", compared, seconds)


def in_sync(cluster: Cluster, name: str, legs: int, seconds: float = 150.0) -> None:
    wait_for("all legs to be in sync", lambda: states(cluster, name) == ["in_sync"] * legs, seconds)
    cluster.settled()
