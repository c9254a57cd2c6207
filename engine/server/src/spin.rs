//! How a loop waits: a busy one looks again for a moment before it sleeps. To be woken costs both
//! sides several microseconds, on a virtual machine tens, while the next request of a busy host
//! is less away than that.

use std::time::{Duration, Instant};

use crate::socket::Epoll;

/// A look takes less than a microsecond. If one took this, something else wanted the core.
const STOLEN: Duration = Duration::from_micros(20);
/// For how long the core is then left to others; longer each time that it happens again.
const CROWDED: Duration = Duration::from_millis(1);
const MOST_CROWDED: Duration = Duration::from_millis(64);
/// Sleeps of up to this many limits are worth looking instead: most of a short one is the waking.
const SHORT: u32 = 4;
/// Short sleeps after which it is tried again, at most.
const MOST_PATIENCE: u32 = 64;

/// When to look again and when to sleep.
pub struct Spin {
    limit: Duration,
    /// Short sleeps still to come before the next try, and how many after a try in vain.
    sleeps: u32,
    patience: u32,
    crowded: Option<Instant>,
    crowding: Duration,
}

impl Spin {
    /// Looks for up to `limit`; zero: always sleeps.
    pub fn new(limit: Duration) -> Spin {
        Spin { limit, sleeps: 1, patience: 1, crowded: None, crowding: CROWDED }
    }

    /// Waits for events, for `millis` at most (-1: for ever).
    pub fn wait(&mut self, epoll: &Epoll, events: &mut [libc::epoll_event], millis: i32) -> usize {
        if self.limit.is_zero() || millis == 0 {
            return epoll.wait(events, millis);
        }
        let begun = Instant::now();
        if self.sleeps == 0 && self.crowded.is_none_or(|until| begun > until) {
            let mut before = begun;
            loop {
                let count = epoll.wait(events, 0);
                if count > 0 {
                    self.patience = 1;
                    if self.crowded.is_some_and(|until| begun > until + self.crowding) {
                        self.crowded = None;
                        self.crowding = CROWDED;
                    }
                    return count;
                }
                let now = Instant::now();
                if now - before > STOLEN {
                    self.crowded = Some(now + self.crowding);
                    self.crowding = (self.crowding * 2).min(MOST_CROWDED);
                    break;
                }
                if now - begun > self.limit {
                    self.patience = (self.patience * 2).min(MOST_PATIENCE);
                    self.sleeps = self.patience;
                    break;
                }
                before = now;
                std::hint::spin_loop();
            }
        }
        let begun = Instant::now();
        let count = epoll.wait(events, millis);
        if begun.elapsed() < self.limit * SHORT {
            self.sleeps = self.sleeps.saturating_sub(1);
        }
        count
    }
}
