"""Following a copy onto a write-only leg: its turn, its checkpoints, its limits, its end."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator

from vswitchd.controller.live import CancelledError, Live, PausedError
from vswitchd.controller.registry import Registry
from vswitchd.errors import Kind, VsError
from vswitchd.model.view import CopyMode, CopyState, CopyView
from vswitchd.ports import Clock, Processor
from vswitchd.restructure.steps import Copy

#: Seconds between looks at a copy.
LOOK = 0.1
#: Ranges that a report names.
SHOWN = 8


class Slots:
    """So many copies run at once; of those that wait the one of the highest priority goes next,
    among its like the one that came first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._held: set[str] = set()
        self._waiting: dict[str, int] = {}

    def take(self, operation: str, priority: int) -> bool:
        """True if it has its turn now; if not, it has its place in the queue."""
        self._waiting[operation] = priority
        if len(self._held) >= self._count:
            return False
        # Dicts keep the order in which they were filled, and max takes the first of its like.
        if max(self._waiting, key=lambda other: self._waiting[other]) != operation:
            return False
        del self._waiting[operation]
        self._held.add(operation)
        return True

    def leave(self, operation: str) -> None:
        """Its turn is over, or it does not wait any more."""
        self._held.discard(operation)
        self._waiting.pop(operation, None)

    @contextlib.contextmanager
    def left_by(self, operation: str) -> Iterator[None]:
        """Sees to it that the turn ends."""
        try:
            yield
        finally:
            self.leave(operation)


class Copying:
    """Has owners copy, and follows them."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        slots: Slots,
        checkpoint: Callable[[Live, int], Awaitable[None]],
    ) -> None:
        """`checkpoint` journals how many bytes of the running copy are durable."""
        self._registry = registry
        self._clock = clock
        self._slots = slots
        self._checkpoint = checkpoint

    async def follow(self, live: Live, step: Copy, index: int) -> None:
        """Returns when the copy is done. VsError if it failed; CancelledError and PausedError as
        asked for, the copy then being stopped."""
        operation = live.record.id
        with self._slots.left_by(operation):
            while not self._slots.take(operation, live.record.priority):
                live.heed(index)
                live.wait_for(index, "waits for its turn: other copies run")
                await self._clock.sleep(LOOK)
            await self._run(live, step, index)

    async def _run(self, live: Live, step: Copy, index: int) -> None:
        told = await self._start(live, step)
        while True:
            owner = self._registry.processor(step.sp)
            copy = _of(step, (await owner.view(step.volume)).copies)
            if copy is None:
                # Its owner has restarted and forgotten it.
                told = await self._start(live, step)
            elif copy.state is CopyState.FAILED:
                raise VsError(
                    "VS9040",
                    Kind.INTERNAL,
                    f"the copy onto leg {list(step.path)} failed: {copy.error}; look at the "
                    "devices of that leg",
                )
            elif copy.state is CopyState.DONE:
                self._report(live, step, copy)
                live.finished_copies += copy.total
                live.copied = live.finished_copies
                live.rate = 0
                return
            else:
                live.copied = live.finished_copies + copy.copied
                live.rate = copy.rate
                if not live.wait_for(index, ""):
                    live.tell()
                if copy.durable > live.record.checkpoint:
                    await self._checkpoint(live, copy.durable)
                told = await self._throttled(live, step, owner, told)
            try:
                live.heed(index)
            except (CancelledError, PausedError):
                # If it can't be told now, the copy is found again, or has gone with its owner.
                with contextlib.suppress(VsError):
                    await owner.stop_copy(step.volume, step.path)
                live.rate = 0
                raise
            await self._clock.sleep(LOOK)

    @staticmethod
    def _report(live: Live, step: Copy, copy: CopyView) -> None:
        """Says what a comparison has found; VsError VS6014 if legs differ and are left so."""
        if step.path:
            return
        repaired = step.mode is CopyMode.REPAIR
        if not copy.differing_bytes:
            live.report = "the legs are alike"
            return
        shown = ", ".join(
            f"{one.offset}+{one.length}" + (f" of mirror {list(one.path)}" if one.path else "")
            for one in copy.differing[:SHOWN]
        )
        more = ", ..." if len(copy.differing) > SHOWN else ""
        live.report = (
            f"{copy.differing_bytes} bytes {'differed' if repaired else 'differ'} between legs, "
            f"at (offset+length) {shown}{more}"
        )
        if repaired:
            live.report += "; they are alike now"
            return
        name = live.record.volume_name
        raise VsError(
            "VS6014",
            Kind.UNSAFE,
            f"volume {name}: {live.report}; `vswitchctl volume mirror verify {name} --repair` "
            "makes them alike",
        )

    async def _start(self, live: Live, step: Copy) -> tuple[int, bool]:
        record = live.record
        start = record.checkpoint
        live.copied = live.finished_copies + start
        await self._registry.processor(step.sp).start_copy(
            step.volume,
            step.version,
            step.path,
            start=start,
            rate=record.rate,
            adaptive=record.adaptive,
            mode=step.mode,
        )
        return record.rate, record.adaptive

    async def _throttled(
        self, live: Live, step: Copy, owner: Processor, told: tuple[int, bool]
    ) -> tuple[int, bool]:
        """Tells the owner limits that have changed; returns those that it knows."""
        wanted = live.record.rate, live.record.adaptive
        if wanted != told:
            await owner.throttle_copy(step.volume, step.path, rate=wanted[0], adaptive=wanted[1])
        return wanted


def _of(step: Copy, copies: tuple[CopyView, ...]) -> CopyView | None:
    return next((c for c in copies if c.volume == step.volume and c.path == step.path), None)
