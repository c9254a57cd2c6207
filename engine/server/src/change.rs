//! Changes that depend on what is there (COMPARE AND WRITE, ORWRITE), each within one unit and so
//! within one leaf or one mirror.
//!
//! Where a mirror is above, its owner has all writes in one order: it holds the range lock from the
//! read to the last leg's answer. Where none is, writes from all SPs meet at the T1 object's home: it
//! has the object's turn (`turns.rs`), has every loop pass a barrier and waits for what was under way
//! before, so that no plain write is between the read and the write.
//!
//! A COMPARE AND WRITE that may have been carried out is never begun anew: it would find what
//! it wrote itself. Refused by a fence before anything was written, it runs again like all; otherwise its
//! host is told that nobody knows (`Fail::Unsure`).

use std::sync::Arc;
use std::time::Duration;

use vs_io::T1Object;
use vs_wire::change::Change;

use crate::buffers::Buffer;
use crate::event_loop::Loop;
use crate::mailbox::Message;
use crate::op::{Fail, Kind, Op};
use crate::slab::Token;

/// How often it is looked whether a device has ended what it did before.
const LOOK: Duration = Duration::from_millis(1);

/// How far one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It waits for its turn.
    Waits,
    Reads,
    Writes,
}

/// A change that is being carried out here: the operation reads for it, then writes.
#[derive(Debug)]
pub struct Changing {
    change: Change,
    given: Buffer,
    stage: Stage,
    turn: Option<Turn>,
}

/// A turn at a T1 object, or a place in the line.
#[derive(Debug)]
struct Turn {
    t1: Arc<T1Object>,
    epoch: u64,
    offset: u64,
    leaf: u32,
    /// Which part of the operation waits for it.
    part: u32,
    /// Tells answers to this turn from those to an earlier one.
    serial: u64,
    /// Loops that have still to pass the barrier.
    loops: usize,
    /// Then: what was counted on this side has to end.
    older: Option<usize>,
    /// It is counted there itself, so that a fence waits for it.
    counted: Option<usize>,
}

/// A write that met somebody's turn, and goes on after it.
#[derive(Clone, Debug)]
pub struct Blocked {
    /// Tells this wait from an earlier one.
    serial: u64,
    part: u32,
    t1: Arc<T1Object>,
    epoch: u64,
    leaf: u32,
    offset: u64,
    length: u64,
    at: u64,
}

impl Op {
    /// The change that it is, whatever it does for that at the moment.
    pub fn change(&self) -> Option<Change> {
        match (&self.changing, self.kind) {
            (Some(changing), _) => Some(changing.change),
            (None, Kind::Change(change)) => Some(change),
            _ => None,
        }
    }

    /// It is as it came again.
    pub fn unchange(&mut self) {
        if let Some(changing) = self.changing.take() {
            self.kind = Kind::Change(changing.change);
            self.data = changing.given;
        }
    }

    /// True if it must not be begun anew: it may have been carried out.
    pub fn is_unsure(&self) -> bool {
        self.wrote && self.differs.is_none() && self.change() == Some(Change::CompareWrite)
    }
}

impl Loop {
    /// The owner has the range lock: reads what a mirror has there.
    pub fn change_mirror(&mut self, token: Token) {
        let Some(op) = self.ops.get_mut(token) else { return };
        let Kind::Change(change) = op.kind else { return };
        let given = std::mem::replace(&mut op.data, self.buffers.take(op.length as usize));
        op.changing = Some(Box::new(Changing { change, given, stage: Stage::Reads, turn: None }));
        op.kind = Kind::Read;
    }

    /// Has an operation wait for its turn at a T1 object here.
    pub fn change_t1(
        &mut self,
        token: Token,
        t1: &Arc<T1Object>,
        epoch: u64,
        leaf: u32,
        offset: u64,
        length: u64,
    ) {
        let Some(op) = self.ops.get_mut(token) else { return };
        let Kind::Change(change) = op.kind else { return };
        op.pending += 1;
        let part = op.part(0, leaf);
        self.serial += 1;
        let turn = Turn {
            t1: Arc::clone(t1),
            epoch,
            offset,
            leaf,
            part,
            serial: self.serial,
            loops: self.shared.mailboxes.len() - 1,
            older: None,
            counted: None,
        };
        let (given, turn) = (std::mem::take(&mut op.data), Some(turn));
        op.changing = Some(Box::new(Changing { change, given, stage: Stage::Waits, turn }));
        let name = ((self.index, token), self.serial);
        if self.shared.turns.take(&t1.spec.id, offset, length, name) {
            // Not at once: the operation's parts are still being counted.
            self.mailbox.post(Message::Turn(token, self.serial));
        }
    }

    /// Its turn: writes that come from now on wait. Those that loops have begun end before these
    /// pass the barrier, or are counted then.
    pub fn turn_has_come(&mut self, token: Token, serial: u64) {
        let from = self.index;
        if self.turn(token).is_none_or(|turn| turn.serial != serial) {
            return;
        }
        for (index, mailbox) in self.shared.mailboxes.iter().enumerate() {
            if index != from {
                mailbox.post(Message::Pass { from, op: token, serial });
            }
        }
        if self.shared.mailboxes.len() == 1 {
            self.wait_for_older(token);
        }
    }

    /// A loop has passed the barrier.
    pub fn turn_passed(&mut self, token: Token, serial: u64) {
        let Some(turn) = self.turn(token).filter(|turn| turn.serial == serial) else { return };
        turn.loops -= 1;
        if turn.loops == 0 {
            self.wait_for_older(token);
        }
    }

    fn turn(&mut self, token: Token) -> Option<&mut Turn> {
        self.ops.get_mut(token)?.changing.as_mut()?.turn.as_mut()
    }

    /// Looks again at those that wait for devices.
    pub fn tick_turns(&mut self) {
        for token in std::mem::take(&mut self.turns_waiting) {
            self.wait_for_older(token);
        }
    }

    /// Reads when all that was begun before the turn has ended.
    fn wait_for_older(&mut self, token: Token) {
        let at = self.now + LOOK;
        let Some(turn) = self.turn(token).filter(|turn| turn.counted.is_none()) else { return };
        turn.older = turn.older.or_else(|| turn.t1.turn());
        if turn.older.is_none_or(|side| turn.t1.pending_on(side) > 0) {
            self.turns_waiting.push(token);
            return self.want_tick_at(at);
        }
        let part = turn.part;
        if !turn.t1.serves(turn.epoch) {
            self.fencing_rejections += 1;
            return self.sub_done(token, part, Err(Fail::Stale));
        }
        turn.counted = Some(turn.t1.begin());
        let Some(op) = self.ops.get_mut(token) else { return };
        if op.end_part(part).is_none() {
            // It was given up.
            return;
        }
        op.rewind();
        op.data = self.buffers.take(op.length as usize);
        op.kind = Kind::Read;
        self.change_parts(token, Stage::Reads);
    }

    /// Reads or writes for the operation whose turn it is.
    fn change_parts(&mut self, token: Token, stage: Stage) {
        let Some(op) = self.ops.get_mut(token) else { return };
        op.pending = 1;
        op.routed = self.now;
        let length = op.length;
        let Some(changing) = &mut op.changing else { return };
        changing.stage = stage;
        let Some(turn) = &changing.turn else { return };
        let (t1, leaf, offset) = (Arc::clone(&turn.t1), turn.leaf, turn.offset);
        let _: Result<(), ()> = t1.map(offset, length, |device, start, count, at| {
            self.device_part(token, &t1, device, leaf, start, count, at);
            Ok(())
        });
        self.part_ended(token);
    }

    /// What an operation reads or writes for a change has ended well: what comes next. False if that is
    /// all.
    pub fn change_goes_on(&mut self, token: Token) -> bool {
        let Some(op) = self.ops.get_mut(token) else { return false };
        let Some(changing) = &mut op.changing else { return false };
        if changing.stage != Stage::Reads {
            return false;
        }
        let alone = changing.turn.is_none();
        let (offset, length) = (op.offset, op.length);
        match changing.change.apply(&op.data, &changing.given) {
            Ok(new) => {
                self.buffers.give(std::mem::replace(&mut op.data, new.into()));
                op.kind = Kind::Write;
            }
            Err(at) => {
                op.differs = Some(at);
                let shown = self.volumes.get(op.volume).filter(|_| alone);
                let unlike = shown.is_some_and(|volume| {
                    volume.active.is_unlike(offset, length)
                        || volume.volume.lock.is_torn(offset, length)
                        || !volume.active.voters.is_empty()
                });
                if !unlike {
                    return false;
                }
                // As of a read: no other leg may have anything else, and nobody else be the owner.
                let empty = op.data.iter().all(|&byte| byte == 0);
                op.kind =
                    if empty { Kind::Zero { no_hole: false, fast: false } } else { Kind::Write };
            }
        }
        changing.stage = Stage::Writes;
        op.rewind();
        if alone {
            self.route(token);
        } else {
            self.change_parts(token, Stage::Writes);
        }
        true
    }

    /// Gives up the operation's turn at a T1 object, or its place in the line.
    pub fn give_up_turn(&mut self, token: Token) {
        let Some(op) = self.ops.get_mut(token) else { return };
        op.blocked.clear();
        let Some(turn) = op.changing.as_mut().and_then(|changing| changing.turn.take()) else {
            return;
        };
        if let Some(side) = turn.counted {
            turn.t1.end(side);
        }
        let name = ((self.index, token), turn.serial);
        let freed = self.shared.turns.give_up(&turn.t1.spec.id, name);
        // In this order: the barrier of the next is behind the writes in each mailbox.
        for ((index, op), serial) in freed.writes {
            self.shared.mailboxes[index].post(Message::Unblocked(op, serial));
        }
        if let Some(((index, op), serial)) = freed.next {
            self.shared.mailboxes[index].post(Message::Turn(op, serial));
        }
    }

    /// Has a write to a T1 object wait if it meets somebody's turn.
    #[allow(clippy::too_many_arguments)]
    pub fn waits_for_turn(
        &mut self,
        token: Token,
        t1: &Arc<T1Object>,
        epoch: u64,
        leaf: u32,
        offset: u64,
        length: u64,
        at: u64,
    ) -> bool {
        let id = &t1.spec.id;
        self.serial += 1;
        let serial = self.serial;
        if !self.shared.turns.wait(id, offset, length, ((self.index, token), serial)) {
            return false;
        }
        let Some(op) = self.ops.get_mut(token) else { return true };
        op.pending += 1;
        let part = op.part(at, leaf);
        let t1 = Arc::clone(t1);
        op.blocked.push(Blocked { serial, part, t1, epoch, leaf, offset, length, at });
        true
    }

    /// The turn that an operation's writes have met is over. They go first: the next turn's
    /// barrier comes behind this.
    pub fn unblocked(&mut self, token: Token, serial: u64) {
        let Some(op) = self.ops.get_mut(token) else { return };
        let Some(index) = op.blocked.iter().position(|blocked| blocked.serial == serial) else {
            return;
        };
        let Blocked { part, t1, epoch, leaf, offset, length, at, .. } = op.blocked.remove(index);
        if op.end_part(part).is_some() {
            self.leaf_parts(token, &t1, epoch, leaf, offset, length, at);
            self.part_ended(token);
        }
    }
}
