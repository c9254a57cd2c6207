//! The closing of checksums' pages: by a thread of each device that has some, and at once where a
//! T1 object leaves or the process ends.

use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::alloc;
use crate::checksums::Checksums;
use crate::commit::Committer;
use crate::device::Device;
use crate::error::{DeviceError, ErrorKind};
use crate::label::Label;

/// Runs (offset, length) of a device, in order.
type Runs = [(u64, u64)];

fn within(runs: &Runs, offset: u64) -> bool {
    let next = runs.partition_point(|run| run.0 <= offset);
    next > 0 && offset < runs[next - 1].0 + runs[next - 1].1
}

/// What this SP's T1 objects have of the device, by its label.
fn mine(label: &Label, sp: &str) -> Vec<(u64, u64)> {
    let entries = label.t1s.iter().filter(|entry| entry.t1.home == sp);
    let extents: Vec<_> = entries.flat_map(|entry| entry.t1.extents.iter().cloned()).collect();
    alloc::runs(&extents, &label.device)
}

/// Waits for a commit of the device; false if that fails, or takes until `deadline`.
fn flush(device: &Arc<Device>, deadline: Option<Instant>) -> bool {
    let (sender, receiver) = channel();
    let done = Box::new(move |result: Result<f64, DeviceError>| {
        // Whoever has stopped waiting does not ask.
        let _ = sender.send(result.is_ok());
    });
    Committer::flush(device, done);
    match deadline {
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            receiver.recv_timeout(left).unwrap_or(false)
        }
        None => receiver.recv().unwrap_or(false),
    }
}

/// Starts the thread that closes the pages of a device for `sp`, every so often while there are
/// any; it ends with the device. None is needed without checksums.
///
/// # Errors
/// When the system has no thread for it.
pub fn start(device: &Arc<Device>, sp: &str, every: Duration) -> Result<(), DeviceError> {
    let Some(checksums) = device.checksums() else { return Ok(()) };
    let (checksums, weak, sp) = (Arc::clone(checksums), Arc::downgrade(device), sp.to_owned());
    let run = move || run(&checksums, &weak, &sp, every);
    let thread = std::thread::Builder::new().name("vs-checksums".to_owned()).spawn(run);
    thread.map(drop).map_err(|error| DeviceError::os("start a thread", &device.uri, &error))
}

fn run(checksums: &Checksums, device: &Weak<Device>, sp: &str, every: Duration) {
    while checksums.await_round(every) {
        let Some(device) = device.upgrade() else { return };
        // What can't be closed now stays open: it costs no more than what is unknown then.
        let Ok(label) = device.label() else { continue };
        let mine = mine(&label, sp);
        checksums.forget_others(|offset| within(&mine, offset));
        let wanted = |offset| within(&mine, offset);
        if let Err(error) = checksums.round(false, wanted, || flush(&device, None)) {
            eprintln!("vswitchd engine: checksums: {error}");
        }
    }
}

impl Device {
    /// Closes what is open of its checksums, durably: of these runs and then forgets them, since
    /// they are about to be another SP's, or of all if there are none. Nothing of it is written meanwhile.
    ///
    /// # Errors
    /// Whatever the device says; `Timeout` if it has not answered by `deadline`.
    pub fn settle_checksums(
        self: &Arc<Device>,
        runs: Option<&Runs>,
        deadline: Instant,
    ) -> Result<(), DeviceError> {
        let Some(checksums) = self.checksums() else { return Ok(()) };
        if checksums.live() == 0 && runs.is_none() {
            checksums.rest();
            return Ok(());
        }
        let flush = || flush(self, Some(deadline));
        let wanted = |offset| runs.is_none_or(|runs| within(runs, offset));
        checksums.round(true, wanted, flush)?;
        // The device's own thread may have begun to close some.
        checksums.rest();
        if !flush() {
            let text = format!("{}: its checksums can't be made durable in time", self.uri);
            return Err(DeviceError::new(ErrorKind::Timeout, text));
        }
        for &(offset, length) in runs.unwrap_or_default() {
            checksums.forget(offset, length);
        }
        Ok(())
    }
}
