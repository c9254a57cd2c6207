//! EXTENDED COPY(LID1) and RECEIVE COPY RESULTS (SPC-4, 6.4 and 6.20): copies from block to block
//! between units that this target knows by their designators.

use super::cdb::{Cdb, be32};
use super::sense::{self, INVALID_FIELD, INVALID_PARAMETER, PARAMETER_LENGTH, Sense};
use super::unit::Unit;
use super::{BLOCK, inquiry};

/// Descriptors of one list.
pub const TARGETS: usize = 16;
pub const SEGMENTS: usize = 64;
const HEADER: usize = 16;
const TARGET: usize = 32;
const SEGMENT: usize = 28;
/// Bytes of all descriptors of one list.
pub const LIST: usize = TARGETS * TARGET + SEGMENTS * SEGMENT;
/// Copies that one SP carries out at a time.
pub const AT_ONCE: usize = 8;
/// Lists of which a session remembers how they went.
pub const REMEMBERED: usize = 32;
/// The descriptors that there are: block to block, and a unit by its designator.
const BLOCK_TO_BLOCK: u8 = 0x02;
const IDENTIFICATION: u8 = 0xe4;
/// Bytes of one segment.
const LONGEST: u32 = u16::MAX as u32 * BLOCK as u32;

/// A unit by its designator (SPC-4, 7.8.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub kind: u8,
    pub name: Vec<u8>,
}

impl Target {
    /// True if it is that unit, by its NAA or by the name with its vendor.
    #[must_use]
    pub fn is(&self, unit: &Unit) -> bool {
        match self.kind {
            0x03 => self.name == unit.naa,
            0x01 => self.name == inquiry::vendor_name(unit),
            _ => false,
        }
    }
}

/// Blocks that go from one target to another, both by their place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub source: u16,
    pub destination: u16,
    pub blocks: u64,
    pub from: u64,
    pub to: u64,
}

/// What is to be copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// By what it can be asked for later; None: it can't.
    pub id: Option<u8>,
    pub targets: Vec<Target>,
    pub segments: Vec<Segment>,
}

/// What RECEIVE COPY RESULTS asks of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    Status,
    Failure,
}

/// How far a list is, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub running: bool,
    pub segments: u16,
    pub bytes: u64,
    /// Why it failed.
    pub failed: Option<Sense>,
}

/// The list of an EXTENDED COPY; None if it is empty.
///
/// # Errors
/// The sense of what can't be done.
pub fn list(cdb: &Cdb, brought: &[u8]) -> Result<Option<List>, Sense> {
    if be32(cdb, 10) == 0 {
        return Ok(None);
    }
    if brought.len() < HEADER || (brought.len() as u64) < needs(cdb) {
        return Err(PARAMETER_LENGTH);
    }
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let targets = number(&brought[2..4]) as usize;
    let segments = number(&brought[8..12]) as usize;
    let inline = number(&brought[12..16]);
    let all = targets.checked_add(segments).filter(|all| *all <= LIST).ok_or(PARAMETER_LENGTH)?;
    if brought.len() < HEADER + all {
        return Err(PARAMETER_LENGTH);
    }
    if targets > TARGETS * TARGET {
        return Err(sense::TOO_MANY_TARGETS);
    }
    if !targets.is_multiple_of(TARGET) {
        return Err(PARAMETER_LENGTH);
    }
    if inline > 0 {
        return Err(sense::INLINE_DATA);
    }
    let id = match brought[1] >> 3 & 3 {
        0 | 2 => Some(brought[0]),
        3 if brought[0] == 0 => None,
        _ => return Err(INVALID_PARAMETER),
    };
    let (targets, segments) = brought[HEADER..HEADER + all].split_at(targets);
    let targets = targets.chunks_exact(TARGET).map(target).collect::<Result<_, _>>()?;
    let mut list = List { id, targets, segments: Vec::new() };
    let mut rest = segments;
    while !rest.is_empty() {
        if rest[0] != BLOCK_TO_BLOCK {
            return Err(sense::SEGMENT_TYPE);
        }
        let (one, more) = rest.split_at_checked(SEGMENT).ok_or(PARAMETER_LENGTH)?;
        if list.segments.len() == SEGMENTS {
            return Err(sense::TOO_MANY_SEGMENTS);
        }
        if number(&one[2..4]) as usize != SEGMENT - 4 {
            return Err(INVALID_PARAMETER);
        }
        list.segments.push(Segment {
            source: number(&one[4..6]) as u16,
            destination: number(&one[6..8]) as u16,
            blocks: number(&one[10..12]),
            from: number(&one[12..20]),
            to: number(&one[20..28]),
        });
        rest = more;
    }
    Ok(Some(list))
}

fn target(bytes: &[u8]) -> Result<Target, Sense> {
    if bytes[0] != IDENTIFICATION {
        return Err(sense::TARGET_TYPE);
    }
    // A disk, as all are here. The bits above say nothing of one that is named by a designator.
    if bytes[1] & 0x1f != 0 {
        return Err(INVALID_PARAMETER);
    }
    let length = usize::from(bytes[7]);
    let block = u32::from_be_bytes([0, bytes[29], bytes[30], bytes[31]]);
    // A block length that is none is not looked at by some.
    if length > 20 || u64::from(block) != BLOCK && block != 0 || bytes[5] >> 4 & 3 != 0 {
        return Err(INVALID_PARAMETER);
    }
    Ok(Target { kind: bytes[5] & 0x0f, name: bytes[8..8 + length].to_vec() })
}

/// RECEIVE COPY RESULTS: operating parameters.
#[must_use]
pub fn parameters() -> Vec<u8> {
    let mut data = vec![0; 44];
    data[4] = 0x01; // a list without an identifier is fine
    data[8..10].copy_from_slice(&(TARGETS as u16).to_be_bytes());
    data[10..12].copy_from_slice(&(SEGMENTS as u16).to_be_bytes());
    data[12..16].copy_from_slice(&(LIST as u32).to_be_bytes());
    data[16..20].copy_from_slice(&LONGEST.to_be_bytes());
    data[34..36].copy_from_slice(&(AT_ONCE as u16).to_be_bytes());
    data[36] = AT_ONCE as u8;
    data[37] = BLOCK.ilog2() as u8;
    let types = [BLOCK_TO_BLOCK, IDENTIFICATION];
    data[43] = types.len() as u8;
    data.extend_from_slice(&types);
    let rest = data.len() as u32 - 4;
    data[..4].copy_from_slice(&rest.to_be_bytes());
    data
}

/// RECEIVE COPY RESULTS: what is answered of a list.
#[must_use]
pub fn answer(question: Question, progress: &Progress) -> Vec<u8> {
    let status = match progress {
        Progress { running: true, .. } => 0,
        Progress { failed: None, .. } => 1,
        Progress { failed: Some(_), .. } => 2,
    };
    match (question, progress.failed) {
        (Question::Status, _) => {
            let mut data = vec![0, 0, 0, 8, status];
            data.extend_from_slice(&progress.segments.to_be_bytes());
            // In units of 1024 bytes.
            data.push(1);
            let count = u32::try_from(progress.bytes >> 10).unwrap_or(u32::MAX);
            data.extend_from_slice(&count.to_be_bytes());
            data
        }
        (Question::Failure, None) => vec![0; 4],
        (Question::Failure, Some(sense)) => {
            let sense = sense.fixed();
            let mut data = vec![0; 60];
            data[56] = super::status::CHECK_CONDITION;
            data[58..60].copy_from_slice(&(sense.len() as u16).to_be_bytes());
            data.extend_from_slice(&sense);
            let rest = data.len() as u32 - 4;
            data[..4].copy_from_slice(&rest.to_be_bytes());
            data
        }
    }
}

/// RECEIVE COPY RESULTS's allocation length.
#[must_use]
pub fn allocation(cdb: &Cdb) -> usize {
    be32(cdb, 10) as usize
}

/// RECEIVE COPY RESULTS of a list: which, and what of it.
///
/// # Errors
/// The sense of what can't be asked.
pub fn question(cdb: &Cdb) -> Result<(u8, Question), Sense> {
    match cdb[1] & 0x1f {
        0x00 => Ok((cdb[2], Question::Status)),
        0x04 => Ok((cdb[2], Question::Failure)),
        _ => Err(INVALID_FIELD),
    }
}

/// The third-party copy VPD page (SPC-4, 7.8.17).
#[must_use]
pub fn vital() -> Vec<u8> {
    let mut data = Vec::new();
    let mut put = |kind: u16, body: &[u8]| {
        let length = body.len().next_multiple_of(4);
        data.extend_from_slice(&kind.to_be_bytes());
        data.extend_from_slice(&(length as u16).to_be_bytes());
        data.extend_from_slice(body);
        data.resize(data.len() + length - body.len(), 0);
    };
    // Commands with their service actions.
    put(0x0001, &[8, 0x83, 1, 0x00, 0x84, 3, 0x00, 0x03, 0x04]);
    let mut body = [0; 28];
    body[4..6].copy_from_slice(&(TARGETS as u16).to_be_bytes());
    body[6..8].copy_from_slice(&(SEGMENTS as u16).to_be_bytes());
    body[8..12].copy_from_slice(&(LIST as u32).to_be_bytes());
    put(0x0004, &body);
    put(0x0008, &[2, BLOCK_TO_BLOCK, IDENTIFICATION]);
    // No targets but those of the list.
    put(0x000c, &[0, 0]);
    let mut body = [0; 32];
    body[..4].copy_from_slice(&(AT_ONCE as u32).to_be_bytes());
    body[4..8].copy_from_slice(&(AT_ONCE as u32).to_be_bytes());
    body[8..12].copy_from_slice(&LONGEST.to_be_bytes());
    body[12] = BLOCK.ilog2() as u8;
    put(0x8001, &body);
    data
}

/// Bytes that an EXTENDED COPY brings: no more than one that is too long.
#[must_use]
pub fn needs(cdb: &Cdb) -> u64 {
    u64::from(be32(cdb, 10)).min((HEADER + LIST) as u64 + 4096)
}
