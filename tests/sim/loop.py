"""An event loop whose time is simulated, and processes in it that can be killed at any await."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

R = TypeVar("R")

#: The process that a task belongs to; tasks that it starts belong to it too.
_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class CrashError(BaseException):
    """The process has died within a call that can't be left by an await."""


class Expected(Exception):  # noqa: N818
    """An answer, not a fault, even where nobody waits for it any more."""


class StuckError(Exception):
    """Nothing is left that could ever happen."""


class Process:
    """What dies as one. After `kill` nothing of it runs: no handler, no `finally`."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.name = name
        self.alive = True
        self._loop = loop
        #: Dead tasks are kept, so that collecting them does not run what is in their `finally`.
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        """Starts a task that dies with the process."""
        context = contextvars.copy_context()
        context.run(_PROCESS.set, self)
        return self._loop.create_task(work, context=context)

    def main(self, work: Coroutine[Any, Any, None]) -> None:
        """Starts what the process is there for: that it ends by itself is a fault."""

        def ended(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if self.alive and not isinstance(error, CrashError):
                self._loop.faults.append(error or RuntimeError(f"{self.name} has ended"))

        self.spawn(work).add_done_callback(ended)

    def own(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def kill(self) -> None:
        self.alive = False


class _Handle(asyncio.Handle):
    """Does nothing once its process is dead."""

    __slots__ = ("_process",)

    def __init__(
        self,
        callback: Callable[..., Any],
        args: Any,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
    ) -> None:
        super().__init__(callback, args, loop, context)  # type: ignore[arg-type]
        self._process = self._context.get(_PROCESS)  # type: ignore[attr-defined]

    def _run(self) -> None:
        if self._process is None or self._process.alive:
            super()._run()  # type: ignore[misc]


class SimLoop(asyncio.BaseEventLoop):
    """Time passes only when there is nothing to do, and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self
        self.steps = 0
        self.faults: list[BaseException] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._noted)

    def time(self) -> float:
        return self._now

    # What BaseEventLoop asks of its selector, which there is none of.

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise StuckError("every task waits for another")
        self._now += timeout
        self.steps += 1
        return []

    def _process_events(self, _: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def call_soon(
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def outside(self, seconds: float, callback: Callable[[], None]) -> None:
        """Calls back later, whoever is dead by then: what the network carries."""
        self.call_later(seconds, callback, context=contextvars.Context())

    @staticmethod
    def _make_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        context = options.get("context")
        process = _PROCESS.get() if context is None else context.get(_PROCESS)
        if process is not None:
            process.own(task)
        return task

    def _noted(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # What a task of a dead process, or one that nobody waits for any more, ended with.
        error = context.get("exception")
        if error is not None and not isinstance(error, CrashError | Expected):
            self.faults.append(error)


class SimClock:
    """`ports.Clock` of the simulated time."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    def wall(self) -> float:
        return 1e9 + self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
