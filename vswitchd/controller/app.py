"""`vswitchd controller`, wired."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vswitchd import config
from vswitchd.api.cluster import ClusterServicer
from vswitchd.api.device import DeviceServicer
from vswitchd.api.operation import OperationServicer
from vswitchd.api.processor import ProcessorServicer, RegistryServicer
from vswitchd.api.volume import VolumeServicer
from vswitchd.api.vsm_client import SERVER_OPTIONS, VsmProcessors
from vswitchd.controller.access import Admission
from vswitchd.controller.collector import Collector
from vswitchd.controller.drainer import Drainer
from vswitchd.controller.executor import Executor
from vswitchd.controller.guardian import Guardian
from vswitchd.controller.health import Check, checks
from vswitchd.controller.inventory import Inventory
from vswitchd.controller.learner import Learner
from vswitchd.controller.metrics import Metrics
from vswitchd.controller.planner import Planner
from vswitchd.controller.reconciler import Reconciler
from vswitchd.controller.recover import Recovery
from vswitchd.controller.registry import Registry
from vswitchd.controller.service import Service
from vswitchd.controller.turns import Turns
from vswitchd.controller.verifier import Verifier
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import SpId, Volume
from vswitchd.model.view import View
from vswitchd.obs import daemon, log
from vswitchd.obs.http import Web
from vswitchd.restructure.steps import Copy
from vswitchd.rpc import (
    cluster_pb2,
    cluster_pb2_grpc,
    device_pb2,
    device_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    processor_pb2,
    processor_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)
from vswitchd.store.sqlite import SqliteStore

#: Seconds between updates of the gauges.
GAUGES = 2.0


class SystemClock:
    """`ports.Clock` of this machine."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; what is not given is None."""
    parser = argparse.ArgumentParser(prog="vswitchd controller", description="run the controller")
    parser.add_argument("--state", type=Path, help="directory of the store")
    parser.add_argument("--listen", metavar="HOST:PORT", help="the API for vswitchctl and SPs")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="/metrics, /livez, /readyz")
    parser.add_argument("--log-level", choices=log.LEVELS)
    parser.add_argument("--config", type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Runs until SIGTERM or SIGINT."""
    return daemon.run(_run(arguments(argv)))


async def _run(args: argparse.Namespace) -> None:
    settings = config.load(config.Controller, vars(args), args.config)
    level = config.load(config.Log, {"level": args.log_level}, args.config).level
    logger = log.set_up(level).bind(program="controller")
    settings.state.mkdir(parents=True, exist_ok=True)
    stop = daemon.stop_event()
    endpoints = daemon.Endpoints(settings.state)
    own = daemon.registry()
    metrics = Metrics(own)
    clock = SystemClock()
    store = SqliteStore(settings.state, metrics.store.observe)
    processors = VsmProcessors()
    registry = Registry(store, processors, clock, logger, lambda _: reconciler.wake())
    collector = Collector(registry, logger)
    executor = Executor(
        store,
        registry,
        clock,
        logger,
        lambda step, s: metrics.step.labels(step).observe(s),
        settings.copies_at_once,
    )
    planner = Planner(store, registry, collector)
    turns = Turns()
    service = Service(store, registry, collector, planner, executor, turns, clock, logger)
    inventory = Inventory(store, registry, collector, executor, service.planning)
    drainer = Drainer(service, clock, logger)
    recovery = Recovery(service, registry, processors, clock, logger)
    reconciler = Reconciler(store, registry, collector, turns, clock, logger, service.busy)
    admission = Admission(service, reconciler.wake, logger)
    learner = Learner(store, registry, collector, executor, turns, logger)
    guardian = Guardian(
        service,
        learner,
        processors,
        clock,
        logger,
        settings.lost_after_seconds,
        settings.replace_after_seconds,
    )
    verifier = Verifier(
        service,
        clock,
        logger,
        settings.verify_every_seconds,
        settings.verify_bytes_per_second,
    )
    await registry.start()
    await executor.resume()
    server = await make_server(service, inventory, drainer, reconciler, recovery, admission)
    host = settings.listen.rpartition(":")[0]
    try:
        port = server.add_insecure_port(settings.listen)
    except RuntimeError:
        raise VsError(
            "VS3031",
            Kind.PRECONDITION,
            f"can't listen at {settings.listen}; is another process using it?",
        ) from None
    await server.start()
    web = Web(own, lambda: True)
    bound = await web.start(settings.metrics)
    tasks = [
        asyncio.create_task(registry.run()),
        asyncio.create_task(reconciler.run()),
        asyncio.create_task(drainer.run()),
        asyncio.create_task(guardian.run()),
        *([asyncio.create_task(verifier.run())] if settings.verify_every_seconds else []),
        asyncio.create_task(_gauges(metrics, service, drainer)),
    ]
    endpoints.write(api=f"{host}:{port}", metrics=bound)
    logger.info("ready", api=f"{host}:{port}", metrics=bound, cluster=registry.cluster)
    try:
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        endpoints.remove()
        for task in tasks:
            task.cancel()
        await executor.stop()
        await server.stop(1.0)
        await web.stop()
        await processors.close()
        await store.close()
        logger.info("ended")


async def make_server(
    service: Service,
    inventory: Inventory,
    drainer: Drainer,
    reconciler: Reconciler,
    recovery: Recovery,
    admission: Admission,
) -> grpc.aio.Server:
    """The public API with health and reflection, not started."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    volume_pb2_grpc.add_VolumeServiceServicer_to_server(VolumeServicer(service, admission), server)
    device_pb2_grpc.add_DeviceServiceServicer_to_server(DeviceServicer(service, inventory), server)
    processor_pb2_grpc.add_ProcessorServiceServicer_to_server(
        ProcessorServicer(service, inventory), server
    )
    operation_pb2_grpc.add_OperationServiceServicer_to_server(OperationServicer(service), server)
    cluster = ClusterServicer(service, drainer, reconciler, recovery)
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(cluster, server)
    cluster_pb2_grpc.add_RegistryServiceServicer_to_server(
        RegistryServicer(service.registry), server
    )
    serving = health_pb2.HealthCheckResponse.SERVING
    checker = health.aio.HealthServicer()
    await checker.set("", serving)
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    names = [
        module.DESCRIPTOR.services_by_name[name].full_name
        for module, name in (
            (volume_pb2, "VolumeService"),
            (device_pb2, "DeviceService"),
            (processor_pb2, "ProcessorService"),
            (operation_pb2, "OperationService"),
            (cluster_pb2, "ClusterService"),
            (cluster_pb2, "RegistryService"),
        )
    ]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    return server


async def _gauges(metrics: Metrics, service: Service, drainer: Drainer) -> None:
    """Keeps what is not counted where it happens."""
    found: list[Check] = []
    seen: object = None
    seen_volumes: Sequence[Volume] | None = None
    seen_views: Mapping[SpId, View] | None = None
    while True:
        registry = service.registry
        live = [one.record for one in service.executor.live.values()]
        metrics.operations.clear()
        for record in live:
            metrics.operations.labels(record.kind, record.state).inc()
        plans = [one.plan for one in service.executor.live.values()]
        metrics.copied.set(sum(one.copied for one in service.executor.live.values()))
        metrics.total.set(sum(s.bytes for p in plans for s in p.steps if isinstance(s, Copy)))
        metrics.age.set(max((time.time() - record.created for record in live), default=0.0))
        metrics.term.set(registry.election.term)
        metrics.master.clear()
        for sp in registry.records:
            metrics.processor_up.labels(sp).set(registry.is_up(sp))
            metrics.master.labels(sp).set(registry.master == sp)
        try:
            volumes = await service.store.volumes()
            drained = await service.store.drained()
        except VsError:
            # The store's own log says what is wrong; the next round may find it mended.
            await asyncio.sleep(GAUGES)
            continue
        known = sorted(registry.records)
        views = service.collector.last
        if volumes is not seen_volumes:
            metrics.set_legs(volumes)
        now = (known, registry.up, registry.master, live, drained, drainer.stuck)
        if now != seen or volumes is not seen_volumes or views is not seen_views:
            # Every volume is looked at, so only when there is something new to see.
            seen, seen_volumes, seen_views = now, volumes, views
            found = checks(
                known, registry.up, registry.master, volumes, views, live, drained, drainer.stuck
            )
        metrics.check.clear()
        for check in found:
            metrics.check.labels(check.code, check.severity).set(1)
        levels = {"warning": 1, "error": 2}
        metrics.health.set(max((levels[check.severity] for check in found), default=0))
        await asyncio.sleep(GAUGES)
