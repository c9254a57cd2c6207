"""From a request to a plan: collect, VBM, the MVSM's word, VCM. Nothing is changed here."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from vswitchd.controller.collector import Collector
from vswitchd.controller.registry import Registry
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import DeviceId, Extent, SpId, Volume, VolumeId
from vswitchd.model.view import Affected, View
from vswitchd.ports import Store
from vswitchd.restructure import vbm, vcm
from vswitchd.restructure.away import absent
from vswitchd.restructure.collected import require_agreement, view_of
from vswitchd.restructure.preview import taken
from vswitchd.restructure.requests import Eject, Request
from vswitchd.restructure.space import less
from vswitchd.restructure.steps import Plan


def without(views: dict[SpId, View], reserved: Sequence[Extent]) -> list[View]:
    """The views less the free space that open operations have planned to take."""
    return [
        replace(
            view,
            devices=tuple(
                replace(device, free=cut(device.free, reserved)) for device in view.devices
            ),
        )
        for _, view in sorted(views.items())
    ]


def cut(free: tuple[Extent, ...], reserved: Sequence[Extent]) -> tuple[Extent, ...]:
    """A device's free runs with the reserved ones taken out."""
    if not free:
        return free
    device = free[0].device
    left = less(
        ((run.offset, run.offset + run.length) for run in free),
        ((e.offset, e.offset + e.length) for e in reserved if e.device == device),
    )
    return tuple(Extent(device, first, end - first) for first, end in left)


def planned_extents(plan: Plan) -> list[Extent]:
    """What a plan takes."""
    return [extent for _, extent in taken(plan)]


class Planner:
    """Plans requests from what is, not from the store's word alone."""

    def __init__(self, store: Store, registry: Registry, collector: Collector) -> None:
        self._store = store
        self._registry = registry
        self._collector = collector

    async def plan(
        self,
        volume_id: VolumeId,
        volume: Volume | None,
        request: Request,
        reserved: Sequence[Extent],
    ) -> Plan:
        """The plan of a request about a volume (None: there is none yet); VsError says why the
        request can't be."""
        found = await self._collector.collect(volume_id)
        views = without(found, reserved)
        names = {DeviceId(d.id): d.name for d in await self._store.devices()}
        drained = await self._store.drained()
        stages = vbm.restructure(
            volume, views, request, lambda: secrets.token_hex(5), names, drained.keys()
        )
        answers: list[tuple[Affected, ...]] = []
        for asked in vcm.transitions(volume, stages):
            answers.append(() if asked is None else await self._determine(*asked))
        gone = absent(volume, found) if volume is not None else frozenset()
        if isinstance(request, Eject):
            gone |= set(request.sps)
        return vcm.plan(volume, stages, answers, self._registry.peers, gone)

    async def confirm(self, volume_id: VolumeId, plan: Plan, reserved: Sequence[Extent]) -> None:
        """VsError unless a plan that was made a while ago, for the volume as it still is, can be
        carried out as it is: the SPs hold what it begins with, and what it takes is free."""
        views = without(await self._collector.collect(volume_id), reserved)
        if plan.base is not None:
            require_agreement(plan.base, views, absent(plan.base, {view.sp for view in views}))
        for sp, extent in taken(plan):
            device = view_of(views, sp).device(extent.device)
            run = extent.offset, extent.offset + extent.length
            free = [] if device is None else device.free
            if less([run], ((one.offset, one.offset + one.length) for one in free)):
                raise VsError(
                    "VS3076",
                    Kind.STALE,
                    f"the space that the plan takes on device {extent.device} of SP {sp} is in "
                    "use by now; ask for a new plan",
                )

    async def _determine(
        self, current: Volume | None, target: Volume | None
    ) -> tuple[Affected, ...]:
        master = self._registry.master
        if master is None:
            raise VsError(
                "VS5020",
                Kind.UNREACHABLE,
                "no SP is master now, so nothing can be restructured; start an SP or try again",
            )
        return await self._registry.processor(master).determine(current, target)
