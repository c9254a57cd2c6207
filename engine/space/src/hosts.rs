//! Hosts write, and write again over the other path; front ends pass writes on.

use crate::search::Steps;
use crate::state::{Id, Leg, Part, Rules, State, Try, Value, WRITES};

pub fn steps(state: &State, rules: &Rules, out: &mut Steps) {
    for write in 0..WRITES {
        begin(state, rules, write, out);
        for attempt in 0..2 {
            go_on(state, rules, write, attempt, out);
        }
    }
}

/// Writes are alike, so they begin in their order.
fn begin(state: &State, rules: &Rules, number: usize, out: &mut Steps) {
    let write = &state.writes[number];
    let fresh = write.tries[0] == Try::None;
    let turn = number == 0 || state.writes[number - 1].tries[0] != Try::None;
    if fresh && turn && state.left.writes > 0 {
        for front in (0..2).filter(|front| state.sps[*front].up) {
            out.add("a host writes", number, front, state, |next| {
                next.left.writes -= 1;
                next.writes[number].at[0] = front as u8;
                next.writes[number].tries[0] = arrive(state, front);
                next.history.write_begins(number as Value + 1);
            });
        }
    }
    if !fresh && !write.acknowledged && write.tries[1] == Try::None && state.left.again > 0 {
        let front = 1 - usize::from(write.at[0]);
        if state.sps[front].up {
            out.add("a host writes again over", number, front, state, |next| {
                next.left.again -= 1;
                next.writes[number].tries[0] = left(rules, write.tries[0]);
                next.writes[number].at[1] = front as u8;
                next.writes[number].tries[1] = arrive(state, front);
            });
        }
    }
}

/// A write has come to a front end, which is the owner or passes it on.
fn arrive(state: &State, front: Id) -> Try {
    let tree = &state.sps[front].tree;
    if tree.is_owner(front) { Try::Here } else { Try::Forwarded(tree.epoch, false) }
}

/// What a try becomes when its host has left its path.
pub fn left(rules: &Rules, held: Try) -> Try {
    match held {
        Try::None => Try::None,
        Try::Running { owner, epoch, parts, .. } => {
            Try::Running { owner, epoch, parts, gone: true }
        }
        Try::Forwarded(epoch, _) if !rules.expiry => Try::Forwarded(epoch, true),
        _ => Try::Over,
    }
}

fn go_on(state: &State, rules: &Rules, number: usize, attempt: usize, out: &mut Steps) {
    let write = &state.writes[number];
    let front = usize::from(write.at[attempt]);
    let sp = &state.sps[front];
    let set = |next: &mut State, held: Try| next.writes[number].tries[attempt] = held;
    match write.tries[attempt] {
        Try::Here => {
            run(state, rules, number, attempt, front, false, out);
        }
        Try::Parked(epoch) if sp.up && sp.tree.epoch > epoch => {
            out.at_once("goes on at", number, front, state, |next| set(next, arrive(state, front)));
        }
        Try::Forwarded(epoch, gone) => {
            let owner = 1 - front;
            let tree = &state.sps[owner].tree;
            if !state.sps[owner].up || epoch > tree.epoch {
                return;
            }
            if epoch < tree.epoch || !tree.is_owner(owner) {
                out.at_once("is refused by", number, owner, state, |next| {
                    set(next, if gone { Try::Over } else { Try::Parked(epoch) });
                });
            } else {
                run(state, rules, number, attempt, owner, gone, out);
            }
        }
        _ => {}
    }
}

/// The owner takes the range lock and sends the write to the legs.
fn run(
    state: &State,
    rules: &Rules,
    number: usize,
    attempt: usize,
    owner: Id,
    gone: bool,
    out: &mut Steps,
) {
    if rules.lock && state.is_locked(owner) {
        return;
    }
    let tree = &state.sps[owner].tree;
    out.add("begins at", number, owner, state, |next| {
        let part = |leg: Id| match tree.legs[leg] {
            Leg::Away => Part::None,
            _ => Part::Sent,
        };
        let parts = [part(0), part(1)];
        if parts[1 - owner] == Part::Sent {
            next.hello(rules, 1 - owner);
        }
        next.writes[number].tries[attempt] =
            Try::Running { owner: owner as u8, epoch: tree.epoch, parts, gone };
    });
}
