//! A volume in service: its current tree with what the leaves resolve to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vs_io::{Kind, T1Object, T1Table};
use vs_tree::{LeafRef, Place, Tree};

use crate::copy;
use crate::metrics::Histogram;
use crate::pace::Hosts;
use crate::rangelock::RangeLock;
use crate::recent::Recent;
use crate::reserve::Guard;

/// What a leaf leads to.
#[derive(Debug)]
pub enum Leaf {
    Local(Arc<T1Object>),
    /// An LRN whose object is not here (its device is missing): I/O waits for it.
    Missing,
    /// An RRN: (index into the tree's peers, T1 id).
    Remote(u16, Arc<str>),
}

/// A compiled tree in use. Immutable.
#[derive(Debug)]
pub struct Active {
    pub tree: Tree,
    pub leaves: Vec<Leaf>,
    pub peers: Vec<Arc<str>>,
    pub epoch: u64,
    /// Zeroes are made on every leaf without being written.
    pub fast_zero: bool,
    /// Mirrors are read from their first in-sync leg only, until a resync is done.
    pub pinned: bool,
    /// At an owner, the in-sync leaves of mirrors that other SPs home: while these say that they
    /// know of no later epoch, nobody else is the owner.
    pub voters: Vec<u32>,
    /// Where hosts have written of late.
    pub recent: Arc<Recent>,
    /// Below this offset a resync has made legs alike.
    pub alike: AtomicU64,
}

impl Active {
    /// `before` is the tree that it takes the place of.
    pub fn new(tree: Tree, t1s: &T1Table, pinned: bool, before: Option<&Active>) -> Active {
        let leaves: Vec<Leaf> = tree
            .leaves()
            .iter()
            .map(|leaf| match leaf.place {
                Place::Remote(peer) => Leaf::Remote(peer, leaf.t1.as_str().into()),
                Place::Local => t1s.get(&leaf.t1).map_or(Leaf::Missing, Leaf::Local),
            })
            .collect();
        let whole = tree.is_owner() && !tree.has_hole();
        let quick = |leaf: &Leaf| match leaf {
            Leaf::Local(t1) => t1.devices().iter().all(|device| match &device.kind {
                Kind::File(file) => file.zeroes_fast(),
                Kind::Nbd(_) => false,
            }),
            _ => false,
        };
        let fast_zero = whole && leaves.iter().all(quick);
        let peers = tree.peers().iter().map(|peer| peer.sp.as_str().into()).collect();
        let epoch = tree.spec().epoch;
        let votes = |leaf: &LeafRef| leaf.mirrored && leaf.in_sync && leaf.place != Place::Local;
        let all = tree.leaves().iter().enumerate();
        let voters = all.filter(|(_, leaf)| tree.is_owner() && votes(leaf));
        let voters = voters.map(|(index, _)| index as u32).collect();
        // An owner before this one, and a resync, may have left more than this one knows of.
        let same = |old: &&Active| {
            old.recent.size() == tree.size() && old.tree.is_owner() && tree.is_owner() && !pinned
        };
        let recent = before.filter(same).map(|old| Arc::clone(&old.recent));
        let recent = recent.unwrap_or_else(|| Arc::new(Recent::new(tree.size())));
        // A resync, if that is what comes, ends it.
        if !pinned && before.is_some_and(|old| old.recent.is_suspect()) {
            recent.suspect();
        }
        let alike = AtomicU64::new(0);
        Active { tree, leaves, peers, epoch, fast_zero, pinned, voters, recent, alike }
    }

    /// True if a resync has yet to make the legs alike there.
    pub fn is_unlike(&self, offset: u64, length: u64) -> bool {
        self.pinned && offset + length > self.alike.load(Ordering::SeqCst)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyState {
    Running,
    Done,
    Failed,
}

/// What a copy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Gives a write-only leg its data.
    Full,
    /// Only what the write-intent maps of the mirror's legs have: the leg was in sync once.
    Delta,
    /// Holds the legs in sync of every mirror against each other (`path` empty), and tells.
    Compare,
    /// The same, and makes them alike.
    Repair,
}

impl Mode {
    pub fn compares(self) -> bool {
        matches!(self, Mode::Compare | Mode::Repair)
    }
}

/// Bytes of a mirror that its legs do not have alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The mirror, from the root.
    pub path: Vec<usize>,
    pub offset: u64,
    pub length: u64,
}

/// A copy onto a write-only leg, the resync of a whole tree (`path` empty), or a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Copy {
    pub volume: String,
    pub path: Vec<usize>,
    pub state: CopyState,
    pub copied: u64,
    pub total: u64,
    pub error: String,
    /// From the beginning so many bytes are on the leg and flushed there.
    pub durable: u64,
    /// Bytes per second, lately.
    pub rate: u64,
    /// What a comparison has found: the first ranges, and bytes in all.
    pub differing: Vec<Range>,
    pub differing_bytes: u64,
    pub mode: Mode,
    #[serde(skip)]
    pub resync: bool,
    /// Where it begins: what is before was durable when it began.
    #[serde(skip)]
    pub start: u64,
    /// Most bytes per second; 0: no limit.
    #[serde(skip)]
    pub limit: u64,
    /// Less while hosts suffer.
    #[serde(skip)]
    pub adaptive: bool,
}

impl Copy {
    pub fn new(volume: &str, path: Vec<usize>, resync: bool) -> Copy {
        Copy {
            volume: volume.to_owned(),
            path,
            state: CopyState::Running,
            copied: 0,
            total: 0,
            error: String::new(),
            durable: 0,
            rate: 0,
            differing: Vec::new(),
            differing_bytes: 0,
            mode: if resync { Mode::Delta } else { Mode::Full },
            resync,
            start: 0,
            limit: 0,
            adaptive: true,
        }
    }
}

/// A volume, shared by the loops and the control calls.
pub struct Volume {
    pub id: String,
    pub name: String,
    active: RwLock<Arc<Active>>,
    pub lock: RangeLock,
    pub pause: Mutex<Histogram>,
    pub copies: Mutex<Vec<Copy>>,
    /// What hosts met, by the loop that last said so when it was asked.
    pub hosts: Mutex<Vec<Hosts>>,
    /// T1 objects of mirrors whose devices have refused a host's write or flush, or keep one
    /// waiting, by this tree; when they last did.
    pub failing: Mutex<BTreeMap<String, Instant>>,
    /// Bytes that copies and resyncs have written.
    pub moved: AtomicU64,
    /// Bytes that legs could not read and got again.
    pub healed: AtomicU64,
    /// What commands of SCSI ask before they are carried out.
    pub guard: Guard,
    /// Held by the control call that changes the volume.
    pub control: Mutex<()>,
}

impl Volume {
    pub fn new(active: Active) -> Volume {
        Volume {
            id: active.tree.spec().volume.clone(),
            name: active.tree.spec().name.clone(),
            active: RwLock::new(Arc::new(active)),
            lock: RangeLock::default(),
            pause: Mutex::default(),
            copies: Mutex::default(),
            hosts: Mutex::default(),
            failing: Mutex::default(),
            moved: AtomicU64::new(0),
            healed: AtomicU64::new(0),
            guard: Guard::default(),
            control: Mutex::default(),
        }
    }

    pub fn active(&self) -> Arc<Active> {
        Arc::clone(&self.active.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set(&self, active: Active) {
        if !active.tree.is_owner() {
            // Another is, and begins with a resync.
            self.lock.mend(0, u64::MAX);
        }
        *self.active.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(active);
    }

    pub fn copies(&self) -> std::sync::MutexGuard<'_, Vec<Copy>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is listed of one copy.
    pub fn change_copy(&self, path: &[usize], resync: bool, change: impl FnMut(&mut Copy)) {
        let mut copies = self.copies();
        copies.iter_mut().filter(|c| c.path == path && c.resync == resync).for_each(change);
    }

    /// Lists a resync of the tree in use, in the place of one that was listed.
    pub fn list_resync(&self) {
        let mut resync = Copy::new(&self.id, Vec::new(), true);
        resync.total = copy::total(&self.active().tree, &resync);
        let mut copies = self.copies();
        copies.retain(|copy| !copy.resync);
        copies.push(resync);
    }

    /// A loop says what its hosts have met.
    pub fn tell_hosts(&self, index: usize, met: Hosts) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() <= index {
            hosts.resize(index + 1, Hosts::default());
        }
        hosts[index] = met;
    }

    /// What the hosts of all loops have met, as far as they have said.
    pub fn all_hosts(&self) -> Hosts {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.iter().fold(Hosts::default(), |sum, met| Hosts {
            requests: sum.requests + met.requests,
            seconds: sum.seconds + met.seconds,
        })
    }

    /// Percent of a running resync; 100 when there is none.
    pub fn resync_percent(&self) -> u64 {
        let copies = self.copies();
        let running = copies.iter().find(|copy| copy.resync && copy.state != CopyState::Done);
        running.map_or(100, |copy| (copy.copied * 100 / copy.total.max(1)).min(99))
    }
}
