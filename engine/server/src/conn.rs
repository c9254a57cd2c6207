//! A connection that was accepted: what it has received, and how far it has come.

use std::io;
use std::time::Instant;

use vs_wire::nbd::handshake::Handshake;
use vs_wire::nbd::transmission::{Request, Style, request_header};
use vs_wire::peer;

use crate::buffers::Buffer;
use crate::metrics::Transport;
use crate::nbd_session::Session;
use crate::out::Out;
use crate::peer_server::PeerSession;
use crate::slab::Token;
use crate::socket::Stream;

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
    pub since: Instant,
}

impl Conn {
    /// True if it is a host's session of that volume.
    pub fn serves(&self, volume: Token) -> bool {
        matches!(&self.protocol, Protocol::Nbd(session) if session.volume == volume)
    }

    /// True until it may send requests.
    pub fn negotiating(&self) -> bool {
        match &self.protocol {
            Protocol::NbdHandshake(_) => true,
            Protocol::Nbd(_) => false,
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
