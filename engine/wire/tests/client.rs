//! The client's side, held against our own server and against literal bytes.

use proptest::prelude::*;
use vs_wire::WireError;
use vs_wire::nbd::client::{Export, Handshake, Outcome, Reply, decode_reply};
use vs_wire::nbd::handshake::{self, Exports, Tls};
use vs_wire::nbd::transmission::{Request, Style};
use vs_wire::nbd::{CONTEXT_ALLOCATION, command, errno, reply};

struct One;

impl Exports for One {
    fn names(&self) -> Vec<String> {
        vec!["vol".into()]
    }
    fn find(&self, name: &str) -> Option<(u64, u16)> {
        (name == "vol").then_some((1 << 20, 0x1ed))
    }
}

/// Lets client and server talk, the client hearing `step` bytes at a time.
fn talk(mut client: Handshake, step: usize) -> Result<(Export, handshake::Negotiated), WireError> {
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    let mut server = handshake::Handshake::new(Tls::Unavailable, &mut to_client);
    let (mut heard, mut agreed) = (Vec::new(), None);
    for _ in 0..10_000 {
        let count = step.min(to_client.len());
        heard.extend(to_client.drain(..count));
        let (used, outcome) = client.feed(&heard, &mut to_server)?;
        heard.drain(..used);
        if let (Outcome::Done(export), Some(agreed)) = (outcome, agreed.clone()) {
            return Ok((export, agreed));
        }
        loop {
            let (used, outcome) = server.feed(&to_server, &One, &mut to_client)?;
            to_server.drain(..used);
            match outcome {
                handshake::Outcome::Done(negotiated) => agreed = Some(negotiated),
                _ if used == 0 => {}
                _ => continue,
            }
            break;
        }
    }
    panic!("client and server do not come to an end");
}

fn option_reply(about: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = b"\x00\x03\xe8\x89\x04\x55\x65\xa9".to_vec();
    out.extend(about.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

/// Feeds all of `input` from the greeting on.
fn feed(mut client: Handshake, replies: &[Vec<u8>]) -> Result<Outcome, WireError> {
    let mut out = Vec::new();
    client.feed(b"NBDMAGICIHAVEOPT\x00\x03", &mut out)?;
    let mut last = Outcome::More;
    for reply in replies {
        let (used, outcome) = client.feed(reply, &mut out)?;
        assert_eq!(used, reply.len());
        last = outcome;
    }
    Ok(last)
}

#[test]
fn our_own_server_is_understood() {
    for step in [1, 7, 1000] {
        let (export, agreed) = talk(Handshake::structured("vol"), step).unwrap();
        assert_eq!((export.size, export.flags, export.min_block), (1 << 20, 0x1ed, 1));
        assert_eq!((export.structured, export.allocation), (true, Some(CONTEXT_ALLOCATION)));
        assert_eq!((agreed.structured, agreed.contexts), (true, vec![CONTEXT_ALLOCATION]));
        let (export, agreed) = talk(Handshake::new("vol"), step).unwrap();
        assert_eq!((export.structured, export.allocation, agreed.structured), (false, None, false));
    }
    let refused = talk(Handshake::new("nope"), 100).unwrap_err();
    let text =
        "the server refused the export: no volume named 'nope' is served here (option error 6)";
    assert_eq!(refused.to_string(), text);
}

#[test]
fn a_server_without_structured_replies_will_do() {
    let size = [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 1];
    let replies = [
        option_reply(8, reply::ERR_UNSUP, b""),
        option_reply(7, reply::INFO, &size),
        option_reply(7, reply::ACK, b""),
    ];
    let Ok(Outcome::Done(export)) = feed(Handshake::structured("x"), &replies) else {
        panic!("not done")
    };
    assert_eq!((export.size, export.structured, export.max_block), (1 << 20, false, 32 << 20));
}

#[test]
fn a_server_that_makes_no_sense_is_left() {
    let zero_block = [0, 3, 0, 0, 0, 0, 0, 0, 16, 0, 0, 1, 0, 0];
    for replies in [
        vec![option_reply(7, reply::ACK, b"")],
        vec![option_reply(3, reply::ACK, b"")],
        vec![option_reply(7, reply::INFO, &[0])],
        vec![option_reply(7, reply::INFO, &zero_block)],
        vec![option_reply(7, reply::INFO, &[0, 1]); 300],
    ] {
        assert!(feed(Handshake::new("x"), &replies).is_err(), "{:?}", replies[0]);
    }
    let mut old = Handshake::new("x");
    let oldstyle = b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0";
    assert_eq!(old.feed(oldstyle, &mut Vec::new()), Err(WireError::OldServer));
}

#[test]
fn chunks_are_taken_apart() {
    let request =
        Request { flags: 0, command: command::READ, cookie: 7, offset: 4096, length: 512 };
    let style = Style::Structured;
    let decode = |encode: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        encode(&mut out);
        for cut in 0..out.len() {
            assert_eq!(Reply::decode(&out[..cut]), Ok(None));
        }
        let (reply, used) = Reply::decode(&out).unwrap().unwrap();
        assert_eq!(used, out.len());
        reply
    };
    let (cookie, done) = (7, true);
    assert_eq!(
        decode(&|out| style.read(out, &request)),
        Reply::Data { cookie, offset: 4096, length: 512, done }
    );
    assert_eq!(
        decode(&|out| style.hole(out, &request, 4096, 512, false)),
        Reply::Hole { cookie, offset: 4096, length: 512, done: false }
    );
    assert_eq!(decode(&|out| style.done(out, &request)), Reply::Done { cookie });
    assert_eq!(
        decode(&|out| Style::Simple.read(out, &request)),
        Reply::Simple { cookie, errno: 0 }
    );
    assert_eq!(
        decode(&|out| style.error(out, &request, errno::ENOSPC, "full")),
        Reply::Error { cookie, errno: errno::ENOSPC, text: "full".into(), offset: None, done }
    );
    assert_eq!(
        decode(&|out| style.status(out, &request, &[(1, &[(512, 3)])])),
        Reply::Status { cookie, context: 1, extents: vec![(512, 3)], done }
    );
}

/// A structured chunk of the given type.
fn chunk(kind: u16, flags: u16, length: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = b"\x66\x8e\x33\xef".to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend([0; 8]);
    out.extend(length.to_be_bytes());
    out.extend(payload);
    out
}

#[test]
fn chunks_of_wrong_lengths_end_the_stream() {
    for bad in [
        chunk(1, 1, 8, &[0; 8]),
        chunk(1, 1, u32::MAX, &[0; 8]),
        chunk(0, 0, 0, &[]),
        chunk(0, 1, 1, &[0]),
        chunk(2, 1, 12, &[0; 12]),
        chunk(5, 1, 4, &[0; 4]),
        chunk(5, 1, 13, &[1; 13]),
        chunk(5, 1, u32::MAX, &[]),
        chunk(9, 1, 0, &[]),
        chunk(0x8001, 1, 6, &[0; 6]),
        chunk(0x8001, 1, 6, &[0, 0, 0, 5, 0, 9]),
    ] {
        assert!(Reply::decode(&bad).is_err(), "{bad:?}");
    }
    let unknown = chunk(0x8063, 1, 8, &[0, 0, 0, 5, 0, 1, b'x', 9]);
    let expected = Reply::Error { cookie: 0, errno: 5, text: "x".into(), offset: None, done: true };
    assert_eq!(Reply::decode(&unknown), Ok(Some((expected, 28))));
}

proptest! {
    #[test]
    fn nothing_panics(
        input in prop::collection::vec(any::<u8>(), 0..300),
        kind in any::<u16>(),
        about in 6u32..12,
        answer in prop_oneof![0u32..6, (1u32 << 31)..(1 << 31) + 12],
    ) {
        let _ = (Reply::decode(&input), decode_reply(&input));
        let _ = Reply::decode(&chunk(kind, 1, input.len() as u32, &input));
        let _ = Reply::decode(&chunk(kind & 7, 1, input.len() as u32, &input));
        let mut client = Handshake::structured("x");
        let _ = client.feed(&input, &mut Vec::new());
        let _ = feed(Handshake::new("x"), &[option_reply(about, answer, &input)]);
        let _ = feed(Handshake::structured("x"), &[option_reply(about, answer, &input)]);
    }

    #[test]
    fn a_handshake_may_be_cut_anywhere(step in 1usize..200) {
        prop_assert_eq!(talk(Handshake::structured("vol"), step), talk(Handshake::structured("vol"), 10_000));
    }
}
