//! iSCSI: framing and digests, logins, a session's data in both directions against a plain model,
//! and no panic on anything.

use std::sync::Arc;

use proptest::prelude::*;
use vs_wire::iscsi::access::{Door, Nonce, Targets};
use vs_wire::iscsi::login::{Agreed, Login, Outcome, Refusal};
use vs_wire::iscsi::pdu::{Broken, Digests, HEADER, Header, emit, frame};
use vs_wire::iscsi::session::{Event, Session, Status, WINDOW};
use vs_wire::iscsi::{MAX_RECEIVE, NONE, opcode, text};
use vs_wire::scsi::cdb::needs;

struct One;

impl Targets for One {
    fn all(&self, _: &str) -> Vec<(String, Vec<String>)> {
        vec![("iqn.x:v".into(), vec!["h:1,1".into()])]
    }

    fn door(&self, target: &str, _: &str) -> Door {
        if target == "iqn.x:v" { Door::Open(Arc::default()) } else { Door::Absent }
    }

    fn nonce(&self) -> Option<Nonce> {
        None
    }
}

const MOST: usize = MAX_RECEIVE as usize;

/// A PDU as an initiator sends it.
fn pdu(header: &Header, data: &[u8], digests: Digests) -> Vec<u8> {
    let mut out = Vec::new();
    emit(&mut out, header, data, digests);
    out
}

fn request(opcode: u8, flags: u8, task: u32, number: u32) -> Header {
    let mut header = Header::new(opcode, 0, task);
    header.0[1] = flags;
    header.put(24, number);
    header
}

/// The PDUs of what a target has sent.
fn sent(mut bytes: &[u8], digests: Digests) -> Vec<(Header, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some(one) = frame(bytes, digests, 1 << 24).expect("a PDU") {
        assert!(one.is_sound);
        found.push((one.header, bytes[one.data.clone()].to_vec()));
        bytes = &bytes[one.length..];
    }
    assert!(bytes.is_empty());
    found
}

fn keys(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in pairs {
        text::put(&mut data, key, value);
    }
    data
}

/// Logs in with these keys in one request; what was answered.
fn login(pairs: &[(&str, &str)]) -> (Result<Outcome, Broken>, Vec<(String, String)>, u16) {
    let (mut login, mut out) = (Login::new(7), Vec::new());
    let header = request(opcode::LOGIN | 0x40, 0x87, 1, 40);
    let outcome = login.feed(&header, &keys(pairs), 9, &One, &mut out);
    let answer = sent(&out, Digests::default());
    let Some((header, data)) = answer.first() else { return (outcome, Vec::new(), 0) };
    let status = u16::from_be_bytes([header.0[36], header.0[37]]);
    (outcome, text::decode(data).expect("text"), status)
}

const WHO: (&str, &str) = ("InitiatorName", "iqn.a:b");
const TARGET: (&str, &str) = ("TargetName", "iqn.x:v");

fn agreed(more: &[(&str, &str)]) -> Agreed {
    let pairs: Vec<_> = [WHO, TARGET].into_iter().chain(more.iter().copied()).collect();
    match login(&pairs).0 {
        Ok(Outcome::Done(agreed)) => *agreed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_key_is_answered_with_what_holds_for_both() {
    let asked = [
        WHO,
        TARGET,
        ("HeaderDigest", "None,CRC32C"),
        ("DataDigest", "CRC32C,None"),
        ("MaxRecvDataSegmentLength", "65536"),
        ("MaxBurstLength", "16776192"),
        ("FirstBurstLength", "512"),
        ("InitialR2T", "No"),
        ("ImmediateData", "No"),
        ("MaxConnections", "8"),
        ("ErrorRecoveryLevel", "2"),
        ("DataPDUInOrder", "No"),
        ("MaxOutstandingR2T", "many"),
        ("X-com.example.key", "1"),
    ];
    let (outcome, said, status) = login(&asked);
    let Ok(Outcome::Done(agreed)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(status, 0);
    assert_eq!(agreed.digests, Digests { header: false, data: true });
    assert_eq!((agreed.max_send, agreed.max_burst, agreed.first_burst), (65_536, 1 << 20, 512));
    assert!(!agreed.initial_r2t && !agreed.immediate_data);
    assert_eq!((agreed.initiator.as_str(), agreed.expected), ("iqn.a:b", 40));
    let value = |key: &str| said.iter().find(|pair| pair.0 == key).map(|pair| pair.1.as_str());
    for (key, wanted) in [
        ("HeaderDigest", "None"),
        ("DataDigest", "CRC32C"),
        ("MaxRecvDataSegmentLength", "131072"),
        ("MaxConnections", "1"),
        ("ErrorRecoveryLevel", "0"),
        ("DataPDUInOrder", "Yes"),
        ("MaxOutstandingR2T", "Reject"),
        ("X-com.example.key", "NotUnderstood"),
        ("TargetPortalGroupTag", "7"),
    ] {
        assert_eq!(value(key), Some(wanted), "{key}");
    }
}

#[test]
fn a_login_that_can_not_be_is_told_why() {
    for (pairs, why) in [
        (&[WHO][..], Refusal::Missing),
        (&[TARGET], Refusal::Missing),
        (&[WHO, ("TargetName", "iqn.x:other")], Refusal::NotFound),
        (&[WHO, TARGET, ("AuthMethod", "None")], Refusal::Invalid),
        (&[WHO, TARGET, ("SessionType", "Strange")], Refusal::SessionType),
    ] {
        let (outcome, _, status) = login(pairs);
        assert_eq!(outcome, Ok(Outcome::Refused(why)), "{pairs:?}");
        assert_eq!(status, why as u16);
    }
}

#[test]
fn a_login_may_come_in_parts_and_stages() {
    let (mut login, mut out) = (Login::new(1), Vec::new());
    let all = keys(&[WHO, ("SessionType", "Discovery"), ("AuthMethod", "CHAP,None")]);
    let (first, rest) = all.split_at(20);
    let part = request(opcode::LOGIN | 0x40, 0x40, 1, 5);
    assert_eq!(login.feed(&part, first, 9, &One, &mut out), Ok(Outcome::More));
    let whole = request(opcode::LOGIN | 0x40, 0x81, 1, 5);
    assert_eq!(login.feed(&whole, rest, 9, &One, &mut out), Ok(Outcome::More));
    let last = request(opcode::LOGIN | 0x40, 0x87, 1, 5);
    let outcome = login.feed(&last, &keys(&[("MaxBurstLength", "0x400")]), 9, &One, &mut out);
    let Ok(Outcome::Done(agreed)) = outcome else { panic!("{outcome:?}") };
    assert_eq!((agreed.target, agreed.max_burst), (None, 1024));
    // Its identifier is told at the end alone.
    let answers = sent(&out, Digests::default());
    let identifiers: Vec<_> = answers.iter().map(|(header, _)| header.0[15]).collect();
    assert_eq!(identifiers, [0, 0, 9]);
    assert!(login.feed(&request(opcode::NOP_OUT, 0x80, 1, 5), &[], 9, &One, &mut out).is_err());
}

/// A session, and an initiator that knows what has been answered.
struct Rig {
    session: Session,
    digests: Digests,
    number: u32,
}

impl Rig {
    fn new(more: &[(&str, &str)]) -> Rig {
        let session = Session::new(agreed(more));
        Rig { digests: session.digests(), session, number: 40 }
    }

    fn send(&mut self, header: &Header, data: &[u8]) -> (Event, Vec<(Header, Vec<u8>)>) {
        let bytes = pdu(header, data, self.digests);
        let one = frame(&bytes, self.digests, MOST).expect("a PDU").expect("all of it");
        let mut out = Vec::new();
        let event = self.session.take(&bytes, &one, &One, &needs, &mut out).expect("an event");
        (event, sent(&out, self.digests))
    }

    /// A command; it is the next in its order.
    fn command(
        &mut self,
        task: u32,
        flags: u8,
        length: u32,
        cdb: [u8; 16],
        data: &[u8],
    ) -> (Event, Vec<(Header, Vec<u8>)>) {
        let mut header = request(opcode::COMMAND, flags, task, self.number);
        self.number += 1;
        header.put_lun(1 << 48);
        header.put(20, length);
        header.0[32..48].copy_from_slice(&cdb);
        self.send(&header, data)
    }

    fn answer(&mut self, task: u32, data: &[u8]) -> Vec<(Header, Vec<u8>)> {
        let mut out = Vec::new();
        self.session.answer(task, Status::default(), data, &mut out);
        sent(&out, self.digests)
    }
}

fn cdb(opcode: u8, blocks: u16) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

const WRITE: u8 = 0x2a;
const READ: u8 = 0x28;

#[test]
fn one_that_comes_out_of_its_order_is_not_carried_out() {
    let mut rig = Rig::new(&[]);
    rig.number = 41;
    assert_eq!(rig.command(1, 0xc0, 512, cdb(READ, 1), &[]).0, Event::Nothing);
    rig.number = 39;
    assert_eq!(rig.command(2, 0xc0, 512, cdb(READ, 1), &[]).0, Event::Nothing);
    assert_eq!(rig.command(3, 0xc0, 512, cdb(READ, 1), &[]).0, {
        let mut command = vs_wire::iscsi::session::Command::default();
        (command.task, command.lun, command.expected) = (3, 1 << 48, 512);
        command.cdb = cdb(READ, 1);
        Event::Command(command)
    });
}

#[test]
fn the_window_closes_when_it_is_full_and_opens_again() {
    let mut rig = Rig::new(&[]);
    for task in 0..WINDOW {
        assert!(matches!(rig.command(task, 0xc0, 512, cdb(READ, 1), &[]).0, Event::Command(_)));
    }
    assert_eq!(rig.command(WINDOW, 0xc0, 512, cdb(READ, 1), &[]).0, Event::Nothing);
    rig.number -= 1;
    let told = rig.answer(0, &[0; 512]);
    assert_eq!(told[0].0.get(32), rig.number, "MaxCmdSN");
    assert!(matches!(rig.command(WINDOW, 0xc0, 512, cdb(READ, 1), &[]).0, Event::Command(_)));
}

#[test]
fn what_was_aborted_is_answered_no_more_and_the_abort_waits_for_its_end() {
    let mut rig = Rig::new(&[]);
    assert!(matches!(rig.command(1, 0xc0, 512, cdb(READ, 1), &[]).0, Event::Command(_)));
    let mut abort = request(opcode::TASK | 0x40, 0x81, 2, rig.number);
    abort.put(20, 1);
    assert_eq!(rig.send(&abort, &[]), (Event::Nothing, Vec::new()));
    let told = rig.answer(1, &[0; 512]);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].0.opcode(), told[0].0.task(), told[0].0.0[2]), (0x22, 2, 0));
    // There is none any more.
    abort.put(16, 3);
    assert_eq!(rig.send(&abort, &[]).1[0].0.0[2], 1);
}

#[test]
fn a_reset_is_answered_when_all_have_ended_here_and_elsewhere() {
    let mut rig = Rig::new(&[]);
    assert!(matches!(rig.command(1, 0xc0, 512, cdb(READ, 1), &[]).0, Event::Command(_)));
    for (task, function, first) in [(2, 5, true), (3, 4, false), (4, 6, true)] {
        let mut reset = request(opcode::TASK | 0x40, 0x80 | function, task, rig.number);
        reset.put_lun(1 << 48);
        let wanted = Event::Reset { task, clears: function == 4 };
        assert_eq!(rig.send(&reset, &[]), (wanted, Vec::new()));
        let mut out = Vec::new();
        if first && task == 2 {
            rig.session.reset_done(task, true, &mut out);
            assert!(out.is_empty() && rig.session.is_aborted(1), "its own read is under way");
            let told = rig.answer(1, &[0; 512]);
            assert_eq!((told[0].0.opcode(), told[0].0.task(), told[0].0.0[2]), (0x22, 2, 0));
            continue;
        }
        rig.session.reset_done(task, first, &mut out);
        let told = sent(&out, Digests::default());
        assert_eq!(told[0].0.0[2], if first { 0 } else { 255 });
    }
    let mut elsewhere = request(opcode::TASK | 0x40, 0x85, 9, rig.number);
    elsewhere.put_lun(2 << 48);
    assert_eq!(rig.send(&elsewhere, &[]).1[0].0.0[2], 2, "no such unit");
}

#[test]
fn a_request_to_log_out_has_its_own_number() {
    let mut rig = Rig::new(&[]);
    let mut out = Vec::new();
    rig.session.ask_logout(2, &mut out);
    rig.session.ask_logout(2, &mut out);
    let told = sent(&out, Digests::default());
    let header = told[0].0;
    assert_eq!((header.opcode(), header.task(), header.0[36]), (0x32, NONE, 1));
    assert_eq!(header.get(40) & 0xffff, 2);
    assert_eq!(told[1].0.get(24), header.get(24) + 1);
}

#[test]
fn data_of_another_order_fail_the_command_alone() {
    let mut rig = Rig::new(&[("InitialR2T", "Yes"), ("ImmediateData", "No")]);
    let (event, told) = rig.command(1, 0xa0, 1024, cdb(WRITE, 2), &[]);
    assert_eq!((event, told[0].0.opcode()), (Event::Nothing, opcode::R2T));
    let mut data = request(opcode::DATA_OUT, 0x80, 1, 0);
    data.put(20, told[0].0.get(20));
    data.put(36, 1);
    let (event, _) = rig.send(&data, &[0; 512]);
    assert!(matches!(event, Event::Command(command) if command.is_broken));
    rig.answer(1, &[]);
    assert!(matches!(rig.command(2, 0xc0, 512, cdb(READ, 1), &[]).0, Event::Command(_)));
}

#[test]
fn discovery_tells_all_and_carries_out_nothing() {
    let (outcome, ..) = login(&[WHO, ("SessionType", "Discovery")]);
    let Ok(Outcome::Done(agreed)) = outcome else { panic!("{outcome:?}") };
    let mut rig = Rig { session: Session::new(*agreed), digests: Digests::default(), number: 40 };
    assert_eq!(rig.command(1, 0xc0, 512, cdb(READ, 1), &[]).1[0].0.opcode(), opcode::REJECT);
    let mut ask = request(opcode::TEXT, 0x80, 2, rig.number);
    ask.put(20, NONE);
    let (_, told) = rig.send(&ask, &keys(&[("SendTargets", "All")]));
    let said = text::decode(&told[0].1).expect("text");
    assert_eq!(said[0], ("TargetName".into(), "iqn.x:v".into()));
    assert_eq!(said[1], ("TargetAddress".into(), "h:1,1".into()));
}

proptest! {
    #[test]
    fn a_pdu_is_what_was_sent(
        task: u32,
        data in prop::collection::vec(any::<u8>(), 0..600),
        header: bool,
        of_data: bool,
        cut in any::<prop::sample::Index>(),
        flipped in any::<prop::sample::Index>(),
    ) {
        let digests = Digests { header, data: of_data };
        let mut bytes = pdu(&request(opcode::NOP_OUT, 0x80, task, 3), &data, digests);
        let one = frame(&bytes, digests, MOST).unwrap().unwrap();
        prop_assert_eq!(one.length, bytes.len());
        prop_assert_eq!(one.header.task(), task);
        prop_assert!(one.is_sound && bytes[one.data.clone()] == data[..]);
        prop_assert_eq!(frame(&bytes[..cut.index(bytes.len())], digests, MOST), Ok(None));
        // A bit that changes on its way is seen, wherever a digest covers it.
        let at = flipped.index(bytes.len());
        let length = (5..8).contains(&at) || at == 4;
        bytes[at] ^= 1;
        if header && of_data && !length {
            match frame(&bytes, digests, MOST) {
                Err(Broken::HeaderDigest) => {}
                Ok(Some(one)) => prop_assert!(!one.is_sound),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    /// Whatever the initiator may send unasked and however it cuts it up, a write gives the
    /// command what its CDB asks for, and no more is ever asked for than that.
    #[test]
    fn a_write_brings_its_data(
        blocks in 0u16..80,
        expected in 0u32..50_000,
        immediate: bool,
        unasked: bool,
        first in 512u32..20_000,
        burst in 512u32..20_000,
        cut in 1usize..9000,
        digest: bool,
    ) {
        let yes = |yes| if yes { "Yes" } else { "No" };
        let digest = if digest { "CRC32C" } else { "None" };
        let mut rig = Rig::new(&[
            ("ImmediateData", yes(immediate)),
            ("InitialR2T", yes(!unasked)),
            ("FirstBurstLength", &first.to_string()),
            ("MaxBurstLength", &burst.to_string()),
            ("HeaderDigest", digest),
            ("DataDigest", digest),
        ]);
        let all: Vec<u8> = (0..expected).map(|n| (n % 251) as u8).collect();
        let first = first.min(burst).min(expected) as usize;
        let brought = if immediate { first.min(cut) } else { 0 };
        let more = unasked && brought < first;
        let flags = if more { 0x20 } else { 0xa0 };
        let (mut event, mut told) =
            rig.command(5, flags, expected, cdb(WRITE, blocks), &all[..brought]);
        let mut at = brought;
        let mut asked = more.then_some((NONE, first));
        loop {
            if let Event::Command(command) = &event {
                let wanted = (usize::from(blocks) * 512).min(all.len());
                prop_assert!(!command.is_broken);
                prop_assert!(command.data == all[..wanted]);
                break;
            }
            if let Some((header, _)) = told.first() {
                prop_assert_eq!(header.opcode(), opcode::R2T);
                prop_assert_eq!(header.get(40) as usize, at);
                let end = at + header.get(44) as usize;
                prop_assert!(end <= all.len() && header.get(44) <= burst);
                asked = Some((header.get(20), end));
            }
            let Some((transfer, end)) = asked.take() else { panic!("it is asked for nothing") };
            let mut number = 0;
            while at < end {
                let length = cut.min(end - at);
                let last = at + length == end;
                let mut header = request(opcode::DATA_OUT, if last { 0x80 } else { 0 }, 5, 0);
                header.put(20, transfer);
                header.put(36, number);
                header.put(40, at as u32);
                number += 1;
                (event, told) = rig.send(&header, &all[at..at + length]);
                at += length;
                prop_assert!(last || event == Event::Nothing);
            }
        }
        // What it did not expect, or expected in vain, is told.
        let answer = rig.answer(5, &[]);
        let needs = u32::from(blocks) * 512;
        let (flag, rest) = match needs.cmp(&expected) {
            std::cmp::Ordering::Less => (0x82, expected - needs),
            std::cmp::Ordering::Equal => (0x80, 0),
            std::cmp::Ordering::Greater => (0x84, needs - expected),
        };
        let header = &answer[0].0;
        prop_assert_eq!((header.opcode(), header.0[1], header.get(44)), (0x21, flag, rest));
        prop_assert_eq!(rig.session.open(), 0);
    }

    /// Read data come in their order, in pieces that were agreed on, with the status at their end.
    #[test]
    fn a_read_is_given_its_data(
        given in 0usize..40_000,
        expected in 0u32..40_000,
        most in 512u32..9000,
        burst in 512u32..20_000,
    ) {
        let mut rig = Rig::new(&[
            ("MaxRecvDataSegmentLength", &most.to_string()),
            ("MaxBurstLength", &burst.to_string()),
        ]);
        rig.command(5, 0xc0, expected, cdb(READ, 1), &[]);
        let data: Vec<u8> = (0..given).map(|n| (n % 251) as u8).collect();
        let told = rig.answer(5, &data);
        let mut got = Vec::new();
        let mut in_burst = 0;
        for (number, (header, part)) in told.iter().enumerate() {
            if header.opcode() == opcode::DATA_IN {
                prop_assert_eq!(header.get(36) as usize, number);
                prop_assert_eq!(header.get(40) as usize, got.len());
                prop_assert!(part.len() <= most as usize);
                got.extend_from_slice(part);
                in_burst += part.len() as u32;
                prop_assert!(in_burst <= burst);
                in_burst = if header.is_final() { 0 } else { in_burst };
            }
        }
        let wanted = given.min(expected as usize);
        prop_assert!(got == data[..wanted]);
        let (last, _) = told.last().unwrap();
        prop_assert!(last.opcode() == 0x21 || last.0[1] & 0x01 != 0, "a status");
        let rest = if given > wanted { given - wanted } else { expected as usize - wanted };
        prop_assert_eq!(last.get(44) as usize, rest);
    }

    /// Where data are sent from where they lie, the initiator gets the same, now and afterwards.
    #[test]
    fn a_head_and_its_data_are_the_answer(
        blocks in 1usize..80,
        expected in 1u32..80,
        most in 512u32..40_000,
        header: bool,
        others in 0u32..4,
    ) {
        let digest = if header { "CRC32C" } else { "None" };
        let mut rigs = [0, 1].map(|_| {
            let mut rig = Rig::new(&[
                ("MaxRecvDataSegmentLength", &most.to_string()),
                ("HeaderDigest", digest),
            ]);
            for task in 0..=others {
                rig.command(task, 0xc0, expected * 512, cdb(READ, 1), &[]);
            }
            rig
        });
        let data = vec![7; blocks * 512];
        let [one, other] = &mut rigs;
        let Some(head) = one.session.head(0, data.len()) else {
            prop_assert!(expected as usize != blocks || data.len() > most as usize);
            return Ok(());
        };
        let mut out = head.bytes().to_vec();
        out.extend_from_slice(&data);
        one.session.answered(0, &mut out);
        prop_assert_eq!(sent(&out, one.digests), other.answer(0, &data));
        let mut nop = request(opcode::NOP_OUT, 0x80, 99, one.number);
        nop.put(20, NONE);
        prop_assert_eq!(one.send(&nop, b"here"), other.send(&nop, b"here"));
    }

    #[test]
    fn nothing_that_comes_is_too_much_for_a_session(
        pdus in prop::collection::vec(
            (any::<[u8; 16]>(), any::<[u8; 16]>(), prop::collection::vec(any::<u8>(), 0..200), 0u8..12),
            1..60,
        ),
        answers in prop::collection::vec(0u32..8, 0..60),
    ) {
        let mut rig = Rig::new(&[]);
        let mut answers = answers.into_iter();
        for (front, cdb, data, kind) in pdus {
            let mut header = Header([0; HEADER]);
            header.0[..16].copy_from_slice(&front);
            header.0[4] = 0;
            header.0[0] = match kind { 0..7 => kind | front[0] & 0x40, 7 => 0x10, _ => front[0] };
            header.put(16, u32::from(front[2] % 8));
            header.put(20, u32::from(front[3]) << (front[5] % 20));
            header.put(24, rig.number);
            header.0[32..48].copy_from_slice(&cdb);
            let bytes = pdu(&header, &data, rig.digests);
            let Ok(Some(one)) = frame(&bytes, rig.digests, MOST) else { continue };
            let mut out = Vec::new();
            match rig.session.take(&bytes, &one, &One, &needs, &mut out) {
                Ok(Event::End) | Err(_) => break,
                Ok(_) => {}
            }
            // What it has taken of its order, the target says.
            if let Some((header, _)) = sent(&out, rig.digests).last() {
                rig.number = header.get(28);
            }
            if let Some(task) = answers.next() {
                rig.answer(task, &[1; 700]);
            }
            prop_assert!(rig.session.open() <= 2 * WINDOW as usize);
        }
    }

    #[test]
    fn no_login_is_too_much(
        parts in prop::collection::vec((any::<u8>(), "[A-Za-z0-9=,.:]{0,40}\0?"), 1..12),
    ) {
        let (mut login, mut out) = (Login::new(1), Vec::new());
        for (flags, data) in parts {
            let header = request(opcode::LOGIN, flags, 1, 0);
            match login.feed(&header, data.as_bytes(), 1, &One, &mut out) {
                Ok(Outcome::More) => {}
                _ => break,
            }
        }
        sent(&out, Digests::default());
    }
}
