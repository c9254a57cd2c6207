"""One step of a plan, told to the SP or the store that it concerns."""

from __future__ import annotations

from dataclasses import replace

from vswitchd.controller.copying import Copying
from vswitchd.controller.live import Live
from vswitchd.controller.registry import Registry
from vswitchd.controller.staging import stage
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import LEASE_MARGIN, LEASE_SECONDS, T2, Volume
from vswitchd.ports import Clock, Store
from vswitchd.restructure.steps import (
    ActivateT2,
    AdoptT1,
    AwaitLease,
    AwaitSync,
    Commit,
    Copy,
    DeleteT1,
    DropReference,
    FenceT1,
    Forget,
    PutT1,
    RemoveT2,
    StageT2,
    Step,
)
from vswitchd.restructure.vcm import is_overtaken


def overtaken(volume: Volume) -> VsError:
    """The owner has gone on by itself: what was planned before is not to be."""
    return VsError(
        "VS3086",
        Kind.STALE,
        f"volume {volume.name} has moved on to version {volume.version}: its owner {volume.owner} "
        "has left legs behind while the controller was away; ask again",
    )


class Carrier:
    """Carries out steps; each finds its work done if it was carried out before."""

    def __init__(self, store: Store, registry: Registry, clock: Clock, copying: Copying) -> None:
        self._clock = clock
        self._store = store
        self._registry = registry
        self._copying = copying

    async def carry_out(self, live: Live, step: Step, index: int) -> None:
        """VsError: it was not done, or not all of it, or nobody can tell."""
        at = self._registry.processor
        match step:
            case PutT1(t1, epoch):
                await at(t1.home).put_t1(t1, epoch)
            case FenceT1(sp, t1_id, epoch, known):
                await at(sp).fence_t1(t1_id, epoch, known)
            case AdoptT1(t1, epoch):
                await at(t1.home).adopt_t1(t1, epoch)
            case DeleteT1(sp, t1_id, epoch):
                await at(sp).delete_t1(t1_id, epoch)
            case StageT2(t2):
                await stage(self._store, at(t2.sp), self._readdressed(t2))
            case Commit(volume):
                await self._commit(live, volume)
            case ActivateT2(sp, volume_id, version):
                await at(sp).activate_t2(volume_id, version)
            case RemoveT2(sp, volume_id, version):
                await at(sp).remove_t2(volume_id, version)
            case DropReference(sp, volume_id, t1_id):
                await at(sp).drop_reference(volume_id, t1_id)
            case AwaitLease():
                await self._clock.sleep(LEASE_SECONDS + LEASE_MARGIN)
            case AwaitSync():
                live.heed(index)
                await self._await_sync(step)
            case Copy():
                await self._copying.follow(live, step, index)
            case Forget(volume_id):
                await self._store.delete_volume(volume_id, who=live.record.requested_by)

    def _readdressed(self, t2: T2) -> T2:
        """With the addresses of now: an SP may have come back elsewhere since the plan."""
        now = self._registry.peers
        return replace(t2, peers={sp: now.get(sp, address) for sp, address in t2.peers.items()})

    async def _commit(self, live: Live, volume: Volume) -> None:
        stored = await self._store.volume(live.record.volume)
        if stored is not None and is_overtaken(live.plan, stored):
            raise overtaken(stored)
        if stored is not None and stored.version >= volume.version:
            return
        await self._store.put_volume(
            volume,
            expect_version=None if stored is None else stored.version,
            who=live.record.requested_by,
            why=f"{live.record.kind} ({live.record.id})",
        )

    async def _await_sync(self, step: AwaitSync) -> None:
        view = await self._registry.processor(step.sp).view(step.volume)
        held = view.t2(step.volume)
        if held is None or held.resync_percent < 100:
            how = "not served yet" if held is None else f"{held.resync_percent}%"
            raise VsError(
                "VS5021", Kind.TIMEOUT, f"waiting for the resync of the mirror's legs: {how}"
            )
