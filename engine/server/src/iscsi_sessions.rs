//! What all loops know of the sessions of iSCSI.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize};

use vs_wire::scsi::reserve::Nexus;

use crate::control::lock;
use crate::iscsi_targets::PREFIX;
use crate::slab::Token;

/// An initiator's port with a target's (RFC 7143, 4.4.3): there is one session at a time between them.
pub type Ends = (String, [u8; 6], String);

/// What the loops share.
#[derive(Debug)]
pub struct Sessions {
    /// The portal group's tag.
    pub tag: AtomicU16,
    /// Where initiators reach it; empty: where they have reached it.
    pub advertised: Mutex<String>,
    /// Where it listens, if it does.
    pub bound: Mutex<Option<String>>,
    /// What this process's requests to owners begin with, and how many there have been.
    pub process: u64,
    pub requests: AtomicU64,
    pub next: AtomicU16,
    /// EXTENDED COPYs that are being carried out.
    pub copies: AtomicUsize,
    /// By loop and connection.
    pub open: Mutex<HashMap<Ends, (usize, Token)>>,
}

impl Default for Sessions {
    fn default() -> Sessions {
        Sessions {
            tag: AtomicU16::new(0),
            advertised: Mutex::default(),
            bound: Mutex::default(),
            // Another in each process.
            process: RandomState::new().build_hasher().finish(),
            requests: AtomicU64::new(0),
            next: AtomicU16::new(0),
            copies: AtomicUsize::new(0),
            open: Mutex::default(),
        }
    }
}

impl Sessions {
    /// True if there is a session of that port with the volume's target.
    pub fn has(&self, volume: &str, port: &Nexus) -> bool {
        let target = format!("{PREFIX}{volume}");
        let open = lock(&self.open);
        open.keys().any(|(name, isid, of)| {
            *of == target && Nexus::new(name, isid, port.tag).initiator == port.initiator
        })
    }
}
