//! Engines in this process, over loopback and temporary files.
#![allow(dead_code)] // Each test file uses its own part of this.

pub mod gate;
pub mod iscsi;
pub mod iscsi_link;
pub mod nbd;
pub mod proxy;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use vs_server::Engine;

pub use vs_server::How;

pub use nbd::Nbd;

pub const MIB: u64 = 1 << 20;
/// The label area, in front of all data.
pub const DATA: u64 = 4 * MIB;
/// Longest wait for anything in these tests.
pub const SOON: Duration = Duration::from_secs(20);

/// Hosts' data goes past the page cache.
pub const DIRECT: How = How { direct: true, checksums: false };

static STARTS: AtomicU64 = AtomicU64::new(0);

/// Waits until `ready`, and fails when that takes too long.
pub fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !ready() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Bytes that tell their place, and the `salt` they were written with.
pub fn pattern(salt: u64, offset: u64, length: usize) -> Vec<u8> {
    let word = |at: u64| (at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(salt) | 1;
    (offset..offset + length as u64).map(|at| word(at).to_le_bytes()[(at % 8) as usize]).collect()
}

/// One storage processor.
pub struct Sp {
    pub name: String,
    pub engine: Engine,
    pub peer: String,
    pub nbd: String,
    dir: PathBuf,
}

/// A directory of devices, and the settings of the SPs on it.
pub struct Rig {
    pub dir: TempDir,
    pub hold: f64,
    /// Bytes that may be in flight on one connection.
    pub room: u64,
    pub loops: usize,
    /// More of the configuration.
    pub more: Value,
}

impl Rig {
    pub fn new() -> Rig {
        Rig {
            dir: tempfile::tempdir().expect("a directory"),
            hold: 30.0,
            room: 128 * MIB,
            loops: 2,
            more: json!({}),
        }
    }

    /// Starts an SP that serves peers and hosts at ports of the system's choice.
    pub fn sp(&self, name: &str) -> Sp {
        self.sp_at(name, "127.0.0.1:0")
    }

    /// Starts an SP whose peers find it at `peer`.
    pub fn sp_at(&self, name: &str, peer: &str) -> Sp {
        let start = STARTS.fetch_add(1, Ordering::Relaxed);
        let mut config = json!({
            "cluster_id": "c-1", "sp": name, "incarnation": format!("i-{start}"),
            "loops": self.loops, "hold_seconds": self.hold,
            "max_inflight_bytes_per_connection": self.room,
        });
        if let (Some(all), Some(more)) = (config.as_object_mut(), self.more.as_object()) {
            all.extend(more.clone());
        }
        let engine = Engine::start(&config.to_string()).expect("an engine");
        let peer = engine.listen_peer(peer).expect("a peer address");
        let nbd = engine.listen_nbd("127.0.0.1:0").expect("an NBD address");
        Sp { name: name.into(), engine, peer, nbd, dir: self.dir.path().into() }
    }

    pub fn file(&self, device: &str) -> PathBuf {
        self.dir.path().join(device)
    }
}

impl Sp {
    /// Opens the file `device`, made with room for `size` bytes of data if it is new.
    pub fn device(&self, device: &str, size: u64) {
        let path = self.dir.join(device);
        let create = if path.exists() { 0 } else { DATA + size };
        let uri = format!("file:{}", path.display());
        self.engine.device_add(&uri, create, device, How::default()).expect("a device");
    }

    /// A device of its own for one T1 object, which is put at its beginning.
    pub fn leaf(&self, t1: &str, size: u64) {
        self.device(&format!("d-{t1}"), size);
        self.put(t1, size, &[(&format!("d-{t1}"), DATA, size)], 1);
    }

    pub fn put(&self, t1: &str, size: u64, extents: &[(&str, u64, u64)], epoch: u64) {
        let spec = self.t1(t1, size, extents);
        self.engine.t1_put(&spec, epoch).expect("a T1 object");
    }

    pub fn t1(&self, t1: &str, size: u64, extents: &[(&str, u64, u64)]) -> String {
        let extents: Vec<Value> = extents
            .iter()
            .map(|(device, offset, length)| {
                json!({"device": device, "offset": offset, "length": length})
            })
            .collect();
        json!({"id": t1, "volume": "v-1", "size": size, "extents": extents, "home": self.name})
            .to_string()
    }

    pub fn activate(&self, tree: &Tree) -> u64 {
        self.try_activate(tree, false).expect("activation")
    }

    pub fn try_activate(&self, tree: &Tree, resync: bool) -> Result<u64, vs_server::Failure> {
        self.engine.t2_activate(&tree.json(&self.name), resync, 10.0)
    }

    pub fn fence(&self, t1: &str, epoch: u64) {
        self.engine.t1_fence(t1, epoch, None, 10.0).expect("a fence");
    }

    pub fn host(&self) -> Nbd {
        Nbd::connect(&self.nbd, "vol")
    }

    pub fn metrics(&self) -> Value {
        parse(&self.engine.metrics().expect("metrics"))
    }

    pub fn copies(&self) -> Vec<Value> {
        parse(&self.engine.copies().expect("copies")).as_array().cloned().unwrap_or_default()
    }

    /// The state of the one copy that there is.
    pub fn copy_state(&self) -> String {
        self.copies().first().map_or("none", |copy| copy["state"].as_str().unwrap_or("?")).into()
    }

    pub fn resync_percent(&self) -> u64 {
        parse(&self.engine.t2s("").expect("t2s"))[0]["resync_percent"]
            .as_u64()
            .expect("a percentage")
    }

    /// Bytes that copies and resyncs of the one volume have written.
    pub fn moved(&self) -> u64 {
        self.metrics()["volumes"][0]["copied_bytes"].as_u64().expect("a number")
    }

    /// Bytes of regions that some device's write-intent map here has.
    pub fn dirty(&self) -> u64 {
        let labels = parse(&self.engine.labels().expect("labels"));
        let labels = labels.as_array().expect("a list").clone();
        let bits = labels.iter().map(|label| {
            let name = label["uri"].as_str().expect("a uri").trim_start_matches("file:");
            let all = std::fs::read(name).expect("the device");
            let map = &all[(3 << 19)..(3 << 19) + (64 << 10)];
            map.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>()
        });
        bits.sum::<u64>() * MIB
    }

    pub fn stop(&self) {
        assert!(self.engine.shutdown(10.0), "{}: the end was not clean", self.name);
    }
}

impl Drop for Sp {
    fn drop(&mut self) {
        // After `stop` this finds nothing to do; after a failed test it ends the threads.
        self.engine.shutdown(0.0);
    }
}

pub fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// A volume's logical tree; `json` is what one SP holds of it.
#[derive(Clone)]
pub struct Tree {
    pub volume: String,
    pub name: String,
    pub version: u64,
    pub size: u64,
    pub owner: String,
    pub root: Value,
    pub homes: Vec<(String, String)>,
    pub peers: Vec<(String, String)>,
}

impl Tree {
    /// `homes` says which SP each T1 object is at; the first SP named is the owner.
    pub fn new(version: u64, size: u64, root: Value, homes: &[(&str, &Sp)]) -> Tree {
        let peers: Vec<(String, String)> =
            homes.iter().map(|(_, sp)| (sp.name.clone(), sp.peer.clone())).collect();
        Tree {
            volume: "v-1".into(),
            name: "vol".into(),
            version,
            size,
            owner: homes[0].1.name.clone(),
            root,
            homes: homes.iter().map(|(t1, sp)| ((*t1).into(), sp.name.clone())).collect(),
            peers,
        }
    }

    /// Another SP that takes part, as the owner.
    pub fn owned_by(mut self, sp: &Sp) -> Tree {
        self.owner.clone_from(&sp.name);
        self.peers.push((sp.name.clone(), sp.peer.clone()));
        self
    }

    fn json(&self, sp: &str) -> String {
        let homes: serde_json::Map<String, Value> =
            self.homes.iter().map(|(t1, sp)| (t1.clone(), json!(sp))).collect();
        let others = self.peers.iter().filter(|(name, _)| name != sp);
        let peers: serde_json::Map<String, Value> =
            others.map(|(name, address)| (name.clone(), json!(address))).collect();
        // The epoch is the version: each restructure raises both.
        json!({
            "volume": self.volume, "name": self.name, "size": self.size, "version": self.version,
            "epoch": self.version, "sp": sp, "owner": self.owner, "root": self.root,
            "homes": homes, "peers": peers,
        })
        .to_string()
    }
}

pub fn leaf(t1: &str, size: u64) -> Value {
    json!({"kind": "leaf", "t1": t1, "size": size})
}

/// Legs marked with `false` are write-only.
pub fn mirror(legs: &[(bool, Value)]) -> Value {
    let state = |sync: bool| if sync { "in_sync" } else { "write_only" };
    legs_of(&legs.iter().map(|(sync, node)| (state(*sync), node.clone())).collect::<Vec<_>>())
}

/// A mirror of legs in these states.
pub fn legs_of(legs: &[(&str, Value)]) -> Value {
    let legs: Vec<Value> =
        legs.iter().map(|(state, node)| json!({"state": state, "node": node})).collect();
    json!({"kind": "mirror", "legs": legs})
}

pub fn stripe(chunk: u64, columns: &[Value]) -> Value {
    json!({"kind": "stripe", "chunk": chunk, "columns": columns})
}

pub fn concat(parts: &[Value]) -> Value {
    json!({"kind": "concat", "parts": parts})
}

/// What a T1 object made by `Sp::leaf` holds on its device.
pub fn on_device(rig: &Rig, t1: &str, size: u64) -> Vec<u8> {
    let all = std::fs::read(rig.file(&format!("d-{t1}"))).expect("the device's file");
    all[DATA as usize..(DATA + size) as usize].to_vec()
}
