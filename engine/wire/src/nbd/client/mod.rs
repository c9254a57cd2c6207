//! The client's side, for devices that are NBD servers.

mod reply;

pub use reply::Reply;

use super::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, IHAVEOPT, NBDMAGIC, REPLY_MAGIC, SIMPLE_REPLY_MAGIC, info,
    option, reply as option_reply,
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
    /// Replies are structured: decode them with `Reply`.
    pub structured: bool,
    /// The server's id for `base:allocation`, if it has agreed to answer BLOCK_STATUS with it.
    pub allocation: Option<u32>,
}

/// Where the handshake stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    More,
    Done(Export),
}

/// Which answer is waited for.
///
/// ```text
/// Greeting -> Structured -> Context -> Go
///     |           '-- refused --------^
///     '------- not wanted ------------^
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Greeting,
    Structured,
    Context,
    Go,
}

/// A client's handshake, ended by GO.
#[derive(Debug)]
pub struct Handshake {
    name: String,
    wants_structured: bool,
    step: Step,
    replies: u32,
    /// The server has said what it exports; nothing else tells an empty export from silence.
    described: bool,
    export: Export,
}

/// Longest reply payload that is looked into.
const MAX_REPLY: u32 = 64 << 10;
/// More replies than any server has to give to our options.
const MAX_REPLIES: u32 = 256;
const ALLOCATION: &str = "base:allocation";

impl Handshake {
    /// A handshake for simple replies, which is all that reads and writes need.
    #[must_use]
    pub fn new(name: &str) -> Handshake {
        let export = Export { min_block: 1, max_block: 32 << 20, ..Export::default() };
        Handshake {
            name: name.to_owned(),
            wants_structured: false,
            step: Step::Greeting,
            replies: 0,
            described: false,
            export,
        }
    }

    /// A handshake that asks for structured replies and `base:allocation` too; `Export` says
    /// what has been agreed to.
    #[must_use]
    pub fn structured(name: &str) -> Handshake {
        Handshake { wants_structured: true, ..Handshake::new(name) }
    }

    /// Takes input, appends what to send to `out`, and says how many bytes it has used. Call
    /// again with the rest until it uses none or is done.
    ///
    /// # Errors
    /// When the server refuses, or makes no sense.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Outcome), WireError> {
        let mut take = Take(input);
        if self.step == Step::Greeting {
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
            self.ask(if self.wants_structured { Step::Structured } else { Step::Go }, out);
            return Ok((18, Outcome::More));
        }
        let (Some(magic), Some(about), Some(kind), Some(length)) =
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
        self.replies += 1;
        if self.replies > MAX_REPLIES {
            return Err(WireError::Malformed("the server does not come to an end of negotiation"));
        }
        if about != self.step.option() {
            return Err(WireError::Malformed("the server answers another option than was sent"));
        }
        Ok((20 + data.len(), self.answer(kind, data, out)?))
    }

    fn answer(&mut self, kind: u32, data: &[u8], out: &mut Vec<u8>) -> Result<Outcome, WireError> {
        match (self.step, kind) {
            (Step::Go, kind) if option_reply::is_error(kind) => {
                let text = String::from_utf8_lossy(data);
                let text = if text.is_empty() { "it does not say why".into() } else { text };
                let code = kind & !(1 << 31);
                return Err(WireError::Refused(format!("{text} (option error {code})")));
            }
            (Step::Go, option_reply::ACK) if self.described => {
                return Ok(Outcome::Done(self.export));
            }
            (Step::Go, option_reply::ACK) => {
                return Err(WireError::Malformed("the server gave no export information"));
            }
            (Step::Go, option_reply::INFO) => {
                self.info(data).ok_or(WireError::Malformed("malformed INFO reply"))?;
            }
            (Step::Structured, option_reply::ACK) => {
                self.export.structured = true;
                self.ask(Step::Context, out);
            }
            (Step::Context, option_reply::META_CONTEXT) => {
                if let Some((id, name)) = data.split_first_chunk()
                    && name == ALLOCATION.as_bytes()
                {
                    self.export.allocation = Some(u32::from_be_bytes(*id));
                }
            }
            (Step::Context, option_reply::ACK) => self.ask(Step::Go, out),
            (Step::Structured | Step::Context, kind) if option_reply::is_error(kind) => {
                // Neither is needed, so a refusal is no failure.
                self.export.allocation = None;
                self.ask(Step::Go, out);
            }
            _ => {}
        }
        Ok(Outcome::More)
    }

    /// Sends the option of the next step.
    fn ask(&mut self, step: Step, out: &mut Vec<u8>) {
        let mut data = Vec::new();
        if step != Step::Structured {
            data.extend_from_slice(&(self.name.len() as u32).to_be_bytes());
            data.extend_from_slice(self.name.as_bytes());
        }
        match step {
            Step::Context => {
                data.extend_from_slice(&1u32.to_be_bytes());
                data.extend_from_slice(&(ALLOCATION.len() as u32).to_be_bytes());
                data.extend_from_slice(ALLOCATION.as_bytes());
            }
            Step::Go => {
                data.extend_from_slice(&1u16.to_be_bytes());
                data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
            }
            Step::Greeting | Step::Structured => {}
        }
        out.extend_from_slice(&IHAVEOPT.to_be_bytes());
        out.extend_from_slice(&step.option().to_be_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(&data);
        self.step = step;
    }

    fn info(&mut self, data: &[u8]) -> Option<()> {
        let mut take = Take(data);
        match take.be16()? {
            info::EXPORT => {
                self.export.size = take.be64()?;
                self.export.flags = take.be16()?;
                self.described = true;
            }
            info::BLOCK_SIZE => {
                let (least, _, most) = (take.be32()?, take.be32()?, take.be32()?);
                if !least.is_power_of_two() || least > 64 << 10 || most < least {
                    return None;
                }
                self.export.min_block = least;
                self.export.max_block = most.min(32 << 20);
            }
            _ => {}
        }
        Some(())
    }
}

impl Step {
    fn option(self) -> u32 {
        match self {
            Step::Structured => option::STRUCTURED_REPLY,
            Step::Context => option::SET_META_CONTEXT,
            Step::Greeting | Step::Go => option::GO,
        }
    }
}

/// Decodes a simple reply's header into (error number, cookie), or None if too short. The
/// caller knows by the cookie whether data follows. For connections without structured replies.
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
