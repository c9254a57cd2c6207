//! A T1 object in service.

use std::sync::Arc;
use std::time::Instant;

use crate::alloc;
use crate::device::{Device, Kind};
use crate::error::DeviceError;
use crate::gate::Gate;
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

/// A T1 object in service: its physical blocks and the lowest epoch it answers.
#[derive(Debug)]
pub struct T1Object {
    pub spec: T1Spec,
    pub(super) size: u64,
    pub(super) runs: Vec<Run>,
    pub(super) in_files: bool,
    /// Those that it lies on, each once.
    pub(super) devices: Vec<Arc<Device>>,
    pub(crate) gate: Arc<Gate>,
}

impl T1Object {
    /// Bytes that may be addressed.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.gate.epoch()
    }

    /// True if a request of that epoch may be carried out.
    #[must_use]
    pub fn serves(&self, epoch: u64) -> bool {
        self.gate.serves(epoch)
    }

    /// Power was lost under it, and with that writes to several legs that were acknowledged and
    /// not flushed, if there are any: it serves nobody until it is fenced anew.
    pub fn doubt(&self) {
        if self.dirty() > 0 && !planted("power_loss_ignored") {
            self.gate.doubt();
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
        self.gate.is_doubtful()
    }

    /// Counts a request that ends later than its call; `end` must follow, with what this says.
    #[must_use]
    pub fn begin(&self) -> usize {
        self.gate.begin()
    }

    pub fn end(&self, side: usize) {
        self.gate.end(side);
    }

    #[must_use]
    pub fn pending(&self) -> u64 {
        self.gate.pending()
    }

    /// Has what begins from now on counted on the other side, so that the end of what began before can be
    /// waited for however much goes on: the side whose count (`pending_on`) will be 0 then. None
    /// while something from before the last time is still under way. One caller at a time.
    #[must_use]
    pub fn turn(&self) -> Option<usize> {
        self.gate.turn()
    }

    #[must_use]
    pub fn pending_on(&self, side: usize) -> u64 {
        self.gate.on(side)
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
