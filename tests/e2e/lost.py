"""What tests of lost SPs and failing devices share."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.cluster import MIB, Cluster
from tests.e2e.process import guarded, wait_for
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


@contextmanager
def failing_device(root: Path) -> Iterator[tuple[str, Path]]:
    """nbdkit on a file, with its URI, and a file while which is there every request fails."""
    sock, trigger, backing = root / "bad.sock", root / "bad.trigger", root / "bad.backing"
    with backing.open("wb") as file:
        file.truncate(256 * MIB)
    argv = ["nbdkit", "-f", "-U", str(sock), "--filter=error", "file", str(backing)]
    argv += ["error=EIO", "error-rate=100%", f"error-file={trigger}"]
    with subprocess.Popen(guarded(*argv)) as nbdkit:
        try:
            wait_for("nbdkit to listen", sock.exists)
            yield f"nbd+unix:///?socket={sock}", trigger
        finally:
            nbdkit.kill()
