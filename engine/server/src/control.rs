//! The calls that change what the engine serves. Each is idempotent, each has a deadline.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use vs_io::{Committer, Device, DeviceError, ErrorKind, Kind, Residency, T1Table, planted};
use vs_tree::{Spec, Tree};

use crate::access::Accesses;
use crate::active::{Active, Leaf, Volume};
use crate::config::Config;
use crate::copy;
use crate::event_loop::{Loop, Shared};
use crate::handover::Basket;
use crate::iscsi_sessions::Sessions;
use crate::mailbox::{Mailbox, Message};
use crate::metrics::{Histogram, LoopMetrics, Transport, VolumeCounters};
use crate::remote::Object;
use crate::shapes::{
    DeviceMetrics, MetricsShape, PeerMetrics, T2Shape, TroubleShape, VolumeMetrics,
};
use crate::socket::Listener;
use crate::turns::Turns;

/// A leg that failed so long ago, and not since, does not fail any more: it is tried ten times a
/// second if it refuses, and looked at once a second if it keeps somebody waiting.
const LATELY: Duration = Duration::from_secs(3);
/// Longest wait for the loops to answer what they can answer at once.
const PROMPT: Duration = Duration::from_secs(10);

/// A call that failed: a kind of `vswitchd/errors.py`, and what is wrong.
#[derive(Debug)]
pub struct Failure {
    pub kind: &'static str,
    pub message: String,
}

impl Failure {
    pub(crate) fn new(kind: &'static str, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Failure {
        let kind = match error.kind {
            ErrorKind::Io | ErrorKind::ReadOnly => "internal",
            ErrorKind::NoSpace => "no_space",
            ErrorKind::NotFound => "not_found",
            ErrorKind::Invalid => "invalid",
            ErrorKind::Exists => "exists",
            ErrorKind::Unlike => "unlike",
            ErrorKind::Stale => "stale",
            ErrorKind::Unsafe => "unsafe",
            ErrorKind::Timeout => "timeout",
        };
        Failure::new(kind, error.message)
    }
}

pub(crate) fn parse<'a, T: serde::Deserialize<'a>>(
    what: &str,
    text: &'a str,
) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|e| Failure::new("invalid", format!("{what}: {e}")))
}

pub(crate) fn json<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|e| Failure::new("internal", e.to_string()))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What requests of the old tree need not wait for: T1 objects that the new one does not have, or
/// only as away, and an owner that is none any more.
#[derive(Debug, Default)]
pub struct Lost {
    pub t1s: Vec<String>,
    /// The volume, at that owner.
    pub owner: Option<Object>,
}

impl Lost {
    fn between(old: &Tree, new: &Tree) -> Lost {
        let stays = |t1: &String| new.leaves().iter().any(|leaf| leaf.t1 == *t1 && !leaf.away);
        let of_old = old.leaves().iter().map(|leaf| leaf.t1.clone());
        let moved = old.spec().owner != new.spec().owner;
        let volume = || Object::Volume(new.spec().volume.as_str().into());
        Lost { t1s: of_old.filter(|t1| !stays(t1)).collect(), owner: moved.then(volume) }
    }
}

/// The engine of one SP.
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// T1 objects whose epoch was raised, while I/O of lower ones may not have ended yet.
    pub(crate) undrained: Mutex<HashSet<String>>,
}

impl Engine {
    /// Starts the event loops.
    ///
    /// # Errors
    /// For a configuration that can't be, or when the system has no descriptors or threads.
    pub fn start(config: &str) -> Result<Engine, Failure> {
        let config: Config = parse("engine configuration", config)?;
        let os = |e: std::io::Error| Failure::new("internal", format!("can't start: {e}"));
        let count = config.loop_count();
        let mailboxes =
            (0..count).map(|_| Mailbox::new()).collect::<Result<Vec<_>, _>>().map_err(os)?;
        let residency = Residency::new(config.residency());
        let shared = Arc::new(Shared {
            t1s: T1Table::new(&config.sp, config.rebooted),
            config,
            devices: RwLock::default(),
            volumes: RwLock::default(),
            mailboxes,
            registry: Mutex::default(),
            listeners: Mutex::default(),
            iscsi: Sessions::default(),
            access: Accesses::default(),
            turns: Turns::default(),
            connections: AtomicUsize::new(0),
            began: Instant::now(),
            residency,
            next_slot: AtomicUsize::new(0),
        });
        let mut threads = Vec::new();
        for index in 0..count {
            let event_loop = Loop::new(index, Arc::clone(&shared)).map_err(os)?;
            let name = format!("vs-loop-{index}");
            let body = move || {
                let run = std::panic::AssertUnwindSafe(|| event_loop.run());
                if std::panic::catch_unwind(run).is_err() {
                    // Half of its volumes' state is lost with it: never limp on.
                    eprintln!("vswitchd engine: an event loop has failed; ending the process");
                    std::process::abort();
                }
            };
            threads.push(std::thread::Builder::new().name(name).spawn(body).map_err(os)?);
        }
        Ok(Engine { shared, threads: Mutex::new(threads), undrained: Mutex::default() })
    }

    /// Serves NBD at "host:port" or "unix:/path"; gives the address that was bound.
    ///
    /// # Errors
    /// When it can't be bound.
    pub fn listen_nbd(&self, address: &str) -> Result<String, Failure> {
        let unix = address.starts_with("unix:");
        self.listen(address, if unix { Transport::NbdUnix } else { Transport::NbdTcp })
    }

    /// Serves iSCSI at "host:port"; gives the address that was bound.
    ///
    /// # Errors
    /// When it can't be bound.
    pub fn listen_iscsi(&self, address: &str) -> Result<String, Failure> {
        self.listen(address, Transport::Iscsi)
    }

    /// The tag of the portal group that all iSCSI listeners are, and where initiators are told to
    /// come; empty: where they have come.
    pub fn set_portal_group(&self, tag: u16, advertised: &str) {
        self.shared.iscsi.tag.store(tag, std::sync::atomic::Ordering::Relaxed);
        advertised.clone_into(&mut lock(&self.shared.iscsi.advertised));
    }

    /// Serves other SPs at "host:port".
    ///
    /// # Errors
    /// When it can't be bound.
    pub fn listen_peer(&self, address: &str) -> Result<String, Failure> {
        self.listen(address, Transport::Peer)
    }

    fn listen(&self, address: &str, transport: Transport) -> Result<String, Failure> {
        let failed = |e: std::io::Error| {
            Failure::new("precondition", format!("can't listen at {address}: {e}"))
        };
        let listener = Listener::bind(address).map_err(failed)?;
        let bound = listener.address().map_err(failed)?;
        self.serve(listener, transport);
        Ok(bound)
    }

    pub(crate) fn serve(&self, listener: Listener, transport: Transport) {
        if transport == Transport::Iscsi
            && let Ok(address) = listener.address()
        {
            // Other SPs are told of the first.
            lock(&self.shared.iscsi.bound).get_or_insert(address);
        }
        lock(&self.shared.listeners).push((Arc::new(listener), transport));
        let (ack, _) = channel();
        self.shared.mailboxes[0].post(Message::Barrier(ack));
    }

    /// Stops reading, answers what is in flight, flushes, ends the threads. True if all of
    /// it ended in time.
    pub fn shutdown(&self, seconds: f64) -> bool {
        self.end(seconds, None)
    }

    /// Ends; hosts' sessions go into the basket, if there is one, instead of being closed.
    pub(crate) fn end(&self, seconds: f64, basket: Option<&Basket>) -> bool {
        let deadline = Instant::now() + Duration::from_secs_f64(seconds);
        // Loop 0 forgets closed listeners by itself: the kernel takes them out of epoll. The
        // empty entries keep the indices of the rest.
        let listeners = std::mem::take(&mut *lock(&self.shared.listeners));
        drop(listeners);
        // Hosts first: what they have asked for may need the legs here, over an owner elsewhere.
        let part = |ack| Message::Part(basket.cloned(), ack);
        let hosts = Instant::now() + Duration::from_secs_f64(seconds * 0.75);
        let parted = self.ask(part, hosts).is_ok();
        let answered = self.ask(Message::Shutdown, deadline).is_ok() && parted;
        let mut flushed = true;
        for device in self.shared.devices().values() {
            flushed &= self.flush(device, deadline);
        }
        for mailbox in &self.shared.mailboxes {
            mailbox.post(Message::Exit);
        }
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join();
        }
        // What nobody waits for, such as the clearing of a map, must not come after a successor.
        let rested = self.shared.devices().values().all(|device| device.pool.rest(deadline));
        for device in self.shared.devices().values() {
            // What stays open is unknown at the next start, and no more than that.
            if let Err(error) = device.settle_checksums(None, deadline) {
                eprintln!("vswitchd engine: {error}");
            }
            // A successor may be opening them by the time that its thread looks.
            if let Some(checksums) = device.checksums() {
                checksums.retire();
            }
        }
        answered && flushed && rested
    }

    pub(crate) fn flush(&self, device: &Arc<Device>, deadline: Instant) -> bool {
        if matches!(device.kind, Kind::Nbd(_)) {
            return device.blocking().and_then(|mut device| device.sync()).is_ok();
        }
        let (sender, receiver) = channel();
        let done = Box::new(move |result: Result<f64, DeviceError>| {
            let _ = sender.send(result.is_ok());
        });
        Committer::flush(device, done);
        let left = deadline.saturating_duration_since(Instant::now());
        receiver.recv_timeout(left).unwrap_or(false)
    }

    /// Posts a message to every loop and waits for all answers.
    pub(crate) fn ask<T>(
        &self,
        make: impl Fn(Sender<T>) -> Message,
        deadline: Instant,
    ) -> Result<Vec<T>, Failure> {
        let (sender, receiver) = channel();
        for mailbox in &self.shared.mailboxes {
            mailbox.post(make(sender.clone()));
        }
        drop(sender);
        let answers = (0..self.shared.mailboxes.len()).map(|_| {
            let left = deadline.saturating_duration_since(Instant::now());
            receiver.recv_timeout(left).map_err(|_| {
                Failure::new("timeout", "requests in flight did not end in time; try again")
            })
        });
        answers.collect()
    }

    pub(crate) fn prompt() -> Instant {
        Instant::now() + PROMPT
    }

    pub(crate) fn volume(&self, id: &str) -> Option<Arc<Volume>> {
        self.shared.volumes.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// All volumes in service, in no order.
    pub(crate) fn volumes(&self) -> Vec<Arc<Volume>> {
        let volumes = self.shared.volumes.read().unwrap_or_else(PoisonError::into_inner);
        volumes.values().cloned().collect()
    }

    pub(crate) fn volumes_by_name(&self) -> Vec<Arc<Volume>> {
        let mut all = self.volumes();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Gives volumes the T1 objects that their trees lack.
    pub(crate) fn refresh(&self) {
        let lacks = |active: &Active| active.leaves.iter().any(|l| matches!(l, Leaf::Missing));
        for volume in self.volumes() {
            // Nearly always nothing: then nobody waits for another call about the volume.
            if !lacks(&volume.active()) {
                continue;
            }
            let _control = lock(&volume.control);
            let active = volume.active();
            if !lacks(&active) {
                continue;
            }
            if let Ok(tree) = Tree::compile(active.tree.spec().clone()) {
                let next = Active::new(tree, &self.shared.t1s, active.pinned, Some(&active));
                volume.set(next);
                // Loops that are slow to answer adopt it all the same.
                let _ = self.ask(|ack| Message::Adopt(Arc::clone(&volume), ack), Self::prompt());
            }
        }
    }

    /// Swaps a volume's tree, or begins to serve it. Gives the pause in microseconds.
    ///
    /// # Errors
    /// `stale` for a lower version or epoch, `timeout` when requests do not end (the old tree
    /// then stays), `exists` for another volume's name, `invalid` for a tree that can't be.
    pub fn t2_activate(&self, t2: &str, resync: bool, seconds: f64) -> Result<u64, Failure> {
        let deadline = Instant::now() + Duration::from_secs_f64(seconds);
        let spec: Spec = parse("T2 object", t2)?;
        let (id, name) = (spec.volume.clone(), spec.name.clone());
        let clash = |volume: &&Arc<Volume>| volume.name == name && volume.id != id;
        if let Some(other) = self.volumes().iter().find(clash) {
            let text = format!("volume {} is called '{name}' already", other.id);
            return Err(Failure::new("exists", text));
        }
        let invalid =
            |e: vs_tree::TreeError| Failure::new("invalid", format!("volume {name}: {e}"));
        let tree = Tree::compile(spec).map_err(invalid)?;
        let Some(volume) = self.volume(&id) else {
            let resync = resync && !planted("resync_skipped");
            let pinned = resync && tree.is_owner() && tree.has_mirror();
            let active = Active::new(tree, &self.shared.t1s, pinned, None);
            let volume = Arc::new(Volume::new(active));
            if pinned {
                volume.list_resync();
            }
            let mut volumes = self.shared.volumes.write().unwrap_or_else(PoisonError::into_inner);
            volumes.insert(id, Arc::clone(&volume));
            drop(volumes);
            self.ask(|ack| Message::Adopt(Arc::clone(&volume), ack), Self::prompt())?;
            return Ok(0);
        };
        let _control = lock(&volume.control);
        let old = volume.active();
        let (new, now) = (tree.spec(), old.tree.spec());
        if new.version < now.version || new.epoch < now.epoch {
            let text = format!(
                "volume {name}: version {} epoch {} is older than {} and {}",
                new.version, new.epoch, now.version, now.epoch
            );
            return Err(Failure::new("stale", text));
        }
        if new == now && !resync {
            return Ok(0);
        }
        let begun = Instant::now();
        let lost = Arc::new(Lost::between(&old.tree, &tree));
        let quiet = self.ask(|ack| Message::Quiesce(id.clone(), Arc::clone(&lost), ack), deadline);
        if let Err(error) = quiet {
            let _ = self.ask(|ack| Message::Adopt(Arc::clone(&volume), ack), Self::prompt());
            return Err(error);
        }
        let resync = resync && !planted("resync_skipped");
        let unfinished = resync || volume.resync_percent() < 100;
        let pinned = unfinished && tree.is_owner() && tree.has_mirror();
        volume
            .copies()
            .retain(|copy| !copy.resync && copy::carries_on(&old.tree, &tree, &copy.path));
        let kept = |t1: &String| tree.leaves().iter().any(|leaf| leaf.t1 == *t1 && !leaf.away);
        lock(&volume.failing).retain(|t1, _| tree.is_owner() && kept(t1));
        volume.set(Active::new(tree, &self.shared.t1s, pinned, Some(&old)));
        if pinned {
            volume.list_resync();
        }
        self.ask(|ack| Message::Adopt(Arc::clone(&volume), ack), Self::prompt())?;
        let pause = begun.elapsed();
        lock(&volume.pause).add(pause.as_secs_f64(), 1);
        Ok(pause.as_micros() as u64)
    }

    /// Takes a volume out of service: requests end, what was written is flushed.
    ///
    /// # Errors
    /// `timeout` when requests do not end; it is then served as before.
    pub fn t2_remove(&self, id: &str, seconds: f64) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs_f64(seconds);
        let Some(volume) = self.volume(id) else {
            self.shared.access.forget(id);
            return Ok(());
        };
        let _control = lock(&volume.control);
        // Hosts first, since an error would be all that they could be told later.
        let left = self.ask(|ack| Message::Leave(id.to_owned(), ack), deadline);
        let quiet = left.and_then(|_| {
            self.ask(|ack| Message::Quiesce(id.to_owned(), Arc::default(), ack), deadline)
        });
        if let Err(error) = quiet {
            let _ = self.ask(|ack| Message::Adopt(Arc::clone(&volume), ack), Self::prompt());
            return Err(error);
        }
        for leaf in &volume.active().leaves {
            let Leaf::Local(t1) = leaf else { continue };
            for device in t1.devices() {
                self.flush(device, deadline);
            }
        }
        self.shared.volumes.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.ask(|ack| Message::Forget(id.to_owned(), ack), Self::prompt())?;
        self.shared.access.forget(id);
        Ok(())
    }

    /// JSON list of the volumes in service, or of that one (empty: of all).
    ///
    /// # Errors
    /// None but of JSON itself.
    pub fn t2s(&self, volume: &str) -> Result<String, Failure> {
        let asked = if volume.is_empty() {
            self.volumes_by_name()
        } else {
            self.volume(volume).into_iter().collect()
        };
        let shapes = asked.into_iter().map(|volume| {
            let active = volume.active();
            let Spec { version, epoch, .. } = *active.tree.spec();
            let resync_percent = volume.resync_percent();
            T2Shape { volume: volume.id.clone(), version, epoch, resync_percent }
        });
        json(&shapes.collect::<Vec<_>>())
    }

    /// JSON of the T1 objects under mirrors that have failed hosts' writes and without which their
    /// volumes can go on, and of those in doubt, with their epochs.
    ///
    /// # Errors
    /// None but of JSON itself.
    pub fn trouble(&self) -> Result<String, Failure> {
        let volumes = self.volumes();
        let told = volumes.iter().filter(|_| !planted("failing_leg_not_told"));
        let t1s = self.shared.t1s.all();
        json(&TroubleShape {
            failing: told.flat_map(|volume| Self::failing(volume)).collect(),
            doubtful: t1s
                .iter()
                .filter(|t1| t1.is_doubtful())
                .map(|t1| (&*t1.spec.id, t1.epoch()))
                .collect(),
        })
    }

    /// Those that have failed lately: what still fails does so again and again.
    fn failing(volume: &Volume) -> Vec<String> {
        let mut failing = lock(&volume.failing);
        failing.retain(|_, at| at.elapsed() < LATELY);
        failing.keys().cloned().collect()
    }

    /// Closes the remote reference to a T1 object.
    ///
    /// # Errors
    /// `precondition` while the volume's active tree uses it.
    pub fn reference_drop(&self, volume: &str, t1: &str) -> Result<(), Failure> {
        if let Some(volume) = self.volume(volume)
            && volume.active().tree.leaves().iter().any(|leaf| leaf.t1 == t1)
        {
            let text = format!("volume {}: its tree still refers to {t1}", volume.name);
            return Err(Failure::new("precondition", text));
        }
        self.ask(|ack| Message::DropReference(t1.to_owned(), ack), Self::prompt())?;
        Ok(())
    }

    /// JSON of all counters.
    ///
    /// # Errors
    /// `timeout` when a loop does not answer.
    pub fn metrics(&self) -> Result<String, Failure> {
        let mut volumes: HashMap<String, VolumeCounters> = HashMap::new();
        let mut peers: std::collections::BTreeMap<String, (bool, Histogram)> =
            std::collections::BTreeMap::new();
        let mut all = LoopMetrics::default();
        for one in self.ask(Message::Metrics, Self::prompt())? {
            for (id, counters) in &one.volumes {
                volumes.entry(id.clone()).or_default().merge(counters);
            }
            all.devices.merge(&one.devices);
            for (sp, (up, round_trip)) in &one.peers {
                let peer = peers.entry(sp.clone()).or_default();
                peer.0 |= up;
                peer.1.merge(round_trip);
            }
            for (transport, count) in &one.sessions {
                *all.sessions.entry(*transport).or_default() += count;
            }
            all.protocol_errors += one.protocol_errors;
            for (why, count) in &one.logins_failed {
                *all.logins_failed.entry(why).or_default() += count;
            }
            all.fencing_rejections += one.fencing_rejections;
        }
        let volumes = self.volumes_by_name().into_iter().map(|volume| {
            let active = volume.active();
            let Spec { size, version, epoch, .. } = *active.tree.spec();
            let here = active.leaves.iter().map(|leaf| match leaf {
                Leaf::Local(t1) => t1.dirty(),
                _ => 0,
            });
            let dirty_bytes = here.sum();
            let lacking = active.tree.is_owner() && (active.tree.is_degraded() || active.pinned);
            VolumeMetrics {
                dirty_bytes,
                outofsync_bytes: if lacking { dirty_bytes } else { 0 },
                volume: volume.id.clone(),
                name: volume.name.clone(),
                copied_bytes: volume.moved.load(std::sync::atomic::Ordering::Relaxed),
                healed_bytes: volume.healed.load(std::sync::atomic::Ordering::Relaxed),
                size,
                version,
                epoch,
                pause: lock(&volume.pause).clone(),
                counters: volumes.remove(&volume.id).unwrap_or_default(),
            }
        });
        let known = self.shared.devices();
        let counted = known.values().map(|device| DeviceMetrics {
            id: device.id.clone(),
            checksum_errors: device.checksums().map(|checksums| checksums.errors()),
            counters: all.devices.get(device).cloned().unwrap_or_default(),
        });
        let mut devices: Vec<DeviceMetrics> = counted.collect();
        devices.sort_by(|a, b| a.id.cmp(&b.id));
        let peers = peers.into_iter();
        json(&MetricsShape {
            volumes: volumes.collect(),
            devices,
            peers: peers.map(|(sp, (up, round_trip))| PeerMetrics { sp, up, round_trip }).collect(),
            sessions: all.sessions,
            protocol_errors: all.protocol_errors,
            logins_failed: all.logins_failed,
            fencing_rejections: all.fencing_rejections,
            resident_bytes: self.shared.residency.as_ref().map_or(0, |r| r.bytes()),
        })
    }
}
