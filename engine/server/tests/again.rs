//! Writes that hosts send again over another path: what is stuck on the first must not land over
//! what was written since.

mod rig;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rig::gate::Gate;
use rig::proxy::Proxy;
use rig::*;
use serde_json::json;

const SIZE: u64 = 8 * MIB;
const WRITE: u16 = 1;
/// Longer than a request may be on its way.
const TIME_OUT: Duration = Duration::from_millis(500);

/// sp-a owns a mirror, sp-b passes hosts' requests on to it, over a link that can be stalled.
fn linked() -> (Rig, Sp, Sp, Arc<Proxy>) {
    let more = json!({"forward_seconds": 0.3});
    let rig = Rig { more, loops: 1, ..Rig::new() };
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    a.leaf("a", SIZE);
    a.leaf("b", SIZE);
    let root = mirror(&[(true, leaf("a", SIZE)), (true, leaf("b", SIZE))]);
    let mut tree = Tree::new(1, SIZE, root, &[("a", &a), ("b", &a)]);
    a.activate(&tree);
    let link = Proxy::start(&a.peer);
    tree.peers = vec![("sp-a".into(), link.address.clone())];
    b.activate(&tree);
    b.host().write(0, &pattern(1, 0, 4096)).expect("a write over the link");
    (rig, a, b, link)
}

#[test]
fn a_write_stuck_on_a_stalled_link_does_not_land_over_a_newer_one() {
    let (_rig, a, b, link) = linked();
    link.hold();
    let mut host = b.host();
    host.send(WRITE, 0, 0, 4096, &pattern(2, 0, 4096));
    until("the write to be stuck", || link.waiting.load(Ordering::SeqCst) > 4096);
    // It waits in vain, and goes over the other path.
    thread::sleep(TIME_OUT);
    drop(host);
    let mut other = a.host();
    other.write(0, &pattern(2, 0, 4096)).expect("the same write");
    other.write(0, &pattern(3, 0, 4096)).expect("a newer one");
    link.open();
    // Behind the stuck one, on the same link.
    assert!(b.host().read(0, 4096).expect("a read") == pattern(3, 0, 4096));
    a.stop();
    b.stop();
}

#[test]
fn a_write_on_a_stalled_link_is_not_lost_while_its_host_waits() {
    let (_rig, a, b, link) = linked();
    link.hold();
    let address = b.nbd.clone();
    let host = thread::spawn(move || {
        let mut host = Nbd::connect(&address, "vol");
        host.write(0, &pattern(2, 0, 4096)).expect("a slow write");
    });
    until("the write to be stuck", || link.waiting.load(Ordering::SeqCst) > 4096);
    thread::sleep(TIME_OUT);
    link.open();
    host.join().expect("a host");
    assert!(a.host().read(0, 4096).expect("a read") == pattern(2, 0, 4096));
    a.stop();
    b.stop();
}

#[test]
fn a_write_that_went_with_its_connection_is_sent_again_over_the_next() {
    let (_rig, a, b, link) = linked();
    for round in 2..5 {
        link.hold();
        let mut host = b.host();
        host.send(WRITE, 0, 0, 4096, &pattern(round, 0, 4096));
        until("the write to be stuck", || link.waiting.load(Ordering::SeqCst) > 4096);
        link.cut();
        link.open();
        assert_eq!(host.reply().expect("a reply").1, 0);
        assert!(a.host().read(0, 4096).expect("a read") == pattern(round, 0, 4096));
    }
    a.stop();
    b.stop();
}

#[test]
fn what_a_host_leaves_unread_is_not_carried_out() {
    let rig = Rig { room: 8192, loops: 1, ..Rig::new() };
    let sp = rig.sp("sp-a");
    let gate = Gate::start((DATA + SIZE) as usize);
    sp.engine.device_add(&gate.uri(), 0, "d-gate", How::default()).expect("a device");
    sp.put("t", SIZE, &[("d-gate", DATA, SIZE)], 1);
    sp.activate(&Tree::new(1, SIZE, leaf("t", SIZE), &[("t", &sp)]));
    gate.hold();
    let mut host = sp.host();
    for number in 0..8 {
        host.send(WRITE, 0, number * 8192, 8192, &pattern(1, number * 8192, 8192));
    }
    // The connection is full: the others are not read yet when it goes.
    until("the first to wait", || gate.waiting.load(Ordering::SeqCst) > 0);
    drop(host);
    let open = || {
        let sessions = sp.metrics()["sessions"].as_object().cloned().unwrap_or_default();
        sessions.values().filter_map(|count| count.as_u64()).sum::<u64>()
    };
    until("the connection to be gone", || open() == 0);
    gate.open();
    until("the first", || gate.bytes(DATA, 8192) == pattern(1, 0, 8192));
    sp.host().flush().expect("a flush");
    assert!(gate.bytes(DATA + 5 * 8192, 8192) == vec![0; 8192]);
    sp.stop();
}
