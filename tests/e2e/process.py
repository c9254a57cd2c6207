"""One real process of the product: started, waited for, killed, started again at the same ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

#: Seconds until a daemon must have written its endpoints, or have gone after SIGTERM.
START = 30.0
END = 30.0
ROOT = Path(__file__).resolve().parents[2]
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def wait_for(what: str, probe: Callable[[], T | None], seconds: float = 30.0) -> T:
    """Polls `probe` until it gives something true; AssertionError names `what` at the deadline.

    An exception of `probe` counts as "not yet" and is shown if the deadline passes.
    """
    deadline = time.monotonic() + seconds
    while True:
        last: Exception | None = None
        try:
            if found := probe():
                return found
        except (AssertionError, OSError, LookupError, ValueError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}") from last
        time.sleep(0.02)


def guarded(*argv: str) -> list[str]:
    """`argv` as a command that dies with this test run, even when the run itself is killed."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *argv]


class Daemon:
    """A `vswitchd` subcommand with a state directory and a log.

    `addresses` maps options to what they are bound to: port 0 at first, and after the first
    start the port that was given, so that a restarted process is found where it was.
    """

    #: Where the code is that it runs, and what its environment has beside this one's.
    code = ROOT
    environment: Mapping[str, str] = {}
    #: What its command begins with.
    within: Sequence[str] = ()
    #: Holds the boot id of the machine that it believes to be on; None: the real one.
    boot: Path | None = None

    def __init__(self, name: str, root: Path, argv: list[str], addresses: dict[str, str]) -> None:
        self.name = name
        self.state = root / name
        self.log = root / f"{name}.log"
        self.argv = argv
        self.addresses = addresses
        self.process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        running = self.process and self.process.poll() is None
        return f"<{self.name} {'pid ' + str(self.pid) if running else 'down'}>"

    @property
    def pid(self) -> int:
        """The running process's id."""
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    @property
    def endpoints(self) -> dict[str, object]:
        """What the running process says it is bound to."""
        found = json.loads((self.state / "endpoints.json").read_text())
        assert isinstance(found, dict)
        assert found["pid"] == self.pid, f"{self.name}: endpoints.json is of an older process"
        return found

    def launch(self) -> None:
        """Starts the process without waiting until it is ready."""
        assert self.process is None or self.process.poll() is not None, f"{self} runs"
        options = [part for option in self.addresses.items() for part in option]
        argv = [sys.executable, "-m", "vswitchd", *self.argv, *options]
        if self.boot:
            mounted = f'mount --bind {self.boot} {BOOT_ID} && exec "$@"'
            argv = ["unshare", "--mount", "sh", "-c", mounted, "sh", *argv]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                guarded(*self.within, *argv),
                cwd=self.code,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment, "PYTHONUNBUFFERED": "1"},
            )

    def rebooted(self) -> None:
        """At its next start it finds another boot of its machine."""
        if self.boot is None:
            self.boot = self.state.with_suffix(".boot")
        self.boot.write_text(f"{uuid.uuid4()}\n")

    def ready(self) -> bool:
        """True once it has written its endpoints; AssertionError if it has died instead."""
        assert self.process is not None
        if (status := self.process.poll()) is not None:
            raise RuntimeError(f"{self.name} ended with status {status}:\n{self.tail()}")
        found = self.endpoints
        for option in self.addresses:
            key = {"--listen": "api"}.get(option, option.removeprefix("--"))
            value = found[key]
            if isinstance(value, list):
                value = next(one for one in value if not str(one).startswith("unix:"))
            self.addresses[option] = str(value)
        return True

    def start(self) -> None:
        """Starts the process and waits until it serves."""
        self.launch()
        wait_for(f"{self.name} to be ready", self.ready, START)

    def kill(self) -> None:
        """`kill -9`: no chance to write anything."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(END)

    def stop(self) -> int:
        """SIGTERM; returns the exit status, and kills what does not end in time."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(END)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end on SIGTERM:\n{self.tail()}") from None

    def events(self) -> list[dict[str, object]]:
        """The structured log so far, one dict per line, over all its lives."""
        lines = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                lines.append(found)
        return lines

    def tail(self, lines: int = 40) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
