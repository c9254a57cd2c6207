"""The owner alone: while the controller can't be reached it leaves legs behind that keep hosts
waiting, where the legs that stay are a majority without the store (`restructure.alone`).

What it proposes is durable before anybody is asked for it, and it never proposes anything else for
the same tree: what is on its way from a former life is the same. Once begun it goes on with that,
whether or not the controller has come back: the T1 objects that it has fenced wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import T2, SpId, T1Id, VolumeId
from vswitchd.model.view import Complaint, Ejection
from vswitchd.ports import Neighbours
from vswitchd.processor.state import State
from vswitchd.processor.voter import Voter
from vswitchd.restructure.alone import left_behind, may_be_alone, stays

#: Seconds between looks.
INTERVAL = 0.5
#: What says that an SP can't be reached, and not that it refuses.
_AWAY = (Kind.UNREACHABLE, Kind.TIMEOUT)


class Troubled(Protocol):
    """What it needs of the engine."""

    async def trouble(self) -> Complaint: ...


class Lone:
    """Looks after the mirrors that this SP owns while nobody else does."""

    def __init__(
        self,
        state: State,
        engine: Troubled,
        voter: Voter,
        neighbours: Neighbours,
        silent: Callable[[], float],
        after: float,
        log: FilteringBoundLogger,
    ) -> None:
        """`silent`: seconds since the controller was heard; it counts as away `after` so many, 0:
        never."""
        self._state = state
        self._engine = engine
        self._voter = voter
        self._neighbours = neighbours
        self._silent = silent
        self._after = after
        self._log = log
        self._sp = SpId(state.identity.sp)
        #: Who has been told of what was left behind, by its epoch.
        self._told: dict[VolumeId, tuple[int, set[SpId]]] = {}
        #: Why volumes wait, as last logged.
        self._why: dict[VolumeId, str] = {}

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.look()
            except VsError as error:
                self._log.warning("lone_look_failed", error=str(error))

    async def look(self) -> None:
        """One look at every volume that this SP owns."""
        failing: frozenset[T1Id] = frozenset()
        if self._after and self._silent() >= self._after:
            failing = (await self._engine.trouble()).failing
        own = [t2 for t2 in self._state.committed.values() if t2.owner == self._sp]
        await asyncio.gather(*(self._volume(t2, failing) for t2 in own))

    async def _volume(self, t2: T2, failing: Collection[T1Id]) -> None:
        try:
            begun = self._state.proposals.get(t2.volume)
            if begun is not None and begun.base != t2.epoch:
                # Another tree has come: nothing can come of it any more.
                self._state.withdraw(t2.volume)
                begun = None
            if begun is None and may_be_alone(t2) and not stays(t2).keys().isdisjoint(failing):
                begun = await self._proposed(t2, failing)
            if begun is not None:
                await self._carry(begun)
            await self._tell(t2.volume)
        except VsError as error:
            self._waits(t2, error)

    async def _proposed(self, t2: T2, failing: Collection[T1Id]) -> Ejection:
        """What all that stays would agree to now, durable."""
        record = self._state.ejections.get(t2.volume)
        since = t2.epoch
        if record is not None and record.t2.epoch == t2.epoch:
            since = record.since
        gone: set[SpId] = set()
        while True:
            ejection = left_behind(t2, since, gone, frozenset(failing) & stays(t2).keys())
            assert ejection is not None, "what fails does not stay"
            away: set[SpId] = set()
            for sp in sorted(set(stays(ejection.t2).values())):
                try:
                    await self._at(sp, self._voter.ask, self._neighbours.ask, ejection)
                except VsError as error:
                    if error.kind not in _AWAY:
                        raise
                    away.add(sp)
            if not away:
                break
            gone |= away
        self._state.propose(ejection)
        self._log.warning(
            "leaving_behind", volume=t2.name, gone=sorted(gone), failing=sorted(failing)
        )
        return ejection

    async def _carry(self, ejection: Ejection) -> None:
        """Fences, records, and takes the tree that is recorded everywhere then."""
        homes = sorted({*stays(ejection.t2).values(), self._sp})
        await self._all(homes, self._voter.fence, self._neighbours.fence, ejection)
        await self._all(homes, self._voter.record, self._neighbours.record, ejection)
        await self._voter.follow(ejection)
        self._state.withdraw(ejection.t2.volume)
        self._why.pop(ejection.t2.volume, None)
        self._log.warning("left_behind", volume=ejection.t2.name, version=ejection.t2.version)

    async def _tell(self, volume: VolumeId) -> None:
        """Brings the tree to whoever else serves the volume; who does not need not care."""
        ejection, t2 = self._state.ejections.get(volume), self._state.committed.get(volume)
        if ejection is None or t2 is None or t2.epoch != ejection.t2.epoch:
            self._told.pop(volume, None)
            return
        epoch, told = self._told.get(volume, (0, set()))
        if epoch != t2.epoch:
            told = set()
        self._told[volume] = t2.epoch, told

        async def tell(sp: SpId) -> None:
            try:
                await self._neighbours.follow(sp, self._address(sp), ejection)
            except VsError as error:
                if error.kind in _AWAY:
                    return
            told.add(sp)

        others = self._state.managers.keys() - told - {self._sp}
        await asyncio.gather(*(tell(sp) for sp in sorted(others)))

    async def _all(
        self,
        homes: Collection[SpId],
        here: Callable[[Ejection], Awaitable[None]],
        there: Callable[[SpId, str, Ejection], Awaitable[None]],
        ejection: Ejection,
    ) -> None:
        results = await asyncio.gather(
            *(self._at(sp, here, there, ejection) for sp in homes), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _at(
        self,
        sp: SpId,
        here: Callable[[Ejection], Awaitable[None]],
        there: Callable[[SpId, str, Ejection], Awaitable[None]],
        ejection: Ejection,
    ) -> None:
        if sp == self._sp:
            await here(ejection)
        else:
            await there(sp, self._address(sp), ejection)

    def _address(self, sp: SpId) -> str:
        address = self._state.managers.get(sp)
        if address is None:
            raise VsError(
                "VS5001", Kind.UNREACHABLE, f"SP {sp} can't be reached: its address is not known"
            )
        return address

    def _waits(self, t2: T2, error: VsError) -> None:
        if self._why.get(t2.volume) != error.message:
            self._why[t2.volume] = error.message
            self._log.warning("volume_waits", volume=t2.name, error=str(error))
