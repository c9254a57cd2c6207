//! What stands on a device's label, for views: read again each time, but never waited for longer
//! than the caller will. A view tells of all devices; one that does not answer must not keep it
//! from telling of the others.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::device::Device;
use crate::error::{DeviceError, ErrorKind};
use crate::label::Label;
use crate::pool::Pool;

/// What was last read is still told so long after that.
const FRESH: Duration = Duration::from_secs(60);

struct State {
    /// Reads that have begun, and the number of the last that has ended.
    begun: u64,
    ended: u64,
    /// The number of the read that somebody waits for.
    wanted: u64,
    /// A thread reads.
    running: bool,
    last: Result<Arc<Label>, DeviceError>,
    read_at: Instant,
}

/// A device's label as it was last seen.
pub struct Survey {
    state: Mutex<State>,
    changed: Condvar,
    pool: Pool,
}

impl std::fmt::Debug for Survey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Survey")
    }
}

impl Survey {
    /// Of a device whose label has just been read.
    #[must_use]
    pub fn new(label: &Label) -> Survey {
        let (last, read_at) = (Ok(Arc::new(label.clone())), Instant::now());
        let state = State { begun: 0, ended: 0, wanted: 0, running: false, last, read_at };
        Survey {
            state: Mutex::new(state),
            changed: Condvar::new(),
            pool: Pool::new("vs-survey", 1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Changed by single assignments only: a panic can't leave it torn.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the label read by a thread of its own, one at a time; gives the number to wait for.
    /// That read begins after this call, so it knows all that was done before.
    pub fn begin(device: &Arc<Device>) -> u64 {
        let survey = &device.survey;
        let mut state = survey.lock();
        let number = state.begun + 1;
        state.wanted = number;
        if !state.running {
            let job = Arc::clone(device);
            // Without a thread for it the caller tells of what was seen last.
            state.running = survey.pool.submit(move || Survey::run(&job)).is_ok();
        }
        number
    }

    fn run(device: &Arc<Device>) {
        let survey = &device.survey;
        let mut state = survey.lock();
        while state.begun < state.wanted {
            state.begun += 1;
            let number = state.begun;
            drop(state);
            let found = device.label();
            state = survey.lock();
            (state.ended, state.last, state.read_at) = (number, found, Instant::now());
            survey.changed.notify_all();
        }
        state.running = false;
    }

    /// The label, as read by that number's read or a later one if that ends by `deadline`;
    /// else as it was last seen, if that is not long ago.
    ///
    /// # Errors
    /// What the read said; `Timeout` for a device that has not answered for a while.
    pub fn end(
        &self,
        name: &str,
        number: u64,
        deadline: Instant,
    ) -> Result<Arc<Label>, DeviceError> {
        let mut state = self.lock();
        while state.ended < number {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let age = state.read_at.elapsed();
                if age < FRESH {
                    break;
                }
                let text = format!(
                    "{name}: has not answered for {} s; requests on it wait. See to the device",
                    age.as_secs()
                );
                return Err(DeviceError::new(ErrorKind::Timeout, text));
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.last.clone()
    }
}
