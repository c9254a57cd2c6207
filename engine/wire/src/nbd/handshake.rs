//! The server's side of fixed newstyle negotiation.

use super::{
    CONTEXTS, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, IHAVEOPT, MAX_BLOCK, MIN_BLOCK, NBDMAGIC,
    PREFERRED_BLOCK, REPLY_MAGIC, info, option, reply,
};
use crate::{Take, WireError};

/// Longest option payload that is looked into.
const MAX_OPTION: u32 = 64 << 10;
/// Longest export name, as the protocol says.
const MAX_NAME: usize = 4096;
/// More options, and more bytes of them, than any client sends: bounds on idle chatter.
const MAX_OPTIONS: u32 = 1024;
const MAX_OPTION_BYTES: u64 = 16 << 20;

/// What the server offers; asked during negotiation.
pub trait Exports {
    /// The names that LIST shows.
    fn names(&self) -> Vec<String>;
    /// Size in bytes and transmission flags, or None for an unknown name.
    fn find(&self, name: &str) -> Option<(u64, u16)>;
}

/// What client and server agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    pub export: String,
    pub structured: bool,
    pub extended: bool,
    /// Ids of the chosen meta contexts, in the order of `CONTEXTS`.
    pub contexts: Vec<u32>,
}

/// Where negotiation stands after some input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    More,
    Done(Negotiated),
    /// Send what is in `out`, then close.
    Close,
    /// The client asked for TLS and has been acknowledged; what follows is a TLS handshake,
    /// after which negotiation starts again from the options.
    StartTls,
}

/// What this connection is told about TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    Unavailable,
    Offered,
    /// Everything but STARTTLS and ABORT is refused.
    Required,
    Active,
}

/// One connection's negotiation.
#[derive(Debug)]
pub struct Handshake {
    greeted: bool,
    no_zeroes: bool,
    options: u32,
    option_bytes: u64,
    tls: Tls,
    /// Bytes of an oversized option still to be dropped.
    skip: u64,
    context_export: Option<String>,
    agreed: Negotiated,
}

impl Handshake {
    /// Starts; `out` gets the server's greeting.
    pub fn new(tls: Tls, out: &mut Vec<u8>) -> Handshake {
        out.extend_from_slice(&NBDMAGIC.to_be_bytes());
        out.extend_from_slice(&IHAVEOPT.to_be_bytes());
        out.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        Handshake {
            greeted: false,
            no_zeroes: false,
            options: 0,
            option_bytes: 0,
            tls,
            skip: 0,
            context_export: None,
            agreed: Negotiated::default(),
        }
    }

    /// Takes input, appends replies to `out`, and says how many bytes it has used. Call
    /// again with the rest until it uses none or the outcome is not `More`.
    ///
    /// # Errors
    /// When the stream makes no sense; close it.
    pub fn feed(
        &mut self,
        input: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Outcome), WireError> {
        let mut take = Take(input);
        if self.skip > 0 {
            let used = self.skip.min(input.len() as u64);
            self.skip -= used;
            return Ok((used as usize, Outcome::More));
        }
        if !self.greeted {
            let Some(flags) = take.be32() else { return Ok((0, Outcome::More)) };
            if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
                return Err(WireError::ClientFlags(flags));
            }
            self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
            self.greeted = true;
            return Ok((4, Outcome::More));
        }
        let (Some(magic), Some(kind), Some(length)) = (take.be64(), take.be32(), take.be32())
        else {
            return Ok((0, Outcome::More));
        };
        if magic != IHAVEOPT {
            return Err(WireError::BadMagic(magic));
        }
        if length > MAX_OPTION {
            if kind == option::EXPORT_NAME {
                return Err(WireError::OptionSize(length));
            }
            self.count(length)?;
            self.skip = u64::from(length);
            answer(out, kind, reply::ERR_TOO_BIG, b"option too large");
            return Ok((16, Outcome::More));
        }
        let Some(data) = take.bytes(length as usize) else { return Ok((0, Outcome::More)) };
        self.count(length)?;
        Ok((16 + data.len(), self.option(kind, data, exports, out)))
    }

    fn count(&mut self, length: u32) -> Result<(), WireError> {
        self.options += 1;
        self.option_bytes += u64::from(length);
        let few = self.options <= MAX_OPTIONS && self.option_bytes <= MAX_OPTION_BYTES;
        if few { Ok(()) } else { Err(WireError::TooManyOptions) }
    }

    fn option(
        &mut self,
        kind: u32,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if self.tls == Tls::Required && kind != option::STARTTLS && kind != option::ABORT {
            if kind == option::EXPORT_NAME {
                return Outcome::Close;
            }
            answer(out, kind, reply::ERR_TLS_REQD, b"this server wants TLS: STARTTLS first");
            return Outcome::More;
        }
        match kind {
            // Extended headers need what only GO can tell, so the protocol bars this.
            option::EXPORT_NAME if self.agreed.extended => Outcome::Close,
            option::EXPORT_NAME => self.export_name(data, exports, out),
            option::ABORT => {
                answer(out, kind, reply::ACK, &[]);
                Outcome::Close
            }
            option::STARTTLS if self.tls == Tls::Offered || self.tls == Tls::Required => {
                if !data.is_empty() {
                    answer(out, kind, reply::ERR_INVALID, b"STARTTLS takes no data");
                    return Outcome::More;
                }
                answer(out, kind, reply::ACK, &[]);
                self.tls = Tls::Active;
                self.agreed = Negotiated::default();
                self.context_export = None;
                Outcome::StartTls
            }
            option::STARTTLS if self.tls == Tls::Active => {
                answer(out, kind, reply::ERR_INVALID, b"TLS is already active");
                Outcome::More
            }
            option::LIST if data.is_empty() => {
                for name in exports.names() {
                    let mut payload = (name.len() as u32).to_be_bytes().to_vec();
                    payload.extend_from_slice(name.as_bytes());
                    answer(out, kind, reply::SERVER, &payload);
                }
                answer(out, kind, reply::ACK, &[]);
                Outcome::More
            }
            option::INFO | option::GO => self.go(kind, data, exports, out),
            option::STRUCTURED_REPLY if data.is_empty() && self.agreed.extended => {
                answer(out, kind, reply::ERR_EXT_HEADER_REQD, b"extended headers are in use");
                Outcome::More
            }
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS if data.is_empty() => {
                self.agreed.structured = true;
                self.agreed.extended |= kind == option::EXTENDED_HEADERS;
                answer(out, kind, reply::ACK, &[]);
                Outcome::More
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(kind, data, exports, out);
                Outcome::More
            }
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                answer(out, kind, reply::ERR_INVALID, b"this option takes no data");
                Outcome::More
            }
            _ => {
                answer(out, kind, reply::ERR_UNSUP, b"option not supported");
                Outcome::More
            }
        }
    }

    fn export_name(&mut self, data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Outcome {
        // This option has no error reply: an unknown export can only be answered by closing.
        let Some((name, (size, flags))) = std::str::from_utf8(data)
            .ok()
            .and_then(|name| exports.find(name).map(|found| (name, found)))
        else {
            return Outcome::Close;
        };
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        self.finish(name)
    }

    fn finish(&mut self, name: &str) -> Outcome {
        let mut agreed = std::mem::take(&mut self.agreed);
        if self.context_export.as_deref() != Some(name) {
            agreed.contexts.clear();
        }
        agreed.export = name.to_owned();
        Outcome::Done(agreed)
    }

    fn go(&mut self, kind: u32, data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Outcome {
        let mut take = Take(data);
        let parsed = (|| {
            let length = take.be32()? as usize;
            let name = std::str::from_utf8(take.bytes(length)?).ok()?;
            let count = take.be16()?;
            let wanted = (0..count).map(|_| take.be16()).collect::<Option<Vec<u16>>>()?;
            (take.0.is_empty() && length <= MAX_NAME).then_some((name, wanted))
        })();
        let Some((name, wanted)) = parsed else {
            answer(out, kind, reply::ERR_INVALID, b"malformed INFO or GO");
            return Outcome::More;
        };
        let Some((size, flags)) = exports.find(name) else {
            let text = format!("no volume named '{name}' is served here");
            answer(out, kind, reply::ERR_UNKNOWN, text.as_bytes());
            return Outcome::More;
        };
        let mut export = info::EXPORT.to_be_bytes().to_vec();
        export.extend_from_slice(&size.to_be_bytes());
        export.extend_from_slice(&flags.to_be_bytes());
        answer(out, kind, reply::INFO, &export);
        if wanted.contains(&info::NAME) {
            let mut payload = info::NAME.to_be_bytes().to_vec();
            payload.extend_from_slice(name.as_bytes());
            answer(out, kind, reply::INFO, &payload);
        }
        let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [MIN_BLOCK, PREFERRED_BLOCK, MAX_BLOCK] {
            sizes.extend_from_slice(&size.to_be_bytes());
        }
        answer(out, kind, reply::INFO, &sizes);
        answer(out, kind, reply::ACK, &[]);
        if kind == option::GO { self.finish(name) } else { Outcome::More }
    }

    fn meta_context(&mut self, kind: u32, data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) {
        let set = kind == option::SET_META_CONTEXT;
        if set {
            self.agreed.contexts.clear();
            self.context_export = None;
            if !self.agreed.structured {
                answer(out, kind, reply::ERR_INVALID, b"negotiate structured replies first");
                return;
            }
        }
        let mut take = Take(data);
        let parsed = (|| {
            let length = take.be32()? as usize;
            let name = std::str::from_utf8(take.bytes(length)?).ok()?;
            let count = take.be32()?;
            let mut queries = Vec::new();
            for _ in 0..count {
                let length = take.be32()? as usize;
                queries.push(std::str::from_utf8(take.bytes(length)?).ok()?);
            }
            take.0.is_empty().then_some((name, queries))
        })();
        let Some((name, queries)) = parsed else {
            answer(out, kind, reply::ERR_INVALID, b"malformed meta context option");
            return;
        };
        if exports.find(name).is_none() {
            let text = format!("no volume named '{name}' is served here");
            answer(out, kind, reply::ERR_UNKNOWN, text.as_bytes());
            return;
        }
        for (id, context) in CONTEXTS {
            let namespace = context.split_inclusive(':').next().unwrap_or(context);
            let hit =
                queries.iter().any(|query| *query == context || (!set && *query == namespace));
            if hit || (!set && queries.is_empty()) {
                let mut payload = if set { id } else { 0 }.to_be_bytes().to_vec();
                payload.extend_from_slice(context.as_bytes());
                answer(out, kind, reply::META_CONTEXT, &payload);
                if set {
                    self.agreed.contexts.push(id);
                }
            }
        }
        if set {
            self.context_export = Some(name.to_owned());
        }
        answer(out, kind, reply::ACK, &[]);
    }
}

fn answer(out: &mut Vec<u8>, option: u32, kind: u32, payload: &[u8]) {
    out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
}
