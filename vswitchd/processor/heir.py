"""When an SP's process is to be replaced, by whom, and what it leaves to that one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

from structlog.typing import FilteringBoundLogger

from vswitchd.errors import VsError
from vswitchd.obs import daemon
from vswitchd.processor import handover


def _without_inherit(argv: Sequence[str]) -> list[str]:
    """The arguments as a person gave them."""
    kept = list(argv)
    if "--inherit" in kept:
        at = kept.index("--inherit")
        del kept[at : at + 2]
    return kept


class Heir:
    """The process that takes over, once SIGUSR2 has asked for one."""

    def __init__(self, argv: Sequence[str], log: FilteringBoundLogger) -> None:
        """`argv`: of `vswitchd sp`, this process's own."""
        self._argv = ["sp", *_without_inherit(argv)]
        self._log = log
        self._asked = asyncio.Event()
        self._successor: handover.Successor | None = None
        self.legacy = handover.Legacy()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, self._asked.set)

    @property
    def named(self) -> bool:
        """There is one, and it is ready."""
        return self._successor is not None

    async def ready(self) -> None:
        """Returns when one was asked for and is ready; one that fails changes nothing."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            daemon.notify("RELOADING=1")
            try:
                self._successor = await asyncio.to_thread(handover.Successor, self._argv)
            except VsError as error:
                self._log.error("not_replaced", error=str(error))
                daemon.notify("READY=1")
                continue
            self._log.info("replaced", by=self._successor.pid)
            return

    async def give(self) -> None:
        """Gives what this process leaves; nothing if nobody takes over."""
        if self._successor is not None:
            daemon.notify(f"MAINPID={self._successor.pid}")
            await asyncio.to_thread(self._successor.give, self.legacy)
