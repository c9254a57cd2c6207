//! SCSI commands of a disk (SPC-4, SBC-3): CDBs in, what is to be done or answered out. Pure.

pub mod cdb;
pub mod data;
pub mod inquiry;
pub mod ports;
pub mod reserve;
pub mod sense;
pub mod support;
pub mod unit;
pub mod xcopy;

/// Bytes of a logical block.
pub const BLOCK: u64 = 512;
/// Logical blocks of a physical one, as a power of two.
pub const PHYSICAL: u8 = 3;
/// Most blocks that one command may move.
pub const MOST: u64 = (16 << 20) / BLOCK;
/// The one logical unit of a target, in the peripheral addressing of SAM-5, 4.7.7.
pub const LUN: u64 = 1 << 48;

/// Status codes (SAM-5, 5.3).
pub mod status {
    pub const GOOD: u8 = 0x00;
    pub const CHECK_CONDITION: u8 = 0x02;
    pub const CONDITION_MET: u8 = 0x04;
    pub const BUSY: u8 = 0x08;
    pub const RESERVATION_CONFLICT: u8 = 0x18;
}
