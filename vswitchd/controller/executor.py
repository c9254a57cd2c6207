"""Carrying plans out: journalled, step by step, retried, undone where they can't go on.

    running --(all steps done)--------------------------------------> done
       |                                                 +----------> failed
       +--(a step fails, or cancelled; before no_return)--> undoing -+----------> cancelled

An open operation is in `Executor.live` until its end is journalled, whatever happens: as long
as it is there nobody else touches its volume.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.registry import Registry
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import T2, Volume
from vswitchd.model.view import CopyState
from vswitchd.ports import Clock, OperationRecord, Store
from vswitchd.restructure import vcm
from vswitchd.restructure.codec import decode_plan, describe, encode_plan
from vswitchd.restructure.steps import (
    ActivateT2,
    AdoptT1,
    AwaitSync,
    Commit,
    Copy,
    DeleteT1,
    DropReference,
    FenceT1,
    Forget,
    Plan,
    PutT1,
    RemoveT2,
    StageT2,
    Step,
)

#: Seconds between tries of a step whose SP does not answer.
FIRST_RETRY = 0.05
LAST_RETRY = 1.0
#: Seconds between looks at a copy or a resync.
LOOK = 0.1

RUNNING, UNDOING, DONE, FAILED, CANCELLED = "running", "undoing", "done", "failed", "cancelled"
OPEN = (RUNNING, UNDOING)
#: What a later try may find otherwise: an SP away, a drain that took long, ...
_PASSING = (Kind.UNREACHABLE, Kind.TIMEOUT)
#: ... a term that changed, an SP that is not known yet, a store that can't be written now.
_PASSING_CODES = ("VS3023", "VS2040", "VS9031")


class _CancelledError(Exception):
    """The operation is to be undone because somebody asked for it."""


@dataclass
class Live:
    """An operation under way.

    `begun`: the end of the group that runs; `doom`: the error that the group's steps give up
    for; `waits`: what each step that waits waits for; `changed` is set and replaced at every
    change.
    """

    record: OperationRecord
    plan: Plan
    cancel: bool = False
    copied: int = 0
    finished_copies: int = 0
    begun: int = 0
    doom: VsError | None = None
    waits: dict[int, str] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Executor:
    """Runs one task for each open operation."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        clock: Clock,
        log: FilteringBoundLogger,
        step_done: Callable[[str, float], None],
    ) -> None:
        """`step_done` is told each step's kind and seconds."""
        self._store = store
        self._registry = registry
        self._clock = clock
        self._log = log
        self._step_done = step_done
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.live: dict[str, Live] = {}

    async def resume(self) -> None:
        """Takes up what was open when the controller ended."""
        for record in await self._store.operations(open_only=True):
            if record.state in OPEN:
                self._log.info("operation_resumed", operation=record.id, cursor=record.cursor)
                self.start(record)

    def start(self, record: OperationRecord) -> None:
        """Begins or goes on with a journalled operation."""
        live = Live(record, decode_plan(record.plan), copied=record.copied)
        live.finished_copies = record.copied
        # What a former controller may have begun counts as begun.
        live.begun = next((end for _, end in live.plan.groups if end > record.cursor), 0)
        self.live[record.id] = live
        self._tasks[record.id] = asyncio.create_task(self._run(live))

    async def stop(self) -> None:
        """Leaves all where it is; the journal knows."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cancel(self, record: OperationRecord) -> None:
        """Has an operation undone; VsError if there is no way back any more."""
        live = self.live.get(record.id)
        if live is None or record.state != RUNNING:
            raise VsError(
                "VS3050", Kind.PRECONDITION, f"operation {record.id} is {record.state} already"
            )
        if live.begun > live.plan.no_return or live.plan.no_return == 0:
            raise VsError(
                "VS3051",
                Kind.PRECONDITION,
                f"operation {record.id} has passed the step from which it can only go on; "
                "it will end by itself",
            )
        live.cancel = True

    async def _run(self, live: Live) -> None:
        log = self._log.bind(operation=live.record.id, kind=live.record.kind)
        try:
            try:
                await self._steps(live)
            except _CancelledError:
                log.info("operation_cancelled")
                await self._undo(live, "VS3052", "cancelled on request")
            except VsError as error:
                log.warning("operation_undone", error=str(error))
                await self._undo(live, error.code, error.message)
            ended = DONE
            if live.record.state == UNDOING:
                ended = CANCELLED if live.record.error_code == "VS3052" else FAILED
            await self._journal(live, state=ended, ended=self._clock.wall(), copied=live.copied)
            log.info("operation_ended", state=ended, volume=live.record.volume_name)
        except Exception as error:
            # A fault, or another controller's hand in the journal. It stays open and in `live`,
            # so that its volume is left alone; a restart goes on from the journal.
            log.exception("operation_stuck")
            self._wait_for(live, -1, f"{error}; the controller's log says more, restart it")
            return
        del self._tasks[live.record.id], self.live[live.record.id]
        live.changed.set()

    async def _undo(self, live: Live, code: str, message: str) -> None:
        async def turn_back() -> None:
            plan = vcm.undo(live.plan, await self._stored(live), self._registry.peers)
            record = replace(
                live.record,
                state=UNDOING,
                plan=encode_plan(plan),
                cursor=0,
                error_code=code,
                error=message,
                waiting_for="",
            )
            await self._store.update_operation(record, expect_cursor=live.record.cursor)
            live.record, live.plan = record, plan
            live.waits.clear()

        await self._insist(live, turn_back)
        self._tell(live)
        await self._steps(live)

    async def _stored(self, live: Live) -> Volume | None:
        return await self._store.volume(live.record.volume)

    async def _journal(self, live: Live, **changes: object) -> None:
        """Durable first, then in memory."""

        async def write() -> None:
            record = replace(live.record, waiting_for="", **changes)  # type: ignore[arg-type]
            await self._store.update_operation(record, expect_cursor=live.record.cursor)
            live.record = record
            live.waits.clear()

        await self._insist(live, write)
        self._tell(live)

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
                self._wait_for(live, -1, error.message)
            await self._clock.sleep(delay)
            delay = min(delay * 2, LAST_RETRY)

    def _tell(self, live: Live) -> None:
        live.changed.set()
        live.changed = asyncio.Event()

    def _wait_for(self, live: Live, index: int, what: str) -> None:
        """Shows what a step waits for (-1: the journal); nothing if it goes on."""
        if live.waits.get(index, "") == what:
            return
        live.waits[index] = what
        shown = "; ".join(dict.fromkeys(text for text in live.waits.values() if text))
        live.record = replace(live.record, waiting_for=shown)
        self._tell(live)
        if what:
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
        for start, end in live.plan.groups:
            if end <= live.record.cursor:
                continue
            self._heed_cancel(live, start)
            live.begun, live.doom = end, None
            results = await asyncio.gather(
                *(self._until_done(live, index) for index in range(start, end)),
                return_exceptions=True,
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            await self._journal(live, cursor=end, copied=live.copied)
        self._heed_cancel(live, len(live.plan.steps))
        live.begun = len(live.plan.steps) + 1

    def _heed_cancel(self, live: Live, index: int) -> None:
        """Turns back between groups, if no step past `no_return` has begun."""
        running = live.record.state == RUNNING
        if live.cancel and running and live.plan.no_return > 0 and index <= live.plan.no_return:
            raise _CancelledError

    async def _until_done(self, live: Live, index: int) -> None:
        """Tries a step until it is done. An error that time won't mend is raised where there
        is a way back, by all steps of the group; past that, the operation waits and shows for
        what."""
        step = live.plan.steps[index]
        way_back = index < live.plan.no_return and live.record.state == RUNNING
        delay, begun = FIRST_RETRY, self._clock.monotonic()
        while True:
            try:
                await self._do(live, step, index)
            except VsError as error:
                passing = error.kind in _PASSING or error.code in _PASSING_CODES
                if way_back and not passing and live.doom is None:
                    live.doom = error
                if live.doom is not None:
                    raise live.doom from None
                self._wait_for(live, index, error.message)
                if live.cancel and way_back:
                    raise _CancelledError from None
                await self._clock.sleep(delay)
                delay = min(delay * 2, LAST_RETRY)
            else:
                self._wait_for(live, index, "")
                self._step_done(describe(step)[0], self._clock.monotonic() - begun)
                return

    async def _do(self, live: Live, step: Step, index: int) -> None:
        at = self._registry.processor
        match step:
            case PutT1(t1, epoch):
                await at(t1.home).put_t1(t1, epoch)
            case FenceT1(sp, t1_id, epoch):
                await at(sp).fence_t1(t1_id, epoch)
            case AdoptT1(t1, epoch):
                await at(t1.home).adopt_t1(t1, epoch)
            case DeleteT1(sp, t1_id):
                await at(sp).delete_t1(t1_id)
            case StageT2(t2):
                await at(t2.sp).stage_t2(self._readdressed(t2))
            case Commit(volume):
                await self._commit(live, volume)
            case ActivateT2(sp, volume_id, version):
                await at(sp).activate_t2(volume_id, version)
            case RemoveT2(sp, volume_id):
                await at(sp).remove_t2(volume_id)
            case DropReference(sp, volume_id, t1_id):
                await at(sp).drop_reference(volume_id, t1_id)
            case AwaitSync():
                await self._await_sync(step)
            case Copy():
                await self._copy(live, step, index)
            case Forget(volume_id):
                await self._store.delete_volume(volume_id)

    def _readdressed(self, t2: T2) -> T2:
        """With the addresses of now: an SP may have come back elsewhere since the plan."""
        now = self._registry.peers
        return replace(t2, peers={sp: now.get(sp, address) for sp, address in t2.peers.items()})

    async def _commit(self, live: Live, volume: Volume) -> None:
        stored = await self._stored(live)
        if stored is not None and stored.version >= volume.version:
            return
        await self._store.put_volume(
            volume,
            expect_version=None if stored is None else stored.version,
            why=f"{live.record.kind} ({live.record.id})",
        )

    async def _await_sync(self, step: AwaitSync) -> None:
        view = await self._registry.processor(step.sp).view(step.volume)
        held = view.t2(step.volume)
        if held is None or held.resync_percent < 100:
            how = "not served yet" if held is None else f"{held.resync_percent}%"
            raise VsError(
                "VS5021", Kind.TIMEOUT, f"waiting for the resync of the mirror's legs: {how}"
            )

    async def _copy(self, live: Live, step: Copy, index: int) -> None:
        """Follows a copy; one that its owner has forgotten (it restarted) begins anew."""
        owner = self._registry.processor(step.sp)
        await owner.start_copy(step.volume, step.path)
        while True:
            view = await owner.view(step.volume)
            copy = next(
                (c for c in view.copies if c.volume == step.volume and c.path == step.path), None
            )
            if copy is None:
                live.copied = live.finished_copies
                await owner.start_copy(step.volume, step.path)
            elif copy.state is CopyState.FAILED:
                raise VsError(
                    "VS9040",
                    Kind.INTERNAL,
                    f"the copy onto leg {list(step.path)} failed: {copy.error}; look at the "
                    "devices of that leg",
                )
            elif copy.state is CopyState.DONE:
                live.finished_copies += copy.total
                live.copied = live.finished_copies
                return
            else:
                live.copied = live.finished_copies + copy.copied
                self._wait_for(live, index, "")
                self._tell(live)
            if live.cancel:
                with contextlib.suppress(VsError):
                    await owner.stop_copy(step.volume, step.path)
                raise _CancelledError
            await self._clock.sleep(LOOK)
