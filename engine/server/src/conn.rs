//! A connection that was accepted: what it has received, and how far it has come.

use std::io;
use std::time::Instant;

use vs_wire::iscsi::login::Login;
use vs_wire::nbd::command;
use vs_wire::nbd::handshake::Handshake;
use vs_wire::nbd::transmission::{Request, Style, decode, request_header};
use vs_wire::peer;
use vs_wire::scsi::cdb::Cdb;
use vs_wire::scsi::reserve::Nexus;

use crate::buffers::Buffer;
use crate::iscsi::IscsiSession;
use crate::metrics::Transport;
use crate::nbd_session::Session;
use crate::out::Out;
use crate::peer_server::PeerSession;
use crate::slab::Token;
use crate::socket::{ENDED, IN, Stream};

/// One receive takes at most this.
pub const INPUT: usize = 256 << 10;
/// Payloads up to this wait in the input buffer; larger ones get one of their own.
pub const SMALL: usize = 64 << 10;
/// Input buffers that a loop keeps for whoever receives next.
const SPARE: usize = 4;

/// A request's header, as its protocol has it.
#[derive(Clone, Copy)]
pub enum Header {
    Nbd(Request),
    Peer(peer::Request),
}

/// A request whose payload is received into a buffer of its own.
pub struct Large {
    pub header: Header,
    pub data: Buffer,
    pub filled: usize,
}

/// Received bytes that are not yet parsed.
#[derive(Default)]
pub struct Input {
    pub buffer: Vec<u8>,
    pub start: usize,
    pub end: usize,
    /// Bytes of a refused payload still to be dropped.
    pub skip: u64,
}

impl Input {
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Room to receive into, at least half of the buffer; one from `spare` if it has none.
    pub fn room(&mut self, spare: &mut Vec<Vec<u8>>) -> &mut [u8] {
        if self.buffer.is_empty() {
            self.buffer = spare.pop().unwrap_or_else(|| vec![0; INPUT]);
        }
        if self.start > 0 && self.buffer.len() - self.end < INPUT / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// Gives the buffer to `spare` if there is nothing in it: most connections are idle.
    pub fn release(&mut self, spare: &mut Vec<Vec<u8>>) {
        if self.end == 0 && !self.buffer.is_empty() {
            let buffer = std::mem::take(&mut self.buffer);
            if spare.len() < SPARE {
                spare.push(buffer);
            }
        }
    }
}

/// What a connection speaks, and how far it has come.
pub enum Protocol {
    NbdHandshake(Box<Handshake>),
    Nbd(Session),
    IscsiLogin(Box<Login>),
    Iscsi(Box<IscsiSession>),
    Peer(PeerSession),
}

/// A connection that was accepted.
pub struct Conn {
    pub stream: Stream,
    pub transport: Transport,
    pub protocol: Protocol,
    pub input: Input,
    /// A large payload on its way in.
    pub large: Option<Large>,
    /// The last payload was large: the next header is received alone, so that nothing of what
    /// follows has to be copied to where it belongs.
    pub streams: bool,
    pub out: Out,
    pub events: u32,
    pub inflight: u32,
    pub inflight_bytes: u64,
    /// Reads no more; closes when all is answered and sent.
    pub closing: bool,
    /// Input was left unread because the connection was full.
    pub stalled: bool,
    pub dirty: bool,
    /// Its last words are in: it has said goodbye.
    pub farewell: bool,
    /// It is closed as soon as it rests, and ended then.
    pub parting: Option<Instant>,
    pub since: Instant,
}

/// True if the last of these requests is a disconnection.
fn is_goodbye(unread: &[u8], extended: bool) -> bool {
    let start = unread.len().checked_sub(request_header(extended));
    let last = start.and_then(|start| decode(&unread[start..], extended).ok().flatten());
    last.is_some_and(|request| request.command == command::DISC)
}

/// More than this of unread requests, and no goodbye is looked for.
const LAST_WORDS: usize = 64 << 10;

impl Conn {
    /// A connection of which nothing has been received yet, watched for input and for its end.
    pub fn new(stream: Stream, transport: Transport, protocol: Protocol, since: Instant) -> Conn {
        Conn {
            stream,
            transport,
            protocol,
            input: Input::default(),
            large: None,
            streams: false,
            out: Out::default(),
            events: IN | ENDED,
            inflight: 0,
            inflight_bytes: 0,
            closing: false,
            stalled: false,
            dirty: false,
            farewell: false,
            parting: None,
            since,
        }
    }

    /// True if it is another SP's.
    pub fn is_peer(&self) -> bool {
        matches!(self.protocol, Protocol::Peer(_))
    }

    /// True if nothing of a request has come that is not carried out.
    pub fn is_quiet(&self) -> bool {
        let waits = self.stream.peek(&mut [0]).is_ok_and(|count| count > 0);
        self.input.bytes().is_empty() && self.input.skip == 0 && self.large.is_none() && !waits
    }

    /// True if it is a host's session of that volume.
    pub fn serves(&self, volume: Token) -> bool {
        match &self.protocol {
            Protocol::Nbd(session) => session.volume == volume,
            Protocol::Iscsi(session) => session.volume == Some(volume),
            _ => false,
        }
    }

    /// Whose a task of an iSCSI session's is, and its command.
    pub fn nexus_of(&self, task: u32) -> Option<(&Nexus, &Cdb)> {
        let Protocol::Iscsi(session) = &self.protocol else { return None };
        session.work.get(&task).map(|work| (&session.nexus, &work.cdb))
    }

    /// True until it may send requests.
    pub fn negotiating(&self) -> bool {
        match &self.protocol {
            Protocol::NbdHandshake(_) | Protocol::IscsiLogin(_) => true,
            Protocol::Nbd(_) | Protocol::Iscsi(_) => false,
            Protocol::Peer(session) => !session.is_ready(),
        }
    }

    /// Receives once: how many bytes came, and whether there are likely more.
    pub fn receive(&mut self, spare: &mut Vec<Vec<u8>>) -> io::Result<(usize, bool)> {
        if let Some(large) = &mut self.large {
            let target = &mut large.data[large.filled..];
            let wanted = target.len();
            let count = self.stream.recv(target)?;
            large.filled += count;
            return Ok((count, count == wanted));
        }
        let header = match &self.protocol {
            Protocol::Nbd(session) => request_header(session.style == Style::Extended),
            _ => peer::REQUEST_LEN,
        };
        let alone = self.streams && self.input.bytes().is_empty();
        let room = self.input.room(spare);
        let target = if alone { &mut room[..header] } else { room };
        let count = self.stream.recv(target)?;
        self.input.end += count;
        Ok((count, alone && count == header))
    }

    /// True if the other side has gone without a goodbye, and left requests that are not read yet. It
    /// may have sent them again over another path, and others after them: they are not to be
    /// carried out.
    pub fn is_cut_off(&mut self) -> bool {
        let mut unread = self.input.bytes().to_vec();
        let here = unread.len();
        unread.resize(here + LAST_WORDS, 0);
        let Ok(count) = self.stream.peek(&mut unread[here..]) else { return false };
        unread.truncate(here + count);
        self.farewell = match &self.protocol {
            Protocol::NbdHandshake(_) | Protocol::IscsiLogin(_) => true,
            Protocol::Nbd(session) => is_goodbye(&unread, session.style == Style::Extended),
            Protocol::Iscsi(_) | Protocol::Peer(_) => false,
        };
        !self.farewell && (self.stalled || !unread.is_empty())
    }

    /// The large request whose payload is all there.
    pub fn take_large(&mut self) -> Option<Large> {
        self.large.take_if(|large| large.filled == large.data.len())
    }

    pub fn style(&self) -> Style {
        match &self.protocol {
            Protocol::Nbd(session) => session.style,
            _ => Style::Simple,
        }
    }
}
