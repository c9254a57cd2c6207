//! Who the unit is (SPC-4, 6.4 and 7.8; SBC-3, 6.5).

use super::cdb::{Cdb, be16};
use super::sense::{INVALID_FIELD, Sense};
use super::unit::Unit;
use super::{MOST, PHYSICAL, ports, xcopy};

const VENDOR: &[u8; 8] = b"VSWITCHD";
const PRODUCT: &[u8; 16] = b"VIRTUAL-DISK    ";
/// Versions of standards that it claims: SAM-5, iSCSI, SPC-4, SBC-3 (SPC-4, table 142).
const CLAIMS: [u16; 4] = [0x00a0, 0x0960, 0x0460, 0x04c0];
/// Most ranges in one UNMAP.
pub const RANGES: u32 = 256;
/// Most blocks that one UNMAP is about.
pub const AT_ONCE: u32 = 1 << 20;

/// Most blocks of one COMPARE AND WRITE: with more, some would lie on several SPs, and none of these could
/// carry it out alone.
pub const COMPARED: u64 = 1;

/// The answer, of which the allocation length cuts off the end.
///
/// # Errors
/// The sense of what can't be asked.
pub fn inquiry(unit: Option<&Unit>, cdb: &Cdb) -> Result<Vec<u8>, Sense> {
    let most = usize::from(be16(cdb, 3));
    let mut data = match (cdb[1] & 1, cdb[2], unit) {
        (0, 0, _) => standard(unit),
        (1, page, Some(unit)) => vital(unit, page)?,
        _ => return Err(INVALID_FIELD),
    };
    data.truncate(most);
    Ok(data)
}

fn standard(unit: Option<&Unit>) -> Vec<u8> {
    let mut data = vec![0; 96];
    // Where there is no unit, nothing is told but that (SPC-4, 6.4.2).
    data[0] = if unit.is_some() { 0x00 } else { 0x7f };
    data[2] = 0x06; // SPC-4
    data[3] = 0x02;
    data[4] = 96 - 5;
    data[5] = 0x18; // implicit asymmetric access (SPC-4, 5.16), third-party copy
    data[7] = 0x02; // command queuing
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(&unit.map_or(*b"    ", |unit| unit.revision));
    for (place, claim) in data[58..].chunks_exact_mut(2).zip(CLAIMS) {
        place.copy_from_slice(&claim.to_be_bytes());
    }
    data
}

fn vital(unit: &Unit, page: u8) -> Result<Vec<u8>, Sense> {
    let body = match page {
        0x00 => vec![0x00, 0x80, 0x83, 0x86, 0x88, 0x8f, 0xb0, 0xb1, 0xb2],
        0x80 => unit.serial.as_bytes().to_vec(),
        0x83 => names(unit),
        0x86 => extended(),
        0x88 => ports::listed(unit),
        0x8f => xcopy::vital(),
        0xb0 => limits(),
        // Not rotating (SBC-3, 6.5.2).
        0xb1 => {
            let mut body = vec![0; 60];
            body[1] = 1;
            body
        }
        // Unmapped by UNMAP and both forms of WRITE SAME; unmapped blocks read as zeroes; thin.
        0xb2 => vec![0, 0b1110_0100, 0x02, 0],
        _ => return Err(INVALID_FIELD),
    };
    let mut data = vec![0x00, page];
    data.extend_from_slice(&(body.len() as u16).to_be_bytes());
    data.extend_from_slice(&body);
    Ok(data)
}

/// The unit's name with its vendor.
pub(super) fn vendor_name(unit: &Unit) -> Vec<u8> {
    [VENDOR, unit.serial.as_bytes()].concat()
}

/// Designators (SPC-4, 7.8.5): of the unit, and of the port and target that it was reached by.
fn names(unit: &Unit) -> Vec<u8> {
    let mut data = Vec::new();
    let mut put = |protocol: u8, kind: u8, name: &[u8]| {
        data.extend_from_slice(&[protocol, kind, 0, name.len() as u8]);
        data.extend_from_slice(name);
    };
    // A NAA that was registered with nobody: locally assigned.
    put(0x01, 0x03, &unit.naa);
    put(0x02, 0x01, &vendor_name(unit));
    let [high, low] = unit.tag.to_be_bytes();
    put(0x51, 0x94, &[0, 0, high, low]);
    put(0x51, 0x95, &[0, 0, high, low]);
    put(0x53, 0x98, &ports::name(&unit.target, unit.tag));
    put(0x53, 0xa8, &ports::padded(&unit.target));
    data
}

/// Extended INQUIRY data (SPC-4, 7.8.7): simple, ordered and head-of-queue tasks; a nexus' unit
/// attentions are cleared by REPORT LUNS for none but itself.
fn extended() -> Vec<u8> {
    let mut body = vec![0; 60];
    body[1] = 0x07;
    body[2] = 0x01; // V_SUP: the cache is volatile
    body
}

/// Block limits (SBC-3, 6.5.3).
fn limits() -> Vec<u8> {
    let mut body = vec![0; 60];
    body[1] = COMPARED as u8;
    body[2..4].copy_from_slice(&(1u16 << PHYSICAL).to_be_bytes());
    body[4..8].copy_from_slice(&(MOST as u32).to_be_bytes());
    body[8..12].copy_from_slice(&2048u32.to_be_bytes());
    body[16..20].copy_from_slice(&AT_ONCE.to_be_bytes());
    body[20..24].copy_from_slice(&RANGES.to_be_bytes());
    body[24..28].copy_from_slice(&(1u32 << PHYSICAL).to_be_bytes());
    body[28..32].copy_from_slice(&0x8000_0000u32.to_be_bytes());
    body[32..40].copy_from_slice(&MOST.to_be_bytes());
    body
}
