"""Comparisons of mirrors' legs by schedule: one volume after the other, each as often as is wanted.

They are operations like those that people ask for, and give way like them.
"""

from __future__ import annotations

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.service import Options, Service
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import Volume, VolumeId
from vswitchd.ports import Clock
from vswitchd.restructure.requests import Verify

#: Seconds between looks.
INTERVAL = 10.0
#: Most seconds until one that was refused is tried again; not more than a tenth of the schedule.
LATER = 600.0
#: What these operations are called, and by whom they are asked for.
VERIFY = "verify"
WHO = "schedule"
#: Anything else that copies comes first.
PRIORITY = 0


class Verifier:
    """Begins comparisons that are due."""

    def __init__(
        self,
        service: Service,
        clock: Clock,
        log: FilteringBoundLogger,
        every: float,
        rate: int,
    ) -> None:
        """`every` so many seconds, 0: never; `rate` in bytes per second, 0 for no limit."""
        self._service = service
        self._clock = clock
        self._log = log
        self._every = every
        self._rate = rate
        #: When each volume is to be tried next, if that is not by when it was done last.
        self._tries: dict[VolumeId, float] = {}

    async def run(self) -> None:
        """Looks for ever."""
        while self._every:
            try:
                await self.look()
            except VsError as error:
                self._log.warning("verify_failed", error=str(error))
            await self._clock.sleep(min(INTERVAL, self._every))

    async def look(self) -> None:
        """Begins the comparison that is most overdue, if none is under way."""
        live = self._service.executor.live.values()
        if any(one.record.kind == VERIFY for one in live):
            return
        done: dict[VolumeId, float] = {}
        for record in await self._service.store.operations():
            if record.kind == VERIFY and record.state in ("done", "failed"):
                at = record.created if record.ended is None else record.ended
                done[record.volume] = max(done.get(record.volume, 0.0), at)
        now = self._clock.wall()
        due = [
            (done.get(volume.id, 0.0), volume)
            for volume in await self._service.store.volumes()
            if now - done.get(volume.id, 0.0) >= self._every
            and now >= self._tries.get(volume.id, 0.0)
        ]
        for _, volume in sorted(due, key=lambda one: (one[0], one[1].name)):
            if await self._begin(volume, now):
                return

    async def _begin(self, volume: Volume, now: float) -> bool:
        options = Options(who=WHO, rate=self._rate, adaptive=True, priority=PRIORITY)
        try:
            await self._service.change(VERIFY, volume.name, Verify(), options)
        except VsError as error:
            # Most have no mirror, or are being changed.
            self._tries[volume.id] = now + min(LATER, self._every / 10)
            if error.kind is not Kind.PRECONDITION:
                self._log.warning("verify_failed", volume=volume.name, error=str(error))
            return False
        return True
