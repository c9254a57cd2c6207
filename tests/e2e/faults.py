"""What can happen to a cluster, by name; the tests let it happen while hosts write."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

from tests.e2e.cluster import Cluster
from tests.e2e.disk import Disk
from tests.e2e.process import Daemon, wait_for
from tests.e2e.stamps import Stamper, Writer

#: Blocks that one writer has for itself.
BLOCKS = 2048


class Faults:
    """Each fault is over, and its process back, when it returns. How long they last is what they
    are: none of it waits for anything."""

    def __init__(
        self,
        cluster: Cluster,
        rng: random.Random,
        disks: Mapping[str, Disk],
        stampers: Mapping[str, list[Stamper]],
    ) -> None:
        """`disks`: "bad" (fails with EIO), "full" (with ENOSPC) and those that forget, which are
        all that "power" lies on; `stampers` of its volumes by name."""
        self.cluster = cluster
        self._rng = rng
        self._disks = disks
        self._stampers = stampers
        self.counts: Counter[str] = Counter()

    def kinds(self) -> dict[str, Callable[[], None]]:
        sps = self.cluster.sps
        owner = sps[self.cluster.volume("three").record.owner]
        other = self._rng.choice([sp for sp in sps.values() if sp is not owner])
        controller = self.cluster.controller
        away = self._rng.choice((0.0, 0.5, 2.0, 4.0))
        bad, full = self._disks["bad"], self._disks["full"]
        return {
            "the owner is killed": lambda: self._killed(owner, away),
            "another SP is killed": lambda: self._killed(other, away),
            "an SP is killed twice": lambda: self._killed(other, 2.0, times=2),
            "an SP ends by itself": lambda: self._ended(other, away),
            "the owner ends by itself": lambda: self._ended(owner, away),
            "the owner is stopped": lambda: self._during(self._stopped(owner), 2.0),
            "the owner is stopped for long": lambda: self._during(self._stopped(owner), 7.0),
            "another SP is stopped": lambda: self._during(self._stopped(other), 2.0),
            "another SP is stopped for long": lambda: self._during(self._stopped(other), 7.0),
            "the controller is killed": lambda: self._killed(controller, away),
            "the controller is stopped": lambda: self._during(self._stopped(controller), 2.0),
            "the controller is stopped for long": lambda: self._during(
                self._stopped(controller), 7.0
            ),
            "a device fails": lambda: self._during(bad.fails(), 3.0),
            "a device fails for a moment": lambda: self._during(bad.fails(), 0.05),
            "a device is full": lambda: self._during(full.fails(), 3.0),
            "a device can't be read": lambda: self._during(bad.unreadable(), 2.0),
            "a device stalls": lambda: self._during(bad.stalls(), 7.0),
            "a device stalls for a moment": lambda: self._during(full.stalls(), 1.0),
            "a device vanishes": lambda: self._vanished(bad, 2.0),
            "the owner is moved": self._moved,
            "all SPs are killed": self._all_killed,
            "the power fails": self._power_fails,
            "an SP and the controller are killed": lambda: self._pair(other, controller),
            "two SPs are killed": lambda: self._pair(owner, other),
            "an SP is killed while a device fails": lambda: self._killed_during(bad.fails(), other),
            "an SP is killed while a device stalls": lambda: self._killed_during(
                full.stalls(), other
            ),
            "a device fails while another is full": lambda: self._both(bad.fails(), full.fails()),
            "the owner is killed while the controller is stopped": lambda: self._killed_during(
                self._stopped(controller), owner
            ),
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
    def _during(trouble: AbstractContextManager[None], seconds: float) -> None:
        with trouble:
            time.sleep(seconds)

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
    @contextmanager
    def _stopped(daemon: Daemon) -> Iterator[None]:
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(daemon.pid, signal.SIGCONT)

    @staticmethod
    def _killed_during(trouble: AbstractContextManager[None], daemon: Daemon) -> None:
        with trouble:
            daemon.kill()
            time.sleep(1.0)
        daemon.start()

    @staticmethod
    def _both(one: AbstractContextManager[None], other: AbstractContextManager[None]) -> None:
        with one, other:
            time.sleep(2.0)

    @staticmethod
    def _vanished(disk: Disk, seconds: float) -> None:
        disk.kill()
        time.sleep(seconds)
        disk.start()

    def _moved(self) -> None:
        record = self.cluster.volume("three").record
        heir = self._rng.choice([sp for sp in record.serving if sp != record.owner])
        # It may be refused just now: then it is no fault at all.
        self.cluster.ctl("volume", "owner", "three", "--on", heir, status=None)

    def _all_killed(self) -> None:
        for sp in self.cluster.sps.values():
            sp.kill()
        self._all_started()

    def _all_started(self) -> None:
        for sp in self.cluster.sps.values():
            sp.launch()
        for sp in self.cluster.sps.values():
            wait_for(f"{sp.name} to be ready", sp.ready)

    def _power_fails(self) -> None:
        """Of everything at once; the disks that forget have what was flushed, and no more."""
        forgetful = [disk for disk in self._disks.values() if disk.forgets]
        for disk in forgetful:
            disk.kill()
        for daemon in self.cluster.daemons:
            daemon.kill()
        for stamper in self._stampers["power"]:
            wait_for("the writer to notice", stamper.is_cut_off)
            stamper.power_lost()
        for disk in forgetful:
            disk.start()
        self.cluster.controller.start()
        self._all_started()

    def _pair(self, one: Daemon, other: Daemon) -> None:
        one.kill()
        time.sleep(self._rng.choice((0.0, 0.5, 1.5)))
        other.kill()
        time.sleep(self._rng.choice((0.0, 2.0)))
        other.start()
        one.start()


@contextmanager
def writers(
    cluster: Cluster, volumes: Mapping[str, str], seed: int
) -> Iterator[dict[str, list[Stamper]]]:
    """Two for each volume, each with blocks of its own, through the SPs in its own order."""
    with ExitStack() as stack:
        stampers: dict[str, list[Stamper]] = {}
        for number, volume in enumerate(sorted(volumes) * 2):
            names = sorted(cluster.sps)
            random.Random(seed + number).shuffle(names)
            connect = [(cluster.sps[sp].addresses["--nbd"], volume) for sp in names]
            of = stampers.setdefault(volume, [])
            stamper = Stamper(len(of) * BLOCKS, BLOCKS, seed + number)
            of.append(stack.enter_context(Writer(stamper, connect, keep=False)))
        yield stampers
