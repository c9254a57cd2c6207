"""Carrying plans out: journalled, step by step, retried, undone where they can't go on.

               (paused) <----> running --(all steps done)---------------------> done
                   |              |                               +-----------> failed
    cancelled, or a step fails,   +-----------------> undoing ----+
    before no_return                                              +-----------> cancelled

An open operation is in `Executor.live` until its end is journalled, whatever happens: as long
as it is there nobody else touches its volume.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.carrier import Carrier
from vswitchd.controller.copying import Copying, Slots
from vswitchd.controller.live import (
    CANCEL,
    CANCELLED,
    DONE,
    FAILED,
    JOURNAL,
    OPEN,
    PAUSE,
    PAUSED,
    RUN,
    RUNNING,
    UNDOING,
    CancelledError,
    Live,
    OvertakenError,
    PausedError,
)
from vswitchd.controller.registry import Registry
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import Volume
from vswitchd.ports import Clock, OperationRecord, Store
from vswitchd.restructure import vcm
from vswitchd.restructure.codec import decode_plan, describe, encode_plan
from vswitchd.restructure.steps import (
    ActivateT2,
    FenceT1,
    Forget,
    begun,
    journal_points,
    pause_points,
)

#: Seconds between tries of a step whose SP does not answer.
FIRST_RETRY = 0.05
LAST_RETRY = 1.0
#: Copies that run at once, in all volumes together.
COPIES = 4
#: How many of the last pauses are remembered.
PAUSES = 256

OVERTAKEN = (
    "the volume's owner has left legs behind while the controller was away, which this was not "
    "planned for; look at the volume and ask again"
)

#: What a later try may find otherwise: an SP away, a drain that took long, ...
_PASSING = (Kind.UNREACHABLE, Kind.TIMEOUT)
#: ... a term that changed, an SP that is not known yet, a store that can't be written now.
_PASSING_CODES = ("VS3023", "VS2040", "VS9031")


class Executor:
    """Runs one task for each open operation."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        clock: Clock,
        log: FilteringBoundLogger,
        step_done: Callable[[str, float], None],
        copies: int = COPIES,
    ) -> None:
        """`step_done` is told each step's kind and seconds."""
        self._store = store
        self._registry = registry
        self._clock = clock
        self._log = log
        self._step_done = step_done
        self._carrier = Carrier(
            store, registry, clock, Copying(registry, clock, Slots(copies), self._checkpoint)
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.live: dict[str, Live] = {}
        #: Seconds from the first fence to the first activation, of the last swaps of trees: more
        #: than any host's I/O waited for them.
        self.pauses: deque[float] = deque(maxlen=PAUSES)

    async def resume(self) -> None:
        """Takes up what was open when the controller ended."""
        for record in await self._store.operations(open_only=True):
            if record.state in OPEN:
                self._log.info("operation_resumed", operation=record.id, cursor=record.cursor)
                self.start(record, await self._store.volume(record.volume))

    def start(self, record: OperationRecord, stored: Volume | None) -> None:
        """Begins or goes on with a journalled operation on a volume as the store has it."""
        plan = decode_plan(record.plan)
        live = Live(record, plan, pause_points(plan), copied=record.copied)
        live.finished_copies = record.copied
        # What a former controller may have begun counts as begun.
        live.begun = begun(plan, record.cursor, stored)
        live.overtaken = vcm.is_overtaken(plan, stored)
        self.live[record.id] = live
        self._tasks[record.id] = asyncio.create_task(self._run(live))

    def overtake(self, volume: Volume) -> None:
        """The store has learnt what the volume's owner has made of it by itself: an operation that
        was planned before gives way."""
        for live in self.live.values():
            if live.record.volume == volume.id and vcm.is_overtaken(live.plan, volume):
                live.overtaken = True
                live.tell()

    async def stop(self) -> None:
        """Leaves all where it is; the journal knows."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What is asked of an operation while it runs; durable when the call returns.

    async def cancel(self, operation: str) -> None:
        """Has an operation undone; VsError if there is no way back any more."""
        live = self._open(operation)
        if not live.can_undo:
            raise VsError(
                "VS3051",
                Kind.PRECONDITION,
                f"operation {operation} has passed the step from which it can only go on; "
                "it will end by itself",
            )
        was = live.record.wish
        # At once, so that no step past `no_return` begins while the journal is written.
        live.record = replace(live.record, wish=CANCEL)
        try:
            await self._write(live, wish=CANCEL)
        except VsError:
            if live.record.state != UNDOING:
                live.record = replace(live.record, wish=was)
            raise

    async def pause(self, operation: str) -> None:
        """Has an operation rest at the next point where hosts don't wait."""
        live = self._open(operation)
        if live.record.wish == CANCEL:
            raise self._is(live, "is being cancelled")
        await self._write(live, wish=PAUSE)

    async def unpause(self, operation: str) -> None:
        """Has an operation go on."""
        live = self._open(operation)
        if live.record.wish == CANCEL:
            raise self._is(live, "is being cancelled")
        await self._write(live, wish=RUN)

    async def throttle(
        self, operation: str, rate: int | None, adaptive: bool | None, priority: int | None
    ) -> None:
        """Changes an operation's limits; None: as it is."""
        live = self._open(operation, UNDOING)
        was = live.record
        await self._write(
            live,
            rate=was.rate if rate is None else rate,
            adaptive=was.adaptive if adaptive is None else adaptive,
            priority=was.priority if priority is None else priority,
        )

    def _open(self, operation: str, *more: str) -> Live:
        live = self.live.get(operation)
        if live is None or live.record.state not in (RUNNING, PAUSED, *more):
            state = "over" if live is None else live.record.state
            raise VsError("VS3050", Kind.PRECONDITION, f"operation {operation} is {state} already")
        return live

    @staticmethod
    def _is(live: Live, what: str) -> VsError:
        return VsError("VS3050", Kind.PRECONDITION, f"operation {live.record.id} {what} already")

    # The work.

    async def _run(self, live: Live) -> None:
        log = self._log.bind(operation=live.record.id, kind=live.record.kind)
        try:
            while True:
                try:
                    await self._steps(live)
                    break
                except CancelledError:
                    log.info("operation_cancelled")
                    await self._turn_back(live, "VS3052", "cancelled on request")
                except OvertakenError:
                    log.warning("operation_overtaken")
                    await self._turn_back(live, "VS3086", OVERTAKEN)
                except VsError as error:
                    log.warning("operation_undone", error=str(error))
                    await self._turn_back(live, error.code, error.message)
            ended = DONE
            if live.record.state == UNDOING:
                ended = CANCELLED if live.record.error_code == "VS3052" else FAILED
            found = {"copied": live.copied, "report": live.report}
            await self._journal(live, state=ended, ended=self._clock.wall(), **found)
            log.info("operation_ended", state=ended, volume=live.record.volume_name)
        except Exception as error:
            # A fault, or another controller's hand in the journal. It stays open and in `live`,
            # so that its volume is left alone; a restart goes on from the journal.
            log.exception("operation_stuck")
            self._wait_for(live, JOURNAL, f"{error}; the controller's log says more, restart it")
            return
        del self._tasks[live.record.id], self.live[live.record.id]
        live.changed.set()

    async def _turn_back(self, live: Live, code: str, message: str) -> None:
        """Journals a plan that undoes the operation, or, past its point of no return, that leaves
        the volume as its owner has made it; a deletion just goes on with that."""
        undone = live.record.state == UNDOING or live.can_undo or not live.overtaken
        goes_on = not undone and any(isinstance(step, Forget) for step in live.plan.steps)

        async def turn_back() -> None:
            stored = await self._stored(live)
            peers, gone = self._registry.peers, self._registry.lost
            if undone or stored is None:
                plan = vcm.undo(live.plan, stored, peers, gone)
            else:
                plan = vcm.overtaken(live.plan, stored, peers, gone)
            # Why it was undone first is why it failed.
            first = live.record.error_code if live.record.state == UNDOING else ""
            error = {} if first or goes_on else {"error_code": code, "error": message}
            await self._write(
                live,
                state=RUNNING if goes_on else UNDOING,
                plan=encode_plan(plan),
                cursor=0,
                checkpoint=0,
                waiting_for="",
                **error,
            )
            live.plan, live.pause_points = plan, frozenset()
            live.overtaken, live.begun = False, 0
            live.waits.clear()

        await self._insist(live, turn_back)

        async def look_again() -> None:
            # It may have been overtaken while this was planned and written.
            if vcm.is_overtaken(live.plan, await self._stored(live)):
                live.overtaken = True

        await self._insist(live, look_again)
        live.tell()

    async def _stored(self, live: Live) -> Volume | None:
        return await self._store.volume(live.record.volume)

    async def _write(self, live: Live, **changes: object) -> None:
        """Durable first, then in memory."""
        async with live.writing:
            record = replace(live.record, **changes)  # type: ignore[arg-type]
            await self._store.update_operation(record, expect_cursor=live.record.cursor)
            # Not `record`: what it waits for, or a wish to cancel, may have come meanwhile.
            live.record = replace(live.record, **changes)  # type: ignore[arg-type]
        live.tell()

    async def _journal(self, live: Live, **changes: object) -> None:
        """Writes for as long as it takes."""

        async def write() -> None:
            await self._write(live, waiting_for="", **changes)
            live.waits.clear()

        await self._insist(live, write)

    async def _checkpoint(self, live: Live, durable: int) -> None:
        await self._insist(live, lambda: self._write(live, checkpoint=durable))

    async def _insist(self, live: Live, work: Callable[[], Awaitable[None]]) -> None:
        """Has the journal written, for as long as the store takes; a cursor that another has
        moved is the one error that no patience mends."""
        delay = FIRST_RETRY
        while True:
            try:
                return await work()
            except VsError as error:
                if error.kind is Kind.STALE:
                    raise
                self._wait_for(live, JOURNAL, error.message)
            await self._clock.sleep(delay)
            delay = min(delay * 2, LAST_RETRY)

    def _wait_for(self, live: Live, index: int, what: str) -> None:
        """Shows and logs what a step waits for; nothing if it goes on."""
        if live.wait_for(index, what) and what:
            kind, sp, object_, _ = (
                describe(live.plan.steps[index]) if index >= 0 else ("journal", "", "", 0)
            )
            self._log.warning(
                "step_waits",
                operation=live.record.id,
                step=kind,
                sp=sp,
                object=object_,
                error=what,
            )

    async def _steps(self, live: Live) -> None:
        """Group after group from the cursor on; the cursor moves when all of one is done."""
        fenced_at: float | None = None
        journalled = journal_points(live.plan)
        for start, end in live.plan.groups:
            if end <= live.record.cursor:
                continue
            steps = live.plan.steps[start:end]
            while True:
                await self._heed(live, start)
                if live.overtaken:
                    raise OvertakenError
                live.begun, live.doom = max(live.begun, end), None
                if fenced_at is None and any(isinstance(step, FenceT1) for step in steps):
                    fenced_at = self._clock.monotonic()
                try:
                    await self._group(live, start, end)
                    break
                except PausedError:
                    live.begun = start
            if fenced_at is not None and any(isinstance(step, ActivateT2) for step in steps):
                self.pauses.append(self._clock.monotonic() - fenced_at)
                fenced_at = None
            if end in journalled:
                await self._journal(live, cursor=end, copied=live.copied, checkpoint=0)
        await self._heed(live, len(live.plan.steps))
        live.begun = len(live.plan.steps) + 1

    async def _group(self, live: Live, start: int, end: int) -> None:
        results = await asyncio.gather(
            *(self._until_done(live, index) for index in range(start, end)),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _heed(self, live: Live, index: int) -> None:
        """Turns back between groups, if no step past `no_return` has begun; rests where hosts
        don't wait for what follows."""
        if live.record.state == UNDOING:
            return
        self._heed_cancel(live, index)
        if live.record.wish != PAUSE or index not in live.pause_points:
            return
        await self._journal(live, state=PAUSED)
        self._log.info("operation_paused", operation=live.record.id)
        while live.record.wish == PAUSE:
            changed = live.changed
            if live.record.wish == PAUSE:
                await changed.wait()
        await self._journal(live, state=RUNNING)
        self._heed_cancel(live, index)

    @staticmethod
    def _heed_cancel(live: Live, index: int) -> None:
        way_back = 0 < live.plan.no_return >= max(index, live.begun)
        if live.record.wish == CANCEL and way_back:
            raise CancelledError

    async def _until_done(self, live: Live, index: int) -> None:
        """Tries a step until it is done. An error that time won't mend is raised where there
        is a way back, by all steps of the group; past that, the operation waits and shows for
        what."""
        step = live.plan.steps[index]
        way_back = live.can_undo
        delay, since = FIRST_RETRY, self._clock.monotonic()
        while True:
            try:
                await self._carrier.carry_out(live, step, index)
            except VsError as error:
                passing = error.kind in _PASSING or error.code in _PASSING_CODES
                if way_back and not passing and live.doom is None:
                    live.doom = error
                if live.doom is not None:
                    raise live.doom from None
                self._wait_for(live, index, error.message)
                if live.overtaken:
                    raise OvertakenError from None
                if live.record.wish == CANCEL and way_back:
                    raise CancelledError from None
                await self._clock.sleep(delay)
                delay = min(delay * 2, LAST_RETRY)
            else:
                self._wait_for(live, index, "")
                self._step_done(describe(step)[0], self._clock.monotonic() - since)
                return
