//! The owner's part. A change is carried out in these steps, one change at a time: the next record
//! is made durable with every T1 object of the tree; then all loops here go by it, and every SP
//! that has been given a view of the older one is told; when nothing that was begun under that is
//! left anywhere, or the views have ended, whoever asked is answered.
//!
//! An owner that has just become one asks the T1 objects in sync first, and has all of them keep
//! the latest record that one of them has, if they differ.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use vs_io::planted;
use vs_wire::scsi::reserve::{Look, Outcome, Portal, Record, Request, Shown, apply};
use vs_wire::scsi::sense;

use super::{Ask, FOREVER, Known};
use crate::active::Active;
use crate::event_loop::Loop;
use crate::mailbox::{Message, SubData};
use crate::op::{Fail, Kind, Op, Scope, Source};
use crate::parking::AGAIN;
use crate::slab::Token;

/// An SP that has not been heard of for so long serves the volume no more.
const GONE: std::time::Duration = std::time::Duration::from_secs(100);

/// How far the owner is.
#[derive(Default)]
enum Phase {
    /// It has not asked the T1 objects of this tree, or does not know what they have kept.
    #[default]
    Unknown,
    Recalling,
    /// All of them are to have this one; then this one is told that nothing has changed.
    Settling(Box<Record>, Option<Ask>),
    Idle,
    Keeping(Box<Record>, Ask),
    /// What was begun under older records ends; then this one is answered.
    Draining(Option<Ask>),
}

/// A view that was given to another SP.
struct Grant {
    /// It goes by it no longer than until then.
    until: Instant,
    /// Nothing that it began under an older record is left.
    has: (u64, u64),
}

/// An SP that serves the volume.
struct Member {
    portal: Portal,
    heard: Instant,
}

/// A volume's reservations, in the loop that keeps them.
#[derive(Default)]
pub struct Keeper {
    phase: Phase,
    record: Record,
    queue: VecDeque<Ask>,
    /// Looks that wait until the record is known.
    looks: Vec<(Ask, Look)>,
    /// Looks that wait for another record, until then.
    watches: Vec<(Ask, Look, Instant)>,
    grants: HashMap<String, Grant>,
    members: BTreeMap<String, Member>,
    /// Views that were given before this process began, if there were any, have ended then.
    strangers: Option<Instant>,
    pub(super) round: u64,
    /// Loops that have not ended this round.
    pub(super) left: usize,
    pub(super) retry: Option<Instant>,
    pub(super) wanted: bool,
    pub(super) sight: super::viewer::Sight,
}

impl Keeper {
    /// True if every T1 object of the tree has what is reserved.
    pub fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::Keeping(..) | Phase::Draining(_))
    }
}

impl Loop {
    pub(super) fn keeps(&self, id: &str) -> bool {
        Loop::copy_loop(id, self.shared.mailboxes.len()) == self.index
    }

    fn answer(&self, ask: &Ask, result: Result<Vec<u8>, Fail>) {
        let (index, op, piece) = ask.from;
        let result = result.map(SubData::Answer);
        self.shared.mailboxes[index].post(Message::SubDone { op, piece, result });
    }

    /// Somebody asks the owner.
    pub fn asked(&mut self, ask: Ask) {
        let token = self.volume_by_id.get(&ask.volume).copied();
        let Some((token, volume)) = token.and_then(|t| Some((t, self.volumes.get_mut(t)?))) else {
            return self.answer(&ask, Err(Fail::NotFound));
        };
        let active = &volume.active;
        if volume.held || active.epoch != ask.epoch || !active.tree.is_owner() {
            return self.answer(&ask, Err(Fail::Stale));
        }
        if ask.kind == Kind::Reserve {
            volume.reserve.keeper.queue.push_back(ask);
            return self.keeper_go(token);
        }
        match Look::decode(&ask.bytes) {
            Ok(look) => self.look(token, ask, look),
            Err(_) => self.answer(&ask, Err(Fail::Invalid)),
        }
    }

    /// Somebody here wants to know.
    pub fn wanted(&mut self, id: &str) {
        let Some(&token) = self.volume_by_id.get(id) else { return };
        let Some(volume) = self.volumes.get_mut(token) else { return };
        volume.volume.guard.wanted.store(false, std::sync::atomic::Ordering::SeqCst);
        volume.reserve.keeper.wanted = true;
        if volume.active.tree.is_owner() {
            self.keeper_go(token);
            self.keeper_known(token);
        } else {
            self.viewer_go(token);
        }
    }

    /// What waits because it came too late for the last round is told that all is known.
    fn keeper_known(&mut self, token: Token) {
        let Some(volume) = self.volumes.get_mut(token) else { return };
        if matches!(volume.reserve.keeper.phase, Phase::Idle) {
            volume.reserve.keeper.wanted = false;
            volume.reserve.keeper.phase = Phase::Draining(None);
            self.start_round(token);
        }
    }

    /// Goes on as far as that is possible.
    pub fn keeper_go(&mut self, token: Token) {
        loop {
            let now = self.now;
            let Some(volume) = self.volumes.get_mut(token) else { return };
            if volume.held || !volume.active.tree.is_owner() {
                return;
            }
            let epoch = volume.active.epoch;
            let keeper = &mut volume.reserve.keeper;
            match keeper.phase {
                Phase::Unknown => {
                    if keeper.queue.is_empty() && keeper.looks.is_empty() && !keeper.wanted {
                        return;
                    }
                    if let Some(at) = keeper.retry.filter(|at| *at > now) {
                        return self.want_tick_at(at);
                    }
                    keeper.phase = Phase::Recalling;
                    return self.keeper_op(token, Kind::Recall, 0, Vec::new());
                }
                Phase::Idle => {}
                _ => return,
            }
            let Some(ask) = keeper.queue.pop_front() else { return };
            let Ok(request) = Request::decode(&ask.bytes) else {
                self.answer(&ask, Err(Fail::Invalid));
                continue;
            };
            let (outcome, next) = apply(&keeper.record, &request);
            let Some(mut next) = next else {
                self.answer(&ask, Ok(outcome.encode().to_vec()));
                continue;
            };
            next.epoch = epoch;
            let (version, bytes) = (next.version, next.encode(false));
            keeper.phase = Phase::Keeping(Box::new(next), ask);
            return self.keeper_op(token, Kind::Keep, version, bytes);
        }
    }

    fn keeper_op(&mut self, token: Token, kind: Kind, version: u64, bytes: Vec<u8>) {
        let mut op = Op::new(Source::Keeper, Scope::Volume, kind, version, 0);
        op.volume = token;
        op.data = bytes.into();
        self.submit(op);
        self.want_tick();
    }
}

impl Loop {
    /// The T1 objects have answered, or kept what they were to keep.
    pub fn keeper_done(&mut self, token: Token, op: &Op, result: Result<(), Fail>) {
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let active = Arc::clone(&volume.active);
        let keeper = &mut volume.reserve.keeper;
        let phase = std::mem::take(&mut keeper.phase);
        if result.is_ok() {
            match (phase, op.kind) {
                (Phase::Recalling, Kind::Recall) => match chosen(&active, &op.answers) {
                    Ok(Found::All(record)) => return self.publish(token, record, None),
                    Ok(Found::Some(mut record)) => {
                        record.epoch = active.epoch;
                        let bytes = record.encode(false);
                        let version = record.version;
                        keeper.phase = Phase::Settling(record.into(), None);
                        return self.keeper_op(token, Kind::Keep, version, bytes);
                    }
                    Err(leaf) => {
                        let t1 = &active.tree.leaves()[leaf as usize].t1;
                        eprintln!("vswitchd engine: {t1}: its reservations can't be read");
                    }
                },
                (Phase::Settling(record, ask), Kind::Keep) => {
                    if let Some(ask) = ask {
                        let full = Outcome::Check(sense::REGISTRATION_RESOURCES);
                        self.answer(&ask, Ok(full.encode().to_vec()));
                    }
                    return self.publish(token, *record, None);
                }
                (Phase::Keeping(record, ask), Kind::Keep) => {
                    return self.publish(token, *record, Some(ask));
                }
                (phase, _) => {
                    keeper.phase = phase;
                    return;
                }
            }
        } else {
            match phase {
                Phase::Keeping(next, ask) if result == Err(Fail::NoSpace) => {
                    // A label has no room for more. It has for what it had, which all get again.
                    let (epoch, version) = (active.epoch, next.version + 1);
                    let record = Record { epoch, version, ..keeper.record.clone() };
                    let bytes = record.encode(false);
                    keeper.phase = Phase::Settling(record.into(), Some(ask));
                    return self.keeper_op(token, Kind::Keep, version, bytes);
                }
                // Some may have it by now: whoever asked asks again, and is told when that is known.
                Phase::Keeping(_, ask) | Phase::Settling(_, Some(ask)) => {
                    self.answer(&ask, Err(Fail::NotFound));
                }
                _ => {}
            }
        }
        let Some(volume) = self.volumes.get_mut(token) else { return };
        volume.volume.guard.shut();
        volume.reserve.keeper.wanted = true;
        volume.reserve.keeper.retry = Some(now + AGAIN);
        self.want_tick();
    }

    /// This record counts from now on, here and, before whoever asked is answered, everywhere.
    fn publish(&mut self, token: Token, record: Record, ask: Option<Ask>) {
        let (now, lease) = (self.now, self.shared.lease());
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let keeper = &mut volume.reserve.keeper;
        keeper.record = record;
        keeper.phase = Phase::Draining(ask);
        keeper.wanted = false;
        let looks = std::mem::take(&mut keeper.looks);
        let watches = std::mem::take(&mut keeper.watches);
        self.show_portals(token);
        let Some(volume) = self.volumes.get_mut(token) else { return };
        volume.volume.guard.open(FOREVER);
        for (ask, look, _) in watches {
            self.show(token, &ask, &look, now + lease);
        }
        for (ask, look) in looks {
            self.look(token, ask, look);
        }
        self.start_round(token);
    }

    /// Has all loops here end what they began before now.
    pub(super) fn start_round(&mut self, token: Token) {
        let loops = self.shared.mailboxes.len();
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let keeper = &mut volume.reserve.keeper;
        keeper.round += 1;
        keeper.left = loops;
        for mailbox in &self.shared.mailboxes {
            mailbox.post(Message::Reserved(volume.volume.id.clone(), keeper.round));
        }
    }

    /// A loop has ended what it began before that round.
    pub fn drained(&mut self, id: &str, round: u64) {
        let Some(&token) = self.volume_by_id.get(id) else { return };
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let keeper = &mut volume.reserve.keeper;
        if keeper.round != round || keeper.left == 0 {
            return;
        }
        keeper.left -= 1;
        if volume.active.tree.is_owner() {
            self.keeper_drained(token);
        } else {
            self.viewer_drained(token);
        }
    }

    /// Answers a change once nothing that was begun under older records is left.
    fn keeper_drained(&mut self, token: Token) {
        let (now, forward) = (Instant::now(), self.shared.forward());
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let keeper = &mut volume.reserve.keeper;
        if !matches!(keeper.phase, Phase::Draining(_)) || keeper.left > 0 {
            return;
        }
        let stamp = keeper.record.stamp();
        // What an SP has sent on its way may come for a moment longer.
        let mut until = keeper.strangers;
        let mut passed = keeper.strangers.take_if(|at| *at <= now).is_some();
        keeper.grants.retain(|_, grant| {
            let over = grant.until + forward <= now;
            passed |= over && grant.has != stamp;
            if planted("views_not_waited_for") {
                return !over;
            }
            if !over && grant.has != stamp {
                until = until.max(Some(grant.until + forward));
            }
            !over
        });
        if passed {
            // It may have come to here: once more, for that.
            return self.start_round(token);
        }
        if let Some(at) = until.filter(|at| *at > now) {
            return self.want_tick_at(at);
        }
        if let Phase::Draining(ask) = std::mem::replace(&mut keeper.phase, Phase::Idle)
            && let Some(ask) = ask
        {
            self.answer(&ask, Ok(Outcome::Good.encode().to_vec()));
        }
        self.keeper_go(token);
    }

    /// Another SP looks.
    fn look(&mut self, token: Token, ask: Ask, look: Look) {
        let now = Instant::now();
        let (lease, forward) = (self.shared.lease(), self.shared.forward());
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let keeper = &mut volume.reserve.keeper;
        if !keeper.is_settled() {
            keeper.looks.push((ask, look));
            return self.keeper_go(token);
        }
        if let Some(portal) = &look.portal {
            let known = keeper.members.get(&look.sp).map(|member| &member.portal);
            let new = known != Some(portal);
            let member = Member { portal: portal.clone(), heard: now };
            keeper.members.insert(look.sp.clone(), member);
            if new {
                self.show_portals(token);
            }
        }
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let keeper = &mut volume.reserve.keeper;
        let stamp = keeper.record.stamp();
        let same = look.has == Some(stamp);
        if look.ends {
            keeper.grants.remove(&look.sp);
            self.show(token, &ask, &look, now);
        } else {
            let lives = |grant: &Grant| now < grant.until + forward;
            let first = !keeper.grants.get(&look.sp).is_some_and(lives);
            let grant = keeper.grants.entry(look.sp.clone());
            let grant = grant.or_insert(Grant { until: now, has: stamp });
            if same || first {
                grant.has = stamp;
            }
            if same {
                keeper.watches.push((ask, look, now + lease / 4));
                self.want_tick_at(now + lease / 4);
            } else {
                self.show(token, &ask, &look, now + lease);
            }
        }
        self.keeper_drained(token);
    }

    /// Answers a look with what there is, to be gone by until then.
    fn show(&mut self, token: Token, ask: &Ask, look: &Look, until: Instant) {
        let margin = self.shared.lease() / 100;
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let keeper = &mut volume.reserve.keeper;
        if let Some(grant) = keeper.grants.get_mut(&look.sp) {
            grant.until = grant.until.max(until + margin);
        }
        let portals = volume.volume.guard.known().portals.clone();
        let shown = Shown { record: keeper.record.clone(), portals };
        self.answer(ask, Ok(shown.encode()));
    }

    /// Makes known here what is reserved, and which SPs serve the volume.
    fn show_portals(&mut self, token: Token) {
        let (now, own) = (self.now, self.own_portal(true));
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let keeper = &mut volume.reserve.keeper;
        keeper.members.retain(|_, member| now.saturating_duration_since(member.heard) < GONE);
        let others = keeper.members.values().map(|member| member.portal.clone());
        let mut portals: Vec<Portal> = own.into_iter().chain(others).collect();
        portals.sort_by_key(|portal| (portal.tag, !portal.is_best));
        let all = portals.len();
        portals.dedup_by_key(|portal| portal.tag);
        if portals.len() < all {
            let name = &volume.volume.name;
            eprintln!("vswitchd engine: volume {name}: two SPs have one iscsi_portal_group");
        }
        volume.volume.guard.set(Known { record: keeper.record.clone(), portals });
    }

    /// The volume's tree is about to change: nothing is answered by this one any more.
    pub fn stop_keeper(&mut self, token: Token) {
        let Some(volume) = self.volumes.get(token) else { return };
        if !self.keeps(&volume.volume.id) {
            return;
        }
        let Some(volume) = self.volumes.get_mut(token) else { return };
        volume.volume.guard.shut();
        let keeper = &mut volume.reserve.keeper;
        let mut asks: Vec<Ask> = keeper.queue.drain(..).collect();
        asks.extend(keeper.looks.drain(..).map(|(ask, _)| ask));
        asks.extend(keeper.watches.drain(..).map(|(ask, ..)| ask));
        match std::mem::take(&mut keeper.phase) {
            Phase::Keeping(_, ask) | Phase::Draining(Some(ask)) | Phase::Settling(_, Some(ask)) => {
                asks.push(ask)
            }
            _ => {}
        }
        let view = keeper.sight.stop();
        for ask in asks {
            self.answer(&ask, Err(Fail::Stale));
        }
        // It waits at an owner that may be none any more.
        if let Some(view) = view {
            self.ops.remove(view);
        }
    }

    /// The volume has a tree. `new`: it had none here; `moved`: it had one of another epoch.
    pub fn start_keeper(&mut self, token: Token, new: bool, moved: bool) {
        let Some(volume) = self.volumes.get(token) else { return };
        if !self.keeps(&volume.volume.id) {
            return;
        }
        let (now, span) = (Instant::now(), self.shared.lease() + self.shared.forward());
        let serves = self.own_portal(false).is_some();
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let owner = volume.active.tree.is_owner();
        let keeper = &mut volume.reserve.keeper;
        if moved {
            // Who went by a view of the last owner's finds the T1 objects fenced.
            keeper.grants.clear();
            keeper.strangers = None;
        }
        if new {
            keeper.strangers = Some(now + span);
        }
        keeper.retry = None;
        if owner {
            return self.keeper_go(token);
        }
        // The owner is to know who serves the volume.
        keeper.wanted |= serves;
        self.viewer_go(token);
    }

    /// What is due.
    pub(super) fn tick_keeper(&mut self, token: Token) {
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(token) else { return };
        if volume.held {
            return;
        }
        if !volume.active.tree.is_owner() {
            return self.tick_viewer(token);
        }
        let keeper = &mut volume.reserve.keeper;
        let watches = std::mem::take(&mut keeper.watches);
        let (due, rest): (Vec<_>, Vec<_>) = watches.into_iter().partition(|watch| watch.2 <= now);
        keeper.watches = rest;
        let next = keeper.watches.iter().map(|watch| watch.2).min();
        let lease = self.shared.lease();
        for (ask, look, _) in due {
            self.show(token, &ask, &look, Instant::now() + lease);
        }
        if let Some(at) = next {
            self.want_tick_at(at);
        }
        self.keeper_drained(token);
        self.keeper_go(token);
    }
}

/// What the T1 objects have.
enum Found {
    /// All of them this.
    All(Record),
    /// One in sync has this, the latest; not all.
    Some(Record),
}

/// Decides between the answers of the T1 objects; a leaf that has kept nothing has not answered.
///
/// # Errors
/// The leaf whose answer can't be read.
fn chosen(active: &Active, answers: &[(u32, Vec<u8>)]) -> Result<Found, u32> {
    let mut best: Option<(Record, &[u8])> = None;
    for (leaf, bytes) in answers {
        let record = Record::decode(bytes).map_err(|_| *leaf)?;
        // One that is not may have a change that was never answered, and was made anew since.
        let counts = active.tree.leaves()[*leaf as usize].in_sync;
        if counts && best.as_ref().is_none_or(|(known, _)| record.stamp() > known.stamp()) {
            best = Some((record, bytes));
        }
    }
    let latest = best.as_ref().map(|(_, bytes)| *bytes);
    let all = active.tree.present(0..active.leaves.len() as u32);
    let alike = |leaf: u32| {
        let has = answers.iter().find(|answer| answer.0 == leaf).map(|answer| &answer.1[..]);
        has == latest
    };
    let alike = all.into_iter().all(alike);
    let record = best.map(|(record, _)| record).unwrap_or_default();
    Ok(if alike { Found::All(record) } else { Found::Some(record) })
}
