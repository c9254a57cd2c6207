"""`vswitchd sp`: a storage processor, wired."""

from __future__ import annotations

import argparse
import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from structlog.typing import FilteringBoundLogger

from vswitchd import __version__, config
from vswitchd.api.neighbours import VsmNeighbours
from vswitchd.api.registry_client import RegistryClient
from vswitchd.api.vsm_client import SERVER_OPTIONS
from vswitchd.api.vsm_server import VsmServicer
from vswitchd.errors import Kind, VsError
from vswitchd.model.invariants import check_sp_name
from vswitchd.model.objects import LEASE_SECONDS, SpId
from vswitchd.obs import daemon, log
from vswitchd.obs.engine_metrics import EngineCollector
from vswitchd.obs.http import Web, split_address
from vswitchd.ports import ProcessorRecord
from vswitchd.processor import handover
from vswitchd.processor.engine import Engine
from vswitchd.processor.files import Directory
from vswitchd.processor.heir import Heir
from vswitchd.processor.lone import Lone
from vswitchd.processor.register import Registration
from vswitchd.processor.state import State
from vswitchd.processor.vsm import Vsm
from vswitchd.rpc import vsm_pb2_grpc

#: Seconds for a clean end: requests answered, devices flushed.
SHUTDOWN = 20.0
#: Seconds for calls of the controller that are under way then.
GRACE = 1.0
#: Seconds between looks at the devices, for the metrics and for those that are down.
LOOK = 5.0
#: Another at each start of the machine (Linux, drivers/char/random.c).
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: Calls of the controller that are served at one time; more are refused.
MAX_CALLS = 64

T = TypeVar("T")


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
    parser.add_argument(
        "--nbd-advertised", metavar="HOST:PORT", help="where hosts reach it, if not at --nbd"
    )
    parser.add_argument(
        "--iscsi", action="append", metavar="HOST:PORT", help="for iSCSI; repeatable"
    )
    parser.add_argument(
        "--iscsi-advertised", metavar="HOST:PORT", help="where initiators are told to come"
    )
    parser.add_argument(
        "--iscsi-portal-group", type=int, help="the tag of its portal group, for each SP another"
    )
    parser.add_argument("--metrics", metavar="HOST:PORT", help="/metrics, /livez, /readyz")
    parser.add_argument("--loops", type=int, help="event loops; 0: one for each core")
    parser.add_argument(
        "--device-root", action="append", help="directory that devices may lie in; repeatable"
    )
    parser.add_argument("--hold-seconds", type=float, help="how long I/O waits before it fails")
    parser.add_argument("--log-level", choices=log.LEVELS)
    parser.add_argument("--config", type=Path)
    # For the process before this one: the descriptor by which it gives what it leaves.
    parser.add_argument("--inherit", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Runs until SIGTERM or SIGINT; returns the exit status."""
    return daemon.run(_run(arguments(argv), argv))


async def _run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    settings = config.load(config.Processor, vars(args), args.config)
    limits = config.load(config.Limits, {}, args.config)
    logger = log.set_up(config.load(config.Log, {"level": args.log_level}, args.config).level)
    _check(settings)
    logger = logger.bind(sp=settings.name)
    stop = daemon.stop_event()
    legacy = None
    if args.inherit is not None:
        # From here on the process before this one has ended, all but its last words.
        legacy = await asyncio.to_thread(handover.take, args.inherit)
    async with AsyncExitStack() as ends:
        heir = Heir(argv, logger)
        ends.push_async_callback(heir.give)
        state = State(Directory(settings.state), settings.name)
        ends.callback(state.close)
        sp = StorageProcessor(settings, limits, state, logger, ends, heir, legacy)
        await sp.run(stop)


def _check(settings: config.Processor) -> None:
    """VsError for what can't work, before anything is started."""
    if not settings.name:
        raise VsError("VS1048", Kind.INVALID, "this SP needs a name: --name or [processor] name")
    check_sp_name(settings.name)
    if not settings.nbd:
        raise VsError("VS1048", Kind.INVALID, "hosts need an address: --nbd or [processor] nbd")
    for advertised in (settings.nbd_advertised, settings.iscsi_advertised):
        if advertised:
            split_address(advertised)
    if not 1 <= settings.iscsi_portal_group <= 65535:
        raise VsError("VS1047", Kind.INVALID, "iscsi_portal_group is a number from 1 to 65535")
    for option, address in (("vsm", settings.vsm), ("peer", settings.peer)):
        host, _ = split_address(address)
        if host in ("", "0.0.0.0", "::"):
            raise VsError(
                "VS1049",
                Kind.INVALID,
                f"--{option} {address}: others are told this address, so name the one of this "
                "machine by which they reach it",
            )


class StorageProcessor:
    """One SP's process: what is started is ended by `ends`, in the reverse order."""

    def __init__(
        self,
        settings: config.Processor,
        limits: config.Limits,
        state: State,
        logger: FilteringBoundLogger,
        ends: AsyncExitStack,
        heir: Heir,
        legacy: handover.Legacy | None,
    ) -> None:
        """`legacy`: of the process before this one, if it was replaced while it ran."""
        self._heir = heir
        self._legacy = legacy
        if legacy is not None:
            settings = replace(settings, vsm=legacy.vsm, metrics=legacy.metrics)
        self._settings = settings
        self._limits = limits
        self._state = state
        self._log = logger
        self._ends = ends
        self._ready = False
        self._boot = BOOT_ID.read_text().strip()
        #: What was not flushed before may be lost, until it is known what became of it.
        self._rebooted = state.identity.boot not in ("", self._boot)
        self._metrics = daemon.registry()
        self._devices: list[tuple[str, int, int, bool]] = []
        self._record = ProcessorRecord(
            sp=SpId(settings.name),
            incarnation=secrets.token_hex(8),
            vsm_address="",
            peer_address="",
            nbd_address="",
            version=__version__,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set, or the controller refuses this SP for good."""
        settings = self._settings
        endpoints = daemon.Endpoints(settings.state)
        web = Web(self._metrics, lambda: self._ready)
        metrics = await web.start(settings.metrics)
        self._ends.push_async_callback(web.stop)
        client = RegistryClient(settings.controller)
        self._ends.push_async_callback(client.close)
        registration = Registration(client, self._state, self._log)
        if not self._state.identity.cluster_id:
            # The first start of all: whose devices these are, the controller says.
            joined = await _unless(stop, registration.join(self._record, ""))
            if joined is None:
                return
            self._state.set_cluster(joined[0])
        engine = self._start_engine()
        vsm = Vsm(self._state, engine, self._record.incarnation, self._log)
        self._ends.push_async_callback(self._end_engine, engine, vsm)
        peer = self._listen_peer(engine)
        await vsm.start()
        # Hosts come in when all that was committed is served again.
        nbd = self._listen_nbd(engine)
        iscsi = self._listen_iscsi(engine)
        address = await self._serve_vsm(vsm)
        self._record = replace(
            self._record,
            vsm_address=address,
            peer_address=peer,
            nbd_address=_advertised(settings.nbd_advertised, nbd),
        )
        self._ready = True
        life = self._record.incarnation
        bound = {"vsm": address, "peer": peer, "nbd": nbd, "iscsi": iscsi, "metrics": metrics}
        endpoints.write(**bound, incarnation=life)
        self._ends.callback(endpoints.remove)
        self._log.info("ready", **bound)
        neighbours = VsmNeighbours(self._state.identity.cluster_id)
        self._ends.push_async_callback(neighbours.close)
        lone = Lone(
            self._state,
            engine,
            vsm.voter,
            neighbours,
            registration.silent,
            settings.alone_after_seconds,
            self._log,
        )
        for work in (self._look(engine, vsm), lone.run()):
            self._ends.callback(asyncio.create_task(work).cancel)
        await _unless(
            stop,
            self._heir.ready(),
            registration.keep(self._record, self._state.identity.cluster_id, vsm.trouble),
        )
        self._heir.legacy.vsm, self._heir.legacy.metrics = address, metrics

    def _listen_peer(self, engine: Engine) -> str:
        """The address at which other SPs reach this one: that of before, if it was replaced."""
        for one in self._legacy.listeners if self._legacy else []:
            if one.speaks == "peer":
                return engine.take_listener(one.fd, one.speaks)
        return _bound("peer", self._settings.peer, engine.listen_peer)

    def _listen_nbd(self, engine: Engine) -> list[str]:
        """Where hosts come in: the sockets of the process before, or of systemd, or its own."""
        if self._legacy:
            bound = self._taken(engine, "nbd")
            for session in self._legacy.sessions:
                engine.take_session(session)
            return bound
        if fds := daemon.activated().get("nbd"):
            return [engine.take_listener(fd, "nbd") for fd in fds]
        return [_bound("nbd", address, engine.listen_nbd) for address in self._settings.nbd]

    def _listen_iscsi(self, engine: Engine) -> list[str]:
        """Its portals: those of the process before, or its own."""
        settings = self._settings
        tag, told = settings.iscsi_portal_group, settings.iscsi_advertised
        engine.set_portal_group(tag, told)
        if self._legacy:
            bound = self._taken(engine, "iscsi")
        else:
            bound = [_bound("iscsi", address, engine.listen_iscsi) for address in settings.iscsi]
        if told and bound:
            # With the port that was bound, if none was configured.
            engine.set_portal_group(tag, _advertised(told, bound))
        return bound

    def _taken(self, engine: Engine, speaks: str) -> list[str]:
        """The listeners of the process before this one at which that is spoken."""
        listeners = self._legacy.listeners if self._legacy else []
        return [engine.take_listener(one.fd, speaks) for one in listeners if one.speaks == speaks]

    def _start_engine(self) -> Engine:
        settings, limits = self._settings, self._limits
        if not self._rebooted:
            self._state.set_boot(self._boot)
        return Engine(
            {
                "cluster_id": self._state.identity.cluster_id,
                "sp": settings.name,
                "incarnation": self._record.incarnation,
                "loops": settings.loops,
                "hold_seconds": settings.hold_seconds,
                "max_inflight_bytes_per_connection": limits.inflight_bytes,
                "max_connections": limits.connections,
                "spin_microseconds": settings.spin_microseconds,
                "lease_seconds": LEASE_SECONDS,
                "map_region": settings.map_region_bytes,
                "map_clear_seconds": settings.map_clear_seconds,
                "leg_deadline_seconds": settings.leg_deadline_seconds,
                "resident_percent": limits.resident_percent,
                "rebooted": self._rebooted,
                "device_roots": [str(Path(root).resolve()) for root in settings.device_root],
            }
        )

    async def _end_engine(self, engine: Engine, vsm: Vsm) -> None:
        """Answers and flushes everything; remembers a clean end."""
        resyncing = await vsm.resyncing()
        if self._heir.named:
            clean, legacy = await engine.hand_over(SHUTDOWN)
            self._heir.legacy.listeners = legacy.listeners
            self._heir.legacy.sessions = legacy.sessions
        else:
            clean = await engine.shutdown(SHUTDOWN)
        if clean and not resyncing:
            vsm.ended()
        self._log.info("ended", clean=clean)

    async def _serve_vsm(self, vsm: Vsm) -> str:
        """Answers the controller; returns the bound address."""
        server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
        servicer = VsmServicer(vsm)
        vsm_pb2_grpc.add_VsmServiceServicer_to_server(servicer, server)
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        await checks.set("", health_pb2.HealthCheckResponse.SERVING)
        host = self._settings.vsm.rpartition(":")[0]
        port = _bound("vsm", self._settings.vsm, server.add_insecure_port)
        await server.start()
        self._ends.push_async_callback(servicer.finish)
        self._ends.push_async_callback(server.stop, GRACE)
        return f"{host}:{port}"

    async def _look(self, engine: Engine, vsm: Vsm) -> None:
        """Keeps what the metrics tell of devices fresh, and opens those that have come back."""
        self._metrics.register(EngineCollector(engine.metrics, lambda: self._devices))
        while True:
            try:
                await vsm.reopen()
                if self._rebooted and await vsm.is_certain():
                    self._state.set_boot(self._boot)
                self._devices = [
                    (d.id, d.size, d.size - sum(run.length for run in d.free), d.up)
                    for d in await vsm.devices()
                ]
            except VsError as error:
                self._log.warning("look_failed", error=str(error))
            await asyncio.sleep(LOOK)


def _advertised(address: str, bound: Sequence[str]) -> str:
    """Where hosts reach this SP: as configured (port 0: the one that was bound), or its first
    address, rather one of TCP."""
    first = next((one for one in bound if not one.startswith("unix:")), bound[0])
    if not address and first.startswith(("0.0.0.0:", "[::]:")):
        structlog.get_logger().warning(
            "hosts_are_told", address=first, error="no host can connect there: say nbd_advertised"
        )
    if address.endswith(":0"):
        return f"{address.rpartition(':')[0]}:{first.rpartition(':')[2]}"
    return address or first


def _bound(option: str, address: str, listen: Callable[[str], T]) -> T:
    """Listens; VsError VS3031 says which option names an address that can't be had."""
    try:
        return listen(address)
    except (VsError, RuntimeError) as error:
        raise VsError(
            "VS3031",
            Kind.PRECONDITION,
            f"--{option}: can't listen at {address}; does another process? End it or choose "
            f"another address ({getattr(error, 'message', error)})",
        ) from None


async def _unless(stop: asyncio.Event, *works: Coroutine[None, None, T]) -> T | None:
    """The result of the work that is done first, or None if `stop` came before."""
    tasks, stopped = [asyncio.create_task(work) for work in works], asyncio.create_task(stop.wait())
    await asyncio.wait({*tasks, stopped}, return_when=asyncio.FIRST_COMPLETED)
    for task in (stopped, *tasks):
        if not task.done():
            task.cancel()
    return next((task.result() for task in tasks if task.done() and not task.cancelled()), None)
