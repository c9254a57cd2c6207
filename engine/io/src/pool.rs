//! A few threads for what would block an event loop.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

/// Most jobs that wait. Requests in flight are bounded well below it; past it the caller
/// runs the job itself, which slows it down as it should.
const MAX_WAITING: usize = 16_384;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// A bounded pool; dropping it finishes what waits and joins the threads.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads.len())
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Queue> {
    // Jobs run outside the lock, so a panic in one can't leave the queue half changed.
    shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Starts `threads` threads.
    ///
    /// # Panics
    /// If the system can't start a thread.
    #[must_use]
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared::default());
        let threads = (0..threads.max(1)).map(|index| {
            let shared = Arc::clone(&shared);
            let name = format!("vs-pool-{index}");
            let thread = std::thread::Builder::new().name(name).spawn(move || run(&shared));
            thread.expect("the system can start a thread")
        });
        Pool { threads: threads.collect(), shared: Arc::clone(&shared) }
    }

    /// Has the job run by some thread; by this one when too many wait already.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = lock(&self.shared);
        if queue.closed || queue.jobs.len() >= MAX_WAITING {
            drop(queue);
            return job();
        }
        queue.jobs.push_back(Box::new(job));
        drop(queue);
        self.shared.wake.notify_one();
    }
}

fn run(shared: &Shared) {
    let mut queue = lock(shared);
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            job();
            queue = lock(shared);
        } else if queue.closed {
            return;
        } else {
            queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared).closed = true;
        self.shared.wake.notify_all();
        let me = std::thread::current().id();
        for thread in self.threads.drain(..) {
            // The last handle may be dropped by a job: a thread can't wait for itself.
            if thread.thread().id() != me {
                let _ = thread.join();
            }
        }
    }
}
