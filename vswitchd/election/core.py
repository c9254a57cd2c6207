"""The MVSM election as (state, event, now) -> (state, effects).

            SpUp / ControllerStarted            Activated
    nobody ---------------------------> asked -----------> active
      ^                                 |  ^                 |
      |      Refused, or nobody is up   |  | Tick: ask again | SpDown, then SpUp: it has
      +---------------------------------+  +----- (new term) + restarted, ask under a new term
      ^                                                      |
      +------------------------------------------------------+  SpDown for longer than the lease

Every designation has a term of its own, durable before anyone is asked, so at most one MVSM
is active in a term, and VSMs refuse the calls of earlier ones. Times are monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from vswitchd.model.objects import SpId

#: Seconds that the master may be down before another SP is designated.
LEASE = 10.0
#: Seconds after which an unanswered Activate is said again.
RETRY = 1.0


@dataclass(frozen=True, slots=True)
class ControllerStarted:
    """The controller begins (again) with the term that its store holds."""

    term: int


@dataclass(frozen=True, slots=True)
class SpUp:
    """An SP registered: it is reachable, and its MVSM is inactive if it has restarted."""

    sp: SpId


@dataclass(frozen=True, slots=True)
class SpDown:
    """An SP was not heard for too long."""

    sp: SpId


@dataclass(frozen=True, slots=True)
class SpLost:
    """An SP has ended, or can't be reached, beyond doubt: nobody waits for it."""

    sp: SpId


@dataclass(frozen=True, slots=True)
class Activated:
    """An SP's MVSM is active under the term."""

    sp: SpId
    term: int


@dataclass(frozen=True, slots=True)
class Refused:
    """An SP refused to be activated under `term`; it has seen the term `seen`."""

    sp: SpId
    term: int
    seen: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; said about once a second."""


Event: TypeAlias = ControllerStarted | SpUp | SpDown | SpLost | Activated | Refused | Tick


@dataclass(frozen=True, slots=True)
class RaiseTerm:
    """Make this the durable term before the effects that follow are carried out."""

    term: int


@dataclass(frozen=True, slots=True)
class Activate:
    """Ask an SP to activate its MVSM under the term."""

    sp: SpId
    term: int


@dataclass(frozen=True, slots=True)
class Deactivate:
    """Tell an SP that its MVSM is inactive. Its answer does not matter: its term is over."""

    sp: SpId


Effect: TypeAlias = RaiseTerm | Activate | Deactivate


@dataclass(frozen=True, slots=True)
class State:
    """`master` is whom `term` was given to; `active` once it has said so. `seen`: the highest
    term that a refusal named. `designated_at`, `asked_at`: when the master was first and last
    asked; `down_since`: since when it is down. `former`: SPs that were designated before and
    have not been told since. `refused`: who could not be master when last asked, taken again
    only if there is nobody else."""

    term: int = 0
    seen: int = 0
    up: frozenset[SpId] = frozenset()
    master: SpId | None = None
    active: bool = False
    asked_at: float = 0.0
    designated_at: float = 0.0
    down_since: float | None = None
    former: frozenset[SpId] = frozenset()
    refused: SpId | None = None

    @property
    def leader(self) -> SpId | None:
        """The SP whose MVSM is active and reachable now, if any."""
        return self.master if self.active and self.master in self.up else None


def step(state: State, event: Event, now: float) -> tuple[State, tuple[Effect, ...]]:
    """What an event does: the next state, and what is to be carried out in order."""
    match event:
        case ControllerStarted(term):
            return _upkeep(State(term=max(term, state.term), up=state.up), now)
        case SpUp(sp):
            return _up(state, sp, now)
        case SpDown(sp):
            down = now if sp == state.master and state.down_since is None else state.down_since
            return _upkeep(replace(state, up=state.up - {sp}, down_since=down), now)
        case SpLost(sp):
            down = now - LEASE if sp == state.master else state.down_since
            return _upkeep(replace(state, up=state.up - {sp}, down_since=down), now)
        case Activated(sp, term):
            if sp == state.master and term == state.term:
                return _upkeep(replace(state, active=True), now)
            return state, ()
        case Refused(sp, term, seen):
            theirs = sp == state.master and term == state.term
            state = replace(state, seen=max(state.seen, seen))
            # Not asked again at once: the next Tick does, and another SP if there is one.
            return (replace(_without_master(state), refused=sp) if theirs else state), ()
        case Tick():
            return _upkeep(state, now)


def _up(state: State, sp: SpId, now: float) -> tuple[State, tuple[Effect, ...]]:
    returned = replace(state, up=state.up | {sp})
    if sp == state.master:
        # It may have restarted, and then its MVSM is inactive. A term is given once.
        return _designate(returned, sp, now)
    after, effects = _upkeep(returned, now)
    if sp in after.former:
        return replace(after, former=after.former - {sp}), (*effects, Deactivate(sp))
    return after, effects


def _upkeep(state: State, now: float) -> tuple[State, tuple[Effect, ...]]:
    """What holds after every event: there is a master if any SP can be one."""
    if state.master is not None:
        away = state.down_since is not None and now - state.down_since >= LEASE
        silent = (
            state.down_since is None and not state.active and now - state.designated_at >= LEASE
        )
        if away or silent:
            state = replace(_without_master(state), refused=state.master)
    if state.master is None:
        if not state.up:
            return state, ()
        return _designate(state, min(state.up, key=lambda sp: (sp == state.refused, sp)), now)
    if state.down_since is None and not state.active and now - state.asked_at >= RETRY:
        return replace(state, asked_at=now), (Activate(state.master, state.term),)
    return state, ()


def _designate(state: State, sp: SpId, now: float) -> tuple[State, tuple[Effect, ...]]:
    term = max(state.term, state.seen) + 1
    told = tuple(Deactivate(other) for other in sorted((state.former & state.up) - {sp}))
    chosen = State(
        term=term,
        up=state.up,
        master=sp,
        asked_at=now,
        designated_at=now,
        former=state.former - state.up - {sp},
    )
    return chosen, (RaiseTerm(term), *told, Activate(sp, term))


def _without_master(state: State) -> State:
    assert state.master is not None
    return replace(
        state,
        master=None,
        active=False,
        down_since=None,
        former=state.former | {state.master},
    )
