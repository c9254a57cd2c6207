"""What this SP answers a volume's owner that leaves legs behind by itself (`restructure.alone`).

The owner says no term: it is known by the epoch of its tree, of which there is one owner. T1
objects are raised from just that epoch, so from none that anybody has decided on since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import T2, SpId, T1Id, VolumeId, own_epoch
from vswitchd.model.view import Complaint, Ejection, T1View
from vswitchd.processor.state import State
from vswitchd.restructure.alone import applied, stays


class VoterCalls(Protocol):
    """What a voter needs of the engine."""

    async def trouble(self) -> Complaint: ...
    async def t1_fence(self, t1: T1Id, epoch: int, base: int | None) -> None: ...
    async def t1s(self, volume: VolumeId | None = None) -> tuple[tuple[T1View, ...], int]: ...


def moved_on(what: str) -> VsError:
    """Somebody has decided on the volume since its owner's tree."""
    return VsError(
        "VS3088", Kind.STALE, f"{what}; its owner may not leave legs behind by itself now"
    )


class Voter:
    """The votes of the T1 objects that one SP homes."""

    def __init__(
        self,
        state: State,
        engine: VoterCalls,
        lock: Callable[[str], asyncio.Lock],
        swap: Callable[[T2], Awaitable[int]],
        log: FilteringBoundLogger,
    ) -> None:
        """`lock` is an object's, `swap` activates a tree and commits it."""
        self._state = state
        self._engine = engine
        self._lock = lock
        self._swap = swap
        self._log = log
        self._sp = SpId(state.identity.sp)

    def _here(self, ejection: Ejection) -> list[T1Id]:
        """The T1 objects that stay and are homed here."""
        return sorted(t1 for t1, home in stays(ejection.t2).items() if home == self._sp)

    def _admit(self, ejection: Ejection) -> None:
        """VsError unless it is an owner's, and by the tree that is held here the owner's."""
        t2, current = ejection.t2, self._state.committed.get(ejection.t2.volume)
        if t2.epoch != own_epoch(ejection.base):
            raise moved_on(f"epoch {t2.epoch} of volume {t2.name} is no owner's")
        if current is not None and current.epoch == ejection.base and current.owner != t2.owner:
            raise moved_on(f"SP {t2.owner} does not own volume {t2.name}")

    async def _epochs(self, volume: VolumeId) -> dict[T1Id, int]:
        held, _ = await self._engine.t1s(volume)
        return {one.t1.id: one.epoch for one in held}

    async def ask(self, ejection: Ejection) -> None:
        """Returns if this SP would do its part now; nothing is changed."""
        self._admit(ejection)
        doubtful = (await self._engine.trouble()).doubtful
        epochs = await self._epochs(ejection.t2.volume)
        for t1 in self._here(ejection):
            if epochs.get(t1) not in (ejection.base, ejection.t2.epoch) or t1 in doubtful:
                raise moved_on(f"T1 {t1} is at epoch {epochs.get(t1)}, or in doubt")

    async def fence(self, ejection: Ejection) -> None:
        """Fences what stays here, from just the epoch of the owner's tree."""
        self._admit(ejection)
        await asyncio.gather(*(self._fence(t1, ejection) for t1 in self._here(ejection)))

    async def _fence(self, t1: T1Id, ejection: Ejection) -> None:
        async with self._lock(t1):
            try:
                await self._engine.t1_fence(t1, ejection.t2.epoch, ejection.base)
            except VsError as error:
                if error.kind is Kind.STALE:
                    raise moved_on(error.message) from None
                raise
        self._log.info("fenced_for_owner", t1=t1, epoch=ejection.t2.epoch)

    async def record(self, ejection: Ejection) -> None:
        """Keeps it durably, unless anybody has fenced higher since."""
        self._admit(ejection)
        here, volume = self._here(ejection), ejection.t2.volume
        async with AsyncExitStack() as held:
            for t1 in here:
                # Whoever fences one of them does so before this, or finds the record.
                await held.enter_async_context(self._lock(t1))
            epochs = await self._epochs(volume)
            for t1 in here:
                if epochs.get(t1) != ejection.t2.epoch:
                    raise moved_on(f"T1 {t1} is at epoch {epochs.get(t1)}")
            known = self._state.ejections.get(volume)
            if known is not None and known.t2.epoch > ejection.t2.epoch:
                raise moved_on(f"epoch {known.t2.epoch} of volume {known.t2.name} is recorded")
            if known != ejection:
                self._state.record(ejection)
        self._log.info("recorded_for_owner", volume=volume, epoch=ejection.t2.epoch)

    async def follow(self, ejection: Ejection) -> None:
        """Takes the tree of an ejection that all have recorded, if the volume is served here and
        no later one is."""
        volume = ejection.t2.volume
        async with self._lock(volume):
            current = self._state.committed.get(volume)
            if current is None or current.epoch >= ejection.t2.epoch:
                return
            target = applied(current, ejection)
            if target is None:
                raise moved_on(f"SP {self._sp} has version {current.version} of {current.name}")
            await self._swap(target)
        self._log.info("followed_owner", volume=volume, version=target.version, epoch=target.epoch)
