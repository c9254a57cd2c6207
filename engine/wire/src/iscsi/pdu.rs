//! PDUs: where they end, their header fields, their digests (RFC 7143, 11.2).

use std::ops::Range;

use thiserror::Error;

/// Bytes of the basic header segment.
pub const HEADER: usize = 48;
/// Bytes of a digest.
const DIGEST: usize = 4;

/// After this nothing in the stream can be trusted: the connection is closed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Broken {
    #[error("a header's digest is wrong")]
    HeaderDigest,
    #[error("a data segment of {0} bytes is more than was agreed")]
    TooLong(usize),
    #[error("{0}")]
    Protocol(&'static str),
}

/// Which digests stand in the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    pub header: bool,
    pub data: bool,
}

/// A basic header segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header(pub [u8; HEADER]);

impl Header {
    /// An answer's header: its opcode, its flags with the final bit, the task it is for.
    #[must_use]
    pub fn new(opcode: u8, flags: u8, task: u32) -> Header {
        let mut header = Header([0; HEADER]);
        header.0[0] = opcode;
        header.0[1] = flags | 0x80;
        header.put(16, task);
        header
    }

    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    #[must_use]
    pub fn is_immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    #[must_use]
    pub fn is_final(&self) -> bool {
        self.0[1] & 0x80 != 0
    }

    /// Bytes of the additional header segments.
    #[must_use]
    pub fn more(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// Bytes of the data segment, without what fills up its last word.
    #[must_use]
    pub fn length(&self) -> usize {
        u32::from_be_bytes([0, self.0[5], self.0[6], self.0[7]]) as usize
    }

    #[must_use]
    pub fn lun(&self) -> u64 {
        u64::from(self.get(8)) << 32 | u64::from(self.get(12))
    }

    /// The initiator's name for the task.
    #[must_use]
    pub fn task(&self) -> u32 {
        self.get(16)
    }

    /// The number at a place that is a multiple of 4, below 48.
    #[must_use]
    pub fn get(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    pub fn put(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    pub fn put_lun(&mut self, lun: u64) {
        self.0[8..16].copy_from_slice(&lun.to_be_bytes());
    }
}

/// A PDU at the beginning of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub header: Header,
    /// Where its additional header segments and its data lie in the input.
    pub more: Range<usize>,
    pub data: Range<usize>,
    /// Bytes of all of it.
    pub length: usize,
    /// False if the data's digest is wrong.
    pub is_sound: bool,
}

/// The PDU that the input begins with, or None while it is not all there. `most`: bytes of data
/// that were agreed on.
///
/// # Errors
/// When the stream is lost.
pub fn frame(input: &[u8], digests: Digests, most: usize) -> Result<Option<Frame>, Broken> {
    let Some(header) = input.first_chunk::<HEADER>() else { return Ok(None) };
    let header = Header(*header);
    if header.length() > most {
        return Err(Broken::TooLong(header.length()));
    }
    let more = HEADER..HEADER + header.more();
    let begin = more.end + if digests.header { DIGEST } else { 0 };
    if input.len() < begin {
        return Ok(None);
    }
    if digests.header && crc(&input[..more.end]) != input[more.end..begin] {
        return Err(Broken::HeaderDigest);
    }
    let data = begin..begin + header.length();
    let padded = begin + header.length().next_multiple_of(4);
    let digest = digests.data && !data.is_empty();
    let length = padded + if digest { DIGEST } else { 0 };
    if input.len() < length {
        return Ok(None);
    }
    let is_sound = !digest || crc(&input[begin..padded]) == input[padded..length];
    Ok(Some(Frame { header, more, data, length, is_sound }))
}

/// CRC32C as it stands in the stream (RFC 7143, 13.1).
fn crc(bytes: &[u8]) -> [u8; DIGEST] {
    crc32c::crc32c(bytes).to_le_bytes()
}

/// Appends a PDU with its data.
pub fn emit(out: &mut Vec<u8>, header: &Header, data: &[u8], digests: Digests) {
    begin(out, header, data.len(), digests);
    out.extend_from_slice(data);
    end(out, data, digests);
}

/// Puts what comes before `length` bytes of data at the beginning of `out`; how many bytes it is.
pub fn begin_in(
    out: &mut [u8; HEADER + DIGEST],
    header: &Header,
    length: usize,
    digests: Digests,
) -> usize {
    out[..HEADER].copy_from_slice(&header.0);
    out[4] = 0;
    out[5..8].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
    if !digests.header {
        return HEADER;
    }
    let sum = crc(&out[..HEADER]);
    out[HEADER..].copy_from_slice(&sum);
    HEADER + DIGEST
}

fn begin(out: &mut Vec<u8>, header: &Header, length: usize, digests: Digests) {
    let mut place = [0; HEADER + DIGEST];
    let count = begin_in(&mut place, header, length, digests);
    out.extend_from_slice(&place[..count]);
}

/// Appends what comes behind the data.
fn end(out: &mut Vec<u8>, data: &[u8], digests: Digests) {
    let filling = [0; 3];
    let filling = &filling[..data.len().next_multiple_of(4) - data.len()];
    out.extend_from_slice(filling);
    if digests.data && !data.is_empty() {
        let sum = crc32c::crc32c_append(crc32c::crc32c(data), filling);
        out.extend_from_slice(&sum.to_le_bytes());
    }
}
