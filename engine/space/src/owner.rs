//! What owners and homes do: parts of writes, copies, the map, reads.

use crate::search::Steps;
use crate::state::{Copy, Id, Leg, Part, Read, Rules, State, Try, Value, WRITES};

pub fn steps(state: &State, rules: &Rules, out: &mut Steps) {
    for number in 0..WRITES {
        for attempt in 0..2 {
            write(state, rules, number, attempt, out);
        }
    }
    for leg in 0..2 {
        late(state, rules, leg, out);
    }
    for owner in 0..2 {
        let sp = &state.sps[owner];
        if sp.up && sp.tree.is_owner(owner) {
            copy(state, rules, owner, out);
            clean(state, rules, owner, out);
            lease(state, rules, owner, out);
            read(state, rules, owner, out);
        }
    }
}

/// A leg gets a value, and its map the block.
fn store(state: &mut State, rules: &Rules, leg: Id, value: Value) {
    state.devices[leg].value = value;
    state.devices[leg].dirty |= rules.intent;
}

fn write(state: &State, rules: &Rules, number: usize, attempt: usize, out: &mut Steps) {
    let Try::Running { owner, epoch, parts, gone } = state.writes[number].tries[attempt] else {
        return;
    };
    let owner = usize::from(owner);
    for leg in (0..2).filter(|leg| parts[*leg] == Part::Sent && state.sps[*leg].up) {
        let serves = state.serves(rules, leg, epoch);
        let end = |next: &mut State, how| {
            if let Try::Running { parts, .. } = &mut next.writes[number].tries[attempt] {
                parts[leg] = how;
            }
        };
        if serves {
            out.add("reaches leg", number, leg, state, |next| {
                store(next, rules, leg, number as Value + 1);
                end(next, Part::Done);
            });
        } else {
            out.at_once("is stale at leg", number, leg, state, |next| end(next, Part::Stale));
        }
    }
    let some = parts.contains(&Part::Done);
    let waits = parts.contains(&Part::Sent) && (rules.all_legs || !some);
    if waits {
        return;
    }
    if parts.contains(&Part::Stale) {
        out.at_once("waits for another tree at", number, owner, state, |next| {
            next.sps[owner].torn |= some;
            next.writes[number].tries[attempt] = if gone { Try::Over } else { Try::Parked(epoch) };
        });
        return;
    }
    // That its front end may crash before it passes the answer on is as if it did just before.
    out.add("is done at", number, owner, state, |next| {
        next.sps[owner].torn = false;
        next.writes[number].tries[attempt] = Try::Over;
        if !gone {
            next.writes[number].acknowledged = true;
            next.history.write_ends(number as Value + 1);
        }
    });
}

/// What nobody waits for any more lands, or is refused.
fn late(state: &State, rules: &Rules, leg: Id, out: &mut Steps) {
    let device = &state.devices[leg];
    let all = device.orphans | device.given_up;
    if all == 0 || !state.sps[leg].up {
        return;
    }
    for bit in (0..32).filter(|bit| all & 1 << bit != 0) {
        let (epoch, value) = ((bit / 4) as u8 + 1, (bit % 4) as u8);
        let number = usize::from(value) - 1;
        let gone = |next: &mut State| {
            next.devices[leg].orphans &= !(1 << bit);
            next.devices[leg].given_up &= !(1 << bit);
        };
        if state.serves(rules, leg, epoch) {
            out.add("lands late on leg", number, leg, state, |next| {
                gone(next);
                store(next, rules, leg, value);
            });
        } else {
            out.at_once("is too late for leg", number, leg, state, gone);
        }
    }
}

/// A resync, or the copy of what a leg has missed.
fn copy(state: &State, rules: &Rules, owner: Id, out: &mut Steps) {
    let sp = &state.sps[owner];
    let tree = &sp.tree;
    if let Some(Copy { to, value }) = sp.copy {
        let to = usize::from(to);
        if state.sps[to].up {
            out.add("a copy reaches leg", usize::from(value), to, state, |next| {
                next.sps[owner].copy = None;
                if state.serves(rules, to, tree.epoch) {
                    // It puts nothing into the map.
                    next.devices[to].value = value;
                    end_copy(next, owner);
                }
            });
        }
        return;
    }
    let behind = (0..2).find(|leg| tree.legs[*leg] == Leg::WriteOnly);
    // A read of what is torn makes the legs alike as a resync does.
    let resyncs = (sp.pinned || sp.torn) && tree.whole();
    let to = match behind {
        Some(leg) if !sp.copied => leg,
        None if resyncs => 1 - tree.first(),
        None if sp.pinned => {
            // One leg alone is like itself.
            out.at_once("has nothing to resync: SP", 0, owner, state, |next| end_copy(next, owner));
            return;
        }
        _ => return,
    };
    if rules.lock && state.is_locked(owner) {
        return;
    }
    if !state.devices[0].dirty && !state.devices[1].dirty {
        let other = 1 - owner;
        if state.sps[other].up && state.serves(rules, other, tree.epoch) {
            // Had it asked before a late write landed, that would not land any more.
            out.add("finds the maps empty: SP", 0, owner, state, |next| {
                next.hello(rules, 1 - owner);
                end_copy(next, owner);
            });
        }
        return;
    }
    let from = 1 - to;
    if state.sps[from].up && state.serves(rules, from, tree.epoch) {
        out.add("begins a copy from leg", 0, from, state, |next| {
            next.hello(rules, 1 - owner);
            let value = state.devices[from].value;
            next.sps[owner].copy = Some(Copy { to: to as u8, value });
        });
    }
}

fn end_copy(state: &mut State, owner: Id) {
    let sp = &mut state.sps[owner];
    sp.copied |= !sp.tree.whole();
    (sp.pinned, sp.torn) = (false, false);
    // What was read from a leg before it was made like the other is read again.
    state.end_read(owner);
}

/// A region that was not written for a while leaves a leg's map.
fn clean(state: &State, rules: &Rules, owner: Id, out: &mut Steps) {
    let sp = &state.sps[owner];
    let kept = rules.keep_map && !sp.tree.whole();
    if kept || sp.pinned || sp.torn || state.is_locked(owner) {
        return;
    }
    for leg in (0..2).filter(|leg| state.devices[*leg].dirty && state.sps[*leg].up) {
        if state.serves(rules, leg, sp.tree.epoch) {
            out.add("leaves the map of leg", 0, leg, state, |next| {
                next.hello(rules, 1 - owner);
                next.devices[leg].dirty = false;
            });
        }
    }
}

/// The other leg's home, if its vote counts.
fn voter(state: &State, owner: Id) -> Option<Id> {
    let other = 1 - owner;
    state.sps[owner].tree.in_sync(other).then_some(other)
}

fn lease(state: &State, rules: &Rules, owner: Id, out: &mut Steps) {
    let sp = &state.sps[owner];
    let Some(other) = voter(state, owner) else { return };
    // It ends when somebody waits for that; that it may end before lets less happen, not more.
    if state.read.is_some() && !sp.lease && state.sps[other].up {
        // What it answers is what it knows of: it is the same message that a write is.
        if state.serves(rules, other, sp.tree.epoch) {
            out.add("gets a lease: SP", 0, owner, state, |next| {
                next.hello(rules, other);
                next.sps[owner].lease = true;
            });
        }
    }
}

fn read(state: &State, rules: &Rules, owner: Id, out: &mut Steps) {
    let sp = &state.sps[owner];
    if let Some(read) = state.read {
        if usize::from(read.owner) != owner {
            return;
        }
        let torn = rules.torn && sp.torn;
        let copied = sp.copy.is_some() && sp.tree.whole();
        let unsettled = torn || copied || (rules.settled && state.is_writing(owner));
        let leased = !rules.lease || sp.lease || voter(state, owner).is_none();
        if unsettled || !leased {
            out.add("reads again: SP", 0, owner, state, |next| next.end_read(owner));
        } else {
            out.add("answers a read: SP", usize::from(read.value), owner, state, |next| {
                next.read = None;
                next.history.read_ends(Some(read.value));
            });
        }
        return;
    }
    if !state.left.reads {
        return;
    }
    // Until a resync has been there, what one leg has may be gone with it: hosts wait.
    if sp.pinned && rules.made_alike {
        return;
    }
    for leg in (0..2).filter(|leg| sp.tree.in_sync(*leg)) {
        if sp.pinned && rules.pin && leg != sp.tree.first() {
            continue;
        }
        if state.sps[leg].up && state.serves(rules, leg, sp.tree.epoch) {
            out.add("is read from leg", 0, leg, state, |next| {
                if leg != owner {
                    next.hello(rules, leg);
                }
                let value = state.devices[leg].value;
                next.read = Some(Read { owner: owner as u8, value });
                next.history.read_begins();
            });
        }
    }
}
