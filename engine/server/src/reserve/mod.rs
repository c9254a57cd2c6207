//! Reservations where commands meet them. The volume's owner keeps them (`keeper.rs`); the SPs
//! that serve it go by views of them (`viewer.rs`). One loop of each SP, the one that runs the
//! volume's copies, does both; the others look at `Guard`.

mod keeper;
mod viewer;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vs_io::{ErrorKind, Kept, T1Object, planted};
use vs_tree::{Piece, Target};
use vs_wire::iscsi::session::Command;
use vs_wire::scsi::cdb::Cdb;
use vs_wire::scsi::reserve::{Nexus, Portal, Record, Request, What, allows};

use crate::control::lock;
use crate::event_loop::{Loop, Shared};
use crate::mailbox::{Message, SubData, fail};
use crate::op::{Fail, Kind, NO_LEAF, Op, Scope, Source};
use crate::parking::AGAIN;
use crate::slab::Token;
pub use keeper::Keeper;

/// A view that does not end.
const FOREVER: u64 = u64::MAX >> 1;

/// What is known of a volume's reservations, and where it is served.
#[derive(Debug, Default)]
pub struct Known {
    pub record: Record,
    pub portals: Vec<Portal>,
}

/// What commands ask before they are carried out: one load, while nothing is reserved.
#[derive(Debug, Default)]
pub struct Guard {
    /// Until when what is known may be gone by, in milliseconds of the process's clock; the
    /// lowest bit: it forbids somebody something.
    word: AtomicU64,
    /// It was gone by not long before its end.
    used: AtomicBool,
    /// The loop that keeps it has been told that somebody waits.
    wanted: AtomicBool,
    known: Mutex<Arc<Known>>,
}

/// Whether a command may be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Go,
    /// Nobody knows, for the moment.
    Wait,
    Conflict,
}

impl Guard {
    /// `now` and `lease`: milliseconds.
    pub fn admits(&self, nexus: &Nexus, cdb: &Cdb, now: u64, lease: u64) -> Admission {
        let word = self.word.load(Ordering::Acquire);
        let until = word >> 1;
        if until <= now {
            return Admission::Wait;
        }
        // Early enough to be renewed before it ends.
        if until - now <= lease && !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        if word & 1 == 1 && !allows(&self.known().record, nexus, cdb) {
            return Admission::Conflict;
        }
        Admission::Go
    }

    pub fn is_open(&self, now: u64) -> bool {
        self.word.load(Ordering::Acquire) >> 1 > now
    }

    fn open(&self, until: u64) {
        let restricts = u64::from(self.known().record.restricts());
        self.word.store(until << 1 | restricts, Ordering::Release);
    }

    /// Nothing is known any more.
    pub fn shut(&self) {
        self.word.store(0, Ordering::Release);
    }

    pub fn known(&self) -> Arc<Known> {
        Arc::clone(&lock(&self.known))
    }

    fn set(&self, known: Known) {
        *lock(&self.known) = Arc::new(known);
    }
}

/// Something that is asked of the loop that keeps a volume's reservations.
#[derive(Debug)]
pub struct Ask {
    volume: String,
    /// Of the tree that the asker goes by.
    epoch: u64,
    kind: Kind,
    bytes: Vec<u8>,
    /// The operation that waits, and its part: where the answer goes.
    from: (usize, Token, u32),
}

/// What a loop has to do with a volume's reservations.
#[derive(Default)]
pub struct Local {
    /// A round that it has not ended for: what was begun before then has to end first.
    drain: Option<(u64, Instant)>,
    /// Commands that wait for somebody to know, since when.
    waiting: Vec<(Token, Command, Instant)>,
    pub keeper: Keeper,
}

impl Local {
    pub fn drains(&self) -> bool {
        self.drain.is_some()
    }
}

impl Shared {
    /// Milliseconds of this process's clock.
    pub fn clock(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.began).as_millis() as u64
    }

    pub fn lease(&self) -> Duration {
        Duration::from_secs_f64(self.config.lease_seconds)
    }

    fn forward(&self) -> Duration {
        Duration::from_secs_f64(self.config.forward_seconds)
    }

    fn keeper_of(&self, volume: &str) -> &crate::mailbox::Mailbox {
        &self.mailboxes[Loop::copy_loop(volume, self.mailboxes.len())]
    }

    /// A request of its own, to be sent to the owner.
    pub fn request(&self, from: Nexus, what: What) -> Request {
        let number = self.iscsi.requests.fetch_add(1, Ordering::Relaxed);
        Request { id: u128::from(self.iscsi.process) << 64 | u128::from(number), from, what }
    }
}

impl Loop {
    /// Has the owner answer: the loop that keeps the reservations here, or another SP.
    pub fn ask_owner(&mut self, token: Token) {
        let Some(op) = self.ops.get_mut(token) else { return };
        let Some(volume) = self.volumes.get(op.volume) else {
            return self.finish(token, Err(Fail::Shutdown));
        };
        let active = Arc::clone(&volume.active);
        // One more than the part, so that it can't end before it has begun.
        op.pending = 1;
        if active.tree.is_owner() {
            op.pending += 1;
            let piece = op.part(0, NO_LEAF);
            let ask = Ask {
                volume: volume.volume.id.clone(),
                epoch: active.epoch,
                kind: op.kind,
                bytes: op.data.to_vec(),
                from: (self.index, token, piece),
            };
            self.shared.keeper_of(&ask.volume).post(Message::Ask(Box::new(ask)));
        } else {
            let piece = Piece { target: Target::Owner, offset: 0, length: 0, at: 0 };
            self.piece(token, &active, &piece);
        }
        self.part_ended(token);
    }

    /// A part of an operation that is about what is kept with a T1 object here.
    pub fn kept_part(&mut self, token: Token, t1: &Arc<T1Object>, epoch: u64, leaf: u32) {
        let Some(op) = self.ops.get_mut(token) else { return };
        if op.kind == Kind::Recall {
            if let Some(kept) = t1.kept() {
                op.answers.push((leaf, kept.bytes.clone()));
            }
            return;
        }
        let kept = Kept { epoch, version: op.offset, bytes: op.data.to_vec() };
        let part = op.part(0, leaf);
        let Some(device) = t1.devices().first().cloned() else { return };
        let (shared, object) = (Arc::clone(&self.shared), Arc::clone(t1));
        self.pool_part(token, part, t1, &device, move |_| {
            let done = shared.t1s.keep(&object, epoch, kept);
            done.map(|()| SubData::None).map_err(|e| match e.kind {
                ErrorKind::Timeout => Fail::NotFound,
                _ => fail(&e),
            })
        });
    }

    /// A change that follows from something else than a command; `waiter` is told of its end.
    pub fn errand(&mut self, volume: Token, request: &Request, waiter: Option<(Token, u32)>) {
        let mut op = Op::new(Source::Errand(waiter), Scope::Volume, Kind::Reserve, 0, 0);
        op.volume = volume;
        op.data = request.encode().into();
        self.submit(op);
    }

    /// Has the volume's reservations looked for, unless that is under way.
    pub fn want(&mut self, volume: Token) {
        let Some(volume) = self.volumes.get(volume) else { return };
        let volume = &volume.volume;
        if !volume.guard.wanted.swap(true, Ordering::SeqCst) {
            self.shared.keeper_of(&volume.id).post(Message::Want(volume.id.clone()));
        }
    }

    /// Puts a command aside until it is known whether it may be carried out.
    pub fn await_view(&mut self, volume: Token, conn: Token, command: Command, since: Instant) {
        let Some(shown) = self.volumes.get_mut(volume) else { return };
        shown.reserve.waiting.push((conn, command, since));
        self.want(volume);
        self.want_tick();
    }

    /// Has an operation ask again in a moment whether it may go on.
    fn put_off(&mut self, token: Token, of: Token) {
        let Some(op) = self.ops.get_mut(token) else { return };
        op.retry = Some(self.now + AGAIN);
        if let Some(volume) = self.volumes.get_mut(of) {
            volume.parked.push_back(token);
        }
        self.want_tick();
    }

    /// False if an operation that has waited may not go on, or not yet.
    pub fn still_allowed(&mut self, token: Token) -> bool {
        let Some(op) = self.ops.get(token) else { return false };
        let Source::Iscsi { conn, task } = op.source else { return true };
        if op.kind.asks_owner() {
            return true;
        }
        let of = op.volume;
        if !self.iscsi_is_there(conn) {
            self.put_off(token, of);
            return false;
        }
        let Some(volume) = self.volumes.get(of) else { return true };
        let Some((nexus, cdb)) = self.conns.get(conn).and_then(|conn| conn.nexus_of(task)) else {
            return true;
        };
        let (now, lease) = (self.shared.clock(Instant::now()), self.shared.lease());
        match volume.volume.guard.admits(nexus, cdb, now, lease.as_millis() as u64) {
            Admission::Go => true,
            Admission::Conflict => {
                self.finish(token, Err(Fail::Conflict));
                false
            }
            Admission::Wait => {
                self.put_off(token, of);
                self.want(of);
                false
            }
        }
    }

    /// What is reserved has changed, or is known again.
    pub fn reserved(&mut self, id: &str, round: u64) {
        let Some(&token) = self.volume_by_id.get(id) else {
            return self.shared.keeper_of(id).post(Message::Drained(id.to_owned(), round));
        };
        let Some(volume) = self.volumes.get_mut(token) else { return };
        volume.reserve.drain = Some((round, Instant::now()));
        let known = volume.volume.guard.known();
        self.tell_news(token, &known.record);
        self.look_drained(token);
        self.lost_here(token, id, &known.record);
        let Some(volume) = self.volumes.get_mut(token) else { return };
        if !volume.held {
            let ops = &self.ops;
            let waits = |op: &Token| {
                let found = ops.get(*op);
                found.is_some_and(|op| op.retry.is_some() && op.source.is_hosts())
            };
            let again: Vec<Token> = volume.parked.iter().copied().filter(waits).collect();
            volume.parked.retain(|op| !waits(op));
            for op in again {
                self.run_op(op);
            }
        }
        let Some(volume) = self.volumes.get_mut(token) else { return };
        for (conn, command, since) in std::mem::take(&mut volume.reserve.waiting) {
            self.iscsi_again(conn, command, since);
        }
    }

    /// Tells the loop that keeps them when all has ended that was begun before the last change.
    pub fn look_drained(&mut self, token: Token) {
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let Some((round, since)) = volume.reserve.drain else { return };
        let older = |op: &Op| {
            let hosts = matches!(op.source, Source::Iscsi { .. } | Source::Peer { .. });
            let of = op.volume == token && matches!(op.scope, Scope::Volume);
            hosts && of && op.running && op.vouched.unwrap_or(op.begun) <= since
        };
        if !self.ops.iter().any(|(_, op)| older(op)) {
            volume.reserve.drain = None;
            let id = volume.volume.id.clone();
            self.shared.keeper_of(&id).post(Message::Drained(id, round));
        }
    }

    /// A unit that is reserved by a session that there was here, and is no more, is released: this
    /// process may have begun since.
    fn lost_here(&mut self, token: Token, id: &str, record: &Record) {
        let Some(holder) = &record.reserved else { return };
        let here = self.own_portal(false).is_some_and(|portal| portal.tag == holder.tag);
        let Some(volume) = self.volumes.get(token) else { return };
        if here && self.keeps(id) && !self.shared.iscsi.has(&volume.volume.name, holder) {
            let request = self.shared.request(holder.clone(), What::Lost);
            self.errand(token, &request, None);
        }
    }

    /// True if every T1 object of the tree has what is reserved; if not, that is seen to.
    pub fn is_kept(&mut self, token: Token) -> bool {
        let Some(volume) = self.volumes.get_mut(token) else { return true };
        let keeper = &mut volume.reserve.keeper;
        if keeper.is_settled() || !volume.active.tree.is_owner() || planted("copy_without_record") {
            return true;
        }
        keeper.wanted = true;
        self.keeper_go(token);
        false
    }

    /// What has waited for a view since before then may be told to come again.
    fn tick_waiting(&mut self, token: Token) {
        let hold = Duration::from_secs_f64(self.shared.config.hold_seconds);
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(token) else { return };
        if volume.reserve.waiting.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut volume.reserve.waiting);
        let (late, waiting): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(_, _, since)| now - *since > hold);
        volume.reserve.waiting = waiting;
        for (conn, command, _) in late {
            self.iscsi_busy(conn, command.task);
        }
        self.want(token);
        self.want_tick();
    }

    pub fn tick_reserve(&mut self) {
        for token in self.volumes.tokens() {
            self.tick_waiting(token);
            self.tick_keeper(token);
        }
    }

    /// Takes out the commands of a session that wait.
    pub fn take_waiting(&mut self, volume: Token, conn: Token) -> Vec<u32> {
        let Some(volume) = self.volumes.get_mut(volume) else { return Vec::new() };
        let waiting = std::mem::take(&mut volume.reserve.waiting);
        let (gone, waiting): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(of, ..)| *of == conn);
        volume.reserve.waiting = waiting;
        gone.into_iter().map(|(_, command, _)| command.task).collect()
    }
}
