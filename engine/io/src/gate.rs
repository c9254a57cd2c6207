//! What outlives a `T1Object`: its epochs, its requests under way, its volume's reservations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::label::Kept;

/// What requests on an object pass through. An extension makes a new `T1Object` with the
/// same gate, so that a fence reaches whoever still holds the old one.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    pub(crate) epoch: AtomicU64,
    /// The lowest that is served: that one, or none at all while the object is in doubt.
    pub(crate) served: AtomicU64,
    /// Requests that are not carried out inline: pool jobs, NBD sessions.
    pub(crate) pending: AtomicU64,
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
