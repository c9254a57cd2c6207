"""What can happen to a cluster, by name, and what must hold after each: every block has its last
acknowledged write, or one that was sent after it, hosts go on, and the legs are alike."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

from tests.e2e.cluster import Cluster
from tests.e2e.disk import Disk, disks
from tests.e2e.lost import alike, in_sync
from tests.e2e.nbd import Client
from tests.e2e.network import Network
from tests.e2e.process import Daemon, wait_for
from tests.e2e.stamps import Stamper, Writer

#: Blocks that one writer has for itself.
BLOCKS = 2048
#: Layouts by name. "power" loses what was not flushed when its disks are killed.
VOLUMES = {
    "power": "mirror(sp-b/pb, sp-c/pc)",
    "three": "mirror(sp-a/a0, sp-b/b0, sp-c/full)",
    "two": "mirror(sp-a/a0, sp-b/bad)",
}
DISKS: dict[str, dict[str, object]] = {
    "bad": {},
    "full": {"error": "ENOSPC"},
    "pb": {"forgets": True},
    "pc": {"forgets": True},
}
HOMES = {"bad": "sp-b", "full": "sp-c", "pb": "sp-b", "pc": "sp-c"}
#: Seconds for what takes a second, on a machine that does other things too.
PATIENCE = 150.0


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
        if self.cluster.network:
            return self._cuts(self.cluster.network, owner.name, other.name)
        return {
            "the owner is killed": lambda: self._killed(owner, away),
            "another SP is killed": lambda: self._killed(other, away),
            "an SP is killed twice": lambda: self._killed(other, 2.0, times=2),
            "an SP is away for long": lambda: self._killed(other, 10.0),
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
            "an SP's host loses its power": lambda: self._host_loses_power("sp-b", "pb", away),
            "a disk loses its power": self._disk_loses_power,
            "an SP and the controller are killed": lambda: self._pair(other, controller),
            "two SPs are killed": lambda: self._pair(owner, other),
            "an SP is killed while a device fails": lambda: self._killed_during(bad.fails(), other),
            "an SP is killed while a device stalls": lambda: self._killed_during(
                full.stalls(), other
            ),
            "an SP is killed while the controller is away": lambda: self._alone(other),
            "a device stalls while the controller is away": lambda: self._alone(full),
            "a device fails while another is full": lambda: self._both(bad.fails(), full.fails()),
            "the owner is killed while the controller is stopped": lambda: self._killed_during(
                self._stopped(controller), owner
            ),
        }

    def _cuts(self, network: Network, owner: str, other: str) -> dict[str, Callable[[], None]]:
        """Partitions: of both ways and of one, short and long."""
        controller = self.cluster.controller.name
        third = next(sp for sp in self.cluster.sps if sp not in (owner, other))
        owner_sp, other_sp = self.cluster.sps[owner], self.cluster.sps[other]

        def cut(seconds: float, *ways: tuple[str, str]) -> Callable[[], None]:
            return lambda: self._during(network.cut(*ways), seconds)

        def killed(daemon: Daemon, *ways: tuple[str, str]) -> Callable[[], None]:
            return lambda: self._killed_during(network.cut(*ways), daemon)

        def both(one: str, *others: str) -> list[tuple[str, str]]:
            return [way for end in others for way in ((one, end), (end, one))]

        return {
            "the owner and another SP part": cut(8.0, *both(owner, other)),
            "the owner and another SP part for a moment": cut(1.0, *both(owner, other)),
            "the owner does not reach another SP": cut(8.0, (owner, other)),
            "another SP does not reach the owner": cut(8.0, (other, owner)),
            "two SPs beside the owner part": cut(8.0, *both(other, third)),
            "the owner and the controller part": cut(8.0, *both(owner, controller)),
            "the controller is not reached by the owner": cut(8.0, (owner, controller)),
            "the controller does not reach another SP": cut(8.0, (controller, other)),
            "another SP and the controller part": cut(8.0, *both(other, controller)),
            "the owner is alone": cut(8.0, *both(owner, other, third, controller)),
            "another SP is alone": cut(8.0, *both(other, owner, third, controller)),
            "the controller is alone": cut(8.0, *both(controller, *self.cluster.sps)),
            "two SPs and the controller part from the third": cut(
                8.0, *both(third, owner, other, controller)
            ),
            "the owner is killed while the controller is alone": killed(
                owner_sp, *both(controller, *self.cluster.sps)
            ),
            "an SP is killed while the owner and the controller part": killed(
                other_sp, *both(owner, controller)
            ),
        }

    def next(self) -> str:
        """Lets the next fault happen: each kind once, then any."""
        kinds = self.kinds()
        fresh = [kind for kind in kinds if not self.counts[kind]]
        kind = self._rng.choice(fresh or list(kinds))
        self.happen(kind)
        return kind

    def happen(self, kind: str) -> None:
        """Lets a fault of that kind happen."""
        self.counts[kind] += 1
        self.kinds()[kind]()

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
            daemon.rebooted()
        for stamper in self._stampers["power"]:
            wait_for("the writer to notice", stamper.is_cut_off)
            stamper.power_lost()
        for disk in forgetful:
            disk.start()
        self.cluster.controller.start()
        self._all_started()

    def _host_loses_power(self, sp: str, name: str, seconds: float) -> None:
        """The other leg has all that was acknowledged, flushed or not."""
        daemon, disk = self.cluster.sps[sp], self._disks[name]
        daemon.kill()
        disk.kill()
        daemon.rebooted()
        time.sleep(seconds)
        disk.start()
        daemon.start()

    def _disk_loses_power(self) -> None:
        """Its SP goes on, and does not see but that a connection is lost."""
        disk = self._disks["pc"]
        disk.kill()
        disk.start()

    def _pair(self, one: Daemon, other: Daemon) -> None:
        one.kill()
        time.sleep(self._rng.choice((0.0, 0.5, 1.5)))
        other.kill()
        time.sleep(self._rng.choice((0.0, 2.0)))
        other.start()
        one.start()

    def _alone(self, lost: Daemon | Disk) -> None:
        """Of three legs one: its owner leaves it behind by itself, and hosts go on before the
        controller is back."""
        three = self._stampers["three"]
        self.cluster.controller.kill()
        with ExitStack() as ends:
            if isinstance(lost, Disk):
                ends.enter_context(lost.stalls())
            else:
                lost.kill()
                ends.callback(lost.start)
            ends.callback(self.cluster.controller.start)
            for stamper in three:
                # More than what may have been under way.
                before = stamper.writes + 2
                wait_for("writes without the controller", _more(stamper, before), 60.0)


class Trial:
    """A cluster with volumes on disks that can fail, and two writers on each volume, each with
    blocks of its own, through the SPs in its own order."""

    def __init__(self, cluster: Cluster, seed: int, patience: float = PATIENCE) -> None:
        """`patience`: seconds until hosts must go on and all legs be in sync, after a fault."""
        self.cluster = cluster
        self._seed, self._patience = seed, patience
        self._writers, self._disks_end = ExitStack(), ExitStack()
        self.stampers: dict[str, list[Stamper]] = {}

    def __enter__(self) -> Trial:
        with ExitStack() as ends:
            made = ends.enter_context(disks(self.cluster.root, **DISKS))
            for name, disk in made.items():
                self.cluster.ctl("device", "add", disk.uri, "--sp", HOMES[name], "--name", name)
            for name, layout in VOLUMES.items():
                words = ("--size", "64M", "--layout", layout, "--on", ",".join(self.cluster.sps))
                self.cluster.ctl("volume", "create", name, *words)
            for number, volume in enumerate(sorted(VOLUMES) * 2):
                names = sorted(self.cluster.sps)
                random.Random(self._seed + number).shuffle(names)
                connect = [(self.cluster.sps[sp].addresses["--nbd"], volume) for sp in names]
                of = self.stampers.setdefault(volume, [])
                stamper = Stamper(len(of) * BLOCKS, BLOCKS, self._seed + number)
                of.append(self._writers.enter_context(Writer(stamper, connect, keep=False)))
            self._disks = made
            self.faults = Faults(self.cluster, random.Random(self._seed), made, self.stampers)
            self._disks_end = ends.pop_all()
        return self

    def __exit__(self, *why: object) -> None:
        with self._disks_end:
            self._writers.close()

    def writes(self) -> list[int]:
        """How many each writer has made."""
        return [stamper.writes for stamper in self._all()]

    def after(self, kind: str, since: list[int]) -> None:
        """What must hold after a fault; `since`: the writes that there were before it."""
        assert all(disk.is_up() for disk in self._disks.values()), f"{kind}: a disk has ended"
        for name, layout in VOLUMES.items():
            in_sync(self.cluster, name, layout.count("/"), self._patience)
            alike(self.cluster, name, self._patience)
        for stamper, before in zip(self._all(), since, strict=True):
            wait_for(f"writes after: {kind}", _more(stamper, before), min(20.0, self._patience))
            assert not stamper.faults, f"{kind}: {stamper.faults[:3]}"
            assert not stamper.errors, f"{kind}: {stamper.errors[:3]}"

    def check_all(self) -> None:
        """Has the writers end, then reads every block, through every SP."""
        self._writers.close()
        for volume, found in self.stampers.items():
            for stamper in found:
                for sp in self.cluster.sps.values():
                    with Client(sp.addresses["--nbd"], volume) as client:
                        stamper.check_all(client)

    def _all(self) -> list[Stamper]:
        return [stamper for found in self.stampers.values() for stamper in found]


def _more(stamper: Stamper, before: int) -> Callable[[], bool]:
    return lambda: bool(stamper.faults or stamper.errors) or stamper.wrote_more_than(before + 20)
