"""Joining the controller and staying known to it. The SP serves whether or not it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from vswitchd.errors import Kind, VsError
from vswitchd.ports import ProcessorRecord

FIRST_RETRY = 0.1
LAST_RETRY = 2.0


class Registry(Protocol):
    """The controller as an SP calls it."""

    def register(self, record: ProcessorRecord, cluster: str) -> Awaitable[tuple[str, float]]:
        """Joins; returns the cluster's id and the heartbeat interval in seconds."""
        ...

    def heartbeat(self, record: ProcessorRecord) -> Awaitable[bool]:
        """False when the controller does not know this incarnation."""
        ...


class Registration:
    """Registers until it works, then beats; registers again when it is forgotten."""

    def __init__(self, registry: Registry, log: FilteringBoundLogger) -> None:
        self._registry = registry
        self._log = log

    async def join(self, record: ProcessorRecord, cluster: str) -> tuple[str, float]:
        """Tries until the controller takes this SP. Only a refusal of what the SP is (its name,
        its cluster) is final, as VsError."""
        delay, told = FIRST_RETRY, False
        while True:
            try:
                joined = await self._registry.register(record, cluster)
            except VsError as error:
                if error.kind in (Kind.INVALID, Kind.UNSAFE):
                    raise
                if not told:
                    self._log.warning("waiting_for_controller", error=str(error))
                    told = True
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_RETRY)
            else:
                self._log.info("registered", cluster=joined[0])
                return joined

    async def keep(self, record: ProcessorRecord, cluster: str) -> None:
        """Joins and beats for ever. Hosts are served even if the controller refuses."""
        while True:
            try:
                _, interval = await self.join(record, cluster)
            except VsError as error:
                self._log.error("refused_by_controller", error=str(error))
                await asyncio.sleep(LAST_RETRY)
                continue
            known = True
            while known:
                await asyncio.sleep(interval)
                try:
                    known = await self._registry.heartbeat(record)
                except VsError as error:
                    self._log.warning("heartbeat_failed", error=str(error))
                    known = False
