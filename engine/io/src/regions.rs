//! The write-intent map: which regions of a device may hold what other legs of a mirror do not.
//!
//! A region's bit is durable before the first write of a mirrored T1 object to it, and is
//! cleared some time after that write is durable on every leg. Each SP that homes T1 objects on a
//! device has a map of its own there, so that SPs that share a device never write the same block.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::device::BlockingDevice;
use crate::error::{DeviceError, ErrorKind};
use crate::label::{Label, SLOT};

/// Bytes of one SP's map: bits, region 0 first, the lowest bit of a byte first.
pub const MAP: u64 = 64 << 10;
/// Bytes at the end of each of the label's slots that maps lie in.
pub const MAPS: u64 = 512 << 10;
/// Most SPs that can home T1 objects on one device.
pub const MAX_SPS: usize = (2 * MAPS / MAP) as usize;
/// Bytes of the map that are written at once.
const PIECE: usize = 4096;
const WORDS: usize = PIECE / 8;

/// The smallest region that is not below `wanted` and of which a map holds a whole device of
/// `size` bytes. All are powers of two.
#[must_use]
pub fn region(size: u64, wanted: u64) -> u64 {
    let least = size.div_ceil(MAP * 8).next_power_of_two();
    least.max(wanted.next_power_of_two()).max(crate::device::UNIT)
}

/// Where the map of the SP at that place in the label lies on the device.
fn place(index: usize) -> u64 {
    let in_slot = (MAPS / MAP) as usize;
    let (slot, within) = ((index / in_slot) as u64, (index % in_slot) as u64);
    (slot + 1) * SLOT - MAPS + within * MAP
}

/// One SP's map of a device.
#[derive(Debug)]
pub struct Regions {
    at: u64,
    shift: u32,
    /// Bits that are on the device or about to be ...
    wanted: Vec<AtomicU64>,
    /// ... and those that are durable there.
    durable: Vec<AtomicU64>,
    /// Held while the map is written.
    writing: Mutex<()>,
}

/// The words that bits `first..=last` lie in, each with a mask of them.
fn words(first: u64, last: u64) -> impl Iterator<Item = (usize, u64)> {
    (first / 64..=last / 64).map(move |word| {
        let low = if word == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
        let high = if word == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
        (word as usize, low & high)
    })
}

impl Regions {
    /// The map of `sp`, which the label names, as it is on the device.
    ///
    /// # Errors
    /// Whatever the device says; `NotFound` if the label does not name the SP.
    pub fn load(
        device: &mut dyn BlockingDevice,
        label: &Label,
        sp: &str,
    ) -> Result<Regions, DeviceError> {
        let index = label.maps.iter().position(|known| known == sp).ok_or_else(|| {
            let text = format!("device {}: SP {sp} has no write-intent map on it", label.device);
            DeviceError::new(ErrorKind::NotFound, text)
        })?;
        let count = label.size.div_ceil(label.region).div_ceil(64) as usize;
        let mut bytes = vec![0; (count * 8).next_multiple_of(PIECE)];
        device.read_at(place(index), &mut bytes)?;
        let (chunks, _) = bytes.as_chunks::<8>();
        let bits = || chunks[..count].iter().map(|word| AtomicU64::new(u64::from_le_bytes(*word)));
        Ok(Regions {
            at: place(index),
            shift: label.region.trailing_zeros(),
            wanted: bits().collect(),
            durable: bits().collect(),
            writing: Mutex::default(),
        })
    }

    /// Bytes of a region.
    #[must_use]
    pub fn region(&self) -> u64 {
        1 << self.shift
    }

    fn bits(&self, offset: u64, length: u64) -> (u64, u64) {
        (offset >> self.shift, (offset + length.max(1) - 1) >> self.shift)
    }

    /// True if the bits of all regions that the range touches are durable.
    #[must_use]
    pub fn hold(&self, offset: u64, length: u64) -> bool {
        let (first, last) = self.bits(offset, length);
        if first == last {
            let word = self.durable[(first / 64) as usize].load(Ordering::Acquire);
            return word >> (first % 64) & 1 == 1;
        }
        let held =
            |(word, mask): (usize, u64)| self.durable[word].load(Ordering::Acquire) & mask == mask;
        words(first, last).all(held)
    }

    /// Has the bits of all regions that the range touches become durable.
    ///
    /// # Errors
    /// Whatever the device says.
    pub fn set(
        &self,
        device: &mut dyn BlockingDevice,
        offset: u64,
        length: u64,
    ) -> Result<(), DeviceError> {
        let (first, last) = self.bits(offset, length);
        // Before the turn to write: whoever has it may write these along.
        for (word, mask) in words(first, last) {
            self.wanted[word].fetch_or(mask, Ordering::SeqCst);
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for (word, mask) in words(first, last) {
            self.wanted[word].fetch_or(mask, Ordering::SeqCst);
        }
        for piece in (first / 64) as usize / WORDS..=(last / 64) as usize / WORDS {
            let from = (piece * WORDS * 64) as u64;
            let (low, high) = (first.max(from), last.min(from + (WORDS * 64) as u64 - 1));
            let held = |(word, mask): (usize, u64)| {
                self.durable[word].load(Ordering::Acquire) & mask == mask
            };
            if words(low, high).all(held) {
                continue;
            }
            let (range, bytes) = self.piece(piece);
            device.write_durably(self.at + (piece * PIECE) as u64, &bytes)?;
            let (chunks, _) = bytes.as_chunks::<8>();
            for (word, bits) in self.durable[range].iter().zip(chunks) {
                word.fetch_or(u64::from_le_bytes(*bits), Ordering::Release);
            }
        }
        Ok(())
    }

    /// Clears the bits of all regions that lie within the range. A crash may bring them back,
    /// which costs a copy of what is alike already.
    ///
    /// # Errors
    /// Whatever the device says; the bits are cleared in memory all the same.
    pub fn clear(
        &self,
        device: &mut dyn BlockingDevice,
        offset: u64,
        length: u64,
    ) -> Result<(), DeviceError> {
        let first = offset.div_ceil(self.region());
        let end = (offset + length) >> self.shift;
        if first >= end {
            return Ok(());
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = Vec::new();
        for (word, mask) in words(first, end - 1) {
            let was = self.durable[word].fetch_and(!mask, Ordering::AcqRel);
            let wanted = self.wanted[word].fetch_and(!mask, Ordering::SeqCst);
            if (was | wanted) & mask != 0 && changed.last() != Some(&(word / WORDS)) {
                changed.push(word / WORDS);
            }
        }
        for piece in changed {
            let (_, bytes) = self.piece(piece);
            device.write_at(self.at + (piece * PIECE) as u64, &bytes)?;
        }
        Ok(())
    }

    /// The words of a piece, and their bytes.
    fn piece(&self, piece: usize) -> (std::ops::Range<usize>, Vec<u8>) {
        let range = piece * WORDS..((piece + 1) * WORDS).min(self.wanted.len());
        let words = self.wanted[range.clone()].iter();
        let mut bytes: Vec<u8> =
            words.flat_map(|word| word.load(Ordering::SeqCst).to_le_bytes()).collect();
        bytes.resize(PIECE, 0);
        (range, bytes)
    }

    /// The range in runs of (length, 1 if dirty or 0), in order.
    #[must_use]
    pub fn runs(&self, offset: u64, length: u64) -> Vec<(u64, u32)> {
        let (mut at, end) = (offset, offset + length);
        let mut runs: Vec<(u64, u32)> = Vec::new();
        while at < end {
            let region = at >> self.shift;
            let next = ((region + 1) << self.shift).min(end);
            let word = self.wanted[(region / 64) as usize].load(Ordering::SeqCst);
            let dirty = (word >> (region % 64) & 1) as u32;
            match runs.last_mut() {
                Some(last) if last.1 == dirty => last.0 += next - at,
                _ => runs.push((next - at, dirty)),
            }
            at = next;
        }
        runs
    }

    /// Takes over what the other SPs' maps say of these ranges: their home was elsewhere.
    ///
    /// # Errors
    /// Whatever the device says.
    pub fn inherit(
        &self,
        device: &mut dyn BlockingDevice,
        label: &Label,
        ranges: &[(u64, u64)],
    ) -> Result<(), DeviceError> {
        for sp in &label.maps {
            let other = Regions::load(device, label, sp)?;
            if other.at == self.at {
                continue;
            }
            for &(offset, length) in ranges {
                let mut at = offset;
                for (count, dirty) in other.runs(offset, length) {
                    if dirty == 1 {
                        self.set(device, at, count)?;
                    }
                    at += count;
                }
            }
        }
        Ok(())
    }
}
