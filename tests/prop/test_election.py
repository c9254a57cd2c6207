"""The election under any order of events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vswitchd.election import (
    LEASE,
    RETRY,
    Activate,
    Activated,
    ControllerStarted,
    Deactivate,
    Event,
    RaiseTerm,
    Refused,
    SpDown,
    SpUp,
    State,
    Tick,
    step,
)
from vswitchd.model.objects import SpId

SP = st.sampled_from([SpId(sp) for sp in "abc"])
TERM = st.integers(0, 12)
EVENTS = st.one_of(
    st.builds(SpUp, SP),
    st.builds(SpDown, SP),
    st.builds(Activated, SP, TERM),
    st.builds(Refused, SP, TERM, TERM),
    st.just(Tick()),
    st.just("answer"),
    st.just("restart"),
)


@given(st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 0.5, RETRY, 4.0, LEASE])), max_size=60))
def test_a_term_is_given_to_one_sp_and_never_again(moves: list[tuple[object, float]]) -> None:
    now = 0.0
    durable = 0
    given_to: dict[int, SpId] = {}
    state, effects = step(State(), ControllerStarted(durable), now)
    assert effects == ()
    for move, passed in moves:
        now += passed
        before = state
        match move:
            case "restart":
                state, effects = step(State(up=state.up), ControllerStarted(durable), now)
            case "answer":
                if state.master is None:
                    continue
                state, effects = step(state, Activated(state.master, state.term), now)
            case _:
                state, effects = step(state, move, now)  # type: ignore[arg-type]
        for effect in effects:
            match effect:
                case RaiseTerm(term):
                    assert term > durable, "a term is used again"
                    durable = term
                case Activate(sp, term):
                    assert term == durable == state.term, "asked before the term was durable"
                    assert given_to.setdefault(term, sp) == sp, "two masters in a term"
                    assert sp in state.up and sp == state.master
                case Deactivate(sp):
                    assert sp != state.master
        if state.leader:
            assert given_to[state.term] == state.leader
        # The lease: while it is down the active master is not replaced before its time.
        if (
            before.active
            and isinstance(move, SpUp | SpDown | Tick)
            and state.master != before.master
        ):
            assert before.down_since is not None and now - before.down_since >= LEASE


@given(st.lists(EVENTS.filter(lambda e: not isinstance(e, str)), max_size=30), SP)
def test_quiet_brings_a_master(events: list[Event], sp: SpId) -> None:
    """However it came about: with an SP that is up and answers, there is one soon."""
    now = 0.0
    state = State()
    for event in events:
        now += 0.1
        state, _ = step(state, event, now)
    state, effects = step(state, SpUp(sp), now)
    for _ in range(int(2 * LEASE / RETRY) + 2):
        asked = [effect for effect in effects if isinstance(effect, Activate)]
        effects = ()
        for effect in asked:
            state, effects = step(state, Activated(effect.sp, effect.term), now)
        if state.leader:
            break
        now += RETRY
        state, effects = step(state, Tick(), now)
    assert state.leader in state.up


def test_a_refusal_is_answered_with_a_higher_term_and_another_sp() -> None:
    state, _ = step(State(), ControllerStarted(4), 0)
    state, effects = step(state, SpUp(SpId("a")), 0)
    assert effects == (RaiseTerm(5), Activate(SpId("a"), 5))
    state, effects = step(state, SpUp(SpId("b")), 0)
    assert effects == ()
    state, effects = step(state, Refused(SpId("a"), 5, 9), 0)
    assert effects == ()
    state, effects = step(state, Tick(), 1)
    assert effects == (RaiseTerm(10), Deactivate(SpId("a")), Activate(SpId("b"), 10))


def test_the_lease_runs_out_before_another_is_designated() -> None:
    a, b = SpId("a"), SpId("b")
    state, _ = step(State(up=frozenset({a, b})), ControllerStarted(0), 0)
    state, effects = step(state, Activated(a, 1), 0)
    assert state.leader == a and effects == ()
    state, effects = step(state, SpDown(a), 1)
    assert state.leader is None and effects == ()
    state, effects = step(state, Tick(), LEASE)
    assert effects == ()
    state, effects = step(state, Tick(), 1 + LEASE)
    assert effects == (RaiseTerm(2), Activate(b, 2))
    state, effects = step(state, SpUp(a), 20)
    assert Deactivate(a) in effects


def test_a_master_that_restarted_gets_a_new_term() -> None:
    a = SpId("a")
    state, _ = step(State(up=frozenset({a})), ControllerStarted(0), 0)
    state, _ = step(state, Activated(a, 1), 0)
    state, effects = step(state, SpUp(a), 3)
    assert effects == (RaiseTerm(2), Activate(a, 2)) and state.leader is None
