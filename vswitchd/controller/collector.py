"""Collecting: what every SP that is up says it holds."""

from __future__ import annotations

import asyncio

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.registry import Registry
from vswitchd.errors import VsError
from vswitchd.model.objects import SpId
from vswitchd.model.view import View


class Collector:
    """Asks all SPs at once; remembers the last answers for lists."""

    def __init__(self, registry: Registry, log: FilteringBoundLogger) -> None:
        self._registry = registry
        self._log = log
        self.last: dict[SpId, View] = {}

    async def collect(self) -> dict[SpId, View]:
        """Views of the SPs that answered."""

        async def one(sp: SpId) -> View | None:
            try:
                return await self._registry.processor(sp).view()
            except VsError as error:
                self._log.warning("no_view", sp=sp, error=str(error))
                return None

        views = await asyncio.gather(*(one(sp) for sp in self._registry.up))
        self.last = {view.sp: view for view in views if view is not None}
        return self.last
