//! A T1 object in service.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::alloc;
use crate::device::{Device, Kind};
use crate::error::DeviceError;
use crate::label::T1Spec;
use crate::planted::planted;

/// One run of an object on one device.
#[derive(Debug)]
pub(super) struct Run {
    /// Where it begins in the object's space.
    pub(super) start: u64,
    pub(super) device: Arc<Device>,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What requests on an object pass through. An extension makes a new `T1Object` with the
/// same gate, so that a fence reaches whoever still holds the old one.
#[derive(Debug, Default)]
pub(super) struct Gate {
    epoch: AtomicU64,
    /// The lowest that is served: that one, or none at all while the object is in doubt.
    served: AtomicU64,
    /// Requests that are not carried out inline: pool jobs, NBD sessions.
    pending: AtomicU64,
}

impl Gate {
    /// Serves no lower epoch from now on. A higher one than any before is somebody's decision
    /// about it, and ends a doubt.
    pub(super) fn raise(&self, epoch: u64) {
        let before = self.epoch.fetch_max(epoch, Ordering::SeqCst);
        if epoch > before {
            self.served.store(epoch, Ordering::SeqCst);
        }
    }

    pub(super) fn shut(&self) {
        self.epoch.store(u64::MAX, Ordering::SeqCst);
        self.served.store(u64::MAX, Ordering::SeqCst);
    }
}

/// A T1 object in service: its physical blocks and the lowest epoch it answers.
#[derive(Debug)]
pub struct T1Object {
    pub spec: T1Spec,
    pub(super) size: u64,
    pub(super) runs: Vec<Run>,
    pub(super) in_files: bool,
    /// Those that it lies on, each once.
    pub(super) devices: Vec<Arc<Device>>,
    pub(super) gate: Arc<Gate>,
}

impl T1Object {
    /// Bytes that may be addressed.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.gate.epoch.load(Ordering::SeqCst)
    }

    /// True if a request of that epoch may be carried out.
    #[must_use]
    pub fn serves(&self, epoch: u64) -> bool {
        epoch >= self.gate.served.load(Ordering::SeqCst) || planted("no_fence")
    }

    /// Power was lost under it, and with that writes to several legs that were acknowledged and
    /// not flushed, if there are any: it serves nobody until it is fenced anew.
    pub fn doubt(&self) {
        if self.dirty() > 0 && !planted("power_loss_ignored") {
            self.gate.served.store(u64::MAX, Ordering::SeqCst);
        }
    }

    /// Bytes of it that the write-intent map has.
    #[must_use]
    pub fn dirty(&self) -> u64 {
        let found = |run: &Run| run.device.regions.runs(run.offset, run.length);
        let runs = self.runs.iter().flat_map(found);
        runs.filter(|(_, flag)| *flag == 1).map(|(count, _)| count).sum()
    }

    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        let gate = &self.gate;
        let served = gate.served.load(Ordering::SeqCst);
        served == u64::MAX && gate.epoch.load(Ordering::SeqCst) != u64::MAX
    }

    /// Counts a request that ends later than its call; `end` must follow.
    pub fn begin(&self) {
        self.gate.pending.fetch_add(1, Ordering::SeqCst);
    }

    pub fn end(&self) {
        self.gate.pending.fetch_sub(1, Ordering::SeqCst);
    }

    #[must_use]
    pub fn pending(&self) -> u64 {
        self.gate.pending.load(Ordering::SeqCst)
    }

    /// True if it lies in files and block devices alone.
    #[must_use]
    pub fn in_files(&self) -> bool {
        self.in_files
    }

    /// The devices that it lies on, each once.
    #[must_use]
    pub fn devices(&self) -> &[Arc<Device>] {
        &self.devices
    }

    /// True if the write-intent map durably says that this range is being written.
    #[must_use]
    pub fn intends(&self, offset: u64, length: u64) -> bool {
        let held = self.map(offset, length, |device, start, count, _| {
            if planted("map_not_set") || device.regions.hold(start, count) {
                Ok(())
            } else {
                Err(())
            }
        });
        held.is_ok()
    }

    /// Lets go of what is kept in memory of it: its blocks are about to be somebody else's.
    pub(super) fn forget(&self) {
        for run in &self.runs {
            if let Kind::File(file) = &run.device.kind {
                file.forget(run.offset, run.length);
            }
            if let Some(checksums) = run.device.checksums() {
                checksums.forget(run.offset, run.length);
            }
        }
    }

    /// Durably closes what is open of its checksums, and forgets them: it is about to be another
    /// SP's. All that was written to it is durable then, and nobody writes it meanwhile.
    ///
    /// # Errors
    /// Whatever a device says; `Timeout` if one has not answered by `deadline`.
    pub fn settle_checksums(&self, deadline: Instant) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(|device| {
            let runs = alloc::runs(&self.spec.extents, &device.id);
            device.settle_checksums(Some(&runs), deadline)
        })
    }

    /// Calls `each` with (device, offset on it, length, offset from `offset`) for every run
    /// that the range touches, in order. The range must lie within the object.
    ///
    /// # Errors
    /// The first that `each` gives.
    pub fn map<E>(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(&Arc<Device>, u64, u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut index = self.runs.partition_point(|run| run.start <= offset).saturating_sub(1);
        let mut done = 0;
        while done < length {
            let run = &self.runs[index];
            let within = offset + done - run.start;
            let take = (length - done).min(run.length - within);
            each(&run.device, run.offset + within, take, done)?;
            done += take;
            index += 1;
        }
        Ok(())
    }
}
