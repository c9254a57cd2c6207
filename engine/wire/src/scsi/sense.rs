//! Why a command failed (SPC-4, 4.5).

/// A sense key with its additional code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    pub key: u8,
    pub code: u16,
    /// The first byte that differs, of a comparison.
    pub information: Option<u32>,
}

/// A unit attention of that code.
#[must_use]
pub const fn attention(code: u16) -> Sense {
    sense(0x6, code)
}

const fn sense(key: u8, code: u16) -> Sense {
    Sense { key, code, information: None }
}

pub const NONE: Sense = sense(0, 0);
pub const MEDIUM_WRITE: Sense = sense(0x3, 0x0c00);
pub const MEDIUM_READ: Sense = sense(0x3, 0x1100);
pub const NOT_READY: Sense = sense(0x2, 0x0401);
pub const INVALID_OPCODE: Sense = sense(0x5, 0x2000);
pub const OUT_OF_RANGE: Sense = sense(0x5, 0x2100);
pub const INVALID_FIELD: Sense = sense(0x5, 0x2400);
pub const NO_UNIT: Sense = sense(0x5, 0x2500);
pub const INVALID_PARAMETER: Sense = sense(0x5, 0x2600);
pub const INVALID_RELEASE: Sense = sense(0x5, 0x2604);
pub const REGISTRATION_RESOURCES: Sense = sense(0x5, 0x5504);
pub const PARAMETER_LENGTH: Sense = sense(0x5, 0x1a00);
pub const POWER_ON: Sense = sense(0x6, 0x2900);
pub const RESET: Sense = sense(0x6, 0x2903);
pub const RESERVATIONS_PREEMPTED: Sense = sense(0x6, 0x2a03);
pub const RELEASED: Sense = sense(0x6, 0x2a04);
pub const REGISTRATIONS_PREEMPTED: Sense = sense(0x6, 0x2a05);
pub const ACCESS_CHANGED: Sense = sense(0x6, 0x2a06);
pub const CAPACITY_CHANGED: Sense = sense(0x6, 0x2a09);
/// Commands were cleared by another initiator.
pub const CLEARED: Sense = sense(0x6, 0x2f00);
pub const SPACE: Sense = sense(0x7, 0x2707);
pub const TOO_LITTLE_DATA: Sense = sense(0xb, 0x4b00);
pub const TOO_MANY_TARGETS: Sense = sense(0x5, 0x2606);
pub const TARGET_TYPE: Sense = sense(0x5, 0x2607);
pub const TOO_MANY_SEGMENTS: Sense = sense(0x5, 0x2608);
pub const SEGMENT_TYPE: Sense = sense(0x5, 0x2609);
pub const INLINE_DATA: Sense = sense(0x5, 0x260b);
/// A copy's list has the identifier of one that is being carried out.
pub const COPY_UNDER_WAY: Sense = sense(0x5, 0x0016);
/// COPY ABORTED, by why.
pub const COPY_FAILED: Sense = sense(0xa, 0x0000);
pub const NO_SUCH_TARGET: Sense = sense(0xa, 0x0804);
pub const TARGET_AWAY: Sense = sense(0xa, 0x0d02);
/// Nobody knows whether it was carried out: communication with where it would be has failed.
pub const UNSURE: Sense = sense(0xb, 0x0800);
pub const INTERNAL: Sense = sense(0x4, 0x4400);
pub const MISCOMPARE: Sense = sense(0xe, 0x1d00);

impl Sense {
    /// Fixed format (SPC-4, 4.5.3), current.
    #[must_use]
    pub fn fixed(&self) -> [u8; 18] {
        let mut out = [0; 18];
        out[0] = 0x70;
        if let Some(information) = self.information {
            out[0] |= 0x80;
            out[3..7].copy_from_slice(&information.to_be_bytes());
        }
        out[2] = self.key;
        out[7] = 10;
        out[12..14].copy_from_slice(&self.code.to_be_bytes());
        out
    }

    /// Descriptor format (SPC-4, 4.5.2), current.
    #[must_use]
    pub fn described(&self) -> [u8; 8] {
        let [code, qualifier] = self.code.to_be_bytes();
        [0x72, self.key, code, qualifier, 0, 0, 0, 0]
    }
}
