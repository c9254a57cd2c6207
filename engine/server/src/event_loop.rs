//! One event loop: its sockets, its operations, its share of every volume.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use vs_io::{Device, Residency, T1Table};
use vs_tree::Piece;

use crate::active::{Active, Volume};
use crate::buffers::Buffers;
use crate::clock::Clock;
use crate::config::Config;
use crate::conn::Conn;
use crate::durable::Durable;
use crate::handover::Basket;
use crate::lease::Lease;
use crate::legs::Heals;
use crate::mailbox::{Mailbox, Message, Waiting};
use crate::metrics::{DeviceTable, LoopMetrics, Tally, Transport, VolumeCounters};
use crate::op::{Fail, Op};
use crate::out::Room;
use crate::peer_server::{PeerSession, Registry};
use crate::remote::{Remote, RemoteKey};
use crate::slab::{Slab, Token};
use crate::socket::{Epoll, IN, Listener};
use crate::spin::Spin;
use crate::sweep::Sweep;
use crate::turns::Turns;

const TAG_MAILBOX: u64 = 0;
pub const TAG_CONN: u64 = 1;
pub const TAG_REMOTE: u64 = 2;
const TAG_LISTENER: u64 = 3;

/// How often deadlines are looked at, while there are any.
const TICK: Duration = Duration::from_millis(20);
/// A connection that has not negotiated after this is closed.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// What all loops and the control calls share.
pub struct Shared {
    pub config: Config,
    pub t1s: T1Table,
    pub devices: RwLock<Arc<HashMap<String, Arc<Device>>>>,
    pub volumes: RwLock<HashMap<String, Arc<Volume>>>,
    pub mailboxes: Vec<Mailbox>,
    pub registry: Mutex<Registry>,
    pub listeners: Mutex<Vec<(Arc<Listener>, Transport)>>,
    pub iscsi: crate::iscsi_sessions::Sessions,
    pub access: crate::access::Accesses,
    pub turns: Turns,
    pub connections: std::sync::atomic::AtomicUsize,
    /// When this process began: its clock for peers counts from there.
    pub began: Instant,
    /// What of file devices may be kept in memory; None: nothing.
    pub residency: Option<Arc<Residency>>,
    /// `Device::slot` of the next device.
    pub next_slot: std::sync::atomic::AtomicUsize,
}

impl Shared {
    /// Milliseconds of this process's clock, which wrap.
    pub fn millis(&self, at: Instant) -> u32 {
        at.saturating_duration_since(self.began).as_millis() as u32
    }

    pub fn devices(&self) -> Arc<HashMap<String, Arc<Device>>> {
        Arc::clone(&self.devices.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A loop's share of a volume.
pub struct LoopVolume {
    pub volume: Arc<Volume>,
    pub active: Arc<Active>,
    /// Operations that are running, parked ones not among them.
    pub inflight: u64,
    pub parked: VecDeque<Token>,
    /// Set while a control call waits for `inflight` to become 0.
    pub quiescing: Option<Sender<()>>,
    pub held: bool,
    /// Its sessions end, since it is about to leave.
    pub leaving: bool,
    pub counters: VolumeCounters,
    pub copies: Vec<crate::copy::Job>,
    pub lease: Lease,
    pub sweep: Sweep,
    pub heals: Heals,
    pub reserve: crate::reserve::Local,
}

pub struct Loop {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub mailbox: Mailbox,
    pub epoll: Epoll,
    pub conns: Slab<Conn>,
    pub ops: Slab<Op>,
    pub remotes: Slab<Remote>,
    pub remote_by_key: FxHashMap<RemoteKey, Token>,
    pub volumes: Slab<LoopVolume>,
    pub volume_by_id: HashMap<String, Token>,
    pub devices: DeviceTable,
    pub buffers: Buffers,
    /// Input buffers that no connection uses.
    pub spare: Vec<Vec<u8>>,
    /// Connections that have resident pages still to send.
    pub lending: Vec<Token>,
    /// FUA writes and flushes that wait for a commit to be asked for, by device.
    /// Reads and writes of the batch that is being parsed.
    pub tally: Tally,
    /// Scratch of `inline`: addresses and lengths of resident memory.
    pub found: Vec<(usize, usize)>,
    pub commits: Vec<(Arc<Device>, Waiting)>,
    /// FUA writes that this wake-up has brought.
    pub durables: Vec<Durable>,
    /// Scratch for `Out::flush`.
    pub room: Room,
    /// Connections whose buffered input may go on.
    pub wake: Vec<Token>,
    pub dirty: Vec<Token>,
    pub dirty_remotes: Vec<Token>,
    /// Closed peer sessions whose operations still run, with how many.
    pub orphans: HashMap<Token, (u32, PeerSession)>,
    pub granted: Vec<Token>,
    /// Operations whose turn waits for what devices did before, and how many turns were taken here.
    pub turns_waiting: Vec<Token>,
    pub serial: u64,
    pub pieces: Vec<Piece>,
    pub now: Instant,
    pub clock: Clock,
    pub spread: u64,
    pub protocol_errors: u64,
    /// By why they were refused.
    pub logins_failed: BTreeMap<&'static str, u64>,
    pub fencing_rejections: u64,
    next_tick: Option<Instant>,
    /// No leg is blamed until then.
    pub excused: Instant,
    next_loop: usize,
    pub shutdown: Option<Sender<()>>,
    /// Hosts' sessions are to end; answered when none is left.
    parted: Option<Sender<()>>,
    /// Where hosts' sessions go at the end, instead of being closed.
    pub basket: Option<Basket>,
    /// Answered when a volume has no session left.
    leaving: Vec<(Token, Sender<()>)>,
    exit: bool,
}

impl Loop {
    pub fn new(index: usize, shared: Arc<Shared>) -> std::io::Result<Loop> {
        let mailbox = shared.mailboxes[index].clone();
        let epoll = Epoll::new()?;
        epoll.add(mailbox.fd(), IN, Token::default().pack(TAG_MAILBOX))?;
        Ok(Loop {
            index,
            shared,
            mailbox,
            epoll,
            conns: Slab::default(),
            ops: Slab::default(),
            remotes: Slab::default(),
            remote_by_key: FxHashMap::default(),
            volumes: Slab::default(),
            volume_by_id: HashMap::new(),
            devices: DeviceTable::default(),
            buffers: Buffers::default(),
            spare: Vec::new(),
            lending: Vec::new(),
            tally: Tally::default(),
            found: Vec::new(),
            commits: Vec::new(),
            durables: Vec::new(),
            room: Room::default(),
            wake: Vec::new(),
            dirty: Vec::new(),
            dirty_remotes: Vec::new(),
            orphans: HashMap::new(),
            granted: Vec::new(),
            turns_waiting: Vec::new(),
            serial: 0,
            pieces: Vec::new(),
            now: Instant::now(),
            clock: Clock::new(),
            spread: 0,
            protocol_errors: 0,
            logins_failed: BTreeMap::new(),
            fencing_rejections: 0,
            next_tick: None,
            excused: Instant::now(),
            next_loop: index,
            shutdown: None,
            parted: None,
            basket: None,
            leaving: Vec::new(),
            exit: false,
        })
    }

    /// Runs until told to exit.
    pub fn run(mut self) {
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; 256];
        let mut listening = 0;
        let mut spin = Spin::new(Duration::from_micros(self.shared.config.spin_microseconds));
        while !self.exit {
            if self.index == 0 {
                self.listen(&mut listening);
            }
            let millis = match self.next_tick {
                Some(at) => at.saturating_duration_since(Instant::now()).as_millis() as i32 + 1,
                None => -1,
            };
            let count = spin.wait(&self.epoll, &mut events, millis);
            self.now = self.clock.read();
            let mut mail = false;
            for event in &events[..count] {
                let (raw, bits) = (event.u64, event.events);
                let (tag, token) = Token::unpack(raw);
                match tag {
                    TAG_MAILBOX => mail = true,
                    TAG_CONN => self.conn_event(token, bits),
                    TAG_REMOTE => self.remote_event(token, bits),
                    TAG_LISTENER => self.accept(token.index as usize),
                    _ => {}
                }
            }
            self.settle();
            if mail {
                // After what was answered has been sent or owned: see `own_all`.
                self.messages();
                self.settle();
            }
            if self.next_tick.is_some_and(|at| at <= Instant::now()) {
                self.tick();
                self.settle();
            }
        }
    }

    /// Does all that follows from what has been done, until nothing does.
    fn settle(&mut self) {
        loop {
            if let Some(op) = self.granted.pop() {
                self.granted(op);
            } else if let Some(conn) = self.wake.pop() {
                self.process_input(conn);
            } else if !self.durables.is_empty() {
                self.write_durably();
            } else if let Some((device, waiting)) = self.commits.pop() {
                self.commit(&device, waiting, None);
            } else if let Some(remote) = self.dirty_remotes.pop() {
                self.flush_remote(remote);
            } else if let Some(conn) = self.dirty.pop() {
                self.flush_conn(conn);
            } else {
                break;
            }
        }
        if let Some(ack) = &self.parted
            && self.conns.iter().all(|(_, conn)| conn.is_peer())
        {
            let _ = ack.send(());
            self.parted = None;
        }
        if let Some(ack) = &self.shutdown
            && self.conns.len() == 0
        {
            let _ = ack.send(());
            self.shutdown = None;
        }
        if !self.leaving.is_empty() {
            let conns = &self.conns;
            self.leaving.retain(|(volume, ack)| {
                let served = conns.iter().any(|(_, conn)| conn.serves(*volume));
                // A control call that waits no longer has closed its end.
                if !served {
                    let _ = ack.send(());
                }
                served
            });
        }
    }

    /// Ends the volume's sessions: what runs is answered, what waits is left to other paths.
    fn leave(&mut self, id: &str, ack: Sender<()>) {
        let Some(&token) = self.volume_by_id.get(id) else {
            let _ = ack.send(());
            return;
        };
        let Some(volume) = self.volumes.get_mut(token) else { return };
        volume.leaving = true;
        let parked: Vec<Token> = volume.parked.iter().copied().collect();
        for conn in self.conns.tokens() {
            if self.conns.get(conn).is_some_and(|conn| conn.serves(token)) {
                self.part(conn);
            }
        }
        for op in parked {
            if let Some(conn) = self.ops.get(op).and_then(|op| op.source.host()) {
                self.close(conn);
            }
        }
        self.leaving.push((token, ack));
    }

    /// Asks for deadlines to be looked at before long.
    /// Hosts' sessions are to end.
    pub fn is_parting(&self) -> bool {
        self.parted.is_some()
    }

    pub fn want_tick(&mut self) {
        self.want_tick_at(self.now + TICK);
    }

    /// Asks for deadlines to be looked at by then.
    pub fn want_tick_at(&mut self, at: Instant) {
        self.next_tick = Some(self.next_tick.map_or(at, |known| known.min(at)));
    }

    fn tick(&mut self) {
        self.now = Instant::now();
        let due = self.next_tick.take();
        let hold = Duration::from_secs_f64(self.shared.config.hold_seconds);
        let mut waiting = self.tick_remotes(hold) | self.tick_copies() | self.tick_parting();
        for token in self.volumes.tokens() {
            let Some(volume) = self.volumes.get_mut(token) else { continue };
            let ops = &self.ops;
            let late: Vec<Token> = volume
                .parked
                .iter()
                .copied()
                .filter(|op| ops.get(*op).is_some_and(|op| self.now - op.begun > hold))
                .collect();
            volume.parked.retain(|op| !late.contains(op));
            waiting |= !volume.parked.is_empty();
            let now = self.now;
            let due = |op: &Token| ops.get(*op).and_then(|op| op.retry).is_some_and(|at| at <= now);
            let mut again = Vec::new();
            if !volume.held {
                again.extend(volume.parked.iter().copied().filter(due));
                volume.parked.retain(|op| !due(op));
            }
            for op in late {
                self.finish(op, Err(Fail::Stale));
            }
            for op in again {
                self.run_op(op);
            }
        }
        for token in self.conns.tokens() {
            let Some(conn) = self.conns.get(token) else { continue };
            if conn.negotiating() {
                if self.now - conn.since > HANDSHAKE {
                    self.close(token);
                } else {
                    waiting = true;
                }
            }
        }
        self.tick_turns();
        self.tick_iscsi();
        self.tick_sweeps();
        self.tick_reserve();
        self.tick_legs(due);
        if waiting {
            self.want_tick_at(self.now + TICK);
        }
    }

    fn listen(&mut self, known: &mut usize) {
        let listeners = self.shared.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        while *known < listeners.len() {
            let token = Token { index: *known as u32, generation: 0 };
            let fd = listeners[*known].0.fd();
            if let Err(error) = self.epoll.add(fd, IN, token.pack(TAG_LISTENER)) {
                eprintln!("vswitchd engine: can't watch a listener: {error}");
            }
            *known += 1;
        }
    }

    /// Accepts what waits, and deals it out to the loops in turn.
    fn accept(&mut self, index: usize) {
        use std::sync::atomic::Ordering;
        let found = {
            let listeners = self.shared.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            listeners.get(index).map(|(listener, kind)| (Arc::clone(listener), *kind))
        };
        let Some((listener, transport)) = found else { return };
        for _ in 0..64 {
            let Ok(stream) = listener.accept() else { return };
            if self.shutdown.is_some() {
                continue;
            }
            let open = self.shared.connections.fetch_add(1, Ordering::Relaxed);
            if open >= self.shared.config.max_connections {
                self.shared.connections.fetch_sub(1, Ordering::Relaxed);
                eprintln!("vswitchd engine: refused a connection: {open} are open already");
                continue;
            }
            self.next_loop = (self.next_loop + 1) % self.shared.mailboxes.len();
            self.shared.mailboxes[self.next_loop].post(Message::Accept(stream, transport));
        }
    }

    fn messages(&mut self) {
        let messages = self.mailbox.take();
        if !self.lending.is_empty() && messages.iter().any(Message::takes_away) {
            self.own_all();
        }
        for message in messages {
            match message {
                Message::Accept(stream, transport) => self.accepted(stream, transport),
                Message::SubDone { op, piece, result } => self.sub_done(op, piece, result),
                Message::Committed(done) => self.committed(done),
                Message::Granted(op) => self.granted.push(op),
                Message::Turn(op, serial) => self.turn_has_come(op, serial),
                Message::Pass { from, op, serial } => {
                    // They may have been let go a moment ago, by a message before this one.
                    self.write_durably();
                    self.shared.mailboxes[from].post(Message::Passed { op, serial });
                }
                Message::Passed { op, serial } => self.turn_passed(op, serial),
                Message::Unblocked(op, serial) => self.unblocked(op, serial),
                Message::Leave(volume, ack) => self.leave(&volume, ack),
                Message::Readmit(volume, ack) => self.readmit(&volume, &ack),
                Message::Quiesce(volume, lost, ack) => self.quiesce(&volume, &lost, ack),
                Message::Sweep(volume) => self.plan_sweep(&volume),
                Message::Adopt(volume, ack) => self.adopt(&volume, &ack),
                Message::Forget(volume, ack) => self.forget(&volume, &ack),
                Message::Barrier(ack) => drop(ack.send(())),
                Message::DropReference(object, ack) => {
                    self.drop_reference(&object);
                    let _ = ack.send(());
                }
                Message::Copy(volume) => self.copy_kick(&volume),
                Message::Observe(volume) => self.tell_hosts(&volume),
                Message::EndPeer { conn, waiter } => self.end_peer(conn, waiter),
                Message::PeerEnded(conn) => self.peer_ended(conn),
                Message::EndIscsi { conn, waiter } => self.end_iscsi(conn, waiter),
                Message::IscsiEnded(conn) => self.iscsi_ended(conn),
                Message::Ask(ask) => self.asked(*ask),
                Message::Want(volume) => self.wanted(&volume),
                Message::Reserved(volume, round) => self.reserved(&volume, round),
                Message::Drained(volume, round) => self.drained(&volume, round),
                Message::Metrics(ack) => drop(ack.send(self.metrics())),
                Message::Take(handed) => self.taken(*handed),
                Message::Part(basket, ack) => {
                    self.parted = Some(ack);
                    self.basket = basket;
                    for conn in self.conns.tokens() {
                        if self.conns.get(conn).is_some_and(Conn::is_peer) {
                            continue;
                        }
                        // What is handed over takes along what it has asked for.
                        if self.basket.is_some() { self.end(conn) } else { self.part(conn) }
                    }
                }
                Message::Shutdown(ack) => {
                    self.shutdown = Some(ack);
                    for conn in self.conns.tokens() {
                        self.end(conn);
                    }
                }
                Message::Exit => {
                    self.disconnect_remotes();
                    self.exit = true;
                }
            }
        }
    }

    fn metrics(&mut self) -> LoopMetrics {
        let mut metrics = LoopMetrics {
            protocol_errors: self.protocol_errors,
            logins_failed: self.logins_failed.clone(),
            fencing_rejections: self.fencing_rejections,
            ..LoopMetrics::default()
        };
        for (_, volume) in self.volumes.iter() {
            let mut counters = volume.counters.clone();
            counters.inflight = volume.inflight + volume.parked.len() as u64;
            metrics.volumes.insert(volume.volume.id.clone(), counters);
        }
        for (_, conn) in self.conns.iter() {
            *metrics.sessions.entry(conn.transport).or_default() += 1;
        }
        metrics.devices = self.devices.clone();
        self.remote_metrics(&mut metrics);
        metrics
    }
}
