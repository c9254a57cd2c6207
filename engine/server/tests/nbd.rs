//! Hosts: every command over TCP and unix sockets, and what is said to bad requests.

mod rig;

use rig::nbd::{CACHE, DISC, FAST_ZERO, FUA, READ, REQ_ONE, Socket, WRITE};
use rig::*;

const SIZE: u64 = 32 * MIB;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

fn one_leaf(rig: &Rig) -> Sp {
    let sp = rig.sp("sp-a");
    sp.leaf("t", SIZE);
    sp.activate(&Tree::new(1, SIZE, leaf("t", SIZE), &[("t", &sp)]));
    sp
}

#[test]
fn all_commands_over_tcp_and_unix() {
    let rig = Rig::new();
    let sp = one_leaf(&rig);
    let path = rig.file("socket");
    let unix = sp.engine.listen_nbd(&format!("unix:{}", path.display())).expect("a socket");
    for (salt, address) in [(1, &sp.nbd), (2, &unix)] {
        let mut host = Nbd::connect(address, "vol");
        assert_eq!(host.size, SIZE);
        assert_ne!(host.flags & (1 << 8), 0, "several connections are fine");
        for (offset, length) in [(0, 512), (3, 1), (4095, 4098), (MIB - 7, 300_000)] {
            let data = pattern(salt, offset, length);
            host.write(offset, &data).expect("write");
            assert!(host.read(offset, length).expect("read") == data, "{offset}+{length}");
        }
        host.write_fua(8 * MIB, &pattern(salt, 8 * MIB, 70_000)).expect("FUA");
        host.flush().expect("flush");
        host.cache(0, MIB).expect("cache");
        host.trim(8 * MIB, 4096).expect("trim");
        assert!(host.read(8 * MIB, 4096).expect("read") == vec![0; 4096], "trimmed is zero");
        host.zero(FUA, 8 * MIB + 4096, 4096).expect("zeroes");
        let after = host.read(8 * MIB + 4096, 8192).expect("read");
        assert!(after[..4096] == [0; 4096]);
        assert!(after[4096..] == pattern(salt, 8 * MIB + 8192, 4096));
        host.zero(FAST_ZERO, 9 * MIB, MIB).expect("files are zeroed fast");
    }
    sp.stop();
    assert!(!path.exists(), "the socket's file goes with the listener");
}

#[test]
fn a_request_of_64_mib_is_served_and_answers_stay_in_step() {
    let rig = Rig::new();
    let sp = rig.sp("sp-a");
    sp.leaf("t", 64 * MIB);
    sp.activate(&Tree::new(1, 64 * MIB, leaf("t", 64 * MIB), &[("t", &sp)]));
    let mut host = sp.host();
    let data = pattern(3, 0, 64 << 20);
    host.write(0, &data).expect("write");
    assert!(host.read(0, 64 << 20).expect("read") == data);
    host.write(5, b"after").expect("write");
    assert_eq!(host.read(5, 5).expect("read"), b"after");
    sp.stop();
}

#[test]
fn pipelined_requests_are_all_answered() {
    let rig = Rig::new();
    let sp = one_leaf(&rig);
    let mut host = sp.host();
    let mut wanted = std::collections::HashMap::new();
    for n in 0..400u64 {
        let data = pattern(n, n * 4096, 4096);
        wanted.insert(host.send(WRITE, 0, n * 4096, 4096, &data), ());
        wanted.insert(host.send(CACHE, 0, 0, 4096, &[]), ());
    }
    while !wanted.is_empty() {
        let (cookie, error) = host.reply().expect("a reply");
        assert_eq!(error, 0);
        wanted.remove(&cookie).expect("asked, and answered once");
    }
    for n in 0..400u64 {
        assert!(host.read(n * 4096, 4096).expect("read") == pattern(n, n * 4096, 4096));
    }
    sp.stop();
}

#[test]
fn bad_requests_get_their_error_and_the_session_goes_on() {
    let rig = Rig::new();
    let sp = one_leaf(&rig);
    let mut host = sp.host();
    assert_eq!(host.write(SIZE - 4, &[1; 8]), Err(ENOSPC));
    assert_eq!(host.read(SIZE - 4, 8), Err(EINVAL));
    assert_eq!(host.read(u64::MAX - 2, 8), Err(EINVAL));
    assert_eq!(host.trim(SIZE, 1), Err(EINVAL));
    assert_eq!(host.zero(0, SIZE, 1), Err(ENOSPC));
    host.send(77, 0, 0, 0, &[]);
    assert_eq!(host.reply().expect("a reply").1, EINVAL);
    host.send(READ, 0x8000, 0, 1, &[]);
    assert_eq!(host.reply().expect("a reply").1, EINVAL);
    // Larger than what may be asked for, with its payload.
    let too_much = (64 << 20) + 1;
    host.send(WRITE, 0, 0, too_much, &vec![7; too_much as usize]);
    assert_eq!(host.reply().expect("a reply").1, EINVAL);
    host.write(0, b"fine").expect("the stream is still in step");
    sp.stop();
}

#[test]
fn nonsense_closes_that_connection_only() {
    let rig = Rig::new();
    let sp = one_leaf(&rig);
    let (mut good, mut bad) = (sp.host(), sp.host());
    bad.socket.send(&[0x55; 28]).expect("nonsense");
    assert!(bad.is_closed());
    let mut worse = Socket::connect(&sp.nbd);
    worse.take(18);
    worse.send(&[0xff; 4]).expect("nonsense");
    assert!(worse.receive(&mut [0]).is_err());
    good.write(0, b"x").expect("others are not harmed");
    assert_eq!(sp.metrics()["protocol_errors"], 2);
    sp.stop();
}

#[test]
fn options_are_answered_as_the_protocol_says() {
    let rig = Rig::new();
    let sp = one_leaf(&rig);
    let mut host = Nbd::greeted(&sp.nbd);
    assert_eq!(host.go("nothing").unwrap_err(), (1 << 31) | 6, "ERR_UNKNOWN");
    assert_eq!(host.option(5, &[])[0].0, (1 << 31) | 1, "no TLS here");
    let listed = host.option(3, &[]);
    assert_eq!(listed[0], (2, b"\0\0\0\x03vol".to_vec()));
    host.go("vol").expect("and then the right one");
    host.write(0, b"x").expect("write");
    host.send(DISC, 0, 0, 0, &[]);
    assert!(host.is_closed());
    sp.stop();
}

#[test]
fn block_status_is_composed_through_the_tree() {
    let rig = Rig::new();
    let sp = rig.sp("sp-a");
    for t1 in ["a", "b", "c"] {
        sp.leaf(t1, 8 * MIB);
    }
    let (a, b, c) = (leaf("a", 8 * MIB), leaf("b", 8 * MIB), leaf("c", 8 * MIB));
    let root = concat(&[stripe(MIB, &[a, b]), c]);
    sp.activate(&Tree::new(1, 24 * MIB, root, &[("a", &sp), ("b", &sp), ("c", &sp)]));
    let mut host = Nbd::structured(&sp.nbd, "vol");
    host.write(2 * MIB, &pattern(1, 2 * MIB, 1 << 20)).expect("write");
    host.write(17 * MIB, &pattern(1, 17 * MIB, 1 << 20)).expect("write");
    let (allocation, health) = host.status(0, 0, 24 * MIB).expect("status");
    let mib = MIB as u32;
    let expected = [(2 * mib, 3), (mib, 0), (14 * mib, 3), (mib, 0), (6 * mib, 3)];
    assert_eq!(allocation, expected);
    assert_eq!(health, [(24 * mib, 0)]);
    let (one, _) = host.status(REQ_ONE, 0, 24 * MIB).expect("status");
    assert_eq!(one, [(2 * mib, 3)]);
    assert!(host.read(2 * MIB, 4096).expect("a structured read") == pattern(1, 2 * MIB, 4096));
    assert_eq!(host.read(24 * MIB, 1), Err(EINVAL));
    assert_eq!(host.status(0, 24 * MIB, 1), Err(EINVAL));
    sp.stop();
}

#[test]
fn a_growing_volume_is_writable_at_once_on_open_sessions() {
    let rig = Rig::new();
    let sp = one_leaf(&rig);
    let mut host = sp.host();
    assert_eq!(host.write(SIZE, b"x"), Err(ENOSPC));
    sp.leaf("u", SIZE);
    sp.fence("t", 2);
    let root = concat(&[leaf("t", SIZE), leaf("u", SIZE)]);
    sp.activate(&Tree::new(2, 2 * SIZE, root, &[("t", &sp), ("u", &sp)]));
    host.write(SIZE - 2, b"across").expect("the new size holds at once");
    assert_eq!(host.read(SIZE - 2, 6).expect("read"), b"across");
    sp.stop();
}

#[test]
fn a_removed_volume_closes_its_sessions_and_keeps_its_bytes() {
    let rig = Rig::new();
    let sp = one_leaf(&rig);
    let mut host = sp.host();
    host.write(0, b"kept").expect("write");
    sp.engine.t2_remove("v-1", 5.0).expect("removal");
    sp.engine.t2_remove("v-1", 5.0).expect("again is fine");
    assert!(host.is_closed());
    assert_eq!(Nbd::greeted(&sp.nbd).go("vol").unwrap_err(), (1 << 31) | 6);
    sp.activate(&Tree::new(2, SIZE, leaf("t", SIZE), &[("t", &sp)]));
    assert_eq!(sp.host().read(0, 4).expect("read"), b"kept");
    sp.stop();
}

#[test]
fn a_slow_reader_stops_only_itself() {
    let rig = Rig::new();
    let sp = one_leaf(&rig);
    let mut slow = sp.host();
    let mut sent = 0;
    // Far more than sockets and the engine hold; the requests themselves are small.
    for _ in 0..200 {
        slow.send(READ, 0, 0, 4 << 20, &[]);
        sent += 1;
    }
    let mut others: Vec<Nbd> = (0..4).map(|_| sp.host()).collect();
    for host in &mut others {
        host.write(0, &[9; 4096]).expect("others go on");
    }
    for _ in 0..sent {
        assert_eq!(slow.reply().expect("a reply").1, 0);
        slow.socket.take(4 << 20);
    }
    sp.stop();
}

#[test]
fn a_device_that_lost_its_blocks_gives_errors_and_not_a_crash() {
    let rig = Rig::new();
    let sp = one_leaf(&rig);
    let file = std::fs::File::options().write(true).open(rig.file("d-t")).expect("the file");
    file.set_len(DATA + MIB).expect("truncate");
    let mut host = sp.host();
    assert!(host.read(0, 4096).is_ok());
    assert_eq!(host.read(2 * MIB, 4096), Err(5));
    assert_eq!(host.read(MIB - 512, 1 << 20), Err(5));
    assert!(host.read(0, 4096).is_ok(), "the session goes on");
    sp.engine.shutdown(5.0);
}

#[test]
fn shutdown_answers_what_is_in_flight() {
    let rig = Rig::new();
    let sp = one_leaf(&rig);
    let mut host = sp.host();
    let cookies: Vec<u64> =
        (0..64).map(|n| host.send(WRITE, FUA, n * 4096, 4096, &[n as u8; 4096])).collect();
    // The first answer shows that the engine has begun to read them.
    assert_eq!(host.reply().expect("a reply").1, 0);
    sp.stop();
    let mut answered = 1;
    while let Ok((cookie, error)) = host.reply() {
        assert!(cookies.contains(&cookie) && error == 0);
        answered += 1;
    }
    assert!((1..=64).contains(&answered));
}

#[test]
fn fua_writes_few_and_many_are_all_there() {
    let rig = Rig::new();
    let sp = rig.sp("sp-a");
    sp.leaf("t", SIZE);
    sp.leaf("u", SIZE);
    let root = mirror(&[(true, leaf("t", SIZE)), (true, leaf("u", SIZE))]);
    sp.activate(&Tree::new(1, SIZE, root, &[("t", &sp), ("u", &sp)]));
    let mut wanted = vec![0; SIZE as usize];
    for (salt, count) in [(1, 1), (2, 3), (3, 40), (4, 200)] {
        let mut host = sp.host();
        let mut open = std::collections::HashSet::new();
        for n in 0..count {
            // Pieces that overlap have an order of their own; these do not.
            let at = n * 40_000 + salt * 100;
            let length = if n % 7 == 3 { 30_000 } else { 512 };
            let data = pattern(salt, at, length);
            wanted[at as usize..at as usize + length].copy_from_slice(&data);
            open.insert(host.send(WRITE, FUA, at, length as u64, &data));
        }
        while !open.is_empty() {
            let (cookie, error) = host.reply().expect("a reply");
            assert!(error == 0 && open.remove(&cookie));
        }
        assert!(host.read(0, SIZE as usize).expect("read") == wanted, "{count} at once");
    }
    let metrics = sp.metrics();
    assert_eq!(metrics["volumes"][0]["inflight"], 0);
    sp.stop();
    for t1 in ["t", "u"] {
        assert!(on_device(&rig, t1, SIZE) == wanted, "leg {t1}");
    }
}
