//! What crosses to Python as JSON (docs/engine.md).

use std::collections::BTreeMap;

use serde::Serialize;
use vs_io::label::Standing;
use vs_io::{Device, DeviceError, T1Spec};

use crate::metrics::{DeviceCounters, Histogram, Transport, VolumeCounters};

#[derive(Serialize)]
pub struct FreeRun {
    pub device: &'static str,
    pub offset: u64,
    pub length: u64,
}

#[derive(Serialize)]
pub struct DeviceShape {
    pub id: String,
    pub uri: String,
    pub size: u64,
    pub unit: u64,
    pub direct: bool,
    pub checksums: bool,
    pub up: bool,
    pub free: Vec<FreeRun>,
    pub error: String,
}

#[derive(Serialize)]
pub struct T1Shape<'a> {
    pub t1: &'a T1Spec,
    pub epoch: u64,
}

#[derive(Serialize)]
pub struct T1sShape<'a> {
    pub t1s: Vec<T1Shape<'a>>,
    pub others: usize,
}

/// A T1 object of a label.
#[derive(Serialize)]
pub struct EntryShape {
    pub t1: T1Spec,
    pub epoch: u64,
}

/// A label as it stands on its device, or why it can't be read.
#[derive(Default, Serialize)]
pub struct LabelShape {
    pub device: String,
    pub uri: String,
    pub cluster: String,
    pub generation: u64,
    pub copies: usize,
    pub t1s: Vec<EntryShape>,
    pub error: String,
}

impl LabelShape {
    pub fn new(device: &Device, standing: Result<Standing, DeviceError>) -> LabelShape {
        let (device, uri) = (device.id.clone(), device.uri.clone());
        match standing {
            Ok(Standing { label, sequence, copies }) => {
                let entries = label.t1s.into_iter();
                let t1s = entries.map(|e| EntryShape { t1: e.t1, epoch: e.epoch }).collect();
                let (cluster, error) = (label.cluster, String::new());
                LabelShape { device, uri, cluster, generation: sequence, copies, t1s, error }
            }
            Err(error) => LabelShape { device, uri, error: error.to_string(), ..Self::default() },
        }
    }
}

#[derive(Serialize)]
pub struct T2Shape {
    pub volume: String,
    pub version: u64,
    pub epoch: u64,
    pub resync_percent: u64,
}

#[derive(Serialize)]
pub struct VolumeMetrics {
    pub volume: String,
    pub name: String,
    pub copied_bytes: u64,
    pub healed_bytes: u64,
    pub dirty_bytes: u64,
    pub outofsync_bytes: u64,
    pub size: u64,
    pub version: u64,
    pub epoch: u64,
    pub pause: Histogram,
    #[serde(flatten)]
    pub counters: VolumeCounters,
}

#[derive(Serialize)]
pub struct DeviceMetrics {
    pub id: String,
    /// Blocks read that did not match; None where there are no checksums.
    pub checksum_errors: Option<u64>,
    #[serde(flatten)]
    pub counters: DeviceCounters,
}

#[derive(Serialize)]
pub struct PeerMetrics {
    pub sp: String,
    pub up: bool,
    pub round_trip: Histogram,
}

#[derive(Serialize)]
pub struct MetricsShape {
    pub volumes: Vec<VolumeMetrics>,
    pub devices: Vec<DeviceMetrics>,
    pub peers: Vec<PeerMetrics>,
    pub sessions: std::collections::BTreeMap<Transport, u64>,
    pub protocol_errors: u64,
    pub logins_failed: BTreeMap<&'static str, u64>,
    pub fencing_rejections: u64,
    /// Of devices, mapped and locked in memory.
    pub resident_bytes: u64,
}

/// T1 objects that are in trouble.
#[derive(Serialize)]
pub struct TroubleShape<'a> {
    pub failing: Vec<String>,
    pub doubtful: BTreeMap<&'a str, u64>,
}
