//! The part of an SP that serves a volume and is not its owner. What it knows of the reservations
//! it has from the owner, not longer ago than `lease_seconds`. While hosts use the volume it keeps
//! a question with the owner all the time, which the owner answers at once when something
//! changes; the next question says that all has ended here that was begun before. Nobody asks
//! for a volume that is not used, but for a word now and then of where it is served.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vs_wire::scsi::reserve::{Look, Portal, Shown};

use super::Known;
use crate::control::lock;
use crate::event_loop::Loop;
use crate::op::{Fail, Kind, Op, Scope, Source};
use crate::parking::AGAIN;
use crate::slab::Token;

/// How often the owner of a volume that is not used hears where it is served.
const HEARD: Duration = Duration::from_secs(30);

/// A view, as the loop that keeps it has it.
#[derive(Debug, Default)]
pub struct Sight {
    /// The question that is under way; it ends the view.
    asking: Option<(Token, bool)>,
    /// The last question was one that waits for a change.
    watched: bool,
    /// The record that all here go by, and nothing is left of older ones.
    has: Option<(u64, u64)>,
    /// What was begun before is ending; then this one counts, or none.
    drains: Option<Option<(u64, u64)>>,
    heard: Option<Instant>,
    retry: Option<Instant>,
}

impl Sight {
    /// Forgets all; gives the question that is under way.
    pub fn stop(&mut self) -> Option<Token> {
        std::mem::take(self).asking.map(|(op, _)| op)
    }
}

impl Loop {
    /// Where this SP serves iSCSI, if it does.
    pub(super) fn own_portal(&self, is_best: bool) -> Option<Portal> {
        let sessions = &self.shared.iscsi;
        let bound = lock(&sessions.bound).clone()?;
        let advertised = lock(&sessions.advertised).clone();
        // An address that stands for all of them reaches this SP from nowhere else.
        let told = if bound.starts_with("0.0.0.0:") || bound.starts_with("[::]:") {
            String::new()
        } else {
            bound
        };
        let address = if advertised.is_empty() { told } else { advertised };
        Some(Portal { tag: sessions.tag.load(Ordering::Relaxed), address, is_best })
    }

    /// Asks the owner, if somebody wants to know and it has not been asked.
    pub fn viewer_go(&mut self, token: Token) {
        let now = self.now;
        let portal = self.own_portal(false);
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let open = volume.volume.guard.is_open(self.shared.clock(now));
        let keeper = &mut volume.reserve.keeper;
        let sight = &mut keeper.sight;
        let waits = volume.held || sight.asking.is_some() || sight.drains.is_some();
        let due = sight.retry.is_none_or(|at| at <= now);
        if waits || !keeper.wanted || !due {
            return;
        }
        (keeper.wanted, sight.retry) = (false, None);
        // Who waits for a view does not want to wait for a change of it.
        let has = sight.has.filter(|_| open);
        let look = Look { sp: self.shared.config.sp.clone(), portal, has, ends: false };
        self.view(token, &look);
    }

    fn view(&mut self, token: Token, look: &Look) {
        let mut op = Op::new(Source::Viewer, Scope::Volume, Kind::View, 0, 0);
        op.volume = token;
        op.data = look.encode().into();
        let op = self.ops.insert(op);
        if let Some(volume) = self.volumes.get_mut(token) {
            let sight = &mut volume.reserve.keeper.sight;
            sight.asking = Some((op, look.ends));
            sight.watched = look.has.is_some();
            sight.heard = Some(self.now);
        }
        self.run_op(op);
    }

    /// The owner has answered.
    pub fn viewer_done(&mut self, token: Token, op: &Op, result: Result<(), Fail>) {
        let now = Instant::now();
        let (lease, clock) = (self.shared.lease(), self.shared.clock(now));
        let until = self.shared.clock(op.begun + lease);
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let guard = &volume.volume.guard;
        let keeper = &mut volume.reserve.keeper;
        let sight = &mut keeper.sight;
        let Some((_, ends)) = sight.asking.take() else { return };
        let shown = op.answers.first().map(|answer| Shown::decode(&answer.1));
        let (Ok(()), Some(Ok(shown))) = (result, shown) else {
            // If somebody still wants it, before long.
            keeper.wanted |=
                guard.used.load(Ordering::Relaxed) || !volume.reserve.waiting.is_empty();
            sight.retry = Some(now + AGAIN);
            return self.want_tick();
        };
        if ends {
            sight.has = None;
            return self.viewer_go(token);
        }
        let stamp = shown.record.stamp();
        let new = sight.has != Some(stamp);
        let blind = !guard.is_open(clock);
        guard.set(Known { record: shown.record, portals: shown.portals });
        guard.open(until);
        if new {
            (sight.has, sight.drains) = (None, Some(Some(stamp)));
        }
        if new || blind {
            self.start_round(token);
        }
        if !new {
            self.viewer_next(token);
        }
    }

    /// All loops here go by what was shown, or by nothing.
    pub(super) fn viewer_drained(&mut self, token: Token) {
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let keeper = &mut volume.reserve.keeper;
        if keeper.left > 0 {
            return;
        }
        match keeper.sight.drains.take() {
            Some(Some(stamp)) => {
                keeper.sight.has = Some(stamp);
                self.viewer_next(token);
            }
            Some(None) => {
                let (sp, portal) = (self.shared.config.sp.clone(), self.own_portal(false));
                self.view(token, &Look { sp, portal, has: None, ends: true });
            }
            None => {}
        }
    }

    /// Goes on looking, or ends the view if nobody has used it of late.
    fn viewer_next(&mut self, token: Token) {
        let portal = self.own_portal(false);
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let guard = &volume.volume.guard;
        let keeper = &mut volume.reserve.keeper;
        let used = guard.used.swap(false, Ordering::Relaxed);
        // Who has waited for the first answer has yet to use it.
        let first = !keeper.sight.watched;
        if used || first || std::mem::take(&mut keeper.wanted) {
            let has = keeper.sight.has;
            let look = Look { sp: self.shared.config.sp.clone(), portal, has, ends: false };
            return self.view(token, &look);
        }
        guard.shut();
        keeper.sight.drains = Some(None);
        self.start_round(token);
    }

    pub(super) fn tick_viewer(&mut self, token: Token) {
        let now = self.now;
        let serves = self.own_portal(false).is_some();
        let Some(volume) = self.volumes.get(token) else { return };
        if !self.keeps(&volume.volume.id) {
            return;
        }
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let keeper = &mut volume.reserve.keeper;
        let heard = keeper.sight.heard.unwrap_or(now);
        keeper.wanted |= serves && heard + HEARD <= now;
        let next = keeper.sight.retry.filter(|_| keeper.wanted);
        if serves {
            self.want_tick_at((heard + HEARD).max(now + AGAIN));
        }
        if let Some(at) = next {
            self.want_tick_at(at);
        }
        self.viewer_go(token);
    }
}
