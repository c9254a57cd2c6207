"""Who may use a volume: changed in the store, then at every SP that has a tree of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.service import Service
from vswitchd.controller.turns import Turns
from vswitchd.errors import Kind, VsError
from vswitchd.model.access import Access, Chap, checked_entry, checked_initiator
from vswitchd.model.objects import SpId, Volume, VolumeId
from vswitchd.model.view import View
from vswitchd.restructure.steps import StageT2


@dataclass(frozen=True, slots=True)
class Told:
    """Who may use a volume, and by which version each SP that has a tree of it, or is to have one,
    goes; None: it was not heard."""

    volume: Volume
    access: Access
    held: Mapping[SpId, int | None]


class Admission:
    """The one that changes it, for a volume one change at a time."""

    def __init__(
        self, service: Service, wake: Callable[[], None], log: FilteringBoundLogger
    ) -> None:
        """`wake` has the reconciler look soon."""
        self._service = service
        self._wake = wake
        self._log = log
        self._turns = Turns()

    async def told(self, name: str) -> Told:
        """How it is now."""
        volume = await self._service.volume(name)
        views = await self._service.collector.collect(volume.id)
        access = await self._service.store.access(volume.id)
        held = {sp: _version(views.get(sp), volume.id) for sp in self._concerned(volume)}
        return Told(volume, access, held)

    async def allow(
        self, name: str, initiator: str, chap: Chap | None, mutual: Chap | None, who: str
    ) -> Told:
        """Lets an initiator log in. VsError VS1090 to VS1093 if what is asked can't be."""
        entry = checked_entry(initiator, chap, mutual)
        shows = "by its name alone"
        if chap is not None:
            shows = f"by CHAP as {chap.user}"
        if mutual is not None:
            shows += f", and the target as {mutual.user}"
        what = f"allowed {entry.initiator}, {shows}"
        return await self._change(name, lambda access: access.allowed(entry), who, what)

    async def deny(self, name: str, initiator: str, *, whoever: bool, who: str) -> Told:
        """Lets an initiator no longer log in. VsError VS6050 if it is the last one, after which
        anybody could, and not `whoever`."""
        denied = checked_initiator(initiator)

        def change(access: Access) -> Access:
            left = access.denied(denied)
            if access.entries and not left.entries and not whoever:
                raise VsError(
                    "VS6050",
                    Kind.UNSAFE,
                    f"{denied} is the only initiator of volume {name}, and with none in the list "
                    "whoever reaches a portal may log in; allow another one first, or say --open "
                    "if that is meant",
                )
            return left

        return await self._change(name, change, who, f"denied {denied}")

    async def set_nbd(self, name: str, on: bool, who: str) -> Told:
        """Opens a volume to NBD, or closes it."""
        what = "opened to NBD" if on else "closed to NBD"
        return await self._change(name, lambda access: replace(access, nbd=on), who, what)

    async def _change(
        self, name: str, change: Callable[[Access], Access], who: str, what: str
    ) -> Told:
        volume = await self._service.volume(name)
        store = self._service.store
        async with self._turns.of(volume.id):
            views = await self._service.collector.collect(volume.id)
            access = await store.access(volume.id)
            changed = change(access)
            if changed != access:
                # Above what SPs go by, too: they may know it from a store that this is an old copy
                # of, and what is said now is the last word.
                held = [_version(view, volume.id) or 0 for view in views.values()]
                changed = replace(changed, version=max([access.version, *held]) + 1)
                await store.put_access(
                    volume.id, changed, expect_version=access.version, who=who, what=what
                )
                self._log.info(
                    "access_changed",
                    volume=name,
                    version=changed.version,
                    what=what,
                    who=who,
                )
            told = await self._push(volume, changed)
        if any(version != changed.version for version in told.held.values()):
            self._wake()
        return told

    async def _push(self, volume: Volume, access: Access) -> Told:
        """Tells every SP, at once; one that is not up will be told by the reconciler."""
        # As it is now that the store has the access: who begins to serve later gets it with the
        # tree.
        volume = await self._service.store.volume(volume.id) or volume
        registry = self._service.registry

        async def one(sp: SpId) -> int | None:
            if not registry.is_up(sp):
                return None
            try:
                await registry.processor(sp).set_access(volume.id, access)
                view = await registry.processor(sp).view(volume.id)
            except VsError as error:
                self._log.warning("access_not_pushed", sp=sp, volume=volume.name, error=str(error))
                return None
            # One that has no tree yet has nobody to admit either.
            held = _version(view, volume.id)
            return access.version if held is None else held

        sps = self._concerned(volume)
        versions = await asyncio.gather(*(one(sp) for sp in sps))
        return Told(volume, access, dict(zip(sps, versions, strict=True)))

    def _concerned(self, volume: Volume) -> list[SpId]:
        """The SPs that serve the volume, and those at which an open operation stages a tree."""
        staging = {
            step.t2.sp
            for live in self._service.executor.live.values()
            if live.record.volume == volume.id
            for step in live.plan.steps
            if isinstance(step, StageT2)
        }
        return sorted({*volume.serving, *staging})


def _version(view: View | None, volume: VolumeId) -> int | None:
    """The version that an SP goes by; None if it has no tree of the volume, or was not heard."""
    trees = [] if view is None else view.t2s_of(volume)
    return min((held.access for held in trees), default=None)
