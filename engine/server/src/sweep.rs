//! The clearing of the write-intent map: regions that have not been written for a round are
//! flushed on all legs, and taken out of every leg's map.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vs_io::planted;
use vs_tree::Tree;

use crate::active::{Active, Volume};
use crate::event_loop::{Loop, Shared};
use crate::mailbox::Message;
use crate::op::{Fail, Kind, Op, Scope, Source};
use crate::slab::Token;

/// A volume's rounds, in the loop that runs its copies.
#[derive(Debug, Default)]
pub struct Sweep {
    /// When the next begins.
    pub at: Option<Instant>,
    /// What this one is to clear once the legs are flushed.
    runs: Vec<(u64, u64)>,
    inflight: u32,
}

impl Shared {
    /// Asks for rounds of a volume's map.
    pub fn sweep(&self, volume: &str) {
        let index = Loop::copy_loop(volume, self.mailboxes.len());
        self.mailboxes[index].post(Message::Sweep(volume.to_owned()));
    }
}

impl Loop {
    fn round_time(&self) -> Duration {
        Duration::from_secs_f64(self.shared.config.map_clear_seconds)
    }

    /// A volume has been written to.
    pub fn plan_sweep(&mut self, id: &str) {
        let at = Instant::now() + self.round_time();
        let Some(&token) = self.volume_by_id.get(id) else { return };
        let Some(volume) = self.volumes.get_mut(token) else { return };
        if volume.sweep.at.is_none() && volume.sweep.inflight == 0 {
            volume.sweep.at = Some(at);
            self.want_tick_at(at);
        }
    }

    /// Begins the rounds that are due.
    pub fn tick_sweeps(&mut self) {
        for token in self.volumes.tokens() {
            let Some(at) = self.volumes.get(token).and_then(|volume| volume.sweep.at) else {
                continue;
            };
            if at <= self.now {
                self.begin_sweep(token);
            } else {
                self.want_tick_at(at);
            }
        }
    }

    fn begin_sweep(&mut self, token: Token) {
        let next = self.now + self.round_time();
        let Some(volume) = self.volumes.get_mut(token) else { return };
        volume.sweep.at = None;
        let active = Arc::clone(&volume.active);
        if !active.tree.is_owner() || !active.tree.has_mirror() {
            return;
        }
        // What a leg misses, and what a resync has not seen yet, is known by the map alone.
        let kept = active.tree.is_degraded() || active.pinned || active.tree.has_hole();
        let kept = kept && !planted("map_cleared_while_away");
        if volume.held || kept {
            volume.sweep.at = Some(next);
            return self.want_tick_at(next);
        }
        if active.recent.is_suspect() {
            self.begin_resync(token);
            let Some(volume) = self.volumes.get_mut(token) else { return };
            volume.sweep.at = Some(next);
            return self.want_tick_at(next);
        }
        let Some(runs) = active.recent.round() else { return };
        if runs.is_empty() {
            volume.sweep.at = Some(next);
            return self.want_tick_at(next);
        }
        volume.sweep.runs = runs;
        volume.sweep.inflight = 1;
        // Not under a lock, so that the flush under it is short.
        let mut op = Op::new(Source::Sweep, Scope::Volume, Kind::Flush, 0, 0);
        op.volume = token;
        self.submit(op);
    }

    /// A write has ended in an error when some legs had it already.
    pub fn suspect(&mut self, token: Token) {
        let Some(volume) = self.volumes.get(token) else { return };
        let tree = &volume.active.tree;
        if tree.has_mirror() && tree.is_owner() {
            volume.active.recent.suspect();
            self.shared.sweep(&volume.volume.id);
        }
    }

    /// Has the legs made alike where the map has them, as after an unclean end; until that is
    /// done reads have one leg alone. Not while a restructure is under way.
    fn begin_resync(&mut self, token: Token) {
        let Some(volume) = self.volumes.get(token) else { return };
        let shared = Arc::clone(&volume.volume);
        let Ok(_control) = shared.control.try_lock() else { return };
        let active = shared.active();
        if active.epoch != volume.active.epoch || active.pinned {
            return;
        }
        shared.list_resync();
        self.pin(&shared, true);
    }

    /// Has all loops read mirrors from one leg only, or no longer: the same tree, told anew. The
    /// caller has the volume's control.
    pub fn pin(&self, shared: &Arc<Volume>, pinned: bool) {
        let active = shared.active();
        let Ok(tree) = Tree::compile(active.tree.spec().clone()) else { return };
        shared.set(Active::new(tree, &self.shared.t1s, pinned, Some(&active)));
        let (ack, _) = std::sync::mpsc::channel();
        for mailbox in &self.shared.mailboxes {
            mailbox.post(Message::Adopt(Arc::clone(shared), ack.clone()));
        }
    }

    /// A part of a round has ended.
    pub fn sweep_done(&mut self, token: Token, op: &Op, result: Result<(), Fail>) {
        let next = Instant::now() + self.round_time();
        let Some(volume) = self.volumes.get_mut(token) else { return };
        volume.sweep.inflight -= 1;
        let mut ops = Vec::new();
        if op.kind == Kind::Flush {
            let runs = std::mem::take(&mut volume.sweep.runs);
            if result.is_ok() {
                for (offset, length) in runs {
                    let kind = Kind::Clean { flushed: false };
                    ops.push(Op::new(Source::Sweep, Scope::Volume, kind, offset, length));
                }
            }
        } else if result.is_ok() {
            volume.active.recent.cleaned(op.offset, op.length);
        }
        volume.sweep.inflight += ops.len() as u32;
        if volume.sweep.inflight == 0 {
            volume.sweep.at = Some(next);
            self.want_tick_at(next);
        }
        for mut op in ops {
            op.volume = token;
            self.submit(op);
        }
    }
}
