"""Joining the controller and staying known to it. The SP serves whether or not it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Set
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import SpId
from vswitchd.model.view import Complaint, fingerprint
from vswitchd.ports import ProcessorRecord

#: Seconds between tries; each is twice as long as the one before, up to the last.
FIRST_RETRY = 0.1
LAST_RETRY = 2.0
#: Refusals that trying again does not mend: wrong cluster, wrong name.
FINAL = frozenset({Kind.INVALID, Kind.UNSAFE})


class Registry(Protocol):
    """The controller as an SP calls it."""

    def register(self, record: ProcessorRecord, cluster: str) -> Awaitable[tuple[str, float]]:
        """Joins; returns the cluster's id and the heartbeat interval in seconds."""
        ...

    def heartbeat(
        self, record: ProcessorRecord, complaint: Complaint, known: int
    ) -> Awaitable[tuple[bool, Mapping[SpId, str] | None]]:
        """Says that it is there, and which T1 objects are in trouble. False when the controller
        does not know this incarnation. Then where all SPs' VSMs are, None if that has the
        `fingerprint` that is `known` already."""
        ...


class Book(Protocol):
    """Where it is kept where all SPs' VSMs are."""

    @property
    def managers(self) -> Mapping[SpId, str]: ...
    def set_managers(self, managers: Mapping[SpId, str]) -> None: ...


class Registration:
    """Registers until it works, then beats; registers again when it is forgotten."""

    def __init__(self, registry: Registry, book: Book, log: FilteringBoundLogger) -> None:
        self._registry = registry
        self._book = book
        self._log = log
        self._heard: float | None = None

    def silent(self) -> float:
        """Seconds since the controller was heard last, or first asked for."""
        now = asyncio.get_running_loop().time()
        if self._heard is None:
            self._heard = now
        return now - self._heard

    def _hear(self) -> None:
        self._heard = asyncio.get_running_loop().time()

    async def join(
        self, record: ProcessorRecord, cluster: str, final: Set[Kind] = FINAL
    ) -> tuple[str, float]:
        """Tries until the controller takes this SP; a refusal of a `final` kind is raised.

        Returns the cluster's id and the seconds between heartbeats.
        """
        delay, told = FIRST_RETRY, ""
        while True:
            try:
                joined = await self._registry.register(record, cluster)
            except VsError as error:
                if error.kind in final:
                    raise
                if told != str(error):
                    told = str(error)
                    self._log.warning("not_registered", error=told)
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_RETRY)
            else:
                self._hear()
                self._log.info("registered", cluster=joined[0])
                return joined

    async def keep(
        self,
        record: ProcessorRecord,
        cluster: str,
        trouble: Callable[[], Awaitable[Complaint]],
    ) -> None:
        """Joins and beats for ever. Only the first time is a refusal raised: hosts are served
        by then, and go on being served whatever the controller says later."""
        final: Set[Kind] = FINAL
        while True:
            _, interval = await self.join(record, cluster, final)
            final = frozenset()
            while True:
                await asyncio.sleep(interval)
                try:
                    known, managers = await self._registry.heartbeat(
                        record, await trouble(), fingerprint(self._book.managers)
                    )
                    if not known:
                        break
                    self._hear()
                    if managers is not None:
                        self._book.set_managers(managers)
                except VsError as error:
                    self._log.warning("heartbeat_failed", error=str(error))
                    break
