//! Several SPs: mirrors and stripes across them, the owner, swaps under load, fences,
//! peers that go and come back.

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rig::nbd::{FUA, WRITE};
use rig::*;

const SIZE: u64 = 16 * MIB;

/// a at sp-a and b at sp-b, mirrored; sp-a is the owner and both serve.
fn mirrored(rig: &Rig) -> (Sp, Sp, Tree) {
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    a.leaf("a", SIZE);
    b.leaf("b", SIZE);
    let root = mirror(&[(true, leaf("a", SIZE)), (true, leaf("b", SIZE))]);
    let tree = Tree::new(1, SIZE, root, &[("a", &a), ("b", &b)]);
    a.activate(&tree);
    b.activate(&tree);
    (a, b, tree)
}

fn next(tree: &Tree) -> Tree {
    Tree { version: tree.version + 1, ..tree.clone() }
}

/// The order that a restructure keeps: fence what stays, then activate, the owner first.
fn swap(a: &Sp, b: &Sp, tree: &Tree) {
    a.fence("a", tree.version);
    b.fence("b", tree.version);
    a.activate(tree);
    b.activate(tree);
}

#[test]
fn a_mirror_has_the_same_bytes_on_both_sps_whoever_writes() {
    let rig = Rig::new();
    let (a, b, _) = mirrored(&rig);
    let (mut at_owner, mut elsewhere) = (a.host(), b.host());
    at_owner.write(0, &pattern(1, 0, 300_000)).expect("at the owner");
    elsewhere.write(MIB, &pattern(2, MIB, 300_000)).expect("through the owner");
    elsewhere.write_fua(5 * MIB, &pattern(2, 5 * MIB, 4096)).expect("FUA through the owner");
    elsewhere.trim(MIB, 4096).expect("trim");
    at_owner.zero(0, MIB + 8192, 4096).expect("zeroes");
    elsewhere.flush().expect("flush");
    assert!(at_owner.read(MIB + 4096, 4096).expect("read") == pattern(2, MIB + 4096, 4096));
    assert!(elsewhere.read(0, 300_000).expect("read") == pattern(1, 0, 300_000));
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

#[test]
fn a_stripe_across_sps_reads_what_was_written() {
    let rig = Rig::new();
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    a.leaf("a", SIZE);
    b.leaf("b", SIZE);
    let root = stripe(64 << 10, &[leaf("a", SIZE), leaf("b", SIZE)]);
    let tree = Tree::new(1, 2 * SIZE, root, &[("a", &a), ("b", &b)]);
    a.activate(&tree);
    b.activate(&tree);
    let (mut here, mut there) = (a.host(), b.host());
    here.write(1000, &pattern(1, 1000, 5 << 20)).expect("write");
    assert!(there.read(1000, 5 << 20).expect("read") == pattern(1, 1000, 5 << 20));
    there.trim(0, MIB).expect("trim");
    assert!(here.read(0, 1 << 20).expect("read") == vec![0; 1 << 20]);
    let mut status = Nbd::structured(&b.nbd, "vol");
    let (runs, _) = status.status(0, 0, 8 * MIB).expect("status");
    assert_eq!(runs.iter().map(|run| u64::from(run.0)).sum::<u64>(), 8 * MIB);
    assert_eq!(runs[0].1, 3, "the trimmed beginning is a hole");
    a.stop();
    b.stop();
}

/// Writes and reads back until `stop`, on a stripe of blocks of its own.
fn load(address: String, lane: u64, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let mut host = Nbd::connect(&address, "vol");
    let mut last = [0u64; 8];
    let mut round = 1;
    while !stop.load(Ordering::SeqCst) {
        let slot = round % 8;
        let at = (lane * 8 + slot) * 64 * 1024;
        if last[slot as usize] > 0 {
            let salt = last[slot as usize] * 100 + lane;
            let got = host.read(at, 16_384).expect("no error during a swap");
            assert!(got == pattern(salt, at, 16_384), "lane {lane} slot {slot}: old data");
        }
        host.write(at, &pattern(round * 100 + lane, at, 16_384)).expect("no error during a swap");
        last[slot as usize] = round;
        round += 1;
        done.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn swaps_under_load_show_no_error_and_lose_nothing() {
    let rig = Rig::new();
    let (a, b, mut tree) = mirrored(&rig);
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let hosts: Vec<_> = (0..6)
        .map(|lane| {
            let address = if lane % 2 == 0 { a.nbd.clone() } else { b.nbd.clone() };
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || load(address, lane, stop, done))
        })
        .collect();
    for round in 0..20 {
        let before = done.load(Ordering::SeqCst);
        until("the load", || done.load(Ordering::SeqCst) > before + 50);
        tree = next(&tree);
        // The owner changes sides each time.
        tree.owner = if round % 2 == 0 { "sp-b" } else { "sp-a" }.into();
        let (first, second) = if round % 2 == 0 { (&b, &a) } else { (&a, &b) };
        a.fence("a", tree.version);
        b.fence("b", tree.version);
        first.activate(&tree);
        second.activate(&tree);
    }
    stop.store(true, Ordering::SeqCst);
    for host in hosts {
        host.join().expect("a host that saw no error");
    }
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

#[test]
fn fenced_io_parks_until_the_next_tree() {
    let rig = Rig::new();
    let (a, b, tree) = mirrored(&rig);
    b.fence("b", 2);
    let mut hosts = [a.host(), b.host()];
    for (n, host) in hosts.iter_mut().enumerate() {
        host.send(WRITE, 0, n as u64 * MIB, 5, b"hello");
    }
    // Each waits at the SP that its host is connected to.
    for sp in [&a, &b] {
        until("it is refused", || sp.metrics()["volumes"][0]["inflight"] == 1);
    }
    until("the fence shows", || b.metrics()["fencing_rejections"].as_u64() > Some(0));
    a.fence("a", 2);
    a.activate(&next(&tree));
    b.activate(&next(&tree));
    for (n, host) in hosts.iter_mut().enumerate() {
        assert_eq!(host.reply().expect("a reply").1, 0);
        assert_eq!(host.read(n as u64 * MIB, 5).expect("read"), b"hello");
    }
    a.stop();
    b.stop();
}

#[test]
fn an_old_tree_is_refused_and_an_equal_one_is_nothing_new() {
    let rig = Rig::new();
    let (a, b, tree) = mirrored(&rig);
    swap(&a, &b, &next(&tree));
    assert_eq!(a.try_activate(&tree, false).expect_err("older").kind, "stale");
    assert_eq!(a.activate(&next(&tree)), 0);
    let gone = a.engine.t1_fence("no-such", 1, None, 1.0).expect_err("unknown");
    assert_eq!(gone.kind, "not_found");
    assert_eq!(a.engine.t1_delete("a", u64::MAX).expect_err("in use").kind, "precondition");
    assert_eq!(a.engine.reference_drop("v-1", "b").expect_err("in use").kind, "precondition");
    a.stop();
    b.stop();
}

#[test]
fn a_hole_parks_and_the_tree_without_it_resumes() {
    let rig = Rig::new();
    let sp = rig.sp("sp-a");
    sp.leaf("a", SIZE);
    sp.leaf("b", SIZE);
    let whole = concat(&[leaf("a", SIZE), leaf("b", SIZE)]);
    let hole = serde_json::json!({"kind": "hole", "size": SIZE});
    let tree = Tree::new(1, 2 * SIZE, whole.clone(), &[("a", &sp), ("b", &sp)]);
    sp.activate(&tree);
    let mut host = sp.host();
    host.write(SIZE, b"before").expect("write");
    sp.fence("a", 2);
    let holed = Tree { root: concat(&[leaf("a", SIZE), hole]), ..next(&tree) };
    sp.activate(&holed);
    host.write(0, b"beside").expect("what lies beside the hole goes on");
    host.send(WRITE, 0, SIZE, 5, b"after");
    until("it waits", || sp.metrics()["volumes"][0]["inflight"] == 1);
    sp.fence("a", 3);
    sp.fence("b", 3);
    sp.activate(&Tree { root: whole, ..next(&holed) });
    assert_eq!(host.reply().expect("a reply").1, 0);
    assert_eq!(host.read(SIZE, 6).expect("read"), b"aftere");
    sp.stop();
}

#[test]
fn what_nobody_resumes_fails_after_the_hold() {
    let rig = Rig { hold: 0.5, ..Rig::new() };
    let (a, b, _) = mirrored(&rig);
    b.fence("b", 2);
    let mut host = a.host();
    assert_eq!(host.write(0, b"x"), Err(5));
    b.stop();
    assert_eq!(host.write(0, b"x"), Err(5), "and so does what waits for a peer");
    a.stop();
}

#[test]
fn a_peer_that_comes_back_gets_what_it_missed() {
    let rig = Rig::new();
    let (a, b, tree) = mirrored(&rig);
    let mut host = a.host();
    host.write(0, &[1; 4096]).expect("write");
    let address = b.peer.clone();
    b.stop();
    drop(b);
    for n in 1..9u64 {
        host.send(WRITE, 0, n * 4096, 4096, &[n as u8; 4096]);
        // Elsewhere: two writes of one place that are both under way have no order.
        host.send(WRITE, FUA, (n + 8) * 4096, 4096, &[n as u8 + 100; 4096]);
    }
    until("they wait", || a.metrics()["volumes"][0]["inflight"] == 16);
    let b = rig.sp_at("sp-b", &address);
    // Its devices come only after its address: peers have to bear with that.
    thread::sleep(std::time::Duration::from_millis(300));
    b.device("d-b", SIZE);
    b.activate(&tree);
    for _ in 0..16 {
        assert_eq!(host.reply().expect("a reply").1, 0);
    }
    for n in 1..9u64 {
        assert!(host.read(n * 4096, 4096).expect("read") == [n as u8; 4096]);
        assert!(host.read((n + 8) * 4096, 4096).expect("read") == [n as u8 + 100; 4096]);
    }
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

#[test]
fn an_owner_that_comes_back_serves_those_that_waited_for_it() {
    let rig = Rig::new();
    let (a, b, tree) = mirrored(&rig);
    let mut host = b.host();
    host.write(0, b"one").expect("write");
    let address = a.peer.clone();
    a.stop();
    drop(a);
    host.send(WRITE, 0, 0, 3, b"two");
    until("it waits", || b.metrics()["volumes"][0]["inflight"] == 1);
    let a = rig.sp_at("sp-a", &address);
    thread::sleep(std::time::Duration::from_millis(300));
    a.device("d-a", SIZE);
    a.activate(&tree);
    assert_eq!(host.reply().expect("a reply").1, 0);
    assert_eq!(host.read(0, 3).expect("read"), b"two");
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

#[test]
fn a_swap_does_not_wait_for_a_dead_peer() {
    let rig = Rig::new();
    let (a, b, tree) = mirrored(&rig);
    let mut host = a.host();
    host.write(0, b"one").expect("write");
    b.stop();
    host.send(WRITE, 0, 0, 3, b"two");
    until("it waits", || a.metrics()["volumes"][0]["inflight"] == 1);
    a.fence("a", 2);
    let alone = Tree::new(2, SIZE, leaf("a", SIZE), &[("a", &a)]);
    a.activate(&Tree { version: tree.version + 1, ..alone });
    assert_eq!(host.reply().expect("a reply").1, 0);
    assert_eq!(host.read(0, 3).expect("read"), b"two");
    a.stop();
}

#[test]
fn a_volume_that_leaves_its_old_owner_gives_other_sps_no_error() {
    let rig = Rig::new();
    let (a, b, tree) = mirrored(&rig);
    let mut host = b.host();
    host.write(0, b"one").expect("write");
    // b still runs on the old tree when a stops serving.
    a.fence("a", 2);
    b.fence("b", 2);
    host.send(WRITE, 0, 0, 3, b"two");
    until("it waits", || b.metrics()["volumes"][0]["inflight"] == 1);
    a.engine.t2_remove("v-1", 10.0).expect("removal");
    let moved = Tree { owner: "sp-b".into(), ..next(&tree) };
    b.activate(&moved);
    assert_eq!(host.reply().expect("a reply").1, 0);
    assert_eq!(host.read(0, 3).expect("read"), b"two");
    b.stop();
    a.stop();
}

#[test]
fn overlapping_writes_from_everywhere_leave_equal_legs() {
    let rig = Rig::new();
    let (a, b, _) = mirrored(&rig);
    let writers: Vec<_> = (0..6u64)
        .map(|lane| {
            let address = if lane % 2 == 0 { a.nbd.clone() } else { b.nbd.clone() };
            thread::spawn(move || {
                let mut host = Nbd::connect(&address, "vol");
                for round in 0..40u64 {
                    let offset = (round * 7919 + lane * 311) % 50_000;
                    host.write(offset, &[lane as u8 + 1; 30_000]).expect("write");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().expect("a writer");
    }
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", MIB) == on_device(&rig, "b", MIB));
}

#[test]
fn objects_in_use_stay() {
    let rig = Rig::new();
    let sp = rig.sp("sp-a");
    sp.leaf("t", SIZE);
    sp.activate(&Tree::new(1, SIZE, leaf("t", SIZE), &[("t", &sp)]));
    let mut host = sp.host();
    let engine = &sp.engine;
    let refused = |done: Result<(), vs_server::Failure>| done.expect_err("in use").kind;
    assert_eq!(refused(engine.t1_delete("t", u64::MAX)), "precondition");
    assert_eq!(refused(engine.reference_drop("v-1", "t")), "precondition");
    assert_eq!(refused(engine.device_remove("d-t")), "precondition");
    for _ in 0..2 {
        engine.t2_remove("v-1", 5.0).expect("removal, and once more");
    }
    until("the session ends", || host.is_closed());
    engine.t1_delete("t", u64::MAX).expect("not in use any more");
    engine.device_remove("d-t").expect("nothing lies on it");
    sp.stop();
}
