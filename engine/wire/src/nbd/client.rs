//! The client's side, for devices that are NBD servers.

use super::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, IHAVEOPT, NBDMAGIC, REPLY_MAGIC, SIMPLE_REPLY_MAGIC, info,
    option, reply,
};
use crate::{Take, WireError};

/// What the server exports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Export {
    pub size: u64,
    /// Transmission flags (`super::flag`).
    pub flags: u16,
    /// Smallest aligned unit; 1 if the server did not say.
    pub min_block: u32,
    /// Largest request; 32 MiB if the server did not say.
    pub max_block: u32,
}

/// Where the handshake stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    More,
    Done(Export),
}

/// A client's handshake with GO and simple replies: the reads of T1 objects need nothing more.
#[derive(Debug)]
pub struct Handshake {
    name: String,
    greeted: bool,
    export: Export,
}

/// Longest reply payload that is looked into.
const MAX_REPLY: u32 = 64 << 10;

impl Handshake {
    #[must_use]
    pub fn new(name: &str) -> Handshake {
        let export = Export { min_block: 1, max_block: 32 << 20, ..Export::default() };
        Handshake { name: name.to_owned(), greeted: false, export }
    }

    /// Takes input, appends what to send to `out`, and says how many bytes it has used.
    ///
    /// # Errors
    /// When the server refuses, or makes no sense.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Outcome), WireError> {
        let mut take = Take(input);
        if !self.greeted {
            let (Some(magic), Some(opt), Some(flags)) = (take.be64(), take.be64(), take.be16())
            else {
                return Ok((0, Outcome::More));
            };
            if magic != NBDMAGIC {
                return Err(WireError::BadMagic(magic));
            }
            if opt != IHAVEOPT || flags & FLAG_FIXED_NEWSTYLE == 0 {
                return Err(WireError::OldServer);
            }
            let ours = FLAG_FIXED_NEWSTYLE | (flags & FLAG_NO_ZEROES);
            out.extend_from_slice(&u32::from(ours).to_be_bytes());
            out.extend_from_slice(&IHAVEOPT.to_be_bytes());
            out.extend_from_slice(&option::GO.to_be_bytes());
            out.extend_from_slice(&(self.name.len() as u32 + 8).to_be_bytes());
            out.extend_from_slice(&(self.name.len() as u32).to_be_bytes());
            out.extend_from_slice(self.name.as_bytes());
            out.extend_from_slice(&1u16.to_be_bytes());
            out.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
            self.greeted = true;
            return Ok((18, Outcome::More));
        }
        let (Some(magic), Some(_), Some(kind), Some(length)) =
            (take.be64(), take.be32(), take.be32(), take.be32())
        else {
            return Ok((0, Outcome::More));
        };
        if magic != REPLY_MAGIC {
            return Err(WireError::BadMagic(magic));
        }
        if length > MAX_REPLY {
            return Err(WireError::OptionSize(length));
        }
        let Some(data) = take.bytes(length as usize) else { return Ok((0, Outcome::More)) };
        let used = 20 + data.len();
        if reply::is_error(kind) {
            return Err(WireError::Refused(String::from_utf8_lossy(data).into_owned()));
        }
        if kind == reply::ACK {
            if self.export.size == 0 {
                return Err(WireError::Malformed("the server gave no export information"));
            }
            return Ok((used, Outcome::Done(self.export)));
        }
        if kind == reply::INFO {
            self.info(data).ok_or(WireError::Malformed("short INFO reply"))?;
        }
        Ok((used, Outcome::More))
    }

    fn info(&mut self, data: &[u8]) -> Option<()> {
        let mut take = Take(data);
        match take.be16()? {
            info::EXPORT => {
                self.export.size = take.be64()?;
                self.export.flags = take.be16()?;
            }
            info::BLOCK_SIZE => {
                self.export.min_block = take.be32()?.max(1);
                take.be32()?;
                self.export.max_block = take.be32()?.clamp(4096, 32 << 20);
            }
            _ => {}
        }
        Some(())
    }
}

/// Decodes a simple reply's header into (error number, cookie), or None if too short. The
/// caller knows by the cookie whether data follows.
///
/// # Errors
/// `BadMagic`: the stream is lost.
pub fn decode_reply(input: &[u8]) -> Result<Option<(u32, u64)>, WireError> {
    let mut take = Take(input);
    let (Some(magic), Some(errno), Some(cookie)) = (take.be32(), take.be32(), take.be64()) else {
        return Ok(None);
    };
    if magic != SIMPLE_REPLY_MAGIC {
        return Err(WireError::BadMagic(u64::from(magic)));
    }
    Ok(Some((errno, cookie)))
}
