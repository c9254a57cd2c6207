//! What reads give while a write to the same range is under way.

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rig::gate::Gate;
use rig::*;

const SIZE: u64 = 8 * MIB;

fn inflight(sp: &Sp) -> u64 {
    sp.metrics()["volumes"][0]["inflight"].as_u64().expect("a number")
}

/// A write that one of two legs does not answer: nobody reads it before both have it, and then
/// everybody does.
fn waits(owner: &Sp, other: &Sp, gate: &Gate) {
    let root = mirror(&[(true, leaf("a", SIZE)), (true, leaf("b", SIZE))]);
    owner.activate(&Tree::new(1, SIZE, root, &[("a", owner), ("b", other)]));
    let mut host = owner.host();
    host.write(0, &pattern(1, 0, 65_536)).expect("a write");
    gate.hold();
    let address = owner.nbd.clone();
    let writer = thread::spawn(move || {
        let mut host = Nbd::connect(&address, "vol");
        host.write(4096, &pattern(2, 0, 8192)).expect("a write over it");
    });
    until("the write to wait", || gate.waiting.load(Ordering::SeqCst) > 0);
    let answered = Arc::new(AtomicU64::new(0));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (address, answered) = (owner.nbd.clone(), Arc::clone(&answered));
            thread::spawn(move || {
                let mut host = Nbd::connect(&address, "vol");
                let found = host.read(8192, 8192).expect("a read");
                answered.fetch_add(1, Ordering::SeqCst);
                found
            })
        })
        .collect();
    let early = || answered.load(Ordering::SeqCst) > 0;
    until("the reads to wait", || early() || inflight(owner) == 5);
    assert!(!early(), "a read has seen what one leg alone has");
    gate.open();
    let mut expected = pattern(2, 4096, 4096);
    expected.extend(pattern(1, 12288, 4096));
    for reader in readers {
        assert!(reader.join().expect("a host") == expected);
    }
    writer.join().expect("a host");
}

fn gated(sp: &Sp) -> Arc<Gate> {
    let gate = Gate::start((DATA + SIZE) as usize);
    sp.engine.device_add(&gate.uri(), 0, "d-b", How::default()).expect("a device");
    sp.put("b", SIZE, &[("d-b", DATA, SIZE)], 1);
    gate
}

#[test]
fn a_read_beside_a_write_waits_for_it() {
    let rig = Rig::new();
    let a = rig.sp("sp-a");
    a.leaf("a", SIZE);
    let gate = gated(&a);
    waits(&a, &a, &gate);
    a.stop();
}

#[test]
fn a_read_beside_a_write_to_a_leg_elsewhere_waits_for_it() {
    let rig = Rig::new();
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    a.leaf("a", SIZE);
    let gate = gated(&b);
    waits(&a, &b, &gate);
    a.stop();
    b.stop();
}

#[test]
fn what_was_read_once_is_not_unread_by_a_later_read() {
    let rig = Rig::new();
    let a = rig.sp("sp-a");
    a.leaf("a", SIZE);
    a.leaf("b", SIZE);
    let root = mirror(&[(true, leaf("a", SIZE)), (true, leaf("b", SIZE))]);
    a.activate(&Tree::new(1, SIZE, root, &[("a", &a), ("b", &a)]));
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(AtomicU64::new(0));
    // Each reads with a number in mind that somebody has read before it asked.
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (address, stop, seen) = (a.nbd.clone(), Arc::clone(&stop), Arc::clone(&seen));
            thread::spawn(move || {
                let mut host = Nbd::connect(&address, "vol");
                while !stop.load(Ordering::SeqCst) {
                    let least = seen.load(Ordering::SeqCst);
                    let found = host.read(0, 4096).expect("a read");
                    let number = u64::from_le_bytes(found[..8].try_into().expect("8"));
                    assert!(number >= least, "{number} after {least}");
                    seen.fetch_max(number, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let mut host = a.host();
    for number in 1..=4000u64 {
        host.write(0, &number.to_le_bytes().repeat(512)).expect("a write");
    }
    stop.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.join().expect("a host");
    }
    a.stop();
}
