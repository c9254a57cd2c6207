//! What sessions of iSCSI have to do with reservations, with each other, and with the unit's owner.

use std::time::Instant;

use vs_wire::iscsi::NONE;
use vs_wire::iscsi::session::{Command, Status};
use vs_wire::scsi::cdb::{Cdb, op};
use vs_wire::scsi::ports::Port;
use vs_wire::scsi::reserve::{Outcome, Record, What, reply};
use vs_wire::scsi::sense::{self, attention};
use vs_wire::scsi::{LUN, status as code};

use crate::conn::Protocol;
use crate::event_loop::Loop;
use crate::iscsi::{IscsiSession, Then, Work};
use crate::op::{Fail, Kind, Op, Scope, Source};
use crate::reserve::Admission;
use crate::slab::Token;

impl Loop {
    /// Whether a command may be carried out: gives it back, and whether a reservation forbids it.
    /// None if it waits, or is answered.
    pub fn iscsi_admit(
        &mut self,
        token: Token,
        command: Command,
        since: Option<Instant>,
    ) -> Option<(Command, bool)> {
        let conn = self.conns.get_mut(token)?;
        let Protocol::Iscsi(found) = &mut conn.protocol else { return None };
        if conn.parting.is_some() {
            self.iscsi_busy(token, command.task);
            return None;
        }
        let Some(of) = found.volume.filter(|_| command.lun == LUN) else {
            return Some((command, false));
        };
        let Some(volume) = self.volumes.get(of) else { return Some((command, false)) };
        if matches!(command.cdb[0], op::INQUIRY | op::MAINTENANCE_IN) {
            let known = volume.volume.guard.known();
            let port = |tag, is_best| Port { tag, is_best };
            found.unit.ports.clear();
            let all = known.portals.iter().map(|portal| port(portal.tag, portal.is_best));
            found.unit.ports.extend(all);
            if found.unit.ports.is_empty() {
                found.unit.ports.push(port(found.unit.tag, volume.active.tree.is_owner()));
            }
        }
        if matches!(command.cdb[0], op::INQUIRY | op::REPORT_LUNS | op::REQUEST_SENSE) {
            return Some((command, false));
        }
        let (now, lease) = (self.shared.clock(self.now), self.shared.lease());
        let guard = &volume.volume.guard;
        match guard.admits(&found.nexus, &command.cdb, now, lease.as_millis() as u64) {
            Admission::Go => Some((command, false)),
            Admission::Conflict => Some((command, true)),
            Admission::Wait => {
                self.await_view(of, token, command, since.unwrap_or(self.now));
                None
            }
        }
    }

    pub fn iscsi_conflict(&mut self, token: Token, task: u32) {
        let status = Status { code: code::RESERVATION_CONFLICT, sense: &[] };
        self.iscsi_answer(token, task, status, &[]);
    }

    pub fn iscsi_busy(&mut self, token: Token, task: u32) {
        self.iscsi_answer(token, task, Status { code: code::BUSY, sense: &[] }, &[]);
    }

    /// PERSISTENT RESERVE IN, by a view that was admitted a moment ago.
    pub fn iscsi_reservation(&mut self, token: Token, task: u32, cdb: Cdb) {
        let Some(conn) = self.conns.get(token) else { return };
        let Protocol::Iscsi(found) = &conn.protocol else { return };
        let Some(volume) = found.volume.and_then(|volume| self.volumes.get(volume)) else { return };
        match reply(&volume.volume.guard.known().record, &cdb) {
            Ok(data) => self.iscsi_answer(token, task, Status::default(), &data),
            Err(sense) => self.iscsi_fail(token, task, sense),
        }
    }

    /// A command that changes the reservations goes to the owner.
    pub fn iscsi_reserve(&mut self, token: Token, task: u32, cdb: Cdb, data: Vec<u8>) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Iscsi(found) = &mut conn.protocol else { return };
        let Some(volume) = found.volume else { return };
        found.reserves |= matches!(cdb[0], op::RESERVE_6 | op::RESERVE_10);
        let request = self.shared.request(found.nexus.clone(), What::Command { cdb, data });
        found.work.insert(task, Work { then: Then::Reserve, steps: Vec::new(), cdb });
        let source = Source::Iscsi { conn: token, task };
        let mut op = Op::new(source, Scope::Volume, Kind::Reserve, 0, 0);
        op.volume = volume;
        op.begun = self.now;
        op.data = request.encode().into();
        conn.inflight += 1;
        conn.inflight_bytes += op.data.len() as u64;
        self.submit(op);
    }

    /// The owner has carried it out, or has not.
    pub fn iscsi_outcome(&mut self, token: Token, task: u32, op: &Op) {
        let answer = op.answers.first().map(|answer| Outcome::decode(&answer.1));
        match answer {
            Some(Ok(Outcome::Good)) => self.iscsi_answer(token, task, Status::default(), &[]),
            Some(Ok(Outcome::Conflict)) => self.iscsi_conflict(token, task),
            Some(Ok(Outcome::Check(sense))) => self.iscsi_fail(token, task, sense),
            Some(Err(_)) | None => self.iscsi_fail(token, task, sense::INTERNAL),
        }
    }

    /// A command that has waited for a view.
    pub fn iscsi_again(&mut self, token: Token, command: Command, since: Instant) {
        self.iscsi_command(token, command, Some(since));
    }

    /// Tells sessions what has been changed since they were last told.
    pub fn tell_news(&mut self, volume: Token, record: &Record) {
        let stamp = record.stamp();
        for token in self.conns.tokens() {
            let Some(conn) = self.conns.get_mut(token) else { continue };
            let Protocol::Iscsi(found) = &mut conn.protocol else { continue };
            if found.volume != Some(volume) || found.told == Some(stamp) {
                continue;
            }
            let before = found.told.replace(stamp);
            // A new owner has news of what it did itself alone.
            let known = |version: u64| {
                before.is_none_or(|told| told.0 == record.epoch && version <= told.1)
            };
            let news = record.news.iter().filter(|news| !known(news.version));
            let news: Vec<_> = news.filter(|news| news.is_for(&found.nexus)).collect();
            let ends = news.iter().find(|news| news.ends(&found.nexus)).map(|news| news.code);
            for news in news {
                found.attend(attention(news.code));
            }
            if let Some(code) = ends {
                self.end_tasks(volume, token, code);
            }
        }
    }

    /// Another has ended what a session has under way. What has waited for this news may have come
    /// after it, and is told of it, as its session would be.
    fn end_tasks(&mut self, volume: Token, token: Token, code: u16) {
        let waiting = self.take_waiting(volume, token);
        if let Some(conn) = self.conns.get_mut(token)
            && let Protocol::Iscsi(found) = &mut conn.protocol
            && !waiting.is_empty()
        {
            found.told_already(code);
        }
        for task in waiting {
            self.iscsi_fail(token, task, attention(code));
        }
        if let Some(conn) = self.conns.get_mut(token)
            && let Protocol::Iscsi(found) = &mut conn.protocol
        {
            found.session.abort_all();
        }
        self.drop_tasks(volume, token);
    }

    /// Drops what a session has under way and has not begun: it was aborted.
    fn drop_tasks(&mut self, of: Token, token: Token) {
        for task in self.take_waiting(of, token) {
            self.iscsi_answer(token, task, Status::default(), &[]);
        }
        let Some(volume) = self.volumes.get_mut(of) else { return };
        let ops = &self.ops;
        let its = |op: &Token| {
            ops.get(*op).is_some_and(|op| op.source.host() == Some(token) && !op.kind.asks_owner())
        };
        let gone: Vec<Token> = volume.parked.iter().copied().filter(its).collect();
        volume.parked.retain(|op| !its(op));
        for op in gone {
            self.finish(op, Err(Fail::Shutdown));
        }
    }

    /// The volume has another owner: the portals' states are others.
    pub fn tell_moved(&mut self, volume: Token) {
        for token in self.conns.tokens() {
            let Some(conn) = self.conns.get_mut(token) else { continue };
            if let Protocol::Iscsi(found) = &mut conn.protocol
                && found.volume == Some(volume)
            {
                found.attend(sense::ACCESS_CHANGED);
            }
        }
    }

    /// A reset of the unit, or of its task set: of all sessions, at every SP.
    pub fn iscsi_reset(&mut self, token: Token, task: u32, clears: bool) {
        let Some(conn) = self.conns.get(token) else { return };
        let Protocol::Iscsi(found) = &conn.protocol else { return };
        let Some(volume) = found.volume else { return };
        let what = if clears { What::Clear } else { What::Reset };
        let request = self.shared.request(found.nexus.clone(), what);
        self.drop_tasks(volume, token);
        self.errand(volume, &request, Some((token, task)));
    }

    /// A change that followed from something else has ended.
    pub fn errand_done(&mut self, waiter: Option<(Token, u32)>, op: &Op, result: Result<(), Fail>) {
        let Some((token, task)) = waiter else { return };
        if task == NONE {
            // Released or not, it may log out now.
            return self.iscsi_ended(token);
        }
        let answer = op.answers.first().map(|answer| Outcome::decode(&answer.1));
        let ended = result.is_ok() && answer == Some(Ok(Outcome::Good));
        let Some(conn) = self.conns.get_mut(token) else { return };
        if let Protocol::Iscsi(found) = &mut conn.protocol {
            conn.out.append(|out| found.session.reset_done(task, ended, out));
        }
        self.mark(token);
    }

    /// A session is about to log out: what it has reserved without persistence is released first.
    pub fn iscsi_release(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Iscsi(found) = &mut conn.protocol else { return };
        found.reserves = false;
        let Some(volume) = found.volume else { return };
        let request = self.shared.request(found.nexus.clone(), What::Lost);
        self.errand(volume, &request, Some((token, NONE)));
    }

    /// A session has ended: what it has reserved without persistence is released.
    pub fn iscsi_lost(&mut self, session: &IscsiSession) {
        if let Some(volume) = session.volume.filter(|_| session.reserves) {
            let request = self.shared.request(session.nexus.clone(), What::Lost);
            self.errand(volume, &request, None);
        }
    }
}
