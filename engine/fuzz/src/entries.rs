//! Where hosts' bytes come in, each with what must hold whatever they are. None of them may panic;
//! what else is asked stands beside it.

use std::sync::Arc;

use vs_wire::change::Change;
use vs_wire::iscsi::access::{Credentials, Demand, Door, Nonce, Secret, Targets};
use vs_wire::iscsi::login::{Agreed, Login, Outcome};
use vs_wire::iscsi::pdu::{Digests, HEADER, Header, emit, frame};
use vs_wire::iscsi::session::{Event, Session, Status, WINDOW};
use vs_wire::iscsi::{FIRST_BURST, MAX_BURST, MAX_RECEIVE, NONE, opcode, text};
use vs_wire::scsi::cdb::{Cdb, Extent, needs};
use vs_wire::scsi::reserve::{Nexus, Record, Request, What, allows, apply, reply};
use vs_wire::scsi::unit::{Action, Unit, decide};
use vs_wire::scsi::xcopy::{self, Progress};
use vs_wire::scsi::{BLOCK, LUN, MOST, sense};

/// Bytes that a session may hold: what came unasked in the window and for immediate commands, what
/// was asked for, and texts.
const HELD: u64 = 2 * WINDOW as u64 * FIRST_BURST as u64 + (32 << 20) + (1 << 20);

struct One;

/// One target is open, one demands CHAP and one is for nobody.
impl Targets for One {
    fn all(&self, _: &str) -> Vec<(String, Vec<String>)> {
        vec![("iqn.x:v".into(), vec!["h:1,1".into()])]
    }

    fn door(&self, target: &str, _: &str) -> Door {
        let of = |user: &str, secret: &[u8]| {
            Secret::new(secret).map(|secret| Credentials { user: user.into(), secret })
        };
        match target {
            "iqn.x:v" => Door::Open(Arc::default()),
            "iqn.x:c" => Door::Open(Arc::new(Demand {
                chap: of("u", b"of the initiator"),
                mutual: of("t", b"of the target"),
            })),
            "iqn.x:n" => Door::Closed,
            _ => Door::Absent,
        }
    }

    fn nonce(&self) -> Option<Nonce> {
        Some([7; 33])
    }
}

/// Takes bytes off the front; zeroes where there are none left.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn some(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn one(&mut self) -> u8 {
        self.some(1).first().copied().unwrap_or(0)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let found = self.some(N);
        out[..found.len()].copy_from_slice(found);
        out
    }
}

/// Framing: what is said to be a PDU lies within the input, and is what `emit` makes of it.
pub fn pdu(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.one();
    let digests = Digests { header: how & 1 != 0, data: how & 2 != 0 };
    let most = if how & 4 == 0 { MAX_RECEIVE as usize } else { 512 };
    let mut input = bytes.0;
    while let Ok(Some(found)) = frame(input, digests, most) {
        assert!(found.length <= input.len() && found.length >= HEADER);
        assert!(found.more.end <= found.length && found.data.end <= found.length);
        assert!(found.data.len() == found.header.length() && found.data.len() <= most);
        if found.is_sound && found.more.is_empty() {
            let mut again = Vec::new();
            emit(&mut again, &found.header, &input[found.data.clone()], digests);
            assert_eq!(again.len(), found.length);
            assert_eq!(again[..found.data.end], input[..found.data.end]);
        }
        input = &input[found.length..];
    }
}

/// A login, request after request: its answers are PDUs that are no longer than the questions give
/// reason for, and what is agreed on keeps to this target's bounds.
pub fn login(data: &[u8]) {
    let mut input = data;
    let (mut login, mut out) = (Login::new(7), Vec::new());
    while let Ok(Some(found)) = frame(input, Digests::default(), MAX_RECEIVE as usize) {
        out.clear();
        let fed = login.feed(&found.header, &input[found.data.clone()], 9, &One, &mut out);
        input = &input[found.length..];
        // A key is answered in place of a key; the shortest, `a=`, with `a=NotUnderstood`.
        assert!(out.len() <= HEADER + 8 * text::MOST, "{}", out.len());
        let Ok(outcome) = fed else { return assert!(out.is_empty()) };
        let answer = frame(&out, Digests::default(), 1 << 24).expect("a PDU").expect("a whole one");
        assert_eq!((answer.length, answer.header.opcode()), (out.len(), opcode::LOGIN_RESPONSE));
        match outcome {
            Outcome::More => {}
            Outcome::Refused(_) => return assert_ne!(answer.header.get(36), 0),
            Outcome::Done(agreed) => {
                assert!((512..1 << 24).contains(&agreed.max_send));
                assert!((512..=MAX_BURST).contains(&agreed.max_burst));
                assert!((512..=FIRST_BURST).contains(&agreed.first_burst));
                assert!(agreed.first_burst <= agreed.max_burst);
                assert!((1..=223).contains(&agreed.initiator.len()));
                return;
            }
        }
    }
}

fn within(unit: &Unit, extent: Extent, most: u64) {
    let end = extent.lba.checked_add(extent.blocks).expect("no such extent");
    assert!(end <= unit.size / BLOCK && extent.blocks <= most, "{extent:?} of {}", unit.size);
}

/// What a command leads to reaches no block beyond the unit, and moves no more than is said.
fn decided(unit: Option<&Unit>, cdb: &Cdb, brought: &[u8]) -> Action {
    assert!(needs(cdb) <= MOST * BLOCK);
    let action = decide(unit, cdb, brought);
    let Some(unit) = unit else {
        assert!(matches!(action, Action::Reply(_) | Action::Fail(_)), "{action:?}");
        return action;
    };
    match &action {
        Action::Reply(data) => assert!(data.len() <= 64 << 10),
        Action::ConditionMet | Action::Fail(_) | Action::Flush => {}
        Action::Read(extent) | Action::Same(extent) => within(unit, *extent, MOST),
        Action::Change { change, extent, .. } => {
            within(unit, *extent, MOST);
            assert_eq!(brought.len() as u64, change.gives(extent.bytes()));
            assert!(*change == Change::Or || extent.blocks <= 1);
        }
        Action::Write { extent, .. } | Action::Verify { extent, .. } => {
            within(unit, *extent, MOST);
        }
        Action::Zero { extent, .. } => within(unit, *extent, MOST),
        Action::Copy(list) => {
            assert!(list.targets.len() <= xcopy::TARGETS && list.segments.len() <= xcopy::SEGMENTS);
            assert!(brought.len() as u64 == needs(cdb));
        }
        Action::Copied { list, question, most } => {
            let failed = (*list & 1 == 0).then_some(sense::COPY_FAILED);
            let progress = Progress { running: false, segments: 1, bytes: 1 << 40, failed };
            assert!(xcopy::answer(*question, &progress).len() <= 78 || *most == 0);
        }
        Action::Unmap(extents) => {
            extents.iter().for_each(|extent| within(unit, *extent, u64::MAX));
        }
        Action::Status(extent) => within(unit, *extent, u64::MAX),
        Action::Reservation | Action::Reserve => {}
    }
    reserved(cdb, brought);
    action
}

/// Reservations, by two ports in turn, each with the command: what is known can be told, and written
/// down and read again.
fn reserved(cdb: &Cdb, brought: &[u8]) {
    let mut record = Record::default();
    for (id, tag) in [1, 2, 1].into_iter().enumerate() {
        let from = Nexus::new("iqn.a:b", &[1; 6], tag);
        let _ = allows(&record, &from, cdb);
        let what = What::Command { cdb: *cdb, data: brought[..brought.len().min(4096)].to_vec() };
        let request = Request { id: id as u128, from, what };
        assert_eq!(Request::decode(&request.encode()).as_ref(), Ok(&request));
        if let (_, Some(next)) = apply(&record, &request) {
            record = next;
        }
        assert_eq!(Record::decode(&record.encode(true)).as_ref(), Ok(&record));
        assert!(reply(&record, cdb).map_or(0, |data| data.len()) <= 1 << 16);
    }
}

fn unit(blocks: u64) -> Unit {
    Unit {
        size: blocks * BLOCK,
        naa: [0x3a; 8],
        serial: "12345678-1234-1234-1234-123456789abc".into(),
        revision: *b"1   ",
        target: "iqn.x:v".into(),
        tag: 1,
        ports: Vec::new(),
    }
}

/// One command with what it brought.
pub fn cdb(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.one();
    let blocks = u64::from_be_bytes(bytes.array()) >> (how & 0x3f) >> 9;
    let cdb: Cdb = bytes.array();
    let unit = (how & 0x80 == 0 && blocks > 0).then(|| unit(blocks));
    let brought = bytes.some(needs(&cdb) as usize);
    decided(unit.as_ref(), &cdb, brought);
}

/// A transfer that was asked for.
#[derive(Clone, Copy, Default)]
struct Asked {
    task: u32,
    tag: u32,
    at: u32,
    number: u32,
}

/// A target's session with what its initiator knows of it.
struct Held {
    session: Session,
    unit: Unit,
    running: Vec<(u32, Action)>,
    asked: Asked,
    /// The next command's number, the next status number, and the end of the window.
    number: u32,
    status: u32,
    most: Option<u32>,
    out: Vec<u8>,
}

impl Held {
    /// What was answered is PDUs as agreed on, with numbers that never go back.
    fn look(&mut self) {
        let out = std::mem::take(&mut self.out);
        let digests = self.session.digests();
        let mut left = out.as_slice();
        while let Some(found) = frame(left, digests, 1 << 24).expect("a PDU") {
            let header = &found.header;
            assert!(found.is_sound && found.more.is_empty());
            assert!(found.data.len() <= self.session.agreed.max_send.max(512) as usize);
            self.number = header.get(28);
            if let Some(most) = self.most {
                assert!(header.get(32).wrapping_sub(most) as i32 >= 0, "the window shrank");
            }
            self.most = Some(header.get(32));
            let counted = match header.opcode() {
                opcode::DATA_IN => header.0[1] & 1 != 0,
                opcode::R2T => {
                    let (task, tag) = (header.task(), header.get(20));
                    assert!(header.get(44) > 0 && header.get(44) <= self.session.agreed.max_burst);
                    self.asked = Asked { task, tag, at: header.get(40), number: 0 };
                    false
                }
                opcode::NOP_IN => header.task() != NONE,
                _ => true,
            };
            if counted {
                assert_eq!(header.get(24), self.status, "a status number");
                self.status = self.status.wrapping_add(1);
            }
            left = &left[found.length..];
        }
        assert!(left.is_empty());
        assert!(self.session.memory() <= HELD, "{} bytes are held", self.session.memory());
        assert!(self.session.open() <= 2 * WINDOW as usize + 1);
    }

    /// Answers a command that is being carried out.
    fn answer(&mut self, index: usize, fails: bool) {
        if self.running.is_empty() {
            return;
        }
        let (task, action) = self.running.remove(index % self.running.len());
        let data = match action {
            Action::Reply(data) => data,
            Action::Read(extent) => vec![0x5a; extent.bytes().min(300_000) as usize],
            _ => Vec::new(),
        };
        let out = &mut self.out;
        match self.session.head(task, data.len()) {
            Some(head) if !fails => {
                out.extend_from_slice(head.bytes());
                out.extend_from_slice(&data);
                self.session.answered(task, out);
            }
            _ => {
                let sense = [0x70; 18];
                let failed = Status { code: 2, sense: &sense };
                let status = if fails { failed } else { Status::default() };
                self.session.answer(task, status, &data, out);
            }
        }
    }
}

/// A session after its login. The input says what was agreed, then PDUs, each behind a byte that says which
/// of its numbers are put right (few would be taken otherwise) and which commands are answered then.
pub fn session(data: &[u8]) {
    let mut bytes = Bytes(data);
    let (how, sizes) = (bytes.one(), bytes.one());
    let digests = Digests { header: how & 1 != 0, data: how & 2 != 0 };
    let max_burst = [512, 8192, 65_536, MAX_BURST][usize::from(sizes >> 2 & 3)];
    let agreed = Agreed {
        initiator: "iqn.a:b".into(),
        target: (how & 16 == 0).then(|| "iqn.x:v".into()),
        shown: Arc::default(),
        isid: [1; 6],
        digests,
        max_send: [512, 8192, 65_536, 262_144][usize::from(sizes & 3)],
        max_burst,
        first_burst: [512, 4096, 65_536, FIRST_BURST][usize::from(sizes >> 4 & 3)].min(max_burst),
        immediate_data: how & 8 != 0,
        initial_r2t: how & 4 != 0,
        // Numbers wrap soon.
        expected: u32::MAX - 3,
        status: u32::MAX - 5,
    };
    let (number, status) = (agreed.expected, agreed.status);
    let mut held = Held {
        session: Session::new(agreed),
        unit: unit(1 << 15),
        running: Vec::new(),
        asked: Asked::default(),
        number,
        status,
        most: None,
        out: Vec::new(),
    };
    while !bytes.0.is_empty() {
        let how = bytes.one();
        let mut header = Header(bytes.array());
        header.0[4] = 0;
        let data = bytes.some(header.length());
        if how & 1 == 0 {
            header.put(24, held.number);
        }
        if how & 2 == 0 && header.opcode() == opcode::DATA_OUT {
            let asked = &mut held.asked;
            header.put(16, asked.task);
            header.put(20, asked.tag);
            header.put(36, asked.number);
            header.put(40, asked.at);
            asked.number += 1;
            asked.at += data.len() as u32;
        }
        let mut pdu = Vec::new();
        emit(&mut pdu, &header, data, digests);
        if how & 0x20 != 0
            && let Some(last) = pdu.last_mut()
        {
            *last ^= 1;
        }
        let Ok(Some(found)) = frame(&pdu, digests, MAX_RECEIVE as usize) else { return };
        let taken = held.session.take(&pdu, &found, &One, &needs, &mut held.out);
        match taken {
            Ok(Event::Nothing) => {}
            Ok(Event::Reset { task, .. }) => {
                held.session.reset_done(task, how & 0x40 == 0, &mut held.out)
            }
            Ok(Event::Command(command)) => {
                assert!(command.data.len() as u64 <= needs(&command.cdb));
                assert!(command.data.len() <= command.expected as usize);
                let unit = (command.lun == LUN).then_some(&held.unit);
                let action = decided(unit, &command.cdb, &command.data);
                held.running.push((command.task, action));
                held.number = held.number.wrapping_add(u32::from(!header.is_immediate()));
            }
            Ok(Event::End) | Err(_) => return held.look(),
        }
        if how & 4 != 0 {
            held.answer(0, how & 0x40 != 0);
        }
        if how & 8 != 0 {
            held.answer(usize::from(how), false);
        }
        if how & 16 != 0 {
            held.session.ping(&mut held.out);
        }
        held.look();
    }
}
