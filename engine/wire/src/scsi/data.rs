//! What the unit says of itself: capacity, mode pages, ranges that are mapped.

use super::cdb::{Cdb, be32, op};
use super::sense::{INVALID_FIELD, INVALID_PARAMETER, PARAMETER_LENGTH, Sense};
use super::{BLOCK, PHYSICAL};

/// READ CAPACITY(10) (SBC-3, 5.15).
#[must_use]
pub fn capacity_10(size: u64) -> Vec<u8> {
    let last = u32::try_from(size / BLOCK - 1).unwrap_or(u32::MAX);
    [last.to_be_bytes(), (BLOCK as u32).to_be_bytes()].concat()
}

/// READ CAPACITY(16) (SBC-3, 5.16).
#[must_use]
pub fn capacity_16(size: u64, cdb: &Cdb) -> Vec<u8> {
    let mut data = vec![0; 32];
    data[..8].copy_from_slice(&(size / BLOCK - 1).to_be_bytes());
    data[8..12].copy_from_slice(&(BLOCK as u32).to_be_bytes());
    data[13] = PHYSICAL;
    // Thin, and what is unmapped reads as zeroes.
    data[14] = 0xc0;
    data.truncate(be32(cdb, 10) as usize);
    data
}

/// REPORT LUNS (SPC-4, 6.33).
///
/// # Errors
/// The sense of what can't be asked.
pub fn luns(cdb: &Cdb) -> Result<Vec<u8>, Sense> {
    let listed = match cdb[2] {
        0x00 | 0x02 => vec![super::LUN],
        0x01 => Vec::new(),
        _ => return Err(INVALID_FIELD),
    };
    let most = be32(cdb, 6) as usize;
    if most < 16 {
        return Err(INVALID_FIELD);
    }
    let mut data = vec![0; 8];
    data[..4].copy_from_slice(&(listed.len() as u32 * 8).to_be_bytes());
    data.extend(listed.iter().flat_map(|lun| lun.to_be_bytes()));
    data.truncate(most);
    Ok(data)
}

/// GET LBA STATUS (SBC-3, 5.6). `runs`: bytes, and whether they are mapped, from the first block on.
#[must_use]
pub fn lba_status(lba: u64, runs: &[(u64, bool)], cdb: &Cdb) -> Vec<u8> {
    let mut data = vec![0; 8];
    let mut at = lba;
    for (bytes, mapped) in runs {
        let blocks = (bytes / BLOCK).min(u64::from(u32::MAX)) as u32;
        data.extend_from_slice(&at.to_be_bytes());
        data.extend_from_slice(&blocks.to_be_bytes());
        data.extend_from_slice(&[u8::from(!mapped), 0, 0, 0]);
        at += u64::from(blocks);
    }
    let rest = data.len() as u32 - 4;
    data[..4].copy_from_slice(&rest.to_be_bytes());
    data.truncate(be32(cdb, 10) as usize);
    data
}

/// Mode pages with their values, of which none can be changed: caching with the cache on (SBC-3,
/// 6.4.5), control (SPC-4, 7.5.8), exceptions (7.5.13).
fn pages() -> [(u8, Vec<u8>); 3] {
    let mut caching = vec![0x08, 0x12];
    caching.resize(20, 0);
    caching[2] = 0x04;
    let mut control = vec![0x0a, 0x0a];
    control.resize(12, 0);
    control[3] = 0x10;
    let mut exceptions = vec![0x1c, 0x0a];
    exceptions.resize(12, 0);
    [(0x08, caching), (0x0a, control), (0x1c, exceptions)]
}

/// MODE SENSE (SPC-4, 6.11 and 6.12).
///
/// # Errors
/// The sense of what can't be asked.
pub fn mode_sense(cdb: &Cdb) -> Result<Vec<u8>, Sense> {
    let short = cdb[0] == op::MODE_SENSE_6;
    let (page, control) = (cdb[2] & 0x3f, cdb[2] >> 6);
    if cdb[3] != 0 && cdb[3] != 0xff {
        return Err(INVALID_FIELD);
    }
    if control == 3 {
        // Nothing is saved.
        return Err(Sense { key: 0x5, code: 0x3900, information: None });
    }
    let mut found = Vec::new();
    for (number, mut body) in pages() {
        if page == 0x3f || page == number {
            if control == 1 {
                body[2..].fill(0);
            }
            found.extend_from_slice(&body);
        }
    }
    if found.is_empty() {
        return Err(INVALID_FIELD);
    }
    // FUA and DPO are understood (SBC-3, 6.4.1).
    let specific = 0x10;
    let mut data =
        if short { vec![0, 0, specific, 0] } else { vec![0, 0, 0, specific, 0, 0, 0, 0] };
    data.extend_from_slice(&found);
    let (length, most) = if short {
        (data.len() - 1, usize::from(cdb[4]))
    } else {
        (data.len() - 2, usize::from(u16::from_be_bytes([cdb[7], cdb[8]])))
    };
    if short {
        data[0] = length as u8;
    } else {
        data[..2].copy_from_slice(&(length as u16).to_be_bytes());
    }
    data.truncate(most);
    Ok(data)
}

/// MODE SELECT (SPC-4, 6.9 and 6.10): what is as it is may be said.
///
/// # Errors
/// The sense of what would change something, or is no list of pages.
pub fn mode_select(cdb: &Cdb, data: &[u8]) -> Result<(), Sense> {
    if cdb[1] & 0x01 != 0 || cdb[1] & 0x10 == 0 {
        return Err(INVALID_FIELD);
    }
    if data.is_empty() {
        return Ok(());
    }
    let header = if cdb[0] == op::MODE_SELECT_6 { 4 } else { 8 };
    let described = match (header, data.len() >= header) {
        (_, false) => return Err(PARAMETER_LENGTH),
        (4, _) => usize::from(data[3]),
        _ => usize::from(u16::from_be_bytes([data[6], data[7]])),
    };
    let mut rest = data.get(header + described..).ok_or(PARAMETER_LENGTH)?;
    while !rest.is_empty() {
        let length = 2 + usize::from(*rest.get(1).ok_or(PARAMETER_LENGTH)?);
        let page = rest.get(..length).ok_or(PARAMETER_LENGTH)?;
        let known = pages().into_iter().find(|(number, _)| *number == page[0] & 0x7f);
        if known.is_none_or(|(_, body)| body != page) {
            return Err(INVALID_PARAMETER);
        }
        rest = &rest[length..];
    }
    Ok(())
}

/// The ranges of an UNMAP (SBC-3, 5.25.2): (first block, blocks).
///
/// # Errors
/// The sense of a list that is none.
pub fn unmap(data: &[u8]) -> Result<Vec<(u64, u64)>, Sense> {
    if data.is_empty() {
        return Ok(Vec::new());
    }
    if data.len() < 8 {
        return Err(PARAMETER_LENGTH);
    }
    let listed = usize::from(u16::from_be_bytes([data[2], data[3]])) / 16;
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let ranges = data[8..].chunks_exact(16).take(listed);
    Ok(ranges.map(|range| (number(&range[..8]), number(&range[8..12]))).collect())
}
