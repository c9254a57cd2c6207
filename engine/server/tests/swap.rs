//! Trees that change under hosts: nothing fails, nothing is lost, legs stay alike.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{Client, MIB, SIZE, Sp, inflight, leaf, mirror, t2, until};
use serde_json::{Value, json};

const BLOCK: u64 = 4096;

fn block(byte: u64, round: u64) -> Vec<u8> {
    let mut data = vec![0; BLOCK as usize];
    data[..8].copy_from_slice(&byte.to_le_bytes());
    data[8..16].copy_from_slice(&round.to_le_bytes());
    data
}

/// Writes and reads back stamped blocks until told to stop; gives how many.
fn load(mut client: Client, first: u64, stop: &AtomicBool) -> u64 {
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) {
        round += 1;
        let offset = (first + round * 7 % 256) * BLOCK;
        assert_eq!(client.write(offset, &block(offset, round)), 0);
        assert_eq!(client.read(offset, BLOCK as u32), block(offset, round));
        if round % 64 == 0 {
            assert_eq!(client.flush(), 0);
        }
    }
    round
}

#[test]
fn swaps_under_load_never_show() {
    let dir = tempfile::tempdir().unwrap();
    let a = Sp::start(dir.path(), "a", "127.0.0.1:0", 20.0);
    let b = Sp::start(dir.path(), "b", "127.0.0.1:0", 20.0);
    let both = [&a, &b];
    let spec = |at: &Sp, version| {
        t2(at, &both, "a", version, SIZE, mirror(&[("a", "in_sync"), ("b", "in_sync")]))
    };
    a.activate(&spec(&a, 1));
    b.activate(&spec(&b, 1));
    let stop = AtomicBool::new(false);
    let rounds: u64 = std::thread::scope(|scope| {
        let clients = [(a.client(), 0), (b.client(), 512), (a.client(), 1024)];
        let stop = &stop;
        let loads = clients.map(|(client, first)| scope.spawn(move || load(client, first, stop)));
        for version in 2..40 {
            a.fence(version);
            b.fence(version);
            a.activate(&spec(&a, version));
            b.activate(&spec(&b, version));
        }
        stop.store(true, Ordering::SeqCst);
        loads.into_iter().map(|load| load.join().unwrap()).sum()
    });
    assert!(rounds > 10, "{rounds}");
    assert!(a.blocks(dir.path()) == b.blocks(dir.path()), "both legs hold the same");
    let metrics: Value = serde_json::from_str(&a.engine.metrics().unwrap()).unwrap();
    let pauses = metrics["volumes"][0]["pause"]["counts"].as_array().unwrap();
    assert_eq!(pauses.iter().filter_map(Value::as_u64).sum::<u64>(), 38);
    assert!(a.engine.shutdown(10.0) && b.engine.shutdown(10.0));
}

#[test]
fn a_fenced_tree_waits_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let a = Sp::start(dir.path(), "a", "127.0.0.1:0", 20.0);
    let b = Sp::start(dir.path(), "b", "127.0.0.1:0", 20.0);
    // b holds the only T1 object; the tree at a is out of date as soon as b fences.
    a.activate(&t2(&a, &[&a, &b], "a", 1, SIZE, leaf("b")));
    let mut client = a.client();
    assert_eq!(client.write(0, &[1; 512]), 0);
    b.fence(2);
    client.send(1, 0, 512, &[2; 512]);
    until("the write is held", || inflight(&a) == 1);
    assert!(client.is_waiting());
    assert_eq!(b.blocks(dir.path())[0], 1, "nothing of the old epoch lands");
    a.activate(&t2(&a, &[&a, &b], "a", 2, SIZE, leaf("b")));
    assert_eq!(client.answer(), 0);
    assert_eq!(client.read(0, 512), [2; 512]);
    let stale = t2(&a, &[&a, &b], "a", 1, SIZE, leaf("b"));
    assert_eq!(a.engine.t2_activate(&stale.to_string(), false, 1.0).unwrap_err().kind, "stale");
}

#[test]
fn a_hole_parks_what_touches_it_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let a = Sp::start(dir.path(), "a", "127.0.0.1:0", 20.0);
    let b = Sp::start(dir.path(), "b", "127.0.0.1:0", 20.0);
    let concat = |second: Value| json!({"kind": "concat", "parts": [leaf("a"), second]});
    let hole = json!({"kind": "hole", "size": SIZE});
    let spec = |version, second| t2(&a, &[&a, &b], "a", version, 2 * SIZE, concat(second));
    a.activate(&spec(1, leaf("b")));
    a.activate(&spec(2, hole));
    let (mut free, mut parked) = (a.client(), a.client());
    parked.send(1, SIZE - 512, 1024, &[3; 1024]);
    until("the write is held", || inflight(&a) == 1);
    assert_eq!(free.write(0, &[4; 4096]), 0);
    assert!(parked.is_waiting());
    a.activate(&spec(3, leaf("b")));
    assert_eq!(parked.answer(), 0);
    assert_eq!(free.read(SIZE - 512, 1024), [3; 1024]);
}

#[test]
fn what_waits_for_a_dead_peer_is_sent_again_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let a = Sp::start(dir.path(), "a", "127.0.0.1:0", 20.0);
    let b = Sp::start(dir.path(), "b", "127.0.0.1:0", 20.0);
    let both = mirror(&[("a", "in_sync"), ("b", "in_sync")]);
    a.activate(&t2(&a, &[&a, &b], "a", 1, SIZE, both));
    let mut client = a.client();
    assert_eq!(client.write(0, &[1; 4096]), 0);
    let address = b.peer.clone();
    b.engine.shutdown(5.0);
    drop(b);
    client.send(1, 4096, 4096, &[2; 4096]);
    until("the write is held", || inflight(&a) == 1);
    let b = Sp::start(dir.path(), "b", &address, 20.0);
    assert_eq!(client.answer(), 0);
    assert!(a.blocks(dir.path()) == b.blocks(dir.path()));
}

#[test]
fn a_leg_that_stays_away_fails_the_write_after_the_hold_or_leaves_with_a_swap() {
    let dir = tempfile::tempdir().unwrap();
    let a = Sp::start(dir.path(), "a", "127.0.0.1:0", 0.3);
    let b = Sp::start(dir.path(), "b", "127.0.0.1:0", 0.3);
    let both = mirror(&[("a", "in_sync"), ("b", "in_sync")]);
    let one = t2(&a, &[&a, &b], "a", 2, SIZE, leaf("a"));
    a.activate(&t2(&a, &[&a, &b], "a", 1, SIZE, both));
    let mut client = a.client();
    b.engine.shutdown(5.0);
    assert_eq!(client.write(0, &[1; 512]), 5, "EIO after hold_seconds, and no hang");
    client.send(1, 0, 512, &[2; 512]);
    a.activate(&one);
    assert_eq!(client.answer(), 0, "the tree without the leg takes the write");
    assert_eq!(client.read(0, 512), [2; 512]);
}

#[test]
fn a_copy_under_writes_makes_an_equal_leg() {
    let dir = tempfile::tempdir().unwrap();
    let a = Sp::start(dir.path(), "a", "127.0.0.1:0", 20.0);
    let b = Sp::start(dir.path(), "b", "127.0.0.1:0", 20.0);
    let spec =
        |v, state| t2(&a, &[&a, &b], "a", v, SIZE, mirror(&[("a", "in_sync"), ("b", state)]));
    a.activate(&t2(&a, &[&a, &b], "a", 1, SIZE, leaf("a")));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut filler = a.client();
        for at in 0..SIZE / MIB {
            assert_eq!(filler.write(at * MIB, &vec![at as u8 + 1; MIB as usize]), 0);
        }
        let writer = scope.spawn(|| load(a.client(), 0, &stop));
        a.activate(&spec(2, "write_only"));
        a.engine.copy_start("v1", vec![1]).unwrap();
        a.engine.copy_start("v1", vec![1]).unwrap();
        let state = || {
            let copies: Value = serde_json::from_str(&a.engine.copies().unwrap()).unwrap();
            copies[0].clone()
        };
        until("the copy is done", || state()["state"] == "done");
        assert_eq!(state()["copied"], SIZE);
        a.fence(3);
        b.fence(3);
        a.activate(&spec(3, "in_sync"));
        stop.store(true, Ordering::SeqCst);
        writer.join().unwrap();
    });
    assert!(a.blocks(dir.path()) == b.blocks(dir.path()));
    assert_eq!(a.engine.copy_start("v1", vec![1]).unwrap_err().kind, "precondition");
}

#[test]
fn a_resync_makes_legs_alike_from_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let a = Sp::start(dir.path(), "a", "127.0.0.1:0", 20.0);
    let b = Sp::start(dir.path(), "b", "127.0.0.1:0", 20.0);
    // An unclean end left the legs unlike: each was written alone.
    a.activate(&t2(&a, &[&a, &b], "a", 1, SIZE, leaf("a")));
    assert_eq!(a.client().write(MIB, &[1; 4096]), 0);
    a.activate(&t2(&a, &[&a, &b], "a", 2, SIZE, leaf("b")));
    assert_eq!(a.client().write(MIB, &[2; 4096]), 0);
    let both = mirror(&[("a", "in_sync"), ("b", "in_sync")]);
    let spec = t2(&a, &[&a, &b], "a", 3, SIZE, both);
    a.engine.t2_activate(&spec.to_string(), true, 10.0).unwrap();
    let mut client = a.client();
    for _ in 0..20 {
        assert_eq!(client.read(MIB, 4096), [1; 4096], "one leg answers all reads meanwhile");
    }
    let percent = || {
        let t2s: Value = serde_json::from_str(&a.engine.t2s("").unwrap()).unwrap();
        t2s[0]["resync_percent"].as_u64().unwrap()
    };
    until("the resync is done", || percent() == 100);
    assert!(a.blocks(dir.path()) == b.blocks(dir.path()));
}

#[test]
fn objects_in_use_stay() {
    let dir = tempfile::tempdir().unwrap();
    let a = Sp::start(dir.path(), "a", "127.0.0.1:0", 20.0);
    a.activate(&t2(&a, &[&a], "a", 1, SIZE, leaf("a")));
    let client = a.client();
    assert_eq!(a.engine.t1_delete("t-a").unwrap_err().kind, "precondition");
    assert_eq!(a.engine.reference_drop("v1", "t-a").unwrap_err().kind, "precondition");
    assert_eq!(a.engine.device_remove("d-a").unwrap_err().kind, "precondition");
    a.engine.t2_remove("v1", 5.0).unwrap();
    a.engine.t2_remove("v1", 5.0).unwrap();
    until("the session ends", || !client.is_waiting());
    a.engine.t1_delete("t-a").unwrap();
    a.engine.device_remove("d-a").unwrap();
}
