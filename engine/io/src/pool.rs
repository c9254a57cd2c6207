//! The threads of one device, for what would block an event loop.
//!
//! Each device has its own, so that one that does not answer holds up its own requests only.
//! They are started when they are needed, and end when there has been nothing to do for a while:
//! a device that is never waited for costs no thread.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

type Job = Box<dyn FnOnce() + Send>;

/// Most jobs that wait. What they carry is bounded where requests are admitted (bytes in flight
/// of a connection, connections in number); this bounds how many wait for one device.
const MOST_WAITING: usize = 16_384;
/// A thread without work ends after this.
const IDLE: Duration = Duration::from_secs(10);

/// The job was not taken: too many wait, or the system has no thread for it. Try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that run, and those of them that wait for a job.
    threads: usize,
    idle: usize,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// A thread has found nothing more to do.
    rest: Condvar,
    idle: Duration,
}

/// A bounded pool. What it has taken is done even after it was dropped; nobody waits for that,
/// since it may take as long as the device likes.
pub struct Pool {
    shared: Arc<Shared>,
    name: &'static str,
    most_threads: usize,
    most_waiting: usize,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({}, {} of {} threads)", self.name, self.threads(), self.most_threads)
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Queue> {
    // Jobs run outside the lock, so a panic in one can't leave the queue half changed.
    shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of at most `threads` threads (at least one), called `name` in lists of threads.
    #[must_use]
    pub fn new(name: &'static str, threads: usize) -> Pool {
        Pool::with_limits(name, threads, MOST_WAITING, IDLE)
    }

    /// The same with other limits: jobs that wait, and how long a thread does.
    #[must_use]
    pub fn with_limits(name: &'static str, threads: usize, waiting: usize, idle: Duration) -> Pool {
        let (wake, rest) = (Condvar::new(), Condvar::new());
        let shared = Shared { queue: Mutex::default(), wake, rest, idle };
        let shared = Arc::new(shared);
        Pool { shared, name, most_threads: threads.max(1), most_waiting: waiting }
    }

    /// Has the job run by some thread of the pool, never by the caller's.
    ///
    /// # Errors
    /// `Full` when too many wait already, or no thread can be started; the job is dropped.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Full> {
        let mut queue = lock(&self.shared);
        if queue.jobs.len() >= self.most_waiting {
            return Err(Full);
        }
        queue.jobs.push_back(Box::new(job));
        self.staff(&mut queue);
        if queue.threads == 0 {
            let job = queue.jobs.pop_back();
            drop(queue);
            drop(job);
            return Err(Full);
        }
        drop(queue);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// As `submit`, for a job that its caller has at most one of at a time: the bound does not
    /// hold for it, and without a thread it waits for the next `submit` that finds one.
    pub fn post(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = lock(&self.shared);
        queue.jobs.push_back(Box::new(job));
        self.staff(&mut queue);
        drop(queue);
        self.shared.wake.notify_one();
    }

    /// How many threads there are now.
    #[must_use]
    pub fn threads(&self) -> usize {
        lock(&self.shared).threads
    }

    /// Waits until all that was taken is done; false if that takes until `deadline`.
    #[must_use]
    pub fn rest(&self, deadline: Instant) -> bool {
        let mut queue = lock(&self.shared);
        while !queue.jobs.is_empty() || queue.idle < queue.threads {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.rest.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Starts a thread if more jobs wait than threads for them.
    fn staff(&self, queue: &mut Queue) {
        if queue.jobs.len() <= queue.idle || queue.threads >= self.most_threads {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(self.name.to_owned());
        match thread.spawn(move || run(&shared)) {
            Ok(_) => queue.threads += 1,
            Err(error) => {
                // Those that are there will come to it.
                eprintln!("vswitchd engine: can't start a thread for a device: {error}");
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared).closed = true;
        self.shared.wake.notify_all();
    }
}

/// Counts the thread out, also when a job has panicked.
struct Here<'a>(&'a Shared);

impl Drop for Here<'_> {
    fn drop(&mut self) {
        lock(self.0).threads -= 1;
    }
}

fn run(shared: &Shared) {
    let here = Here(shared);
    let mut queue = lock(shared);
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            job();
            queue = lock(shared);
            continue;
        }
        if queue.closed {
            break;
        }
        queue.idle += 1;
        shared.rest.notify_all();
        let (back, waited) =
            shared.wake.wait_timeout(queue, shared.idle).unwrap_or_else(PoisonError::into_inner);
        queue = back;
        queue.idle -= 1;
        if waited.timed_out() && queue.jobs.is_empty() {
            break;
        }
    }
    // Under the lock that found nothing to do: a job that comes now sees that the thread is gone.
    std::mem::forget(here);
    queue.threads -= 1;
    shared.rest.notify_all();
}
