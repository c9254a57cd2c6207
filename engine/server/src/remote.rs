//! The client's side: sessions to other SPs, and to NBD servers that are devices. Both
//! pipeline requests by id, connect when first needed, and after a loss connect again and
//! send again, in its order, what was not answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use vs_io::{T1Object, planted};
use vs_wire::change::Change;
use vs_wire::nbd::client::{self, Export};
use vs_wire::nbd::command;
use vs_wire::nbd::transmission::{Request as NbdRequest, encode_request};
use vs_wire::nbd::uri::{Address, NbdUri};
use vs_wire::peer::{self, Hello, Reply, Welcome};

use crate::conn::Input;
use crate::event_loop::{Loop, TAG_REMOTE};
use crate::inflight::InFlight;
use crate::metrics::{Histogram, LoopMetrics};
use crate::op::{Fail, Kind, Scope};
use crate::out::Out;
use crate::slab::Token;
use crate::socket::{IN, OUT, Stream};

const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Requests that are worth a send of their own.
const ENOUGH: u32 = 8;
/// Longest wait for a connection and its handshake.
const CONNECT: Duration = Duration::from_secs(5);

/// Whom a session reaches. What an owner does for others needs what homes do, never the other
/// way: so that neither has to wait for room that the other takes, each has its own session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RemoteKey {
    /// Requests on T1 objects, at their home.
    Home(Arc<str>),
    /// Requests on volumes, at their owner.
    Owner(Arc<str>),
    /// By device id.
    Nbd(Arc<str>),
}

/// What a request acts on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    T1(Arc<str>),
    Volume(Arc<str>),
    /// All of an NBD device.
    Device,
}

/// A part of an operation that goes to a remote.
#[derive(Clone, Copy, Debug)]
pub struct Submit {
    pub op: Token,
    /// The operation's own kind, or a flush that follows it.
    pub kind: Kind,
    pub leaf: u32,
    pub epoch: u64,
    pub offset: u64,
    pub length: u64,
    pub at: u64,
    /// A write to one of several legs.
    pub intent: bool,
}

/// A request that is not answered yet. Its payload is in the operation.
pub(crate) struct Sent {
    pub(crate) object: Object,
    pub(crate) to: Submit,
    piece: u32,
    since: Instant,
    /// Its fence has to wait for the answer; where it is counted there.
    t1: Option<(Arc<T1Object>, usize)>,
    /// It has been on its way, so that it may have been carried out.
    pub(crate) tried: bool,
}

pub(crate) enum State {
    Idle {
        retry: Instant,
    },
    Connecting,
    /// Waiting for WELCOME, or in NBD's handshake.
    Greeting(Option<Box<client::Handshake>>),
    Ready,
}

/// A reply's payload on its way in.
struct Receiving {
    id: u64,
    left: usize,
    got: usize,
    /// Block status and what is told are gathered; data goes straight to the operation.
    status: Option<Vec<u8>>,
}

/// One session, kept for as long as some tree may use it.
pub struct Remote {
    pub(crate) key: RemoteKey,
    address: String,
    pub(crate) state: State,
    stream: Option<Stream>,
    input: Input,
    pub(crate) out: Out,
    receiving: Option<Receiving>,
    pub(crate) sent: InFlight<Sent>,
    pub(crate) handles: FxHashMap<Object, u32>,
    pub(crate) next_handle: u32,
    attempt: u64,
    backoff: Duration,
    since: Instant,
    export: Export,
    events: u32,
    dirty: bool,
    /// Requests since the last send.
    unsent: u32,
    round_trip: Histogram,
    failed_before: bool,
    /// By how many milliseconds its clock is ahead of this process's, at least; as of when.
    pub(crate) ahead: (u32, Instant),
}

impl Loop {
    /// Sends a part of an operation to a remote, now or when it is there.
    pub fn send_remote(
        &mut self,
        key: RemoteKey,
        address: &str,
        object: Object,
        t1: Option<Arc<T1Object>>,
        to: Submit,
    ) {
        let token = self.remote(key, address);
        let now = self.now;
        let Some(remote) = self.remotes.get_mut(token) else { return };
        let Some(op) = self.ops.get_mut(to.op) else { return };
        let splits = object == Object::Device && to.kind != Kind::Flush;
        let step = if splits { u64::from(remote.export.max_block.max(4096)) } else { u64::MAX };
        let (whole, mut done) = (to.length, 0);
        loop {
            let length = step.min(whole - done);
            op.pending += 1;
            let piece = op.part(to.at + done, to.leaf);
            let counted = t1.as_ref().map(|t1| (Arc::clone(t1), t1.begin()));
            let to = Submit { offset: to.offset + done, length, at: to.at + done, ..to };
            let object = object.clone();
            let sent = Sent { object, to, piece, since: now, t1: counted, tried: false };
            let id = remote.sent.insert(sent);
            if matches!(remote.state, State::Ready) {
                remote.encode(id, op, &self.shared);
            }
            done += length;
            if done == whole {
                break;
            }
        }
        remote.unsent += 1;
        if remote.unsent >= ENOUGH
            && matches!(remote.state, State::Ready)
            && remote.events & OUT == 0
        {
            // It has something to do while this loop goes on.
            self.flush_remote(token);
        } else {
            self.mark_remote(token);
        }
        self.want_tick();
    }

    fn remote(&mut self, key: RemoteKey, address: &str) -> Token {
        if let Some(token) = self.remote_by_key.get(&key)
            && let Some(remote) = self.remotes.get_mut(*token)
        {
            if remote.address != address {
                address.clone_into(&mut remote.address);
            }
            return *token;
        }
        let remote = Remote {
            key: key.clone(),
            address: address.to_owned(),
            state: State::Idle { retry: self.now },
            stream: None,
            input: Input::default(),
            out: Out::default(),
            receiving: None,
            sent: InFlight::default(),
            handles: FxHashMap::default(),
            next_handle: 0,
            attempt: 0,
            backoff: FIRST_RETRY,
            since: self.now,
            export: Export { max_block: 4 << 20, min_block: 1, ..Export::default() },
            events: 0,
            dirty: false,
            unsent: 0,
            round_trip: Histogram::default(),
            failed_before: false,
            ahead: (0, self.now),
        };
        let token = self.remotes.insert(remote);
        self.remote_by_key.insert(key, token);
        self.connect_remote(token);
        token
    }

    fn connect_remote(&mut self, token: Token) {
        let config = &self.shared.config;
        let (cluster, client) = (config.cluster_id.clone(), config.sp.clone());
        let incarnation = config.incarnation.clone();
        let Some(remote) = self.remotes.get_mut(token) else { return };
        let stream = match &remote.key {
            RemoteKey::Home(_) | RemoteKey::Owner(_) => Stream::connect_tcp(&remote.address),
            RemoteKey::Nbd(_) => match NbdUri::parse(&remote.address).map(|uri| uri.address) {
                Ok(Address::Tcp(address)) => Stream::connect_tcp(&address),
                Ok(Address::Unix(path)) => Stream::connect_unix(&path),
                Err(_) => Err(std::io::Error::from_raw_os_error(libc::EINVAL)),
            },
        };
        remote.since = self.now;
        let Ok(stream) = stream else { return self.lost(token, "can't connect") };
        remote.attempt += 1;
        remote.handles.clear();
        if let RemoteKey::Home(server) | RemoteKey::Owner(server) = &remote.key {
            let slot = self.index as u32 * 2 + u32::from(matches!(remote.key, RemoteKey::Owner(_)));
            let attempt = remote.attempt;
            let server = server.to_string();
            let hello = Hello { cluster, client, incarnation, slot, attempt, server };
            remote.out.append(|out| hello.encode(out));
        }
        remote.events = OUT | IN;
        let fd = stream.fd();
        remote.stream = Some(stream);
        remote.state = State::Connecting;
        if self.epoll.add(fd, OUT | IN, token.pack(TAG_REMOTE)).is_err() {
            self.lost(token, "can't be watched");
        }
    }

    pub fn mark_remote(&mut self, token: Token) {
        if let Some(remote) = self.remotes.get_mut(token)
            && !remote.dirty
            && !matches!(remote.state, State::Idle { .. } | State::Connecting)
        {
            remote.dirty = true;
            self.dirty_remotes.push(token);
        }
    }

    pub fn flush_remote(&mut self, token: Token) {
        let Some(remote) = self.remotes.get_mut(token) else { return };
        remote.dirty = false;
        remote.unsent = 0;
        let Some(stream) = &remote.stream else { return };
        let Ok(sent) = remote.out.flush(stream, &mut self.room) else {
            return self.lost(token, "was cut off");
        };
        let wanted = if sent { IN } else { IN | OUT };
        if remote.events != wanted {
            remote.events = wanted;
            if self.epoll.modify(stream.fd(), wanted, token.pack(TAG_REMOTE)).is_err() {
                self.lost(token, "can't be watched");
            }
        }
    }

    pub fn remote_event(&mut self, token: Token, bits: u32) {
        let Some(remote) = self.remotes.get_mut(token) else { return };
        let Some(stream) = &remote.stream else { return };
        if matches!(remote.state, State::Connecting) {
            if let Err(error) = stream.connect_error() {
                return self.lost(token, &error.to_string());
            }
            if bits & OUT == 0 {
                return;
            }
            let handshake = match &remote.key {
                RemoteKey::Home(_) | RemoteKey::Owner(_) => None,
                RemoteKey::Nbd(_) => NbdUri::parse(&remote.address)
                    .ok()
                    .map(|uri| Box::new(client::Handshake::new(&uri.export))),
            };
            remote.state = State::Greeting(handshake);
        }
        if bits & !OUT != 0 {
            let Some(stream) = &remote.stream else { return };
            match stream.recv(remote.input.room(&mut self.spare)) {
                Ok(0) => return self.lost(token, "closed the connection"),
                Ok(count) => {
                    remote.input.end += count;
                    if let Err(why) = self.remote_input(token) {
                        return self.lost(token, &why);
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return self.lost(token, &error.to_string()),
            }
        }
        self.mark_remote(token);
    }

    fn remote_input(&mut self, token: Token) -> Result<(), String> {
        loop {
            let Some(remote) = self.remotes.get_mut(token) else { return Ok(()) };
            match &mut remote.state {
                State::Idle { .. } | State::Connecting => return Ok(()),
                State::Greeting(None) => {
                    match Welcome::decode(remote.input.bytes()).map_err(|e| e.to_string())? {
                        None => return Ok(()),
                        Some((Welcome::Ok, clock)) => {
                            remote.input.consume(peer::WELCOME_LEN);
                            remote.learn(clock, &self.shared);
                        }
                        Some((other, _)) => return Err(format!("refused this SP: {other:?}")),
                    }
                    self.remote_ready(token);
                }
                State::Greeting(Some(handshake)) => {
                    let input = &remote.input;
                    let fed = remote.out.append(|out| handshake.feed(input.bytes(), out));
                    let (used, outcome) = fed.map_err(|e| e.to_string())?;
                    remote.input.consume(used);
                    match outcome {
                        client::Outcome::Done(export) => {
                            remote.export = export;
                            self.remote_ready(token);
                        }
                        client::Outcome::More if used == 0 => return Ok(()),
                        client::Outcome::More => {}
                    }
                }
                State::Ready => {
                    if !self.remote_reply(token)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The handshake is done: sends what waits, oldest first.
    fn remote_ready(&mut self, token: Token) {
        let Some(remote) = self.remotes.get_mut(token) else { return };
        remote.state = State::Ready;
        remote.backoff = FIRST_RETRY;
        if std::mem::take(&mut remote.failed_before) {
            eprintln!("vswitchd engine: {} is back", remote.name());
        }
        for id in remote.sent.ids(|_| true) {
            let Some(remote) = self.remotes.get_mut(token) else { return };
            let waits = |sent: &&Sent| {
                self.ops.get(sent.to.op).is_some_and(|op| op.expects(sent.piece).is_some())
            };
            let sent = remote.sent.get(id).filter(waits);
            if planted("not_sent_again") && remote.attempt > 1 {
                self.remote_answered(token, id, None);
                continue;
            }
            // Begun anew it would meet what it has done itself.
            let once = Kind::Change(Change::CompareWrite);
            let lost = sent.is_some_and(|sent| sent.tried && sent.to.kind == once);
            let Some(op) = sent.and_then(|sent| self.ops.get(sent.to.op)).filter(|_| !lost) else {
                // It was given up.
                self.remote_answered(
                    token,
                    id,
                    Some(if lost { Fail::Unsure } else { Fail::NotFound }),
                );
                continue;
            };
            remote.encode(id, op, &self.shared);
        }
    }

    /// Takes one reply, or a part of its payload; false when there is no more input.
    fn remote_reply(&mut self, token: Token) -> Result<bool, String> {
        let Some(remote) = self.remotes.get_mut(token) else { return Ok(false) };
        if let Some(receiving) = &mut remote.receiving {
            let take = receiving.left.min(remote.input.bytes().len());
            if take == 0 && receiving.left > 0 {
                return Ok(false);
            }
            let bytes = &remote.input.bytes()[..take];
            if let Some(status) = &mut receiving.status {
                status.extend_from_slice(bytes);
            } else if let Some(sent) = remote.sent.get(receiving.id)
                && let Some(op) = self.ops.get_mut(sent.to.op)
                && op.expects(sent.piece).is_some()
            {
                let at = sent.to.at as usize + receiving.got;
                op.data[at..at + take].copy_from_slice(bytes);
            }
            remote.input.consume(take);
            receiving.left -= take;
            receiving.got += take;
            if receiving.left > 0 {
                return Ok(false);
            }
            let id = receiving.id;
            let status = receiving.status.take();
            remote.receiving = None;
            if let Some(status) = status {
                if let Some(sent) = remote.sent.get(id)
                    && sent.to.kind.tells()
                    && let Some(op) = self.ops.get_mut(sent.to.op)
                    && let Some(part) = op.expects(sent.piece)
                {
                    op.answers.push((part.leaf, status));
                    self.remote_answered(token, id, None);
                    return Ok(true);
                }
                if let Some(sent) = remote.sent.get(id)
                    && let Some(op) = self.ops.get_mut(sent.to.op)
                    && op.expects(sent.piece).is_some()
                    && let (Kind::Change(_), Some(at)) = (sent.to.kind, status.first_chunk())
                {
                    op.differs = Some(u32::from_le_bytes(*at));
                }
                let word = |at: usize| {
                    status.get(at..at + 8).map_or(0, |b| {
                        u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
                    })
                };
                let runs = (0..status.len() / 16).map(|n| (word(n * 16), word(n * 16 + 8) as u32));
                let runs: Vec<(u64, u32)> = runs.collect();
                if let Some(sent) = remote.sent.get(id)
                    && let Some(op) = self.ops.get_mut(sent.to.op)
                    && op.expects(sent.piece).is_some()
                {
                    op.status.push((sent.to.at, runs));
                }
            }
            self.remote_answered(token, id, None);
            return Ok(true);
        }
        let (id, error, payload) = match remote.key {
            RemoteKey::Home(_) | RemoteKey::Owner(_) => {
                let reply = Reply::decode(remote.input.bytes()).map_err(|e| e.to_string())?;
                let Some(reply) = reply else { return Ok(false) };
                remote.input.consume(peer::REPLY_LEN);
                remote.learn(reply.clock, &self.shared);
                let differs = reply.status == peer::Status::Differs;
                if differs && reply.payload as usize != peer::DIFFERS_LEN {
                    return Err("answered a comparison without what differs".into());
                }
                (reply.id, Fail::from_status(reply.status), reply.payload as usize)
            }
            RemoteKey::Nbd(_) => {
                let reply =
                    client::decode_reply(remote.input.bytes()).map_err(|e| e.to_string())?;
                let Some((errno, id)) = reply else { return Ok(false) };
                remote.input.consume(16);
                let kind = remote.sent.get(id).map(|sent| sent.to);
                let reads = kind.is_some_and(|to| to.kind == Kind::Read);
                let payload = if reads && errno == 0 { kind.map_or(0, |to| to.length) } else { 0 };
                (id, (errno != 0).then(|| Fail::from_errno(errno)), payload as usize)
            }
        };
        let Some(sent) = remote.sent.get(id) else {
            return Err("answered what was not asked".into());
        };
        let kind = sent.to.kind;
        if error.is_some() || payload == 0 {
            if error.is_none() && kind == Kind::Read && sent.to.length > 0 {
                return Err("answered a read without data".into());
            }
            self.remote_answered(token, id, error);
            return Ok(true);
        }
        if kind == Kind::Read && payload as u64 != sent.to.length {
            return Err("answered a read with another length".into());
        }
        let gathers = matches!(kind, Kind::Status | Kind::Dirty | Kind::Change(_)) || kind.tells();
        let status = gathers.then(Vec::new);
        remote.receiving = Some(Receiving { id, left: payload, got: 0, status });
        Ok(true)
    }

    pub(crate) fn remote_answered(&mut self, token: Token, id: u64, error: Option<Fail>) {
        let now = self.now;
        let Some(remote) = self.remotes.get_mut(token) else { return };
        let Some(sent) = remote.sent.remove(id) else { return };
        remote.round_trip.add((now - sent.since).as_secs_f64(), 1);
        if let Some((t1, side)) = &sent.t1 {
            t1.end(*side);
        }
        let result = error.map_or(Ok(crate::mailbox::SubData::None), Err);
        self.sub_done(sent.to.op, sent.piece, result);
    }

    /// The connection is gone; what waits is sent again over the next.
    fn lost(&mut self, token: Token, why: &str) {
        let now = self.now;
        let Some(remote) = self.remotes.get_mut(token) else { return };
        if !remote.failed_before {
            eprintln!("vswitchd engine: {}: {why}", remote.name());
            remote.failed_before = true;
        }
        if let Some(stream) = remote.stream.take() {
            self.epoll.remove(stream.fd());
            if let (RemoteKey::Nbd(device), State::Ready) = (&remote.key, &remote.state) {
                // Its server may have ended, and with it what was not flushed.
                self.shared.t1s.doubt(device);
            }
        }
        remote.input = Input::default();
        remote.out.clear();
        remote.receiving = None;
        remote.handles.clear();
        remote.state = State::Idle { retry: now + remote.backoff };
        remote.backoff = (remote.backoff * 2).min(LAST_RETRY);
        // A swap that waits must not wait for this remote.
        let ops: Vec<Token> = remote.sent.values().map(|sent| sent.to.op).collect();
        let ops = ops.iter().filter_map(|op| self.ops.get(*op));
        let volumes = ops.filter(|op| !matches!(op.scope, Scope::T1(_))).map(|op| op.volume);
        let held: Vec<Token> =
            volumes.filter(|volume| self.volumes.get(*volume).is_some_and(|v| v.held)).collect();
        for volume in held {
            self.take_back(volume);
        }
        self.want_tick();
    }

    /// Reconnects and gives up where it is time to; true if something still waits.
    pub fn tick_remotes(&mut self, hold: Duration) -> bool {
        let now = self.now;
        let mut waiting = false;
        for token in self.remotes.tokens() {
            let Some(remote) = self.remotes.get_mut(token) else { continue };
            let late = remote.sent.ids(|sent| now - sent.since > hold);
            waiting |= !remote.sent.is_empty();
            match remote.state {
                // Not answered for so long: another connection may do better, and what this
                // one still has under way ends with it.
                State::Ready if !late.is_empty() => self.lost(token, "does not answer"),
                State::Connecting | State::Greeting(_) if now - remote.since > CONNECT => {
                    self.lost(token, "does not answer");
                }
                State::Connecting | State::Greeting(_) => waiting = true,
                State::Idle { retry } if !remote.sent.is_empty() && retry <= now => {
                    self.connect_remote(token);
                }
                State::Idle { .. } | State::Ready => {}
            }
            for id in late {
                self.remote_answered(token, id, Some(Fail::Io));
            }
        }
        waiting
    }

    /// Says goodbye to NBD servers: nbdkit 1.32 aborts when a client just drops.
    pub fn disconnect_remotes(&mut self) {
        for token in self.remotes.tokens() {
            if let Some(remote) = self.remotes.get_mut(token)
                && matches!((&remote.key, &remote.state), (RemoteKey::Nbd(_), State::Ready))
            {
                let request = NbdRequest {
                    flags: 0,
                    command: command::DISC,
                    cookie: 0,
                    offset: 0,
                    length: 0,
                };
                remote.out.append(|out| encode_request(&request, false, out));
                self.flush_remote(token);
            }
        }
    }

    pub fn remote_metrics(&self, metrics: &mut LoopMetrics) {
        for (_, remote) in self.remotes.iter() {
            if let RemoteKey::Home(sp) | RemoteKey::Owner(sp) = &remote.key {
                let peer = metrics.peers.entry(sp.to_string()).or_default();
                peer.0 |= matches!(remote.state, State::Ready);
                peer.1.merge(&remote.round_trip);
            }
        }
    }
}

impl Remote {
    fn name(&self) -> String {
        match &self.key {
            RemoteKey::Home(sp) => format!("peer {sp} at {}", self.address),
            RemoteKey::Owner(sp) => format!("owner {sp} at {}", self.address),
            RemoteKey::Nbd(id) => format!("device {id} at {}", self.address),
        }
    }
}
