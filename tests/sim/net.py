"""The network: it delays, loses, repeats, reorders, and falls apart."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tests.sim.loop import Expected, Process, SimLoop
from vswitchd.errors import Kind, VsError

R = TypeVar("R")

#: Mean seconds of one way.
DELAY = 0.004
#: Seconds until a caller knows that nobody listens, or that a connection is broken.
NOTICED = 0.3
#: Seconds until a caller gives up a connection on which nothing comes back: keepalive and its
#: time-out (`api.vsm_client.OPTIONS`).
SILENT = 10.0
#: Seconds that a repeated request may be on its way.
LATE = 8.0


class PeerDownError(Expected):
    """The data connection to a peer broke; what was asked was done, or never will be."""


class Net:
    """Nodes by name; a node is the process that listens now, and has none while it is down."""

    def __init__(self, loop: SimLoop, rng: random.Random, counts: Counter[str]) -> None:
        self._loop = loop
        self._rng = rng
        self._counts = counts
        self.nodes: dict[str, tuple[Process, Any]] = {}
        #: (from, to) that nothing passes.
        self.cut: set[tuple[str, str]] = set()
        #: How likely a message is lost, or comes twice, the second time late.
        self.loss = 0.0
        self.twice = 0.0

    def listen(self, name: str, process: Process, server: Any) -> None:
        self.nodes[name] = process, server

    def passes(self, source: str, target: str) -> bool:
        return (source, target) not in self.cut

    def _delay(self) -> float:
        return self._rng.expovariate(1 / DELAY)

    async def call(
        self,
        source: str,
        target: str,
        seconds: float,
        work: Callable[[Any], Coroutine[Any, Any, R]],
    ) -> R:
        """A request and its answer, each of which may be lost; VsError as gRPC would tell."""
        answer: asyncio.Future[R] = self._loop.create_future()

        def tell(result: R | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        gone = VsError("VS5001", Kind.UNREACHABLE, f"SP {target} can't be reached")

        def arrive() -> None:
            process, server = self.nodes.get(target, (None, None))
            if process is None or not process.alive:
                self._loop.outside(NOTICED, lambda: tell(None, gone))
                return
            process.spawn(self._carried_out(work(server), source, target, tell))

        if not self.passes(source, target):
            self._counts["message stopped by a partition"] += 1
            self._loop.outside(SILENT, lambda: tell(None, gone))
        elif self._rng.random() < self.loss:
            self._counts["request lost"] += 1
            self._loop.outside(SILENT, lambda: tell(None, gone))
        else:
            self._loop.outside(self._delay(), arrive)
            if self._rng.random() < self.twice:
                self._counts["request repeated"] += 1
                self._loop.outside(self._rng.uniform(0.0, LATE), arrive)
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise VsError("VS5002", Kind.TIMEOUT, f"SP {target} did not answer in time") from None

    async def _carried_out(
        self,
        work: Coroutine[Any, Any, R],
        source: str,
        target: str,
        tell: Callable[[R | None, BaseException | None], None],
    ) -> None:
        result: R | None = None
        error: BaseException | None = None
        gone = VsError("VS5001", Kind.UNREACHABLE, f"SP {target} can't be reached")
        try:
            result = await work
        except VsError as refused:
            error = refused
        if not self.passes(target, source):
            self._counts["message stopped by a partition"] += 1
            self._loop.outside(SILENT, lambda: tell(None, gone))
        elif self._rng.random() < self.loss:
            self._counts["answer lost"] += 1
            self._loop.outside(SILENT, lambda: tell(None, gone))
        else:
            self._loop.outside(self._delay(), lambda: tell(result, error))

    async def peer(
        self, source: str, target: str, work: Callable[[Any], Coroutine[Any, Any, R]]
    ) -> R:
        """A request of the data path: its connection keeps order, and a break is told only when
        nothing of what was asked can happen any more (the peer ends an SP's old session before it
        takes a new one). PeerDownError then."""
        await asyncio.sleep(self._delay())
        process, server = self.nodes.get(target, (None, None))
        broken = not self.passes(source, target) or not self.passes(target, source)
        if process is None or not process.alive or broken:
            await asyncio.sleep(NOTICED)
            raise PeerDownError(target)
        task = process.spawn(work(server))
        while not task.done():
            if not process.alive:
                await asyncio.sleep(NOTICED)
                raise PeerDownError(target)
            await asyncio.wait({task}, timeout=NOTICED)
        await asyncio.sleep(self._delay())
        if not self.passes(target, source):
            await asyncio.sleep(NOTICED)
            raise PeerDownError(target)
        return task.result()
