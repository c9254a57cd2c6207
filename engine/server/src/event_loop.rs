//! One event loop: its sockets, its operations, its share of every volume.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use vs_io::{Device, Kind as DeviceKind, Residency, T1Table};
use vs_tree::Piece;
use vs_wire::nbd::handshake::Handshake;

use crate::active::{Active, Volume};
use crate::buffers::Buffers;
use crate::config::Config;
use crate::conn::{Conn, Input, Protocol};
use crate::mailbox::{Mailbox, Message};
use crate::metrics::{DeviceTable, LoopMetrics, Tally, Transport, VolumeCounters};
use crate::op::{Fail, Op};
use crate::out::{Failed, Out, Room};
use crate::peer_server::{PeerSession, Registry};
use crate::remote::{Remote, RemoteKey};
use crate::slab::{Slab, Token};
use crate::socket::{Epoll, IN, Listener, OUT, Stream};
use crate::spin::Spin;

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
    pub connections: std::sync::atomic::AtomicUsize,
    /// What of file devices may be kept in memory; None: nothing.
    pub residency: Option<Arc<Residency>>,
    /// `Device::slot` of the next device.
    pub next_slot: std::sync::atomic::AtomicUsize,
}

impl Shared {
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
}

pub struct Loop {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub mailbox: Mailbox,
    pub epoll: Epoll,
    pub conns: Slab<Conn>,
    pub ops: Slab<Op>,
    pub remotes: Slab<Remote>,
    pub remote_by_key: HashMap<RemoteKey, Token>,
    pub volumes: Slab<LoopVolume>,
    pub volume_by_id: HashMap<String, Token>,
    pub devices: DeviceTable,
    pub buffers: Buffers,
    /// Input buffers that no connection uses.
    pub spare: Vec<Vec<u8>>,
    /// Connections that have resident pages still to send.
    lending: Vec<Token>,
    /// FUA writes and flushes that wait for a commit to be asked for, by device.
    /// Reads and writes of the batch that is being parsed.
    pub tally: Tally,
    /// Scratch of `inline`: addresses and lengths of resident memory.
    pub found: Vec<(usize, usize)>,
    pub commits: Vec<(Arc<Device>, Vec<(Token, u32)>)>,
    /// Scratch for `Out::flush`.
    pub room: Room,
    /// Connections whose buffered input may go on.
    pub wake: Vec<Token>,
    pub dirty: Vec<Token>,
    pub dirty_remotes: Vec<Token>,
    /// Closed peer sessions whose operations still run, with how many.
    pub orphans: HashMap<Token, (u32, PeerSession)>,
    pub granted: Vec<Token>,
    pub pieces: Vec<Piece>,
    pub now: Instant,
    pub spread: u64,
    pub protocol_errors: u64,
    pub fencing_rejections: u64,
    next_tick: Option<Instant>,
    next_loop: usize,
    shutdown: Option<Sender<()>>,
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
            remote_by_key: HashMap::new(),
            volumes: Slab::default(),
            volume_by_id: HashMap::new(),
            devices: DeviceTable::default(),
            buffers: Buffers::default(),
            spare: Vec::new(),
            lending: Vec::new(),
            tally: Tally::default(),
            found: Vec::new(),
            commits: Vec::new(),
            room: Room::default(),
            wake: Vec::new(),
            dirty: Vec::new(),
            dirty_remotes: Vec::new(),
            orphans: HashMap::new(),
            granted: Vec::new(),
            pieces: Vec::new(),
            now: Instant::now(),
            spread: 0,
            protocol_errors: 0,
            fencing_rejections: 0,
            next_tick: None,
            next_loop: index,
            shutdown: None,
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
            self.now = Instant::now();
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
            } else if let Some((device, waiting)) = self.commits.pop() {
                self.commit(&device, waiting);
            } else if let Some(remote) = self.dirty_remotes.pop() {
                self.flush_remote(remote);
            } else if let Some(conn) = self.dirty.pop() {
                self.flush_conn(conn);
            } else {
                break;
            }
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
                self.end(conn);
            }
        }
        for op in parked {
            if let Some(crate::op::Source::Nbd { conn, .. }) = self.ops.get(op).map(|op| &op.source)
            {
                let conn = *conn;
                self.close(conn);
            }
        }
        self.leaving.push((token, ack));
    }

    /// Asks for deadlines to be looked at before long.
    pub fn want_tick(&mut self) {
        if self.next_tick.is_none() {
            self.next_tick = Some(self.now + TICK);
        }
    }

    fn tick(&mut self) {
        self.now = Instant::now();
        self.next_tick = None;
        let hold = Duration::from_secs_f64(self.shared.config.hold_seconds);
        let mut waiting = self.tick_remotes(hold) | self.tick_copies();
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
        if waiting {
            self.next_tick = Some(self.now + TICK);
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

    /// Takes the bytes of all resident pages that connections have still to send. To be called
    /// before anything that may give the pages to somebody else: a fence, a swap, the removal of
    /// a device. All of these come as messages.
    fn own_all(&mut self) {
        for token in std::mem::take(&mut self.lending) {
            let Some(conn) = self.conns.get_mut(token) else { continue };
            if let Err(address) = conn.out.own() {
                self.faulted(address);
                self.close(token);
            }
        }
    }

    /// A resident page could not be had.
    fn faulted(&self, address: *const u8) {
        for device in self.shared.devices().values() {
            if let DeviceKind::File(file) = &device.kind {
                file.faulted(address);
            }
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
                Message::Leave(volume, ack) => self.leave(&volume, ack),
                Message::Quiesce(volume, ack) => self.quiesce(&volume, ack),
                Message::Adopt(volume, ack) => self.adopt(&volume, &ack),
                Message::Forget(volume, ack) => self.forget(&volume, &ack),
                Message::Barrier(ack) => drop(ack.send(())),
                Message::DropReference(object, ack) => {
                    self.drop_reference(&object);
                    let _ = ack.send(());
                }
                Message::Copy(volume) => self.copy_kick(&volume),
                Message::EndPeer { conn, waiter } => self.end_peer(conn, waiter),
                Message::PeerEnded(conn) => self.peer_ended(conn),
                Message::Metrics(ack) => drop(ack.send(self.metrics())),
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

    fn accepted(&mut self, stream: Stream, transport: Transport) {
        let mut out = Out::default();
        let protocol = if transport == Transport::Peer {
            Protocol::Peer(PeerSession::default())
        } else {
            let unavailable = vs_wire::nbd::handshake::Tls::Unavailable;
            let handshake = out.append(|out| Handshake::new(unavailable, out));
            Protocol::NbdHandshake(Box::new(handshake))
        };
        let fd = stream.fd();
        let conn = Conn {
            stream,
            transport,
            protocol,
            input: Input::default(),
            out,
            events: IN,
            inflight: 0,
            inflight_bytes: 0,
            closing: self.shutdown.is_some(),
            stalled: false,
            dirty: false,
            since: self.now,
        };
        let token = self.conns.insert(conn);
        if self.epoll.add(fd, IN, token.pack(TAG_CONN)).is_err() {
            self.close(token);
            return;
        }
        self.mark(token);
        self.want_tick();
    }

    /// Has a connection's output sent before the loop sleeps.
    pub fn mark(&mut self, token: Token) {
        if let Some(conn) = self.conns.get_mut(token)
            && !conn.dirty
        {
            conn.dirty = true;
            self.dirty.push(token);
        }
    }

    fn conn_event(&mut self, token: Token, bits: u32) {
        if bits & OUT != 0 {
            self.mark(token);
        }
        if bits & !OUT != 0 {
            self.receive(token);
        }
    }

    fn receive(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        if conn.closing {
            // Only an error or the other side's end brings us here: nobody wants the answers.
            if conn.stream.recv(&mut [0; 64]).is_ok_and(|count| count > 0) {
                return;
            }
            return self.close(token);
        }
        let target: &mut [u8] = match &mut conn.protocol {
            Protocol::Nbd(session) if session.incoming.is_some() => {
                session.incoming.as_mut().map_or(&mut [][..], |i| &mut i.data[i.filled..])
            }
            Protocol::Peer(session) if session.incoming.is_some() => {
                session.incoming.as_mut().map_or(&mut [][..], |i| &mut i.data[i.filled..])
            }
            _ => conn.input.room(&mut self.spare),
        };
        match conn.stream.recv(target) {
            Ok(0) => self.close(token),
            Ok(count) => {
                match &mut conn.protocol {
                    Protocol::Nbd(session) if session.incoming.is_some() => {
                        session.incoming.iter_mut().for_each(|i| i.filled += count);
                    }
                    Protocol::Peer(session) if session.incoming.is_some() => {
                        session.incoming.iter_mut().for_each(|i| i.filled += count);
                    }
                    _ => conn.input.end += count,
                }
                self.process_input(token);
                if let Some(conn) = self.conns.get_mut(token) {
                    conn.input.release(&mut self.spare);
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                conn.input.release(&mut self.spare);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => self.close(token),
        }
    }

    fn process_input(&mut self, token: Token) {
        if !self.may_read(token) {
            return;
        }
        let Some(conn) = self.conns.get(token) else { return };
        match conn.protocol {
            Protocol::NbdHandshake(_) => self.nbd_negotiate(token),
            Protocol::Nbd(_) => self.nbd_input(token),
            Protocol::Peer(_) => self.peer_input(token),
        }
        self.mark(token);
    }

    /// False if the connection takes no more requests, for now or for good.
    pub fn may_read(&mut self, token: Token) -> bool {
        let Some(conn) = self.conns.get(token) else { return false };
        let full = self.is_full(conn);
        let Some(conn) = self.conns.get_mut(token) else { return false };
        // `flush_conn` goes on with it: the bytes are here already, so no event will tell.
        conn.stalled |= full;
        !conn.closing && !full
    }

    /// True if the connection has to wait until replies have left.
    fn is_full(&self, conn: &Conn) -> bool {
        let bound = self.shared.config.max_inflight_bytes_per_connection;
        conn.inflight_bytes + conn.out.len() as u64 > bound || conn.inflight > 4096
    }

    fn flush_conn(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        conn.dirty = false;
        let sent = match conn.out.flush(&conn.stream, &mut self.room) {
            Ok(sent) => sent,
            Err(Failed::Socket) => return self.close(token),
            Err(Failed::Fault(address)) => {
                self.faulted(address);
                return self.close(token);
            }
        };
        conn.out.recycle(&mut self.buffers);
        if conn.out.is_lent() {
            self.lending.push(token);
        }
        if conn.closing && sent && conn.inflight == 0 {
            return self.close(token);
        }
        let Some(conn) = self.conns.get(token) else { return };
        let full = self.is_full(conn);
        let wanted = if conn.closing || full { 0 } else { IN } | if sent { 0 } else { OUT };
        let Some(conn) = self.conns.get_mut(token) else { return };
        let resume = conn.stalled && !full;
        conn.stalled &= !resume;
        if conn.events != wanted {
            conn.events = wanted;
            let fd = conn.stream.fd();
            if self.epoll.modify(fd, wanted, token.pack(TAG_CONN)).is_err() {
                return self.close(token);
            }
        }
        if resume {
            self.wake.push(token);
        }
    }

    /// Stops reading; closes when all is answered.
    pub fn end(&mut self, token: Token) {
        if let Some(conn) = self.conns.get_mut(token) {
            conn.closing = true;
            self.mark(token);
        }
    }

    /// Closes at once. Operations in flight go on, their replies are dropped.
    pub fn close(&mut self, token: Token) {
        let Some(conn) = self.conns.remove(token) else { return };
        self.shared.connections.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        self.epoll.remove(conn.stream.fd());
        if let Protocol::Peer(session) = conn.protocol {
            self.peer_closed(token, session, conn.inflight);
        }
        if conn.inflight > 0 {
            self.cancel_ops(token);
        }
    }

    fn metrics(&mut self) -> LoopMetrics {
        let mut metrics = LoopMetrics {
            protocol_errors: self.protocol_errors,
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
