//! When pages are closed, and when they are forgotten.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::page::State;
use super::{Checksums, LEARNED, LOCKS, OPEN, PAGE, REGION, lock};
use crate::device::LABEL_AREA;
use crate::error::DeviceError;
use crate::planted::planted;

impl Checksums {
    /// Waits for something to close, and then so long, during which more may come to it. False
    /// when the device is no longer used.
    #[must_use]
    pub fn await_round(&self, every: Duration) -> bool {
        let mut live = lock(&self.live);
        while live.regions.is_empty() && !live.gone {
            live = self.changed.wait(live).unwrap_or_else(PoisonError::into_inner);
        }
        let due = Instant::now() + every;
        while !live.gone {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            let woken = self.changed.wait_timeout(live, left);
            live = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    /// Ends `await_round` for good; no page is closed any more.
    pub fn retire(&self) {
        lock(&self.live).gone = true;
        self.changed.notify_all();
    }

    /// Waits until no page is being written that was before.
    pub fn rest(&self) {
        drop(self.lock_pages(0..LOCKS));
    }

    /// How many regions are open, or have learned something.
    #[must_use]
    pub fn live(&self) -> usize {
        lock(&self.live).regions.len()
    }

    /// Closes the regions that `wanted` names by their offset and that were not written since the
    /// last round, or with `all` those that are not being written now. `flush` has to make durable what was
    /// written before it is called; if it says false nothing is closed.
    ///
    /// # Errors
    /// Whatever the device says of a page; it is tried again in the next round.
    pub fn round(
        &self,
        all: bool,
        wanted: impl Fn(u64) -> bool,
        flush: impl FnOnce() -> bool,
    ) -> Result<(), DeviceError> {
        let live: Vec<usize> = lock(&self.live).regions.iter().copied().collect();
        let quiet = |index: usize| {
            let region = self.region(index);
            let writes = region.writes.load(Ordering::SeqCst);
            let seen = region.seen.swap(writes, Ordering::SeqCst);
            let quiet = wanted(index as u64 * REGION) && (all || seen == writes);
            quiet.then_some((index, writes))
        };
        let quiet: Vec<(usize, u32)> = live.into_iter().filter_map(quiet).collect();
        if quiet.is_empty() || !(planted("checksum_closed_unflushed") || flush()) {
            return Ok(());
        }
        quiet.into_iter().try_for_each(|(index, writes)| self.close(index, writes))
    }

    /// Closes a region unless it was written since that count.
    fn close(&self, index: usize, writes: u32) -> Result<(), DeviceError> {
        let region = self.region(index);
        let _page = lock(&self.pages[index % LOCKS]);
        if lock(&self.live).gone {
            return Ok(());
        }
        let was = region.state.fetch_and(!(OPEN | LEARNED), Ordering::SeqCst);
        if was & (OPEN | LEARNED) == 0 {
            lock(&self.live).regions.remove(&index);
            return Ok(());
        }
        let start = index as u64 * REGION;
        // A writer has its span, counts, and then looks whether the region is open.
        let written = region.writes.load(Ordering::SeqCst) != writes;
        if written || self.spans.is_busy(start, start + REGION) {
            region.state.fetch_or(was & (OPEN | LEARNED), Ordering::SeqCst);
            return Ok(());
        }
        lock(&self.live).regions.remove(&index);
        let page = self.encode(index, State::Closed, region);
        let done = self.medium.write(LABEL_AREA + index as u64 * PAGE, &page);
        if done.is_err() {
            // Nobody knows what stands there: the next write opens it anew.
            region.state.fetch_or(LEARNED, Ordering::SeqCst);
        }
        if region.has(LEARNED) {
            self.enlist(index);
        }
        done
    }

    /// Forgets what is in memory of the range, whose blocks are about to be somebody else's, or
    /// were. Nobody reads or writes it meanwhile.
    pub fn forget(&self, offset: u64, length: u64) {
        for index in Self::indices(offset, offset + length) {
            let Some(region) = self.regions[index].get() else { continue };
            let _page = lock(&self.pages[index % LOCKS]);
            region.state.store(0, Ordering::SeqCst);
            for sum in &region.sums {
                sum.store(0, Ordering::SeqCst);
            }
            lock(&self.live).regions.remove(&index);
        }
    }

    /// Forgets the regions that were live and are another SP's by now.
    pub fn forget_others(&self, mine: impl Fn(u64) -> bool) {
        let live: Vec<usize> = lock(&self.live).regions.iter().copied().collect();
        for start in live.into_iter().map(|index| index as u64 * REGION) {
            if !mine(start) {
                self.forget(start, REGION);
            }
        }
    }
}
