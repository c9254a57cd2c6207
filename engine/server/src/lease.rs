//! Whether an owner still is one. A read of its own leg would not meet a fence, so before it is
//! answered the homes of all other legs in sync have said, within the lease's time, that they
//! know of no later epoch. Writes need no such question: they are answered by every leg.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vs_io::planted;
use vs_tree::{Piece, Target};

use crate::event_loop::Loop;
use crate::op::{Fail, Kind, Op, Scope, Source};
use crate::slab::Token;

/// A volume's lease, as one loop has it.
#[derive(Debug, Default)]
pub struct Lease {
    /// None: not granted on this tree yet.
    pub until: Option<Instant>,
    asking: bool,
    /// Reads that are done, but for the answer.
    reads: Vec<Token>,
}

impl Lease {
    pub fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until) || planted("no_lease")
    }
}

impl Loop {
    /// Asks the other legs' homes, unless that is under way.
    pub fn ask_lease(&mut self, token: Token) {
        let Some(volume) = self.volumes.get_mut(token) else { return };
        if volume.held || std::mem::replace(&mut volume.lease.asking, true) {
            return;
        }
        let active = Arc::clone(&volume.active);
        volume.inflight += 1;
        let mut op = Op::new(Source::Lease, Scope::Volume, Kind::Read, 0, 0);
        (op.volume, op.running, op.pending) = (token, true, 1);
        // When it was asked counts, not when it was answered.
        op.begun = Instant::now();
        let op = self.ops.insert(op);
        for &leaf in &active.voters {
            let piece = Piece { target: Target::Leaf(leaf), offset: 0, length: 0, at: 0 };
            self.piece(op, &active, &piece);
        }
        self.part_ended(op);
    }

    /// Holds a read's answer until the lease is known to have held when it was read.
    pub fn confirm_read(&mut self, token: Token) {
        let Some(op) = self.ops.get(token) else { return };
        let of = op.volume;
        let Some(volume) = self.volumes.get_mut(of) else { return };
        volume.lease.reads.push(token);
        self.ask_lease(of);
    }

    /// The homes have answered, or one of them can't.
    pub fn lease_done(&mut self, token: Token, begun: Instant, result: Result<(), Fail>) {
        let time = Duration::from_secs_f64(self.shared.config.lease_seconds);
        let Some(volume) = self.volumes.get_mut(token) else { return };
        volume.lease.asking = false;
        let reads = std::mem::take(&mut volume.lease.reads);
        if result.is_err() {
            for read in reads {
                self.park(read, Fail::NotFound);
            }
            return;
        }
        volume.lease.until = Some(begun + time);
        // What waits for another tree will say so again.
        let parked =
            if volume.held { Default::default() } else { std::mem::take(&mut volume.parked) };
        for read in reads {
            self.finish(read, Ok(()));
        }
        for op in parked {
            self.run_op(op);
        }
    }
}
