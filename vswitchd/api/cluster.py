"""The ClusterService."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from vswitchd import __version__
from vswitchd.api.convert_public import device_message
from vswitchd.api.errors import servicer_errors
from vswitchd.controller.drainer import Drainer
from vswitchd.controller.health import checks
from vswitchd.controller.service import Service
from vswitchd.rpc import cluster_pb2, cluster_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_SEVERITIES = {
    "warning": cluster_pb2.HEALTH_SEVERITY_WARNING,
    "error": cluster_pb2.HEALTH_SEVERITY_ERROR,
}


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    """cluster.proto's public half over the controller's `Service`."""

    def __init__(self, service: Service, drainer: Drainer) -> None:
        self._service = service
        self._drainer = drainer

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
