//! REPORT SUPPORTED OPERATION CODES (SPC-4, 6.35): which commands there are, and which of their
//! bits mean something.

use super::cdb::{Cdb, action, be16, be32, op};
use super::sense::{INVALID_FIELD, Sense};

/// A command: its code, its service action, and the bits of its CDB that are looked at.
struct Known {
    code: u8,
    action: Option<u8>,
    usage: &'static [u8],
}

const fn plain(code: u8, usage: &'static [u8]) -> Known {
    Known { code, action: None, usage }
}

const fn serviced(code: u8, action: u8, usage: &'static [u8]) -> Known {
    Known { code, action: Some(action), usage }
}

const fn reads_keys(usage: &'static [u8]) -> Known {
    serviced(op::PERSISTENT_RESERVE_IN, usage[1], usage)
}

const fn reserves(usage: &'static [u8]) -> Known {
    serviced(op::PERSISTENT_RESERVE_OUT, usage[1], usage)
}

const F: u8 = 0xff;

const KNOWN: &[Known] = &[
    plain(op::TEST_UNIT_READY, &[0x00, 0, 0, 0, 0, 0x07]),
    plain(op::REQUEST_SENSE, &[0x03, 0x01, 0, 0, F, 0x07]),
    plain(op::READ_6, &[0x08, 0x1f, F, F, F, 0x07]),
    plain(op::WRITE_6, &[0x0a, 0x1f, F, F, F, 0x07]),
    plain(op::INQUIRY, &[0x12, 0x01, F, F, F, 0x07]),
    plain(op::MODE_SELECT_6, &[0x15, 0x11, 0, 0, F, 0x07]),
    plain(op::RESERVE_6, &[0x16, 0, 0, 0, 0, 0x07]),
    plain(op::RELEASE_6, &[0x17, 0, 0, 0, 0, 0x07]),
    plain(op::MODE_SENSE_6, &[0x1a, 0x08, F, F, F, 0x07]),
    plain(op::START_STOP_UNIT, &[0x1b, 0x01, 0, 0x0f, 0xf7, 0x07]),
    plain(op::READ_CAPACITY_10, &[0x25, 0, F, F, F, F, 0, 0, 0x01, 0x07]),
    plain(op::READ_10, &[0x28, 0xf8, F, F, F, F, 0, F, F, 0x07]),
    plain(op::WRITE_10, &[0x2a, 0xf8, F, F, F, F, 0, F, F, 0x07]),
    plain(op::WRITE_AND_VERIFY_10, &[0x2e, 0xf6, F, F, F, F, 0, F, F, 0x07]),
    plain(op::VERIFY_10, &[0x2f, 0xf6, F, F, F, F, 0, F, F, 0x07]),
    plain(op::PRE_FETCH_10, &[0x34, 0x02, F, F, F, F, 0x1f, F, F, 0x07]),
    plain(op::SYNCHRONIZE_CACHE_10, &[0x35, 0x02, F, F, F, F, 0, F, F, 0x07]),
    plain(op::WRITE_SAME_10, &[0x41, 0xf8, F, F, F, F, 0, F, F, 0x07]),
    plain(op::UNMAP, &[0x42, 0x01, 0, 0, 0, 0, 0, F, F, 0x07]),
    plain(op::MODE_SELECT_10, &[0x55, 0x11, 0, 0, 0, 0, 0, F, F, 0x07]),
    plain(op::MODE_SENSE_10, &[0x5a, 0x18, F, F, 0, 0, 0, F, F, 0x07]),
    plain(op::RESERVE_10, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0x07]),
    plain(op::RELEASE_10, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0x07]),
    reads_keys(&[0x5e, 0x00, 0, 0, 0, 0, 0, F, F, 0x07]),
    reads_keys(&[0x5e, 0x01, 0, 0, 0, 0, 0, F, F, 0x07]),
    reads_keys(&[0x5e, 0x02, 0, 0, 0, 0, 0, F, F, 0x07]),
    reads_keys(&[0x5e, 0x03, 0, 0, 0, 0, 0, F, F, 0x07]),
    reserves(&[0x5f, 0x00, F, 0, 0, F, F, F, F, 0x07]),
    reserves(&[0x5f, 0x01, F, 0, 0, F, F, F, F, 0x07]),
    reserves(&[0x5f, 0x02, F, 0, 0, F, F, F, F, 0x07]),
    reserves(&[0x5f, 0x03, F, 0, 0, F, F, F, F, 0x07]),
    reserves(&[0x5f, 0x04, F, 0, 0, F, F, F, F, 0x07]),
    reserves(&[0x5f, 0x05, F, 0, 0, F, F, F, F, 0x07]),
    reserves(&[0x5f, 0x06, F, 0, 0, F, F, F, F, 0x07]),
    reserves(&[0x5f, 0x07, F, 0, 0, F, F, F, F, 0x07]),
    serviced(
        op::EXTENDED_COPY,
        action::EXTENDED_COPY_LID1,
        &[0x83, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0x07],
    ),
    serviced(
        op::RECEIVE_COPY_RESULTS,
        action::COPY_STATUS,
        &[0x84, 0x1f, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0x07],
    ),
    serviced(
        op::RECEIVE_COPY_RESULTS,
        action::OPERATING_PARAMETERS,
        &[0x84, 0x1f, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0x07],
    ),
    serviced(
        op::RECEIVE_COPY_RESULTS,
        action::FAILED_SEGMENT,
        &[0x84, 0x1f, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0x07],
    ),
    plain(op::READ_16, &[0x88, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0x07]),
    plain(op::COMPARE_AND_WRITE, &[0x89, 0xf8, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, 0x07]),
    plain(op::WRITE_16, &[0x8a, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0x07]),
    plain(op::ORWRITE_16, &[0x8b, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0x07]),
    plain(op::WRITE_AND_VERIFY_16, &[0x8e, 0xf6, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0x07]),
    plain(op::VERIFY_16, &[0x8f, 0xf6, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0x07]),
    plain(op::PRE_FETCH_16, &[0x90, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, 0x1f, 0x07]),
    plain(op::SYNCHRONIZE_CACHE_16, &[0x91, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0x07]),
    plain(op::WRITE_SAME_16, &[0x93, 0xf9, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0x07]),
    serviced(
        op::SERVICE_ACTION_IN_16,
        action::READ_CAPACITY_16,
        &[0x9e, 0x10, F, F, F, F, F, F, F, F, F, F, F, F, 0x01, 0x07],
    ),
    serviced(
        op::SERVICE_ACTION_IN_16,
        action::GET_LBA_STATUS,
        &[0x9e, 0x12, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0x07],
    ),
    plain(op::REPORT_LUNS, &[0xa0, 0, F, 0, 0, 0, F, F, F, F, 0, 0x07]),
    serviced(
        op::MAINTENANCE_IN,
        action::REPORT_PORT_GROUPS,
        &[0xa3, 0xea, 0, 0, 0, 0, F, F, F, F, 0, 0x07],
    ),
    serviced(
        op::MAINTENANCE_IN,
        action::REPORT_SUPPORTED,
        &[0xa3, 0x0c, 0x87, F, F, F, F, F, F, F, 0, 0x07],
    ),
    plain(op::READ_12, &[0xa8, 0xf8, F, F, F, F, F, F, F, F, 0, 0x07]),
    plain(op::WRITE_12, &[0xaa, 0xf8, F, F, F, F, F, F, F, F, 0, 0x07]),
    plain(op::WRITE_AND_VERIFY_12, &[0xae, 0xf6, F, F, F, F, F, F, F, F, 0, 0x07]),
    plain(op::VERIFY_12, &[0xaf, 0xf6, F, F, F, F, F, F, F, F, 0, 0x07]),
];

/// Command time-outs, of which none is promised (SPC-4, 6.35.4).
const TIMEOUTS: [u8; 12] = [0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn find(code: u8, action: Option<u8>) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.code == code && known.action == action)
}

/// True if there is such a command, with the service action if its code has any.
#[must_use]
pub fn is_known(cdb: &Cdb) -> bool {
    find(cdb[0], None).or(find(cdb[0], Some(cdb[1] & 0x1f))).is_some()
}

/// True if no bit is set that means nothing to the command.
#[must_use]
pub fn is_plain(cdb: &Cdb) -> bool {
    let known = find(cdb[0], None).or(find(cdb[0], Some(cdb[1] & 0x1f)));
    known.is_some_and(|known| {
        known.usage.iter().zip(cdb).skip(1).all(|(usage, byte)| byte & !usage == 0)
    })
}

/// True if service actions belong to the code.
#[must_use]
pub fn has_actions(code: u8) -> bool {
    KNOWN.iter().any(|known| known.code == code && known.action.is_some())
}

/// The answer, of which the allocation length cuts off the end.
///
/// # Errors
/// The sense of what can't be asked.
pub fn report(cdb: &Cdb) -> Result<Vec<u8>, Sense> {
    let timed = cdb[2] & 0x80 != 0;
    let (code, action) = (cdb[3], be16(cdb, 4));
    let has_actions = has_actions(code);
    let action = u8::try_from(action).ok();
    let mut data = match cdb[2] & 7 {
        0 => all(timed),
        1 if has_actions => return Err(INVALID_FIELD),
        1 => one(find(code, None), timed),
        2 if !has_actions => return Err(INVALID_FIELD),
        2 => one(action.and_then(|action| find(code, Some(action))), timed),
        3 if has_actions => one(action.and_then(|action| find(code, Some(action))), timed),
        3 => one(find(code, None).filter(|_| action == Some(0)), timed),
        _ => return Err(INVALID_FIELD),
    };
    data.truncate(be32(cdb, 6) as usize);
    Ok(data)
}

fn all(timed: bool) -> Vec<u8> {
    let mut data = vec![0; 4];
    for known in KNOWN {
        let flags = u8::from(known.action.is_some()) | if timed { 2 } else { 0 };
        let action = known.action.unwrap_or(0);
        data.extend_from_slice(&[known.code, 0, 0, action, 0, flags, 0, known.usage.len() as u8]);
        if timed {
            data.extend_from_slice(&TIMEOUTS);
        }
    }
    let length = data.len() as u32 - 4;
    data[..4].copy_from_slice(&length.to_be_bytes());
    data
}

fn one(known: Option<&Known>, timed: bool) -> Vec<u8> {
    // There is none, or it is as the standard says.
    let Some(known) = known else { return vec![0, 0x01, 0, 0] };
    let mut data = vec![0, 0x03 | if timed { 0x80 } else { 0 }, 0, known.usage.len() as u8];
    data.extend_from_slice(known.usage);
    if timed {
        data.extend_from_slice(&TIMEOUTS);
    }
    data
}
