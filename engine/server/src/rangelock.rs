//! One order of overlapping writes to a volume's mirrors.

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
}

impl Range {
    fn overlaps(&self, other: &Range) -> bool {
        self.start < other.end && other.start < self.end
    }
}

#[derive(Default)]
struct State {
    held: Vec<Range>,
    waiting: Vec<Range>,
}

/// Intervals of volume space, each held by one operation at a time; waiters are served in
/// their order. An operation holds at most one interval, so there is no deadlock.
#[derive(Default)]
pub struct RangeLock(Mutex<State>);

impl RangeLock {
    /// True if [start, start+length) is the holder's at once; otherwise it waits in line.
    pub fn acquire(&self, start: u64, length: u64, holder: Holder) -> bool {
        let range = Range { start, end: start + length, holder };
        let mut state = self.lock();
        let busy = state.held.iter().chain(&state.waiting).any(|other| other.overlaps(&range));
        let busy = busy && !planted("lock_not_held");
        if busy {
            state.waiting.push(range);
        } else {
            state.held.push(range);
        }
        !busy
    }

    /// Like `acquire`, but does not wait in line.
    pub fn try_acquire(&self, start: u64, length: u64, holder: Holder) -> bool {
        let range = Range { start, end: start + length, holder };
        let mut state = self.lock();
        let busy = state.held.iter().chain(&state.waiting).any(|other| other.overlaps(&range));
        if !busy {
            state.held.push(range);
        }
        !busy
    }

    /// Gives up what the holder has, and returns who may go on now.
    pub fn release(&self, holder: Holder) -> Vec<Holder> {
        let mut state = self.lock();
        if let Some(at) = state.held.iter().position(|range| range.holder == holder) {
            state.held.swap_remove(at);
        }
        let mut granted = Vec::new();
        let mut index = 0;
        while index < state.waiting.len() {
            let range = state.waiting[index];
            let earlier = &state.waiting[..index];
            if state.held.iter().chain(earlier).any(|other| other.overlaps(&range)) {
                index += 1;
                continue;
            }
            state.waiting.remove(index);
            state.held.push(range);
            granted.push(range.holder);
        }
        granted
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a loop aborts the process, so the state is never seen torn.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        assert!(lock.acquire(0, 10, holder(1)));
        assert!(lock.acquire(10, 10, holder(2)));
        assert!(!lock.acquire(5, 10, holder(3)));
        assert!(!lock.acquire(14, 2, holder(4)), "a waiter in front counts too");
        assert!(!lock.try_acquire(0, 1, holder(5)));
        assert_eq!(lock.release(holder(1)), []);
        assert_eq!(lock.release(holder(2)), [holder(3)]);
        assert_eq!(lock.release(holder(3)), [holder(4)]);
        assert!(lock.try_acquire(0, 10, holder(6)));
    }
}
