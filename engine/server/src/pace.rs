//! How fast a copy may go: a limit that was asked for, and less while hosts' latency suffers.
//! Pure: it is told the time and what hosts met.

use std::time::{Duration, Instant};

/// Hosts are looked at once in this.
pub const WINDOW: Duration = Duration::from_millis(100);
/// After so many windows of work the copy rests for one, to see how hosts fare without it.
const WORK: u32 = 9;
/// What a copy may always do, in bytes per second, so that it ends.
const FLOOR: f64 = 1_048_576.0;
/// Hosts suffer when a request takes so many times as long as beside a resting copy, ...
const WORSE: f64 = 1.5;
/// ... and so many seconds more.
const NOTICED: f64 = 0.000_2;
/// What is spent at once at most, in seconds of the rate.
const BURST: f64 = 0.1;

/// Requests that hosts have had answered, and their seconds together, since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hosts {
    pub requests: u64,
    pub seconds: f64,
}

/// One copy's.
#[derive(Debug)]
pub struct Pace {
    /// Bytes per second; 0: no limit.
    limit: u64,
    adaptive: bool,
    /// Bytes per second that hosts leave; infinite as long as they don't suffer.
    share: f64,
    allowance: f64,
    filled: Instant,
    /// Seconds of a request beside a resting copy.
    rested: Option<f64>,
    hosts: Hosts,
    looked: Instant,
    windows: u32,
    /// Bytes since `looked`.
    spent: u64,
}

impl Pace {
    pub fn new(now: Instant, limit: u64, adaptive: bool, hosts: Hosts) -> Pace {
        Pace {
            limit,
            adaptive,
            share: f64::INFINITY,
            allowance: 0.0,
            filled: now,
            rested: None,
            hosts,
            looked: now,
            windows: 0,
            spent: 0,
        }
    }

    pub fn set(&mut self, limit: u64, adaptive: bool) {
        self.limit = limit;
        if self.adaptive != adaptive {
            self.adaptive = adaptive;
            self.share = f64::INFINITY;
        }
    }

    fn rate(&self) -> f64 {
        let limit = if self.limit == 0 { f64::INFINITY } else { self.limit as f64 };
        if self.adaptive { limit.min(self.share) } else { limit }
    }

    fn resting(&self) -> bool {
        self.adaptive && self.windows == WORK
    }

    /// None if a region may be begun now; otherwise when to ask again.
    pub fn wait(&mut self, now: Instant) -> Option<Instant> {
        if self.resting() {
            return Some(self.looked + WINDOW);
        }
        let rate = self.rate();
        if rate.is_infinite() {
            (self.allowance, self.filled) = (0.0, now);
            return None;
        }
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.allowance = (self.allowance + passed * rate).min(rate * BURST);
        self.filled = now;
        if self.allowance >= 0.0 {
            return None;
        }
        // A long wait is cut short, since the rate may change.
        let seconds = (-self.allowance / rate).min(WINDOW.as_secs_f64());
        Some(now + Duration::from_secs_f64(seconds.max(0.001)))
    }

    /// A region has been begun.
    pub fn spend(&mut self, bytes: u64) {
        self.allowance -= bytes as f64;
        self.spent += bytes;
    }

    /// True when it is time to see how hosts fare.
    pub fn is_due(&self, now: Instant) -> bool {
        self.adaptive && now.saturating_duration_since(self.looked) >= WINDOW
    }

    /// What hosts have met by now.
    pub fn observe(&mut self, now: Instant, hosts: Hosts) {
        let passed = now.saturating_duration_since(self.looked).as_secs_f64();
        let requests = hosts.requests.saturating_sub(self.hosts.requests);
        let mean = (hosts.seconds - self.hosts.seconds).max(0.0) / requests.max(1) as f64;
        let did = self.spent as f64 / passed.max(0.001);
        if requests == 0 {
            // Nobody is there to suffer, nor to rest for.
            self.share = self.share.max(FLOOR) * 1.5;
            self.windows = 0;
        } else if self.resting() {
            self.rested = Some(self.rested.map_or(mean, |old| 0.5 * old + 0.5 * mean));
            self.windows = 0;
        } else {
            let suffer = self.rested.is_some_and(|rest| mean > WORSE * rest + NOTICED);
            if suffer {
                self.share = (self.share.min(did.max(FLOOR)) / 2.0).max(FLOOR);
            } else {
                self.share = (self.share * 1.1).max(FLOOR);
            }
            // The first rest comes at once: without it there is nothing to compare with.
            self.windows = if self.rested.is_none() { WORK } else { self.windows + 1 };
        }
        self.hosts = hosts;
        self.looked = now;
        self.spent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: u64 = 1 << 20;

    /// Copies for so long in steps of a millisecond; `latency` says what hosts meet at a rate of
    /// bytes per second. Gives the bytes of the second half.
    fn run(pace: &mut Pace, seconds: u32, latency: impl Fn(f64) -> f64) -> u64 {
        let begun = Instant::now();
        let (mut hosts, mut bytes, mut recent) = (Hosts::default(), 0, 0.0);
        for step in 0..seconds * 1000 {
            let now = begun + Duration::from_millis(u64::from(step));
            recent *= 0.98;
            for _ in 0..4 {
                if pace.wait(now).is_none() {
                    pace.spend(REGION);
                    recent += REGION as f64 * 0.02;
                    bytes += if step > seconds * 500 { REGION } else { 0 };
                }
            }
            hosts.requests += 1;
            hosts.seconds += latency(recent * 1000.0);
            if pace.is_due(now) {
                pace.observe(now, hosts);
            }
        }
        bytes
    }

    #[test]
    fn a_limit_is_kept_small_or_large() {
        for limit in [REGION, 50 * REGION, 1000 * REGION] {
            let mut pace = Pace::new(Instant::now(), limit, false, Hosts::default());
            let bytes = run(&mut pace, 20, |_| 0.0);
            assert!((limit * 9..=limit * 11 + REGION).contains(&bytes), "{bytes} at {limit}");
        }
    }

    #[test]
    fn hosts_that_suffer_slow_it_down_and_it_still_ends() {
        // Latency rises with the copy's rate: 1 ms alone, twice that at 100 MiB/s.
        let load = |rate: f64| 0.001 * (1.0 + rate / (100.0 * REGION as f64));
        let mut pace = Pace::new(Instant::now(), 0, true, Hosts::default());
        let gentle = run(&mut pace, 40, load);
        assert!(gentle < 20 * 200 * REGION, "{gentle}");
        assert!(gentle >= 20 * REGION, "{gentle}");
        let mut pace = Pace::new(Instant::now(), 0, false, Hosts::default());
        assert!(run(&mut pace, 40, load) > 10 * gentle);
        // However bad it is, the floor is kept.
        let mut pace = Pace::new(Instant::now(), 0, true, Hosts::default());
        let awful = run(&mut pace, 40, |rate| if rate > 0.0 { 1.0 } else { 0.001 });
        assert!(awful >= 12 * REGION, "{awful}");
    }

    #[test]
    fn hosts_that_do_not_suffer_let_it_run() {
        let mut pace = Pace::new(Instant::now(), 0, true, Hosts::default());
        let bytes = run(&mut pace, 10, |_| 0.001);
        assert!(bytes > 4 * 5000 * REGION * 8 / 10, "{bytes}");
    }

    #[test]
    fn a_new_limit_counts_at_once() {
        let mut pace = Pace::new(Instant::now(), REGION, false, Hosts::default());
        pace.spend(100 * REGION);
        assert!(pace.wait(Instant::now()).is_some());
        pace.set(0, false);
        assert!(pace.wait(Instant::now()).is_none());
    }
}
