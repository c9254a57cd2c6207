//! Counters that each loop keeps for itself; a scrape asks the loops and adds up.

use std::collections::BTreeMap;

use serde::Serialize;

/// Upper bounds are 1 us times powers of two, up to about 8 s.
pub const BUCKETS: usize = 24;

/// A histogram of durations.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: [u64; BUCKETS + 1],
    sum: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: [0; BUCKETS + 1], sum: 0.0 }
    }
}

impl Histogram {
    /// Counts `times` durations of `seconds` each.
    pub fn add(&mut self, seconds: f64, times: u64) {
        let micros = (seconds * 1e6).ceil().max(1.0) as u64;
        let bucket = (micros.next_power_of_two().trailing_zeros() as usize).min(BUCKETS);
        self.counts[bucket] += times;
        self.sum += seconds * times as f64;
    }

    pub fn merge(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum += other.sum;
    }
}

impl Serialize for Histogram {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape {
            le: Vec<f64>,
            counts: Vec<u64>,
            sum: f64,
        }
        let le = (0..BUCKETS).map(|index| (1u64 << index) as f64 / 1e6).collect();
        Shape { le, counts: self.counts.to_vec(), sum: self.sum }.serialize(to)
    }
}

/// What an operation is called in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OpName {
    Read,
    Write,
    Flush,
    Trim,
    WriteZeroes,
    BlockStatus,
    Cache,
}

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    NbdTcp,
    NbdUnix,
    Peer,
}

/// One volume's counters, of one loop or of all.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VolumeCounters {
    pub operations: BTreeMap<OpName, BTreeMap<Transport, u64>>,
    pub bytes: BTreeMap<OpName, u64>,
    pub errors: BTreeMap<OpName, BTreeMap<&'static str, u64>>,
    pub duration: BTreeMap<OpName, Histogram>,
    pub inflight: u64,
}

impl VolumeCounters {
    pub fn done(&mut self, op: OpName, transport: Transport, times: u64, bytes: u64, seconds: f64) {
        *self.operations.entry(op).or_default().entry(transport).or_default() += times;
        *self.bytes.entry(op).or_default() += bytes;
        self.duration.entry(op).or_default().add(seconds, times);
    }

    pub fn failed(&mut self, op: OpName, kind: &'static str) {
        *self.errors.entry(op).or_default().entry(kind).or_default() += 1;
    }

    pub fn merge(&mut self, other: &VolumeCounters) {
        for (op, transports) in &other.operations {
            let mine = self.operations.entry(*op).or_default();
            for (transport, count) in transports {
                *mine.entry(*transport).or_default() += count;
            }
        }
        for (op, bytes) in &other.bytes {
            *self.bytes.entry(*op).or_default() += bytes;
        }
        for (op, kinds) in &other.errors {
            let mine = self.errors.entry(*op).or_default();
            for (kind, count) in kinds {
                *mine.entry(kind).or_default() += count;
            }
        }
        for (op, histogram) in &other.duration {
            self.duration.entry(*op).or_default().merge(histogram);
        }
        self.inflight += other.inflight;
    }
}

/// One device's counters.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DeviceCounters {
    pub operations: BTreeMap<OpName, u64>,
    pub bytes: BTreeMap<OpName, u64>,
    pub errors: BTreeMap<OpName, u64>,
    pub flush: Histogram,
}

impl DeviceCounters {
    pub fn done(&mut self, op: OpName, bytes: u64, ok: bool) {
        *self.operations.entry(op).or_default() += 1;
        *self.bytes.entry(op).or_default() += bytes;
        if !ok {
            *self.errors.entry(op).or_default() += 1;
        }
    }

    pub fn merge(&mut self, other: &DeviceCounters) {
        for (mine, theirs) in [
            (&mut self.operations, &other.operations),
            (&mut self.bytes, &other.bytes),
            (&mut self.errors, &other.errors),
        ] {
            for (op, count) in theirs {
                *mine.entry(*op).or_default() += count;
            }
        }
        self.flush.merge(&other.flush);
    }
}

/// What one loop answers a scrape with.
#[derive(Clone, Debug, Default)]
pub struct LoopMetrics {
    pub volumes: BTreeMap<String, VolumeCounters>,
    pub devices: BTreeMap<String, DeviceCounters>,
    /// Peer SP to (a session is up, round trips).
    pub peers: BTreeMap<String, (bool, Histogram)>,
    pub sessions: BTreeMap<Transport, u64>,
    pub protocol_errors: u64,
    pub fencing_rejections: u64,
}
