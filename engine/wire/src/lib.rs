//! Protocols as bytes <-> typed values, without sockets: NBD as server and client, and the
//! peer protocol between SPs. Nothing here panics on any input.

pub mod change;
pub mod iscsi;
pub mod nbd;
pub mod peer;
pub mod scsi;

use thiserror::Error;

/// The other side broke the protocol so that the stream can't go on.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    #[error("bad magic {0:#x}")]
    BadMagic(u64),
    #[error("unknown client flags {0:#x}")]
    ClientFlags(u32),
    #[error("an option of {0} bytes is too large")]
    OptionSize(u32),
    #[error("too many options, or too many bytes of them, before transmission")]
    TooManyOptions,
    #[error("the peer speaks another version of the protocol")]
    PeerVersion,
    #[error("the server speaks no fixed newstyle")]
    OldServer,
    #[error("the server refused the export: {0}")]
    Refused(String),
    #[error("{0}")]
    Malformed(&'static str),
}

/// Takes big-endian (NBD) or little-endian (peer) integers off the front of a slice.
pub(crate) struct Take<'a>(pub &'a [u8]);

macro_rules! take {
    ($name:ident, $from:ident, $kind:ty) => {
        pub fn $name(&mut self) -> Option<$kind> {
            let (head, rest) = self.0.split_first_chunk()?;
            self.0 = rest;
            Some(<$kind>::$from(*head))
        }
    };
}

impl<'a> Take<'a> {
    take!(be16, from_be_bytes, u16);
    take!(be32, from_be_bytes, u32);
    take!(be64, from_be_bytes, u64);
    take!(le16, from_le_bytes, u16);
    take!(le32, from_le_bytes, u32);
    take!(le64, from_le_bytes, u64);

    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }
}

/// The longest prefix of `text` that has at most `limit` bytes and is still UTF-8.
pub(crate) fn prefix(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}
