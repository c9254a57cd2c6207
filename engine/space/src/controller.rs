//! Crashes, and what the controller makes of them: legs are left behind and come back, the owner
//! moves. Each is fence, commit, activation.

use crate::hosts::left;
use crate::search::Steps;
use crate::state::{Epoch, Id, Leg, Part, Plan, Rules, State, Tree, Try, late};

pub fn steps(state: &State, rules: &Rules, out: &mut Steps) {
    for sp in 0..2 {
        if state.sps[sp].up && state.left.crashes[sp] > 0 {
            out.add("crashes: SP", 0, sp, state, |next| crash(next, rules, sp));
        }
        if !state.sps[sp].up {
            out.add("is back: SP", 0, sp, state, |next| restart(next, rules, sp));
        }
        adopt(state, rules, sp, out);
        eject(state, sp, out);
    }
    match &state.plan {
        Some(plan) => carry_out(state, rules, plan, out),
        None => begin(state, rules, out),
    }
}

fn crash(state: &mut State, rules: &Rules, sp: Id) {
    state.left.crashes[sp] -= 1;
    let lost = &mut state.sps[sp];
    lost.up = false;
    // What has come here and is not done is lost with the connections.
    (state.devices[sp].orphans, state.devices[sp].given_up) = (0, 0);
    let lost = &mut state.sps[sp];
    (lost.pinned, lost.lease, lost.torn, lost.copied) = (false, false, false, false);
    let (epoch, copy) = (lost.tree.epoch, lost.copy.take());
    if let Some(copy) = copy
        && usize::from(copy.to) != sp
        && copy.value > 0
    {
        state.devices[1 - sp].orphans |= late(epoch, copy.value);
    }
    state.end_read(sp);
    for number in 0..state.writes.len() {
        for attempt in 0..2 {
            let here = usize::from(state.writes[number].at[attempt]) == sp;
            let held = &mut state.writes[number].tries[attempt];
            if let Try::Running { owner, epoch, parts, gone } = *held
                && usize::from(owner) == sp
            {
                // The front end, if it is another, sends it again.
                *held = if here || gone { Try::Over } else { Try::Forwarded(epoch, false) };
                if parts[1 - sp] == Part::Sent {
                    state.devices[1 - sp].orphans |= late(epoch, number as u8 + 1);
                }
            } else if here {
                // What it has passed on may be carried out all the same.
                *held = match *held {
                    Try::Forwarded(epoch, _) => Try::Forwarded(epoch, true),
                    other => left(rules, other),
                };
            }
        }
    }
}

fn restart(state: &mut State, rules: &Rules, sp: Id) {
    let back = &mut state.sps[sp];
    back.up = true;
    back.pinned = rules.resync && back.tree.is_owner(sp);
}

/// An SP takes the committed tree, once what it began on the old one has ended.
fn adopt(state: &State, rules: &Rules, sp: Id, out: &mut Steps) {
    let (here, new) = (&state.sps[sp], state.store);
    let lost = new.legs[sp] == Leg::Away;
    if !here.up || lost || here.tree == new || state.plan.is_some() {
        return;
    }
    let owner = usize::from(new.owner);
    let after_owner = sp != owner && state.sps[owner].tree != new;
    let reading = state.read.is_some_and(|read| usize::from(read.owner) == sp);
    let gone = |leg: Id| new.legs[leg] == Leg::Away || !state.sps[leg].up;
    let waits = state.writes.iter().flat_map(|write| &write.tries).any(|held| {
        matches!(held, Try::Running { owner, parts, .. } if usize::from(*owner) == sp
            && (0..2).any(|leg| parts[leg] == Part::Sent && !gone(leg)))
    });
    let copies = here.copy.is_some_and(|copy| !gone(usize::from(copy.to)));
    if after_owner || reading || waits || copies {
        return;
    }
    out.add("adopts the tree: SP", 0, sp, state, |next| {
        end_all(next, sp, &new);
        let here = &mut next.sps[sp];
        let became = new.is_owner(sp) && !here.tree.is_owner(sp);
        here.pinned = new.is_owner(sp) && ((became && rules.resync) || here.pinned);
        here.torn &= new.is_owner(sp);
        (here.lease, here.copied) = (false, false);
        here.tree = new;
    });
}

/// Ends what an SP has under way on its tree: it runs again on the new one.
fn end_all(state: &mut State, sp: Id, new: &Tree) {
    let epoch = state.sps[sp].tree.epoch;
    if let Some(copy) = state.sps[sp].copy.take()
        && copy.value > 0
        && new.legs[usize::from(copy.to)] == Leg::Away
    {
        state.devices[usize::from(copy.to)].given_up |= late(epoch, copy.value);
    }
    for number in 0..state.writes.len() {
        for attempt in 0..2 {
            let here = usize::from(state.writes[number].at[attempt]) == sp;
            let held = state.writes[number].tries[attempt];
            match held {
                Try::Running { owner, epoch, parts, gone } if usize::from(owner) == sp => {
                    for leg in (0..2).filter(|leg| parts[*leg] == Part::Sent) {
                        if state.sps[leg].up {
                            state.devices[leg].given_up |= late(epoch, number as u8 + 1);
                        }
                        state.sps[sp].torn = true;
                    }
                    state.sps[sp].torn |= parts.contains(&Part::Done);
                    state.writes[number].tries[attempt] =
                        if gone { Try::Over } else { Try::Parked(epoch) };
                }
                // The owner that it was passed on to is none any more.
                Try::Running { owner, epoch, parts, gone } if here && new.is_owner(sp) => {
                    // There it ends as stale, and what it leaves is known.
                    state.sps[usize::from(owner)].torn = true;
                    for leg in (0..2).filter(|leg| parts[*leg] == Part::Sent) {
                        state.devices[leg].given_up |= late(epoch, number as u8 + 1);
                    }
                    state.writes[number].tries[attempt] =
                        if gone { Try::Over } else { Try::Parked(epoch) };
                }
                Try::Here if here => state.writes[number].tries[attempt] = Try::Parked(epoch),
                Try::Forwarded(epoch, gone) if here && new.is_owner(sp) => {
                    state.writes[number].tries[attempt] =
                        if gone { Try::Over } else { Try::Parked(epoch) };
                }
                _ => {}
            }
        }
    }
}

/// Every SP that counts has the committed tree.
fn is_settled(state: &State, but: Option<Id>) -> bool {
    let has = |sp: Id| state.store.legs[sp] == Leg::Away || state.sps[sp].tree == state.store;
    (0..2).all(|sp| Some(sp) == but || has(sp))
}

fn highest(state: &State) -> Epoch {
    let fenced = state.devices.iter().map(|device| device.epoch).max().unwrap_or(0);
    fenced.max(state.store.epoch)
}

fn plan(state: &mut State, legs: [Leg; 2], owner: u8, without: Option<Id>) {
    let next = Tree { epoch: highest(state) + 1, owner, legs };
    state.plan = Some(Plan { next, fenced: 0, without: without.map(|sp| sp as u8) });
}

/// An SP is taken for lost, rightly or not: the other goes on alone. What was planned gives way.
fn eject(state: &State, sp: Id, out: &mut Steps) {
    let other = 1 - sp;
    let possible = state.store.in_sync(other) && state.store.legs[sp] != Leg::Away;
    let under_way = state.plan.is_some_and(|plan| plan.without.is_some());
    let knows = state.sps[other].up && is_settled(state, Some(sp));
    if state.left.ejects == 0 || !possible || under_way || !knows {
        return;
    }
    out.add("is left behind: SP", 0, sp, state, |next| {
        next.left.ejects -= 1;
        let mut legs = state.store.legs;
        legs[sp] = Leg::Away;
        plan(next, legs, other as u8, Some(sp));
    });
}

/// What can be planned when all is settled.
fn begin(state: &State, rules: &Rules, out: &mut Steps) {
    let both = state.sps[0].up && state.sps[1].up;
    if !both || !is_settled(state, None) {
        return;
    }
    let store = &state.store;
    let owner = usize::from(store.owner);
    for leg in 0..2 {
        let mut legs = store.legs;
        if store.legs[leg] == Leg::Away && state.left.rejoins > 0 {
            legs[leg] = if rules.write_only { Leg::WriteOnly } else { Leg::InSync };
            out.add("comes back: leg", 0, leg, state, |next| {
                next.left.rejoins -= 1;
                plan(next, legs, store.owner, None);
            });
        }
        if store.legs[leg] == Leg::WriteOnly && state.sps[owner].copied {
            legs[leg] = Leg::InSync;
            out.add("has what it missed: leg", 0, leg, state, |next| {
                plan(next, legs, store.owner, None);
            });
        }
    }
    if store.whole() && state.left.moves > 0 {
        out.add("is to be the owner: SP", 0, 1 - owner, state, |next| {
            next.left.moves -= 1;
            plan(next, store.legs, 1 - store.owner, None);
        });
    }
}

/// Fences one leg after the other, waits for a lost owner's lease, commits.
fn carry_out(state: &State, rules: &Rules, plan: &Plan, out: &mut Steps) {
    let owner = usize::from(state.store.owner);
    let mut missing = false;
    for leg in 0..2 {
        let returning = plan.next.legs[leg] == Leg::WriteOnly && state.store.legs[leg] == Leg::Away;
        let exempt = returning && !rules.fence_returning;
        if plan.without == Some(leg as u8) || exempt || plan.fenced & 1 << leg != 0 {
            continue;
        }
        missing = true;
        if state.sps[leg].up {
            out.add("is fenced: leg", 0, leg, state, |next| {
                let device = &mut next.devices[leg];
                device.epoch = device.epoch.max(plan.next.epoch);
                if let Some(plan) = &mut next.plan {
                    plan.fenced |= 1 << leg;
                }
            });
        }
    }
    let deposed = plan.without == Some(owner as u8);
    if !missing {
        out.add("is committed: the tree of SP", 0, usize::from(plan.next.owner), state, |next| {
            // A lost owner's lease is waited for.
            next.sps[owner].lease &= !(rules.await_lease && deposed);
            next.store = plan.next;
            next.plan = None;
        });
    }
}
