"""The ClusterService."""

from __future__ import annotations

import contextlib
from typing import Any, TypeAlias

import grpc

from vswitchd import __version__
from vswitchd.api.convert_public import device_message
from vswitchd.api.errors import servicer_errors
from vswitchd.api.operation import who
from vswitchd.controller import explain as explaining
from vswitchd.controller import fsck
from vswitchd.controller.drainer import Drainer
from vswitchd.controller.health import checks
from vswitchd.controller.reconciler import Reconciler
from vswitchd.controller.recover import Recovery
from vswitchd.controller.service import Service
from vswitchd.errors import Kind, VsError
from vswitchd.model.layout import print_volume
from vswitchd.model.objects import SpId
from vswitchd.model.view import LabelView
from vswitchd.rpc import cluster_pb2, cluster_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_SEVERITIES = {
    "warning": cluster_pb2.HEALTH_SEVERITY_WARNING,
    "error": cluster_pb2.HEALTH_SEVERITY_ERROR,
}


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    """cluster.proto's public half over the controller's `Service`."""

    def __init__(
        self, service: Service, drainer: Drainer, reconciler: Reconciler, recovery: Recovery
    ) -> None:
        self._service = service
        self._drainer = drainer
        self._reconciler = reconciler
        self._recovery = recovery

    @servicer_errors
    async def GetStatus(
        self, _request: cluster_pb2.GetStatusRequest, _: Context
    ) -> cluster_pb2.ClusterStatus:
        service, registry = self._service, self._service.registry
        views = await service.collector.collect()
        volumes = await service.store.volumes()
        devices = [device_message(one, views) for one in await service.store.devices()]
        operations = await service.open_operations()
        found = checks(
            sorted(registry.records),
            registry.up,
            registry.master,
            volumes,
            views,
            operations,
            await service.store.drained(),
            self._drainer.stuck,
        )
        worst = max(
            (_SEVERITIES[check.severity] for check in found),
            default=cluster_pb2.HEALTH_SEVERITY_OK,
        )
        return cluster_pb2.ClusterStatus(
            cluster_id=registry.cluster,
            health=worst,
            checks=[
                cluster_pb2.HealthCheck(
                    code=check.code, severity=_SEVERITIES[check.severity], message=check.message
                )
                for check in found
            ],
            term=registry.election.term,
            master=registry.master or "",
            processors_up=len(registry.up),
            processors=len(registry.records),
            devices=len(devices),
            volumes=len(volumes),
            capacity_bytes=sum(device.size for device in devices),
            allocated_bytes=sum(device.allocated for device in devices),
            operations_open=len(operations),
            version=__version__,
        )

    @servicer_errors
    async def Fsck(self, request: cluster_pb2.FsckRequest, _: Context) -> cluster_pb2.FsckResponse:
        if request.repair:
            # Twice: what is referred to goes only after its references.
            await self._reconciler.reconcile()
            await self._reconciler.reconcile()
        return cluster_pb2.FsckResponse(
            findings=[
                cluster_pb2.Finding(
                    code=one.code,
                    severity=_SEVERITIES[one.severity],
                    object=one.object,
                    evidence=one.evidence,
                    repair=one.repair,
                )
                for one in fsck.findings(await self._evidence())
            ]
        )

    async def _evidence(self) -> fsck.Evidence:
        service, registry = self._service, self._service.registry
        # Before and after: what an operation changes meanwhile is not judged.
        busy = service.busy()
        views = await service.collector.collect()
        labels: dict[SpId, tuple[LabelView, ...]] = {}
        for sp in sorted(views):
            with contextlib.suppress(VsError):
                labels[sp] = await registry.processor(sp).labels()
        return fsck.Evidence(
            volumes=await service.store.volumes(),
            devices=await service.store.devices(),
            ledger=await service.store.ledger(),
            known=registry.records.keys(),
            term=await service.store.term(),
            busy=busy | service.busy(),
            views=views,
            labels=labels,
            peers=registry.peers,
            cluster=registry.cluster,
        )

    @servicer_errors
    async def Recover(
        self, request: cluster_pb2.RecoverRequest, context: Context
    ) -> cluster_pb2.RecoverResponse:
        found = await self._recovery.recover(
            force=request.force, dry_run=request.dry_run, who=who(context)
        )
        started = {record.volume: record.id for record in found.operations}
        names = {device.id: device.name for device in found.devices}
        volumes = [
            cluster_pb2.RecoveredVolume(
                name=volume.name,
                layout=print_volume(volume, names),
                size=volume.size,
                version=volume.version,
                operation_id=started.get(volume.id, ""),
            )
            for volume in found.rebuilt.volumes
        ]
        volumes += [
            cluster_pb2.RecoveredVolume(name=name, refused=why)
            for name, why in sorted(found.rebuilt.refused.items())
        ]
        return cluster_pb2.RecoverResponse(
            cluster_id=found.cluster,
            sps=found.sps,
            devices=[device.name for device in found.devices],
            volumes=volumes,
            strangers=found.rebuilt.strangers,
        )

    @servicer_errors
    async def Explain(
        self, request: cluster_pb2.ExplainRequest, _: Context
    ) -> cluster_pb2.ExplainResponse:
        service, store, name = self._service, self._service.store, request.object
        volumes = await store.volumes()
        asked = [v for v in volumes if name in (v.name, v.id, *(t1.id for t1 in v.t1s))]
        known = explaining.Known(
            volumes=volumes,
            devices=await store.devices(),
            processors=service.registry.records,
            operations=await service.operations(),
            drained=await store.drained(),
            views=await service.collector.collect(),
            history={volume.id: await store.history(volume.id) for volume in asked},
            master=service.registry.master,
        )
        found = explaining.explain(name, known)
        if not found:
            raise VsError(
                "VS2048",
                Kind.NOT_FOUND,
                f"there is no volume, SP, device, T1 object or operation {name!r}; the lists of "
                "`vswitchctl volume`, `sp`, `device` and `operation` show what there is",
            )
        return cluster_pb2.ExplainResponse(
            explanations=[
                cluster_pb2.Explanation(kind=one.kind, object=one.object, sentences=one.sentences)
                for one in found
            ]
        )
