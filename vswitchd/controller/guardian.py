"""Keeping mirrors in service: SPs that are lost are left behind, SPs that are back catch up.

        heard ----(nobody listens where it was)---------------------> lost ---> its legs are away,
          |                                                            ^        another is owner
          +-------(silent for `lost_after`, though something listens)--+
          ^                                                            |
          +------------------(it registers again)----------------------+------> its legs catch up;
                                                    if that takes too long, others take their places

Each change is an operation like any other, with the store's and the legs' votes in it
(`restructure.away`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Sequence

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.learner import Learner
from vswitchd.controller.live import CANCEL
from vswitchd.controller.service import Options, Service
from vswitchd.errors import VsError
from vswitchd.model.objects import LegState, Path, SpId, T1Id, Volume, VolumeId
from vswitchd.model.view import NO_TROUBLE
from vswitchd.ports import Clock, Processors
from vswitchd.restructure.away import away, ejected, lost, rejoined, under
from vswitchd.restructure.requests import Eject, Rejoin, Replace, Request

#: Seconds between looks, and without a heartbeat until an SP is suspected.
INTERVAL = 0.25
SUSPECT = 0.9
#: Seconds until an SP that this controller has not heard yet is lost: all may be starting.
GRACE = 15.0
#: Seconds for which an SP has to be back before its legs catch up; twice as many each time that
#: it was lost lately, up to the last. After so long without a loss it counts as steady.
FIRST_PATIENCE = 0.5
LAST_PATIENCE = 60.0
STEADY = 600.0
#: Most seconds between tries of what is refused.
LAST_RETRY = 5.0
#: How often, and after how many seconds each, an operation that gives way is looked at again.
TURNS, TURN = 5, 0.02
#: What its operations are called, and by whom they are asked for.
EJECT, REJOIN = "eject", "rejoin"
KINDS: dict[type[Request], str] = {Eject: EJECT, Rejoin: REJOIN, Replace: "replace"}
WHO = "guardian"


class Guardian:
    """Looks who is lost and who is back, and has volumes follow."""

    def __init__(
        self,
        service: Service,
        learner: Learner,
        processors: Processors,
        clock: Clock,
        log: FilteringBoundLogger,
        lost_after: float,
        replace_after: float,
    ) -> None:
        """`lost_after`: seconds of silence until an SP is lost, though its host may be up;
        `replace_after`: seconds until another leg takes the place of one that is away, 0: never."""
        self._service = service
        self._learner = learner
        self._registry = service.registry
        self._processors = processors
        self._clock = clock
        self._log = log
        self._lost_after = lost_after
        self._replace_after = replace_after
        #: Since when legs are away, in this controller's life.
        self._away: dict[tuple[VolumeId, Path], float] = {}
        self._began = clock.monotonic()
        #: When SPs were lost last, how often in a row, and since when they are back.
        self._losses: dict[SpId, tuple[float, int]] = {}
        self._back: dict[SpId, float] = {}
        #: Why volumes can't follow, as last logged; how often in a row, and when they are tried
        #: again.
        self._told: dict[VolumeId, str] = {}
        self._tries: dict[tuple[VolumeId, str], tuple[int, float]] = {}
        #: How often in a row legs have come back, and when last.
        self._rejoins: dict[VolumeId, tuple[int, float]] = {}
        #: Volumes with legs that are away, as of these.
        self._volumes: Sequence[Volume] = ()
        self._degraded: frozenset[VolumeId] = frozenset()

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            try:
                await self.look()
            except VsError as error:
                self._log.warning("guard_failed", error=str(error))
            await self._clock.sleep(INTERVAL)

    async def look(self) -> None:
        """One look at every SP, then at every volume that it concerns."""
        known = sorted(self._registry.records)
        await asyncio.gather(*(self._watch(sp) for sp in known))
        now = self._clock.monotonic()
        for sp in known:
            if self._registry.is_up(sp):
                self._back.setdefault(sp, now)
            else:
                self._back.pop(sp, None)
        volumes = await self._service.store.volumes()
        if volumes is not self._volumes:
            self._volumes = volumes
            self._degraded = frozenset(v.id for v in volumes if any(away(v.root)))
        trouble = self._registry.lost or self._registry.complaints
        if not trouble and not self._degraded:
            return
        steady = {sp for sp, since in self._back.items() if now - since >= self._patience(sp, now)}
        for volume in volumes:
            if trouble or volume.id in self._degraded:
                await self._follow(volume, steady, now)

    async def _watch(self, sp: SpId) -> None:
        if sp in self._registry.lost:
            return
        silent = self._registry.silent(sp)
        if silent is None:
            lost = self._clock.monotonic() - self._began >= GRACE
        elif silent < SUSPECT:
            return
        else:
            record = self._registry.record(sp)
            lost = silent >= self._lost_after or not await self._processors.listens(record)
            # It may have been heard while it was asked for.
            again = self._registry.silent(sp)
            lost = lost and again is not None and again >= SUSPECT
        if lost:
            now = self._clock.monotonic()
            at, count = self._losses.get(sp, (now, 0))
            self._losses[sp] = now, 1 if now - at >= STEADY else count + 1
            await self._registry.lose(sp)

    def _patience(self, sp: SpId, now: float) -> float:
        at, count = self._losses.get(sp, (now, 0))
        if now - at >= STEADY:
            return FIRST_PATIENCE
        return min(FIRST_PATIENCE * 2.0 ** max(0, count - 1), LAST_PATIENCE)

    async def _follow(self, volume: Volume, steady: Collection[SpId], now: float) -> None:
        if self._learner.is_news(volume) and await self._learner.learn(volume):
            return None
        missing = lost(volume.root)
        present = {t1.id: t1.home for t1 in volume.t1s if t1.id not in missing}
        homes = set(present.values())
        gone = sorted((homes | {volume.owner}) & self._registry.lost)
        bad = self._registry.trouble(volume)
        if gone or bad != NO_TROUBLE:
            try:
                if ejected(volume, gone, bad) is volume:
                    return None
            except VsError as error:
                if under(volume.root, LegState.WRITE_ONLY) & (bad.failing | bad.doubtful):
                    # Whatever makes this leg: hosts need not wait for it.
                    await self._give_way(volume)
                return self._waits(volume, error.message)
            if not await self._give_way(volume):
                return None
            request: Request = Eject(tuple(gone), bad)
        elif missing and volume.id not in self._service.busy():
            found = self._way_back(volume, missing, homes | {volume.owner}, steady, now)
            if found is None:
                return None
            request = found
        else:
            self._told.pop(volume.id, None)
            return None
        kind = KINDS[type(request)]
        tries, again = self._tries.get((volume.id, kind), (0, now))
        if now < again:
            return None
        try:
            await self._service.change(kind, volume.name, request, Options(who=WHO))
        except VsError as error:
            delay = min(INTERVAL * 2.0**tries, LAST_RETRY)
            self._tries[volume.id, kind] = tries + 1, now + delay
            self._waits(volume, error.message)
        else:
            self._told.pop(volume.id, None)
            self._tries.pop((volume.id, kind), None)
            if kind == REJOIN:
                count, at = self._rejoins.get(volume.id, (0, -STEADY))
                self._rejoins[volume.id] = count + 1 if now - at < STEADY else 1, now

    def _way_back(
        self,
        volume: Volume,
        missing: Collection[T1Id],
        needed: Collection[SpId],
        steady: Collection[SpId],
        now: float,
    ) -> Request | None:
        """Legs that are away come back with their SPs, or others take their places."""
        paths = {(volume.id, path) for path, _ in away(volume.root)}
        for key in [key for key in self._away if key[0] == volume.id and key not in paths]:
            del self._away[key]
        since = {path: self._away.setdefault((volume.id, path), now) for _, path in sorted(paths)}
        if not set(needed) <= set(self._registry.up):
            return None
        returned = {t1.home for t1 in volume.t1s if t1.id in missing} & set(steady)
        if rejoined(volume, returned):
            # What fails again at once is tried less and less often.
            count, at = self._rejoins.get(volume.id, (0, -STEADY))
            patient = now - at < min(2.0**count, LAST_PATIENCE)
            return None if patient else Rejoin(tuple(sorted(returned)))
        late = (path for path, at in since.items() if now - at >= self._replace_after)
        path = next(late, None) if self._replace_after else None
        return None if path is None else Replace(path)

    def _waits(self, volume: Volume, why: str) -> None:
        if self._told.get(volume.id) != why:
            self._told[volume.id] = why
            self._log.warning("volume_waits", volume=volume.name, error=why)

    async def _give_way(self, volume: Volume) -> bool:
        """True if no operation is under way on the volume. One that can be undone is: hosts would
        wait for it, and it for an SP that is lost. Its undo leaves that SP behind too."""
        for live in self._service.executor.live.values():
            if live.record.volume != volume.id:
                continue
            if live.can_undo and live.record.wish != CANCEL and live.record.kind != EJECT:
                self._log.info("operation_gives_way", operation=live.record.id, volume=volume.name)
                with contextlib.suppress(VsError):
                    await self._service.executor.cancel(live.record.id)
                # Most have nothing to undo: by the next look somebody may have begun another.
                for _ in range(TURNS):
                    if live.record.id not in self._service.executor.live:
                        return True
                    await self._clock.sleep(TURN)
            return False
        return True
