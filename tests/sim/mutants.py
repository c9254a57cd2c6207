"""Rules broken on purpose: each must be caught by the simulation, or it proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from tests.sim.engine import Copy, SimEngine
from vswitchd.processor.state import State
from vswitchd.processor.vsm import Vsm
from vswitchd.restructure import vcm
from vswitchd.restructure.steps import (
    ActivateT2,
    Commit,
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
    async def fence(engine: SimEngine, t1: Any, epoch: int) -> None:
        found = engine.held().get(t1)
        if found is not None:
            engine._disks.write(found[0], max(epoch, found[1]))

    return mock.patch.object(SimEngine, "t1_fence", fence)


def _fence_that_is_forgotten() -> AbstractContextManager[Any]:
    async def fence(engine: SimEngine, t1: Any, epoch: int) -> None:
        return None

    return mock.patch.object(SimEngine, "t1_fence", fence)


def _copy_that_ends_early() -> AbstractContextManager[Any]:
    right = SimEngine._copy

    async def copy(engine: SimEngine, now: Any, job: Copy) -> None:
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
    "terms that are over are not refused": _terms_are_not_refused,
    # What comes late hits nothing.
    "removed trees may come back": lambda: mock.patch.object(
        State, "set_removed", lambda state, volume, version: None
    ),
}
