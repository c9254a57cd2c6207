//! iSCSI connections: their logins, their sessions' commands on their way through the tree.

use std::sync::atomic::Ordering;
use std::time::Instant;

use rustc_hash::FxHashMap;
use vs_wire::change;
use vs_wire::iscsi::login::{Agreed, Outcome};
use vs_wire::iscsi::pdu::{Digests, frame};
use vs_wire::iscsi::session::{Command, Event, Session, Status};
use vs_wire::iscsi::{MAX_RECEIVE, opcode};
use vs_wire::scsi::cdb::{Extent, needs, op};
use vs_wire::scsi::reserve::Nexus as Port;
use vs_wire::scsi::sense::{self, Sense};
use vs_wire::scsi::unit::{Action, Unit, decide};
use vs_wire::scsi::xcopy::Progress;
use vs_wire::scsi::{BLOCK, LUN, data, status as code};

use crate::buffers::Buffer;
use crate::conn::Protocol;
use crate::control::lock;
use crate::event_loop::Loop;
use crate::inline::Inline;
use crate::iscsi_alive::{Alive, SILENT};
use crate::iscsi_targets::Offered;
use crate::mailbox::Message;
use crate::metrics::{OpName, Transport};
use crate::op::{Fail, Kind, Op, Scope, Source};
use crate::slab::Token;
use crate::status;
use crate::xcopy::Copying;

/// Most unit attentions that wait.
const ATTENTIONS: usize = 8;
/// Bytes of which one GET LBA STATUS tells.
const TOLD: u64 = 1 << 30;

/// A session in the full feature phase.
pub struct IscsiSession {
    pub session: Session,
    /// None: discovery.
    pub volume: Option<Token>,
    pub unit: Unit,
    pub nexus: Port,
    /// What the next commands are told in place of being carried out.
    attentions: Vec<Sense>,
    /// The record of reservations up to which it was told all news.
    pub told: Option<(u64, u64)>,
    /// It has reserved the unit, or tried to.
    pub reserves: bool,
    pub work: FxHashMap<u32, Work>,
    /// EXTENDED COPYs by their lists' identifiers.
    pub copies: Vec<(u8, Progress)>,
    /// An older session of the same nexus has still to end.
    pub waits: bool,
    pub alive: Alive,
}

/// A command that is being carried out.
pub struct Work {
    pub then: Then,
    /// What is to be done after this, the last of it first.
    pub steps: Vec<(Kind, Extent, bool, Vec<u8>)>,
    pub cdb: [u8; 16],
}

/// What its last step's result is for.
pub enum Then {
    Nothing,
    Data,
    Compare(Vec<u8>),
    Status(u64),
    /// How a change of the reservations has ended.
    Reserve,
    Copy(Box<Copying>),
}

impl IscsiSession {
    /// Has it told something, once. What comes first is told first.
    pub fn attend(&mut self, sense: Sense) {
        if !self.attentions.contains(&sense) && self.attentions.len() < ATTENTIONS {
            self.attentions.push(sense);
        }
    }

    /// It has been told this by the answers of commands.
    pub fn told_already(&mut self, code: u16) {
        self.attentions.retain(|sense| sense.code != code);
    }
}

/// Who a volume is to initiators, from whichever SP serves it.
pub fn unit(id: &str, target: &str, tag: u16, size: u64) -> Unit {
    let digits = id.bytes().filter(u8::is_ascii_hexdigit);
    let number = digits
        .take(15)
        .fold(0u64, |sum, digit| sum << 4 | u64::from((digit as char).to_digit(16).unwrap_or(0)));
    Unit {
        size: size / BLOCK * BLOCK,
        naa: (0x3 << 60 | number).to_be_bytes(),
        serial: id.to_owned(),
        revision: *b"1   ",
        target: target.to_owned(),
        tag,
        ports: Vec::new(),
    }
}

pub fn failure(fail: Fail, kind: Kind) -> Sense {
    match fail {
        Fail::Stale | Fail::NotFound | Fail::Shutdown => sense::NOT_READY,
        Fail::NoSpace => sense::SPACE,
        Fail::Unsure => sense::UNSURE,
        Fail::Invalid | Fail::Conflict => sense::OUT_OF_RANGE,
        Fail::NotSupported => sense::INVALID_OPCODE,
        Fail::Io if kind.changes() || kind == Kind::Flush => sense::MEDIUM_WRITE,
        Fail::Io => sense::MEDIUM_READ,
    }
}

impl IscsiSession {
    /// What its login has agreed on.
    pub fn agreed(&self) -> &Agreed {
        &self.session.agreed
    }
}

impl Loop {
    /// Takes what has come.
    pub fn iscsi_input(&mut self, token: Token) {
        while self.may_read(token) && self.iscsi_step(token) {}
    }

    /// Takes one PDU out of the input; false when there is none.
    fn iscsi_step(&mut self, token: Token) -> bool {
        let sessions = &self.shared.iscsi;
        let Some(conn) = self.conns.get_mut(token) else { return false };
        let digests = match &conn.protocol {
            Protocol::Iscsi(session) => session.session.digests(),
            _ => Digests::default(),
        };
        let frame = match frame(conn.input.bytes(), digests, MAX_RECEIVE as usize) {
            Ok(Some(frame)) => frame,
            Ok(None) => return false,
            Err(_) => return self.iscsi_broken(token),
        };
        let access = &self.shared.access;
        let offered = Offered { volumes: &self.volumes, access, sessions, stream: &conn.stream };
        let (input, out) = (&conn.input, &mut conn.out);
        match &mut conn.protocol {
            Protocol::IscsiLogin(login) => {
                let number = sessions.next.fetch_add(1, Ordering::Relaxed).max(1);
                let data = &input.bytes()[frame.data.clone()];
                let fed = out.append(|out| login.feed(&frame.header, data, number, &offered, out));
                conn.input.consume(frame.length);
                match fed {
                    Ok(Outcome::More) => {}
                    Ok(Outcome::Done(agreed)) => self.iscsi_begin(token, *agreed),
                    Ok(Outcome::Refused(refusal)) => {
                        self.login_refused(refusal);
                        self.end(token);
                    }
                    Err(_) => return self.iscsi_broken(token),
                }
            }
            Protocol::Iscsi(found) if found.reserves && frame.header.opcode() == opcode::LOGOUT => {
                // Others find the unit free when it is answered.
                found.waits = true;
                self.iscsi_release(token);
                return false;
            }
            Protocol::Iscsi(found) => {
                found.alive.heard = self.now;
                let taken = out
                    .append(|out| found.session.take(input.bytes(), &frame, &offered, &needs, out));
                conn.input.consume(frame.length);
                match taken {
                    Ok(Event::Nothing) => self.iscsi_heard(token),
                    Ok(Event::Command(command)) => self.iscsi_command(token, command, None),
                    Ok(Event::Reset { task, clears }) => self.iscsi_reset(token, task, clears),
                    Ok(Event::End) => self.end(token),
                    Err(_) => return self.iscsi_broken(token),
                }
            }
            _ => return false,
        }
        self.mark(token);
        true
    }

    fn iscsi_broken(&mut self, token: Token) -> bool {
        self.protocol_errors += 1;
        self.close(token);
        false
    }

    /// The login is over.
    fn iscsi_begin(&mut self, token: Token, agreed: Agreed) {
        let tag = self.shared.iscsi.tag.load(Ordering::Relaxed);
        let Some(conn) = self.conns.get(token) else { return };
        let (sessions, access) = (&self.shared.iscsi, &self.shared.access);
        let offered = Offered { volumes: &self.volumes, access, sessions, stream: &conn.stream };
        let found = agreed.target.as_deref().and_then(|target| offered.find(target));
        // It may have changed since the login began.
        let found = found.filter(|(_, volume)| access.admits(&volume.volume.id, &agreed));
        let volume = found.as_ref().map(|(volume, _)| *volume);
        let unit = found.map_or_else(Unit::default, |(_, volume)| {
            let target = agreed.target.as_deref().unwrap_or_default();
            unit(&volume.volume.id, target, tag, volume.active.tree.size())
        });
        if agreed.target.is_some() && volume.is_none() {
            return self.close(token);
        }
        let nexus = Port::new(&agreed.initiator, &agreed.isid, tag);
        // What happened before is no news to it.
        let shown = volume.and_then(|volume| self.volumes.get(volume));
        let guard = shown.map(|volume| &volume.volume.guard);
        let told = guard.filter(|guard| guard.is_open(self.shared.clock(self.now)));
        let told = told.map(|guard| guard.known().record.stamp());
        let mut waits = false;
        if let Some(target) = agreed.target.clone() {
            let nexus = (agreed.initiator.clone(), agreed.isid, target);
            let older = lock(&self.shared.iscsi.open).insert(nexus, (self.index, token));
            if let Some((index, conn)) = older {
                // What it has begun must have its place before what the new one asks for.
                waits = true;
                let waiter = (self.index, token);
                self.shared.mailboxes[index].post(Message::EndIscsi { conn, waiter });
            }
        }
        let Some(conn) = self.conns.get_mut(token) else { return };
        conn.protocol = Protocol::Iscsi(Box::new(IscsiSession {
            session: Session::new(agreed),
            volume,
            unit,
            nexus,
            attentions: vec![sense::POWER_ON],
            told,
            reserves: false,
            work: FxHashMap::default(),
            copies: Vec::new(),
            waits,
            alive: Alive::new(self.now),
        }));
        self.want_tick_at(self.now + SILENT);
    }

    /// An older session gives way to a newer one of its nexus.
    pub fn end_iscsi(&mut self, conn: Token, waiter: (usize, Token)) {
        self.close(conn);
        self.shared.mailboxes[waiter.0].post(Message::IscsiEnded(waiter.1));
    }

    /// The session's older one is over.
    pub fn iscsi_ended(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        if let Protocol::Iscsi(session) = &mut conn.protocol {
            session.waits = false;
        }
        self.mark(token);
        self.wake.push(token);
    }

    /// Its connection is closed.
    pub fn iscsi_closed(&mut self, token: Token, session: &IscsiSession) {
        self.iscsi_lost(session);
        let agreed = &session.session.agreed;
        let Some(target) = agreed.target.clone() else { return };
        let nexus = (agreed.initiator.clone(), agreed.isid, target);
        let mut open = lock(&self.shared.iscsi.open);
        if open.get(&nexus) == Some(&(self.index, token)) {
            open.remove(&nexus);
        }
    }

    /// Carries out a command. `since`: when it came, if it has waited.
    pub fn iscsi_command(&mut self, token: Token, command: Command, since: Option<Instant>) {
        let Some(command) = self.iscsi_vouched(token, command, since) else { return };
        let Some((command, forbidden)) = self.iscsi_admit(token, command, since) else { return };
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Iscsi(found) = &mut conn.protocol else { return };
        let Command { task, lun, cdb, data, expected, is_broken } = command;
        let size = found.volume.and_then(|volume| self.volumes.get(volume));
        let size = size.map_or(0, |volume| volume.active.tree.size() / BLOCK * BLOCK);
        if size != found.unit.size {
            found.unit.size = size;
            found.attend(sense::CAPACITY_CHANGED);
        }
        let unit = (lun == LUN && size > 0).then_some(&found.unit);
        if is_broken {
            return self.iscsi_fail(token, task, sense::TOO_LITTLE_DATA);
        }
        // So much, and nothing else (SBC-3, 5.2 and 5.40).
        let same = matches!(cdb[0], op::WRITE_SAME_10 | op::WRITE_SAME_16 | op::COMPARE_AND_WRITE);
        if same && u64::from(expected) != needs(&cdb) {
            return self.iscsi_fail(token, task, sense::INVALID_FIELD);
        }
        let tells = matches!(cdb[0], op::INQUIRY | op::REPORT_LUNS | op::REQUEST_SENSE);
        if unit.is_some() && !tells && !found.attentions.is_empty() {
            let attention = found.attentions.remove(0);
            return self.iscsi_fail(token, task, attention);
        }
        if forbidden {
            return self.iscsi_conflict(token, task);
        }
        let action = decide(unit, &cdb, &data);
        self.iscsi_act(token, task, cdb, data, action);
    }

    fn iscsi_act(
        &mut self,
        token: Token,
        task: u32,
        cdb: [u8; 16],
        mut brought: Vec<u8>,
        action: Action,
    ) {
        if self.iscsi_quick(token, task, &brought, &action) {
            return;
        }
        let discard = Vec::new;
        let mut steps = Vec::new();
        let mut then = Then::Nothing;
        match action {
            Action::Reply(data) => return self.iscsi_answer(token, task, Status::default(), &data),
            Action::ConditionMet => {
                let status = Status { code: code::CONDITION_MET, sense: &[] };
                return self.iscsi_answer(token, task, status, &[]);
            }
            Action::Fail(sense) => return self.iscsi_fail(token, task, sense),
            Action::Reservation => return self.iscsi_reservation(token, task, cdb),
            Action::Reserve => return self.iscsi_reserve(token, task, cdb, brought),
            Action::Read(extent) => {
                then = Then::Data;
                steps.push((Kind::Read, extent, false, discard()));
            }
            Action::Write { mut extent, fua, verifies } => {
                // What the initiator did not bring is not written.
                extent.blocks = extent.blocks.min(brought.len() as u64 / BLOCK);
                brought.truncate(extent.bytes() as usize);
                if verifies {
                    steps.push((Kind::Read, extent, false, discard()));
                }
                steps.push((Kind::Write, extent, fua, brought));
            }
            Action::Change { change, extent, fua } => {
                // Each within what one SP can change at once; a COMPARE AND WRITE is no longer.
                let size = change::UNIT / BLOCK;
                let mut lba = extent.lba;
                let mut rest = brought.as_slice();
                while lba < extent.lba + extent.blocks {
                    let end = (lba / size + 1) * size;
                    let part = Extent { lba, blocks: end.min(extent.lba + extent.blocks) - lba };
                    let (given, more) = rest.split_at(change.gives(part.bytes()) as usize);
                    steps.push((Kind::Change(change), part, fua, given.to_vec()));
                    (lba, rest) = (end, more);
                }
                steps.reverse();
            }
            Action::Same(extent) => {
                let all = brought.repeat(extent.blocks as usize);
                steps.push((Kind::Write, extent, false, all));
            }
            Action::Zero { extent, unmaps } => {
                let kind = Kind::Zero { no_hole: !unmaps, fast: false };
                steps.push((kind, extent, false, discard()));
            }
            Action::Unmap(extents) => {
                // As zeroes, which is what unmapped blocks are promised to read as.
                let kind = Kind::Zero { no_hole: false, fast: false };
                steps.extend(extents.into_iter().rev().map(|e| (kind, e, false, discard())));
            }
            Action::Copy(list) => return self.iscsi_copy(token, task, cdb, list),
            Action::Copied { list, question, most } => {
                return self.iscsi_copied(token, task, list, question, most);
            }
            Action::Flush => {
                steps.push((Kind::Flush, Extent { lba: 0, blocks: 0 }, false, discard()));
            }
            Action::Verify { extent, compares } => {
                if compares {
                    then = Then::Compare(brought);
                }
                steps.push((Kind::Read, extent, false, discard()));
            }
            Action::Status(mut extent) => {
                extent.blocks = extent.blocks.min(TOLD / BLOCK);
                then = Then::Status(extent.lba);
                steps.push((Kind::Status, extent, false, discard()));
            }
        }
        self.iscsi_next(token, task, Work { then, steps, cdb }, false);
    }

    /// Carries out at once what need not wait, from and to where the data lie; false if it has to
    /// become an operation.
    fn iscsi_quick(&mut self, token: Token, task: u32, brought: &[u8], action: &Action) -> bool {
        let Some(conn) = self.conns.get(token) else { return true };
        let Protocol::Iscsi(found) = &conn.protocol else { return true };
        let Some(volume) = found.volume else { return false };
        let (name, length, done) = match action {
            Action::Read(extent) if extent.blocks > 0 => {
                let length = extent.bytes();
                let Some(head) = found.session.head(task, length as usize) else { return false };
                let put = |out: &mut Vec<u8>| out.extend_from_slice(head.bytes());
                let read = self.inline_read(token, volume, extent.offset(), length, put);
                (OpName::Read, length, matches!(read, Inline::Done))
            }
            Action::Write { extent, fua: false, verifies: false }
                if extent.blocks > 0 && extent.bytes() == brought.len() as u64 =>
            {
                let written = self.inline_write(volume, token, extent.offset(), brought);
                // A failure is found again, and told, on the long way.
                (OpName::Write, extent.bytes(), matches!(written, Inline::Done))
            }
            _ => return false,
        };
        if !done {
            return false;
        }
        if let Some(volume) = self.volumes.get_mut(volume) {
            let seconds = self.now.elapsed().as_secs_f64();
            volume.counters.done(name, Transport::Iscsi, 1, length, seconds);
        }
        if name == OpName::Write {
            self.iscsi_answer(token, task, Status::default(), &[]);
        } else {
            self.iscsi_answered(token, task);
        }
        true
    }

    /// A command's head and data are in the output.
    fn iscsi_answered(&mut self, token: Token, task: u32) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Iscsi(found) = &mut conn.protocol else { return };
        conn.out.append(|out| found.session.answered(task, out));
        self.mark(token);
    }

    /// Begins a command's next step, or answers it if there is none. `later`: it is not the first.
    fn iscsi_next(&mut self, token: Token, task: u32, mut work: Work, later: bool) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Iscsi(found) = &mut conn.protocol else { return };
        let Some(volume) = found.volume else { return };
        let next = loop {
            match work.steps.pop() {
                // Of no length: it is done.
                Some((kind, extent, ..)) if kind != Kind::Flush && extent.blocks == 0 => {}
                other => break other,
            }
        };
        let Some((kind, extent, fua, brought)) = next else {
            return self.iscsi_answer(token, task, Status::default(), &[]);
        };
        let source = Source::Iscsi { conn: token, task };
        let mut op = Op::new(source, Scope::Volume, kind, extent.offset(), extent.bytes());
        op.volume = volume;
        op.fua = fua;
        op.begun = self.now;
        // What is reserved may have changed since the last.
        op.vouched = later.then_some(self.now);
        op.data = match kind {
            Kind::Write | Kind::Change(_) => Buffer::from(brought),
            Kind::Read => self.buffers.take(extent.bytes() as usize),
            _ => Buffer::default(),
        };
        self.iscsi_submit(token, task, work, op);
    }

    /// Sends a command's step on its way.
    pub fn iscsi_submit(&mut self, token: Token, task: u32, work: Work, mut op: Op) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Iscsi(found) = &mut conn.protocol else { return };
        op.begun = self.now;
        conn.inflight += 1;
        conn.inflight_bytes += op.data.len() as u64;
        found.work.insert(task, work);
        self.submit(op);
    }

    /// A step has ended.
    pub fn iscsi_done(&mut self, token: Token, task: u32, mut op: Op, result: Result<(), Fail>) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Iscsi(found) = &mut conn.protocol else { return };
        conn.inflight -= 1;
        conn.inflight_bytes -= op.data.len() as u64;
        let Some(work) = found.work.remove(&task) else { return };
        if matches!(work.then, Then::Copy(_)) {
            self.copy_piece_done(token, task, work, &mut op, result);
        } else if found.session.is_aborted(task) {
            self.iscsi_answer(token, task, Status::default(), &[]);
        } else if result == Err(Fail::Conflict) {
            self.iscsi_conflict(token, task);
        } else if let Err(fail) = result {
            self.iscsi_fail(token, task, failure(fail, op.kind));
        } else if let Some(at) = op.differs {
            self.iscsi_fail(token, task, Sense { information: Some(at), ..sense::MISCOMPARE });
        } else if !work.steps.is_empty() {
            self.iscsi_next(token, task, work, true);
        } else {
            match work.then {
                Then::Nothing => self.iscsi_answer(token, task, Status::default(), &[]),
                Then::Reserve => self.iscsi_outcome(token, task, &op),
                Then::Data => match found.session.head(task, op.data.len()) {
                    Some(head) => {
                        conn.out.append(|out| out.extend_from_slice(head.bytes()));
                        conn.out.push(std::mem::take(&mut op.data));
                        self.iscsi_answered(token, task);
                    }
                    None => self.iscsi_answer(token, task, Status::default(), &op.data),
                },
                Then::Compare(brought) => {
                    // The one block that it brought stands for all of them.
                    let wanted = brought.iter().cycle();
                    match op.data.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
                        None => self.iscsi_answer(token, task, Status::default(), &[]),
                        Some(at) => {
                            let information = u32::try_from(at).ok();
                            let sense = Sense { information, ..sense::MISCOMPARE };
                            self.iscsi_fail(token, task, sense);
                        }
                    }
                }
                Then::Status(lba) => {
                    let runs = status::compose(std::mem::take(&mut op.status), op.length, false);
                    // Bit 0 of a run's flags: a hole (the NBD protocol's base:allocation).
                    let runs: Vec<(u64, bool)> =
                        runs.into_iter().map(|(bytes, flags)| (bytes, flags & 1 == 0)).collect();
                    let told = data::lba_status(lba, &runs, &work.cdb);
                    self.iscsi_answer(token, task, Status::default(), &told);
                }
                Then::Copy(_) => {}
            }
        }
        self.buffers.give(std::mem::take(&mut op.data));
    }

    pub fn iscsi_fail(&mut self, token: Token, task: u32, sense: Sense) {
        let sense = sense.fixed();
        let status = Status { code: code::CHECK_CONDITION, sense: &sense };
        self.iscsi_answer(token, task, status, &[]);
    }

    pub fn iscsi_answer(&mut self, token: Token, task: u32, status: Status<'_>, data: &[u8]) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Iscsi(found) = &mut conn.protocol else { return };
        conn.out.append(|out| found.session.answer(task, status, data, out));
        self.mark(token);
    }
}
