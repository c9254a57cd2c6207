//! Encodings against the protocol's own bytes, and no panic on anything.

use proptest::prelude::*;
use vs_wire::nbd::handshake::{Exports, Handshake, Negotiated, Outcome, Tls};
use vs_wire::nbd::transmission::{Request, Style, decode, encode_request};
use vs_wire::nbd::{client, command, command_flag, errno, option, uri};
use vs_wire::peer;

struct One;

impl Exports for One {
    fn names(&self) -> Vec<String> {
        vec!["vol".into()]
    }
    fn find(&self, name: &str) -> Option<(u64, u16)> {
        (name == "vol").then_some((1 << 20, 0x1ed))
    }
}

fn opt(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = b"IHAVEOPT".to_vec();
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

fn go(name: &str) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend([0, 0]);
    data
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// Feeds input in pieces of `step` bytes; gives the replies and how it ended.
fn run(tls: Tls, input: &[u8], step: usize) -> (Vec<u8>, Outcome) {
    let mut out = Vec::new();
    let mut shake = Handshake::new(tls, &mut out);
    let mut have = Vec::new();
    for part in input.chunks(step.max(1)) {
        have.extend(part);
        loop {
            match shake.feed(&have, &One, &mut out) {
                Ok((0, Outcome::More)) => break,
                Ok((used, Outcome::More)) => drop(have.drain(..used)),
                Ok((_, end)) => return (out, end),
                Err(_) => return (out, Outcome::Close),
            }
        }
    }
    (out, Outcome::More)
}

#[test]
fn go_gives_what_was_agreed() {
    let mut input = 3u32.to_be_bytes().to_vec();
    input.extend(opt(option::STRUCTURED_REPLY, &[]));
    input.extend(opt(option::SET_META_CONTEXT, &contexts("vol", &["base:allocation", "x:y"])));
    input.extend(opt(option::GO, &go("vol")));
    let (out, end) = run(Tls::Unavailable, &input, 7);
    let agreed =
        Negotiated { export: "vol".into(), structured: true, extended: false, contexts: vec![1] };
    assert_eq!(end, Outcome::Done(agreed));
    assert_eq!(&out[..18], b"NBDMAGICIHAVEOPT\x00\x03");
    let context =
        b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0a\0\0\0\x04\0\0\0\x13\0\0\0\x01base:allocation";
    assert!(out.windows(context.len()).any(|found| found == context));
}

#[test]
fn an_unknown_export_is_named() {
    let mut input = 1u32.to_be_bytes().to_vec();
    input.extend(opt(option::GO, &go("nope")));
    let (out, end) = run(Tls::Unavailable, &input, 1000);
    assert_eq!(end, Outcome::More);
    assert!(String::from_utf8_lossy(&out).contains("no volume named 'nope'"));
    assert!(out.windows(4).any(|word| word == [0x80, 0, 0, 6]));
}

#[test]
fn tls_can_be_refused_offered_and_required() {
    let mut input = 1u32.to_be_bytes().to_vec();
    input.extend(opt(option::STARTTLS, &[]));
    assert!(run(Tls::Unavailable, &input, 99).0.ends_with(b"option not supported"));
    assert_eq!(run(Tls::Offered, &input, 99).1, Outcome::StartTls);
    let mut plain = 1u32.to_be_bytes().to_vec();
    plain.extend(opt(option::GO, &go("vol")));
    let (out, end) = run(Tls::Required, &plain, 99);
    assert_eq!(end, Outcome::More);
    assert!(out.windows(4).any(|word| word == [0x80, 0, 0, 5]));
}

#[test]
fn export_name_pads_unless_told_not_to() {
    for (flags, length) in [(1u32, 18 + 10 + 124), (3, 18 + 10)] {
        let mut input = flags.to_be_bytes().to_vec();
        input.extend(opt(option::EXPORT_NAME, b"vol"));
        assert_eq!(run(Tls::Unavailable, &input, 5).0.len(), length);
    }
}

#[test]
fn a_request_is_28_bytes_of_network_order() {
    let bytes = b"\x25\x60\x95\x13\x00\x01\x00\x01\0\0\0\0\0\0\0\x2a\0\0\0\0\0\0\x10\0\0\0\x02\0";
    let request = decode(bytes, false).unwrap().unwrap();
    assert_eq!(request, Request { flags: 1, command: 1, cookie: 42, offset: 4096, length: 512 });
    let mut again = Vec::new();
    encode_request(&request, false, &mut again);
    assert_eq!(again, bytes);
    assert_eq!(decode(&bytes[..27], false), Ok(None));
    assert!(decode(b"\x25\x60\x95\x14", false).is_err());
}

#[test]
fn checks_answer_in_the_protocols_terms() {
    let request =
        |command, flags, offset, length| Request { flags, command, cookie: 0, offset, length };
    let check = |r: Request| r.check(1 << 20, true, true);
    assert_eq!(check(request(command::READ, 0, 1 << 20, 1)), Err(errno::EINVAL));
    assert_eq!(check(request(command::WRITE, 0, (1 << 20) - 1, 2)), Err(errno::ENOSPC));
    assert_eq!(check(request(command::READ, 0, u64::MAX, 2)), Err(errno::EINVAL));
    assert_eq!(check(request(command::READ, 0, 0, 65 << 20)), Err(errno::EOVERFLOW));
    assert_eq!(check(request(9, 0, 0, 0)), Err(errno::EINVAL));
    assert_eq!(check(request(command::TRIM, command_flag::DF, 0, 1)), Err(errno::EINVAL));
    assert_eq!(check(request(command::WRITE, command_flag::FUA, 5, 7)), Ok(()));
}

#[test]
fn replies_have_the_documented_sizes() {
    let request = Request { flags: 0, command: command::READ, cookie: 7, offset: 1, length: 9 };
    for (style, read, done) in
        [(Style::Simple, 16, 16), (Style::Structured, 28, 16), (Style::Extended, 40, 32)]
    {
        let mut out = Vec::new();
        style.read(&mut out, &request);
        assert_eq!((out.len(), style.read_header()), (read, read));
        out.clear();
        style.done(&mut out, &request);
        assert_eq!(out.len(), done);
    }
}

#[test]
fn uris() {
    use uri::{Address, NbdUri};
    let parse = |text| NbdUri::parse(text).unwrap();
    assert_eq!(
        parse("nbd://h/e%20x"),
        NbdUri { address: Address::Tcp("h:10809".into()), export: "e x".into() }
    );
    assert_eq!(
        parse("nbd://h:1/"),
        NbdUri { address: Address::Tcp("h:1".into()), export: String::new() }
    );
    let unix = NbdUri { address: Address::Unix("/run/s".into()), export: "e".into() };
    assert_eq!(parse("nbd+unix:///e?socket=/run/s"), unix);
    for bad in ["http://x", "nbd://", "nbd+unix:///e", "nbd://h/%z"] {
        assert!(NbdUri::parse(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn nothing_panics(input in prop::collection::vec(any::<u8>(), 0..300), step in 1usize..50) {
        run(Tls::Offered, &input, step);
        let mut greeted = 1u32.to_be_bytes().to_vec();
        greeted.extend(b"IHAVEOPT");
        greeted.extend(&input);
        run(Tls::Unavailable, &greeted, step);
        let _ = (decode(&input, false), decode(&input, true), client::decode_reply(&input));
        let _ = (peer::Hello::decode(&input), peer::Request::decode(&input), peer::Reply::decode(&input));
        let _ = client::Handshake::new("x").feed(&input, &mut Vec::new());
    }

    #[test]
    fn a_handshake_may_be_cut_anywhere(step in 1usize..200, names in prop::collection::vec("[a-z:]{0,20}", 0..4)) {
        let queries: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut input = 3u32.to_be_bytes().to_vec();
        input.extend(opt(option::LIST, &[]));
        input.extend(opt(option::EXTENDED_HEADERS, &[]));
        input.extend(opt(option::LIST_META_CONTEXT, &contexts("vol", &queries)));
        input.extend(opt(99, b"junk"));
        input.extend(opt(option::GO, &go("vol")));
        prop_assert_eq!(run(Tls::Unavailable, &input, step), run(Tls::Unavailable, &input, 10_000));
    }

    #[test]
    fn peer_messages_round_trip(id in any::<u64>(), epoch in any::<u64>(), offset in any::<u64>(), payload in 0u32..1000, name in "[a-z]{0,40}") {
        let request = peer::Request { op: peer::Op::Write, flags: peer::FUA, handle: 3, id, epoch, offset, length: u64::from(payload), payload };
        let mut out = Vec::new();
        request.encode(&mut out);
        prop_assert_eq!(out.len(), peer::REQUEST_LEN);
        prop_assert_eq!(peer::Request::decode(&out), Ok(Some(request)));
        let reply = peer::Reply { status: peer::Status::Stale, id, payload };
        out.clear();
        reply.encode(&mut out);
        prop_assert_eq!(peer::Reply::decode(&out), Ok(Some(reply)));
        let hello = peer::Hello { cluster: name.clone(), client: name.clone(), incarnation: "i".into(), slot: 1, attempt: id, server: name };
        out.clear();
        hello.encode(&mut out);
        prop_assert_eq!(peer::Hello::decode(&out), Ok(Some((hello, out.len()))));
        for cut in 0..out.len() {
            prop_assert_eq!(peer::Hello::decode(&out[..cut]), Ok(None));
        }
    }
}
