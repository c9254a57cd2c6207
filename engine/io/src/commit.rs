//! Group commit: one fdatasync for all flushes that wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::device::{Device, Kind};
use crate::error::{DeviceError, ErrorKind};
use crate::pool::{Full, Pool};

/// Told how the flush went, and how long the fdatasync itself took in seconds.
pub type Done = Box<dyn FnOnce(Result<f64, DeviceError>) + Send>;

#[derive(Default)]
struct State {
    running: bool,
    waiting: Vec<Done>,
    /// The kernel reports a failed write-back once and then forgets it (fsync(2)), so the
    /// device stays failed for flushes until it is opened again.
    failed: Option<DeviceError>,
}

/// The flushes of one file device. They have a thread of their own: reads that wait for the
/// device do not keep it from being flushed, nor a flush them from being read.
pub struct Committer {
    state: Mutex<State>,
    pool: Pool,
}

impl Default for Committer {
    fn default() -> Committer {
        Committer { state: Mutex::default(), pool: Pool::new("vs-flush", 1) }
    }
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Committer")
    }
}

impl Committer {
    /// Asks for everything written so far to become durable. `done` is called on the flush
    /// thread, after an fdatasync that began after this call; or at once with an error, when
    /// the system has no thread for it. How many wait is bounded by the requests in flight.
    pub fn flush(device: &Arc<Device>, done: Done) {
        let mut state = device.committer.lock();
        state.waiting.push(done);
        if state.running {
            return;
        }
        state.running = true;
        drop(state);
        let job = Arc::clone(device);
        if let Err(Full) = device.committer.pool.submit(move || Self::run(&job)) {
            let text = format!("{}: flush: the system has no thread for it", device.uri);
            let error = DeviceError::new(ErrorKind::Io, text);
            let mut state = device.committer.lock();
            state.running = false;
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            for done in waiting {
                done(Err(error.clone()));
            }
        }
    }

    fn run(device: &Device) {
        loop {
            let (batch, failed) = {
                let mut state = device.committer.lock();
                if state.waiting.is_empty() {
                    state.running = false;
                    return;
                }
                (std::mem::take(&mut state.waiting), state.failed.clone())
            };
            let begun = Instant::now();
            let result = match (failed, &device.kind) {
                (Some(error), _) => Err(error),
                (None, Kind::File(file)) => file.sync_data(),
                (None, Kind::Nbd(_)) => Err(DeviceError::new(
                    ErrorKind::Invalid,
                    "an NBD device is flushed on its session",
                )),
            };
            if let Err(error) = &result {
                device.committer.lock().failed = Some(error.clone());
            }
            let seconds = begun.elapsed().as_secs_f64();
            for done in batch {
                done(result.clone().map(|()| seconds));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is changed by single assignments only: a panic can't leave it torn.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
