//! Engines in this process, and a small blocking NBD client.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vs_server::Engine;

pub const MIB: u64 = 1 << 20;
/// Bytes of every T1 object here.
pub const SIZE: u64 = 8 * MIB;
const PATIENCE: Duration = Duration::from_secs(20);

static LIVES: AtomicU64 = AtomicU64::new(0);

/// One SP's engine with a file device that holds one T1 object, `t-<sp>`.
pub struct Sp {
    pub name: &'static str,
    pub engine: Engine,
    pub nbd: String,
    pub peer: String,
}

impl Sp {
    pub fn start(dir: &Path, name: &'static str, peer: &str, hold: f64) -> Sp {
        let config = json!({
            "cluster_id": "c1",
            "sp": name,
            "incarnation": LIVES.fetch_add(1, Ordering::SeqCst).to_string(),
            "loops": 2,
            "hold_seconds": hold,
        });
        let engine = Engine::start(&config.to_string()).unwrap();
        let peer = engine.listen_peer(peer).unwrap();
        let nbd = engine.listen_nbd("127.0.0.1:0").unwrap();
        let disk = dir.join(name);
        let uri = format!("file:{}", disk.display());
        let size = if disk.exists() { 0 } else { 32 * MIB };
        engine.device_add(&uri, size, &format!("d-{name}"), false).unwrap();
        engine.t1_put(&t1(name).to_string(), 1).unwrap();
        Sp { name, engine, nbd, peer }
    }

    pub fn activate(&self, spec: &Value) -> u64 {
        self.engine.t2_activate(&spec.to_string(), false, 10.0).unwrap()
    }

    pub fn fence(&self, epoch: u64) {
        self.engine.t1_fence(&format!("t-{}", self.name), epoch, 10.0).unwrap();
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.nbd)
    }

    /// The bytes of the SP's T1 object, straight from its device.
    pub fn blocks(&self, dir: &Path) -> Vec<u8> {
        let disk = std::fs::read(dir.join(self.name)).unwrap();
        disk[4 * MIB as usize..][..SIZE as usize].to_vec()
    }
}

pub fn t1(sp: &str) -> Value {
    let device = format!("d-{sp}");
    let extent = json!({"device": device, "offset": 4 * MIB, "length": SIZE});
    json!({"id": format!("t-{sp}"), "volume": "v1", "size": SIZE, "extents": [extent], "home": sp})
}

pub fn leaf(sp: &str) -> Value {
    json!({"kind": "leaf", "t1": format!("t-{sp}"), "size": SIZE})
}

/// A mirror of leaves: (sp, state).
pub fn mirror(legs: &[(&str, &str)]) -> Value {
    let legs: Vec<Value> =
        legs.iter().map(|(sp, state)| json!({"state": state, "node": leaf(sp)})).collect();
    json!({"kind": "mirror", "legs": legs})
}

/// The T2 object of the volume at `at`, owned by `owner`, as version and epoch `version`.
pub fn t2(at: &Sp, all: &[&Sp], owner: &str, version: u64, size: u64, root: Value) -> Value {
    let homes: Value = all.iter().map(|sp| (format!("t-{}", sp.name), json!(sp.name))).collect();
    let peers: Value = all.iter().map(|sp| (sp.name.to_owned(), json!(sp.peer))).collect();
    json!({
        "volume": "v1", "name": "vol", "size": size, "version": version, "epoch": version,
        "sp": at.name, "owner": owner, "root": root, "homes": homes, "peers": peers,
    })
}

/// Waits for a condition with a deadline.
pub fn until(what: &str, mut probe: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !probe() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// One connection, one request at a time.
pub struct Client {
    stream: TcpStream,
    pub size: u64,
}

impl Client {
    pub fn connect(address: &str) -> Client {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        let mut out = 3u32.to_be_bytes().to_vec();
        out.extend(b"IHAVEOPT");
        out.extend(1u32.to_be_bytes());
        out.extend(3u32.to_be_bytes());
        out.extend(b"vol");
        stream.write_all(&out).unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        let size = u64::from_be_bytes(export[..8].try_into().unwrap());
        Client { stream, size }
    }

    pub fn send(&mut self, command: u16, offset: u64, length: u32, data: &[u8]) {
        let mut out = 0x2560_9513u32.to_be_bytes().to_vec();
        out.extend(0u16.to_be_bytes());
        out.extend(command.to_be_bytes());
        out.extend(7u64.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(length.to_be_bytes());
        out.extend(data);
        self.stream.write_all(&out).unwrap();
    }

    /// The error number of the next reply.
    pub fn answer(&mut self) -> u32 {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
        u32::from_be_bytes(reply[4..8].try_into().unwrap())
    }

    /// True if no answer has come so far.
    pub fn is_waiting(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let waits = self.stream.peek(&mut [0]).is_err();
        self.stream.set_nonblocking(false).unwrap();
        waits
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.send(1, offset, data.len() as u32, data);
        self.answer()
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.send(0, offset, length, &[]);
        assert_eq!(self.answer(), 0);
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data).unwrap();
        data
    }

    pub fn flush(&mut self) -> u32 {
        self.send(3, 0, 0, &[]);
        self.answer()
    }
}

/// Whether the engine has so many requests of the volume in flight or parked.
pub fn inflight(sp: &Sp) -> u64 {
    let metrics: Value = serde_json::from_str(&sp.engine.metrics().unwrap()).unwrap();
    metrics["volumes"][0]["inflight"].as_u64().unwrap()
}
