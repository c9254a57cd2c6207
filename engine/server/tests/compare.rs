//! Legs held against each other under load: no false difference, every true one, and repair.

mod rig;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rig::gate::Gate;
use rig::*;
use serde_json::{Value, json};

const SIZE: u64 = 16 * MIB;

fn mirrored(rig: &Rig, legs: &[&str]) -> Sp {
    let a = rig.sp("sp-a");
    for leg in legs {
        a.leaf(leg, SIZE);
    }
    let root: Vec<(&str, Value)> = legs.iter().map(|leg| ("in_sync", leaf(leg, SIZE))).collect();
    let homes: Vec<(&str, &Sp)> = legs.iter().map(|leg| (*leg, &a)).collect();
    a.activate(&Tree::new(1, SIZE, legs_of(&root), &homes));
    a
}

/// What is on the leg's device changes behind the product's back.
fn rot(rig: &Rig, leg: &str, offset: u64, data: &[u8]) {
    let file = File::options().write(true).open(rig.file(&format!("d-{leg}"))).expect("a device");
    file.write_all_at(data, DATA + offset).expect("a write");
}

/// Compares; gives what was found.
fn verified(sp: &Sp, mode: &str) -> Value {
    sp.engine.copy_stop("v-1", &[]).expect("a stop");
    sp.engine.copy_start("v-1", Vec::new(), 0, 0, false, mode).expect("a comparison");
    until("the comparison", || sp.copy_state() == "done");
    sp.copies()[0].clone()
}

#[test]
fn what_differs_is_found_and_repaired_and_nothing_else() {
    // Pages that are kept resident would hide what happens on the device.
    let rig = Rig { more: json!({"resident_percent": 0}), ..Rig::new() };
    let a = mirrored(&rig, &["a", "b"]);
    let mut host = a.host();
    let data = pattern(1, 0, SIZE as usize);
    for at in (0..SIZE).step_by(4 << 20) {
        host.write(at, &data[at as usize..(at + (4 << 20)) as usize]).expect("a write");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (address, over) = (a.nbd.clone(), Arc::clone(&stop));
    let writer = thread::spawn(move || {
        let mut host = Nbd::connect(&address, "vol");
        let mut round = 0;
        while !over.load(Ordering::SeqCst) {
            round += 1;
            host.write(8 * MIB + round % 64 * 8192, &pattern(round, 0, 8192)).expect("a write");
        }
    });
    for _ in 0..5 {
        assert_eq!(verified(&a, "compare")["differing_bytes"], 0, "a false difference");
    }
    rot(&rig, "b", 3 * MIB + 100, b"rotten");
    rot(&rig, "b", 5 * MIB - 4096, &[9; 8192]);
    let found = verified(&a, "compare");
    assert_eq!(found["differing_bytes"], 3 * 4096, "{found}");
    let ranges = found["differing"].as_array().expect("ranges");
    let mut told: Vec<(u64, u64)> = ranges
        .iter()
        .map(|r| (r["offset"].as_u64().expect("a"), r["length"].as_u64().expect("b")))
        .collect();
    told.sort_unstable();
    // Regions end in any order.
    let whole = (5 * MIB - 4096, 8192);
    assert!(told[0] == (3 * MIB, 4096) && (told[1] == whole || told[2] == (5 * MIB, 4096)));
    assert_eq!(verified(&a, "repair")["differing_bytes"], 3 * 4096);
    assert_eq!(verified(&a, "compare")["differing_bytes"], 0);
    stop.store(true, Ordering::SeqCst);
    writer.join().expect("a writer");
    assert_eq!(host.read(3 * MIB, 8192).expect("a read"), data[3 << 20..(3 << 20) + 8192]);
    a.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

#[test]
fn of_three_legs_two_are_right() {
    let rig = Rig { more: json!({"resident_percent": 0}), ..Rig::new() };
    let a = mirrored(&rig, &["a", "b", "c"]);
    let data = pattern(1, 0, 8192);
    a.host().write(MIB, &data).expect("a write");
    rot(&rig, "a", MIB, &[7; 4096]);
    assert_eq!(verified(&a, "repair")["differing_bytes"], 4096);
    assert_eq!(a.host().read(MIB, 8192).expect("a read"), data);
    a.stop();
}

#[test]
fn a_leg_that_cannot_be_read_is_told_and_repaired() {
    let rig = Rig::new();
    let a = rig.sp("sp-a");
    a.leaf("a", SIZE);
    let gate = Gate::start((DATA + SIZE) as usize);
    a.engine.device_add(&gate.uri(), 0, "d-gate", How::default()).expect("a device");
    a.put("b", SIZE, &[("d-gate", DATA, SIZE)], 1);
    let legs = legs_of(&[("in_sync", leaf("a", SIZE)), ("in_sync", leaf("b", SIZE))]);
    a.activate(&Tree::new(1, SIZE, legs, &[("a", &a), ("b", &a)]));
    gate.rot(DATA + 2 * MIB + 4096, 4096);
    assert_eq!(verified(&a, "compare")["differing_bytes"], 4096);
    assert_eq!(verified(&a, "repair")["differing_bytes"], 4096);
    assert!(!gate.is_rotten());
    assert_eq!(verified(&a, "compare")["differing_bytes"], 0);
    let refused = a.engine.copy_start("v-1", vec![1], 0, 0, false, "compare");
    assert_eq!(refused.expect_err("a path").kind, "precondition");
    a.stop();
}
