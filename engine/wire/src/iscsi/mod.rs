//! iSCSI (RFC 7143) as a target: bytes <-> typed values, without sockets. One connection a
//! session, error recovery level 0.

pub mod access;
pub mod chap;
pub mod login;
pub mod pdu;
pub mod security;
pub mod session;
pub mod text;

/// What PDUs are, as initiators send them (RFC 7143, 11.2.1.2) and as targets answer.
pub mod opcode {
    pub const NOP_OUT: u8 = 0x00;
    pub const COMMAND: u8 = 0x01;
    pub const TASK: u8 = 0x02;
    pub const LOGIN: u8 = 0x03;
    pub const TEXT: u8 = 0x04;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT: u8 = 0x06;
    pub const NOP_IN: u8 = 0x20;
    pub const RESPONSE: u8 = 0x21;
    pub const TASK_RESPONSE: u8 = 0x22;
    pub const LOGIN_RESPONSE: u8 = 0x23;
    pub const TEXT_RESPONSE: u8 = 0x24;
    pub const DATA_IN: u8 = 0x25;
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    pub const R2T: u8 = 0x31;
    pub const ASYNC: u8 = 0x32;
    pub const REJECT: u8 = 0x3f;
}

/// No task, and no transfer (RFC 7143, 11.2.1.8).
pub const NONE: u32 = u32::MAX;
/// Bytes of data in one PDU that this target takes.
pub const MAX_RECEIVE: u32 = 128 << 10;
/// Bytes of one burst, and of what comes without being asked for.
pub const MAX_BURST: u32 = 1 << 20;
pub const FIRST_BURST: u32 = 128 << 10;
