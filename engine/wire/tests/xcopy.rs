//! EXTENDED COPY's lists: what they say is what was put into them, and what is wrong with them is told.

use proptest::prelude::*;
use vs_wire::scsi::cdb::Cdb;
use vs_wire::scsi::sense::{self, Sense};
use vs_wire::scsi::unit::{Action, Unit, decide};
use vs_wire::scsi::xcopy::{self, List, Progress, Question, SEGMENTS, Segment, TARGETS, Target};

fn unit() -> Unit {
    Unit { size: 1 << 20, naa: [0x3a; 8], serial: "s-1".into(), ..Unit::default() }
}

fn target(Target { kind, name }: &Target) -> [u8; 32] {
    let mut out = [0; 32];
    (out[0], out[4], out[5], out[7], out[30]) = (0xe4, 1, *kind, name.len() as u8, 2);
    out[8..8 + name.len()].copy_from_slice(name);
    out
}

fn segment(segment: &Segment) -> [u8; 28] {
    let mut out = [0; 28];
    (out[0], out[3]) = (0x02, 24);
    out[4..6].copy_from_slice(&segment.source.to_be_bytes());
    out[6..8].copy_from_slice(&segment.destination.to_be_bytes());
    out[10..12].copy_from_slice(&(segment.blocks as u16).to_be_bytes());
    out[12..20].copy_from_slice(&segment.from.to_be_bytes());
    out[20..28].copy_from_slice(&segment.to.to_be_bytes());
    out
}

/// A list with its header.
fn encoded(list: &List) -> Vec<u8> {
    let targets: Vec<u8> = list.targets.iter().flat_map(target).collect();
    let segments: Vec<u8> = list.segments.iter().flat_map(segment).collect();
    let mut out = vec![0; 16];
    (out[0], out[1]) = list.id.map_or((0, 0x18), |id| (id, 0));
    out[2..4].copy_from_slice(&(targets.len() as u16).to_be_bytes());
    out[8..12].copy_from_slice(&(segments.len() as u32).to_be_bytes());
    [out, targets, segments].concat()
}

fn cdb(length: usize) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&(length as u32).to_be_bytes());
    cdb
}

fn asked(action: u8, list: u8) -> Cdb {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2], cdb[13]) = (0x84, action, list, 255);
    cdb
}

fn run(data: &[u8]) -> Action {
    decide(Some(&unit()), &cdb(data.len()), data)
}

fn one() -> List {
    let name = Target { kind: 3, name: vec![0x3a; 8] };
    let segment = Segment { source: 0, destination: 0, blocks: 8, from: 0, to: 100 };
    List { id: Some(1), targets: vec![name], segments: vec![segment] }
}

fn targets() -> impl Strategy<Value = Vec<Target>> {
    let name = prop::collection::vec(any::<u8>(), 0..=20);
    let target = (0u8..16, name).prop_map(|(kind, name)| Target { kind, name });
    prop::collection::vec(target, 0..TARGETS + 2)
}

fn segments() -> impl Strategy<Value = Vec<Segment>> {
    let one = (any::<u16>(), any::<u16>(), any::<u16>(), any::<u64>(), any::<u64>());
    let one = one.prop_map(|(source, destination, blocks, from, to)| Segment {
        source,
        destination,
        blocks: blocks.into(),
        from,
        to,
    });
    prop::collection::vec(one, 0..SEGMENTS + 2)
}

proptest! {
    #[test]
    fn a_list_is_what_was_put_into_it(
        id in prop::option::of(any::<u8>()), targets in targets(), segments in segments(), cut: prop::sample::Index,
    ) {
        let list = List { id, targets, segments };
        let data = encoded(&list);
        let many = (list.targets.len() > TARGETS, list.segments.len() > SEGMENTS);
        let wanted = match many {
            (false, false) => Action::Copy(list),
            _ if data.len() - 16 > xcopy::LIST => Action::Fail(sense::PARAMETER_LENGTH),
            (true, _) => Action::Fail(sense::TOO_MANY_TARGETS),
            (_, true) => Action::Fail(sense::TOO_MANY_SEGMENTS),
        };
        prop_assert_eq!(run(&data), wanted);
        let cut = cut.index(data.len());
        let short = run(&data[..cut]);
        if cut == 0 {
            prop_assert_eq!(short, Action::Reply(Vec::new()));
        } else {
            prop_assert_eq!(short, Action::Fail(sense::PARAMETER_LENGTH));
        }
        // All of what it should bring is there.
        prop_assert_eq!(
            decide(Some(&unit()), &cdb(data.len()), &data[..data.len() - 1]),
            Action::Fail(sense::PARAMETER_LENGTH)
        );
    }

    #[test]
    fn no_list_is_too_much(data in prop::collection::vec(any::<u8>(), 0..600), sane: bool) {
        let mut data = data;
        if sane && data.len() > 16 {
            data[1..16].fill(0);
            data[3] = 32;
            data[11] = 28;
            data[16] = 0xe4;
        }
        let cut = matches!(run(&data), Action::Copy(_) | Action::Fail(_) | Action::Reply(_));
        prop_assert!(cut);
    }
}

#[test]
fn what_is_not_there_is_told() {
    let fails = |at: usize, byte: u8, sense: Sense| {
        let mut data = encoded(&one());
        data[at] = byte;
        assert_eq!(run(&data), Action::Fail(sense), "{at} {byte:#x}");
    };
    fails(16, 0xe0, sense::TARGET_TYPE);
    fails(48, 0x03, sense::SEGMENT_TYPE);
    fails(51, 25, sense::INVALID_PARAMETER);
    fails(17, 0x01, sense::INVALID_PARAMETER);
    fails(46, 0x10, sense::INVALID_PARAMETER);
    fails(15, 1, sense::INLINE_DATA);
    // An identifier that is not to be used.
    fails(1, 0x18, sense::INVALID_PARAMETER);
}

#[test]
fn units_are_found_by_their_names() {
    let is = |kind, name: &[u8]| Target { kind, name: name.to_vec() }.is(&unit());
    assert!(is(3, &[0x3a; 8]) && !is(3, &[0x3b; 8]) && !is(2, &[0x3a; 8]));
    assert!(is(1, b"VSWITCHDs-1") && !is(1, b"VSWITCHDs-2"));
}

#[test]
fn how_it_went_is_told() {
    let wanted = Action::Copied { list: 7, question: Question::Status, most: 255 };
    assert_eq!(decide(Some(&unit()), &asked(0, 7), &[]), wanted);
    let wanted = Action::Copied { list: 7, question: Question::Failure, most: 255 };
    assert_eq!(decide(Some(&unit()), &asked(4, 7), &[]), wanted);
    let Action::Reply(data) = decide(Some(&unit()), &asked(3, 0), &[]) else { panic!() };
    assert_eq!((data.len(), data[3], &data[43..]), (46, 42, &[2, 0x02, 0xe4][..]));
    let went = |running, failed| {
        let progress = Progress { running, segments: 2, bytes: 5 << 20, failed };
        xcopy::answer(Question::Status, &progress)
    };
    assert_eq!(went(true, None), [0, 0, 0, 8, 0, 0, 2, 1, 0, 0, 0x14, 0]);
    assert_eq!(went(false, None)[4], 1);
    assert_eq!(went(false, Some(sense::COPY_FAILED))[4], 2);
    let failed = Some(sense::NO_SUCH_TARGET);
    let progress = Progress { running: false, segments: 0, bytes: 0, failed };
    let details = xcopy::answer(Question::Failure, &progress);
    assert_eq!((details.len(), details[3], details[56], details[62]), (78, 74, 2, 0xa));
    let fine = Progress { failed: None, ..progress };
    assert_eq!(xcopy::answer(Question::Failure, &fine), [0; 4]);
}
