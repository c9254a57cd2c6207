"""Rules broken on purpose: each must be caught by the simulation, or it proves nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from tests.sim.engine import Copy as SimCopy
from tests.sim.engine import SimEngine
from vswitchd.controller.learner import Learner
from vswitchd.errors import VsError
from vswitchd.model.objects import own_epoch
from vswitchd.processor import lone
from vswitchd.processor.lone import Lone
from vswitchd.processor.state import State
from vswitchd.processor.voter import Voter
from vswitchd.processor.vsm import Vsm
from vswitchd.restructure import away, stages, vcm
from vswitchd.restructure.away import majority
from vswitchd.restructure.steps import (
    ActivateT2,
    AwaitLease,
    Commit,
    Copy,
    DeleteT1,
    DropReference,
    FenceT1,
    Plan,
    PutT1,
    Step,
)

Mutant = Callable[[], AbstractContextManager[Any]]


def _replanned(change: Callable[[list[list[Step]]], list[list[Step]]]) -> Mutant:
    """Every plan with its groups changed."""
    right = vcm._Draft.plan

    def wrong(draft: vcm._Draft, base: Any) -> Plan:
        plan = right(draft, base)
        groups = change([list(plan.steps[a:b]) for a, b in plan.groups])
        found: list[Step] = []
        bounds = []
        for group in (group for group in groups if group):
            bounds.append((len(found), len(found) + len(group)))
            found += group
        no_return = min(plan.no_return, len(found))
        return Plan(base, tuple(found), no_return, tuple(bounds))

    return lambda: mock.patch.object(vcm._Draft, "plan", wrong)


def _without(kind: type[Any]) -> Mutant:
    return _replanned(
        lambda groups: [[s for s in group if not isinstance(s, kind)] for group in groups]
    )


def _earlier(kind: type[Any]) -> Mutant:
    """Each group of that kind changes places with the one before it."""

    def change(groups: list[list[Step]]) -> list[list[Step]]:
        for index in range(1, len(groups)):
            if groups[index] and isinstance(groups[index][0], kind):
                groups[index - 1], groups[index] = groups[index], groups[index - 1]
        return groups

    return _replanned(change)


def _fence_that_does_not_wait() -> AbstractContextManager[Any]:
    async def fence(engine: SimEngine, t1: Any, epoch: int, base: Any) -> None:
        found = engine.held().get(t1)
        if found is not None:
            engine._disks.write(found[0], max(epoch, found[1]))

    return mock.patch.object(SimEngine, "t1_fence", fence)


def _fence_that_is_forgotten() -> AbstractContextManager[Any]:
    async def fence(engine: SimEngine, t1: Any, epoch: int, base: Any) -> None:
        return None

    return mock.patch.object(SimEngine, "t1_fence", fence)


def _copy_that_ends_early() -> AbstractContextManager[Any]:
    right = SimEngine._copy

    async def copy(engine: SimEngine, now: Any, job: SimCopy) -> None:
        job.total = max(1, job.total - 1)
        await right(engine, now, job)

    return mock.patch.object(SimEngine, "_copy", copy)


def _any_epoch_is_served() -> AbstractContextManager[Any]:
    return mock.patch.object(SimEngine, "_serves", staticmethod(lambda epoch, fenced: True))


def _terms_are_not_refused() -> AbstractContextManager[Any]:
    def admit(vsm: Vsm, caller: Any) -> None:
        if caller.term > vsm.term:
            vsm._state.set_term(caller.term)
            vsm._mvsm_term = None

    return mock.patch.object(Vsm, "_admit", admit)


def _no_resync() -> AbstractContextManager[Any]:
    right = Vsm._activate

    async def activate(vsm: Vsm, t2: Any, *, resync: bool) -> int:
        return await right(vsm, t2, resync=False)

    return mock.patch.object(Vsm, "_activate", activate)


def _nothing_noted() -> AbstractContextManager[Any]:
    right = SimEngine.t1_io

    async def t1_io(home: SimEngine, *args: Any, intent: bool = False, **more: Any) -> Any:
        return await right(home, *args, **more)

    return mock.patch.object(SimEngine, "t1_io", t1_io)


def _reads_without_a_lease() -> AbstractContextManager[Any]:
    async def vouched_for(engine: SimEngine, now: Any, t2: Any) -> None:
        return None

    return mock.patch.object(SimEngine, "_vouched_for", vouched_for)


def _cleared_while_a_leg_is_away() -> AbstractContextManager[Any]:
    right = SimEngine._at_home

    async def at_home(engine: SimEngine, t2: Any, piece: Any, work: Any) -> Any:
        found = await right(engine, t2, piece, work)
        return False if found is True else found

    return mock.patch.object(SimEngine, "_at_home", at_home)


def _nobody_compares() -> AbstractContextManager[Any]:
    """An owner's votes count whoever has decided on the volume since."""
    right = Voter._fence

    async def fence(voter: Voter, t1: Any, ejection: Any) -> None:
        with contextlib.suppress(VsError):
            await right(voter, t1, ejection)

    async def record(voter: Voter, ejection: Any) -> None:
        voter._state.record(ejection)

    async def ask(voter: Voter, ejection: Any) -> None:
        return None

    both = contextlib.ExitStack()
    both.enter_context(mock.patch.object(Voter, "ask", ask))
    both.enter_context(mock.patch.object(Voter, "_fence", fence))
    both.enter_context(mock.patch.object(Voter, "record", record))
    return both


def _records_are_not_looked_for() -> AbstractContextManager[Any]:
    right = Vsm.fence_t1

    async def fence(vsm: Vsm, caller: Any, t1: Any, epoch: int, known: int) -> None:
        await right(vsm, caller, t1, epoch, epoch)

    return mock.patch.object(Vsm, "fence_t1", fence)


def _even_numbers_go_on_alone() -> AbstractContextManager[Any]:
    right = majority
    both = contextlib.ExitStack()
    both.enter_context(
        mock.patch.object(away, "majority", lambda legs, reached, store=True: right(legs, reached))
    )
    both.enter_context(mock.patch.object(lone, "may_be_alone", lambda _: True))
    return both


def _taken_before_it_is_recorded() -> AbstractContextManager[Any]:
    right = Lone._all

    async def all_(alone: Lone, homes: Any, here: Any, there: Any, ejection: Any) -> None:
        mine = [alone._sp] if here == alone._voter.record else homes
        await right(alone, mine, here, there, ejection)

    return mock.patch.object(Lone, "_all", all_)


def _never_learnt() -> AbstractContextManager[Any]:
    return mock.patch.object(Learner, "is_news", lambda *_: False)


def _one_kind_of_epochs() -> AbstractContextManager[Any]:
    both = contextlib.ExitStack()
    both.enter_context(mock.patch.object(stages, "next_epoch", own_epoch))
    both.enter_context(mock.patch.object(vcm, "next_epoch", own_epoch))
    return both


#: What is broken -> how. The row of coherency.md or claims.md stands beside it.
MUTANTS: dict[str, Mutant] = {
    # "T1 objects refuse lower epochs"; step 7 of a restructure.
    "no fences in plans": _without(FenceT1),
    "a fence does not wait": _fence_that_does_not_wait,
    "a fence is forgotten": _fence_that_is_forgotten,
    "any epoch is served": _any_epoch_is_served,
    # Claims 9, 10, 43, 45: T1 first.
    "trees before objects": _replanned(
        lambda groups: sorted(groups, key=lambda g: bool(g) and isinstance(g[0], PutT1))
    ),
    # Claims 11, 13, 47, 50: references first.
    "objects deleted before trees change": _earlier(DeleteT1),
    # Step 8: one commit record, then activate.
    "activated before the commit": _earlier(ActivateT2),
    "no commit record": _without(Commit),
    # Claims 14 to 16.
    "references not dropped before a move": _without(DropReference),
    # A leg is in sync only when all is on it.
    "a copy ends early": _copy_that_ends_early,
    # Legs may differ after an unclean end, and after what was dropped.
    "no resync of an owner": _no_resync,
    "writes are not put into the map": _nothing_noted,
    "no map says what is unlike": _cleared_while_a_leg_is_away,
    # A leg that was away has missed writes.
    "a leg comes back as it is": _without(Copy),
    # Who was owner reads nothing once another writes.
    "an owner reads without a lease": _reads_without_a_lease,
    "a lease is not waited for": _without(AwaitLease),
    # An owner alone: of two sides one goes on, and the other learns it.
    "an owner's votes are not compared": _nobody_compares,
    "the controller does not look for records": _records_are_not_looked_for,
    "two legs lose one without the controller": _even_numbers_go_on_alone,
    "an owner's tree before its records": _taken_before_it_is_recorded,
    "the controller never learns": _never_learnt,
    "owners and the controller share epochs": _one_kind_of_epochs,
    "terms that are over are not refused": _terms_are_not_refused,
    # What comes late hits nothing.
    "removed trees may come back": lambda: mock.patch.object(
        State, "set_removed", lambda state, volume, version: None
    ),
}
