//! Reservations over iSCSI: at several SPs at once, through changes of the owner, restarts, fences,
//! copies, stalls; task management and asymmetric access.

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rig::iscsi::{CONFLICT, Ended, Initiator};
use rig::proxy::Proxy;
use rig::*;
use serde_json::json;

const SIZE: u64 = 16 * MIB;
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
/// Types.
const WRITES: u8 = 1;
const ALL: u8 = 3;
const REGISTRANTS: u8 = 5;
const LUN_RESET: u8 = 5;
const GOOD: Ended = Ended::Good(Vec::new());

/// Views end soon, so that no test waits for long.
fn rig() -> Rig {
    Rig { more: json!({"lease_seconds": 0.3, "forward_seconds": 0.3}), ..Rig::new() }
}

/// An SP with its portal, and its tag.
fn portal(sp: &Sp, tag: u16) -> String {
    sp.engine.set_portal_group(tag, "");
    sp.iscsi()
}

struct Two {
    a: Sp,
    b: Sp,
    at_a: String,
    at_b: String,
    tree: Tree,
}

/// a at sp-a and b at sp-b, mirrored; sp-a is the owner and both serve.
fn two(rig: &Rig) -> Two {
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    let (at_a, at_b) = (portal(&a, 1), portal(&b, 2));
    a.leaf("a", SIZE);
    b.leaf("b", SIZE);
    let root = mirror(&[(true, leaf("a", SIZE)), (true, leaf("b", SIZE))]);
    let tree = Tree::new(1, SIZE, root, &[("a", &a), ("b", &b)]);
    a.activate(&tree);
    b.activate(&tree);
    Two { a, b, at_a, at_b, tree }
}

fn next(tree: &Tree) -> Tree {
    Tree { version: tree.version + 1, ..tree.clone() }
}

/// Registers and reserves.
fn hold(host: &mut Initiator, key: u64, kind: u8) {
    assert_eq!(host.out(REGISTER, 0, 0, key), GOOD);
    assert_eq!(host.out(RESERVE, kind, key, 0), GOOD);
}

#[test]
fn what_is_reserved_at_one_sp_is_forbidden_at_the_other() {
    let rig = rig();
    let Two { a, b, at_a, at_b, .. } = two(&rig);
    let (mut one, mut two) = (Initiator::new(&at_a, "one"), Initiator::new(&at_b, "two"));
    assert_eq!(two.write(0, 2), GOOD);
    hold(&mut one, 1, WRITES);
    assert_eq!(two.write(0, 3), CONFLICT);
    assert_eq!(two.read(0), Ended::Good(vec![2; 512]));
    assert_eq!(two.ready(), GOOD);
    assert_eq!(one.write(0, 1), GOOD);
    // By the SP that is not the owner, and back.
    assert_eq!(two.out(REGISTER, 0, 0, 2), GOOD);
    assert_eq!(two.out(PREEMPT, ALL, 2, 1), GOOD);
    assert_eq!(one.ready(), Ended::Check(6, 0x2a05), "it is told");
    assert_eq!(one.write(0, 4), CONFLICT);
    assert_eq!(one.read(0), CONFLICT);
    assert_eq!(two.read(0), Ended::Good(vec![1; 512]));
    assert_eq!((one.keys(), two.keys(), one.held()), (vec![2], vec![2], ALL));
    assert_eq!(one.out(RESERVE, ALL, 1, 0), CONFLICT, "it is registered no more");
    assert_eq!(two.out(RELEASE, WRITES, 2, 0), Ended::Check(5, 0x2604));
    assert_eq!(two.out(RELEASE, ALL, 2, 0), GOOD);
    assert_eq!(one.write(0, 5), GOOD);
    a.stop();
    b.stop();
}

#[test]
fn a_reservation_survives_a_change_of_owner_and_the_old_one_can_change_nothing() {
    let rig = rig();
    let Two { a, b, at_a, at_b, tree } = two(&rig);
    let (mut one, mut two) = (Initiator::new(&at_a, "one"), Initiator::new(&at_b, "two"));
    assert_eq!(two.ready(), GOOD);
    hold(&mut one, 7, WRITES);
    a.fence("a", 2);
    b.fence("b", 2);
    let moved = Tree { owner: "sp-b".into(), ..next(&tree) };
    b.activate(&moved);
    assert_eq!(two.ready(), Ended::Check(6, 0x2a06), "the portals' states have changed");
    assert_eq!(two.write(0, 2), CONFLICT);
    // The old owner, which has not heard of it, waits for a tree of its own.
    assert_eq!(one.ready(), GOOD);
    let task = one.begin(&[0x5f, REGISTER, 0, 0, 0, 0, 0, 0, 24, 0], 0, &{
        let mut data = [0; 24];
        data[7] = 7;
        data
    });
    until("it is refused", || a.metrics()["fencing_rejections"].as_u64() > Some(0));
    assert_eq!(two.keys(), [7], "and has changed nothing");
    a.activate(&moved);
    assert_eq!(one.next(), Some((task, GOOD)));
    assert_eq!(one.ready(), Ended::Check(6, 0x2a06));
    assert!(two.keys().is_empty() && two.held() == 0);
    assert_eq!(two.write(0, 2), GOOD);
    assert_eq!(one.groups(), [(1, false), (2, true)]);
    assert_eq!(two.groups(), [(1, false), (2, true)]);
    a.stop();
    b.stop();
}

#[test]
fn a_reservation_survives_the_end_of_all_sps_and_the_loss_of_the_owner() {
    let rig = rig();
    let Two { a, b, at_a, tree, .. } = two(&rig);
    let mut one = Initiator::new(&at_a, "one");
    hold(&mut one, 9, ALL);
    drop((one, a, b));
    // The owner's leg is lost; the other is all that there is.
    let b = rig.sp("sp-b");
    let at_b = portal(&b, 2);
    b.device("d-b", SIZE);
    b.fence("b", 2);
    let root = legs_of(&[("away", leaf("a", SIZE)), ("in_sync", leaf("b", SIZE))]);
    let alone = Tree { owner: "sp-b".into(), root, ..next(&tree) };
    b.activate(&alone);
    let mut two = Initiator::new(&at_b, "two");
    assert_eq!((two.keys(), two.held()), (vec![9], ALL));
    assert_eq!(two.write(0, 1), CONFLICT);
    // Changed without that leg, it is not what the leg says when it comes back.
    assert_eq!(two.out(REGISTER, 0, 0, 5), GOOD);
    assert_eq!(two.out(PREEMPT, WRITES, 5, 9), GOOD);
    let a = rig.sp_at("sp-a", "127.0.0.1:0");
    a.device("d-a", SIZE);
    a.fence("a", 3);
    b.fence("b", 3);
    let root = legs_of(&[("write_only", leaf("a", SIZE)), ("in_sync", leaf("b", SIZE))]);
    let mut back = Tree { root, ..next(&alone) };
    back.peers = vec![("sp-a".into(), a.peer.clone()), ("sp-b".into(), b.peer.clone())];
    b.activate(&back);
    b.engine.copy_start("v-1", vec![0], 0, 0, false, "full").expect("a copy");
    until("it is copied", || b.copy_state() == "done");
    // Then the leg alone.
    b.stop();
    drop((two, b));
    a.fence("a", 4);
    let at_a = portal(&a, 1);
    let root = legs_of(&[("in_sync", leaf("a", SIZE)), ("away", leaf("b", SIZE))]);
    a.activate(&Tree { owner: "sp-a".into(), root, version: 4, ..back });
    let mut three = Initiator::new(&at_a, "three");
    assert_eq!((three.keys(), three.held()), (vec![5], WRITES));
    assert_eq!(three.write(0, 1), CONFLICT);
    a.stop();
}

#[test]
fn nothing_that_was_begun_before_comes_after_a_preemption() {
    let rig = rig();
    let Two { a, b, at_a, at_b, .. } = two(&rig);
    let mut one = Initiator::new(&at_a, "one");
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = [&at_a, &at_b]
        .into_iter()
        .enumerate()
        .map(|(lane, at)| {
            let (at, stop, written) = (at.clone(), Arc::clone(&stop), Arc::clone(&written));
            thread::spawn(move || {
                let mut host = Initiator::new(&at, &format!("writer-{lane}"));
                let mut byte = 0u8;
                while !stop.load(Ordering::SeqCst) {
                    byte = byte.wrapping_add(1) | 0x80;
                    match host.write(lane as u8, byte) {
                        Ended::Good(_) => drop(written.fetch_add(1, Ordering::SeqCst)),
                        CONFLICT | Ended::Check(6, _) => {}
                        other => panic!("{other:?}"),
                    }
                }
            })
        })
        .collect();
    assert_eq!(one.out(REGISTER, 0, 0, 1), GOOD);
    for round in 1..=10u8 {
        let before = written.load(Ordering::SeqCst);
        until("the writers", || written.load(Ordering::SeqCst) > before + 20);
        assert_eq!(one.out(RESERVE, WRITES, 1, 0), GOOD);
        // Whatever others have on their way, these stay.
        for lane in 0..2 {
            assert_eq!(one.write(lane, round), GOOD);
        }
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(20) {
            for lane in 0..2 {
                assert_eq!(one.read(lane), Ended::Good(vec![round; 512]), "lane {lane}");
            }
        }
        assert_eq!(one.out(RELEASE, WRITES, 1, 0), GOOD);
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.join().expect("a writer");
    }
    a.stop();
    b.stop();
}

#[test]
fn a_view_that_can_not_be_renewed_ends() {
    let more = json!({"lease_seconds": 1.0, "forward_seconds": 0.3});
    let rig = Rig { hold: 3.0, more, ..Rig::new() };
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    let (at_a, at_b) = (portal(&a, 1), portal(&b, 2));
    a.leaf("a", SIZE);
    b.leaf("b", SIZE);
    let root = mirror(&[(true, leaf("a", SIZE)), (true, leaf("b", SIZE))]);
    let tree = Tree::new(1, SIZE, root, &[("a", &a), ("b", &b)]);
    let link = Proxy::start(&a.peer);
    let mut behind = tree.clone();
    behind.peers = vec![("sp-a".into(), link.address.clone()), ("sp-b".into(), b.peer.clone())];
    a.activate(&tree);
    b.activate(&behind);
    let (mut one, mut two) = (Initiator::new(&at_a, "one"), Initiator::new(&at_b, "two"));
    assert_eq!(one.out(REGISTER, 0, 0, 1), GOOD);
    assert_eq!(two.write(0, 2), GOOD);
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    // It asks all the time; when its last question was begun that was answered well.
    let asks = thread::spawn(move || {
        let mut last = Instant::now();
        loop {
            let begun = Instant::now();
            match two.ready() {
                Ended::Good(_) => last = begun,
                // What it could answer by itself waits, and is told to come again.
                Ended::Status(0x08) => return (two, last),
                other => panic!("{other:?}"),
            }
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    until("questions", || asked.load(Ordering::SeqCst) > 100);
    link.hold();
    // The other SP can't be told: it is waited for until it goes by its view no longer.
    let begun = Instant::now();
    assert_eq!(one.out(RESERVE, ALL, 1, 0), GOOD);
    let reserved = Instant::now();
    assert!(reserved - begun < Duration::from_secs(5));
    let (mut two, last) = asks.join().expect("the questions");
    assert!(last < reserved, "it went on by its view");
    link.open();
    assert_eq!(two.read(0), CONFLICT);
    a.stop();
    b.stop();
}

#[test]
fn a_unit_that_is_reserved_by_a_session_is_free_when_it_ends_and_after_a_reset() {
    let rig = rig();
    let Two { a, b, at_a, at_b, .. } = two(&rig);
    let (mut one, mut two) = (Initiator::new(&at_a, "one"), Initiator::new(&at_b, "two"));
    assert_eq!(two.run(&[0x16, 0, 0, 0, 0, 0], 0, &[]), GOOD);
    assert_eq!(one.ready(), CONFLICT);
    assert_eq!(one.out(REGISTER, 0, 0, 1), CONFLICT);
    assert_eq!(one.run(&[0x17, 0, 0, 0, 0, 0], 0, &[]), GOOD, "a release by another is none");
    assert_eq!(one.write(0, 1), CONFLICT);
    drop(two);
    until("its session is over", || one.ready() == GOOD);
    let mut two = Initiator::new(&at_b, "two");
    assert_eq!(one.run(&[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, &[]), GOOD);
    assert_eq!(two.ready(), CONFLICT);
    assert_eq!(two.manage(LUN_RESET), 0);
    assert_eq!(one.ready(), Ended::Check(6, 0x2903), "at the other SP too");
    assert_eq!(two.ready(), Ended::Check(6, 0x2903));
    assert_eq!((one.ready(), two.ready()), (GOOD, GOOD));
    a.stop();
    b.stop();
}

#[test]
fn preempted_and_aborted_commands_are_not_answered_and_not_carried_out() {
    let rig = rig();
    let Two { a, b, at_a, at_b, tree } = two(&rig);
    let (mut one, mut two) = (Initiator::new(&at_a, "one"), Initiator::new(&at_b, "two"));
    assert_eq!(one.out(REGISTER, 0, 0, 1), GOOD);
    assert_eq!(two.out(REGISTER, 0, 0, 2), GOOD);
    assert_eq!(two.out(RESERVE, REGISTRANTS, 2, 0), GOOD);
    assert_eq!(two.write(0, 2), GOOD);
    // It waits for a tree.
    a.fence("a", 2);
    b.fence("b", 2);
    two.begin(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], 0, &[9; 512]);
    until("it is refused", || b.metrics()["volumes"][0]["inflight"] == 1);
    one.begin(&[0x5f, PREEMPT_AND_ABORT, WRITES, 0, 0, 0, 0, 0, 24, 0], 0, &{
        let mut data = [0; 24];
        (data[7], data[15]) = (1, 2);
        data
    });
    a.activate(&next(&tree));
    b.activate(&next(&tree));
    let (_, ended) = one.next().expect("an answer");
    assert_eq!(ended, GOOD);
    let task = two.begin(&[0; 6], 0, &[]);
    let (answered, ended) = two.next().expect("an answer");
    if answered != task {
        // It was begun anew before the preemption.
        assert_eq!(two.next(), Some((task, Ended::Check(6, 0x2a05))));
    } else {
        assert_eq!(ended, Ended::Check(6, 0x2a05));
    }
    assert_eq!(two.write(0, 3), CONFLICT);
    assert_eq!(one.keys(), [1]);
    a.stop();
    b.stop();
}

#[test]
fn an_initiator_is_asked_to_log_out_before_its_volume_leaves() {
    let rig = rig();
    let Two { a, b, at_b, .. } = two(&rig);
    let mut two = Initiator::new(&at_b, "two");
    let leaving = thread::spawn(move || {
        b.engine.t2_remove("v-1", 10.0).expect("it leaves");
        b
    });
    assert_eq!(two.next(), Some((u32::MAX, Ended::Check(0xff, 1))), "a request to log out");
    assert_eq!(two.ready(), Ended::Status(0x08), "and nothing else is done");
    assert_eq!(two.next(), None);
    leaving.join().expect("it has left").stop();
    a.stop();
}
