//! The peer protocol's promises, seen from a client that speaks it by hand: one session of
//! a kind at a time, and none before its predecessors have ended.

mod rig;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rig::gate::Gate;
use rig::nbd::WRITE;
use rig::*;
use vs_wire::peer::{Hello, Op, REPLY_LEN, Reply, Request, Status, WELCOME_LEN, Welcome};

const SIZE: u64 = 8 * MIB;

struct Client(TcpStream);

impl Client {
    fn hello(sp: &Sp, incarnation: &str, slot: u32, attempt: u64) -> Client {
        let mut stream = TcpStream::connect(&sp.peer).expect("a connection");
        let hello = Hello {
            cluster: "c-1".into(),
            client: "sp-x".into(),
            incarnation: incarnation.into(),
            slot,
            attempt,
            server: sp.name.clone(),
        };
        let mut out = Vec::new();
        hello.encode(&mut out);
        stream.write_all(&out).expect("HELLO");
        Client(stream)
    }

    /// The server's answer, if it comes within `millis`.
    fn welcome(&mut self, millis: u64) -> Option<Welcome> {
        self.0.set_read_timeout(Some(Duration::from_millis(millis))).expect("a timeout");
        let mut bytes = [0; WELCOME_LEN];
        self.0.read_exact(&mut bytes).ok()?;
        Welcome::decode(&bytes).expect("an answer").map(|(welcome, _)| welcome)
    }

    fn request(&mut self, op: Op, offset: u64, length: u64, payload: &[u8]) {
        let request = Request {
            op,
            flags: 0,
            handle: 1,
            id: 7,
            epoch: 1,
            offset,
            length,
            payload: payload.len() as u32,
            until: 0,
        };
        let mut out = Vec::new();
        request.encode(&mut out);
        out.extend_from_slice(payload);
        self.0.write_all(&out).expect("a request");
    }

    fn open_t1(&mut self, t1: &str) {
        self.request(Op::Open, 0, 0, t1.as_bytes());
    }

    fn reply(&mut self) -> Reply {
        self.0.set_read_timeout(Some(SOON)).expect("a timeout");
        let mut bytes = [0; REPLY_LEN];
        self.0.read_exact(&mut bytes).expect("a reply");
        Reply::decode(&bytes).expect("a reply").expect("whole")
    }

    fn is_closed(&mut self) -> bool {
        self.0.set_read_timeout(Some(SOON)).expect("a timeout");
        !matches!(self.0.read(&mut [0]), Ok(1))
    }
}

/// sp-a with "t" on a device that can be held.
fn gated(rig: &Rig) -> (Sp, Arc<Gate>) {
    let gate = Gate::start((DATA + SIZE) as usize);
    let sp = rig.sp("sp-a");
    sp.engine.device_add(&gate.uri(), 0, "d-gate", How::default()).expect("a device");
    sp.put("t", SIZE, &[("d-gate", DATA, SIZE)], 1);
    (sp, gate)
}

/// A session with a write that the device holds.
fn stuck(sp: &Sp, gate: &Gate, incarnation: &str, slot: u32) -> Client {
    let mut client = Client::hello(sp, incarnation, slot, 1);
    assert_eq!(client.welcome(5000), Some(Welcome::Ok));
    client.open_t1("t");
    let before = gate.waiting.load(Ordering::SeqCst);
    client.request(Op::Write, 0, 4, b"old!");
    until("the write is held", || gate.waiting.load(Ordering::SeqCst) > before);
    client
}

#[test]
fn strangers_are_refused_by_name() {
    let rig = Rig::new();
    let sp = rig.sp("sp-a");
    let mut stranger = rig.sp("sp-c");
    stranger.peer.clone_from(&sp.peer);
    let mut hello = Client::hello(&stranger, "i", 0, 1);
    assert_eq!(hello.welcome(5000), Some(Welcome::WrongServer));
    assert!(hello.is_closed());
    let mut nonsense = TcpStream::connect(&sp.peer).expect("a connection");
    nonsense.write_all(&[9; 64]).expect("nonsense");
    assert!(Client(nonsense).is_closed());
    sp.stop();
}

#[test]
fn a_new_session_waits_for_the_older_ones_requests() {
    let rig = Rig::new();
    let (sp, gate) = gated(&rig);
    gate.hold();
    let _first = stuck(&sp, &gate, "i", 0);
    let mut second = Client::hello(&sp, "i", 0, 2);
    assert_eq!(second.welcome(200), None, "the first one's write is under way");
    // A third ends the second, but has to wait for the first just as well.
    let mut third = Client::hello(&sp, "i", 0, 3);
    assert!(second.is_closed());
    assert_eq!(third.welcome(200), None, "the first one's write is still under way");
    gate.open();
    assert_eq!(third.welcome(5000), Some(Welcome::Ok));
    third.open_t1("t");
    third.request(Op::Write, 0, 4, b"new!");
    assert_eq!(third.reply().status, Status::Ok);
    assert_eq!(gate.bytes(DATA, 4), b"new!");
    sp.stop();
}

#[test]
fn an_overtaken_attempt_is_closed() {
    let rig = Rig::new();
    let sp = rig.sp("sp-a");
    let mut later = Client::hello(&sp, "i", 0, 5);
    assert_eq!(later.welcome(5000), Some(Welcome::Ok));
    assert!(Client::hello(&sp, "i", 0, 4).is_closed());
    later.open_t1("nothing");
    later.request(Op::Read, 0, 4, &[]);
    assert_eq!(later.reply().status, Status::NotFound, "the later one goes on");
    sp.stop();
}

#[test]
fn every_session_of_a_new_incarnation_waits_for_the_old_one() {
    let rig = Rig::new();
    let (sp, gate) = gated(&rig);
    gate.hold();
    let _old = stuck(&sp, &gate, "before", 0);
    let mut first = Client::hello(&sp, "after", 0, 1);
    let mut second = Client::hello(&sp, "after", 1, 1);
    assert_eq!(first.welcome(200), None);
    assert_eq!(second.welcome(200), None, "another slot could overtake the old write too");
    gate.open();
    assert_eq!(first.welcome(5000), Some(Welcome::Ok));
    assert_eq!(second.welcome(5000), Some(Welcome::Ok));
    sp.stop();
}

#[test]
fn a_fence_waits_for_what_is_under_way_and_refuses_what_comes() {
    let rig = Rig::new();
    let (sp, gate) = gated(&rig);
    gate.hold();
    let mut client = stuck(&sp, &gate, "i", 0);
    assert_eq!(sp.engine.t1_fence("t", 2, None, 0.2).expect_err("held").kind, "timeout");
    assert_eq!(sp.engine.t1_fence("t", 2, None, 0.2).expect_err("still").kind, "timeout");
    gate.open();
    assert_eq!(client.reply().status, Status::Ok);
    sp.fence("t", 2);
    client.request(Op::Write, 0, 4, b"late");
    assert_eq!(client.reply().status, Status::Stale);
    assert_eq!(gate.bytes(DATA, 4), b"old!");
    sp.stop();
}

#[test]
fn a_fence_that_compares_raises_from_just_that_epoch() {
    let rig = Rig::new();
    let (sp, gate) = gated(&rig);
    sp.fence("t", 4);
    let fence = |epoch, from| sp.engine.t1_fence("t", epoch, from, 1.0).map_err(|e| e.kind);
    assert_eq!(fence(7, Some(2)), Err("stale"), "somebody else has raised it");
    assert_eq!(fence(5, Some(4)), Ok(()));
    assert_eq!(fence(5, Some(4)), Ok(()), "said again");
    assert_eq!(fence(5, Some(2)), Ok(()), "it is there already");
    assert_eq!(fence(4, None), Err("stale"), "an epoch that is over");
    assert_eq!(fence(6, None), Ok(()), "whoever does not compare");
    assert_eq!(fence(7, Some(4)), Err("stale"));
    gate.open();
    sp.stop();
}

#[test]
fn a_fence_that_holds_already_does_not_wait_for_newer_io() {
    let rig = Rig::new();
    let (sp, gate) = gated(&rig);
    sp.activate(&Tree::new(1, SIZE, leaf("t", SIZE), &[("t", &sp)]));
    sp.fence("t", 2);
    sp.activate(&Tree::new(2, SIZE, leaf("t", SIZE), &[("t", &sp)]));
    gate.hold();
    let mut host = sp.host();
    host.send(WRITE, 0, 0, 4, b"busy");
    until("the write is held", || gate.waiting.load(Ordering::SeqCst) == 1);
    sp.engine.t1_fence("t", 2, None, 0.5).expect("nothing older can be under way");
    gate.open();
    assert_eq!(host.reply().expect("a reply").1, 0);
    sp.stop();
}

#[test]
fn an_nbd_device_is_a_leg_like_others_and_hears_goodbye() {
    let rig = Rig::new();
    let (sp, gate) = gated(&rig);
    sp.leaf("f", SIZE);
    let root = mirror(&[(true, leaf("t", SIZE)), (true, leaf("f", SIZE))]);
    sp.activate(&Tree::new(1, SIZE, root, &[("t", &sp), ("f", &sp)]));
    let mut host = sp.host();
    host.write(0, &pattern(1, 0, 3 << 20)).expect("write");
    host.write_fua(4 * MIB, &pattern(1, 4 * MIB, 8192)).expect("FUA");
    host.trim(MIB, 65_536).expect("trim");
    host.zero(0, 2 * MIB, 65_536).expect("zeroes");
    assert_eq!(host.zero(rig::nbd::FAST_ZERO, 0, 4096), Err(95), "not fast on every leg");
    host.flush().expect("flush");
    let whole = host.read(0, SIZE as usize).expect("read");
    assert!(whole[..1 << 20] == pattern(1, 0, 1 << 20)[..]);
    let before = gate.farewells.load(Ordering::SeqCst);
    sp.stop();
    assert!(whole == gate.bytes(DATA, SIZE));
    assert!(whole == on_device(&rig, "f", SIZE));
    until("a goodbye", || gate.farewells.load(Ordering::SeqCst) > before);
    assert_eq!(gate.dropped.load(Ordering::SeqCst), 0);
}

#[test]
fn two_owners_that_lean_on_each_other_do_not_lock_up() {
    // So little room that every connection is full all the time.
    let rig = Rig { room: 256 << 10, loops: 1, ..Rig::new() };
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    let mut trees = Vec::new();
    for (volume, owner) in [("v-1", &a), ("v-2", &b)] {
        let (ta, tb) = (format!("{volume}-a"), format!("{volume}-b"));
        a.leaf(&ta, SIZE);
        b.leaf(&tb, SIZE);
        let root = mirror(&[(true, leaf(&ta, SIZE)), (true, leaf(&tb, SIZE))]);
        let tree = Tree::new(1, SIZE, root, &[(&ta, &a), (&tb, &b)]).owned_by(owner);
        trees.push(Tree { volume: volume.into(), name: volume.into(), ..tree });
    }
    for sp in [&a, &b] {
        for tree in &trees {
            sp.activate(tree);
        }
    }
    // Each SP's hosts write to the volume that the other one owns.
    let mut hosts = Vec::new();
    for lane in 0..8u64 {
        let (address, volume) = if lane % 2 == 0 { (&b.nbd, "v-1") } else { (&a.nbd, "v-2") };
        let (address, volume) = (address.clone(), volume);
        hosts.push(std::thread::spawn(move || {
            let mut host = Nbd::connect(&address, volume);
            for _ in 0..12 {
                for n in 0..8 {
                    host.send(WRITE, 0, lane * 65_536, 65_536, &vec![n; 65_536]);
                }
                for _ in 0..8 {
                    assert_eq!(host.reply().expect("a reply").1, 0);
                }
            }
        }));
    }
    for host in hosts {
        host.join().expect("a host");
    }
    a.stop();
    b.stop();
}

#[test]
fn a_write_of_a_dead_connection_is_not_carried_out_later() {
    let rig = Rig::new();
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    b.leaf("t", SIZE);
    let tree = Tree::new(1, SIZE, leaf("t", SIZE), &[("t", &b)]).owned_by(&a);
    a.activate(&tree);
    let mut dead = a.host();
    b.fence("t", 2);
    dead.send(WRITE, 0, 0, 4, b"dead");
    until("it waits", || a.metrics()["volumes"][0]["inflight"] == 1);
    drop(dead);
    until("it is given up", || a.metrics()["volumes"][0]["inflight"] == 0);
    a.activate(&Tree { version: 2, ..tree });
    assert_eq!(a.host().read(0, 4).expect("read"), [0; 4]);
    a.stop();
    b.stop();
}

#[test]
fn a_removal_answers_what_runs_and_leaves_what_waits_to_another_path() {
    let rig = Rig::new();
    let (sp, gate) = gated(&rig);
    sp.leaf("f", SIZE);
    let root = concat(&[leaf("t", SIZE), leaf("f", SIZE)]);
    sp.activate(&Tree::new(1, 2 * SIZE, root, &[("t", &sp), ("f", &sp)]));
    gate.hold();
    let (mut runs, mut waits) = (sp.host(), sp.host());
    runs.send(WRITE, 0, 0, 4, b"runs");
    until("the write is held", || gate.waiting.load(Ordering::SeqCst) == 1);
    sp.fence("f", 2);
    waits.send(WRITE, 0, SIZE, 5, b"waits");
    until("both are there", || sp.metrics()["volumes"][0]["inflight"] == 2);
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| sp.engine.t2_remove("v-1", 10.0));
        // No error for it: a host then sends it again over another connection.
        assert!(waits.is_closed());
        gate.open();
        assert_eq!(runs.reply().expect("a reply").1, 0);
        assert!(runs.is_closed());
        removal.join().expect("no panic").expect("removal");
    });
    assert_eq!(gate.bytes(DATA, 4), b"runs");
    sp.stop();
}
