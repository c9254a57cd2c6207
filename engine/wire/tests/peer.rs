//! The peer protocol: fixed bytes, round trips, refusals, and no panic on anything.

use proptest::prelude::*;
use vs_wire::WireError;
use vs_wire::peer::{
    EXPIRES, FUA, Hello, Op, REPLY_LEN, REQUEST_LEN, Reply, Request, Status, Welcome, put_extents,
    take_extents,
};

fn hello(name: &str) -> Hello {
    Hello {
        cluster: name.into(),
        client: "sp-a".into(),
        incarnation: "i".into(),
        slot: 1,
        attempt: 2,
        server: "sp-b".into(),
    }
}

fn bytes(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

#[test]
fn headers_are_little_endian_and_of_fixed_size() {
    let request = Request {
        op: Op::Write,
        flags: FUA | EXPIRES,
        handle: 3,
        id: 4,
        epoch: 5,
        offset: 0x1000,
        length: 0x200,
        payload: 0x200,
        until: 0x0102_0304,
    };
    let encoded = bytes(|out| request.encode(out));
    assert_eq!(
        encoded,
        b"\x02\x11\0\0\x03\0\0\0\x04\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\
          \0\x10\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\x04\x03\x02\x01"
    );
    let reply = Reply { status: Status::Busy, id: 4, payload: 0, clock: 5 };
    assert_eq!(bytes(|out| reply.encode(out)), b"\x07\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x05\0\0\0");
}

#[test]
fn another_version_is_told_from_no_peer() {
    assert_eq!(Hello::decode(b"VSPEER01\0\0"), Err(WireError::PeerVersion));
    assert!(matches!(Hello::decode(b"GET / HTTP/1.1"), Err(WireError::BadMagic(_))));
}

#[test]
fn welcomes_come_back() {
    for welcome in [Welcome::Ok, Welcome::WrongCluster, Welcome::WrongServer, Welcome::WrongVersion]
    {
        let encoded = bytes(|out| welcome.encode(9, out));
        assert_eq!(Welcome::decode(&encoded), Ok(Some((welcome, 9))));
    }
    assert!(Welcome::decode(b"VSPEERok\x09").is_err());
}

#[test]
fn a_name_too_long_is_cut_between_characters() {
    let encoded = bytes(|out| hello(&"\u{e9}".repeat(200)).encode(out));
    let (decoded, used) = Hello::decode(&encoded).unwrap().unwrap();
    assert_eq!((decoded.cluster.len(), used), (254, encoded.len()));
}

#[test]
fn requests_that_make_no_sense_end_the_stream() {
    let fits = Request {
        op: Op::Read,
        flags: 0,
        handle: 0,
        id: 0,
        epoch: 0,
        offset: 0,
        length: 512,
        payload: 0,
        until: 0,
    };
    let decode = |request: Request| Request::decode(&bytes(|out| request.encode(out)));
    assert_eq!(decode(fits), Ok(Some(fits)));
    for bad in [
        Request { length: (64 << 20) + 1, ..fits },
        Request { payload: 1, ..fits },
        Request { op: Op::Write, payload: 511, ..fits },
        Request { op: Op::Flush, payload: 1, ..fits },
        Request { op: Op::Open, payload: 256, ..fits },
    ] {
        assert!(decode(bad).is_err(), "{bad:?}");
    }
    for index in [2, 3, 44, 47] {
        let mut encoded = bytes(|out| fits.encode(out));
        encoded[index] = 1;
        assert!(Request::decode(&encoded).is_err(), "reserved byte {index}");
    }
}

#[test]
fn extents_are_checked_against_the_request() {
    let payload = bytes(|out| put_extents(&[(512, 0), (1 << 40, 3)], out));
    assert_eq!(payload.len(), 32);
    assert_eq!(take_extents(&payload, 1 << 41), Ok(vec![(512, 0), (1 << 40, 3)]));
    assert!(take_extents(&payload, 1 << 40).is_err(), "more than was asked for");
    assert!(take_extents(&payload[..31], 1 << 41).is_err(), "cut");
    assert!(take_extents(&bytes(|out| put_extents(&[(0, 0)], out)), 9).is_err(), "empty");
}

proptest! {
    #[test]
    fn nothing_panics(input in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (Hello::decode(&input), Welcome::decode(&input), take_extents(&input, u64::MAX));
        let _ = (Request::decode(&input), Reply::decode(&input));
        let framed = [b"VSPEER01".as_slice(), &input].concat();
        let _ = Hello::decode(&framed);
    }

    #[test]
    fn messages_round_trip_and_wait_for_their_end(
        id in any::<u64>(),
        epoch in any::<u64>(),
        offset in any::<u64>(),
        payload in 0u32..1000,
        name in "[a-z]{0,40}",
    ) {
        let length = u64::from(payload);
        let (op, flags, handle, until) = (Op::Write, FUA, 3, 0);
        let request = Request { op, flags, handle, id, epoch, offset, length, payload, until };
        let encoded = bytes(|out| request.encode(out));
        prop_assert_eq!(encoded.len(), REQUEST_LEN);
        prop_assert_eq!(Request::decode(&encoded), Ok(Some(request)));
        prop_assert_eq!(Request::decode(&encoded[..REQUEST_LEN - 1]), Ok(None));
        let reply = Reply { status: Status::Stale, id, payload, clock: 7 };
        let encoded = bytes(|out| reply.encode(out));
        prop_assert_eq!(encoded.len(), REPLY_LEN);
        prop_assert_eq!(Reply::decode(&encoded), Ok(Some(reply)));
        prop_assert_eq!(Reply::decode(&encoded[..REPLY_LEN - 1]), Ok(None));
        let hello = hello(&name);
        let encoded = bytes(|out| hello.encode(out));
        prop_assert_eq!(Hello::decode(&encoded), Ok(Some((hello, encoded.len()))));
        for cut in 0..encoded.len() {
            prop_assert_eq!(Hello::decode(&encoded[..cut]), Ok(None));
        }
    }
}
