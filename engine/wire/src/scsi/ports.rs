//! The target's ports: which SPs a unit can be reached by, and which of them is its owner (SPC-4,
//! 5.16, 6.36 and 7.8.14). A port is an SP's portal group, and its group of target ports.

use super::cdb::{Cdb, be32};
use super::sense::{INVALID_FIELD, Sense};
use super::unit::Unit;

/// A portal group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its tag: the relative target port, and the target port group.
    pub tag: u16,
    /// It is the owner's: active and optimized. What others are asked for goes to the owner.
    pub is_best: bool,
}

/// REPORT TARGET PORT GROUPS.
///
/// # Errors
/// The sense of a form of answer that is not known.
pub fn groups(ports: &[Port], cdb: &Cdb) -> Result<Vec<u8>, Sense> {
    let extended = match cdb[1] >> 5 {
        0 => false,
        1 => true,
        _ => return Err(INVALID_FIELD),
    };
    let mut data = vec![0; 4];
    if extended {
        // Of the extended form, and no transition takes any time.
        data.extend_from_slice(&[0x10, 0, 0, 0]);
    }
    for port in ports {
        let [high, low] = port.tag.to_be_bytes();
        data.push(if port.is_best { 0x80 } else { 0x01 });
        // Both states occur; the last change was made by the target itself.
        data.extend_from_slice(&[0x03, high, low, 0, 0x02, 0, 1]);
        data.extend_from_slice(&[0, 0, high, low]);
    }
    let length = data.len() as u32 - 4;
    data[..4].copy_from_slice(&length.to_be_bytes());
    data.truncate(be32(cdb, 6) as usize);
    Ok(data)
}

/// The SCSI ports page (VPD 88).
pub(super) fn listed(unit: &Unit) -> Vec<u8> {
    let mut data = Vec::new();
    for port in &unit.ports {
        let name = name(&unit.target, port.tag);
        data.extend_from_slice(&[0, 0]);
        data.extend_from_slice(&port.tag.to_be_bytes());
        // The initiator's port is not told.
        data.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
        data.extend_from_slice(&(name.len() as u16 + 4).to_be_bytes());
        data.extend_from_slice(&[0x53, 0x98, 0, name.len() as u8]);
        data.extend_from_slice(&name);
    }
    data
}

/// A name that ends with zeroes and fills words (SPC-4, 7.8.5.2.8).
pub(super) fn padded(text: &str) -> Vec<u8> {
    let mut name = text.as_bytes().to_vec();
    name.resize((name.len() + 1).next_multiple_of(4), 0);
    name
}

/// The name of a target's port (RFC 7143, 4.4.3).
pub(super) fn name(target: &str, tag: u16) -> Vec<u8> {
    padded(&format!("{target},t,0x{tag:04x}"))
}
