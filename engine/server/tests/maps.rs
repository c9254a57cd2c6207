//! The write-intent map: what a resync copies, what a leg that was away gets, what is cleared.
//! And the lease, without which an owner reads nothing.

mod rig;

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rig::*;
use serde_json::{Value, json};

const SIZE: u64 = 64 * MIB;

/// Rounds and leases that a test can wait for.
fn quick() -> Rig {
    Rig { more: json!({"map_clear_seconds": 0.3, "lease_seconds": 0.2}), ..Rig::new() }
}

fn pair(version: u64, states: [&str; 2], a: &Sp, b: &Sp) -> Tree {
    let root = legs_of(&[(states[0], leaf("a", SIZE)), (states[1], leaf("b", SIZE))]);
    Tree::new(version, SIZE, root, &[("a", a), ("b", b)])
}

/// A mirror of "a" at sp-a, which owns it, and "b" at sp-b, written from end to end.
fn mirrored(rig: &Rig) -> (Sp, Sp) {
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    a.leaf("a", SIZE);
    b.leaf("b", SIZE);
    a.activate(&pair(1, ["in_sync", "in_sync"], &a, &b));
    let mut host = a.host();
    for at in (0..SIZE).step_by(4 << 20) {
        host.write(at, &pattern(1, at, 4 << 20)).expect("write");
    }
    (a, b)
}

fn fence(a: &Sp, b: &Sp, epoch: u64) {
    a.fence("a", epoch);
    b.fence("b", epoch);
}

#[test]
fn a_region_is_in_the_map_before_it_is_written_and_leaves_it_when_all_legs_are_flushed() {
    let rig = quick();
    let (a, b) = mirrored(&rig);
    until("the maps to be cleared", || a.dirty() + b.dirty() == 0);
    let mut host = a.host();
    host.write(10 * MIB + 4096, &pattern(2, 0, 4096)).expect("write");
    assert_eq!((a.dirty(), b.dirty()), (MIB, MIB));
    // What is written all the time stays.
    let stop = Arc::new(AtomicBool::new(false));
    let (address, over) = (a.nbd.clone(), Arc::clone(&stop));
    let writer = thread::spawn(move || {
        let mut host = Nbd::connect(&address, "vol");
        while !over.load(Ordering::SeqCst) {
            host.write(30 * MIB, &pattern(3, 0, 4096)).expect("write");
        }
    });
    until("the idle one to be cleared", || a.dirty() == MIB && b.dirty() == MIB);
    stop.store(true, Ordering::SeqCst);
    writer.join().expect("a writer");
    until("the other to follow", || a.dirty() + b.dirty() == 0);
    a.stop();
    b.stop();
}

#[test]
fn a_leg_that_was_away_gets_what_it_missed_and_no_more() {
    let rig = quick();
    let (a, b) = mirrored(&rig);
    until("the maps to be cleared", || a.dirty() + b.dirty() == 0);
    a.fence("a", 2);
    a.activate(&pair(2, ["in_sync", "away"], &a, &b));
    let mut host = a.host();
    for at in [0, 5 * MIB, 20 * MIB - 2048] {
        host.write(at, &pattern(7, at, 4096)).expect("write");
    }
    host.flush().expect("flush");
    // Not cleared, however long it is away.
    thread::sleep(std::time::Duration::from_millis(900));
    assert_eq!(a.dirty(), 4 * MIB);
    assert!(on_device(&rig, "a", SIZE) != on_device(&rig, "b", SIZE));
    fence(&a, &b, 3);
    a.activate(&pair(3, ["in_sync", "write_only"], &a, &b));
    a.engine.copy_start("v-1", vec![1], 0, 0, false, "delta").expect("a copy");
    host.write(40 * MIB, &pattern(8, 0, 4096)).expect("a write meanwhile");
    until("the copy", || a.copy_state() == "done");
    let moved = a.moved();
    assert!((4 * MIB..=5 * MIB).contains(&moved), "{moved}");
    fence(&a, &b, 4);
    a.activate(&pair(4, ["in_sync", "in_sync"], &a, &b));
    until("the maps to be cleared", || a.dirty() + b.dirty() == 0);
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

#[test]
fn a_resync_copies_the_dirty_regions_and_reads_do_not_flicker() {
    let rig = quick();
    let (a, b) = mirrored(&rig);
    until("the maps to be cleared", || a.dirty() + b.dirty() == 0);
    // As an owner that ends in the middle leaves it: written to one leg, in the map.
    a.fence("a", 2);
    a.activate(&pair(2, ["in_sync", "away"], &a, &b));
    let mut host = a.host();
    for at in [3 * MIB, 50 * MIB] {
        host.write(at, &pattern(9, at, 4096)).expect("write");
    }
    fence(&a, &b, 3);
    a.try_activate(&pair(3, ["in_sync", "in_sync"], &a, &b), true).expect("activation");
    until("the resync", || {
        let got = host.read(50 * MIB, 4096).expect("read");
        assert!(got == pattern(9, 50 * MIB, 4096), "read from the other leg");
        a.resync_percent() == 100
    });
    assert_eq!(a.moved(), 2 * MIB);
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

#[test]
fn what_is_read_during_a_resync_is_on_all_legs_by_then() {
    let rig = quick();
    let (a, b) = mirrored(&rig);
    a.host().trim(60 * MIB, 2 * MIB).expect("a trim");
    a.fence("a", 2);
    a.activate(&pair(2, ["in_sync", "away"], &a, &b));
    let mut host = a.host();
    for at in (0..SIZE).step_by(1 << 20).filter(|at| *at != 61 * MIB) {
        host.write(at, &pattern(9, at, 4096)).expect("write");
    }
    fence(&a, &b, 3);
    a.try_activate(&pair(3, ["in_sync", "in_sync"], &a, &b), true).expect("activation");
    // Were this SP lost now, the other leg alone would be read.
    for at in (0..SIZE / MIB).rev().map(|region| region * MIB) {
        let got = host.read(at, 4096).expect("read");
        let expected = if at == 61 * MIB { vec![0; 4096] } else { pattern(9, at, 4096) };
        assert!(got == expected, "read from the other leg");
        let other = std::fs::File::open(rig.file("d-b")).expect("the device");
        let mut held = vec![0; 4096];
        other.read_exact_at(&mut held, DATA + at).expect("the leg");
        assert!(held == got, "at {at} one leg alone has what was read");
    }
    until("the resync", || a.resync_percent() == 100);
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

#[test]
fn an_owner_that_is_none_any_more_reads_nothing() {
    let rig = quick();
    let (a, b) = mirrored(&rig);
    let mut host = a.host();
    host.read(0, 4096).expect("an owner's read");
    // The other home knows of a later epoch; this owner's own leg was not reached.
    b.fence("b", 2);
    thread::sleep(std::time::Duration::from_millis(250));
    let address = a.nbd.clone();
    let read = thread::spawn(move || Nbd::connect(&address, "vol").read(0, 4096));
    thread::sleep(std::time::Duration::from_millis(300));
    assert!(!read.is_finished(), "a deposed owner has answered");
    a.fence("a", 2);
    a.activate(&pair(2, ["in_sync", "in_sync"], &a, &b));
    read.join().expect("a host").expect("the read, by the next tree");
    a.stop();
    b.stop();
}

#[test]
fn a_write_that_nobody_asks_for_again_leaves_no_leg_behind() {
    let rig = quick();
    let (a, b) = mirrored(&rig);
    until("the maps to be cleared", || a.dirty() + b.dirty() == 0);
    // It reaches the leg at sp-a, and is refused by the other; then its host goes away.
    b.fence("b", 2);
    let mut host = a.host();
    host.send(1, 0, 9 * MIB, 4096, &pattern(5, 9 * MIB, 4096));
    until("the write", || a.metrics()["volumes"][0]["inflight"] == 1);
    until("one leg to have it", || {
        on_device(&rig, "a", SIZE)[(9 * MIB) as usize..][..4096] == pattern(5, 9 * MIB, 4096)
    });
    drop(host);
    until("it to be dropped", || a.metrics()["volumes"][0]["inflight"] == 0);
    a.fence("a", 2);
    a.activate(&pair(2, ["in_sync", "in_sync"], &a, &b));
    until("a resync", || a.moved() == MIB);
    until("the maps to be cleared", || a.dirty() + b.dirty() == 0);
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

#[test]
fn what_a_dropped_write_has_left_is_made_alike_by_reads_and_is_no_difference() {
    // No resync comes to help.
    let rig = Rig { more: json!({"map_clear_seconds": 600}), ..Rig::new() };
    let (a, b) = mirrored(&rig);
    b.fence("b", 2);
    let old = [pattern(1, 9 * MIB, 4096), pattern(1, 11 * MIB, 4096)];
    let new = [pattern(5, 9 * MIB, 4096), pattern(5, 11 * MIB, 4096)];
    let mut host = a.host();
    host.send(1, 0, 9 * MIB, 4096, &new[0]);
    host.send(1, 0, 11 * MIB, 4096, &new[1]);
    until("the writes", || a.metrics()["volumes"][0]["inflight"] == 2);
    let holds = |leg: &str, at: u64| on_device(&rig, leg, SIZE)[at as usize..][..4096].to_vec();
    until("one leg to have them", || {
        holds("a", 9 * MIB) == new[0] && holds("a", 11 * MIB) == new[1]
    });
    drop(host);
    until("them to be dropped", || a.metrics()["volumes"][0]["inflight"] == 0);
    a.fence("a", 2);
    a.activate(&pair(2, ["in_sync", "in_sync"], &a, &b));
    assert_eq!(holds("b", 9 * MIB), old[0]);
    let read = a.host().read(9 * MIB, 4096).expect("a read");
    assert!(read == holds("a", 9 * MIB) && read == holds("b", 9 * MIB));
    assert_eq!(holds("b", 11 * MIB), old[1]);
    a.engine.copy_start("v-1", vec![], 0, 0, false, "compare").expect("a comparison");
    until("the comparison", || a.copy_state() == "done");
    assert_eq!(a.copies()[0]["differing_bytes"], 0);
    assert_eq!(holds("a", 11 * MIB), holds("b", 11 * MIB));
    a.stop();
    b.stop();
}

#[test]
fn a_write_goes_on_to_a_leg_that_was_gone_for_a_while() {
    let more = json!({"forward_seconds": 0.2});
    let rig = Rig { more, ..Rig::new() };
    let (a, b) = mirrored(&rig);
    b.engine.shutdown(0.0);
    let mut host = a.host();
    host.send(1, 0, 9 * MIB, 4096, &pattern(5, 9 * MIB, 4096));
    until("the write", || a.metrics()["volumes"][0]["inflight"] == 1);
    thread::sleep(std::time::Duration::from_millis(500));
    drop(host);
    let back = rig.sp_at("sp-b", &b.peer);
    back.device("d-b", SIZE);
    until("it to end", || a.metrics()["volumes"][0]["inflight"] == 0);
    a.stop();
    back.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

fn doubtful(sp: &Sp) -> Value {
    parse(&sp.engine.trouble().expect("trouble"))["doubtful"].clone()
}

#[test]
fn after_a_loss_of_power_a_leg_serves_nobody_before_it_is_fenced_anew() {
    let mut rig = quick();
    let (a, b) = mirrored(&rig);
    until("the maps to be cleared", || a.dirty() + b.dirty() == 0);
    b.engine.shutdown(0.0);
    rig.more["rebooted"] = true.into();
    let back = rig.sp_at("sp-b", &b.peer);
    back.device("d-b", SIZE);
    assert_eq!(doubtful(&back), json!({}), "all of it was flushed");
    let mut host = a.host();
    host.write(5 * MIB, &pattern(2, 0, 4096)).expect("a write");
    back.engine.shutdown(0.0);
    let back = rig.sp_at("sp-b", &b.peer);
    back.device("d-b", SIZE);
    assert_eq!(doubtful(&back), json!({"b": 1}));
    let address = a.nbd.clone();
    let write = thread::spawn(move || {
        Nbd::connect(&address, "vol").write(5 * MIB, &pattern(3, 0, 4096)).expect("a write")
    });
    until("it to be refused", || back.metrics()["fencing_rejections"].as_u64() > Some(0));
    assert!(!write.is_finished(), "a leg that may lack writes has served");
    back.fence("b", 1);
    assert_eq!(doubtful(&back), json!({"b": 1}), "nobody has decided anything");
    fence(&a, &back, 2);
    assert_eq!(doubtful(&back), json!({}));
    a.activate(&pair(2, ["in_sync", "in_sync"], &a, &back));
    write.join().expect("a host");
    a.stop();
    back.stop();
}
