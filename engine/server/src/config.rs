//! What the engine is told at its start.

use std::path::PathBuf;

use serde::Deserialize;

/// JSON of `Engine(config)`; all sizes in bytes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub cluster_id: String,
    pub sp: String,
    /// Changes at every start of the process; peers tell sessions apart by it.
    pub incarnation: String,
    /// Event loops; 0: one for each core, at most 8.
    #[serde(default)]
    pub loops: usize,
    /// Threads for what would block a loop.
    #[serde(default = "pool_threads")]
    pub pool_threads: usize,
    /// How long I/O is held for a peer or a new tree before it fails.
    #[serde(default = "hold_seconds")]
    pub hold_seconds: f64,
    /// A session over this is not read from until replies have left.
    #[serde(default = "inflight")]
    pub max_inflight_bytes_per_connection: u64,
    #[serde(default = "connections")]
    pub max_connections: usize,
    /// Where file and block devices may lie; empty: anywhere.
    #[serde(default)]
    pub device_roots: Vec<PathBuf>,
}

fn pool_threads() -> usize {
    4
}

fn hold_seconds() -> f64 {
    120.0
}

fn inflight() -> u64 {
    128 << 20
}

fn connections() -> usize {
    4096
}

impl Config {
    /// How many loops to start.
    #[must_use]
    pub fn loop_count(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if self.loops == 0 { cores.min(8) } else { self.loops.min(64) }
    }
}
