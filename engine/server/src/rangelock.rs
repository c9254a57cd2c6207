//! One order of overlapping writes to a volume's mirrors, and what reads must not see of them.
//!
//! While a write is under way its legs differ. A read then could give what no other leg has: were
//! that leg lost, or the next read made from another, hosts would see time run backwards. So a
//! read is answered only if no write to its range was under way when it had read.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vs_io::planted;

use crate::slab::Token;

/// Who holds or waits: an operation of a loop.
pub type Holder = (usize, Token);

#[derive(Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
    holder: Holder,
    /// It is a host's write.
    writes: bool,
}

impl Range {
    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start < end && start < self.end
    }
}

#[derive(Default)]
struct State {
    held: Vec<Range>,
    waiting: Vec<Range>,
    /// Where writes have ended on some legs alone.
    torn: Vec<(u64, u64)>,
}

impl State {
    fn is_free(&self, range: &Range) -> bool {
        let mut all = self.held.iter().chain(&self.waiting);
        !all.any(|other| other.overlaps(range.start, range.end))
    }

    fn is_torn(&self, start: u64, end: u64) -> bool {
        self.torn.iter().any(|torn| torn.0 < end && start < torn.1)
    }
}

/// Most torn ranges that are told apart.
const TORN: usize = 4096;

/// Intervals of volume space, each held by one operation at a time; waiters are served in
/// their order. An operation holds at most one interval, so there is no deadlock.
#[derive(Default)]
pub struct RangeLock {
    state: Mutex<State>,
    /// How many writes hold a range, and how many ranges are torn.
    unsettled: AtomicUsize,
    /// How often legs that may have differed were made alike.
    settled: AtomicUsize,
}

impl RangeLock {
    /// True if [start, start+length) is the holder's at once; otherwise it waits in line.
    pub fn acquire(&self, start: u64, length: u64, holder: Holder, writes: bool) -> bool {
        let range = Range { start, end: start + length, holder, writes };
        let mut state = self.lock();
        let free = state.is_free(&range) || planted("lock_not_held");
        if free {
            self.hold(&mut state, range);
        } else {
            state.waiting.push(range);
        }
        free
    }

    /// Like `acquire` for a write, but does not wait in line.
    pub fn try_acquire(&self, start: u64, length: u64, holder: Holder) -> bool {
        let range = Range { start, end: start + length, holder, writes: true };
        let mut state = self.lock();
        let free = state.is_free(&range);
        if free {
            self.hold(&mut state, range);
        }
        free
    }

    fn hold(&self, state: &mut State, range: Range) {
        self.unsettled.fetch_add(usize::from(range.writes), Ordering::SeqCst);
        state.held.push(range);
    }

    /// True if what a leg gave may be on it alone: a write to the range is under way, or has
    /// ended on some legs alone. To be asked after the reading.
    pub fn is_unsettled(&self, start: u64, length: u64) -> bool {
        fence(Ordering::SeqCst);
        if self.unsettled.load(Ordering::SeqCst) == 0 || planted("reads_beside_writes") {
            return false;
        }
        let (state, end) = (self.lock(), start + length);
        let written = |range: &Range| range.writes && range.overlaps(start, end);
        state.is_torn(start, end) || state.held.iter().any(written)
    }

    /// True if a write to some of the range has ended on some legs alone.
    pub fn is_torn(&self, start: u64, length: u64) -> bool {
        let none = self.unsettled.load(Ordering::SeqCst) == 0;
        !none && self.lock().is_torn(start, start + length)
    }

    /// What the holder has is about to be written, though it was not taken for that.
    pub fn writes(&self, holder: Holder) {
        let mut state = self.lock();
        let held = state.held.iter_mut().find(|range| range.holder == holder && !range.writes);
        if let Some(range) = held {
            range.writes = true;
            self.unsettled.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Legs that may have differed are alike: what was read of one of them before may be nowhere.
    pub fn settle(&self) {
        self.settled.fetch_add(1, Ordering::SeqCst);
    }

    /// Changes with `settle`.
    pub fn settled(&self) -> usize {
        self.settled.load(Ordering::SeqCst)
    }

    /// A write to the range has ended on some legs alone; to be told before it gives up the range.
    pub fn tear(&self, start: u64, length: u64) {
        let mut state = self.lock();
        let torn = (start, start + length);
        if state.torn.contains(&torn) {
            return;
        }
        if state.torn.len() < TORN {
            state.torn.push(torn);
            self.unsettled.fetch_add(1, Ordering::SeqCst);
        } else {
            state.torn[0] = (0, u64::MAX);
        }
    }

    /// All legs have the same in the range: a write to it has ended well.
    pub fn mend(&self, start: u64, length: u64) {
        if self.unsettled.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut state = self.lock();
        let before = state.torn.len();
        state.torn.retain(|torn| torn.0 < start || start + length < torn.1);
        self.unsettled.fetch_sub(before - state.torn.len(), Ordering::SeqCst);
    }

    /// Gives up what the holder has, and returns who may go on now.
    pub fn release(&self, holder: Holder) -> Vec<Holder> {
        let mut state = self.lock();
        if let Some(at) = state.held.iter().position(|range| range.holder == holder) {
            let range = state.held.swap_remove(at);
            self.unsettled.fetch_sub(usize::from(range.writes), Ordering::SeqCst);
        }
        let mut granted = Vec::new();
        let mut index = 0;
        while index < state.waiting.len() {
            let range = state.waiting[index];
            let mut before = state.held.iter().chain(&state.waiting[..index]);
            if before.any(|other| other.overlaps(range.start, range.end)) {
                index += 1;
                continue;
            }
            state.waiting.remove(index);
            self.hold(&mut state, range);
            granted.push(range.holder);
        }
        granted
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a loop aborts the process, so the state is never seen torn.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(index: u32) -> Holder {
        (0, Token { index, generation: 0 })
    }

    #[test]
    fn overlapping_ranges_go_in_their_order() {
        let lock = RangeLock::default();
        assert!(lock.acquire(0, 10, holder(1), true));
        assert!(lock.acquire(10, 10, holder(2), true));
        assert!(!lock.acquire(5, 10, holder(3), true));
        assert!(!lock.acquire(14, 2, holder(4), true), "a waiter in front counts too");
        assert!(!lock.try_acquire(0, 1, holder(5)));
        assert_eq!(lock.release(holder(1)), []);
        assert_eq!(lock.release(holder(2)), [holder(3)]);
        assert_eq!(lock.release(holder(3)), [holder(4)]);
        assert!(lock.try_acquire(0, 10, holder(6)));
    }
    #[test]
    fn what_is_being_written_or_was_written_in_part_is_unsettled() {
        let lock = RangeLock::default();
        assert!(lock.acquire(0, 10, holder(1), false));
        assert!(!lock.is_unsettled(0, 10), "a copy changes nothing");
        assert!(!lock.acquire(5, 10, holder(2), true));
        assert!(!lock.is_unsettled(5, 1), "it only waits");
        lock.writes(holder(1));
        lock.writes(holder(1));
        assert!(lock.is_unsettled(0, 1), "but one that does");
        assert_eq!(lock.release(holder(1)), [holder(2)]);
        assert!(lock.is_unsettled(14, 4) && !lock.is_unsettled(15, 4));
        lock.tear(5, 10);
        lock.tear(5, 10);
        assert_eq!(lock.release(holder(2)), []);
        assert!(lock.is_unsettled(9, 1));
        lock.mend(6, 9);
        assert!(lock.is_unsettled(9, 1), "not all of it");
        assert!(lock.is_torn(0, 6) && !lock.is_torn(0, 5));
        lock.mend(0, 20);
        assert!(!lock.is_unsettled(0, 100));
        for start in 0..=TORN as u64 {
            lock.tear(start * 10, 1);
        }
        assert!(lock.is_unsettled(5, 1), "too many to be told apart");
        lock.mend(0, u64::MAX);
        assert_eq!(lock.unsettled.load(Ordering::SeqCst), 0);
    }
}
