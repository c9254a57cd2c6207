"""How long hosts wait when a tree is swapped: changes that copy nothing, under a host's 4 KiB
writes, on loopback. Prints what the host saw (its slowest write of each change) and what the SPs
measured."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path

from tests.e2e.cluster import Cluster
from tests.e2e.conftest import make
from tests.e2e.nbd import Client
from tests.e2e.process import wait_for
from vswitchd.rpc import operation_pb2, volume_pb2

CHANGES = 200


class Host:
    """Writes one block after another and remembers how long each took."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.took: list[tuple[float, float]] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with Client(self._address, "db") as client:
            block = 0
            while not self.stop.is_set():
                begun = time.monotonic()
                client.write(block % 4096 * 4096, b"x" * 4096)
                self.took.append((begun, time.monotonic() - begun))
                block += 1

    def slowest(self, since: float, until: float) -> float:
        return max((took for at, took in self.took if since <= at <= until), default=0.0)


def _done(cluster: Cluster, begun: operation_pb2.Operation) -> None:
    def ended() -> bool:
        return cluster.operation(begun.operation_id).HasField("ended")

    wait_for("the change", ended, 30)


def _changes(cluster: Cluster, number: int) -> operation_pb2.Operation:
    volumes = cluster.api.volumes
    layouts = ("mirror(sp-a, sp-b)", "mirror(sp-b, sp-a)")
    match number % 4:
        case 0:
            return volumes.ServeVolume(volume_pb2.ServeVolumeRequest(name="db", sp="sp-c"))
        case 2:
            return volumes.UnserveVolume(volume_pb2.UnserveVolumeRequest(name="db", sp="sp-c"))
        case _:
            layout = layouts[number // 2 % 2 ^ 1]
            return volumes.ChangeLayout(volume_pb2.ChangeLayoutRequest(name="db", layout=layout))


def main() -> None:
    """Prints the figures of docs/performance.md."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as root:
        cluster = make(Path(root))
        try:
            words = ("--size", "64M", "--layout", "mirror(sp-a/a0, sp-b/b0)", "--on", "sp-a,sp-b")
            cluster.ctl("volume", "create", "db", *words)
            host = Host(cluster.sps["sp-a"].addresses["--nbd"])
            host.thread.start()
            wait_for("writes", lambda: len(host.took) > 1000)
            quiet = time.monotonic()
            time.sleep(2.0)
            idle = sorted(took for at, took in host.took if at >= quiet)
            waits = []
            for number in range(CHANGES):
                begun = time.monotonic()
                _done(cluster, _changes(cluster, number))
                waits.append(host.slowest(begun, time.monotonic()))
            host.stop.set()
            host.thread.join()
            swaps = sorted(
                float(str(event["pause_us"])) / 1000
                for sp in cluster.sps.values()
                for event in sp.events()
                if event.get("event") == "activate_t2" and event.get("pause_us")
            )
        finally:
            cluster.end()
    for name, found in (("slowest write of a change", waits), ("swap at an SP", swaps)):
        ms = sorted(x * 1000 if found is waits else x for x in found)
        print(
            f"{name}: {len(ms)} measured, p50 {statistics.median(ms):.2f} ms, "
            f"p99 {ms[len(ms) * 99 // 100]:.2f} ms, most {ms[-1]:.2f} ms"
        )
    print(
        f"a write without a change: p99 {idle[len(idle) * 99 // 100] * 1000:.2f} ms, most "
        f"{idle[-1] * 1000:.2f} ms"
    )


if __name__ == "__main__":
    main()
