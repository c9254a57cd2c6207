//! What outlives a `T1Object`: its fence, its requests under way, its volume's reservations.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::label::Kept;
use crate::planted::planted;

/// What requests on an object pass through. An extension makes a new `T1Object` with the
/// same gate, so that a fence reaches whoever still holds the old one.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    epoch: AtomicU64,
    /// The lowest that is served: that one, or none at all while the object is in doubt.
    served: AtomicU64,
    /// Requests that are not carried out inline (pool jobs, NBD sessions), by the side that they
    /// were counted on.
    pending: [AtomicU64; 2],
    side: AtomicUsize,
    /// As the labels have it.
    kept: Mutex<Option<Arc<Kept>>>,
}

impl Gate {
    /// Serves no lower epoch from now on. A higher one than any before is somebody's decision
    /// about it, and ends a doubt.
    pub(crate) fn raise(&self, epoch: u64) {
        let before = self.epoch.fetch_max(epoch, Ordering::SeqCst);
        if epoch > before {
            self.served.store(epoch, Ordering::SeqCst);
        }
    }

    pub(crate) fn shut(&self) {
        self.epoch.store(u64::MAX, Ordering::SeqCst);
        self.served.store(u64::MAX, Ordering::SeqCst);
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    pub(crate) fn serves(&self, epoch: u64) -> bool {
        epoch >= self.served.load(Ordering::SeqCst) || planted("no_fence")
    }

    pub(crate) fn doubt(&self) {
        self.served.store(u64::MAX, Ordering::SeqCst);
    }

    pub(crate) fn is_doubtful(&self) -> bool {
        let served = self.served.load(Ordering::SeqCst);
        served == u64::MAX && self.epoch() != u64::MAX
    }

    pub(crate) fn begin(&self) -> usize {
        loop {
            let side = self.side.load(Ordering::SeqCst);
            self.pending[side].fetch_add(1, Ordering::SeqCst);
            // Otherwise the side may have been found empty between the two.
            if self.side.load(Ordering::SeqCst) == side {
                return side;
            }
            self.end(side);
        }
    }

    pub(crate) fn end(&self, side: usize) {
        self.pending[side].fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn pending(&self) -> u64 {
        self.on(0) + self.on(1)
    }

    pub(crate) fn on(&self, side: usize) -> u64 {
        self.pending[side].load(Ordering::SeqCst)
    }

    pub(crate) fn turn(&self) -> Option<usize> {
        let side = self.side.load(Ordering::SeqCst);
        if self.on(1 - side) > 0 {
            return None;
        }
        self.side.store(1 - side, Ordering::SeqCst);
        Some(side)
    }

    pub(crate) fn kept(&self) -> Option<Arc<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes what labels have, unless it is older than what is known.
    pub(crate) fn keep(&self, found: Option<Arc<Kept>>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if found.as_ref().map(|new| new.stamp()) > kept.as_ref().map(|old| old.stamp()) {
            *kept = found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_under_way_before_a_turn_is_told_from_what_came_later() {
        let gate = Gate::default();
        let first = gate.begin();
        assert_eq!(gate.turn(), Some(first));
        let second = gate.begin();
        assert_ne!(first, second);
        assert_eq!((gate.on(first), gate.pending()), (1, 2));
        assert_eq!(gate.turn(), None, "the other side has not emptied");
        gate.end(first);
        assert_eq!((gate.on(first), gate.turn()), (0, Some(second)));
        gate.end(second);
        assert_eq!(gate.pending(), 0);
    }
}
