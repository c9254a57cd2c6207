//! An NBD connection from negotiation to its end.

use vs_wire::nbd::handshake::{Exports, Outcome};
use vs_wire::nbd::transmission::{Request, Style, decode, request_header};
use vs_wire::nbd::{MAX_REQUEST, command, command_flag, flag};

use crate::access::Accesses;
use crate::buffers::Buffer;
use crate::conn::{Header, Large, Protocol, SMALL};
use crate::event_loop::{Loop, LoopVolume};
use crate::inline::Inline;
use crate::op::{Fail, Kind, Op, Scope, Source};
use crate::slab::{Slab, Token};
use crate::status;

/// What every volume offers.
const FLAGS: u16 = flag::HAS_FLAGS
    | flag::SEND_FLUSH
    | flag::SEND_FUA
    | flag::SEND_TRIM
    | flag::SEND_WRITE_ZEROES
    | flag::SEND_DF
    | flag::CAN_MULTI_CONN
    | flag::SEND_CACHE
    | flag::SEND_FAST_ZERO;

/// A connection in transmission.
pub struct Session {
    pub volume: Token,
    pub style: Style,
    pub contexts: Vec<u32>,
}

struct Served<'a>(&'a Slab<LoopVolume>, &'a Accesses);

impl Served<'_> {
    fn is_open(&self, volume: &LoopVolume) -> bool {
        !volume.leaving && self.1.has_nbd(&volume.volume.id)
    }

    fn by_name(&self, name: &str) -> Option<(Token, &LoopVolume)> {
        self.0.iter().find(|(_, v)| v.volume.name == name && self.is_open(v))
    }
}

impl Exports for Served<'_> {
    fn names(&self) -> Vec<String> {
        let open = self.0.iter().filter(|(_, v)| self.is_open(v));
        let mut names: Vec<String> = open.map(|(_, v)| v.volume.name.clone()).collect();
        names.sort();
        names
    }

    fn find(&self, name: &str) -> Option<(u64, u16)> {
        self.by_name(name).map(|(_, volume)| (volume.active.tree.size(), FLAGS))
    }
}

/// A request's payload: in the input buffer, or in a buffer of its own.
enum Payload<'a> {
    Borrowed(&'a [u8]),
    Owned(Buffer),
}

impl Loop {
    pub fn nbd_negotiate(&mut self, token: Token) {
        loop {
            let Some(conn) = self.conns.get_mut(token) else { return };
            let Protocol::NbdHandshake(handshake) = &mut conn.protocol else { return };
            let (served, input) = (Served(&self.volumes, &self.shared.access), &mut conn.input);
            match conn.out.append(|out| handshake.feed(input.bytes(), &served, out)) {
                Ok((0, Outcome::More)) => return,
                Ok((used, Outcome::More)) => conn.input.consume(used),
                Ok((used, Outcome::Done(agreed))) => {
                    conn.input.consume(used);
                    let Some((volume, _)) = served.by_name(&agreed.export) else {
                        return self.end(token);
                    };
                    let style = match (agreed.extended, agreed.structured) {
                        (true, _) => Style::Extended,
                        (_, true) => Style::Structured,
                        _ => Style::Simple,
                    };
                    let contexts = agreed.contexts;
                    conn.protocol = Protocol::Nbd(Session { volume, style, contexts });
                    return self.nbd_input(token);
                }
                Ok((_, Outcome::Close | Outcome::StartTls)) => return self.end(token),
                Err(_) => {
                    self.protocol_errors += 1;
                    return self.close(token);
                }
            }
        }
    }

    pub fn nbd_input(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        if let Some(Large { header: Header::Nbd(request), data, .. }) = conn.take_large() {
            self.nbd_request(token, request, Payload::Owned(data));
        }
        let Some(conn) = self.conns.get_mut(token) else { return };
        // Out of the connection while requests are carried out straight from it.
        let mut input = std::mem::take(&mut conn.input);
        while self.nbd_step(token, &mut input) {}
        if let Some(conn) = self.conns.get_mut(token) {
            conn.input = input;
        }
        self.count_tally(token);
    }

    /// Takes one request out of the input; false when there is none or it has to wait.
    fn nbd_step(&mut self, token: Token, input: &mut crate::conn::Input) -> bool {
        if !self.may_read(token) {
            return false;
        }
        let Some(conn) = self.conns.get_mut(token) else { return false };
        let Protocol::Nbd(session) = &mut conn.protocol else { return false };
        if input.skip > 0 {
            let used = input.skip.min(input.bytes().len() as u64);
            input.skip -= used;
            input.consume(used as usize);
            if input.skip > 0 {
                return false;
            }
        }
        if conn.large.is_some() {
            return false;
        }
        let extended = session.style == Style::Extended;
        let request = match decode(input.bytes(), extended) {
            Ok(Some(request)) => request,
            Ok(None) => return false,
            Err(_) => {
                self.protocol_errors += 1;
                self.close(token);
                return false;
            }
        };
        if request.command == command::DISC {
            if let Some(conn) = self.conns.get_mut(token) {
                conn.farewell = true;
            }
            self.end(token);
            return false;
        }
        let header = request_header(extended);
        let payload = request.payload(extended);
        let contexts = !session.contexts.is_empty();
        let structured = session.style != Style::Simple;
        let size = self.volumes.get(session.volume).map_or(0, |v| v.active.tree.size());
        if let Err(errno) = request.check(size, structured, contexts) {
            // A payload that nobody would read through: give up rather than drop gigabytes.
            if payload > 4 * MAX_REQUEST {
                self.protocol_errors += 1;
                self.close(token);
                return false;
            }
            input.consume(header);
            input.skip = payload;
            let text = format!(
                "{} bytes at {} of a volume of {size} bytes can't be done",
                request.length, request.offset
            );
            let style = conn.style();
            conn.out.append(|out| style.error(out, &request, errno, &text));
            self.mark(token);
            return true;
        }
        let have = (input.bytes().len() - header) as u64;
        if payload > have {
            if payload as usize > SMALL {
                let mut data = self.buffers.take(payload as usize);
                let part = &input.bytes()[header..];
                data[..part.len()].copy_from_slice(part);
                let filled = part.len();
                conn.large = Some(Large { header: Header::Nbd(request), data, filled });
                conn.streams = true;
                input.consume(header + filled);
            }
            return false;
        }
        conn.streams = payload as usize > SMALL;
        let start = input.start + header;
        let end = start + payload as usize;
        // A buffer of its own for the moment, so that `input` can be changed meanwhile.
        let buffer = std::mem::take(&mut input.buffer);
        self.nbd_request(token, request, Payload::Borrowed(&buffer[start..end]));
        input.buffer = buffer;
        input.consume(header + payload as usize);
        true
    }

    fn nbd_request(&mut self, token: Token, request: Request, payload: Payload<'_>) {
        let Some(conn) = self.conns.get(token) else { return };
        let Protocol::Nbd(session) = &conn.protocol else { return };
        let (volume, style) = (session.volume, session.style);
        let quick = match (request.command, &payload) {
            (command::READ, _) if request.length > 0 => {
                let Request { offset, length, .. } = request;
                let head = |out: &mut Vec<u8>| style.read(out, &request);
                self.inline_read(token, volume, offset, length, head)
            }
            (command::WRITE, Payload::Borrowed(data)) if !request.fua() => {
                self.inline_write(volume, token, request.offset, data)
            }
            (command::WRITE, Payload::Owned(data)) if !request.fua() => {
                self.inline_write(volume, token, request.offset, data)
            }
            (command::CACHE, _) => Inline::Done,
            // A request of no length is answered, and nothing is done.
            (command::FLUSH, _) => Inline::No,
            _ if request.length == 0 => Inline::Done,
            _ => Inline::No,
        };
        if !matches!(quick, Inline::No) {
            if let Payload::Owned(data) = payload {
                self.buffers.give(data);
            }
            return self.nbd_quick(token, volume, &request, quick);
        }
        let kind = match request.command {
            command::READ => Kind::Read,
            command::WRITE => Kind::Write,
            command::FLUSH => Kind::Flush,
            command::TRIM => Kind::Trim,
            command::BLOCK_STATUS => Kind::Status,
            _ => Kind::Zero {
                no_hole: request.flags & command_flag::NO_HOLE != 0,
                fast: request.flags & command_flag::FAST_ZERO != 0,
            },
        };
        let source = Source::Nbd { conn: token, request };
        let mut op = Op::new(source, Scope::Volume, kind, request.offset, request.length);
        op.volume = volume;
        op.fua = request.fua();
        op.begun = self.now;
        op.data = match (kind, payload) {
            (Kind::Write, Payload::Owned(data)) => data,
            (Kind::Write, Payload::Borrowed(data)) => self.buffers.copy(data),
            (Kind::Read, _) => self.buffers.take(request.length as usize),
            _ => Buffer::default(),
        };
        if let Some(conn) = self.conns.get_mut(token) {
            conn.inflight += 1;
            conn.inflight_bytes += op.data.len() as u64;
        }
        self.submit(op);
    }

    /// Answers and counts a request that was carried out at once.
    fn nbd_quick(&mut self, token: Token, volume: Token, request: &Request, quick: Inline) {
        use crate::metrics::OpName as N;
        let Some(conn) = self.conns.get_mut(token) else { return };
        let style = conn.style();
        let name = match request.command {
            command::READ => N::Read,
            command::WRITE => N::Write,
            command::TRIM => N::Trim,
            command::CACHE => N::Cache,
            command::BLOCK_STATUS => N::BlockStatus,
            _ => N::WriteZeroes,
        };
        if let Inline::Failed(error) = quick {
            conn.out.append(|out| style.error(out, request, error.errno(), error.name()));
            if let Some(volume) = self.volumes.get_mut(volume) {
                volume.counters.failed(name, error.name());
            }
            return self.mark(token);
        }
        match name {
            // Their duration is that of the batch: see `tally`.
            N::Read => self.tally.read(request.length),
            N::Write => self.tally.write(request.length),
            _ => {
                let transport = conn.transport;
                if let Some(volume) = self.volumes.get_mut(volume) {
                    let seconds = self.now.elapsed().as_secs_f64();
                    volume.counters.done(name, transport, 1, request.length, seconds);
                }
            }
        }
        let Some(conn) = self.conns.get_mut(token) else { return };
        match name {
            N::Read if request.length > 0 => {}
            N::Read => conn.out.append(|out| style.read(out, request)),
            _ => conn.out.append(|out| style.done(out, request)),
        }
        self.mark(token);
    }

    /// Counts the batch's reads and writes: all of them took from the wake-up until now.
    fn count_tally(&mut self, token: Token) {
        use crate::metrics::OpName as N;
        let tally = std::mem::take(&mut self.tally);
        let Some(conn) = self.conns.get(token) else { return };
        let Protocol::Nbd(session) = &conn.protocol else { return };
        let Some(volume) = self.volumes.get_mut(session.volume) else { return };
        let seconds = self.now.elapsed().as_secs_f64();
        for (name, (count, bytes)) in [(N::Read, tally.reads), (N::Write, tally.writes)] {
            if count > 0 {
                volume.counters.done(name, conn.transport, count, bytes, seconds);
            }
        }
    }

    /// Answers an operation of an NBD connection.
    pub fn nbd_reply(
        &mut self,
        token: Token,
        request: &Request,
        mut op: Op,
        result: Result<(), Fail>,
    ) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let Protocol::Nbd(session) = &conn.protocol else { return };
        let style = session.style;
        let contexts = if op.kind == Kind::Status { session.contexts.clone() } else { Vec::new() };
        conn.inflight -= 1;
        conn.inflight_bytes -= op.data.len() as u64;
        match (result, op.kind) {
            (Err(error), _) => {
                let text = error.name();
                conn.out.append(|out| style.error(out, request, error.errno(), text));
            }
            (Ok(()), Kind::Read) => {
                conn.out.append(|out| style.read(out, request));
                conn.out.push(std::mem::take(&mut op.data));
            }
            (Ok(()), Kind::Status) => {
                let one = request.flags & command_flag::REQ_ONE != 0;
                let degraded = self.volumes.get(op.volume).is_some_and(|volume| {
                    volume.active.tree.is_degraded() || volume.volume.resync_percent() < 100
                });
                let runs = status::compose(std::mem::take(&mut op.status), op.length, one);
                let health = [(op.length, u32::from(degraded))];
                let all: Vec<(u32, &[(u64, u32)])> = contexts
                    .iter()
                    .map(|&id| {
                        let allocation = id == vs_wire::nbd::CONTEXT_ALLOCATION;
                        (id, if allocation { &runs[..] } else { &health[..] })
                    })
                    .collect();
                conn.out.append(|out| style.status(out, request, &all));
            }
            (Ok(()), _) => conn.out.append(|out| style.done(out, request)),
        }
        self.buffers.give(std::mem::take(&mut op.data));
        self.mark(token);
    }
}
