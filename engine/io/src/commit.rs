//! Group commit: one fdatasync for all flushes that wait, a few of them side by side.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::device::{Device, Kind};
use crate::error::{DeviceError, ErrorKind};
use crate::file::LANES;
use crate::pool::{Full, Pool};

/// Told how the flush went, and how long the fdatasync itself took in seconds.
pub type Done = Box<dyn FnOnce(Result<f64, DeviceError>) + Send>;

#[derive(Default)]
struct State {
    /// How many commits are under way, of at most `file::LANES`.
    running: usize,
    waiting: Vec<Done>,
    /// The kernel reports a failed write-back once and then forgets it (fsync(2)), so the
    /// device stays failed for flushes until it is opened again.
    failed: Option<DeviceError>,
}

/// The flushes of one file device. They have threads of their own: reads that wait for the
/// device do not keep it from being flushed, nor a flush them from being read.
pub struct Committer {
    state: Mutex<State>,
    pool: Pool,
}

impl Default for Committer {
    fn default() -> Committer {
        Committer { state: Mutex::default(), pool: Pool::new("vs-flush", LANES) }
    }
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Committer")
    }
}

impl Committer {
    /// Asks for everything written so far to become durable. `done` is called on a flush
    /// thread, after an fdatasync that began after this call; or at once with an error, when
    /// the system has no thread for it. How many wait is bounded by the requests in flight.
    pub fn flush(device: &Arc<Device>, done: Done) {
        let mut state = device.committer.lock();
        state.waiting.push(done);
        if state.running >= LANES {
            return;
        }
        state.running += 1;
        drop(state);
        let job = Arc::clone(device);
        if let Err(Full) = device.committer.pool.submit(move || Self::run(&job)) {
            let text = format!("{}: flush: the system has no thread for it", device.uri);
            let error = DeviceError::new(ErrorKind::Io, text);
            let mut state = device.committer.lock();
            state.running -= 1;
            if state.running > 0 {
                // A commit that is under way takes them on when it ends.
                return;
            }
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
                    state.running -= 1;
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
            let result = {
                let mut state = device.committer.lock();
                if let Err(error) = &result {
                    state.failed = Some(error.clone());
                }
                // Another lane may have failed meanwhile: what was lost may be this one's.
                state.failed.clone().map_or(result, Err)
            };
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
