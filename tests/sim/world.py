"""Everything there is in one simulation, and the one seed that it all comes from."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

from structlog.typing import FilteringBoundLogger

from tests.sim.checks import Checks
from tests.sim.disk import Disk, Disks
from tests.sim.hosts import Hosts
from tests.sim.loop import Process, SimLoop
from tests.sim.net import Net
from tests.sim.nodes import Controller, Noisy, Sp, quiet
from tests.sim.store import SimStore
from vswitchd.model.objects import DeviceId, SpId


class BreachError(Exception):
    """A rule was broken: the simulation ends there."""


class World:
    """SPs, the controller, the store, the network, hosts; and what went wrong."""

    def __init__(
        self, loop: SimLoop, seed: int, devices: Mapping[str, Mapping[str, int]], *, noisy: bool
    ) -> None:
        """`devices`: SP -> device -> blocks; the same name at two SPs is one device."""
        self.loop = loop
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.breaches: list[str] = []
        self.log: FilteringBoundLogger = Noisy(self) if noisy else quiet()  # type: ignore[assignment]
        self.net = Net(loop, self.rng, self.counts)
        self.store = SimStore(self.rng)
        self.store.dies = self._store_death
        self.store.kill = self.kill_controller
        self.disks: dict[DeviceId, Disk] = {}
        self.sps: dict[SpId, Sp] = {}
        self.checked = Checks(self)
        self.store.committed = self.checked.committed
        #: What the next write of an SP's files, or of the store, meets: countdown and fault.
        self.file_faults: dict[str, tuple[int, str]] = {}
        self.store_fault: tuple[int, str] | None = None
        for sp, has in devices.items():
            mine = {
                DeviceId(d): self.disks.setdefault(DeviceId(d), Disk(DeviceId(d), n))
                for d, n in has.items()
            }
            self.sps[SpId(sp)] = Sp(self, SpId(sp), Disks(mine))
        self.controller: Controller | None = None
        self.outside = Process(loop, "hosts")
        self.hosts = Hosts(self, self.counts)

    def breach(self, text: str) -> None:
        """Notes what was broken; the run ends at the next event."""
        self.breaches.append(f"{self.loop.time():.3f}: {text}")

    def start_controller(self) -> None:
        if self.controller is None or not self.controller.process.alive:
            self.controller = Controller(self)

    def kill_controller(self) -> None:
        if self.controller is not None and self.controller.process.alive:
            self.counts["controller killed"] += 1
            self.controller.process.kill()

    def file_fault(self, sp: str) -> str:
        """Asked by SPs' files at every write."""
        left, fault = self.file_faults.get(sp, (0, ""))
        if not fault:
            return ""
        if left:
            self.file_faults[sp] = left - 1, fault
            return ""
        del self.file_faults[sp]
        self.counts[f"SP's file write: {fault}"] += 1
        if fault != "fail":
            self.sps[SpId(sp)].kill()
        return fault

    def _store_death(self) -> str:
        if self.store_fault is None:
            return ""
        left, fault = self.store_fault
        if left:
            self.store_fault = left - 1, fault
            return ""
        self.store_fault = None
        self.counts[f"controller dies {fault} a store write"] += 1
        return fault
