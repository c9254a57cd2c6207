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
    /// Most threads of each device, for what would block a loop.
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
    /// Percent of the memory that this process may have, for file devices to be kept mapped and
    /// locked in; 0: none.
    #[serde(default = "resident_percent")]
    pub resident_percent: u64,
    /// How long a loop that is busy looks for more to do before it sleeps; 0: not at all.
    #[serde(default = "spin_microseconds")]
    pub spin_microseconds: u64,
    /// Bytes of a region of the write-intent map, on devices that are labelled from now on.
    #[serde(default = "map_region")]
    pub map_region: u64,
    /// How long a region stays dirty after its last write, about.
    #[serde(default = "map_clear_seconds")]
    pub map_clear_seconds: f64,
    /// For so long an owner may read its own leg on the word of the other legs' homes; whoever
    /// takes over from one that it can't reach waits this out.
    #[serde(default = "lease_seconds")]
    pub lease_seconds: f64,
    /// A leg that keeps a request waiting for so long is named to the controller, to be voted out.
    #[serde(default = "leg_deadline_seconds")]
    pub leg_deadline_seconds: f64,
    /// A host's request that is passed on to another SP is begun there within so long or not at
    /// all: hosts wait longer before they ask again over another path.
    #[serde(default = "forward_seconds")]
    pub forward_seconds: f64,
    /// The machine was started anew since this SP's last clean end.
    #[serde(default)]
    pub rebooted: bool,
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

fn map_region() -> u64 {
    1 << 20
}

fn map_clear_seconds() -> f64 {
    5.0
}

fn lease_seconds() -> f64 {
    1.0
}

fn leg_deadline_seconds() -> f64 {
    5.0
}

fn forward_seconds() -> f64 {
    2.0
}

fn resident_percent() -> u64 {
    12
}

fn spin_microseconds() -> u64 {
    50
}

/// Bytes of memory that this process may have: of the machine, or less by its cgroups (v2).
fn memory() -> u64 {
    // SAFETY: sysconf takes no pointers.
    let (pages, page) =
        unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    let mut bytes = u64::try_from(pages).unwrap_or(0) * u64::try_from(page).unwrap_or(0);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let root = std::path::Path::new("/sys/fs/cgroup");
    for group in std::path::Path::new(own).ancestors() {
        let limit = std::fs::read_to_string(root.join(group).join("memory.max"));
        if let Some(limit) = limit.ok().and_then(|text| text.trim().parse().ok()) {
            bytes = bytes.min(limit);
        }
    }
    bytes
}

impl Config {
    /// The budget for resident pages in bytes.
    #[must_use]
    pub fn residency(&self) -> u64 {
        memory() / 100 * self.resident_percent.min(100)
    }

    /// How many loops to start.
    #[must_use]
    pub fn loop_count(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if self.loops == 0 { cores.min(8) } else { self.loops.min(64) }
    }
}
