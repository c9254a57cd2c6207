//! PERSISTENT RESERVE IN (SPC-4, 6.15).

use super::{Nexus, Record};
use crate::scsi::cdb::{Cdb, be16, reserve_in};
use crate::scsi::sense::{INVALID_FIELD, Sense};

/// The answer, of which the allocation length cuts off the end.
///
/// # Errors
/// The sense of what can't be asked.
pub fn reply(record: &Record, cdb: &Cdb) -> Result<Vec<u8>, Sense> {
    let body = match cdb[1] & 0x1f {
        reserve_in::READ_KEYS => {
            record.registrations.iter().flat_map(|known| known.key.to_be_bytes()).collect()
        }
        reserve_in::READ_RESERVATION => reservation(record),
        reserve_in::REPORT_CAPABILITIES => return Ok(cut(capabilities(record), cdb)),
        reserve_in::READ_FULL_STATUS => full_status(record),
        _ => return Err(INVALID_FIELD),
    };
    let mut data = record.generation.to_be_bytes().to_vec();
    data.extend_from_slice(&(body.len() as u32).to_be_bytes());
    data.extend_from_slice(&body);
    Ok(cut(data, cdb))
}

fn cut(mut data: Vec<u8>, cdb: &Cdb) -> Vec<u8> {
    data.truncate(usize::from(be16(cdb, 7)));
    data
}

fn reservation(record: &Record) -> Vec<u8> {
    let Some(held) = &record.held else { return Vec::new() };
    // Where all registrants hold it, none of their keys is its.
    let key = if held.kind.is_all() { 0 } else { record.key(&held.nexus).unwrap_or(0) };
    let mut data = key.to_be_bytes().to_vec();
    data.extend_from_slice(&[0, 0, 0, 0, 0, held.kind as u8, 0, 0]);
    data
}

fn capabilities(record: &Record) -> Vec<u8> {
    // CRH and PTPL_C; the mask of types is valid; PTPL_A.
    vec![0, 8, 0x11, 0x80 | u8::from(record.aptpl), 0xea, 0x01, 0, 0]
}

fn full_status(record: &Record) -> Vec<u8> {
    let mut data = Vec::new();
    for known in &record.registrations {
        let kind = record.held.as_ref().filter(|_| record.holds(&known.nexus));
        data.extend_from_slice(&known.key.to_be_bytes());
        data.extend_from_slice(&[0, 0, 0, 0, u8::from(kind.is_some())]);
        data.push(kind.map_or(0, |held| held.kind as u8));
        data.extend_from_slice(&[0, 0, 0, 0]);
        data.extend_from_slice(&known.nexus.tag.to_be_bytes());
        let id = transport(&known.nexus);
        data.extend_from_slice(&(id.len() as u32).to_be_bytes());
        data.extend_from_slice(&id);
    }
    data
}

/// The TransportID of an initiator's port (SPC-4, 7.6.4.6).
#[must_use]
pub fn transport(nexus: &Nexus) -> Vec<u8> {
    let mut name = nexus.initiator.as_bytes().to_vec();
    name.resize((name.len() + 1).next_multiple_of(4).max(20), 0);
    let mut data = vec![0x45, 0];
    data.extend_from_slice(&(name.len() as u16).to_be_bytes());
    data.extend_from_slice(&name);
    data
}
