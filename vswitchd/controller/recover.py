"""A store that is lost, rebuilt from what SPs hold (labels and trees)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.registry import Registry
from vswitchd.controller.service import Options, Service
from vswitchd.errors import Kind, VsError
from vswitchd.model.access import OPEN, Access
from vswitchd.model.objects import DeviceId, SpId, VolumeId
from vswitchd.model.view import LabelView, View
from vswitchd.ports import Clock, DeviceRecord, OperationRecord, Processors
from vswitchd.restructure.rebuilt import Rebuilt, rebuild
from vswitchd.restructure.requests import Recover

#: Seconds that SPs have to register with their new controller.
JOIN = 30.0
#: Seconds between looks at that.
LOOK = 0.1
WHY = "recovered from what the SPs hold"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What came back, and the operations that push it anew (none of a dry run)."""

    cluster: str
    sps: tuple[SpId, ...]
    devices: tuple[DeviceRecord, ...]
    rebuilt: Rebuilt
    operations: tuple[OperationRecord, ...] = ()


class Recovery:
    """Makes an empty store that of the cluster whose SPs have come."""

    def __init__(
        self,
        service: Service,
        registry: Registry,
        processors: Processors,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._service = service
        self._registry = registry
        self._processors = processors
        self._clock = clock
        self._log = log

    async def recover(self, *, force: bool, dry_run: bool, who: str) -> Recovered:
        """VsError VS2047: no SP of another cluster has come. VS3079: of several have. VS6031: the
        store is not empty. VS6032: something would be missing, and not `force`."""
        strangers = self._registry.strangers
        clusters = sorted({cluster for _, cluster in strangers.values()})
        if not clusters:
            raise VsError(
                "VS2047",
                Kind.NOT_FOUND,
                "no SP of another cluster has come to this controller, so there is nothing to "
                "recover; start the SPs with this controller's address and try again",
            )
        if len(clusters) > 1:
            raise VsError(
                "VS3079",
                Kind.PRECONDITION,
                f"SPs of several clusters have come ({', '.join(clusters)}); stop those that do "
                "not belong here, start the controller again, and try again",
            )
        (cluster,) = clusters
        views, labels = await self._collected(cluster)
        rebuilt = rebuild(views, labels)
        found = Recovered(cluster, tuple(v.sp for v in views), _devices(views), rebuilt)
        missing = sorted(set(strangers) - set(found.sps))
        if (rebuilt.refused or missing) and not force and not dry_run:
            evidence = [f"{name}: {why}" for name, why in sorted(rebuilt.refused.items())]
            evidence += [f"SP {sp} does not answer" for sp in missing]
            raise VsError(
                "VS6032",
                Kind.UNSAFE,
                f"not everything can be recovered: {'; '.join(evidence)}. Mend that and try again, "
                "or take the rest with --force",
            )
        if dry_run:
            return found
        accesses = await self._accesses(cluster, views)
        return await self._carry_out(found, accesses, who)

    async def _accesses(self, cluster: str, views: Sequence[View]) -> dict[VolumeId, Access]:
        """Who may use each volume, by the SP that has the latest word on it."""
        latest: dict[VolumeId, tuple[int, SpId]] = {}
        for view in views:
            for held in view.t2s:
                known = latest.get(held.t2.volume, (0, view.sp))
                latest[held.t2.volume] = max(known, (held.access, view.sp))
        found = {}
        for volume, (version, sp) in latest.items():
            if version > OPEN.version:
                record, _ = self._registry.strangers[sp]
                found[volume] = await self._processors.connect(record, cluster, 0).access(volume)
        return found

    async def _carry_out(
        self, found: Recovered, accesses: Mapping[VolumeId, Access], who: str
    ) -> Recovered:
        store, registry = self._service.store, self._registry
        await registry.adopt(found.cluster)
        for device in found.devices:
            await store.put_device(device)
        for volume in found.rebuilt.volumes:
            await store.put_volume(volume, expect_version=None, who=who, why=WHY)
            if (access := accesses.get(volume.id)) is not None:
                await store.put_access(
                    volume.id, access, expect_version=OPEN.version, who=who, what=WHY
                )
        self._log.info("recovered", cluster=found.cluster, volumes=len(found.rebuilt.volumes))
        deadline = self._clock.monotonic() + JOIN
        while not set(found.sps) <= set(registry.up) or registry.master is None:
            if self._clock.monotonic() > deadline:
                late = ", ".join(sorted(set(found.sps) - set(registry.up))) or "a master"
                raise VsError(
                    "VS5032",
                    Kind.TIMEOUT,
                    f"the store is recovered, but {late} has not come yet; when all SPs are up, "
                    "`vswitchctl fsck` tells what is left to do",
                )
            await self._clock.sleep(LOOK)
        operations = [
            await self._service.change("recover", volume.name, Recover(), Options(who=who))
            for volume in found.rebuilt.volumes
        ]
        return Recovered(found.cluster, found.sps, found.devices, found.rebuilt, tuple(operations))

    async def _collected(self, cluster: str) -> tuple[list[View], list[LabelView]]:
        async def one(sp: SpId) -> tuple[View, tuple[LabelView, ...]] | None:
            record, _ = self._registry.strangers[sp]
            processor = self._processors.connect(record, cluster, 0)
            try:
                return await processor.view(), await processor.labels()
            except VsError as error:
                self._log.warning("no_view", sp=sp, error=str(error))
                return None

        answers = await asyncio.gather(*(one(sp) for sp in sorted(self._registry.strangers)))
        found = [answer for answer in answers if answer is not None]
        return [view for view, _ in found], [label for _, labels in found for label in labels]


def _devices(views: Sequence[View]) -> tuple[DeviceRecord, ...]:
    """Named after their URIs: what people called them was in the store alone."""
    records: dict[DeviceId, DeviceRecord] = {}
    names: set[str] = set()
    for view in views:
        for device in view.devices:
            if not device.up:
                continue
            known = records.get(device.id)
            if known is None:
                base = device.uri.rstrip("/").rpartition("/")[2].partition("?")[0] or device.id
                base = base.removesuffix(".img")
                name = base if base not in names else f"{base}-{device.id[:8]}"
                names.add(name)
                known = DeviceRecord(
                    device.id, name, device.size, device.unit, checksums=device.checksums
                )
                records[device.id] = known
            known.paths[view.sp] = device.uri
            if device.direct:
                known.direct.append(view.sp)
    return tuple(records.values())
