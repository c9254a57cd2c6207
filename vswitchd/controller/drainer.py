"""Emptying SPs that are drained, volume by volume, until they hold nothing."""

from __future__ import annotations

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.health import concerns
from vswitchd.controller.service import Options, Service
from vswitchd.errors import VsError
from vswitchd.model.objects import SpId
from vswitchd.ports import Clock
from vswitchd.restructure.requests import Evacuate

#: Seconds between looks.
INTERVAL = 2.0
#: Volumes that are evacuated at once.
AT_ONCE = 4
#: What its operations are called, and by whom they are asked for.
KIND = "evacuate"
WHO = "drain"


class Drainer:
    """Starts an operation for each volume that a drained SP has something of. That an SP is
    drained is in the store, so a new controller goes on where the old one ended."""

    def __init__(self, service: Service, clock: Clock, log: FilteringBoundLogger) -> None:
        self._service = service
        self._clock = clock
        self._log = log
        #: Why volumes can't be evacuated now, for people; (SP, volume's name) -> words.
        self.stuck: dict[tuple[SpId, str], str] = {}

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            try:
                await self.look()
            except VsError as error:
                self._log.warning("drain_failed", error=str(error))
            await self._clock.sleep(INTERVAL)

    async def look(self) -> None:
        """Starts as many operations as may run."""
        drained = await self._service.store.drained()
        stuck: dict[tuple[SpId, str], str] = {}
        for sp, keep_serving in sorted(drained.items()):
            for volume in await self._service.store.volumes():
                if not concerns(volume, sp, keep_serving=keep_serving):
                    continue
                if self._running() >= AT_ONCE:
                    break
                if volume.id in self._service.busy():
                    continue
                try:
                    await self._service.change(
                        KIND, volume.name, Evacuate(sp, keep_serving), Options(who=WHO)
                    )
                except VsError as error:
                    stuck[sp, volume.name] = error.message
                    if (sp, volume.name) not in self.stuck:
                        self._log.warning(
                            "drain_stuck", sp=sp, volume=volume.name, error=str(error)
                        )
        self.stuck = stuck

    def _running(self) -> int:
        return sum(live.record.kind == KIND for live in self._service.executor.live.values())
