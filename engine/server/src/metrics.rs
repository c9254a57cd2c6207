//! Counters that each loop keeps for itself; a scrape asks the loops and adds up.

use std::collections::BTreeMap;

use serde::Serialize;
use vs_io::Device;

use crate::durable::Mixture;
use crate::pace::Hosts;

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

    /// How many, and their seconds together.
    pub fn total(&self) -> (u64, f64) {
        (self.counts.iter().sum(), self.sum)
    }

    fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
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

impl OpName {
    const ALL: [OpName; 7] = [
        OpName::Read,
        OpName::Write,
        OpName::Flush,
        OpName::Trim,
        OpName::WriteZeroes,
        OpName::BlockStatus,
        OpName::Cache,
    ];
}

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    NbdTcp,
    NbdUnix,
    Iscsi,
    Peer,
}

impl Transport {
    const ALL: [Transport; 4] =
        [Transport::NbdTcp, Transport::NbdUnix, Transport::Iscsi, Transport::Peer];
}

/// A value for each operation, in an array: counting is on the way of every request.
#[derive(Clone, Debug, Default)]
pub struct PerOp<T>([T; OpName::ALL.len()]);

impl<T> std::ops::Index<OpName> for PerOp<T> {
    type Output = T;
    fn index(&self, op: OpName) -> &T {
        &self.0[op as usize]
    }
}

impl<T> std::ops::IndexMut<OpName> for PerOp<T> {
    fn index_mut(&mut self, op: OpName) -> &mut T {
        &mut self.0[op as usize]
    }
}

impl PerOp<u64> {
    fn merge(&mut self, other: &PerOp<u64>) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine += theirs;
        }
    }
}

/// Shows what has happened at all.
impl Serialize for PerOp<u64> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(OpName::ALL.iter().zip(&self.0).filter(|(_, count)| **count > 0))
    }
}

impl Serialize for PerOp<[u64; Transport::ALL.len()]> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let shown =
            OpName::ALL.iter().zip(&self.0).filter(|(_, counts)| counts.iter().any(|c| *c > 0));
        to.collect_map(shown.map(|(op, counts)| {
            let known = Transport::ALL.iter().zip(counts).filter(|(_, count)| **count > 0);
            (op, known.collect::<BTreeMap<_, _>>())
        }))
    }
}

impl Serialize for PerOp<Histogram> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(OpName::ALL.iter().zip(&self.0).filter(|(_, shown)| !shown.is_empty()))
    }
}

/// One volume's counters, of one loop or of all.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VolumeCounters {
    pub operations: PerOp<[u64; Transport::ALL.len()]>,
    pub bytes: PerOp<u64>,
    pub errors: BTreeMap<OpName, BTreeMap<&'static str, u64>>,
    pub duration: PerOp<Histogram>,
    pub inflight: u64,
}

impl VolumeCounters {
    /// Counts `times` operations of `bytes` together, that took `seconds` each.
    pub fn done(&mut self, op: OpName, transport: Transport, times: u64, bytes: u64, seconds: f64) {
        self.operations[op][transport as usize] += times;
        self.bytes[op] += bytes;
        self.duration[op].add(seconds, times);
    }

    /// The reads and writes that hosts had answered.
    pub fn hosts(&self) -> Hosts {
        let (reads, read) = self.duration[OpName::Read].total();
        let (writes, written) = self.duration[OpName::Write].total();
        Hosts { requests: reads + writes, seconds: read + written }
    }

    pub fn failed(&mut self, op: OpName, kind: &'static str) {
        *self.errors.entry(op).or_default().entry(kind).or_default() += 1;
    }

    pub fn merge(&mut self, other: &VolumeCounters) {
        for op in OpName::ALL {
            for (mine, theirs) in self.operations[op].iter_mut().zip(other.operations[op]) {
                *mine += theirs;
            }
            self.duration[op].merge(&other.duration[op]);
        }
        self.bytes.merge(&other.bytes);
        for (op, kinds) in &other.errors {
            let mine = self.errors.entry(*op).or_default();
            for (kind, count) in kinds {
                *mine.entry(kind).or_default() += count;
            }
        }
        self.inflight += other.inflight;
    }
}

/// (requests, bytes) of one batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub reads: (u64, u64),
    pub writes: (u64, u64),
}

impl Tally {
    pub fn read(&mut self, bytes: u64) {
        self.reads = (self.reads.0 + 1, self.reads.1 + bytes);
    }

    pub fn write(&mut self, bytes: u64) {
        self.writes = (self.writes.0 + 1, self.writes.1 + bytes);
    }
}

/// One device's counters.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DeviceCounters {
    pub operations: PerOp<u64>,
    pub bytes: PerOp<u64>,
    pub errors: PerOp<u64>,
    pub flush: Histogram,
    /// Not a counter, but kept in the same place.
    #[serde(skip)]
    pub mixture: Mixture,
}

impl DeviceCounters {
    pub fn done(&mut self, op: OpName, bytes: u64, ok: bool) {
        self.operations[op] += 1;
        self.bytes[op] += bytes;
        self.errors[op] += u64::from(!ok);
        if op == OpName::Write {
            self.mixture.plain += bytes;
        }
    }

    pub fn merge(&mut self, other: &DeviceCounters) {
        self.operations.merge(&other.operations);
        self.bytes.merge(&other.bytes);
        self.errors.merge(&other.errors);
        self.flush.merge(&other.flush);
    }
}

/// The counters of devices, by their slot.
#[derive(Clone, Debug, Default)]
pub struct DeviceTable(Vec<DeviceCounters>);

impl DeviceTable {
    pub fn of(&mut self, device: &Device) -> &mut DeviceCounters {
        if device.slot >= self.0.len() {
            self.0.resize_with(device.slot + 1, DeviceCounters::default);
        }
        &mut self.0[device.slot]
    }

    pub fn merge(&mut self, other: &DeviceTable) {
        if self.0.len() < other.0.len() {
            self.0.resize_with(other.0.len(), DeviceCounters::default);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            mine.merge(theirs);
        }
    }

    pub fn get(&self, device: &Device) -> Option<&DeviceCounters> {
        self.0.get(device.slot)
    }
}

/// What one loop answers a scrape with.
#[derive(Clone, Debug, Default)]
pub struct LoopMetrics {
    pub volumes: BTreeMap<String, VolumeCounters>,
    pub devices: DeviceTable,
    /// Peer SP to (a session is up, round trips).
    pub peers: BTreeMap<String, (bool, Histogram)>,
    pub sessions: BTreeMap<Transport, u64>,
    pub protocol_errors: u64,
    pub logins_failed: BTreeMap<&'static str, u64>,
    pub fencing_rejections: u64,
}
