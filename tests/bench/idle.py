"""What volumes and connections cost that nobody uses."""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.e2e import nbd
from tests.e2e.cluster import MIB, Cluster
from tests.e2e.process import wait_for
from vswitchd.rpc import operation_pb2, volume_pb2

COUNT = 100
SECONDS = 3.0
ENDED = (operation_pb2.OPERATION_STATE_DONE, operation_pb2.OPERATION_STATE_FAILED)


@dataclass(frozen=True)
class Idle:
    """Cores of the SP before and with them all; bytes for each volume and connection."""

    cores_before: float
    cores: float
    volume_bytes: float
    connection_bytes: float

    def __str__(self) -> str:
        return (
            f"{COUNT} idle volumes and {COUNT} idle connections: {self.cores:.3f} cores of the SP "
            f"({self.cores_before:.3f} with none), {self.volume_bytes / 1024:.0f} KiB for a "
            f"volume, {self.connection_bytes / 1024:.0f} KiB for a connection"
        )


def _pss(pid: int) -> int:
    """Bytes of memory, what is shared by its share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _cores(pid: int) -> float:
    def used() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    begun = used()
    time.sleep(SECONDS)
    return (used() - begun) / 100 / SECONDS


def create(cluster: Cluster, name: str, layout: str, size: int) -> None:
    """One volume, by the API: a process for each would be the slower part."""
    request = volume_pb2.CreateVolumeRequest(
        request_id=str(uuid.uuid4()), name=name, size=size, layout=layout, serving=["sp-a"]
    )
    operation = cluster.api.volumes.CreateVolume(request, timeout=60)

    def ended() -> operation_pb2.Operation | None:
        now = cluster.operation(operation.operation_id)
        return now if now.state in ENDED else None

    found = wait_for(f"volume {name}", ended, 120)
    if found.state != operation_pb2.OPERATION_STATE_DONE:
        raise OSError(f"volume {name}: {found.error.message}")


def measure(root: Path) -> Idle:
    """A cluster of its own, with nothing else on it."""
    with Cluster(root) as cluster, ExitStack() as ends:
        cluster.add_device("sp-a", "disk", (COUNT + 8) * 2 * MIB)
        pid = cluster.sps["sp-a"].pid
        before, memory = _cores(pid), _pss(pid)
        for number in range(COUNT):
            create(cluster, f"idle-{number}", "sp-a/disk", MIB)
        volumes = _pss(pid)
        address = str(cluster.root / "sp-a.sock")
        for number in range(COUNT):
            client = nbd.Client(address, f"idle-{number}")
            ends.callback(client.close)
            client.read(0, 4096)
        connections = _pss(pid)
        return Idle(
            before, _cores(pid), (volumes - memory) / COUNT, (connections - volumes) / COUNT
        )
