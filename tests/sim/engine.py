"""The engine in Python: the same contract as `_engine.pyi`, block by block, over simulated disks
and peers. What the Rust engine promises is what this does; the real one has its own tests."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.sim.disk import Disks, Stamp
from tests.sim.home import LOOK, Home, StaleError, bounded
from tests.sim.loop import Expected, Process
from tests.sim.net import Net, PeerDownError
from tests.sim.tree import Piece, in_sync, locate, volume_block, write_only
from vswitchd.errors import Kind, VsError
from vswitchd.model.access import Access
from vswitchd.model.objects import (
    BLOCK,
    LEASE_SECONDS,
    T2,
    LegState,
    Mirror,
    Path,
    SpId,
    T1Id,
    VolumeId,
    at,
    leaves,
    node_size,
    walk,
)
from vswitchd.model.view import Complaint, CopyMode, CopyState, CopyView

#: Seconds until a host's request is answered with an error.
HOLD = 120.0
#: Seconds for which a leg may keep a write waiting.
LEG_DEADLINE = 5.0
#: Most seconds between two blocks of a copy.
COPYING = 0.3
#: Most seconds between two blocks that are taken out of the maps.
SWEEP = 2.0

R = TypeVar("R")


class EndedError(Expected):
    """The host's connection has ended: nobody knows what came of the request."""


class IoError(Expected):
    """The host got an error."""


@dataclass
class Copy:
    """A copy onto a write-only leg, in blocks."""

    path: Path
    onto: frozenset[T1Id]
    total: int
    done: int
    mode: CopyMode = CopyMode.FULL
    state: CopyState = CopyState.RUNNING


@dataclass
class Active:
    """A volume that is served here."""

    t2: T2
    #: Whether mirrors are read from their first leg alone, until that is on the others too.
    resync: bool = False
    resynced: int = 0
    held: bool = False
    inflight: int = 0
    #: Until when the other legs' homes have vouched for this owner.
    lease: float = 0.0
    #: A write may have ended on some legs alone: nothing is cleared until a resync has run.
    suspect: bool = False
    locks: dict[int | None, asyncio.Lock] = field(default_factory=dict)
    copies: dict[Path, Copy] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class SimEngine(Home):
    """One life of an engine. `checked` is called after everything that changes what SPs hold."""

    def __init__(
        self,
        sp: SpId,
        cluster: str,
        disks: Disks,
        net: Net,
        process: Process,
        rng: random.Random,
        checked: Callable[[str, SpId, object], None],
        counts: Counter[str],
    ) -> None:
        super().__init__(sp, cluster, disks, rng, checked, counts)
        self._net = net
        self._process = process
        self.volumes: dict[VolumeId, Active] = {}
        #: Remote T1 objects that a connection is open for.
        self.references: dict[VolumeId, set[T1Id]] = {}
        #: Parts of hosts' writes that are under way as an owner: which leg, since when.
        self._waits: dict[object, tuple[T1Id, float]] = {}

    # T2 objects.

    async def access_set(self, volume: VolumeId, access: Access) -> None:
        """Hosts of the simulation are always admitted."""

    async def t2_activate(self, t2: T2, *, resync: bool) -> int:
        now = self.volumes.get(t2.volume)
        if now is None:
            now = self.volumes[t2.volume] = Active(t2)
            self._process.spawn(self._sweeps(now))
        else:
            if (t2.version, t2.epoch) < (now.t2.version, now.t2.epoch):
                raise VsError("VS3022", Kind.STALE, f"volume {t2.name}: older")
            if t2 == now.t2 and not resync:
                return 0
            await self._quiesce(now)
            old, now.t2, now.lease = now.t2, t2, 0.0
            now.copies = {
                path: copy
                for path, copy in now.copies.items()
                if t2.owner == self.sp and self._onto(t2, path) == self._onto(old, path)
            }
        if t2.owner != self.sp:
            now.resync = False
        elif resync and any(isinstance(node, Mirror) for _, node in walk(t2.root)):
            now.resync, now.resynced = True, 0
            self._process.spawn(self._resync(now, t2))
        elif now.resync:
            now.resynced = 0
            self._process.spawn(self._resync(now, t2))
        held = self.references.setdefault(t2.volume, set())
        held |= {t1 for t1, home in t2.homes.items() if home != self.sp}
        now.held = False
        now.wake()
        self._checked("activate_t2", self.sp, t2)
        return 0

    async def _quiesce(self, now: Active) -> None:
        now.held = True
        now.wake()
        try:
            async with bounded("requests in flight did not end in time"):
                while now.inflight:  # noqa: ASYNC110 - simulated time
                    await asyncio.sleep(LOOK)
        except VsError:
            now.held = False
            now.wake()
            raise

    async def t2_remove(self, volume: VolumeId) -> None:
        now = self.volumes.get(volume)
        if now is None:
            return
        await self._quiesce(now)
        self.volumes.pop(volume, None)
        self.references.pop(volume, None)
        now.wake()
        self._checked("remove_t2", self.sp, volume)

    async def resync_percents(self, volume: VolumeId | None = None) -> dict[VolumeId, int]:
        return {
            id_: now.resynced * 100 // max(1, now.t2.size // BLOCK) if now.resync else 100
            for id_, now in self.volumes.items()
            if volume in (None, id_)
        }

    async def trouble(self) -> Complaint:
        now = asyncio.get_running_loop().time()
        late = (t1 for t1, since in self._waits.values() if now - since >= LEG_DEADLINE)
        return Complaint(frozenset(late))

    async def reference_drop(self, volume: VolumeId, t1: T1Id) -> None:
        now = self.volumes.get(volume)
        if now is not None and t1 in now.t2.homes:
            raise VsError("VS3021", Kind.PRECONDITION, f"its tree still refers to {t1}")
        self.references.get(volume, set()).discard(t1)
        self._checked("drop_reference", self.sp, t1)

    # Copies.

    @staticmethod
    def _onto(t2: T2, path: Path) -> frozenset[T1Id]:
        try:
            if not write_only(t2.root, path):
                return frozenset()
            return frozenset(leaf.t1 for leaf in leaves(at(t2.root, path)))
        except IndexError:
            return frozenset()

    async def copy_start(
        self,
        volume: VolumeId,
        path: Path,
        *,
        start: int,
        rate: int,
        adaptive: bool,
        mode: CopyMode,
    ) -> None:
        now = self.volumes.get(volume)
        if now is None:
            raise VsError("VS2020", Kind.NOT_FOUND, f"volume {volume} is not served here")
        onto = self._onto(now.t2, path)
        if now.t2.owner != self.sp or not onto:
            raise VsError("VS3021", Kind.PRECONDITION, f"{path} is no write-only leg of {volume}")
        found = now.copies.get(path)
        if found is None or found.state is CopyState.FAILED:
            total = node_size(at(now.t2.root, path[:-1])) // BLOCK
            copy = now.copies[path] = Copy(path, onto, total, start // BLOCK, mode)
            self._process.spawn(self._copy(now, copy))

    async def copy_throttle(
        self, volume: VolumeId, path: Path, *, rate: int, adaptive: bool
    ) -> None:
        if volume not in self.volumes or path not in self.volumes[volume].copies:
            raise VsError("VS2020", Kind.NOT_FOUND, f"no copy onto {path} of {volume} runs")

    async def copy_stop(self, volume: VolumeId, path: Path) -> None:
        if volume in self.volumes:
            self.volumes[volume].copies.pop(path, None)

    async def copies(self) -> tuple[CopyView, ...]:
        return tuple(
            CopyView(
                volume,
                copy.path,
                copy.state,
                copy.done * BLOCK,
                copy.total * BLOCK,
                durable=copy.done * BLOCK,
            )
            for volume, now in self.volumes.items()
            for copy in now.copies.values()
        )

    async def _copy(self, now: Active, copy: Copy) -> None:
        while copy.done < copy.total and now.copies.get(copy.path) is copy:
            try:
                # Long enough for something to happen meanwhile.
                await asyncio.sleep(self._rng.uniform(0.0, COPYING))
                await self._copy_block(now, copy, copy.done)
                copy.done += 1
            except (StaleError, PeerDownError):
                await asyncio.sleep(LOOK)
        if copy.done >= copy.total:
            copy.state = CopyState.DONE

    async def _copy_block(self, now: Active, copy: Copy, index: int) -> None:
        """One block of the mirror around the leg onto it; none if the copy is not wanted now."""
        t2, path = now.t2, copy.path
        if now.copies.get(path) is not copy:
            raise StaleError
        source = at(t2.root, path[:-1])
        block = volume_block(t2.root, path[:-1], index)
        async with self._pinned(now), self._lock(now, block):
            if now.t2 is not t2 or now.copies.get(path) is not copy:
                raise StaleError
            pieces = locate(source, index)
            if copy.mode is CopyMode.DELTA and not await self._differs(t2, pieces):
                self._counts["delta passed over a block"] += 1
                return
            value = await self._read(t2, pieces, pinned=True)
            for piece in locate(at(t2.root, path), index):
                await self._piece(t2, piece, value, write=True)

    async def _resync(self, now: Active, t2: T2) -> None:
        """The first leg in sync onto the others, of every block that some leg's map has."""
        suspect, now.suspect = now.suspect, False
        blocks = t2.size // BLOCK
        for block in range(blocks):
            while now.t2 is t2:
                try:
                    async with self._pinned(now), self._lock(now, block):
                        if now.t2 is not t2:
                            return
                        # What has one copy alone is not touched: others may be writing it.
                        pieces = [p for p in locate(t2.root, block) if p.mirrored]
                        if await self._differs(t2, pieces):
                            value = await self._read(t2, pieces, pinned=True)
                            for piece in pieces:
                                await self._piece(t2, piece, value, write=True)
                    now.resynced = block + 1
                    break
                except (StaleError, PeerDownError):
                    await asyncio.sleep(LOOK)
        if now.t2 is t2:
            now.resync = False
            now.wake()
        else:
            now.suspect |= suspect

    async def _differs(self, t2: T2, pieces: list[Piece]) -> bool:
        """Whether some leg's map has the block."""
        for piece in pieces:
            if await self._at_home(
                t2, piece, lambda peer, p=piece: peer.t1_dirty(p.t1, t2.epoch, p.index)
            ):
                return True
        return False

    async def _at_home(
        self, t2: T2, piece: Piece, work: Callable[[SimEngine], Coroutine[Any, Any, R]]
    ) -> R:
        home = t2.homes[piece.t1]
        if home == self.sp:
            return await work(self)
        return await self._net.peer(self.sp, home, work)

    async def _sweeps(self, now: Active) -> None:
        """Takes blocks out of the maps that no write is on its way to, or makes legs alike."""
        while self.volumes.get(now.t2.volume) is now:
            await asyncio.sleep(self._rng.uniform(1.0, SWEEP))
            t2 = now.t2
            settled = all(
                leg.state is LegState.IN_SYNC
                for _, node in walk(t2.root)
                if isinstance(node, Mirror)
                for leg in node.legs
            )
            if now.held or now.resync or t2.owner != self.sp or not settled:
                continue
            if now.suspect:
                now.resync, now.resynced = True, 0
                self._counts["resync of its own"] += 1
                await self._resync(now, t2)
                continue
            block = self._rng.randrange(t2.size // BLOCK)
            try:
                async with self._pinned(now), self._lock(now, block):
                    pieces = [p for p in locate(t2.root, block) if p.mirrored]
                    if now.t2 is t2 and not now.suspect and not now.resync:
                        await self._cleared(t2, pieces)
            except (StaleError, PeerDownError):
                pass

    async def _cleared(self, t2: T2, pieces: list[Piece]) -> None:
        for piece in pieces:
            await self._at_home(
                t2, piece, lambda peer, p=piece: peer.t1_clean(p.t1, t2.epoch, p.index)
            )

    # Hosts' requests.

    async def host(self, volume: VolumeId, block: int, value: Stamp, *, write: bool) -> Stamp:
        """A host's read or write of a block; EndedError, IoError."""
        deadline = asyncio.get_running_loop().time() + HOLD
        while True:
            now = self.volumes.get(volume)
            if now is None:
                raise EndedError
            if asyncio.get_running_loop().time() > deadline:
                raise IoError(f"{self.sp}: block {block} was held for {HOLD:g} s")
            if now.held:
                await now.changed.wait()
                continue
            try:
                return await self._request(now, block, value, write=write)
            except (StaleError, PeerDownError):
                changed = now.changed
                try:
                    async with asyncio.timeout(1.0):
                        await changed.wait()
                except TimeoutError:
                    pass

    async def _request(self, now: Active, block: int, value: Stamp, *, write: bool) -> Stamp:
        t2 = now.t2
        async with self._pinned(now):
            if t2.size // BLOCK <= block:
                raise IoError(f"{self.sp}: block {block} is beyond {t2.name}")
            pieces = locate(t2.root, block)
            if not pieces:
                raise StaleError
            mirrored = any(piece.mirrored for piece in pieces)
            if mirrored and t2.owner != self.sp:
                return await self._net.peer(
                    self.sp, t2.owner, lambda peer: peer.for_owner(t2, block, value, write=write)
                )
            return await self._alone(now, t2, block, value, write=write, lock=mirrored)

    async def for_owner(self, t2: T2, block: int, value: Stamp, *, write: bool) -> Stamp:
        """At the owner: what another serving SP sends here."""
        now = self.volumes.get(t2.volume)
        if now is None or now.held or now.t2.epoch != t2.epoch or now.t2.owner != self.sp:
            raise StaleError
        async with self._pinned(now):
            return await self._alone(now, now.t2, block, value, write=write, lock=True)

    async def _alone(
        self, now: Active, t2: T2, block: int, value: Stamp, *, write: bool, lock: bool
    ) -> Stamp:
        pieces = locate(t2.root, block)
        if not lock:
            if write:
                await self._piece(t2, pieces[0], value, write=True)
                return value
            return await self._read(t2, pieces, pinned=False)
        if not write:
            # Without the lock: a read beside a write may get either value.
            found = await self._read(t2, pieces, pinned=now.resync)
            await self._vouched_for(now, t2)
            return found
        async with self._lock(now, block):
            if now.t2 is not t2:
                raise StaleError
            results = await asyncio.gather(
                *(self._insisting(now, t2, piece, value) for piece in pieces),
                return_exceptions=True,
            )
            for result in results:
                if isinstance(result, BaseException):
                    # Some legs may have it; who asked may not ask again.
                    now.suspect = True
                    raise result
            return value

    async def _vouched_for(self, now: Active, t2: T2) -> None:
        """Returns if no other can have been owner by now: the other legs' homes have said within
        the lease's time that they know of no later epoch, or say so now."""
        loop = asyncio.get_running_loop()
        if loop.time() < now.lease:
            return
        asked = loop.time()
        voters = [t1 for t1 in in_sync(t2.root) if t2.homes[t1] != self.sp]
        await asyncio.gather(
            *(
                self._net.peer(
                    self.sp, t2.homes[t1], lambda peer, t1=t1: peer.t1_vouch(t1, t2.epoch)
                )
                for t1 in voters
            )
        )
        if now.t2 is not t2:
            raise StaleError
        now.lease = asked + LEASE_SECONDS

    async def _insisting(self, now: Active, t2: T2, piece: Piece, value: Stamp) -> None:
        """Writes a piece, waiting for a peer that is away unless the tree is to go."""
        part = object()
        self._waits[part] = piece.t1, asyncio.get_running_loop().time()
        try:
            while True:
                try:
                    await self._piece(t2, piece, value, write=True)
                    return
                except PeerDownError:
                    if now.held or self.volumes.get(t2.volume) is not now:
                        raise StaleError from None
        finally:
            del self._waits[part]

    async def _read(self, t2: T2, pieces: list[Piece], *, pinned: bool) -> Stamp:
        readable = [piece for piece in pieces if piece.readable]
        if not readable:
            raise StaleError
        chosen = readable[0] if pinned else self._rng.choice(readable)
        return await self._piece(t2, chosen, None, write=False)

    async def _piece(self, t2: T2, piece: Piece, value: Stamp, *, write: bool) -> Stamp:
        home = t2.homes[piece.t1]
        if home == self.sp:
            return await self.t1_io(
                piece.t1, t2.epoch, piece.index, value, write=write, intent=piece.mirrored
            )
        return await self._net.peer(
            self.sp,
            home,
            lambda peer: peer.t1_io(
                piece.t1, t2.epoch, piece.index, value, write=write, intent=piece.mirrored
            ),
        )

    def _pinned(self, now: Active) -> _Pin:
        return _Pin(now)

    @staticmethod
    def _lock(now: Active, block: int | None) -> asyncio.Lock:
        """The range lock of a block of the volume; None: one that no host can name."""
        return now.locks.setdefault(block, asyncio.Lock())


class _Pin:
    """A request in flight on the volume's tree."""

    def __init__(self, now: Active) -> None:
        self._now = now

    async def __aenter__(self) -> None:
        if self._now.held:
            raise StaleError
        self._now.inflight += 1

    async def __aexit__(self, *_: object) -> None:
        self._now.inflight -= 1
