//! The transmission phase: request headers in, reply headers out. Payloads stay outside.

use super::{
    EXTENDED_REPLY_MAGIC, EXTENDED_REQUEST_MAGIC, MAX_REQUEST, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC, chunk, command, command_flag, errno,
};
use crate::{Take, WireError, prefix};

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
}

impl Request {
    /// Bytes of payload that follow the header, also where `check` refuses the request. Above
    /// `MAX_REQUEST` they are not worth receiving: close the connection.
    #[must_use]
    pub fn payload(&self, extended: bool) -> u64 {
        let carries = self.command == command::WRITE
            || (extended && self.flags & command_flag::PAYLOAD_LEN != 0);
        if carries { self.length } else { 0 }
    }

    /// True if the reply may come only after the data is durable.
    #[must_use]
    pub fn fua(&self) -> bool {
        self.flags & command_flag::FUA != 0
    }

    /// Checks the request against the export and what was negotiated. DISC is the caller's: it
    /// has no reply.
    ///
    /// # Errors
    /// The error number to answer.
    pub fn check(&self, size: u64, structured: bool, contexts: bool) -> Result<(), u32> {
        use command_flag as f;
        let allowed = match self.command {
            command::READ => f::FUA | f::DF,
            command::WRITE => f::FUA | f::PAYLOAD_LEN,
            command::FLUSH | command::CACHE => f::FUA,
            command::TRIM => f::FUA,
            command::WRITE_ZEROES => f::FUA | f::NO_HOLE | f::FAST_ZERO,
            command::BLOCK_STATUS => f::FUA | f::REQ_ONE,
            _ => return Err(errno::EINVAL),
        };
        if self.flags & !allowed != 0 || (self.flags & f::DF != 0 && !structured) {
            return Err(errno::EINVAL);
        }
        if self.command == command::FLUSH {
            let plain = self.offset == 0 && self.length == 0;
            return if plain { Ok(()) } else { Err(errno::EINVAL) };
        }
        if self.command == command::BLOCK_STATUS && (!contexts || self.length == 0) {
            return Err(errno::EINVAL);
        }
        let moves_data = matches!(self.command, command::READ | command::WRITE);
        if moves_data && self.length > MAX_REQUEST {
            return Err(if self.command == command::READ {
                errno::EOVERFLOW
            } else {
                errno::EINVAL
            });
        }
        match self.offset.checked_add(self.length) {
            Some(end) if end <= size => Ok(()),
            _ if matches!(self.command, command::WRITE | command::WRITE_ZEROES) => {
                Err(errno::ENOSPC)
            }
            _ => Err(errno::EINVAL),
        }
    }
}

/// Bytes of a request header.
#[must_use]
pub fn request_header(extended: bool) -> usize {
    if extended { 32 } else { 28 }
}

/// Decodes a request header, or None if `input` is too short.
///
/// # Errors
/// `BadMagic`: the stream is lost.
pub fn decode(input: &[u8], extended: bool) -> Result<Option<Request>, WireError> {
    let mut take = Take(input);
    let Some(magic) = take.be32() else { return Ok(None) };
    let wanted = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
    if magic != wanted {
        return Err(WireError::BadMagic(u64::from(magic)));
    }
    Ok((|| {
        let flags = take.be16()?;
        let command = take.be16()?;
        let cookie = take.be64()?;
        let offset = take.be64()?;
        let length = if extended { take.be64()? } else { u64::from(take.be32()?) };
        Some(Request { flags, command, cookie, offset, length })
    })())
}

/// Encodes a request header; for clients.
pub fn encode_request(request: &Request, extended: bool, out: &mut Vec<u8>) {
    let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
    out.extend_from_slice(&magic.to_be_bytes());
    out.extend_from_slice(&request.flags.to_be_bytes());
    out.extend_from_slice(&request.command.to_be_bytes());
    out.extend_from_slice(&request.cookie.to_be_bytes());
    out.extend_from_slice(&request.offset.to_be_bytes());
    if extended {
        out.extend_from_slice(&request.length.to_be_bytes());
    } else {
        out.extend_from_slice(&(request.length as u32).to_be_bytes());
    }
}

/// How this connection's replies look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    #[default]
    Simple,
    Structured,
    Extended,
}

impl Style {
    /// Bytes in front of the data of a successful read that is not empty.
    #[must_use]
    pub fn read_header(self) -> usize {
        match self {
            Style::Simple => 16,
            Style::Structured => 20 + 8,
            Style::Extended => 32 + 8,
        }
    }

    /// A chunk's header; the last one of a reply is marked as such.
    fn chunk(self, out: &mut Vec<u8>, kind: u16, last: bool, request: &Request, length: u64) {
        let flags = if last { chunk::DONE } else { 0 };
        match self {
            Style::Extended => {
                out.extend_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
                out.extend_from_slice(&flags.to_be_bytes());
                out.extend_from_slice(&kind.to_be_bytes());
                out.extend_from_slice(&request.cookie.to_be_bytes());
                out.extend_from_slice(&request.offset.to_be_bytes());
                out.extend_from_slice(&length.to_be_bytes());
            }
            _ => {
                out.extend_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
                out.extend_from_slice(&flags.to_be_bytes());
                out.extend_from_slice(&kind.to_be_bytes());
                out.extend_from_slice(&request.cookie.to_be_bytes());
                out.extend_from_slice(&(length as u32).to_be_bytes());
            }
        }
    }

    /// The header of a successful read; `request.length` bytes of data must follow.
    pub fn read(self, out: &mut Vec<u8>, request: &Request) {
        if self == Style::Simple || request.length == 0 {
            return self.done(out, request);
        }
        self.data(out, request, request.offset, request.length, true);
    }

    /// One part of a read that is answered in several; `length` bytes, at least 1, must follow.
    /// Not for `Style::Simple`, nor for a request with the flag DF.
    pub fn data(self, out: &mut Vec<u8>, request: &Request, offset: u64, length: u64, last: bool) {
        self.chunk(out, chunk::OFFSET_DATA, last, request, length + 8);
        out.extend_from_slice(&offset.to_be_bytes());
    }

    /// Like `data`, but zeroes that are not sent; whole.
    pub fn hole(self, out: &mut Vec<u8>, request: &Request, offset: u64, length: u32, last: bool) {
        self.chunk(out, chunk::OFFSET_HOLE, last, request, 12);
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
    }

    /// Success without data.
    pub fn done(self, out: &mut Vec<u8>, request: &Request) {
        match self {
            Style::Extended => self.chunk(out, chunk::NONE, true, request, 0),
            Style::Structured if request.command == command::READ => {
                self.chunk(out, chunk::NONE, true, request, 0);
            }
            // Simple replies stay legal for all but reads once structured is negotiated,
            // and save 4 bytes; block status answers with `status`.
            _ => simple(out, request.cookie, 0),
        }
    }

    /// Failure of any request. `text` is shown to people where the style has room for it.
    pub fn error(self, out: &mut Vec<u8>, request: &Request, errno: u32, text: &str) {
        if self == Style::Simple {
            return simple(out, request.cookie, errno);
        }
        let text = prefix(text, 1024).as_bytes();
        self.chunk(out, chunk::ERROR, true, request, 6 + text.len() as u64);
        out.extend_from_slice(&errno.to_be_bytes());
        out.extend_from_slice(&(text.len() as u16).to_be_bytes());
        out.extend_from_slice(text);
    }

    /// Block status: one chunk for each context, the last one marked done. Extents are
    /// (length, flags); none may be empty. Not for `Style::Simple`; compact requests ask for less
    /// than 4 GiB, and so much must be what their extents describe.
    pub fn status(self, out: &mut Vec<u8>, request: &Request, contexts: &[(u32, &[(u64, u32)])]) {
        for (index, (context, extents)) in contexts.iter().enumerate() {
            let last = index + 1 == contexts.len();
            let count = extents.len() as u64;
            if self == Style::Extended {
                self.chunk(out, chunk::BLOCK_STATUS_EXT, last, request, 8 + 16 * count);
                out.extend_from_slice(&context.to_be_bytes());
                out.extend_from_slice(&(count as u32).to_be_bytes());
                for (length, flags) in *extents {
                    out.extend_from_slice(&length.to_be_bytes());
                    out.extend_from_slice(&u64::from(*flags).to_be_bytes());
                }
            } else {
                self.chunk(out, chunk::BLOCK_STATUS, last, request, 4 + 8 * count);
                out.extend_from_slice(&context.to_be_bytes());
                for (length, flags) in *extents {
                    debug_assert!(u32::try_from(*length).is_ok());
                    out.extend_from_slice(&(*length as u32).to_be_bytes());
                    out.extend_from_slice(&flags.to_be_bytes());
                }
            }
        }
    }
}

fn simple(out: &mut Vec<u8>, cookie: u64, errno: u32) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&errno.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}
