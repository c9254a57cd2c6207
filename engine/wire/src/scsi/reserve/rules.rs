//! Which commands a reservation forbids (SPC-4, table 69; SBC-3, table 13; SPC-2, table 9).

use super::{Nexus, Record};
use crate::scsi::cdb::{Cdb, action, op};

enum Class {
    /// Tells of the unit, or decides for itself.
    Free,
    /// Looks at what is stored: forbidden to others while access is exclusive.
    Looks,
    /// Changes something: forbidden to others while anybody holds the unit.
    Changes,
}

fn class(cdb: &Cdb) -> Class {
    match cdb[0] {
        op::INQUIRY
        | op::REPORT_LUNS
        | op::REQUEST_SENSE
        | op::TEST_UNIT_READY
        | op::READ_CAPACITY_10
        | op::PERSISTENT_RESERVE_IN
        | op::PERSISTENT_RESERVE_OUT
        | op::RESERVE_6
        | op::RESERVE_10
        | op::RELEASE_6
        | op::RELEASE_10 => Class::Free,
        op::SERVICE_ACTION_IN_16 if cdb[1] & 0x1f == action::READ_CAPACITY_16 => Class::Free,
        op::MAINTENANCE_IN if cdb[1] & 0x1f == action::REPORT_PORT_GROUPS => Class::Free,
        op::START_STOP_UNIT if cdb[4] & 1 == 1 && cdb[4] >> 4 == 0 => Class::Free,
        op::SERVICE_ACTION_IN_16
        | op::MAINTENANCE_IN
        | op::MODE_SENSE_6
        | op::MODE_SENSE_10
        | op::PRE_FETCH_10
        | op::PRE_FETCH_16
        | op::READ_6
        | op::READ_10
        | op::READ_12
        | op::READ_16
        | op::VERIFY_10
        | op::VERIFY_12
        | op::VERIFY_16 => Class::Looks,
        // Also what is not known here: it is refused for that if it is not for this.
        _ => Class::Changes,
    }
}

/// False if the command ends with RESERVATION CONFLICT.
#[must_use]
pub fn allows(record: &Record, nexus: &Nexus, cdb: &Cdb) -> bool {
    if let Some(holder) = &record.reserved {
        let told = matches!(cdb[0], op::INQUIRY | op::REPORT_LUNS | op::REQUEST_SENSE)
            || cdb[0] == op::MAINTENANCE_IN && cdb[1] & 0x1f == action::REPORT_PORT_GROUPS;
        // A release by another changes nothing, and is no conflict.
        let releases = matches!(cdb[0], op::RELEASE_6 | op::RELEASE_10);
        return holder == nexus || told || releases;
    }
    let Some(held) = &record.held else { return true };
    let shares = held.kind.is_shared() && record.key(nexus).is_some();
    if shares || record.holds(nexus) {
        return true;
    }
    match class(cdb) {
        Class::Free => true,
        Class::Looks => !held.kind.is_exclusive(),
        Class::Changes => false,
    }
}
