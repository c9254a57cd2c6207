"""An operation under way: what of it is in the journal, and what is only in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from vswitchd.errors import VsError
from vswitchd.ports import OperationRecord
from vswitchd.restructure.steps import Plan

PLANNED, RUNNING, PAUSED, UNDOING = "planned", "running", "paused", "undoing"
DONE, FAILED, CANCELLED = "done", "failed", "cancelled"
OPEN = (RUNNING, PAUSED, UNDOING)

#: What was asked of an operation since it began.
RUN, PAUSE, CANCEL = "run", "pause", "cancel"

#: What the journal itself waits for, beside the steps.
JOURNAL = -1


class CancelledError(Exception):
    """The operation is to be undone because somebody asked for it."""


class OvertakenError(Exception):
    """What the operation was planned for is not there any more."""


class PausedError(Exception):
    """The step has been left at a point where hosts don't wait, as somebody asked for it."""


@dataclass
class Live:
    """An operation under way.

    `begun`: the end of the group that runs; `doom`: the error that the group's steps give up
    for; `waits`: what each step that waits waits for; `changed` is set and replaced at every
    change; `writing`: held while the journal is written; `overtaken`: the store has learnt that
    the volume's owner has left legs behind by itself. `copied` counts the bytes of all of its
    copies, `finished_copies` those of the ones that are done, `rate` is bytes per second lately;
    `report` is what a comparison has found, in words.
    """

    record: OperationRecord
    plan: Plan
    pause_points: frozenset[int]
    copied: int = 0
    finished_copies: int = 0
    rate: int = 0
    report: str = ""
    begun: int = 0
    overtaken: bool = False
    doom: VsError | None = None
    waits: dict[int, str] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def can_undo(self) -> bool:
        """No step past `no_return` has begun, and it is not being undone already."""
        forward = self.record.state != UNDOING and self.plan.no_return > 0
        return forward and self.begun <= self.plan.no_return

    def heed(self, index: int) -> None:
        """Leaves a step that can be left at any moment, if that was asked for."""
        if self.record.state == UNDOING:
            return
        if self.record.wish == CANCEL and self.can_undo:
            raise CancelledError
        if self.record.wish == PAUSE and index in self.pause_points:
            raise PausedError

    def tell(self) -> None:
        """Wakes all who watch."""
        self.changed.set()
        self.changed = asyncio.Event()

    def wait_for(self, index: int, what: str) -> bool:
        """Notes what a step waits for, nothing if it goes on; False if that is known."""
        if self.waits.get(index, "") == what:
            return False
        self.waits[index] = what
        shown = "; ".join(dict.fromkeys(text for text in self.waits.values() if text))
        self.record = replace(self.record, waiting_for=shown)
        self.tell()
        return True
