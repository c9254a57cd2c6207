"""Hosts: they read and write through every SP that serves, and know what every block may hold."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.disk import Stamp
from tests.sim.engine import EndedError, IoError
from vswitchd.model.objects import BLOCK, SpId, Volume, VolumeId

if TYPE_CHECKING:
    from tests.sim.world import World

#: Seconds for which a block is not written after a write whose end nobody saw: what a dead path
#: has left in flight has landed by then. That it may land later, over a newer write, is the
#: hazard which issue 5 closes.
IN_FLIGHT = 3.0
#: Mean seconds between a host's requests, and between those of hosts that are keen.
THINK = 0.6
KEEN = 0.05


@dataclass
class Block:
    """What may be read: from the last write acknowledged to the last begun. What was seen counts
    like what was acknowledged if no write was on its way then, or had ended unseen; that a read
    beside a write may be followed by one of the older value is for issue 5 to end."""

    issued: int = 0
    known: int = 0
    writing: bool = False
    unseen: bool = False
    quiet_until: float = 0.0


class Hosts:
    """So many hosts, each one request at a time; one writer of a block at a time."""

    def __init__(self, world: World, counts: Counter[str]) -> None:
        self._world = world
        self._counts = counts
        self._blocks: dict[tuple[VolumeId, int], Block] = {}
        #: Volumes that hosts have let go of, since they are to be deleted.
        self.unmounted: set[VolumeId] = set()
        self.active = True
        #: They ask much, mostly reads, of each volume's first block.
        self.keen = False
        self.busy = 0

    async def run(self) -> None:
        """One host."""
        rng = self._world.rng
        while self.active:
            await asyncio.sleep(rng.expovariate(1 / (KEEN if self.keen else THINK)))
            volumes = [v for v in self._world.store.now() if v.id not in self.unmounted]
            if not volumes or not self.active:
                continue
            volume = rng.choice(volumes)
            sp = rng.choice(volume.serving)
            block = 0 if self.keen else rng.randrange(volume.size // BLOCK)
            self.busy += 1
            await self.request(volume, sp, block, write=rng.random() < (0.2 if self.keen else 0.6))
            self.busy -= 1

    async def request(self, volume: Volume, sp: SpId, block: int, *, write: bool) -> None:
        """One request, and what its answer says of the block."""
        node = self._world.sps[sp]
        engine, process = node.engine, node.process
        if engine is None or process is None or not process.alive:
            return
        served = engine.volumes.get(volume.id)
        if served is None or served.t2.size // BLOCK <= block:
            return
        held = self._blocks.setdefault((volume.id, block), Block())
        now = self._world.loop.time()
        if write and (held.writing or now < held.quiet_until):
            return
        low = held.known
        stamp: Stamp = None
        number = 0
        if write:
            held.writing = True
            held.issued = number = held.issued + 1
            stamp = (volume.id, block, number)
        task = process.spawn(engine.host(volume.id, block, stamp, write=write))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=0.5)
                if not task.done() and not process.alive:
                    raise EndedError
            found = task.result()
        except EndedError:
            self._counts["host's connection ended"] += 1
            if write:
                held.quiet_until = self._world.loop.time() + IN_FLIGHT
                held.unseen = True
            return
        except IoError as error:
            if volume.id not in self.unmounted:
                self._world.breach(f"a host got an I/O error: {error}")
            return
        finally:
            if write:
                held.writing = False
        self._counts["write answered" if write else "read answered"] += 1
        if write:
            held.known = max(held.known, number)
            held.unseen = False
        else:
            self._judge(volume, sp, block, held, low, found)

    def _judge(
        self, volume: Volume, sp: SpId, block: int, held: Block, low: int, found: Stamp
    ) -> None:
        number = 0 if found is None else found[2]
        if found is not None and found[:2] != (volume.id, block):
            self._world.breach(f"block {block} of {volume.name} read at {sp} is {found}")
        elif not low <= number <= held.issued:
            self._world.breach(
                f"block {block} of {volume.name} read at {sp} is write {number}; allowed is "
                f"{low} to {held.issued}"
            )
        if not held.writing and not held.unseen:
            held.known = max(held.known, number)
