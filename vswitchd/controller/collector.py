"""Collecting: what every SP that is up says it holds."""

from __future__ import annotations

import asyncio

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.registry import Registry
from vswitchd.errors import VsError
from vswitchd.model.objects import SpId, VolumeId
from vswitchd.model.view import View


class Collector:
    """Asks all SPs at once; remembers the last answers for lists."""

    def __init__(self, registry: Registry, log: FilteringBoundLogger) -> None:
        self._registry = registry
        self._log = log
        self.last: dict[SpId, View] = {}

    async def collect(self, volume: VolumeId | None = None) -> dict[SpId, View]:
        """Views of the SPs that answered; with only the volume's objects if one is named, which
        costs the same however many others there are."""

        async def one(sp: SpId) -> View | None:
            try:
                return await self._registry.processor(sp).view(volume)
            except VsError as error:
                self._log.warning("no_view", sp=sp, error=str(error))
                return None

        views = await asyncio.gather(*(one(sp) for sp in self._registry.up))
        found = {view.sp: view for view in views if view is not None}
        if volume is None:
            self.last = found
        return found
