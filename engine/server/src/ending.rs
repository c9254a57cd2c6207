//! How operations end: their locks, the volume's count of them, their answers.

use crate::event_loop::Loop;
use crate::mailbox::Message;
use crate::op::{Fail, Scope, Source};
use crate::slab::Token;

impl Loop {
    fn unlock(&mut self, token: Token) {
        let Some(op) = self.ops.get_mut(token) else { return };
        if !std::mem::take(&mut op.locked) {
            return;
        }
        let Some(volume) = self.volumes.get(op.volume) else { return };
        if op.wrote && matches!(op.scope, Scope::Volume) {
            volume.volume.lock.tear(op.offset, op.length);
        }
        let granted = volume.volume.lock.release((self.index, token));
        self.grant(granted);
    }

    /// Tells those who hold the range lock now.
    pub fn grant(&mut self, holders: Vec<(usize, Token)>) {
        for (index, op) in holders {
            if index == self.index {
                self.granted.push(op);
            } else {
                self.shared.mailboxes[index].post(Message::Granted(op));
            }
        }
    }

    /// Takes the operation out of the volume's requests in flight.
    pub fn stop(&mut self, token: Token) {
        self.give_up_turn(token);
        self.unlock(token);
        let Some(op) = self.ops.get_mut(token) else { return };
        let of = op.volume;
        if std::mem::take(&mut op.running)
            && let Some(volume) = self.volumes.get_mut(of)
        {
            volume.inflight -= 1;
            if volume.inflight == 0
                && let Some(ack) = volume.quiescing.take()
            {
                let _ = ack.send(());
            }
            if volume.reserve.drains() {
                self.look_drained(of);
            }
        }
    }

    /// Ends an operation and answers it.
    pub fn finish(&mut self, token: Token, result: Result<(), Fail>) {
        if let Some(op) = self.ops.get_mut(token)
            && result.is_ok()
            && std::mem::take(&mut op.wrote)
            && let Some(volume) = self.volumes.get(op.volume)
        {
            volume.volume.lock.mend(op.offset, op.length);
        }
        self.stop(token);
        let Some(mut op) = self.ops.remove(token) else { return };
        op.unchange();
        let name = op.kind.name();
        if result.is_err() && op.wrote && matches!(op.scope, Scope::Volume) {
            self.suspect(op.volume);
        }
        let asks = op.kind.asks_owner();
        if let Some(volume) = self.volumes.get_mut(op.volume)
            && matches!(op.scope, Scope::Volume)
            && !asks
        {
            let conn = match op.source {
                Source::Nbd { conn, .. }
                | Source::Iscsi { conn, .. }
                | Source::Peer { conn, .. } => self.conns.get(conn),
                _ => None,
            };
            if let Some(conn) = conn {
                let seconds = (self.clock.now() - op.begun).as_secs_f64();
                match result {
                    Ok(()) => volume.counters.done(name, conn.transport, 1, op.length, seconds),
                    Err(error) => volume.counters.failed(name, error.name()),
                }
            }
        }
        match std::mem::replace(
            &mut op.source,
            Source::Peer { conn: Token::default(), id: 0, epoch: 0 },
        ) {
            Source::Nbd { conn, request } => self.nbd_reply(conn, &request, op, result),
            Source::Iscsi { conn, task } => self.iscsi_done(conn, task, op, result),
            Source::Peer { conn, id, .. } => self.peer_reply(conn, id, op, result),
            Source::Copy { path, resync, task } => {
                self.copy_region_done(op.volume, &path, resync, task, &op, result);
            }
            Source::Sweep => self.sweep_done(op.volume, &op, result),
            Source::Lease => self.lease_done(op.volume, op.begun, result),
            Source::Heal => self.heal_done(op.volume, &op, result),
            Source::Keeper => self.keeper_done(op.volume, &op, result),
            Source::Viewer => self.viewer_done(op.volume, &op, result),
            Source::Errand(waiter) => self.errand_done(waiter, &op, result),
        }
    }
}
