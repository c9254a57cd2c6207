//! Operations that wait for another tree, or for somebody who is away: how they are put aside, what
//! is asked before they run again, and which are dropped.

use std::time::{Duration, Instant};

use crate::conn::Conn;
use crate::event_loop::Loop;
use crate::op::{Fail, Op, Source};
use crate::slab::Token;

/// When an operation whose object was not found is run again.
pub const AGAIN: Duration = Duration::from_millis(100);

impl Loop {
    /// False if an operation that has waited is not to be begun any more, since whoever asked may
    /// have asked again elsewhere; it is over then.
    pub fn vouch(&mut self, token: Token) -> bool {
        let Some(op) = self.ops.get_mut(token) else { return false };
        if op.vouched.is_none() {
            op.vouched = Some(op.begun);
            return true;
        }
        let now = Instant::now();
        op.vouched = Some(now);
        match op.source {
            Source::Nbd { conn, .. } | Source::Iscsi { conn, .. } => {
                let checked = matches!(op.source, Source::Iscsi { .. });
                // One that has said goodbye in order has what it asked for carried out.
                let waits = |conn: &Conn| conn.farewell || !conn.stream.is_ended();
                if self.conns.get(conn).is_some_and(waits) {
                    return !checked || self.still_allowed(token);
                }
                self.finish(token, Err(Fail::Shutdown));
                self.close(conn);
                false
            }
            Source::Peer { .. } if !op.locked && op.until.is_some_and(|until| now > until) => {
                self.finish(token, Err(Fail::NotFound));
                false
            }
            _ => true,
        }
    }

    /// Puts the operation aside until the volume has another tree or, where `why` is that
    /// an object was not found, for a moment.
    pub fn park(&mut self, token: Token, why: Fail) {
        self.stop(token);
        let retry = self.now + AGAIN;
        let Some(op) = self.ops.get_mut(token) else { return };
        match op.source {
            // As in `cancel_ops`: nobody waits for it any more.
            Source::Nbd { conn, .. } | Source::Iscsi { conn, .. } => {
                if self.conns.get(conn).is_none() {
                    return self.finish(token, Err(Fail::Shutdown));
                }
            }
            // The job looks at the next tree itself.
            Source::Copy { .. }
            | Source::Sweep
            | Source::Lease
            | Source::Heal
            | Source::Keeper
            | Source::Viewer => {
                return self.finish(token, Err(Fail::Stale));
            }
            Source::Errand(_) => {}
            // Its sender has the same epoch, so it waits there: if it waited here, a sender
            // that becomes the owner could not drain before this SP has the next tree, which
            // comes only after.
            Source::Peer { .. } => return self.finish(token, Err(why)),
        }
        op.retry = (why == Fail::NotFound).then_some(retry);
        match self.volumes.get_mut(op.volume) {
            // Nothing will run it here any more: its host asks again over another path.
            Some(volume) if volume.leaving => {
                let conn = op.source.host();
                self.finish(token, Err(Fail::Shutdown));
                if let Some(conn) = conn {
                    self.close(conn);
                }
            }
            Some(volume) => {
                volume.parked.push_back(token);
                self.want_tick();
            }
            None => self.finish(token, Err(Fail::Shutdown)),
        }
    }

    /// Ends what a closed connection asked for and what has not begun or waits for a remote
    /// that is away: its client asks again elsewhere, and may have written over it by the time
    /// that it would be carried out. What holds the range lock excludes such a write, and
    /// goes on: it may be under way at a peer.
    pub fn cancel_ops(&mut self, conn: Token) {
        let of_conn = |op: &Op| match op.source {
            Source::Nbd { conn: of, .. }
            | Source::Iscsi { conn: of, .. }
            | Source::Peer { conn: of, .. } => of == conn,
            _ => false,
        };
        let mut parked = Vec::new();
        for token in self.volumes.tokens() {
            let ops = &self.ops;
            let of = |op: &Token| ops.get(*op).is_some_and(of_conn);
            if let Some(volume) = self.volumes.get_mut(token) {
                parked.extend(volume.parked.iter().copied().filter(of));
                volume.parked.retain(|op| !of(op));
            }
        }
        for op in parked {
            self.finish(op, Err(Fail::Shutdown));
        }
        self.take_back_if(Fail::Io, |op| of_conn(op) && !op.locked);
    }
}
