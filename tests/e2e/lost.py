"""What tests of lost SPs and failing devices share."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from tests.e2e.agree import agree
from tests.e2e.cluster import Cluster
from tests.e2e.nbd import Client
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


class Pulse:
    """A host that writes one block after another and remembers how long the longest took."""

    def __init__(self, address: str, volume: str) -> None:
        self._where = address, volume
        self.longest, self.written = 0.0, 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            with Client(*self._where, seconds=100.0) as client:
                while not self._stop.is_set():
                    begun = time.monotonic()
                    client.write(self.written % 256 * 4096, self.written.to_bytes(4, "big") * 1024)
                    self.longest = max(self.longest, time.monotonic() - begun)
                    self.written += 1
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Pulse:
        self._thread.start()
        wait_for("writes", lambda: self.written > 100)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(100.0)
        assert self.error is None, self.error

    def goes_on(self) -> bool:
        """Waits for writes that are begun from now on."""
        since = self.written
        wait_for("writes to go on", lambda: self.written > since + 100, SOON)
        return True


def whole_again(cluster: Cluster, name: str, legs: int = 2) -> None:
    in_sync(cluster, name, legs)
    wait_for("store, SPs and labels to agree", lambda: agree(cluster), 60.0)


@contextmanager
def mirrored(cluster: Cluster, layout: str, on: str) -> Iterator[None]:
    words = ("--size", "64M", "--layout", layout, "--on", on)
    cluster.ctl("volume", "create", "db", *words)
    yield
