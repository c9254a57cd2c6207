//! Legs that keep hosts waiting, and legs that can't read what they hold.

mod rig;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use rig::gate::Gate;
use rig::*;
use serde_json::json;

const SIZE: u64 = 16 * MIB;

fn quick() -> Rig {
    let more = json!({"leg_deadline_seconds": 0.3, "map_clear_seconds": 0.3});
    Rig { more, ..Rig::new() }
}

fn pair(version: u64, states: [&str; 2], owner: &Sp, other: &Sp) -> Tree {
    let root = legs_of(&[(states[0], leaf("a", SIZE)), (states[1], leaf("b", SIZE))]);
    Tree::new(version, SIZE, root, &[("a", owner), ("b", other)])
}

/// "b" at `sp`, on a device that can be held up.
fn gated(sp: &Sp) -> Arc<Gate> {
    let gate = Gate::start((DATA + SIZE) as usize);
    sp.engine.device_add(&gate.uri(), 0, "d-gate", How::default()).expect("a device");
    sp.put("b", SIZE, &[("d-gate", DATA, SIZE)], 1);
    gate
}

fn failing(sp: &Sp) -> Vec<String> {
    let all = parse(&sp.engine.trouble().expect("trouble"));
    let all = all["failing"].as_array().expect("a list").iter();
    all.map(|t1| t1.as_str().expect("an id").to_owned()).collect()
}

/// A write that "b" does not answer; the volume goes on without "b".
fn goes_on_without(owner: &Sp, other: &Sp, gate: &Gate) {
    owner.activate(&pair(1, ["in_sync", "in_sync"], owner, other));
    let mut host = owner.host();
    host.write(0, &pattern(1, 0, 8192)).expect("a write");
    assert!(failing(owner).is_empty());
    gate.hold();
    let address = owner.nbd.clone();
    let stuck = thread::spawn(move || {
        let mut host = Nbd::connect(&address, "vol");
        host.write(MIB, &pattern(2, 0, 8192)).expect("a write that waits");
        host.flush().expect("a flush");
        host.read(MIB, 8192).expect("a read")
    });
    until("the leg to be named", || failing(owner) == ["b"]);
    assert!(!stuck.is_finished(), "acknowledged by one leg alone");
    owner.fence("a", 2);
    owner.activate(&pair(2, ["in_sync", "away"], owner, other));
    assert_eq!(stuck.join().expect("a host"), pattern(2, 0, 8192));
    assert!(failing(owner).is_empty());
    // What the leg was told before lands late, and changes nothing that is read.
    host.write(MIB, &pattern(3, 0, 8192)).expect("a write over it");
    gate.open();
    until("the leg to answer", || gate.waiting.load(Ordering::SeqCst) == 0);
    assert_eq!(host.read(MIB, 8192).expect("a read"), pattern(3, 0, 8192));
    // And it comes back with what it missed.
    owner.fence("a", 3);
    other.fence("b", 3);
    owner.activate(&pair(3, ["in_sync", "write_only"], owner, other));
    owner.engine.copy_start("v-1", vec![1], 0, 0, false, "delta").expect("a copy");
    until("the copy", || owner.copy_state() == "done");
    assert_eq!(gate.bytes(DATA + MIB, 8192), pattern(3, 0, 8192));
}

#[test]
fn a_leg_that_does_not_answer_is_named_and_the_volume_goes_on_without_it() {
    let rig = quick();
    let a = rig.sp("sp-a");
    a.leaf("a", SIZE);
    let gate = gated(&a);
    goes_on_without(&a, &a, &gate);
    a.stop();
}

#[test]
fn a_leg_elsewhere_that_does_not_answer_is_named_too() {
    let rig = quick();
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    a.leaf("a", SIZE);
    let gate = gated(&b);
    goes_on_without(&a, &b, &gate);
    a.stop();
    b.stop();
}

#[test]
fn a_leg_whose_volume_needs_it_is_waited_for() {
    let rig = quick();
    let a = rig.sp("sp-a");
    a.leaf("a", SIZE);
    let gate = gated(&a);
    a.activate(&pair(1, ["away", "in_sync"], &a, &a));
    gate.hold();
    let address = a.nbd.clone();
    let stuck = thread::spawn(move || {
        let mut host = Nbd::connect(&address, "vol");
        host.write(0, &pattern(1, 0, 4096)).expect("a write");
    });
    until("the write to be held", || gate.waiting.load(Ordering::SeqCst) > 0);
    thread::sleep(std::time::Duration::from_millis(700));
    assert!(failing(&a).is_empty());
    gate.open();
    stuck.join().expect("a host");
    a.stop();
}

fn healed(sp: &Sp) -> u64 {
    sp.metrics()["volumes"][0]["healed_bytes"].as_u64().expect("a number")
}

/// Bytes that "b" can't read come from "a", and are written to "b" again.
fn heals(owner: &Sp, other: &Sp, gate: &Gate) {
    let legs = [("in_sync", leaf("a", SIZE)), ("in_sync", leaf("b", SIZE))];
    let tree = Tree::new(1, SIZE, legs_of(&legs), &[("a", other), ("b", other)]);
    owner.activate(&tree.owned_by(owner));
    let mut host = owner.host();
    let data = pattern(4, 0, MIB as usize);
    host.write(0, &data).expect("a write");
    gate.rot(DATA + 12288, 4096);
    // Reads are spread over the legs.
    until("the leg to be healed", || {
        assert_eq!(host.read(12800, 512).expect("a read"), data[12800..13312]);
        !gate.is_rotten()
    });
    until("that to be counted", || healed(owner) == 4096);
    assert_eq!(gate.bytes(DATA, MIB), data);
    assert!(failing(owner).is_empty());
}

#[test]
fn what_a_leg_cannot_read_is_read_from_another_and_written_to_it_again() {
    let rig = quick();
    let a = rig.sp("sp-a");
    a.leaf("a", SIZE);
    let gate = gated(&a);
    heals(&a, &a, &gate);
    a.stop();
}

#[test]
fn a_leg_elsewhere_is_healed_too() {
    let rig = quick();
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    b.leaf("a", SIZE);
    let gate = gated(&b);
    // Both legs are remote, or all reads would go to the local one.
    heals(&a, &b, &gate);
    a.stop();
    b.stop();
}
