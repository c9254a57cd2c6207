"""What every daemon does around its work: endpoints.json, signals, errors to people."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry, Gauge

from vswitchd import __version__
from vswitchd.errors import VsError


def registry() -> CollectorRegistry:
    """A registry with what all processes tell."""
    own = CollectorRegistry()
    build = Gauge("vswitchd_build_info", "1", ["version"], registry=own)
    build.labels(__version__).set(1)
    return own


def notify(state: str) -> None:
    """Tells systemd (sd_notify(3)); without it nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.connect("\0" + address[1:] if address.startswith("@") else address)
            out.sendall(state.encode())


def activated() -> dict[str, list[int]]:
    """Sockets that systemd has opened for this process, by their FileDescriptorName
    (sd_listen_fds(3)); none without it. To be asked for once."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return {}
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    for number in range(count):
        fd = 3 + number
        os.set_inheritable(fd, False)
        found.setdefault(names[number] if number < len(names) else "", []).append(fd)
    return found


async def _watched(main: Coroutine[None, None, None]) -> None:
    """Runs it, and tells systemd's watchdog (WatchdogSec) as long as the event loop turns."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")

    async def alive() -> None:
        while True:
            notify("WATCHDOG=1")
            await asyncio.sleep(int(microseconds) / 3e6)

    task = asyncio.create_task(alive()) if microseconds.isdigit() else None
    try:
        await main
    finally:
        if task is not None:
            task.cancel()


class Endpoints:
    """`endpoints.json` in the state directory: where a daemon that is ready can be reached."""

    def __init__(self, state: Path) -> None:
        self._path = state / "endpoints.json"
        self._path.unlink(missing_ok=True)

    def write(self, **facts: object) -> None:
        """Says that the daemon is ready."""
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps({"pid": os.getpid(), **facts}))
        beside.rename(self._path)
        notify("READY=1")

    def remove(self) -> None:
        """Says that it is ending."""
        notify("STOPPING=1")
        self._path.unlink(missing_ok=True)


def stop_event() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def run(main: Coroutine[None, None, None]) -> int:
    """Runs a daemon; a VsError ends it with its text and status 1."""
    try:
        uvloop.run(_watched(main))
    except VsError as error:
        print(f"vswitchd: {error}", file=sys.stderr)
        return 1
    return 0
