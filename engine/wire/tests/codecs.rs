//! Encodings against the protocol's own bytes, and no panic on anything.

use proptest::prelude::*;
use vs_wire::nbd::handshake::{Exports, Handshake, Negotiated, Outcome, Tls};
use vs_wire::nbd::transmission::{Request, Style, decode, encode_request};
use vs_wire::nbd::{command, command_flag, errno, option, uri};

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
        style.done(&mut out, &Request { command: command::WRITE, ..request });
        assert_eq!(out.len(), done);
    }
}

/// A request as the chunk tests use it: cookie 7, at 0x1000.
fn request(command: u16, length: u64) -> Request {
    Request { flags: 0, command, cookie: 7, offset: 0x1000, length }
}

#[test]
fn structured_chunks_are_the_protocols_bytes() {
    let mut out = Vec::new();
    let read = request(command::READ, 0x600);
    Style::Structured.data(&mut out, &read, 0x1000, 0x200, false);
    assert_eq!(out, b"\x66\x8e\x33\xef\0\0\0\x01\0\0\0\0\0\0\0\x07\0\0\x02\x08\0\0\0\0\0\0\x10\0");
    out.clear();
    Style::Structured.hole(&mut out, &read, 0x1200, 0x400, true);
    assert_eq!(
        out,
        b"\x66\x8e\x33\xef\0\x01\0\x02\0\0\0\0\0\0\0\x07\0\0\0\x0c\0\0\0\0\0\0\x12\0\0\0\x04\0"
    );
    out.clear();
    Style::Structured.error(&mut out, &read, errno::EIO, "oh");
    assert_eq!(
        out,
        b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x07\0\0\0\x08\0\0\0\x05\0\x02oh"
    );
    out.clear();
    let extents: &[(u64, u32)] = &[(0x200, 0), (0x400, 3)];
    Style::Structured.status(
        &mut out,
        &request(command::BLOCK_STATUS, 0x600),
        &[(1, extents), (2, &extents[..1])],
    );
    assert_eq!(
        out,
        b"\x66\x8e\x33\xef\0\0\0\x05\0\0\0\0\0\0\0\x07\0\0\0\x14\0\0\0\x01\
          \0\0\x02\0\0\0\0\0\0\0\x04\0\0\0\0\x03\
          \x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\0\x07\0\0\0\x0c\0\0\0\x02\0\0\x02\0\0\0\0\0"
    );
}

#[test]
fn extended_chunks_are_the_protocols_bytes() {
    let mut out = Vec::new();
    Style::Extended.done(&mut out, &request(command::FLUSH, 0));
    let mut done = b"\x6e\x8a\x27\x8c\0\x01\0\0\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\x10\0".to_vec();
    done.extend([0; 8]);
    assert_eq!(out, done);
    out.clear();
    let far: &[(u64, u32)] = &[(1 << 40, 1)];
    Style::Extended.status(&mut out, &request(command::BLOCK_STATUS, 1 << 40), &[(1, far)]);
    assert_eq!(&out[4..8], b"\0\x01\0\x06");
    assert_eq!(
        &out[24..],
        b"\0\0\0\0\0\0\0\x18\0\0\0\x01\0\0\0\x01\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\x01"
    );
}

#[test]
fn an_extended_request_is_32_bytes_and_says_what_follows() {
    let bytes =
        b"\x21\xe4\x1c\x71\0\x20\0\x07\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\x10\0\0\0\0\x01\0\0\0\0";
    let filtered = decode(bytes, true).unwrap().unwrap();
    let expected =
        Request { flags: command_flag::PAYLOAD_LEN, ..request(command::BLOCK_STATUS, 1 << 32) };
    assert_eq!(filtered, expected);
    assert_eq!(filtered.payload(true), 1 << 32);
    assert_eq!(filtered.check(1 << 40, true, true), Err(errno::EINVAL));
    let mut again = Vec::new();
    encode_request(&expected, true, &mut again);
    assert_eq!(again, bytes);
}

#[test]
fn an_empty_read_has_no_data_chunk() {
    for (style, length) in [(Style::Simple, 16), (Style::Structured, 20), (Style::Extended, 32)] {
        let mut out = Vec::new();
        style.read(&mut out, &request(command::READ, 0));
        assert_eq!(out.len(), length);
        assert!(style == Style::Simple || out[4..8] == *b"\0\x01\0\0");
    }
}

#[test]
fn an_errors_text_is_cut_between_characters() {
    let mut out = Vec::new();
    let text = format!("x{}", "\u{e9}".repeat(1000));
    Style::Structured.error(&mut out, &request(command::READ, 1), errno::EIO, &text);
    assert_eq!(std::str::from_utf8(&out[26..]).unwrap().len(), 1023);
}

#[test]
fn extended_headers_leave_no_way_back() {
    let mut input = 1u32.to_be_bytes().to_vec();
    input.extend(opt(option::EXTENDED_HEADERS, &[]));
    input.extend(opt(option::STRUCTURED_REPLY, &[]));
    let (out, end) = run(Tls::Unavailable, &input, 99);
    assert!(end == Outcome::More && out.windows(4).any(|word| word == [0x80, 0, 0, 10]));
    input.extend(opt(option::EXPORT_NAME, b"vol"));
    assert_eq!(run(Tls::Unavailable, &input, 99).1, Outcome::Close);
}

#[test]
fn a_chatterer_is_cut_off() {
    let mut oversized = 1u32.to_be_bytes().to_vec();
    let large = opt(99, &vec![0; 100_000]);
    oversized.extend(&large);
    let (out, end) = run(Tls::Unavailable, &oversized, 4096);
    assert!(end == Outcome::More && out.windows(4).any(|word| word == [0x80, 0, 0, 9]));
    for _ in 0..200 {
        oversized.extend(&large);
    }
    assert_eq!(run(Tls::Unavailable, &oversized, 1 << 20).1, Outcome::Close);
    let mut many = 1u32.to_be_bytes().to_vec();
    many.extend(opt(99, &[]).repeat(1025));
    assert_eq!(run(Tls::Unavailable, &many, 4096).1, Outcome::Close);
}

#[test]
fn contexts_are_listed_by_namespace() {
    let listed = |queries: &[&str]| {
        let mut input = 1u32.to_be_bytes().to_vec();
        input.extend(opt(option::LIST_META_CONTEXT, &contexts("vol", queries)));
        let text = String::from_utf8_lossy(&run(Tls::Unavailable, &input, 99).0).into_owned();
        (text.contains("base:allocation"), text.contains("vswitch:health"))
    };
    assert_eq!(listed(&[]), (true, true));
    assert_eq!(listed(&["base:"]), (true, false));
    assert_eq!(listed(&["vswitch:"]), (false, true));
    assert_eq!(listed(&["base:x"]), (false, false));
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
    assert_eq!(parse("nbd://[::1]/e").address, Address::Tcp("[::1]:10809".into()));
    assert_eq!(parse("nbd://[::1]:7/e").address, Address::Tcp("[::1]:7".into()));
    let unix = NbdUri { address: Address::Unix("/run/s".into()), export: "e".into() };
    assert_eq!(parse("nbd+unix:///e?socket=/run/s"), unix);
    for bad in [
        "http://x",
        "nbd://",
        "nbd://:1/e",
        "nbd+unix:///e",
        "nbd+unix:///e?socket=relative",
        "nbd://h/%z",
        "nbd://h/%+1",
        "nbd://h:99999/e",
        "nbd://h/e?tls=1",
        &format!("nbd://h/{}", "x".repeat(4097)),
    ] {
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
        let _ = (decode(&input, false), decode(&input, true));
        if let Ok(text) = std::str::from_utf8(&input) {
            let _ = uri::NbdUri::parse(&format!("nbd://{text}"));
        }
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
}
