//! Volumes on devices with checksums: rot is found, healed or told; no crash is taken for rot.

mod rig;

use std::fs::File;
use std::os::unix::fs::FileExt;

use rig::*;
use serde_json::{Value, json};

const SIZE: u64 = 16 * MIB;
/// The label and the checksums, in front of all data.
const BEHIND: u64 = DATA + MIB;
const SUMS: How = How { direct: false, checksums: true };

/// Opens the device of a T1 object; it is made if it is new.
fn device(sp: &Sp, rig: &Rig, t1: &str, how: How) {
    let path = rig.file(&format!("d-{t1}"));
    let create = if path.exists() { 0 } else { BEHIND + SIZE };
    let uri = format!("file:{}", path.display());
    sp.engine.device_add(&uri, create, &format!("d-{t1}"), how).expect("a device");
}

/// A device with checksums for one T1 object, which is put at the beginning of its data.
fn summed(sp: &Sp, rig: &Rig, t1: &str, how: How) {
    device(sp, rig, t1, how);
    sp.put(t1, SIZE, &[(&format!("d-{t1}"), BEHIND, SIZE)], 1);
}

fn mirrored(rig: &Rig, legs: &[&str]) -> Sp {
    let a = rig.sp("sp-a");
    for leg in legs {
        summed(&a, rig, leg, SUMS);
    }
    activate(&a, legs);
    a
}

fn activate(sp: &Sp, legs: &[&str]) {
    let root: Vec<(&str, Value)> = legs.iter().map(|leg| ("in_sync", leaf(leg, SIZE))).collect();
    let homes: Vec<(&str, &Sp)> = legs.iter().map(|leg| (*leg, sp)).collect();
    sp.activate(&Tree::new(1, SIZE, legs_of(&root), &homes));
}

fn single(rig: &Rig, how: How) -> Sp {
    let a = rig.sp("sp-a");
    summed(&a, rig, "a", how);
    a.activate(&Tree::new(1, SIZE, leaf("a", SIZE), &[("a", &a)]));
    a
}

fn held(rig: &Rig, t1: &str) -> Vec<u8> {
    let all = std::fs::read(rig.file(&format!("d-{t1}"))).expect("the device's file");
    all[BEHIND as usize..].to_vec()
}

/// A bit of a leg turns behind the product's back.
fn rot(rig: &Rig, t1: &str, at: u64) {
    let path = rig.file(&format!("d-{t1}"));
    let file = File::options().read(true).write(true).open(path).expect("a device");
    let mut byte = [0];
    file.read_exact_at(&mut byte, BEHIND + at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1], BEHIND + at).expect("a byte");
}

/// Blocks that did not match, on all devices.
fn errors(sp: &Sp) -> u64 {
    let metrics = sp.metrics();
    let devices = metrics["devices"].as_array().expect("devices");
    devices.iter().filter_map(|device| device["checksum_errors"].as_u64()).sum()
}

fn healed(sp: &Sp) -> u64 {
    sp.metrics()["volumes"][0]["healed_bytes"].as_u64().expect("a number")
}

#[test]
fn what_rots_on_one_leg_is_healed_from_the_other() {
    let rig = Rig::new();
    let a = mirrored(&rig, &["a", "b"]);
    let mut host = a.host();
    let data = pattern(1, 0, SIZE as usize);
    for at in (0..SIZE).step_by(1 << 20) {
        host.write(at, &data[at as usize..(at + MIB) as usize]).expect("a write");
    }
    for (leg, at, length) in
        [("a", 5 * 4096 + 7, 4096), ("b", 3 * MIB, 100), ("a", 9 * MIB, 200_000)]
    {
        let before = healed(&a);
        rot(&rig, leg, at);
        // Legs take turns.
        until("the repair", || {
            let found = host.read(at / 4096 * 4096, length).expect("a read");
            assert!(found == data[(at / 4096 * 4096) as usize..][..length]);
            healed(&a) > before
        });
        assert!(held(&rig, leg) == data, "the leg is as it was");
    }
    assert!(errors(&a) >= 3);
    a.stop();
    assert!(held(&rig, "a") == data && held(&rig, "b") == data);
}

#[test]
fn what_rots_where_no_other_copy_is_is_an_error_and_can_be_written_anew() {
    for how in [SUMS, How { direct: true, checksums: true }] {
        let rig = Rig::new();
        let a = single(&rig, how);
        let mut host = a.host();
        host.write(0, &pattern(1, 0, 65_536)).expect("a write");
        host.flush().expect("a flush");
        rot(&rig, "a", 4096 + 5);
        assert_eq!(errors(&a), 0);
        assert!(host.read(4096, 4096).is_err());
        assert!(host.read(5000, 10).is_err());
        assert!(host.read(0, 65_536).is_err());
        assert_eq!(host.read(8192, 4096).expect("its neighbour"), pattern(1, 8192, 4096));
        assert!(host.write(4096, b"a part of it").is_err(), "the rest is not blessed");
        assert!(host.read(4096, 4096).is_err());
        assert_eq!(errors(&a), 5);
        host.write(4096, &pattern(2, 4096, 4096)).expect("all of it");
        assert_eq!(host.read(4096, 4096).expect("a read"), pattern(2, 4096, 4096));
        a.stop();
    }
}

#[test]
fn a_volume_with_checksums_does_all_that_others_do() {
    for direct in [false, true] {
        let rig = Rig { more: json!({"map_clear_seconds": 0.05}), ..Rig::new() };
        let a = single(&rig, How { direct, checksums: true });
        let mut host = Nbd::structured(&a.nbd, "vol");
        let mut flat = vec![0; 3 << 20];
        let put = |flat: &mut Vec<u8>, at: u64, data: &[u8]| {
            flat[at as usize..at as usize + data.len()].copy_from_slice(data);
        };
        for (salt, at, length) in [(1, 0, 4096), (2, 1, 3), (3, 511, 100_000), (4, 65_000, 1 << 20)]
        {
            let data = pattern(salt, at, length);
            host.write(at, &data).expect("write");
            put(&mut flat, at, &data);
            // Pages are closed, and opened again by the next.
            until("the pages to close", || open_pages(&rig, "a") == 0);
        }
        let data = pattern(5, 2 << 20, 70_001);
        host.write_fua(2 << 20, &data).expect("FUA");
        put(&mut flat, 2 << 20, &data);
        host.trim(5000, 20_000).expect("trim");
        host.zero(0, 200_001, 33_333).expect("zeroes");
        flat[5000..25_000].fill(0);
        flat[200_001..233_334].fill(0);
        host.flush().expect("flush");
        assert!(host.read(0, 3 << 20).expect("read") == flat);
        assert!(host.read(4097, 70_000).expect("read") == flat[4097..74_097]);
        let (runs, _) = host.status(0, 0, SIZE).expect("status");
        assert_eq!(runs.iter().map(|run| u64::from(run.0)).sum::<u64>(), SIZE);
        let devices = parse(&a.engine.devices().expect("devices"));
        assert_eq!((&devices[0]["checksums"], &devices[0]["free"]), (&true.into(), &json!([])));
        a.stop();
        assert!(held(&rig, "a")[..3 << 20] == flat, "and it is in the file");
        assert_eq!(open_pages(&rig, "a"), 0, "a clean end leaves nothing open");
        let a = single(&rig, How { direct, checksums: false });
        assert!(a.host().read(0, 3 << 20).expect("read") == flat);
        rot(&rig, "a", 2 << 20);
        assert!(a.host().read(2 << 20, 4096).is_err(), "what the label says is so");
        a.stop();
    }
}

/// Pages on the device that are open.
fn open_pages(rig: &Rig, t1: &str) -> usize {
    let all = std::fs::read(rig.file(&format!("d-{t1}"))).expect("the device's file");
    let pages = all[DATA as usize..BEHIND as usize].chunks(4096);
    pages.filter(|page| page.starts_with(b"VSSUMS01") && page[12] == 2).count()
}

#[test]
fn a_process_that_was_killed_leaves_nothing_that_is_taken_for_rot() {
    for how in [SUMS, How { direct: true, checksums: true }] {
        let rig = Rig { more: json!({"map_clear_seconds": 600}), ..Rig::new() };
        let a = single(&rig, how);
        let old = pattern(1, 0, 4 << 20);
        a.host().write(0, &old).expect("a write");
        a.stop();
        let a = single(&rig, how);
        let mut host = a.host();
        assert!(host.read(0, 4 << 20).expect("a read") == old);
        for at in [0, 4096 * 3 + 100, MIB + 8192] {
            host.write(at, &pattern(2, at, 5000)).expect("a write");
        }
        let now = host.read(0, 4 << 20).expect("a read");
        // What kill(2) would leave: what is in the page cache, and nothing that is in memory.
        let left = std::fs::read(rig.file("d-a")).expect("the device");
        a.stop();
        std::fs::write(rig.file("d-a"), left).expect("the device");
        rot(&rig, "a", 3 * MIB);
        let a = single(&rig, how);
        let mut host = a.host();
        assert!(host.read(0, 3 << 20).expect("no rot") == now[..3 << 20]);
        assert!(host.read(3 * MIB, 4096).is_err(), "where nothing was written rot is rot");
        assert_eq!(errors(&a), 1);
        // What has been read once is known again.
        rot(&rig, "a", 4096);
        assert!(host.read(4096, 4096).is_err());
        a.stop();
    }
}

#[test]
fn the_leg_that_has_rotted_is_repaired_though_it_is_the_first() {
    let rig = Rig::new();
    let a = mirrored(&rig, &["a", "b"]);
    let data = pattern(1, 0, 4 << 20);
    a.host().write(0, &data).expect("a write");
    rot(&rig, "a", 2 * MIB + 5000);
    let verified = |mode: &str| {
        a.engine.copy_stop("v-1", &[]).expect("a stop");
        a.engine.copy_start("v-1", Vec::new(), 0, 0, false, mode).expect("a comparison");
        until("the comparison", || a.copy_state() == "done");
        a.copies()[0].clone()
    };
    let found = verified("compare");
    assert_eq!(found["differing_bytes"], 4096, "{found}");
    assert_eq!(found["differing"][0]["offset"], 2 * MIB + 4096, "{found}");
    // In the same region the other leg has rotted elsewhere: each has what the other lacks.
    rot(&rig, "b", 2 * MIB + 50_000);
    assert_eq!(verified("repair")["differing_bytes"], 2 * 4096);
    assert_eq!(verified("compare")["differing_bytes"], 0);
    assert!(a.host().read(0, 4 << 20).expect("a read") == data);
    a.stop();
    assert!(held(&rig, "a")[..4 << 20] == data && held(&rig, "b")[..4 << 20] == data);
}

#[test]
fn checksums_go_with_an_object_to_another_sp_that_shares_the_device() {
    let rig = Rig { more: json!({"map_clear_seconds": 600}), ..Rig::new() };
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    summed(&a, &rig, "a", SUMS);
    device(&b, &rig, "a", How::default());
    let tree = |version, sp: &Sp| Tree::new(version, SIZE, leaf("a", SIZE), &[("a", sp)]);
    a.activate(&tree(1, &a));
    let data = pattern(1, 0, 2 << 20);
    a.host().write(0, &data).expect("a write");
    assert_ne!(open_pages(&rig, "a"), 0);
    a.engine.t2_remove("v-1", 10.0).expect("a removal");
    a.fence("a", 2);
    assert_eq!(open_pages(&rig, "a"), 0, "the fence has closed them");
    rot(&rig, "a", 8192);
    let extents = [("d-a", BEHIND, SIZE)];
    b.engine.t1_adopt(&b.t1("a", SIZE, &extents), 2).expect("an adoption");
    b.activate(&tree(2, &b));
    let mut host = b.host();
    assert!(host.read(8192, 4096).is_err(), "it has come with its checksums");
    assert!(host.read(MIB, 1 << 20).expect("a read") == data[1 << 20..]);
    host.write(8192, &pattern(2, 8192, 65_536)).expect("a write");
    // What the old home has in memory, or writes at its end, is of no account.
    a.engine.t1_delete("a", 2).expect("a deletion");
    a.stop();
    assert_eq!(host.read(8192, 65_536).expect("a read"), pattern(2, 8192, 65_536));
    b.stop();
    // And back, to a process that begins.
    let b = rig.sp("sp-b");
    device(&b, &rig, "a", How::default());
    b.activate(&tree(2, &b));
    assert_eq!(b.host().read(8192, 65_536).expect("a read"), pattern(2, 8192, 65_536));
    b.stop();
}

#[test]
fn extents_that_are_used_again_know_nothing_of_what_was_there() {
    let rig = Rig::new();
    let a = single(&rig, SUMS);
    a.host().write(0, &pattern(1, 0, 2 << 20)).expect("a write");
    a.engine.t2_remove("v-1", 10.0).expect("a removal");
    a.engine.t1_delete("a", 9).expect("a deletion");
    a.put("a", SIZE, &[("d-a", BEHIND, SIZE)], 1);
    a.activate(&Tree::new(2, SIZE, leaf("a", SIZE), &[("a", &a)]));
    assert!(a.host().read(0, 4 << 20).expect("a read") == vec![0; 4 << 20]);
    a.stop();
    let a = single(&rig, SUMS);
    assert!(a.host().read(0, 4 << 20).expect("a read") == vec![0; 4 << 20]);
    a.stop();
}

#[test]
fn what_the_label_says_is_not_contradicted() {
    let rig = Rig::new();
    let a = rig.sp("sp-a");
    device(&a, &rig, "plain", How::default());
    let uri = format!("file:{}", rig.file("d-plain").display());
    let refused = |sp: &Sp| sp.engine.device_add(&uri, 0, "", SUMS).expect_err("it has none");
    assert_eq!(refused(&a).kind, "unlike");
    let b = rig.sp("sp-b");
    let of_b = refused(&b);
    assert!(of_b.kind == "unlike" && of_b.message.contains("without checksums"), "{of_b}");
    device(&a, &rig, "summed", SUMS);
    device(&b, &rig, "summed", How::default());
    let over = b.engine.device_add("nbd://127.0.0.1:1/x", 0, "d", SUMS).expect_err("over NBD");
    assert!(over.kind == "invalid" && over.message.contains("--checksums"), "{over}");
    let uri = format!("file:{}", rig.file("d-small").display());
    let small = b.engine.device_add(&uri, 5 * MIB, "d", SUMS).expect_err("no room");
    assert!(small.message.contains("6 MiB"), "{small}");
    a.stop();
    b.stop();
}
