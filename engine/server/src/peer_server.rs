//! The home's and the owner's side of the peer protocol.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use vs_io::{T1Object, planted};
use vs_wire::change::Change;
use vs_wire::peer::{self, Hello, REQUEST_LEN, Reply, Request, Status, Welcome};

use crate::buffers::Buffer;
use crate::conn::{Header, Input, Large, Protocol, SMALL};
use crate::event_loop::Loop;
use crate::inline::Inline;
use crate::mailbox::Message;
use crate::metrics::{OpName, Transport};
use crate::op::{Fail, Kind, Op, Scope, Source};
use crate::slab::Token;

/// Most objects that one session may open.
const MAX_HANDLES: usize = 65_536;

/// A session that has not ended: it is open, or something of it is still under way.
#[derive(Clone, Debug)]
pub struct Registered {
    client: String,
    slot: u32,
    incarnation: String,
    attempt: u64,
    loop_index: usize,
    conn: Token,
}

/// All sessions of all clients: a few for each SP.
pub type Registry = Vec<Registered>;

/// What a handle stands for.
enum Handle {
    T1 { id: String, version: u64, object: Option<Arc<T1Object>> },
    Volume(String),
}

#[derive(Default)]
enum State {
    #[default]
    Hello,
    /// Older sessions of the same client have to end first: so many are left.
    Waiting(usize),
    Ready,
}

/// One connection of another SP.
#[derive(Default)]
pub struct PeerSession {
    state: State,
    handles: FxHashMap<u32, Handle>,
    /// Loops whose newer session waits for this one's end.
    waiters: Vec<(usize, Token)>,
}

impl PeerSession {
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }
}

impl Loop {
    pub fn peer_input(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Peer(session) = &mut conn.protocol else { return };
        match session.state {
            State::Hello => return self.peer_hello(token),
            State::Waiting(_) => return,
            State::Ready => {}
        }
        if let Some(Large { header: Header::Peer(request), data, .. }) = conn.take_large() {
            self.peer_request(token, request, &data);
            self.buffers.give(data);
        }
        let Some(conn) = self.conns.get_mut(token) else { return };
        let mut input = std::mem::take(&mut conn.input);
        while self.peer_step(token, &mut input) {}
        if let Some(conn) = self.conns.get_mut(token) {
            conn.input = input;
        }
    }

    fn peer_hello(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let hello = match Hello::decode(conn.input.bytes()) {
            Ok(Some((hello, used))) => {
                conn.input.consume(used);
                hello
            }
            Ok(None) => return,
            Err(_) => {
                self.protocol_errors += 1;
                return self.close(token);
            }
        };
        let config = &self.shared.config;
        let refusal = if hello.cluster != config.cluster_id {
            Some(Welcome::WrongCluster)
        } else if hello.server != config.sp {
            Some(Welcome::WrongServer)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let clock = self.shared.millis(self.now);
            conn.out.append(|out| refusal.encode(clock, out));
            self.protocol_errors += 1;
            return self.end(token);
        }
        let older = {
            let mut registry = self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner);
            let same = |known: &&Registered| {
                let slot = known.slot == hello.slot;
                known.client == hello.client && known.incarnation == hello.incarnation && slot
            };
            if registry.iter().filter(same).any(|known| known.attempt > hello.attempt) {
                // This connection was overtaken by a later one of the same loop.
                drop(registry);
                return self.close(token);
            }
            // They stay registered until nothing of them is under way, so that each session
            // that comes meanwhile waits for all of them.
            let older = |known: &&Registered| {
                let old = known.slot == hello.slot || known.incarnation != hello.incarnation;
                known.client == hello.client && old
            };
            let older: Vec<(usize, Token)> =
                registry.iter().filter(older).map(|k| (k.loop_index, k.conn)).collect();
            let Hello { client, slot, incarnation, attempt, .. } = hello;
            let (loop_index, conn) = (self.index, token);
            registry.push(Registered { client, slot, incarnation, attempt, loop_index, conn });
            older
        };
        let Protocol::Peer(session) = &mut conn.protocol else { return };
        session.state = State::Waiting(older.len() + 1);
        for (index, old) in older {
            let message = Message::EndPeer { conn: old, waiter: (self.index, token) };
            self.shared.mailboxes[index].post(message);
        }
        self.peer_ended(token);
    }

    /// One of the older sessions that this connection waits for has ended.
    pub fn peer_ended(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(token) else { return self.orphan_ended(token) };
        let Protocol::Peer(session) = &mut conn.protocol else { return };
        let State::Waiting(left) = &mut session.state else { return };
        *left -= 1;
        if *left > 0 {
            return;
        }
        session.state = State::Ready;
        let clock = self.shared.millis(self.now);
        conn.out.append(|out| Welcome::Ok.encode(clock, out));
        self.wake.push(token);
        self.mark(token);
    }

    /// Ends an older session: what it has not read is dropped, what runs is waited for.
    pub fn end_peer(&mut self, token: Token, waiter: (usize, Token)) {
        if let Some((_, session)) = self.orphans.get_mut(&token) {
            return session.waiters.push(waiter);
        }
        let Some(conn) = self.conns.get_mut(token) else {
            return self.shared.mailboxes[waiter.0].post(Message::PeerEnded(waiter.1));
        };
        let Protocol::Peer(session) = &mut conn.protocol else { return };
        session.waiters.push(waiter);
        // Its client is gone: nobody would read the answers of what is under way.
        self.close(token);
    }

    /// A peer connection was closed with so many operations in flight.
    pub fn peer_closed(&mut self, token: Token, session: PeerSession, inflight: u32) {
        // One that was still waiting for its own predecessors stands for them as well.
        let awaited = match session.state {
            State::Waiting(left) => left as u32,
            State::Hello | State::Ready => 0,
        };
        if inflight + awaited > 0 {
            self.orphans.insert(token, (inflight + awaited, session));
            return;
        }
        self.peer_gone(token, session);
    }

    /// One of the things that a closed session still stood for has ended.
    fn orphan_ended(&mut self, token: Token) {
        let Some((left, _)) = self.orphans.get_mut(&token) else { return };
        *left -= 1;
        if *left == 0
            && let Some((_, session)) = self.orphans.remove(&token)
        {
            self.peer_gone(token, session);
        }
    }

    fn peer_gone(&mut self, token: Token, session: PeerSession) {
        let mut registry = self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.retain(|known| known.loop_index != self.index || known.conn != token);
        drop(registry);
        for (index, conn) in session.waiters {
            self.shared.mailboxes[index].post(Message::PeerEnded(conn));
        }
    }

    fn peer_step(&mut self, token: Token, input: &mut Input) -> bool {
        if !self.may_read(token) {
            return false;
        }
        let Some(conn) = self.conns.get_mut(token) else { return false };
        if conn.large.is_some() {
            return false;
        }
        let request = match Request::decode(input.bytes()) {
            Ok(Some(request)) => request,
            Ok(None) => return false,
            Err(_) => {
                self.protocol_errors += 1;
                self.close(token);
                return false;
            }
        };
        let payload = request.payload as usize;
        let have = input.bytes().len() - REQUEST_LEN;
        if payload > have {
            if payload > SMALL {
                let mut data = self.buffers.take(payload);
                data[..have].copy_from_slice(&input.bytes()[REQUEST_LEN..]);
                conn.large = Some(Large { header: Header::Peer(request), data, filled: have });
                conn.streams = true;
                input.consume(REQUEST_LEN + have);
            }
            return false;
        }
        conn.streams = payload > SMALL;
        let start = input.start + REQUEST_LEN;
        let buffer = std::mem::take(&mut input.buffer);
        self.peer_request(token, request, &buffer[start..start + payload]);
        input.buffer = buffer;
        input.consume(REQUEST_LEN + payload);
        true
    }

    fn peer_request(&mut self, token: Token, request: Request, payload: &[u8]) {
        match request.op {
            peer::Op::Open => return self.peer_open(token, &request, payload),
            peer::Op::Close => {
                if let Some(conn) = self.conns.get_mut(token)
                    && let Protocol::Peer(session) = &mut conn.protocol
                {
                    session.handles.remove(&request.handle);
                }
                return;
            }
            _ => {}
        }
        let kind = match request.op {
            peer::Op::Read => Kind::Read,
            peer::Op::Write => Kind::Write,
            peer::Op::Flush => Kind::Flush,
            peer::Op::Trim => Kind::Trim,
            peer::Op::Status => Kind::Status,
            peer::Op::Dirty => Kind::Dirty,
            peer::Op::Clean => Kind::Clean { flushed: true },
            peer::Op::Recall => Kind::Recall,
            peer::Op::Keep => Kind::Keep,
            peer::Op::Reserve => Kind::Reserve,
            peer::Op::View => Kind::View,
            peer::Op::CompareWrite => Kind::Change(Change::CompareWrite),
            peer::Op::Or => Kind::Change(Change::Or),
            _ => Kind::Zero {
                no_hole: request.flags & peer::NO_HOLE != 0,
                fast: request.flags & peer::FAST_ZERO != 0,
            },
        };
        let fua = request.flags & peer::FUA != 0;
        let expires = kind.changes() || kind == Kind::Reserve;
        let until = if expires { self.deadline(&request) } else { None };
        if until.is_some_and(|until| self.clock.now() > until) && !planted("late_write_taken") {
            return self.peer_answer(token, request.id, Status::NotFound);
        }
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Peer(session) = &mut conn.protocol else { return };
        let (scope, volume) = match session.handles.get_mut(&request.handle) {
            None => return self.peer_answer(token, request.id, Status::NotFound),
            Some(Handle::Volume(_))
                if matches!(kind, Kind::Dirty | Kind::Clean { .. } | Kind::Recall | Kind::Keep) =>
            {
                return self.peer_answer(token, request.id, Status::Invalid);
            }
            Some(Handle::Volume(id)) => {
                let Some(&volume) = self.volume_by_id.get(id) else {
                    return self.peer_answer(token, request.id, Status::NotFound);
                };
                let quick = if fua {
                    Inline::No
                } else {
                    self.quick_owner(token, volume, &request, payload)
                };
                if self.peer_quick(token, &request, quick) {
                    return;
                }
                (Scope::Volume, volume)
            }
            Some(Handle::T1 { .. }) if kind.asks_owner() => {
                return self.peer_answer(token, request.id, Status::Invalid);
            }
            Some(Handle::T1 { id, version, object }) => {
                let now = self.shared.t1s.version();
                if *version != now {
                    *object = self.shared.t1s.get(id);
                    *version = now;
                }
                // Out of the handle for the moment: to count references costs more than the rest.
                let Some(t1) = object.take() else {
                    return self.peer_answer(token, request.id, Status::NotFound);
                };
                let quick =
                    if fua { Inline::No } else { self.quick_t1(token, &t1, &request, payload) };
                let done = self.peer_quick(token, &request, quick);
                let scope = (!done).then(|| Scope::T1(Arc::clone(&t1)));
                if let Some(conn) = self.conns.get_mut(token)
                    && let Protocol::Peer(session) = &mut conn.protocol
                    && let Some(Handle::T1 { object, .. }) =
                        session.handles.get_mut(&request.handle)
                {
                    *object = Some(t1);
                }
                let Some(scope) = scope else { return };
                (scope, Token::default())
            }
        };
        let source = Source::Peer { conn: token, id: request.id, epoch: request.epoch };
        let mut op = Op::new(source, scope, kind, request.offset, request.length);
        op.volume = volume;
        op.fua = fua;
        op.intent = request.flags & peer::INTENT != 0;
        op.until = until;
        op.begun = self.now;
        op.data = match kind {
            Kind::Write | Kind::Change(_) => self.buffers.copy(payload),
            kind if kind.brings() => Buffer::from(payload.to_vec()),
            Kind::Read => self.buffers.take(request.length as usize),
            _ => Buffer::default(),
        };
        if let Some(conn) = self.conns.get_mut(token) {
            conn.inflight += 1;
            conn.inflight_bytes += op.data.len() as u64;
        }
        self.submit(op);
    }

    /// Until when the request may be begun.
    fn deadline(&self, request: &Request) -> Option<Instant> {
        if request.flags & peer::EXPIRES == 0 {
            return None;
        }
        let left = request.until.wrapping_sub(self.shared.millis(self.now)) as i32;
        let span = Duration::from_millis(left.unsigned_abs().into());
        if left < 0 { self.now.checked_sub(span) } else { Some(self.now + span) }
    }

    fn peer_open(&mut self, token: Token, request: &Request, payload: &[u8]) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Peer(session) = &mut conn.protocol else { return };
        let Ok(id) = String::from_utf8(payload.to_vec()) else {
            self.protocol_errors += 1;
            return self.close(token);
        };
        if session.handles.len() >= MAX_HANDLES {
            self.protocol_errors += 1;
            return self.close(token);
        }
        let handle = if request.offset == 0 {
            Handle::T1 { id, version: u64::MAX, object: None }
        } else {
            Handle::Volume(id)
        };
        session.handles.insert(request.handle, handle);
    }

    /// A request on a T1 object, at once.
    fn quick_t1(
        &mut self,
        token: Token,
        t1: &T1Object,
        request: &Request,
        payload: &[u8],
    ) -> Inline {
        let Request { id, epoch, offset, length, .. } = *request;
        match request.op {
            peer::Op::Read if length > 0 => {
                let clock = self.shared.millis(self.now);
                let reply = Reply { status: Status::Ok, id, payload: length as u32, clock };
                let head = |out: &mut Vec<u8>| reply.encode(out);
                self.inline_t1_read(token, t1, epoch, offset, length, head)
            }
            peer::Op::Write => {
                let intent = request.flags & peer::INTENT != 0;
                self.inline_t1_write(t1, epoch, offset, payload, intent)
            }
            _ => Inline::No,
        }
    }

    /// A request on a volume that this SP owns, at once; it is counted as the volume's.
    fn quick_owner(
        &mut self,
        token: Token,
        volume: Token,
        request: &Request,
        payload: &[u8],
    ) -> Inline {
        let Some(shown) = self.volumes.get(volume) else { return Inline::No };
        let Request { id, epoch, offset, length, .. } = *request;
        let tree = &shown.active.tree;
        let within = offset.checked_add(length).is_some_and(|end| end <= tree.size());
        if epoch != shown.active.epoch || !tree.is_owner() || !within || length == 0 {
            return Inline::No;
        }
        let (name, quick) = match request.op {
            peer::Op::Read => {
                let clock = self.shared.millis(self.now);
                let reply = Reply { status: Status::Ok, id, payload: length as u32, clock };
                let head = |out: &mut Vec<u8>| reply.encode(out);
                (OpName::Read, self.inline_read(token, volume, offset, length, head))
            }
            peer::Op::Write => (OpName::Write, self.inline_write(volume, token, offset, payload)),
            _ => return Inline::No,
        };
        let seconds = (self.clock.now() - self.now).as_secs_f64();
        if let Some(volume) = self.volumes.get_mut(volume) {
            match quick {
                Inline::Done => volume.counters.done(name, Transport::Peer, 1, length, seconds),
                Inline::Failed(error) => volume.counters.failed(name, error.name()),
                Inline::No => {}
            }
        }
        quick
    }

    /// Answers what was carried out at once; false if it was not.
    fn peer_quick(&mut self, token: Token, request: &Request, quick: Inline) -> bool {
        match quick {
            Inline::Done if request.op == peer::Op::Read => self.mark(token),
            Inline::Done => self.peer_answer(token, request.id, Status::Ok),
            Inline::Failed(error) => self.peer_answer(token, request.id, error.status()),
            Inline::No => return false,
        }
        true
    }

    fn peer_answer(&mut self, token: Token, id: u64, status: Status) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let clock = self.shared.millis(self.now);
        conn.out.append(|out| Reply { status, id, payload: 0, clock }.encode(out));
        self.mark(token);
    }

    /// Answers an operation of a peer's.
    pub fn peer_reply(&mut self, token: Token, id: u64, mut op: Op, result: Result<(), Fail>) {
        // If the session has ended meanwhile, its successor may wait for this.
        let Some(conn) = self.conns.get_mut(token) else { return self.orphan_ended(token) };
        conn.inflight -= 1;
        conn.inflight_bytes -= op.data.len() as u64;
        let mut status = result.map_or_else(Fail::status, |()| Status::Ok);
        let payload = match (result, op.kind) {
            (Ok(()), Kind::Change(_)) => op.differs.map_or_else(Buffer::default, |at| {
                status = Status::Differs;
                at.to_le_bytes().to_vec().into()
            }),
            (Ok(()), Kind::Read) => op.data,
            (Ok(()), kind) if kind.tells() => op.answers.pop().unwrap_or_default().1.into(),
            (Ok(()), Kind::Status | Kind::Dirty) => {
                let runs = crate::status::compose(op.status, op.length, false);
                let pairs = runs.iter().flat_map(|&(length, flags)| [length, u64::from(flags)]);
                pairs.flat_map(u64::to_le_bytes).collect::<Vec<u8>>().into()
            }
            _ => Buffer::default(),
        };
        let clock = self.shared.millis(self.now);
        let reply = Reply { status, id, payload: payload.len() as u32, clock };
        conn.out.append(|out| reply.encode(out));
        conn.out.push(payload);
        self.mark(token);
    }
}
