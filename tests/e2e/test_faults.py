"""Faults of many kinds, singly and in pairs, under hosts that write stamped blocks through all SPs:
after each, every block holds its last acknowledged write, or one that was sent after it.

A short part runs in the gate; `make soak` goes on for as long as it is told. The seed is printed.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.lost import SOON, failing_device, in_sync
from tests.e2e.nbd import Client
from tests.e2e.process import Daemon, wait_for
from tests.e2e.stamps import Stamper, Writer

#: Of the gate; and, as `VSWITCHD_FAULTS`, of a soak.
FAULTS = int(os.environ.get("VSWITCHD_FAULTS", "15"))
SEED = int(os.environ.get("VSWITCHD_SEED", "1"))
#: Blocks that one writer has for itself.
BLOCKS = 2048
VOLUMES = {"m2": "mirror(sp-a/a0, sp-b/bad)", "m3": "mirror(sp-a/a0, sp-b/b0, sp-c/c0)"}


class Faults:
    """What can happen to the cluster. Each fault is over, and its process back, when it returns."""

    def __init__(self, cluster: Cluster, rng: random.Random, trigger: Path) -> None:
        self.cluster = cluster
        self._rng = rng
        self._trigger = trigger
        self.counts: Counter[str] = Counter()

    def kinds(self) -> dict[str, Callable[[], None]]:
        sps = self.cluster.sps
        owner = sps[self.cluster.volume("m3").record.owner]
        other = self._rng.choice([sp for sp in sps.values() if sp is not owner])
        controller = self.cluster.controller
        away = self._rng.choice((0.0, 0.5, 2.0, 4.0))
        return {
            "the owner is killed": lambda: self._killed(owner, away),
            "another SP is killed": lambda: self._killed(other, away),
            "an SP is killed twice": lambda: self._killed(other, 2.0, times=2),
            "an SP ends by itself": lambda: self._ended(other, away),
            "the owner ends by itself": lambda: self._ended(owner, away),
            "the controller is killed": lambda: self._killed(controller, away),
            "the controller is stopped": lambda: self._stopped(controller, 2.0),
            "the controller is stopped for long": lambda: self._stopped(controller, 7.0),
            "a device fails": lambda: self._failing(3.0),
            "a device fails for a moment": lambda: self._failing(0.05),
            "the owner is moved": self._moved,
            "all SPs are killed": self._all_killed,
            "an SP and the controller are killed": lambda: self._pair(other, controller),
            "two SPs are killed": lambda: self._pair(owner, other),
            "an SP is killed while a device fails": lambda: self._failing(1.0, other),
        }

    def next(self) -> str:
        """Lets the next fault happen: each kind once, then any."""
        kinds = self.kinds()
        fresh = [kind for kind in kinds if not self.counts[kind]]
        kind = self._rng.choice(fresh or list(kinds))
        self.counts[kind] += 1
        kinds[kind]()
        return kind

    @staticmethod
    def _killed(daemon: Daemon, seconds: float, times: int = 1) -> None:
        for _ in range(times):
            daemon.kill()
            time.sleep(seconds)
            daemon.start()

    @staticmethod
    def _ended(daemon: Daemon, seconds: float) -> None:
        daemon.stop()
        time.sleep(seconds)
        daemon.start()

    @staticmethod
    def _stopped(daemon: Daemon, seconds: float) -> None:
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(daemon.pid, signal.SIGCONT)

    def _failing(self, seconds: float, meanwhile: Daemon | None = None) -> None:
        self._trigger.touch()
        try:
            if meanwhile is not None:
                meanwhile.kill()
            time.sleep(seconds)
        finally:
            self._trigger.unlink()
            if meanwhile is not None:
                meanwhile.start()

    def _moved(self) -> None:
        record = self.cluster.volume("m3").record
        heir = self._rng.choice([sp for sp in record.serving if sp != record.owner])
        # It may be refused just now: then it is no fault at all.
        self.cluster.ctl("volume", "owner", "m3", "--on", heir, status=None)

    def _all_killed(self) -> None:
        for sp in self.cluster.sps.values():
            sp.kill()
        for sp in self.cluster.sps.values():
            sp.launch()
        for sp in self.cluster.sps.values():
            wait_for(f"{sp.name} to be ready", sp.ready)

    def _pair(self, one: Daemon, other: Daemon) -> None:
        one.kill()
        time.sleep(self._rng.choice((0.0, 0.5, 1.5)))
        other.kill()
        time.sleep(self._rng.choice((0.0, 2.0)))
        other.start()
        one.start()


@contextmanager
def writers(cluster: Cluster, seed: int) -> Iterator[list[Stamper]]:
    """Two for each volume, each with blocks of its own, through the SPs in its own order."""
    with ExitStack() as stack:
        stampers = []
        for number, volume in enumerate(sorted(VOLUMES) * 2):
            names = sorted(cluster.sps)
            random.Random(seed + number).shuffle(names)
            connect = [(cluster.sps[sp].addresses["--nbd"], volume) for sp in names]
            stamper = Stamper(number // 2 * BLOCKS, BLOCKS, seed + number)
            stampers.append(stack.enter_context(Writer(stamper, connect, keep=False)))
        yield stampers


@pytest.mark.timeout(1200)
def test_no_fault_loses_or_mixes_up_data(cluster: Cluster) -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    with failing_device(cluster.root) as (uri, trigger):
        cluster.ctl("device", "add", uri, "--sp", "sp-b", "--name", "bad")
        for name, layout in VOLUMES.items():
            words = ("--size", "64M", "--layout", layout, "--on", ",".join(cluster.sps))
            cluster.ctl("volume", "create", name, *words)
        faults = Faults(cluster, rng, trigger)
        with writers(cluster, SEED) as stampers:
            for _ in range(FAULTS):
                since = [stamper.writes for stamper in stampers]
                kind = faults.next()
                in_sync(cluster, "m2", 2)
                in_sync(cluster, "m3", 3)
                for stamper, before in zip(stampers, since, strict=True):
                    wait_for(f"writes after: {kind}", _more(stamper, before), SOON)
                    assert not stamper.faults, f"{kind}: {stamper.faults[:3]}"
        for number, stamper in enumerate(stampers):
            volume = (sorted(VOLUMES) * 2)[number]
            for sp in cluster.sps.values():
                with Client(sp.addresses["--nbd"], volume) as client:
                    stamper.check_all(client)
    print(dict(sorted(faults.counts.items())))


def _more(stamper: Stamper, before: int) -> Callable[[], bool]:
    return lambda: bool(stamper.faults) or stamper.wrote_more_than(before + 20)
