//! A logical unit: what each command leads to.

use super::cdb::{Cdb, Extent, action, be16, be32, compares, op};
use super::ports::Port;
use super::sense::{self, Sense};
use super::xcopy::{List, Question};
use super::{BLOCK, MOST, data, inquiry, ports, support, xcopy};
use crate::change::Change;

/// What stands still of a logical unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Bytes, a multiple of the block.
    pub size: u64,
    /// The same from every portal.
    pub naa: [u8; 8],
    pub serial: String,
    pub revision: [u8; 4],
    /// The target's iSCSI name, and the tag of the portal group it was reached by.
    pub target: String,
    pub tag: u16,
    /// All ports that it can be reached by, as far as is known.
    pub ports: Vec<Port>,
}

/// What has to be done for a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing: it is answered with these data.
    Reply(Vec<u8>),
    /// Nothing, and all blocks fit into the cache.
    ConditionMet,
    Fail(Sense),
    Read(Extent),
    /// What it brought; `reads` it again afterwards.
    Write {
        extent: Extent,
        fua: bool,
        verifies: bool,
    },
    /// A change by what it brought, of what is there.
    Change {
        change: Change,
        extent: Extent,
        fua: bool,
    },
    /// The one block that it brought, over and over.
    Same(Extent),
    Zero {
        extent: Extent,
        unmaps: bool,
    },
    Unmap(Vec<Extent>),
    Flush,
    /// Reads, and compares with what it brought; with nothing if `compares` is not.
    Verify {
        extent: Extent,
        compares: bool,
    },
    Status(Extent),
    /// It is about reservations: PERSISTENT RESERVE IN, and what changes them.
    Reservation,
    Reserve,
    /// From blocks to blocks, of units that the list names.
    Copy(List),
    /// How such a list went, in at most so many bytes.
    Copied {
        list: u8,
        question: Question,
        most: usize,
    },
}

impl Unit {
    fn holds(&self, extent: Extent) -> bool {
        extent.lba.checked_add(extent.blocks).is_some_and(|end| end <= self.size / BLOCK)
    }

    /// The extent of a command, if it is within the unit and not too long.
    fn extent(&self, cdb: &Cdb, most: u64) -> Result<Extent, Sense> {
        let extent = Extent::of(cdb);
        if !self.holds(extent) || extent.blocks == 0 && extent.lba >= self.size / BLOCK {
            return Err(sense::OUT_OF_RANGE);
        }
        if extent.blocks > most {
            return Err(sense::INVALID_FIELD);
        }
        Ok(extent)
    }
}

/// What a command leads to. `unit`: None where the addressed LUN has none; `brought`: its data.
#[must_use]
pub fn decide(unit: Option<&Unit>, cdb: &Cdb, brought: &[u8]) -> Action {
    let done = match unit {
        Some(unit) => decided(unit, cdb, brought),
        None => absent(cdb),
    };
    done.unwrap_or_else(Action::Fail)
}

/// Where there is no unit (SPC-4, 5.11).
fn absent(cdb: &Cdb) -> Result<Action, Sense> {
    match cdb[0] {
        op::INQUIRY => inquiry::inquiry(None, cdb).map(Action::Reply),
        op::REPORT_LUNS => data::luns(cdb).map(Action::Reply),
        op::REQUEST_SENSE => Ok(request_sense(cdb, sense::NO_UNIT)),
        _ => Err(sense::NO_UNIT),
    }
}

fn request_sense(cdb: &Cdb, sense: Sense) -> Action {
    let described = cdb[1] & 1 != 0;
    let mut data = if described { sense.described().to_vec() } else { sense.fixed().to_vec() };
    data.truncate(usize::from(cdb[4]));
    Action::Reply(data)
}

fn decided(unit: &Unit, cdb: &Cdb, brought: &[u8]) -> Result<Action, Sense> {
    if !support::is_known(cdb) {
        let actions = support::has_actions(cdb[0]);
        return Err(if actions { sense::INVALID_FIELD } else { sense::INVALID_OPCODE });
    }
    if !support::is_plain(cdb) {
        return Err(sense::INVALID_FIELD);
    }
    let reply = |data: Result<Vec<u8>, Sense>| data.map(Action::Reply);
    // Protection information, which there is none of.
    let protected = cdb[1] >> 5 != 0;
    match cdb[0] {
        op::TEST_UNIT_READY | op::START_STOP_UNIT => Ok(Action::Reply(Vec::new())),
        op::REQUEST_SENSE => Ok(request_sense(cdb, sense::NONE)),
        op::INQUIRY => reply(inquiry::inquiry(Some(unit), cdb)),
        op::MODE_SENSE_6 | op::MODE_SENSE_10 => reply(data::mode_sense(cdb)),
        op::MODE_SELECT_6 | op::MODE_SELECT_10 => {
            data::mode_select(cdb, brought).map(|()| Action::Reply(Vec::new()))
        }
        op::REPORT_LUNS => reply(data::luns(cdb)),
        op::READ_CAPACITY_10 => {
            if cdb[8] & 1 == 0 && be32(cdb, 2) != 0 {
                return Err(sense::INVALID_FIELD);
            }
            Ok(Action::Reply(data::capacity_10(unit.size)))
        }
        op::SERVICE_ACTION_IN_16 if cdb[1] & 0x1f == action::READ_CAPACITY_16 => {
            if cdb[14] & 1 == 0 && super::cdb::be64(cdb, 2) != 0 {
                return Err(sense::INVALID_FIELD);
            }
            Ok(Action::Reply(data::capacity_16(unit.size, cdb)))
        }
        op::SERVICE_ACTION_IN_16 => {
            let (lba, blocks) = (super::cdb::be64(cdb, 2), unit.size / BLOCK);
            if lba >= blocks {
                return Err(sense::OUT_OF_RANGE);
            }
            Ok(Action::Status(Extent { lba, blocks: (blocks - lba).min(u64::from(u32::MAX)) }))
        }
        op::MAINTENANCE_IN if cdb[1] & 0x1f == action::REPORT_PORT_GROUPS => {
            reply(ports::groups(&unit.ports, cdb))
        }
        op::MAINTENANCE_IN => reply(support::report(cdb)),
        op::PERSISTENT_RESERVE_IN => Ok(Action::Reservation),
        op::PERSISTENT_RESERVE_OUT
        | op::RESERVE_6
        | op::RESERVE_10
        | op::RELEASE_6
        | op::RELEASE_10 => Ok(Action::Reserve),
        op::EXTENDED_COPY => Ok(match xcopy::list(cdb, brought)? {
            Some(list) => Action::Copy(list),
            None => Action::Reply(Vec::new()),
        }),
        op::RECEIVE_COPY_RESULTS if cdb[1] & 0x1f == action::OPERATING_PARAMETERS => {
            let mut data = xcopy::parameters();
            data.truncate(xcopy::allocation(cdb));
            Ok(Action::Reply(data))
        }
        op::RECEIVE_COPY_RESULTS => {
            let (list, question) = xcopy::question(cdb)?;
            Ok(Action::Copied { list, question, most: xcopy::allocation(cdb) })
        }
        _ if protected => Err(sense::INVALID_FIELD),
        op::READ_6 | op::READ_10 | op::READ_12 | op::READ_16 => {
            unit.extent(cdb, MOST).map(Action::Read)
        }
        op::WRITE_6 | op::WRITE_10 | op::WRITE_12 | op::WRITE_16 => {
            let fua = cdb[0] != op::WRITE_6 && cdb[1] & 0x08 != 0;
            let extent = unit.extent(cdb, MOST)?;
            Ok(Action::Write { extent, fua, verifies: false })
        }
        op::COMPARE_AND_WRITE => {
            let extent = unit.extent(cdb, inquiry::COMPARED)?;
            changed(cdb, extent, Change::CompareWrite, brought)
        }
        op::ORWRITE_16 => changed(cdb, unit.extent(cdb, MOST)?, Change::Or, brought),
        op::WRITE_AND_VERIFY_10 | op::WRITE_AND_VERIFY_12 | op::WRITE_AND_VERIFY_16 => {
            let extent = unit.extent(cdb, MOST)?;
            Ok(Action::Write { extent, fua: true, verifies: true })
        }
        op::VERIFY_10 | op::VERIFY_12 | op::VERIFY_16 => {
            let extent = unit.extent(cdb, MOST)?;
            match compares(cdb) {
                2 => Err(sense::INVALID_FIELD),
                how => Ok(Action::Verify { extent, compares: how != 0 }),
            }
        }
        op::PRE_FETCH_10 | op::PRE_FETCH_16 => {
            unit.extent(cdb, u64::MAX).map(|_| Action::ConditionMet)
        }
        op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16 => {
            unit.extent(cdb, u64::MAX).map(|_| Action::Flush)
        }
        op::WRITE_SAME_10 | op::WRITE_SAME_16 => write_same(unit, cdb, brought),
        op::UNMAP => unmap(unit, cdb, brought),
        _ => Err(sense::INVALID_OPCODE),
    }
}

/// COMPARE AND WRITE and ORWRITE: nothing can be done with a part of what they should bring.
fn changed(cdb: &Cdb, extent: Extent, change: Change, brought: &[u8]) -> Result<Action, Sense> {
    if brought.len() as u64 != change.gives(extent.bytes()) {
        return Err(sense::INVALID_FIELD);
    }
    Ok(Action::Change { change, extent, fua: cdb[1] & 0x08 != 0 })
}

/// SBC-3, 5.40 and 5.41.
fn write_same(unit: &Unit, cdb: &Cdb, brought: &[u8]) -> Result<Action, Sense> {
    let (anchors, unmaps) = (cdb[1] & 0x10 != 0, cdb[1] & 0x08 != 0);
    if anchors {
        return Err(sense::INVALID_FIELD);
    }
    let mut extent = unit.extent(cdb, u64::MAX)?;
    if extent.blocks == 0 {
        // To the end.
        extent.blocks = unit.size / BLOCK - extent.lba;
    }
    if extent.blocks > MOST {
        return Err(sense::INVALID_FIELD);
    }
    if brought.iter().all(|byte| *byte == 0) {
        return Ok(Action::Zero { extent, unmaps });
    }
    Ok(Action::Same(extent))
}

/// SBC-3, 5.25.
fn unmap(unit: &Unit, cdb: &Cdb, brought: &[u8]) -> Result<Action, Sense> {
    if cdb[1] & 1 != 0 {
        return Err(sense::INVALID_FIELD);
    }
    if be16(cdb, 7) > 0 && be16(cdb, 7) < 8 {
        return Err(sense::PARAMETER_LENGTH);
    }
    let ranges = data::unmap(brought)?;
    let extents: Vec<Extent> =
        ranges.into_iter().map(|(lba, blocks)| Extent { lba, blocks }).collect();
    let total: u64 = extents.iter().map(|extent| extent.blocks).sum();
    if extents.len() > inquiry::RANGES as usize || total > u64::from(inquiry::AT_ONCE) {
        return Err(sense::INVALID_PARAMETER);
    }
    if !extents.iter().all(|extent| unit.holds(*extent)) {
        return Err(sense::OUT_OF_RANGE);
    }
    Ok(Action::Unmap(extents.into_iter().filter(|extent| extent.blocks > 0).collect()))
}
