//! Legs that fail, that keep hosts waiting, and that can't read any more what they hold.
//!
//! A leg without which its volume can go on is named to the controller, which has it voted out;
//! until then what it has not answered waits. What one leg can't read is read from another and
//! written to it again: disks give such a sector another place.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vs_io::planted;
use vs_tree::{Piece, Target};

use crate::control::lock;
use crate::event_loop::Loop;
use crate::op::{Fail, Kind, Op, Scope, Source};
use crate::slab::Token;

/// Unit of what is written again: of disks and of page caches.
const SECTOR: u64 = 4096;
/// Repairs of a volume under way at once, in one loop; what finds no room is for a later read.
const HEALING: u32 = 4;
/// So many repairs on one tree, and a leg counts as failing.
const TOO_OFTEN: u32 = 64;
/// A tick that comes so late says that this process did not run: replies may be here unread.
const LATE: Duration = Duration::from_millis(500);
/// For so long after it nobody is blamed.
const EXCUSED: Duration = Duration::from_secs(1);

/// The repairs of a volume, as one loop has them.
#[derive(Debug, Default)]
pub struct Heals {
    under_way: u32,
    /// Leaves that have been repaired on this tree, once for each time.
    done: Vec<u32>,
}

impl Heals {
    /// The tree has changed: what was repaired before counts no more.
    pub fn forget(&mut self) {
        self.done.clear();
    }
}

impl Loop {
    /// Names leaves whose T1 objects fail. True if the volume can go on without them; what they
    /// were asked then waits until it does.
    pub fn blame(&mut self, token: Token, leaves: &[u32], why: &str) -> bool {
        let Some(volume) = self.volumes.get(token) else { return false };
        let tree = &volume.active.tree;
        let mirrored = |leaf: &u32| tree.leaves()[*leaf as usize].mirrored;
        let usable = tree.is_owner() && !leaves.is_empty() && leaves.iter().all(mirrored);
        if !usable || !tree.survives(leaves) {
            return false;
        }
        let mut failing = lock(&volume.volume.failing);
        for leaf in leaves {
            let t1 = &tree.leaves()[*leaf as usize].t1;
            if failing.insert(t1.clone(), Instant::now()).is_none() {
                eprintln!("vswitchd engine: volume {}: {t1} {why}", volume.volume.name);
            }
        }
        true
    }

    /// Notes what a host's write or flush, or a repair, has failed at.
    pub fn blame_failed(&mut self, token: Token) -> bool {
        let Some(op) = self.ops.get(token) else { return false };
        let (of, failed) = (op.volume, op.failed_leaves.clone());
        self.blame(of, &failed, "can't be written")
    }

    fn leg_deadline(&self) -> Duration {
        Duration::from_secs_f64(self.shared.config.leg_deadline_seconds)
    }

    /// Has the legs that an operation waits for looked at in time.
    pub fn time_legs(&mut self) {
        self.want_tick_at(self.now + self.leg_deadline());
    }

    /// Names the legs that have kept an operation waiting for too long. `due` is when this look
    /// should have been.
    pub fn tick_legs(&mut self, due: Option<Instant>) {
        let bound = self.leg_deadline();
        if due.is_some_and(|due| self.now.saturating_duration_since(due) > LATE) {
            self.excused = self.now + EXCUSED;
        }
        let mut next = None::<Instant>;
        let mut late: BTreeSet<(u32, u32, u32)> = BTreeSet::new();
        for (_, op) in self.ops.iter() {
            if op.pending == 0 || !op.running || planted("slow_leg_waited_for") {
                continue;
            }
            let at = (op.routed + bound).max(self.excused);
            let at = if at > self.now { at } else { self.now + EXCUSED };
            next = Some(next.map_or(at, |known| known.min(at)));
            if op.routed + bound <= self.now && self.excused <= self.now {
                let Token { index, generation } = op.volume;
                late.extend(op.waits_for().map(|(_, leaf)| (index, generation, leaf)));
            }
        }
        for (index, generation, leaf) in late {
            self.blame(Token { index, generation }, &[leaf], "does not answer");
        }
        if let Some(at) = next {
            self.want_tick_at(at);
        }
    }

    /// Ends the parts of the volume's operations that wait for these T1 objects: no tree refers
    /// to them any more, or only as away. What still becomes of them changes nothing.
    pub fn give_up_parts(&mut self, token: Token, objects: &[String]) {
        let Some(volume) = self.volumes.get(token) else { return };
        let tree = &volume.active.tree;
        let gone = |leaf: u32| objects.contains(&tree.leaves()[leaf as usize].t1);
        let mut parts = Vec::new();
        for (op, shown) in self.ops.iter().filter(|(_, op)| op.running && op.volume == token) {
            parts.extend(shown.waits_for().filter(|part| gone(part.1)).map(|part| (op, part.0)));
        }
        for (op, part) in parts {
            if let Some(op) = self.ops.get_mut(op) {
                op.unsure();
            }
            self.sub_done(op, part, Err(Fail::NotFound));
        }
    }

    /// A host's read has been answered, but not by these leaves: writes it to them again.
    pub fn heal(&mut self, token: Token, offset: u64, length: u64, leaves: Vec<u32>) {
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let tree = &volume.active.tree;
        if !tree.is_owner() || volume.heals.under_way >= HEALING || planted("not_healed") {
            return;
        }
        volume.heals.under_way += 1;
        volume.heals.done.extend(&leaves);
        let often = |leaf: &u32| {
            volume.heals.done.iter().filter(|known| *known == leaf).count() > TOO_OFTEN as usize
        };
        let often: Vec<u32> = leaves.iter().copied().filter(often).collect();
        let start = offset / SECTOR * SECTOR;
        let end = (offset + length).next_multiple_of(SECTOR).min(tree.size());
        let mut op = Op::new(Source::Heal, Scope::Volume, Kind::Read, start, end - start);
        op.data = self.buffers.take((end - start) as usize);
        (op.volume, op.avoid) = (token, leaves);
        if !often.is_empty() {
            volume.heals.done.clear();
            self.blame(token, &often, "can't be read time and again");
        }
        self.submit(op);
    }

    /// A repair has read what it writes: under the same lock, to those leaves alone.
    pub fn heal_write(&mut self, token: Token) {
        let Some(op) = self.ops.get_mut(token) else { return };
        op.kind = Kind::Write;
        op.heals = std::mem::take(&mut op.avoid);
        op.rewind();
        self.route(token);
    }

    /// Only the pieces of the leaves that a repair is for.
    pub fn healed_only(heals: &[u32], pieces: &mut Vec<Piece>) {
        if !heals.is_empty() {
            pieces.retain(
                |piece| matches!(piece.target, Target::Leaf(leaf) if heals.contains(&leaf)),
            );
        }
    }

    /// A repair has ended.
    pub fn heal_done(&mut self, token: Token, op: &Op, result: Result<(), Fail>) {
        let Some(volume) = self.volumes.get_mut(token) else { return };
        volume.heals.under_way -= 1;
        if result.is_ok() && op.kind == Kind::Write {
            let shared = Arc::clone(&volume.volume);
            shared.healed.fetch_add(op.length, Ordering::Relaxed);
        }
    }
}
