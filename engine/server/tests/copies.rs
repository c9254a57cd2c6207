//! Copies onto write-only legs and resyncs, while hosts write.

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rig::*;

const SIZE: u64 = 64 * MIB;

/// One leaf "a" at sp-a, written from end to end.
fn filled(rig: &Rig, size: u64) -> Sp {
    let sp = rig.sp("sp-a");
    sp.leaf("a", size);
    sp.activate(&Tree::new(1, size, leaf("a", size), &[("a", &sp)]));
    let mut host = sp.host();
    for at in (0..size).step_by(4 << 20) {
        host.write(at, &pattern(1, at, 4 << 20)).expect("write");
    }
    sp
}

fn grown(version: u64, size: u64, a: &Sp, b: &Sp) -> Tree {
    let root = mirror(&[(true, leaf("a", size)), (false, leaf("b", size))]);
    Tree::new(version, size, root, &[("a", a), ("b", b)])
}

fn writers(address: &str, size: u64, stop: &Arc<AtomicBool>) -> Vec<thread::JoinHandle<u64>> {
    (0..2u64)
        .map(|lane| {
            let (address, stop) = (address.to_owned(), Arc::clone(stop));
            thread::spawn(move || {
                let mut host = Nbd::connect(&address, "vol");
                let mut round = lane;
                while !stop.load(Ordering::SeqCst) {
                    let at = round * 7_919_993 % (size - 50_000);
                    host.write(at, &pattern(round + 10, at, 40_000)).expect("write");
                    round += 2;
                }
                round / 2
            })
        })
        .collect()
}

#[test]
fn a_copy_under_writes_makes_the_legs_equal() {
    let rig = Rig::new();
    let a = filled(&rig, SIZE);
    let b = rig.sp("sp-b");
    b.leaf("b", SIZE);
    a.fence("a", 2);
    a.activate(&grown(2, SIZE, &a, &b));
    let stop = Arc::new(AtomicBool::new(false));
    let hosts = writers(&a.nbd, SIZE, &stop);
    a.engine.copy_start("v-1", vec![1], 0, 0, false, "full").expect("a copy");
    a.engine.copy_start("v-1", vec![1], 0, 0, false, "full").expect("the same copy");
    // A swap in its middle carries it on.
    until("it has begun", || a.copies()[0]["copied"].as_u64() > Some(0));
    a.fence("a", 3);
    b.fence("b", 3);
    a.activate(&grown(3, SIZE, &a, &b));
    until("the copy", || a.copy_state() == "done");
    assert_eq!(a.copies()[0]["copied"], SIZE);
    stop.store(true, Ordering::SeqCst);
    assert!(hosts.into_iter().map(|host| host.join().expect("a host")).sum::<u64>() > 0);
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

#[test]
fn a_long_copy_within_one_sp_lets_hosts_in() {
    let rig = Rig::new();
    let size = 256 * MIB;
    let a = filled(&rig, size);
    a.leaf("b", size);
    a.fence("a", 2);
    a.activate(&grown(2, size, &a, &a));
    let mut host = a.host();
    a.engine.copy_start("v-1", vec![1], 0, 0, false, "full").expect("a copy");
    let mut during = 0;
    until("the copy", || {
        host.write(MIB, &[7; 4096]).expect("write");
        during += u64::from(a.copy_state() == "running");
        a.copy_state() == "done"
    });
    assert!(during > 3, "only {during} writes were served while it ran");
    a.stop();
    assert!(on_device(&rig, "a", size) == on_device(&rig, "b", size));
}

#[test]
fn a_copy_that_cannot_read_all_fails_and_says_so() {
    let rig = Rig::new();
    let a = filled(&rig, SIZE);
    let b = rig.sp("sp-b");
    b.leaf("b", SIZE);
    a.fence("a", 2);
    a.activate(&grown(2, SIZE, &a, &b));
    // Blocks 6 to the end are lost; the regions in front of them are still readable.
    let file = std::fs::File::options().write(true).open(rig.file("d-a")).expect("the file");
    file.set_len(DATA + 6 * MIB).expect("truncate");
    a.engine.copy_start("v-1", vec![1], 0, 0, false, "full").expect("a copy");
    until("an end", || a.copy_state() != "running");
    // It stays failed: an end of the regions that were under way changes nothing.
    for _ in 0..50 {
        assert_eq!(a.copy_state(), "failed");
        a.metrics();
        thread::sleep(std::time::Duration::from_millis(4));
    }
    a.engine.shutdown(5.0);
    b.stop();
}

#[test]
fn a_copy_is_refused_where_there_is_none_to_make() {
    let rig = Rig::new();
    let a = filled(&rig, 4 * MIB);
    assert_eq!(
        a.engine.copy_start("v-1", vec![1], 0, 0, false, "full").expect_err("no mirror").kind,
        "precondition"
    );
    assert_eq!(
        a.engine.copy_start("v-2", vec![1], 0, 0, false, "full").expect_err("no volume").kind,
        "not_found"
    );
    a.engine.copy_stop("v-1", &[1]).expect("stopping nothing is fine");
    a.stop();
}

#[test]
fn a_leg_that_is_exchanged_is_copied_from_its_beginning() {
    let rig = Rig::new();
    let a = filled(&rig, SIZE);
    let b = rig.sp("sp-b");
    b.leaf("b", SIZE);
    b.leaf("c", SIZE);
    a.fence("a", 2);
    a.activate(&grown(2, SIZE, &a, &b));
    a.engine.copy_start("v-1", vec![1], 0, 0, false, "full").expect("a copy");
    until("the copy", || a.copy_state() == "done");
    a.fence("a", 3);
    let root = mirror(&[(true, leaf("a", SIZE)), (false, leaf("c", SIZE))]);
    a.activate(&Tree::new(3, SIZE, root, &[("a", &a), ("c", &b)]));
    assert_ne!(a.copy_state(), "done", "that was another leg");
    a.engine.copy_start("v-1", vec![1], 0, 0, false, "full").expect("a copy");
    until("the copy", || a.copy_state() == "done");
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "c", SIZE));
}

/// Writes all over the first `until` bytes, in pieces of 4 KiB.
fn scribble(sp: &Sp, salt: u64, until: u64) {
    let mut host = sp.host();
    for round in 0..200u64 {
        let at = round * 7_919_993 % (until - 4096);
        host.write(at, &pattern(salt + round, at, 4096)).expect("write");
    }
}

fn durable(sp: &Sp) -> u64 {
    sp.copies()[0]["durable"].as_u64().expect("a number")
}

#[test]
fn a_copy_taken_up_at_its_checkpoint_makes_the_legs_equal() {
    let rig = Rig::new();
    let size = 160 * MIB;
    let a = filled(&rig, size);
    let b = rig.sp("sp-b");
    b.leaf("b", size);
    a.fence("a", 2);
    a.activate(&grown(2, size, &a, &b));
    scribble(&a, 100, size);
    let mut start = 0;
    for round in 0..3 {
        a.engine.copy_start("v-1", vec![1], start, 100 * MIB, false, "full").expect("a copy");
        let wanted = start + MIB;
        until("a checkpoint", || durable(&a) >= wanted || a.copy_state() == "done");
        scribble(&a, 1000 * (round + 2), size);
        start = durable(&a);
        assert_eq!(start % MIB, 0);
        a.engine.copy_stop("v-1", &[1]).expect("a stop");
        until("it to be gone", || a.copies().is_empty());
        // What is written while no copy runs reaches both legs too.
        scribble(&a, 5000 * (round + 2), size);
    }
    assert!(start > 0);
    a.engine.copy_start("v-1", vec![1], start, 0, false, "full").expect("a copy");
    assert!(a.copies()[0]["copied"].as_u64() >= Some(start));
    until("the copy", || a.copy_state() == "done");
    assert_eq!((durable(&a), a.copies()[0]["copied"].as_u64()), (size, Some(size)));
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", size) == on_device(&rig, "b", size));
}

#[test]
fn a_checkpoint_is_behind_a_flush_of_the_leg() {
    let rig = Rig::new();
    let size = 96 * MIB;
    let a = filled(&rig, size);
    let b = rig.sp("sp-b");
    b.leaf("b", size);
    a.fence("a", 2);
    a.activate(&grown(2, size, &a, &b));
    let flushes = |sp: &Sp| -> u64 {
        let devices = sp.metrics()["devices"].as_array().expect("devices").clone();
        devices
            .iter()
            .map(|d| {
                d["flush"]["counts"]
                    .as_array()
                    .map_or(0, |counts| counts.iter().filter_map(serde_json::Value::as_u64).sum())
            })
            .sum()
    };
    let before = flushes(&b);
    a.engine.copy_start("v-1", vec![1], 0, 40 * MIB, false, "full").expect("a copy");
    until("a checkpoint", || durable(&a) > 0);
    assert!(a.copy_state() == "running" && durable(&a) < size);
    assert!(flushes(&b) > before, "durable without a flush");
    a.stop();
    b.stop();
}

#[test]
fn a_copys_limits_count_at_once() {
    let rig = Rig::new();
    let a = filled(&rig, SIZE);
    a.leaf("b", SIZE);
    a.fence("a", 2);
    a.activate(&grown(2, SIZE, &a, &a));
    let wrong = a.engine.copy_throttle("v-1", &[1], 0, false).expect_err("no copy");
    assert_eq!(wrong.kind, "not_found");
    let begun = std::time::Instant::now();
    a.engine.copy_start("v-1", vec![1], 0, 8 * MIB, false, "full").expect("a copy");
    until("a quarter", || a.copies()[0]["copied"].as_u64() >= Some(SIZE / 4));
    assert!(begun.elapsed().as_secs_f64() > 1.0, "16 MiB at 8 MiB/s took {:?}", begun.elapsed());
    assert!(a.copies()[0]["rate"].as_u64() > Some(4 * MIB));
    a.engine.copy_throttle("v-1", &[1], 0, true).expect("no limit");
    until("the copy", || a.copy_state() == "done");
    assert!(begun.elapsed().as_secs_f64() < 6.0, "it went on slowly: {:?}", begun.elapsed());
    a.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

#[test]
fn labels_are_read_as_they_stand() {
    let rig = Rig::new();
    let a = filled(&rig, 4 * MIB);
    let labels = parse(&a.engine.labels().expect("labels"));
    let label = &labels[0];
    assert_eq!((&label["device"], &label["copies"]), (&"d-a".into(), &2.into()));
    assert_eq!(label["t1s"][0]["t1"]["id"], "a");
    let generation = label["generation"].as_u64();
    a.fence("a", 9);
    let later = &parse(&a.engine.labels().expect("labels"))[0];
    assert_eq!(later["t1s"][0]["epoch"], 9);
    assert!(later["generation"].as_u64() > generation);
    // One copy is damaged on the disk: the other is shown, and that it is alone.
    let file = std::fs::File::options().write(true).open(rig.file("d-a")).expect("the file");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 64], 100).expect("damage");
    let torn = &parse(&a.engine.labels().expect("labels"))[0];
    assert_eq!((&torn["copies"], &torn["error"]), (&1.into(), &"".into()));
    a.stop();
}
