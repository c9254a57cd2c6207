//! What the bytes of a CDB say (SBC-3, 5; SPC-4, 6).

use super::{BLOCK, MOST, xcopy};

pub mod op {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0a;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SELECT_6: u8 = 0x15;
    pub const RESERVE_6: u8 = 0x16;
    pub const RELEASE_6: u8 = 0x17;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP_UNIT: u8 = 0x1b;
    pub const READ_CAPACITY_10: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2a;
    pub const WRITE_AND_VERIFY_10: u8 = 0x2e;
    pub const VERIFY_10: u8 = 0x2f;
    pub const PRE_FETCH_10: u8 = 0x34;
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub const WRITE_SAME_10: u8 = 0x41;
    pub const UNMAP: u8 = 0x42;
    pub const MODE_SELECT_10: u8 = 0x55;
    pub const RESERVE_10: u8 = 0x56;
    pub const RELEASE_10: u8 = 0x57;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const PERSISTENT_RESERVE_IN: u8 = 0x5e;
    pub const PERSISTENT_RESERVE_OUT: u8 = 0x5f;
    pub const EXTENDED_COPY: u8 = 0x83;
    pub const RECEIVE_COPY_RESULTS: u8 = 0x84;
    pub const READ_16: u8 = 0x88;
    pub const COMPARE_AND_WRITE: u8 = 0x89;
    pub const WRITE_16: u8 = 0x8a;
    pub const ORWRITE_16: u8 = 0x8b;
    pub const WRITE_AND_VERIFY_16: u8 = 0x8e;
    pub const VERIFY_16: u8 = 0x8f;
    pub const PRE_FETCH_16: u8 = 0x90;
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub const REPORT_LUNS: u8 = 0xa0;
    pub const MAINTENANCE_IN: u8 = 0xa3;
    pub const READ_12: u8 = 0xa8;
    pub const WRITE_12: u8 = 0xaa;
    pub const WRITE_AND_VERIFY_12: u8 = 0xae;
    pub const VERIFY_12: u8 = 0xaf;
}

/// Service actions.
pub mod action {
    pub const READ_CAPACITY_16: u8 = 0x10;
    pub const GET_LBA_STATUS: u8 = 0x12;
    pub const REPORT_PORT_GROUPS: u8 = 0x0a;
    pub const REPORT_SUPPORTED: u8 = 0x0c;
    pub const EXTENDED_COPY_LID1: u8 = 0x00;
    pub const COPY_STATUS: u8 = 0x00;
    pub const OPERATING_PARAMETERS: u8 = 0x03;
    pub const FAILED_SEGMENT: u8 = 0x04;
}

/// Service actions of PERSISTENT RESERVE IN.
pub mod reserve_in {
    pub const READ_KEYS: u8 = 0x00;
    pub const READ_RESERVATION: u8 = 0x01;
    pub const REPORT_CAPABILITIES: u8 = 0x02;
    pub const READ_FULL_STATUS: u8 = 0x03;
}

/// Service actions of PERSISTENT RESERVE OUT.
pub mod reserve_out {
    pub const REGISTER: u8 = 0x00;
    pub const RESERVE: u8 = 0x01;
    pub const RELEASE: u8 = 0x02;
    pub const CLEAR: u8 = 0x03;
    pub const PREEMPT: u8 = 0x04;
    pub const PREEMPT_AND_ABORT: u8 = 0x05;
    /// REGISTER AND IGNORE EXISTING KEY.
    pub const REGISTER_ANY: u8 = 0x06;
    pub const REGISTER_AND_MOVE: u8 = 0x07;
}

pub type Cdb = [u8; 16];

/// Most bytes that parameters of PERSISTENT RESERVE OUT are looked at; more are of no use to it.
const MOST_PARAMETERS: u64 = 4096;

#[must_use]
pub fn be16(cdb: &Cdb, at: usize) -> u16 {
    u16::from_be_bytes([cdb[at], cdb[at + 1]])
}

#[must_use]
pub fn be32(cdb: &Cdb, at: usize) -> u32 {
    u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]])
}

#[must_use]
pub fn be64(cdb: &Cdb, at: usize) -> u64 {
    u64::from(be32(cdb, at)) << 32 | u64::from(be32(cdb, at + 4))
}

/// Blocks that a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub lba: u64,
    pub blocks: u64,
}

impl Extent {
    /// Where the commands that name blocks have them, by their length (SPC-4, 4.2).
    #[must_use]
    pub fn of(cdb: &Cdb) -> Extent {
        let (lba, blocks) = match cdb[0] >> 5 {
            _ if cdb[0] == op::COMPARE_AND_WRITE => (be64(cdb, 2), u64::from(cdb[13])),
            0 => {
                let blocks = if cdb[4] == 0 { 256 } else { u64::from(cdb[4]) };
                (u64::from(be32(cdb, 0) & 0x1f_ffff), blocks)
            }
            1 | 2 => (u64::from(be32(cdb, 2)), u64::from(be16(cdb, 7))),
            5 => (u64::from(be32(cdb, 2)), u64::from(be32(cdb, 6))),
            _ => (be64(cdb, 2), u64::from(be32(cdb, 10))),
        };
        Extent { lba, blocks }
    }

    #[must_use]
    pub fn offset(&self) -> u64 {
        self.lba * BLOCK
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks * BLOCK
    }
}

/// What a write-and-verify or a verification compares (SBC-3, 5.28, BYTCHK).
#[must_use]
pub fn compares(cdb: &Cdb) -> u8 {
    cdb[1] >> 1 & 3
}

/// Bytes that a command brings, whatever its initiator expects.
#[must_use]
pub fn needs(cdb: &Cdb) -> u64 {
    let extent = Extent::of(cdb);
    match cdb[0] {
        op::WRITE_6
        | op::WRITE_10
        | op::WRITE_12
        | op::WRITE_16
        | op::WRITE_AND_VERIFY_10
        | op::WRITE_AND_VERIFY_12
        | op::WRITE_AND_VERIFY_16
        | op::ORWRITE_16 => extent.blocks.min(MOST) * BLOCK,
        op::COMPARE_AND_WRITE => 2 * extent.blocks * BLOCK,
        op::VERIFY_10 | op::VERIFY_12 | op::VERIFY_16 => match compares(cdb) {
            1 => extent.blocks.min(MOST) * BLOCK,
            3 if extent.blocks > 0 => BLOCK,
            _ => 0,
        },
        op::WRITE_SAME_10 => BLOCK,
        // NDOB: no data is brought.
        op::WRITE_SAME_16 if cdb[1] & 1 == 0 => BLOCK,
        op::UNMAP | op::MODE_SELECT_10 => u64::from(be16(cdb, 7)),
        op::EXTENDED_COPY => xcopy::needs(cdb),
        op::MODE_SELECT_6 => u64::from(cdb[4]),
        op::PERSISTENT_RESERVE_OUT => u64::from(be32(cdb, 5)).min(MOST_PARAMETERS),
        _ => 0,
    }
}
