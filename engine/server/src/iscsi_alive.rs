//! Whether an initiator still waits for what it has asked for.
//!
//! Who gets no answer drops its session and asks again over another path, and may write over it what is
//! newer. What hangs in the network meanwhile must not be carried out when it comes after all. So a
//! command is begun only if its initiator has answered a question (NOP-In) of not long ago; otherwise it is
//! asked first. An answer comes over the same connection, which one that has given up has closed.
//!
//! Some initiators answer no questions, against RFC 7143 (11.18): firmware that boots from a unit, over one
//! path. So commands wait for those alone that have answered once; the first question comes with the first
//! command.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use vs_io::planted;
use vs_wire::iscsi::session::{Command, Status};

use crate::conn::Protocol;
use crate::event_loop::Loop;
use crate::slab::Token;

/// An initiator that says nothing is asked whether it is there; without an answer for as long
/// its connection is closed.
pub const SILENT: Duration = Duration::from_secs(15);

/// What is known of a session's initiator.
#[derive(Debug)]
pub struct Alive {
    /// When something came from it.
    pub heard: Instant,
    /// When it was asked what it has answered last; and what it has not answered.
    proof: Instant,
    asked: Option<Instant>,
    /// It has answered once.
    answers: bool,
    /// Commands that wait for the answer, with when they came if they have waited before.
    waiting: VecDeque<(Command, Option<Instant>)>,
}

impl Alive {
    /// It has just logged in.
    pub fn new(now: Instant) -> Alive {
        Alive { heard: now, proof: now, asked: None, answers: false, waiting: VecDeque::new() }
    }
}

impl Loop {
    /// Asks whether the initiator is there, unless it has been asked.
    fn iscsi_ask(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Iscsi(found) = &mut conn.protocol else { return };
        if found.alive.asked.is_none() && conn.out.append(|out| found.session.ping(out)) {
            found.alive.asked = Some(self.now);
            self.mark(token);
            self.want_tick_at(self.now + SILENT);
        }
    }

    /// True if the initiator was there not long ago; if that is long enough ago to be asked again,
    /// it is, so that one that goes on asking need not wait.
    pub fn iscsi_is_there(&mut self, token: Token) -> bool {
        let Some(conn) = self.conns.get(token) else { return false };
        let Protocol::Iscsi(found) = &conn.protocol else { return false };
        let (age, answers) =
            (self.now.saturating_duration_since(found.alive.proof), found.alive.answers);
        let long = Duration::from_secs_f64(self.shared.config.forward_seconds);
        if age > long / 2 || !answers {
            self.iscsi_ask(token);
        }
        age <= long || !answers || planted("initiator_not_asked")
    }

    /// Gives a command back that may be begun; it waits otherwise.
    pub fn iscsi_vouched(
        &mut self,
        token: Token,
        command: Command,
        since: Option<Instant>,
    ) -> Option<Command> {
        let there = self.iscsi_is_there(token);
        let conn = self.conns.get_mut(token)?;
        let Protocol::Iscsi(found) = &mut conn.protocol else { return None };
        if there && found.alive.waiting.is_empty() {
            return Some(command);
        }
        found.alive.waiting.push_back((command, since));
        None
    }

    /// Something has come that is no command: it may be the answer.
    pub fn iscsi_heard(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Iscsi(found) = &mut conn.protocol else { return };
        if found.session.is_asked() {
            return;
        }
        let Some(asked) = found.alive.asked.take() else { return };
        (found.alive.proof, found.alive.answers) = (asked, true);
        let waiting = std::mem::take(&mut found.alive.waiting);
        for (command, since) in waiting {
            let Some(conn) = self.conns.get(token) else { return };
            let Protocol::Iscsi(found) = &conn.protocol else { return };
            if found.session.is_aborted(command.task) {
                self.iscsi_answer(token, command.task, Status::default(), &[]);
            } else {
                self.iscsi_command(token, command, since);
            }
        }
    }

    /// Asks initiators that have been silent whether they are there, and closes what does not answer.
    pub fn tick_iscsi(&mut self) {
        let mut next = None::<Instant>;
        for token in self.conns.tokens() {
            let Some(conn) = self.conns.get_mut(token) else { continue };
            let Protocol::Iscsi(found) = &mut conn.protocol else { continue };
            if let Some(asked) = found.alive.asked
                && asked + SILENT <= self.now
            {
                if found.alive.answers || found.alive.heard <= asked {
                    self.close(token);
                    continue;
                }
                found.alive.asked = None;
                found.session.unask();
            }
            if found.alive.heard + SILENT <= self.now {
                self.iscsi_ask(token);
            }
            let Some(conn) = self.conns.get(token) else { continue };
            let Protocol::Iscsi(found) = &conn.protocol else { continue };
            let due = found.alive.asked.unwrap_or(found.alive.heard) + SILENT;
            next = next.into_iter().chain([due]).min();
        }
        if let Some(at) = next {
            self.want_tick_at(at);
        }
    }
}
