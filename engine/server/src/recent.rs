//! Where an owner has written of late, in volume space: what the clearing of the write-intent map
//! goes by.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Most regions that are told apart.
const REGIONS: u64 = 65_536;
/// Most runs that are cleared at a time.
const RUNS: usize = 16;

/// Regions written since the last round, and regions that some map may still have.
#[derive(Debug)]
pub struct Recent {
    size: u64,
    shift: u32,
    touched: Vec<AtomicU64>,
    /// As of the last round. All, to begin with: an earlier owner has written too.
    dirty: Mutex<Vec<u64>>,
    /// Somebody looks after it.
    armed: AtomicBool,
    /// A write has ended on some legs alone, and may not be sent again: nothing is cleared until
    /// a resync has made the legs alike.
    suspect: AtomicBool,
}

impl Recent {
    /// Of a volume of so many bytes.
    pub fn new(size: u64) -> Recent {
        let region = size.div_ceil(REGIONS).next_power_of_two().max(crate::copy::REGION);
        let words = size.div_ceil(region).div_ceil(64) as usize;
        Recent {
            size,
            shift: region.trailing_zeros(),
            touched: (0..words).map(|_| AtomicU64::new(0)).collect(),
            dirty: Mutex::new(vec![u64::MAX; words]),
            armed: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
        }
    }

    pub fn suspect(&self) {
        self.suspect.store(true, Ordering::SeqCst);
    }

    pub fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::SeqCst)
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Notes a write, under its range lock and before it is done. True if a round has to be
    /// asked for.
    pub fn touch(&self, offset: u64, length: u64) -> bool {
        for region in offset >> self.shift..=(offset + length.max(1) - 1) >> self.shift {
            let (word, bit) = (&self.touched[(region / 64) as usize], 1 << (region % 64));
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::SeqCst);
            }
        }
        !self.armed.load(Ordering::Relaxed) && !self.armed.swap(true, Ordering::SeqCst)
    }

    /// True if something in the range was written since the last round.
    pub fn touched(&self, offset: u64, length: u64) -> bool {
        let mut regions = offset >> self.shift..=(offset + length.max(1) - 1) >> self.shift;
        regions.any(|region| {
            self.touched[(region / 64) as usize].load(Ordering::SeqCst) >> (region % 64) & 1 == 1
        })
    }

    /// Begins a round: runs (offset, length) that are dirty and were not written since the one
    /// before. None when nothing is dirty any more; the next write asks for a round again.
    pub fn round(&self) -> Option<Vec<(u64, u64)>> {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        self.armed.store(false, Ordering::SeqCst);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut any = false;
        for (index, (word, known)) in self.touched.iter().zip(dirty.iter_mut()).enumerate() {
            let touched = word.swap(0, Ordering::SeqCst);
            *known |= touched;
            let idle = *known & !touched;
            any |= *known != 0;
            for bit in (0..64).filter(|bit| idle >> bit & 1 == 1) {
                let start = (index as u64 * 64 + bit) << self.shift;
                if start >= self.size {
                    continue;
                }
                let length = (1 << self.shift).min(self.size - start);
                match runs.last_mut() {
                    Some(last) if last.0 + last.1 == start => last.1 += length,
                    _ => runs.push((start, length)),
                }
            }
        }
        if any {
            self.armed.store(true, Ordering::SeqCst);
        }
        runs.truncate(RUNS);
        any.then_some(runs)
    }

    /// No map has this run of a round any more.
    pub fn cleaned(&self, offset: u64, length: u64) {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        let end = (offset + length).div_ceil(1 << self.shift);
        for region in offset >> self.shift..end {
            dirty[(region / 64) as usize] &= !(1 << (region % 64));
        }
        if offset + length == self.size && !self.size.is_multiple_of(64 << self.shift) {
            // Bits behind the end.
            let last = dirty.len() - 1;
            dirty[last] &= !(u64::MAX << (end % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Recent;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_was_not_written_for_a_round_is_cleared() {
        let recent = Recent::new(100 * MIB + 4096);
        assert_eq!(recent.round(), Some(vec![(0, 100 * MIB + 4096)]));
        assert!(!recent.touch(10 * MIB, 4096), "a round is due already");
        assert!(recent.touched(0, 11 * MIB) && !recent.touched(11 * MIB, MIB));
        recent.cleaned(0, 10 * MIB);
        let runs = recent.round().unwrap();
        assert_eq!(runs, [(11 * MIB, 89 * MIB + 4096)]);
        recent.cleaned(11 * MIB, 89 * MIB + 4096);
        assert_eq!(recent.round(), Some(vec![(10 * MIB, MIB)]));
        recent.cleaned(10 * MIB, MIB);
        assert_eq!(recent.round(), None);
        assert!(recent.touch(0, MIB) && !recent.touch(MIB, MIB));
        assert_eq!(recent.round(), Some(vec![]));
        assert_eq!(recent.round(), Some(vec![(0, 2 * MIB)]));
    }
}
