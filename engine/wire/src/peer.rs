//! The peer protocol between SPs (docs/engine.md). Little-endian, fixed-size headers.

use crate::change::{self, Change};
use crate::{Take, WireError, prefix};

const MAGIC: u64 = u64::from_le_bytes(*b"VSPEER03");
/// What all versions' HELLOs begin with.
const FAMILY: &[u8; 6] = b"VSPEER";
const REPLY_MAGIC: u64 = u64::from_le_bytes(*b"VSPEERok");
/// Longest name in a handshake.
const MAX_NAME: usize = 255;
/// Longest payload of one request or reply.
pub const MAX_PAYLOAD: u32 = 64 << 20;
/// Longest object id in an OPEN.
pub const MAX_ID: u32 = 255;
/// Most bytes of reservations in one request.
pub const MAX_RECORD: u32 = 256 << 10;
/// Bytes of one extent in a STATUS reply.
pub const EXTENT_LEN: usize = 16;

/// How a session begins: who the client is, and whom it believes to have reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub cluster: String,
    pub client: String,
    /// Changes at every start of the client's process.
    pub incarnation: String,
    /// Which of the client's event loops this is: with `client`, the session's identity.
    pub slot: u32,
    /// Changes at every connection of a slot.
    pub attempt: u64,
    /// The SP that the client wants.
    pub server: String,
}

/// The server's answer to a HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Welcome {
    Ok = 0,
    WrongCluster = 1,
    WrongServer = 2,
    /// Answered when `Hello::decode` says `WireError::PeerVersion`.
    WrongVersion = 3,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Names an object; the handle in the header is the client's choice for later requests.
    /// Payload: the object's id. `offset` is 0 for a T1 object, 1 for a volume.
    Open = 0,
    Read = 1,
    Write = 2,
    Flush = 3,
    Trim = 4,
    Zero = 5,
    Status = 6,
    Close = 7,
    /// Which regions of a T1 object its write-intent map has: answered as STATUS is, with flag 1
    /// for a region that may be unlike on other legs.
    Dirty = 8,
    /// Takes regions within the range out of the map.
    Clean = 9,
    /// What is kept with a T1 object: the reservations of its volume (`scsi::reserve::Record`), or
    /// nothing.
    Recall = 10,
    /// Keeps the payload with a T1 object, in the place of what is older; `offset` is its version.
    Keep = 11,
    /// Has a volume's owner carry out a `scsi::reserve::Request`; answered with its `Outcome`.
    Reserve = 12,
    /// Asks a volume's owner for its reservations: `scsi::reserve::Look`, answered with `Shown`.
    View = 13,
    /// `change::Change`s of the range, which is within one unit. Payload: what is given for it.
    CompareWrite = 14,
    Or = 15,
}

impl Op {
    /// True if its payload is about reservations.
    #[must_use]
    pub fn reserves(self) -> bool {
        matches!(self, Op::Keep | Op::Reserve | Op::View)
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = 0,
    /// The epoch is lower than the object's: wait for a newer tree.
    Stale = 1,
    Io = 2,
    NoSpace = 3,
    NotFound = 4,
    Invalid = 5,
    NotSupported = 6,
    /// Over a bound of the server's; nothing was done, and it may be sent again.
    Busy = 7,
    /// Of a COMPARE AND WRITE: it was not as it should be, and nothing was written. Payload: the
    /// first byte that was not (u32).
    Differs = 8,
    /// Of a COMPARE AND WRITE: it may have been carried out or not, and nobody will know.
    Unsure = 9,
}

/// Bytes of a DIFFERS reply's payload.
pub const DIFFERS_LEN: usize = 4;

/// Request flags.
pub const FUA: u8 = 1;
/// Write-zeroes must not leave a hole.
pub const NO_HOLE: u8 = 2;
/// Write-zeroes must be fast or refused.
pub const FAST_ZERO: u8 = 4;
/// The write is to several legs: its regions go into the write-intent map first.
pub const INTENT: u8 = 8;
/// `Request::until` means something.
pub const EXPIRES: u8 = 16;

/// A request's header; `payload` bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub op: Op,
    pub flags: u8,
    pub handle: u32,
    pub id: u64,
    pub epoch: u64,
    pub offset: u64,
    pub length: u64,
    pub payload: u32,
    /// With `EXPIRES`: not to be begun after this, in milliseconds of the server's clock
    /// (`Reply::clock`), which wrap. Whoever asked may have asked again elsewhere by then.
    pub until: u32,
}

/// A reply's header; `payload` bytes follow: data, or the extents of a STATUS (`put_extents`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: Status,
    pub id: u64,
    pub payload: u32,
    /// The server's clock, in milliseconds that wrap.
    pub clock: u32,
}

pub const REQUEST_LEN: usize = 48;
pub const REPLY_LEN: usize = 20;

fn put_name(out: &mut Vec<u8>, name: &str) {
    // A longer one is none of ours; cut, it matches nothing and is refused at the other end.
    let name = prefix(name, MAX_NAME).as_bytes();
    out.push(name.len() as u8);
    out.extend_from_slice(name);
}

impl Hello {
    /// Encodes: magic, u16 length of the rest, then the fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        body.extend_from_slice(&self.slot.to_le_bytes());
        body.extend_from_slice(&self.attempt.to_le_bytes());
        for name in [&self.cluster, &self.client, &self.incarnation, &self.server] {
            put_name(&mut body, name);
        }
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&(body.len() as u16).to_le_bytes());
        out.extend_from_slice(&body);
    }

    /// Decodes a HELLO with the bytes it used, or None if `input` is too short.
    ///
    /// # Errors
    /// `PeerVersion` when it is a peer of another version, others when it is no peer.
    pub fn decode(input: &[u8]) -> Result<Option<(Hello, usize)>, WireError> {
        let mut take = Take(input);
        let Some(magic) = take.le64() else { return Ok(None) };
        if magic != MAGIC {
            let other = input.starts_with(FAMILY);
            return Err(if other { WireError::PeerVersion } else { WireError::BadMagic(magic) });
        }
        let Some(length) = take.le16() else { return Ok(None) };
        let Some(body) = take.bytes(length as usize) else { return Ok(None) };
        let mut body = Take(body);
        let mut fields = || {
            let slot = body.le32()?;
            let attempt = body.le64()?;
            let mut name = || {
                let length = body.bytes(1)?[0] as usize;
                String::from_utf8(body.bytes(length)?.to_vec()).ok()
            };
            let (cluster, client, incarnation, server) = (name()?, name()?, name()?, name()?);
            Some(Hello { cluster, client, incarnation, slot, attempt, server })
        };
        let hello = fields().ok_or(WireError::Malformed("malformed HELLO"))?;
        Ok(Some((hello, 10 + length as usize)))
    }
}

pub const WELCOME_LEN: usize = 13;

impl Welcome {
    /// `clock`: as in `Reply`.
    pub fn encode(self, clock: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&REPLY_MAGIC.to_le_bytes());
        out.push(self as u8);
        out.extend_from_slice(&clock.to_le_bytes());
    }

    /// Decodes, with the server's clock, or None if `input` is too short.
    ///
    /// # Errors
    /// When this is no peer.
    pub fn decode(input: &[u8]) -> Result<Option<(Welcome, u32)>, WireError> {
        let mut take = Take(input);
        let (Some(magic), Some(code)) = (take.le64(), take.bytes(1)) else { return Ok(None) };
        if magic != REPLY_MAGIC {
            return Err(WireError::BadMagic(magic));
        }
        let welcome = match code[0] {
            0 => Welcome::Ok,
            1 => Welcome::WrongCluster,
            2 => Welcome::WrongServer,
            3 => Welcome::WrongVersion,
            _ => return Err(WireError::Malformed("unknown answer to HELLO")),
        };
        Ok(take.le32().map(|clock| (welcome, clock)))
    }
}

impl Request {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.op as u8, self.flags, 0, 0]);
        out.extend_from_slice(&self.handle.to_le_bytes());
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.payload.to_le_bytes());
        out.extend_from_slice(&self.until.to_le_bytes());
    }

    /// Decodes, or None if `input` is too short.
    ///
    /// # Errors
    /// An unknown op, or lengths that make no sense: the stream is lost.
    pub fn decode(input: &[u8]) -> Result<Option<Request>, WireError> {
        if input.len() < REQUEST_LEN {
            return Ok(None);
        }
        let op = match input[0] {
            0 => Op::Open,
            1 => Op::Read,
            2 => Op::Write,
            3 => Op::Flush,
            4 => Op::Trim,
            5 => Op::Zero,
            6 => Op::Status,
            7 => Op::Close,
            8 => Op::Dirty,
            9 => Op::Clean,
            10 => Op::Recall,
            11 => Op::Keep,
            12 => Op::Reserve,
            13 => Op::View,
            14 => Op::CompareWrite,
            15 => Op::Or,
            _ => return Err(WireError::Malformed("unknown peer request")),
        };
        let mut take = Take(&input[4..]);
        let request = (|| {
            let handle = take.le32()?;
            let id = take.le64()?;
            let epoch = take.le64()?;
            let offset = take.le64()?;
            let length = take.le64()?;
            let (payload, until) = (take.le32()?, take.le32()?);
            let flags = input[1];
            Some(Request { op, flags, handle, id, epoch, offset, length, payload, until })
        })();
        let request = request.ok_or(WireError::Malformed("short peer request"))?;
        let sound = match request.op {
            Op::Write => {
                request.length == u64::from(request.payload) && request.payload <= MAX_PAYLOAD
            }
            Op::Read => request.length <= u64::from(MAX_PAYLOAD) && request.payload == 0,
            Op::CompareWrite | Op::Or => {
                let change = if request.op == Op::Or { Change::Or } else { Change::CompareWrite };
                change::fits(request.offset, request.length)
                    && u64::from(request.payload) == change.gives(request.length)
            }
            Op::Open => request.payload <= MAX_ID,
            Op::Keep | Op::Reserve | Op::View => request.payload <= MAX_RECORD,
            Op::Flush
            | Op::Trim
            | Op::Zero
            | Op::Status
            | Op::Close
            | Op::Dirty
            | Op::Clean
            | Op::Recall => request.payload == 0,
        };
        let aimless = request.flags & EXPIRES == 0 && request.until != 0;
        if !sound || aimless || input[2..4] != [0; 2] {
            return Err(WireError::Malformed("malformed peer request"));
        }
        Ok(Some(request))
    }
}

impl Reply {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.status as u8, 0, 0, 0]);
        out.extend_from_slice(&self.payload.to_le_bytes());
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.clock.to_le_bytes());
    }

    /// Decodes, or None if `input` is too short.
    ///
    /// # Errors
    /// An unknown status or an oversized payload: the stream is lost.
    pub fn decode(input: &[u8]) -> Result<Option<Reply>, WireError> {
        if input.len() < REPLY_LEN {
            return Ok(None);
        }
        let status = match input[0] {
            0 => Status::Ok,
            1 => Status::Stale,
            2 => Status::Io,
            3 => Status::NoSpace,
            4 => Status::NotFound,
            5 => Status::Invalid,
            6 => Status::NotSupported,
            7 => Status::Busy,
            8 => Status::Differs,
            9 => Status::Unsure,
            _ => return Err(WireError::Malformed("unknown peer status")),
        };
        let mut take = Take(&input[4..]);
        let (payload, id) = (take.le32().unwrap_or(0), take.le64().unwrap_or(0));
        let clock = take.le32().unwrap_or(0);
        if payload > MAX_PAYLOAD || input[1..4] != [0; 3] {
            return Err(WireError::Malformed("malformed peer reply"));
        }
        Ok(Some(Reply { status, id, payload, clock }))
    }
}

/// Encodes the extents of a STATUS reply: (length u64, flags u64) each, in order from the
/// request's offset.
pub fn put_extents(extents: &[(u64, u32)], out: &mut Vec<u8>) {
    for (length, flags) in extents {
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&u64::from(*flags).to_le_bytes());
    }
}

/// Decodes the payload of a STATUS reply to a request of `length` bytes.
///
/// # Errors
/// When it is cut, has an empty extent, or describes more than was asked for.
pub fn take_extents(payload: &[u8], length: u64) -> Result<Vec<(u64, u32)>, WireError> {
    const BAD: WireError = WireError::Malformed("malformed extents in a peer reply");
    let (parts, rest) = payload.as_chunks::<EXTENT_LEN>();
    let mut left = length;
    let mut extents = Vec::with_capacity(parts.len());
    for part in parts {
        let mut take = Take(part);
        let (size, flags) = take.le64().zip(take.le64()).ok_or(BAD)?;
        let flags = u32::try_from(flags).map_err(|_| BAD)?;
        left = left.checked_sub(size).filter(|_| size > 0).ok_or(BAD)?;
        extents.push((size, flags));
    }
    if rest.is_empty() { Ok(extents) } else { Err(BAD) }
}
