//! Replies of an NBD server, simple and structured, as a client takes them apart.

use crate::nbd::{MAX_REQUEST, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};
use crate::{Take, WireError};

/// Longest chunk that is looked into as a whole: 128 Ki extents.
const MAX_CHUNK: u32 = 1 << 20;

/// A simple reply or one chunk of a structured one. `cookie` names the request, and a reply is
/// over with the chunk that has `done`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The whole reply. If `errno` is 0 and the request was a read, its data follows.
    Simple { cookie: u64, errno: u32 },
    /// `length` bytes of a read's data follow; they belong at `offset` of the export.
    Data { cookie: u64, offset: u64, length: u32, done: bool },
    /// Zeroes that are not sent.
    Hole { cookie: u64, offset: u64, length: u32, done: bool },
    /// Block status of one meta context: (length, flags) in order from the request's offset.
    Status { cookie: u64, context: u32, extents: Vec<(u32, u32)>, done: bool },
    /// The request failed, if it is known where then at `offset`.
    Error { cookie: u64, errno: u32, text: String, offset: Option<u64>, done: bool },
    /// Nothing more to say.
    Done { cookie: u64 },
}

impl Reply {
    /// Decodes a reply or chunk with the bytes that it used, or None if `input` is too short.
    /// Data is not waited for: what follows `Simple` or `Data` can be received anywhere.
    ///
    /// # Errors
    /// The stream is lost: bad magic, an unknown chunk, or one of a wrong length.
    pub fn decode(input: &[u8]) -> Result<Option<(Reply, usize)>, WireError> {
        let mut take = Take(input);
        let Some(magic) = take.be32() else { return Ok(None) };
        match magic {
            SIMPLE_REPLY_MAGIC => Ok((|| {
                let (errno, cookie) = (take.be32()?, take.be64()?);
                Some((Reply::Simple { cookie, errno }, 16))
            })()),
            STRUCTURED_REPLY_MAGIC => {
                let header = (|| Some((take.be16()?, take.be16()?, take.be64()?, take.be32()?)))();
                let Some(header) = header else { return Ok(None) };
                structured(header, take)
            }
            _ => Err(WireError::BadMagic(u64::from(magic))),
        }
    }
}

fn structured(
    (flags, kind, cookie, length): (u16, u16, u64, u32),
    mut take: Take<'_>,
) -> Result<Option<(Reply, usize)>, WireError> {
    const HEADER: usize = 20;
    const BAD: WireError = WireError::Malformed("a chunk of a wrong length");
    let done = flags & chunk::DONE != 0;
    if kind == chunk::OFFSET_DATA {
        let data = length.checked_sub(8).filter(|&data| data > 0).ok_or(BAD)?;
        if u64::from(data) > MAX_REQUEST {
            return Err(BAD);
        }
        let reply = |offset| (Reply::Data { cookie, offset, length: data, done }, HEADER + 8);
        return Ok(take.be64().map(reply));
    }
    if length > MAX_CHUNK {
        return Err(BAD);
    }
    let Some(payload) = take.bytes(length as usize) else { return Ok(None) };
    let reply = match kind {
        chunk::NONE => (done && payload.is_empty()).then_some(Reply::Done { cookie }),
        chunk::OFFSET_HOLE => hole(cookie, payload, done),
        chunk::BLOCK_STATUS => status(cookie, payload, done),
        kind if kind & chunk::IS_ERROR != 0 => error(cookie, kind, payload, done),
        _ => return Err(WireError::Malformed("a chunk of an unknown type")),
    };
    Ok(Some((reply.ok_or(BAD)?, HEADER + payload.len())))
}

fn hole(cookie: u64, payload: &[u8], done: bool) -> Option<Reply> {
    let mut take = Take(payload);
    let (offset, length) = (take.be64()?, take.be32()?);
    (take.0.is_empty() && length > 0).then_some(Reply::Hole { cookie, offset, length, done })
}

fn status(cookie: u64, payload: &[u8], done: bool) -> Option<Reply> {
    let mut take = Take(payload);
    let context = take.be32()?;
    let (parts, rest) = take.0.as_chunks::<8>();
    let extents = parts.iter().map(|part| {
        let mut take = Take(part);
        take.be32().zip(take.be32()).filter(|extent| extent.0 > 0)
    });
    let extents = extents.collect::<Option<Vec<_>>>()?;
    let sound = rest.is_empty() && !extents.is_empty();
    sound.then_some(Reply::Status { cookie, context, extents, done })
}

fn error(cookie: u64, kind: u16, payload: &[u8], done: bool) -> Option<Reply> {
    let mut take = Take(payload);
    let (errno, length) = (take.be32()?, take.be16()?);
    let text = String::from_utf8_lossy(take.bytes(length as usize)?).into_owned();
    let offset = if kind == chunk::ERROR_OFFSET { Some(take.be64()?) } else { None };
    // Errors of unknown types may carry more; an error of 0 would look like success.
    (errno != 0).then_some(Reply::Error { cookie, errno, text, offset, done })
}
