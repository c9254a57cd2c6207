//! A loop's part in a swap of trees: it lets what runs end, takes the new tree, or forgets the volume.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use vs_io::planted;

use crate::active::Volume;
use crate::conn::{Conn, Protocol};
use crate::control::Lost;
use crate::event_loop::{Loop, LoopVolume};
use crate::lease::Lease;
use crate::legs::Heals;
use crate::metrics::VolumeCounters;
use crate::op::Fail;
use crate::sweep::Sweep;

impl Loop {
    /// Answers when nothing of the volume is in flight; starts nothing until `adopt`.
    pub fn quiesce(&mut self, id: &str, lost: &Lost, ack: Sender<()>) {
        let Some(&token) = self.volume_by_id.get(id) else {
            let _ = ack.send(());
            return;
        };
        let Some(volume) = self.volumes.get_mut(token) else { return };
        volume.held = true;
        self.stop_keeper(token);
        let Some(volume) = self.volumes.get_mut(token) else { return };
        if volume.inflight == 0 {
            let _ = ack.send(());
            return;
        }
        volume.quiescing = Some(ack);
        self.take_back(token);
        self.give_up_parts(token, &lost.t1s);
        if let Some(owner) = &lost.owner {
            self.give_up(owner);
        }
    }

    /// Takes the volume's current tree into use and runs what was parked.
    pub fn adopt(&mut self, shared: &Arc<Volume>, ack: &Sender<()>) {
        let active = shared.active();
        let new = !self.volume_by_id.contains_key(&shared.id);
        let token = match self.volume_by_id.get(&shared.id) {
            Some(&token) => token,
            None => {
                let token = self.volumes.insert(LoopVolume {
                    volume: Arc::clone(shared),
                    active: Arc::clone(&active),
                    inflight: 0,
                    parked: VecDeque::new(),
                    quiescing: None,
                    held: false,
                    leaving: false,
                    counters: VolumeCounters::default(),
                    copies: Vec::new(),
                    lease: Lease::default(),
                    sweep: Sweep::default(),
                    heals: Heals::default(),
                    reserve: crate::reserve::Local::default(),
                });
                self.volume_by_id.insert(shared.id.clone(), token);
                token
            }
        };
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let moved = volume.active.epoch != active.epoch;
        let passed = volume.active.tree.spec().owner != active.tree.spec().owner;
        if moved {
            volume.lease.until = None;
            volume.heals.forget();
        }
        volume.active = active;
        volume.held = false;
        volume.leaving = false;
        volume.quiescing = None;
        for job in &mut volume.copies {
            job.retry = None;
        }
        let parked = std::mem::take(&mut volume.parked);
        for op in parked {
            if planted("parked_forgotten") {
                self.finish(op, Ok(()));
                continue;
            }
            self.run_op(op);
        }
        if passed {
            self.tell_moved(token);
        }
        self.start_keeper(token, new, moved);
        self.copy_kick(&shared.id);
        if Loop::copy_loop(&shared.id, self.shared.mailboxes.len()) == self.index {
            self.plan_sweep(&shared.id);
        }
        let _ = ack.send(());
    }

    /// The volume is not served here any more.
    pub fn forget(&mut self, id: &str, ack: &Sender<()>) {
        if let Some(token) = self.volume_by_id.remove(id) {
            let volume = self.volumes.remove(token);
            for op in volume.map(|volume| volume.parked).unwrap_or_default() {
                self.finish(op, Err(Fail::Shutdown));
            }
            for conn in self.conns.tokens() {
                let of = |c: &Conn| {
                    matches!(&c.protocol,
                        Protocol::Nbd(session) if session.volume == token)
                };
                if self.conns.get(conn).is_some_and(of) {
                    self.end(conn);
                }
            }
        }
        let _ = ack.send(());
    }
}
