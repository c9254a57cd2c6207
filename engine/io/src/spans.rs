//! Ranges of a device that are in use by one thread each: what overlaps one waits for it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    /// (start, end). As many as threads work on the device at a time, so a list will do.
    busy: Vec<(u64, u64)>,
    waiting: usize,
}

/// The ranges of one device.
#[derive(Debug, Default)]
pub struct Spans {
    state: Mutex<State>,
    freed: Condvar,
}

/// A range that is this holder's alone until it is dropped.
#[derive(Debug)]
pub struct Span<'a> {
    spans: &'a Spans,
    range: (u64, u64),
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        let mut state = self.spans.lock();
        if let Some(at) = state.busy.iter().position(|range| *range == self.range) {
            state.busy.swap_remove(at);
        }
        if state.waiting > 0 {
            self.spans.freed.notify_all();
        }
    }
}

impl Spans {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Changed by single calls: a panic can't leave it torn.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn overlaps(state: &State, start: u64, end: u64) -> bool {
        state.busy.iter().any(|&(from, to)| from < end && start < to)
    }

    /// Waits until nobody has any of [start, end). Whoever has a span waits for no other.
    #[must_use]
    pub fn claim(&self, start: u64, end: u64) -> Span<'_> {
        let mut state = self.lock();
        while Self::overlaps(&state, start, end) {
            state.waiting += 1;
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        state.busy.push((start, end));
        Span { spans: self, range: (start, end) }
    }

    /// The same without waiting; None if somebody has some of it.
    #[must_use]
    pub fn try_claim(&self, start: u64, end: u64) -> Option<Span<'_>> {
        let mut state = self.lock();
        if Self::overlaps(&state, start, end) {
            return None;
        }
        state.busy.push((start, end));
        Some(Span { spans: self, range: (start, end) })
    }

    /// True while somebody has some of [start, end).
    #[must_use]
    pub fn is_busy(&self, start: u64, end: u64) -> bool {
        Self::overlaps(&self.lock(), start, end)
    }
}
