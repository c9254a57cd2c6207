"""The quickstart's child processes: started, watched, ended; never left behind."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from vswitchd.errors import Kind, VsError

#: Seconds until a daemon must be ready, and until it must have ended after SIGTERM.
START = 30.0
END = 30.0
#: Lines of a log that are shown when a child has died.
TAIL = 20


class Child:
    """A `vswitchd` daemon with a state directory and a log."""

    def __init__(self, name: str, directory: Path, argv: Sequence[str]) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._endpoints = directory / name / "endpoints.json"
        self._argv = [sys.executable, "-m", "vswitchd", *argv, "--state", str(directory / name)]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it and waits until it is ready; VsError VS9070 shows its log if it is not."""
        argv = self._argv
        if guard := shutil.which("setpriv"):
            # It ends, cleanly, even if the quickstart itself is killed.
            argv = [guard, "--pdeathsig", "TERM", "--", *argv]
        with self.log.open("ab") as log:
            # A process group of its own: Ctrl-C reaches the quickstart alone, which ends
            # its children in order.
            self._process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        try:
            async with asyncio.timeout(START):
                while True:
                    if self._ready():
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise self._failed(f"was not ready in {START:g} s") from None

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.returncode is not None:
            raise self._failed(f"ended with status {self._process.returncode}")
        try:
            return bool(json.loads(self._endpoints.read_text())["pid"] == self._process.pid)
        except (FileNotFoundError, ValueError):
            return False

    def _failed(self, what: str) -> VsError:
        return VsError(
            "VS9070", Kind.INTERNAL, f"{self.name} {what}; its log {self.log} ends\n{self.tail()}"
        )

    def tail(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL:]
        return "\n".join(f"  {line}" for line in lines) or "  (empty)"

    async def died(self) -> VsError:
        """Waits until it ends; the error that says so."""
        assert self._process is not None
        status = await self._process.wait()
        return self._failed(f"ended with status {status}")

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(END):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
