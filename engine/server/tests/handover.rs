//! An SP's process that is replaced while hosts are connected: they see nothing of it.

mod rig;

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rig::gate::Gate;
use rig::nbd::{FLUSH, WRITE};
use rig::*;
use vs_server::{Legacy, Speaks};

const SIZE: u64 = 8 * MIB;

fn tree(sp: &Sp) -> Tree {
    Tree::new(1, SIZE, leaf("a", SIZE), &[("a", sp)])
}

/// Another process's descriptor for what `fd` is of.
fn sent(fd: OwnedFd) -> OwnedFd {
    let raw = fd.into_raw_fd();
    // SAFETY: it was just taken out of its owner.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// A process after `old`, at the same addresses.
fn heir(rig: &Rig, old: &Sp, count: usize) -> Sp {
    let Legacy { clean, listeners, sessions } = old.engine.hand_over(10.0);
    assert!(clean && sessions.len() == count, "{}", sessions.len());
    let mut new = rig.sp(&old.name);
    new.device("d-a", SIZE);
    new.activate(&tree(&new));
    // The rig has given each process addresses of its own, too.
    assert!(
        listeners.iter().any(|(_, speaks, address)| *speaks == Speaks::Nbd && *address == old.nbd)
    );
    for (fd, speaks, address) in listeners {
        assert!(new.engine.take_listener(sent(fd), speaks).expect("a listener") == address);
    }
    for one in sessions {
        let facts = one.facts();
        new.engine.take_session(sent(one.fd), &facts, one.unread).expect("a session");
    }
    new.nbd.clone_from(&old.nbd);
    new
}

fn first(rig: &Rig) -> Sp {
    let a = rig.sp("sp-a");
    a.leaf("a", SIZE);
    a.activate(&tree(&a));
    a
}

#[test]
fn hosts_go_on_with_the_next_process() {
    let rig = Rig::new();
    let mut sp = first(&rig);
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..3)
        .map(|writer: u64| {
            let connect = if writer == 1 { Nbd::structured } else { Nbd::connect };
            let mut host = connect(&sp.nbd, "vol");
            let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
            thread::spawn(move || {
                let mut turn = 0;
                while !stop.load(Ordering::SeqCst) {
                    turn += 1;
                    let at = writer * 2 * MIB + turn % 16 * 65536;
                    // Small ones wait in the input, large ones have buffers of their own.
                    let length = if turn % 2 == 0 { 65536 } else { 4096 };
                    let data = pattern(turn, at, length);
                    host.write(at, &data).expect("a write");
                    assert!(host.read(at, length).expect("a read") == data);
                    written.fetch_add(1, Ordering::SeqCst);
                }
                host
            })
        })
        .collect();
    let mut idle = sp.host();
    for _ in 0..5 {
        let before = written.load(Ordering::SeqCst);
        until("writes", || written.load(Ordering::SeqCst) > before + 50);
        sp = heir(&rig, &sp, 4);
    }
    let before = written.load(Ordering::SeqCst);
    until("writes", || written.load(Ordering::SeqCst) > before + 50);
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.join().expect("a writer").flush().expect("a flush");
    }
    idle.write(7 * MIB, &pattern(9, 0, 4096)).expect("a write of the idle one");
    assert!(sp.host().read(7 * MIB, 4096).expect("a read") == pattern(9, 0, 4096));
    sp.stop();
}

#[test]
fn a_request_that_was_half_there_is_carried_out_once_it_is_whole() {
    for (length, part) in [(4096, 1000), (MIB as usize, 300_000), (MIB as usize, 0)] {
        let rig = Rig::new();
        let old = first(&rig);
        let mut host = old.host();
        let data = pattern(3, 0, length);
        // Before it a request of which all is there, so that the rest is known to be read ahead.
        host.write(4 * MIB, &pattern(1, 0, 4096)).expect("a write");
        host.send(WRITE, 0, 0, length as u64, &data[..part]);
        let new = heir(&rig, &old, 1);
        host.socket.send(&data[part..]).expect("the rest");
        let (_, error) = host.reply().expect("a reply");
        assert!(error == 0);
        assert!(new.host().read(0, length).expect("a read") == data);
        new.stop();
    }
}

#[test]
fn what_was_asked_of_the_old_process_is_answered_by_one_of_them() {
    let rig = Rig::new();
    let old = first(&rig);
    let mut host = old.host();
    for turn in 0..200 {
        host.send(WRITE, 0, turn * 4096, 4096, &pattern(turn, 0, 4096));
    }
    host.send(FLUSH, 0, 0, 0, &[]);
    let new = heir(&rig, &old, 1);
    for _ in 0..201 {
        let (_, error) = host.reply().expect("a reply");
        assert!(error == 0);
    }
    for turn in 0..200 {
        assert!(host.read(turn * 4096, 4096).expect("a read") == pattern(turn, 0, 4096));
    }
    new.stop();
}

#[test]
fn of_a_host_that_left_meanwhile_nothing_is_carried_out() {
    let rig = Rig::new();
    let old = first(&rig);
    old.host().write(0, &pattern(1, 0, 4096)).expect("a write");
    let mut host = old.host();
    let Legacy { sessions, .. } = old.engine.hand_over(10.0);
    let one = sessions.into_iter().next_back().expect("a session");
    host.send(WRITE, 0, 0, 4096, &pattern(2, 0, 4096));
    drop(host);
    let new = rig.sp("sp-a");
    new.device("d-a", SIZE);
    new.activate(&tree(&new));
    let facts = one.facts();
    new.engine.take_session(sent(one.fd), &facts, one.unread).expect("a session");
    until("it to be closed", || {
        let sessions = new.metrics()["sessions"].clone();
        sessions.as_object().expect("sessions").values().all(|count| *count == 0)
    });
    assert!(new.host().read(0, 4096).expect("a read") == pattern(1, 0, 4096));
    assert!(new.engine.take_session(sent(fds()), "{}", Vec::new()).is_err());
    new.stop();
}

/// Any open descriptor.
fn fds() -> OwnedFd {
    std::fs::File::open("/dev/null").expect("/dev/null").into()
}

#[test]
fn what_does_not_listen_is_no_listener() {
    let rig = Rig::new();
    let sp = first(&rig);
    assert!(sp.engine.take_listener(fds(), Speaks::Nbd).is_err());
    assert!(vs_server::given(-1).is_err());
    sp.stop();
}

#[test]
fn a_host_that_is_asked_to_go_is_answered_all_that_it_has_asked_for() {
    // So little may be in flight that the rest waits in the socket.
    let rig = Rig { room: MIB / 8, loops: 1, ..Rig::new() };
    let sp = rig.sp("sp-a");
    let gate = Gate::start((DATA + SIZE) as usize);
    sp.engine.device_add(&gate.uri(), 0, "d-a", How::default()).expect("a device");
    sp.put("a", SIZE, &[("d-a", DATA, SIZE)], 1);
    sp.activate(&tree(&sp));
    let (mut host, mut idle) = (sp.host(), sp.host());
    host.write(0, &pattern(1, 0, 4096)).expect("a write");
    gate.hold();
    let requests = 64;
    let length = MIB / 64;
    for turn in 0..requests {
        host.send(WRITE, 0, turn * length, length, &pattern(turn, 0, length as usize));
    }
    until("writes to be on their way", || gate.waiting.load(Ordering::SeqCst) > 0);
    let nbd = sp.nbd.clone();
    let ends = thread::spawn(move || sp.stop());
    until("it to end", || std::net::TcpStream::connect(&nbd).is_err());
    gate.open();
    for turn in 0..requests {
        let (_, error) = host.reply().unwrap_or_else(|e| panic!("request {turn}: {e}"));
        assert!(error == 0);
    }
    // Nothing is lost with a connection that rests: it ends, and was not reset.
    for host in [&mut host, &mut idle] {
        let end = host.reply().expect_err("the end");
        assert!(end.kind() == std::io::ErrorKind::UnexpectedEof, "{end}");
    }
    ends.join().expect("the end");
}
