//! Reads where legs may differ.
//!
//! What one leg gives may be on it alone: while a write to it is under way, after one that ended
//! on some legs only, and after an unclean end until a resync has been there. Were it answered, and
//! that leg lost, hosts would see time run backwards. Such a read is made again in line with the
//! writes; and where nobody else will make the legs alike before long, it does so itself.

use vs_io::planted;

use crate::event_loop::{Loop, LoopVolume};
use crate::op::{Kind, Op};
use crate::slab::Token;

/// True if the legs are unlike there, until somebody writes to all of them.
fn is_unlike(volume: &LoopVolume, op: &Op) -> bool {
    let (offset, length) = (op.offset, op.length);
    let resync = volume.active.is_unlike(offset, length) && !planted("resync_not_awaited");
    resync || volume.volume.lock.is_torn(offset, length)
}

impl Loop {
    /// True if what an operation has read must not be answered yet.
    pub fn is_unsettled(&self, token: Token) -> bool {
        let Some(op) = self.ops.get(token) else { return false };
        let volume = self.volumes.get(op.volume);
        volume.is_some_and(|volume| {
            let tree = &volume.active.tree;
            let lock = &volume.volume.lock;
            let beside = !op.locked
                && (lock.is_unsettled(op.offset, op.length) || lock.settled() != op.settled);
            tree.has_mirror() && tree.is_owner() && (beside || is_unlike(volume, op))
        })
    }

    /// Has a read made again in line with the writes. If that has been done, gives every leg what
    /// was read, under the same lock: it is as good as anything that may be there.
    pub fn settle_read(&mut self, token: Token) {
        let Some(op) = self.ops.get_mut(token) else { return };
        if op.locked {
            op.settles = true;
            // What was never written stays a hole.
            let empty = op.data.iter().all(|&byte| byte == 0);
            op.kind = if empty { Kind::Zero { no_hole: false, fast: false } } else { Kind::Write };
            op.rewind();
            if let Some(volume) = self.volumes.get(op.volume) {
                volume.volume.lock.writes((self.index, token));
            }
            return self.route(token);
        }
        op.ordered = true;
        self.stop(token);
        self.run_op(token);
    }
}
