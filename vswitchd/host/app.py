"""`vswitchd host`: keeps a Linux host's volumes attached."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc

from vswitchd import config
from vswitchd.api.host import HostServicer
from vswitchd.api.paths_client import PathsClient
from vswitchd.errors import Kind, VsError
from vswitchd.host.kernel import Kernel
from vswitchd.host.metrics import HostCollector
from vswitchd.host.service import Host
from vswitchd.obs import daemon, log
from vswitchd.obs.http import Web
from vswitchd.rpc import host_pb2_grpc

#: Of `timeout_seconds`: what a host has asked may be begun for two seconds (docs/engine.md,
#: 'Writes that are sent again'), so it is asked again elsewhere after that.
LEAST_TIMEOUT = 3
#: Seconds that calls in flight have when the service ends.
GRACE = 1.0


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; config.Host says what the settings mean."""
    parser = argparse.ArgumentParser(prog="vswitchd host", description=__doc__)
    parser.add_argument("--state", type=Path, help="directory of what it remembers")
    parser.add_argument("--controller", metavar="HOST:PORT", help="the controller's API")
    parser.add_argument("--socket", type=Path, help="unix socket for `vswitchctl host`")
    parser.add_argument("--hosttab", type=Path, help="what is attached from the beginning")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="/metrics, /livez, /readyz")
    parser.add_argument(
        "--timeout-seconds", type=int, help="until a request is tried on another connection"
    )
    parser.add_argument(
        "--hold-seconds", type=int, help="how long I/O waits when no SP can be reached"
    )
    parser.add_argument("--log-level", choices=log.LEVELS)
    parser.add_argument("--config", type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Runs until SIGTERM or SIGINT, and leaves what is attached attached; the exit status."""
    return daemon.run(run(arguments(argv)))


async def run(args: argparse.Namespace) -> None:
    """The service, until it is told to stop. VsError VS1082: it is set up for data loss."""
    settings = config.load(config.Host, vars(args), args.config)
    logger = log.set_up(config.load(config.Log, {"level": args.log_level}, args.config).level)
    if settings.timeout_seconds < LEAST_TIMEOUT or settings.hold_seconds < 1:
        raise VsError(
            "VS1082",
            Kind.INVALID,
            f"[host] timeout_seconds is {LEAST_TIMEOUT} or more, since an older write might land "
            "over a newer one otherwise, and hold_seconds 1 or more, since I/O would fail at once",
        )
    stop = daemon.stop_event()
    for directory in (settings.state, settings.socket.parent):
        directory.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as ends:
        endpoints = daemon.Endpoints(settings.state)
        own, ready = daemon.registry(), False
        web = Web(own, lambda: ready)
        metrics = await web.start(settings.metrics)
        ends.push_async_callback(web.stop)
        client = PathsClient(settings.controller)
        ends.push_async_callback(client.close)
        kernel = Kernel(settings.timeout_seconds, settings.hold_seconds)
        state = settings.state / "attachments.json"
        host = Host(kernel, client, state, settings.hosttab, logger)
        own.register(HostCollector(host))
        ends.push_async_callback(host.stop)
        server = grpc.aio.server()
        host_pb2_grpc.add_HostServiceServicer_to_server(HostServicer(host), server)
        settings.socket.unlink(missing_ok=True)
        # Who may write to the socket may make block devices.
        before = os.umask(0o077)
        try:
            server.add_insecure_port(f"unix:{settings.socket}")
        finally:
            os.umask(before)
        await server.start()
        ends.push_async_callback(server.stop, GRACE)
        await host.start(settings.boot_seconds)
        ready = True
        endpoints.write(socket=str(settings.socket), metrics=metrics)
        ends.callback(endpoints.remove)
        logger.info("ready", socket=str(settings.socket), metrics=metrics)
        await stop.wait()
        logger.info("ended")
