//! Changes that depend on what was there: decided on what was read, and written, while nothing else
//! changes it.

/// Most bytes of one change. It does not go past a multiple of this: no boundary inside a volume's
/// tree lies elsewhere, so that one SP can carry it out.
pub const UNIT: u64 = 4096;

/// What is to become of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The first half of what is given is compared with what is there; if it is the same, the
    /// second half is written (COMPARE AND WRITE: SBC-3, 5.2).
    CompareWrite,
    /// Bits that are given are set (ORWRITE: SBC-3, 5.13).
    Or,
}

impl Change {
    /// Bytes that are given for a range of so many.
    #[must_use]
    pub fn gives(self, length: u64) -> u64 {
        match self {
            Change::CompareWrite => 2 * length,
            Change::Or => length,
        }
    }

    /// What is to be written in place of `found`. `given` is as long as `gives` says.
    ///
    /// # Errors
    /// The first byte that is not as it should be: nothing is written.
    pub fn apply(self, found: &[u8], given: &[u8]) -> Result<Vec<u8>, u32> {
        match self {
            Change::CompareWrite => {
                let (wanted, new) = given.split_at(found.len().min(given.len()));
                match found.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
                    None => Ok(new.to_vec()),
                    Some(at) => Err(at as u32),
                }
            }
            Change::Or => Ok(found.iter().zip(given).map(|(found, given)| found | given).collect()),
        }
    }
}

/// True if one change may be of this range.
#[must_use]
pub fn fits(offset: u64, length: u64) -> bool {
    length > 0 && length <= UNIT && offset % UNIT + length <= UNIT
}
