"""`vswitchd quickstart`, wired: start, furnish, tell, wait, end."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TextIO

from vswitchd.errors import Kind, VsError
from vswitchd.obs.daemon import stop_event
from vswitchd.quickstart import ports
from vswitchd.quickstart.children import Child
from vswitchd.quickstart.demo import SPS, furnish
from vswitchd.quickstart.text import welcome


def main(argv: Sequence[str]) -> int:
    """Runs until Ctrl-C, SIGTERM or the death of a child; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="vswitchd quickstart",
        description="Run a controller and three SPs on loopback, with a mirrored volume to try.",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("run"),
        help="where everything is kept; a second run finds the same data there (%(default)s)",
    )
    directory: Path = parser.parse_args(argv).dir.absolute()
    try:
        asyncio.run(_run(directory))
    except VsError as error:
        print(f"vswitchd quickstart: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(directory: Path) -> None:
    stop = stop_event()
    files = directory / "devices"
    try:
        files.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
    except OSError as error:
        raise VsError(
            "VS1070", Kind.INVALID, f"{directory} can't be used ({error}); give another --dir"
        ) from None
    with lock:
        _claim(lock, directory)
        chosen = ports.choose(directory / "ports.json")
        controller, sps = _children(directory, files, chosen)
        try:
            await _unless(stop, _life(directory, files, chosen, controller, sps))
        finally:
            _say("\nEnding; the data stays.")
            await asyncio.gather(*(sp.stop() for sp in sps))
            await controller.stop()


def _claim(lock: TextIO, directory: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise VsError(
            "VS3071",
            Kind.PRECONDITION,
            f"a quickstart runs in {directory} already; end it, or give another --dir",
        ) from None


def _children(directory: Path, files: Path, chosen: dict[str, int]) -> tuple[Child, list[Child]]:
    """The controller and the SPs, not started."""

    def address(name: str) -> str:
        return f"{ports.HOST}:{chosen[name]}"

    def listening(name: str, *options: str) -> list[str]:
        return [word for o in options for word in (f"--{o}", address(f"{name}.{o}"))]

    controller = ["controller", *listening("controller", "listen", "metrics")]
    sps = [
        Child(
            sp,
            directory,
            [
                *("sp", "--name", sp, "--controller", address("controller.listen")),
                *listening(sp, "vsm", "peer", "nbd", "metrics"),
                *("--nbd", f"unix:{directory / sp}.sock", "--device-root", str(files)),
            ],
        )
        for sp in SPS
    ]
    return Child("controller", directory, controller), sps


async def _life(
    directory: Path, files: Path, chosen: dict[str, int], controller: Child, sps: list[Child]
) -> None:
    """Raises when a child can't start or has died; never returns."""
    _say(f"Starting a controller and {len(sps)} SPs in {directory} ...")
    await controller.start()
    await asyncio.gather(*(sp.start() for sp in sps))
    await furnish(f"{ports.HOST}:{chosen['controller.listen']}", files)
    _say(welcome(directory, chosen))
    deaths = [asyncio.create_task(child.died()) for child in (controller, *sps)]
    done, alive = await asyncio.wait(deaths, return_when=asyncio.FIRST_COMPLETED)
    for task in alive:
        task.cancel()
    raise done.pop().result()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Does the work until it ends or `stop` is set."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        task.result()
        return
    task.cancel()
    await asyncio.wait({task})


def _say(text: str) -> None:
    print(text, flush=True)
