//! The full feature phase: commands in, data and status out (RFC 7143, 4.2 to 4.7 and 11).
//!
//! Commands that bring data are given to the caller when all of it is there. What the caller does
//! with one takes its time; an answer that nobody waits for any more is dropped here.

use std::collections::{HashMap, VecDeque};

use super::access::Targets;
use super::login::Agreed;
use super::pdu::{self, Broken, Digests, Frame, Header};
use super::{NONE, opcode, text};

mod answers;
mod manage;

pub use answers::Head;
use manage::Abort;

/// Commands that an initiator may have under way.
pub const WINDOW: u32 = 128;
/// Bytes of data that commands under way may have brought or been asked for, with which no more is
/// asked for. What comes unasked is bounded by the window.
const ROOM: u64 = 32 << 20;

/// What a request of the initiator's is to lead to.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// It is dealt with, or not all there yet.
    Nothing,
    /// What others have under way is to end too: `reset_done` says that it has. `clears`: of the
    /// task set alone.
    Reset { task: u32, clears: bool },
    /// A command that can be carried out.
    Command(Command),
    /// All of it is said: the connection is closed when that is sent.
    End,
}

/// A SCSI command with all that came with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Command {
    pub task: u32,
    pub lun: u64,
    pub cdb: [u8; 16],
    /// What it brought, if it was to bring anything: at most what its CDB asks for.
    pub data: Vec<u8>,
    /// Bytes that its initiator expects to move.
    pub expected: u32,
    /// It should have brought more, or came in another order than was agreed.
    pub is_broken: bool,
}

/// How a command ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status<'a> {
    /// SAM-5, 5.3.
    pub code: u8,
    pub sense: &'a [u8],
}

/// A command under way.
#[derive(Debug, Default)]
struct Task {
    command: Command,
    reads: bool,
    /// Bytes that the initiator will move, and those of them that the CDB says go out.
    expected: u32,
    wanted: u32,
    /// Bytes that the CDB says go out, whatever the initiator expects.
    needs: u64,
    /// Bytes that it has brought.
    received: u32,
    /// Where the burst ends that was asked for; its transfer tag, and the next data's number.
    burst: u32,
    transfer: u32,
    next_data: u32,
    /// Numbers of what was sent for it.
    asked: u32,
    /// It waits for room to bring its data.
    queued: bool,
    /// It is being carried out; nobody waits for its answer.
    running: bool,
    aborted: bool,
}

/// A session of one connection.
#[derive(Debug)]
pub struct Session {
    pub agreed: Agreed,
    expected: u32,
    most: u32,
    status: u32,
    tasks: HashMap<u32, Task>,
    aborts: Vec<Abort>,
    /// Tasks that wait for room, and bytes that have been asked for or brought.
    queue: VecDeque<u32>,
    held: u64,
    transfers: u32,
    /// What is left of an answer to a text request, and its tag.
    text: Vec<u8>,
    /// Of a text request that is not all there.
    partial: Vec<u8>,
    /// Our question whether the initiator is there has not been answered.
    question: Option<u32>,
    questions: u32,
}

impl Session {
    #[must_use]
    pub fn new(agreed: Agreed) -> Session {
        Session {
            expected: agreed.expected,
            most: agreed.expected.wrapping_add(WINDOW - 1),
            status: agreed.status,
            agreed,
            tasks: HashMap::new(),
            aborts: Vec::new(),
            queue: VecDeque::new(),
            held: 0,
            transfers: 0,
            text: Vec::new(),
            partial: Vec::new(),
            question: None,
            questions: 0,
        }
    }

    #[must_use]
    pub fn digests(&self) -> Digests {
        self.agreed.digests
    }

    /// Takes a PDU; appends what is answered at once. `needs`: bytes that a CDB says go out.
    ///
    /// # Errors
    /// When the initiator broke the protocol in a way that has no answer: the connection is closed.
    pub fn take(
        &mut self,
        input: &[u8],
        frame: &Frame,
        targets: &dyn Targets,
        needs: &dyn Fn(&[u8; 16]) -> u64,
        out: &mut Vec<u8>,
    ) -> Result<Event, Broken> {
        let (header, data) = (&frame.header, &input[frame.data.clone()]);
        if !frame.is_sound {
            // Without recovery of data the session can't go on (RFC 7143, 7.8).
            self.reject(header, 0x02, out);
            return Ok(Event::End);
        }
        let counted = !matches!(header.opcode(), opcode::DATA_OUT | 0x10);
        if counted && !header.is_immediate() {
            if header.get(24) != self.expected || self.expected == self.most.wrapping_add(1) {
                // Outside of the window, or behind one that one connection can't bring any more.
                return Ok(Event::Nothing);
            }
            self.expected = self.expected.wrapping_add(1);
        }
        match header.opcode() {
            opcode::NOP_OUT => self.nop(header, data, out),
            opcode::COMMAND => return self.command(input, frame, needs, out),
            opcode::DATA_OUT => return self.data_out(header, data, out),
            opcode::TASK => return Ok(self.manage(header, out)),
            opcode::TEXT => self.text(header, data, targets, out)?,
            opcode::LOGOUT => return Ok(self.logout(header, out)),
            opcode::LOGIN => return Err(Broken::Protocol("a login after the login")),
            _ => self.reject(header, 0x05, out),
        }
        Ok(Event::Nothing)
    }

    /// Commands under way.
    #[must_use]
    pub fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Bytes that are held for the initiator: data that commands have brought, and texts.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let data: usize = self.tasks.values().map(|task| task.command.data.len()).sum();
        (data + self.text.len() + self.partial.len()) as u64
    }

    /// No answer is waited for any more.
    pub fn unask(&mut self) {
        self.question = None;
    }

    /// It has been asked whether it is there, and has not answered.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.question.is_some()
    }

    /// Asks whether the initiator is there. False if it has not answered the last time.
    pub fn ping(&mut self, out: &mut Vec<u8>) -> bool {
        if self.question.is_some() {
            return false;
        }
        // Another each time, so that an answer is not taken for that to a later question.
        self.questions = self.questions.wrapping_add(1) & !0x8000_0000;
        self.question = Some(self.questions);
        let mut header = Header::new(opcode::NOP_IN, 0, NONE);
        header.put(20, self.questions);
        self.count(&mut header, false);
        pdu::emit(out, &header, &[], self.digests());
        true
    }

    /// Puts the numbers of this session into an answer; `counted`: it has a status number of its own.
    fn count(&mut self, header: &mut Header, counted: bool) {
        header.put(24, self.status);
        if counted {
            self.status = self.status.wrapping_add(1);
        }
        let open = WINDOW.saturating_sub(self.tasks.len() as u32);
        let most = self.expected.wrapping_add(open).wrapping_sub(1);
        // It never goes back (RFC 7143, 4.2.2.1).
        if (most.wrapping_sub(self.most) as i32) > 0 {
            self.most = most;
        }
        header.put(28, self.expected);
        header.put(32, self.most);
    }

    fn reject(&mut self, refused: &Header, reason: u8, out: &mut Vec<u8>) {
        let mut header = Header::new(opcode::REJECT, 0, NONE);
        header.0[2] = reason;
        self.count(&mut header, true);
        pdu::emit(out, &header, &refused.0, self.digests());
    }

    fn nop(&mut self, request: &Header, data: &[u8], out: &mut Vec<u8>) {
        if request.task() == NONE {
            self.question.take_if(|question| *question == request.get(20));
            return;
        }
        let mut header = Header::new(opcode::NOP_IN, 0, request.task());
        header.put_lun(request.lun());
        header.put(20, NONE);
        self.count(&mut header, true);
        let length = data.len().min(self.agreed.max_send as usize);
        pdu::emit(out, &header, &data[..length], self.digests());
    }

    fn command(
        &mut self,
        input: &[u8],
        frame: &Frame,
        needs: &dyn Fn(&[u8; 16]) -> u64,
        out: &mut Vec<u8>,
    ) -> Result<Event, Broken> {
        let (header, data) = (&frame.header, &input[frame.data.clone()]);
        let number = header.task();
        if self.agreed.target.is_none() {
            self.reject(header, 0x04, out);
            return Ok(Event::Nothing);
        }
        if self.tasks.contains_key(&number) {
            self.reject(header, 0x07, out);
            return Ok(Event::Nothing);
        }
        if self.tasks.len() >= 2 * WINDOW as usize {
            // Immediate ones are in no window.
            self.reject(header, 0x06, out);
            return Ok(Event::Nothing);
        }
        let mut command = Command { task: number, lun: header.lun(), ..Command::default() };
        command.expected = header.get(20);
        command.cdb.copy_from_slice(&header.0[32..48]);
        let (reads, writes) = (header.0[1] & 0x40 != 0, header.0[1] & 0x20 != 0);
        let expected = header.get(20);
        let needs = needs(&command.cdb);
        let wanted = if writes { needs.min(u64::from(expected)) as u32 } else { 0 };
        let most = expected.min(self.agreed.first_burst) as usize;
        if !data.is_empty() && (!writes || !self.agreed.immediate_data || data.len() > most) {
            self.reject(header, 0x09, out);
            return Ok(Event::Nothing);
        }
        let unasked = writes && !self.agreed.initial_r2t && !header.is_final();
        let mut task = Task { command, reads, expected, wanted, needs, ..Task::default() };
        let kept = data.len().min(wanted as usize);
        task.command.data.extend_from_slice(&data[..kept]);
        task.received = data.len() as u32;
        task.transfer = NONE;
        task.burst = if unasked { self.agreed.first_burst.min(expected) } else { task.received };
        self.held += kept as u64;
        self.tasks.insert(number, task);
        if unasked {
            return Ok(Event::Nothing);
        }
        Ok(self.go_on(number, out))
    }

    /// A burst is over, or none was expected: the command is carried out, or asked for more.
    fn go_on(&mut self, number: u32, out: &mut Vec<u8>) -> Event {
        let Some(task) = self.tasks.get_mut(&number) else { return Event::Nothing };
        if task.received >= task.wanted || task.command.is_broken {
            task.running = true;
            return Event::Command(std::mem::take(&mut task.command));
        }
        task.queued = true;
        self.queue.push_back(number);
        self.ask(out);
        Event::Nothing
    }

    /// Asks commands for their data, in their order, while there is room.
    fn ask(&mut self, out: &mut Vec<u8>) {
        while let Some(number) = self.queue.front().copied() {
            let Some(task) = self.tasks.get_mut(&number).filter(|task| task.queued) else {
                self.queue.pop_front();
                continue;
            };
            let length = (task.wanted - task.received).min(self.agreed.max_burst);
            if self.held > 0 && self.held + u64::from(length) > ROOM {
                break;
            }
            self.queue.pop_front();
            task.queued = false;
            self.transfers = self.transfers.wrapping_add(1) & !0x8000_0000;
            task.transfer = self.transfers;
            task.next_data = 0;
            task.burst = task.received + length;
            self.held += u64::from(length);
            let mut header = Header::new(opcode::R2T, 0, number);
            header.put(20, task.transfer);
            header.put(36, task.asked);
            header.put(40, task.received);
            header.put(44, length);
            task.asked += 1;
            header.put_lun(task.command.lun);
            self.count(&mut header, false);
            pdu::emit(out, &header, &[], self.digests());
        }
    }

    fn data_out(
        &mut self,
        header: &Header,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Event, Broken> {
        let number = header.task();
        let Some(task) = self.tasks.get_mut(&number).filter(|task| !task.running) else {
            // Of a command that was aborted or has failed: it may have been on its way.
            return Ok(Event::Nothing);
        };
        let end = header.get(40).checked_add(data.len() as u32);
        let fits = end.is_some_and(|end| end <= task.burst);
        if header.get(20) != task.transfer {
            self.reject(header, 0x09, out);
            return Ok(Event::Nothing);
        }
        let in_order = header.get(40) == task.received && header.get(36) == task.next_data;
        if !fits || !in_order {
            task.command.is_broken = true;
            task.burst = task.received;
            return Ok(self.go_on(number, out));
        }
        let kept = data.len().min(task.wanted.saturating_sub(task.received) as usize);
        task.command.data.extend_from_slice(&data[..kept]);
        task.received += data.len() as u32;
        task.next_data += 1;
        if task.transfer == NONE {
            self.held += kept as u64;
        }
        if !header.is_final() {
            return Ok(Event::Nothing);
        }
        // Less than was asked for; what comes unasked may be any part.
        task.command.is_broken = task.transfer != NONE && task.received < task.burst;
        Ok(self.go_on(number, out))
    }

    /// Takes a task off; what it was asked for comes no more.
    fn forget(&mut self, number: u32) -> Option<Task> {
        let task = self.tasks.remove(&number)?;
        let asked = if task.transfer == NONE { task.received } else { task.burst };
        self.held = self.held.saturating_sub(u64::from(asked.min(task.wanted)));
        Some(task)
    }

    fn text(
        &mut self,
        header: &Header,
        data: &[u8],
        targets: &dyn Targets,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        if header.get(20) == NONE {
            if self.partial.len() + data.len() > text::MOST {
                return Err(Broken::Protocol("a text of too many bytes"));
            }
            self.partial.extend_from_slice(data);
            self.text.clear();
            if header.0[1] & 0x40 == 0 {
                let pairs = text::decode(&std::mem::take(&mut self.partial))?;
                for (key, value) in pairs {
                    if key != "SendTargets" {
                        text::put(&mut self.text, &key, "NotUnderstood");
                        continue;
                    }
                    let own = self.agreed.target.as_deref();
                    for (name, portals) in targets.all(&self.agreed.initiator) {
                        let wanted = match value.as_str() {
                            "All" => own.is_none(),
                            "" => own == Some(&name),
                            one => one == name,
                        };
                        if wanted {
                            text::put(&mut self.text, "TargetName", &name);
                            for portal in portals {
                                text::put(&mut self.text, "TargetAddress", &portal);
                            }
                        }
                    }
                }
            }
        }
        let length = self.text.len().min(self.agreed.max_send as usize);
        let part: Vec<u8> = self.text.drain(..length).collect();
        let last = self.text.is_empty();
        let mut answer = Header::new(opcode::TEXT_RESPONSE, 0, header.task());
        answer.0[1] = if last { 0x80 } else { 0x40 };
        answer.put_lun(header.lun());
        answer.put(20, if last { NONE } else { 1 });
        self.count(&mut answer, true);
        pdu::emit(out, &answer, &part, self.digests());
        Ok(())
    }

    fn logout(&mut self, request: &Header, out: &mut Vec<u8>) -> Event {
        let mut header = Header::new(opcode::LOGOUT_RESPONSE, 0, request.task());
        // A connection is not taken up again elsewhere.
        let ends = request.0[1] & 0x7f < 2;
        header.0[2] = if ends { 0 } else { 2 };
        self.count(&mut header, true);
        pdu::emit(out, &header, &[], self.digests());
        if ends { Event::End } else { Event::Nothing }
    }
}
