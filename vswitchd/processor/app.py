"""`vswitchd sp`: a storage processor, wired."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
from collections.abc import Coroutine, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from structlog.typing import FilteringBoundLogger

from vswitchd import __version__, config
from vswitchd.api.registry_client import RegistryClient
from vswitchd.api.vsm_client import OPTIONS
from vswitchd.api.vsm_server import VsmServicer
from vswitchd.errors import Kind, VsError
from vswitchd.model.invariants import check_sp_name
from vswitchd.model.objects import SpId
from vswitchd.obs import daemon, log
from vswitchd.obs.engine_metrics import EngineCollector
from vswitchd.obs.http import Web
from vswitchd.ports import ProcessorRecord
from vswitchd.processor.engine import Engine
from vswitchd.processor.register import Registration
from vswitchd.processor.state import State
from vswitchd.processor.vsm import Vsm
from vswitchd.rpc import vsm_pb2_grpc

#: Seconds for a clean end: requests answered, devices flushed.
SHUTDOWN = 20.0


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; what is not given is None."""
    parser = argparse.ArgumentParser(prog="vswitchd sp", description="run a storage processor")
    parser.add_argument("--name", help="this SP's name in the cluster")
    parser.add_argument("--state", type=Path, help="directory for what must survive a restart")
    parser.add_argument("--controller", metavar="HOST:PORT", help="the controller's API")
    parser.add_argument("--vsm", metavar="HOST:PORT", help="where the controller reaches this SP")
    parser.add_argument("--peer", metavar="HOST:PORT", help="where other SPs reach this SP")
    parser.add_argument(
        "--nbd", action="append", metavar="ADDRESS", help="HOST:PORT or unix:/path; repeatable"
    )
    parser.add_argument("--metrics", metavar="HOST:PORT", help="/metrics, /livez, /readyz")
    parser.add_argument("--loops", type=int, help="event loops; 0: one for each core")
    parser.add_argument(
        "--device-root", action="append", help="directory that devices may lie in; repeatable"
    )
    parser.add_argument("--hold-seconds", type=float, help="how long I/O waits before it fails")
    parser.add_argument("--log-level", choices=log.LEVELS)
    parser.add_argument("--config", type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Runs until SIGTERM or SIGINT."""
    args = arguments(argv)
    return daemon.run(_run(args))


async def _run(args: argparse.Namespace) -> None:
    settings = config.load(config.Processor, vars(args), args.config)
    limits = config.load(config.Limits, {}, args.config)
    logger = log.set_up(config.load(config.Log, {"level": args.log_level}, args.config).level)
    check_sp_name(settings.name)
    logger = logger.bind(sp=settings.name)
    settings.state.mkdir(parents=True, exist_ok=True)
    stop = daemon.stop_event()
    endpoints = daemon.Endpoints(settings.state)
    state = State(settings.state, settings.name)
    client = RegistryClient(settings.controller)
    registration = Registration(client, logger)
    record = ProcessorRecord(
        sp=SpId(settings.name),
        incarnation=secrets.token_hex(8),
        vsm_address="",
        peer_address="",
        nbd_address="",
        version=__version__,
    )
    if not state.identity.cluster_id:
        cluster = await _unless(stop, registration.join(record, ""))
        if cluster is None:
            return
        state.set_cluster(cluster[0])
    engine = Engine(
        {
            "cluster_id": state.identity.cluster_id,
            "sp": settings.name,
            "incarnation": record.incarnation,
            "loops": settings.loops,
            "hold_seconds": settings.hold_seconds,
            "max_inflight_bytes_per_connection": limits.inflight_bytes,
            "max_connections": limits.connections,
            "device_roots": settings.device_root,
        }
    )
    vsm = Vsm(state, engine, record.incarnation, logger)
    try:
        await _serve(settings, state, engine, vsm, record, registration, endpoints, stop, logger)
    finally:
        await client.close()


async def _serve(
    settings: config.Processor,
    state: State,
    engine: Engine,
    vsm: Vsm,
    record: ProcessorRecord,
    registration: Registration,
    endpoints: daemon.Endpoints,
    stop: asyncio.Event,
    logger: FilteringBoundLogger,
) -> None:
    peer = engine.listen_peer(settings.peer)
    await vsm.start()
    # Hosts come in when all that was committed is served again.
    nbd = [engine.listen_nbd(address) for address in settings.nbd]
    server = grpc.aio.server(options=OPTIONS)
    vsm_pb2_grpc.add_VsmServiceServicer_to_server(VsmServicer(vsm), server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    host = settings.vsm.rpartition(":")[0]
    try:
        port = server.add_insecure_port(settings.vsm)
    except RuntimeError:
        raise VsError(
            "VS3031",
            Kind.PRECONDITION,
            f"can't listen at {settings.vsm}; is another process using it?",
        ) from None
    await server.start()
    own = daemon.registry()
    views: list[tuple[str, int, int, bool]] = []
    own.register(EngineCollector(engine.metrics, lambda: views))
    web = Web(own, lambda: True)
    metrics = await web.start(settings.metrics)
    # Hosts elsewhere can't use a unix socket, so it is told only where there is nothing else.
    told = next((address for address in nbd if not address.startswith("unix:")), nbd[0])
    record = ProcessorRecord(
        record.sp, record.incarnation, f"{host}:{port}", peer, told, record.version
    )
    beats = asyncio.create_task(registration.keep(record, state.identity.cluster_id))
    looks = asyncio.create_task(_look(engine, views))
    endpoints.write(vsm=f"{host}:{port}", peer=peer, nbd=nbd, metrics=metrics)
    logger.info("ready", vsm=f"{host}:{port}", peer=peer, nbd=nbd, metrics=metrics)
    try:
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({stopped, beats}, return_when=asyncio.FIRST_COMPLETED)
        if beats.done():
            beats.result()
    finally:
        endpoints.remove()
        for task in (beats, looks):
            task.cancel()
        await server.stop(1.0)
        await web.stop()
        await vsm.note_resync()
        clean = await engine.shutdown(SHUTDOWN)
        await vsm.ended(clean=clean)
        logger.info("ended", clean=clean)


async def _look(engine: Engine, views: list[tuple[str, int, int, bool]]) -> None:
    """Keeps what metrics tell of devices fresh."""
    while True:
        with contextlib.suppress(VsError):
            views[:] = [
                (d.id, d.size, d.size - sum(run.length for run in d.free), d.up)
                for d in await engine.devices()
            ]
        await asyncio.sleep(10.0)


async def _unless(
    stop: asyncio.Event, work: Coroutine[None, None, tuple[str, float]]
) -> tuple[str, float] | None:
    """The work's result, or None if `stop` came first."""
    task = asyncio.create_task(work)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        stopped.cancel()
        return task.result()
    task.cancel()
    return None
