//! A process that ends for another one of the same SP gives it its listeners and its hosts'
//! sessions: a host that is connected sees nothing of it.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use vs_wire::nbd::transmission::{Style, encode_request};

use crate::conn::{Conn, Header, INPUT, Input, Protocol};
use crate::control::{Engine, Failure, lock};
use crate::event_loop::{Loop, TAG_CONN};
use crate::mailbox::Message;
use crate::metrics::Transport;
use crate::nbd_session::Session;
use crate::slab::Token;
use crate::socket::{ENDED, IN, Listener, Stream, option};

/// Bytes of one session that can be handed over: a request of the largest size, and what is read
/// ahead of the next ones.
const MOST: usize = 80 << 20;

/// What was agreed with a host, and how far its requests have come.
#[derive(Debug, Deserialize, Serialize)]
pub struct Facts {
    /// The volume's id.
    volume: String,
    style: u8,
    contexts: Vec<u32>,
    /// Bytes of a refused payload that are still to be dropped.
    skip: u64,
    unix: bool,
}

/// A host's session: nothing of it is in flight, and nothing of it waits to be sent.
#[derive(Debug)]
pub struct Handed {
    pub fd: OwnedFd,
    pub facts: Facts,
    /// Received, and not carried out.
    pub unread: Vec<u8>,
}

impl Handed {
    /// Its facts as text, for the other process.
    #[must_use]
    pub fn facts(&self) -> String {
        serde_json::to_string(&self.facts).unwrap_or_default()
    }
}

/// Where the loops put the sessions; it is a bound on nothing but the connections there are.
pub type Basket = Arc<Mutex<Vec<Handed>>>;

/// What is spoken at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Nbd,
    Iscsi,
    Peer,
}

impl Speaks {
    fn of(transport: Transport) -> Speaks {
        match transport {
            Transport::NbdTcp | Transport::NbdUnix => Speaks::Nbd,
            Transport::Iscsi => Speaks::Iscsi,
            Transport::Peer => Speaks::Peer,
        }
    }

    /// "nbd", "iscsi" or "peer".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Speaks::Nbd => "nbd",
            Speaks::Iscsi => "iscsi",
            Speaks::Peer => "peer",
        }
    }

    /// # Errors
    /// When it is none of these.
    pub fn named(name: &str) -> Result<Speaks, Failure> {
        let all = [Speaks::Nbd, Speaks::Iscsi, Speaks::Peer];
        let found = all.into_iter().find(|speaks| speaks.name() == name);
        found.ok_or_else(|| Failure::new("invalid", format!("nothing speaks {name:?}")))
    }
}

/// What `Engine::hand_over` gives.
pub struct Legacy {
    /// All was answered and flushed in time.
    pub clean: bool,
    /// With what is spoken there, and its address.
    pub listeners: Vec<(OwnedFd, Speaks, String)>,
    pub sessions: Vec<Handed>,
}

impl Engine {
    /// As `shutdown`, but hosts' sessions are not closed: each is taken out of the engine when all
    /// that it had asked for is answered. What has asked for more since finds it unread.
    pub fn hand_over(&self, seconds: f64) -> Legacy {
        let basket = Basket::default();
        let mut kept = Vec::new();
        for (listener, transport) in lock(&self.shared.listeners).iter() {
            let Ok(fd) = listener.duplicate() else { continue };
            let Ok(address) = listener.address() else { continue };
            kept.push((fd, Speaks::of(*transport), address));
            listener.abandon();
        }
        let clean = self.end(seconds, Some(&basket));
        let sessions = std::mem::take(&mut *lock(&basket));
        Legacy { clean, listeners: kept, sessions }
    }

    /// Serves on a socket that listens already, of TCP or a unix one; gives its address.
    ///
    /// # Errors
    /// When it is no such socket.
    pub fn take_listener(&self, fd: OwnedFd, speaks: Speaks) -> Result<String, Failure> {
        let failed =
            |e: io::Error| Failure::new("invalid", format!("that is no socket that listens: {e}"));
        let listener = Listener::adopt(fd).map_err(failed)?;
        let bound = listener.address().map_err(failed)?;
        let transport = match (speaks, &listener) {
            (Speaks::Peer, _) => Transport::Peer,
            (Speaks::Iscsi, _) => Transport::Iscsi,
            (Speaks::Nbd, Listener::Tcp(_)) => Transport::NbdTcp,
            (Speaks::Nbd, Listener::Unix(..)) => Transport::NbdUnix,
        };
        self.serve(listener, transport);
        Ok(bound)
    }

    /// Goes on with a session that another process has handed over. It is closed if its volume
    /// is not served here, or if there are too many connections.
    ///
    /// # Errors
    /// When `facts` are not what `hand_over` gave.
    pub fn take_session(&self, fd: OwnedFd, facts: &str, unread: Vec<u8>) -> Result<(), Failure> {
        let facts: Facts = serde_json::from_str(facts)
            .map_err(|e| Failure::new("invalid", format!("what is that session: {e}")))?;
        if facts.style > 2 || unread.len() > MOST {
            return Err(Failure::new("invalid", "that is no session".to_owned()));
        }
        let shared = &self.shared;
        let open = shared.connections.fetch_add(1, Ordering::Relaxed);
        if open >= shared.config.max_connections {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            return Ok(());
        }
        let mailbox = &shared.mailboxes[open % shared.mailboxes.len()];
        mailbox.post(Message::Take(Box::new(Handed { fd, facts, unread })));
        Ok(())
    }
}

impl Loop {
    /// The connection has ended, or is another process's from now on.
    pub fn done_with(&mut self, token: Token) {
        let Some(basket) = self.basket.clone() else { return self.close(token) };
        let Some(conn) = self.conns.get(token) else { return };
        let Protocol::Nbd(session) = &conn.protocol else { return self.close(token) };
        let volume = self.volumes.get(session.volume).filter(|volume| !volume.leaving);
        let (false, Some(volume)) = (conn.farewell, volume) else { return self.close(token) };
        let facts = Facts {
            volume: volume.volume.id.clone(),
            style: session.style as u8,
            contexts: session.contexts.clone(),
            skip: conn.input.skip,
            unix: conn.transport == Transport::NbdUnix,
        };
        let mut unread = Vec::new();
        if let Some(large) = &conn.large
            && let Header::Nbd(request) = &large.header
        {
            encode_request(request, session.style == Style::Extended, &mut unread);
            unread.extend_from_slice(&large.data[..large.filled]);
        }
        unread.extend_from_slice(conn.input.bytes());
        let Stream::Plain(fd) = &conn.stream;
        // The loop's own descriptor goes with the connection.
        let Ok(fd) = fd.as_fd().try_clone_to_owned() else { return self.close(token) };
        self.close(token);
        lock(&basket).push(Handed { fd, facts, unread });
    }

    /// Goes on with a session of another process.
    pub fn taken(&mut self, handed: Handed) {
        let Handed { fd, facts, unread } = handed;
        let found = self.volumes.iter().find(|(_, v)| v.volume.id == facts.volume && !v.leaving);
        let is_open = self.shutdown.is_none() && self.shared.access.has_nbd(&facts.volume);
        let Some((volume, _)) = found.filter(|_| is_open) else {
            self.shared.connections.fetch_sub(1, Ordering::Relaxed);
            return;
        };
        let style = match facts.style {
            0 => Style::Simple,
            1 => Style::Structured,
            _ => Style::Extended,
        };
        let end = unread.len();
        let mut buffer = unread;
        buffer.resize(end.max(INPUT), 0);
        let raw = fd.as_raw_fd();
        let transport = if facts.unix { Transport::NbdUnix } else { Transport::NbdTcp };
        let session = Session { volume, style, contexts: facts.contexts };
        let conn = Conn {
            input: Input { buffer, start: 0, end, skip: facts.skip },
            ..Conn::new(Stream::Plain(fd), transport, Protocol::Nbd(session), self.now)
        };
        let token = self.conns.insert(conn);
        if self.epoll.add(raw, IN | ENDED, token.pack(TAG_CONN)).is_err() {
            return self.close(token);
        }
        // Of a host that has gone meanwhile nothing is carried out: it may have sent it again.
        if self.conns.get(token).is_some_and(|conn| conn.stream.is_ended()) {
            return self.conn_event(token, ENDED | IN);
        }
        self.process_input(token);
    }
}

impl Listener {
    /// A socket of another process's making that listens.
    fn adopt(fd: OwnedFd) -> io::Result<Listener> {
        let listening: i32 = option(fd.as_raw_fd(), libc::SO_ACCEPTCONN)?;
        if listening == 0 {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        if option(fd.as_raw_fd(), libc::SO_DOMAIN)? == libc::AF_UNIX {
            let listener = UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            let path = address.as_pathname().map_or_else(PathBuf::new, PathBuf::from);
            return Ok(Listener::Unix(listener, path, AtomicBool::new(true)));
        }
        let listener = TcpListener::from(fd);
        listener.set_nonblocking(true)?;
        Ok(Listener::Tcp(listener))
    }

    fn duplicate(&self) -> io::Result<OwnedFd> {
        match self {
            Listener::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Listener::Unix(listener, ..) => listener.as_fd().try_clone_to_owned(),
        }
    }

    /// Another process goes on with it: its file stays.
    fn abandon(&self) {
        if let Listener::Unix(_, _, own) = self {
            own.store(false, Ordering::Relaxed);
        }
    }
}

/// A descriptor of the caller's, which is the engine's from now on.
///
/// # Errors
/// When it is not open.
pub fn given(fd: i32) -> Result<OwnedFd, Failure> {
    // SAFETY: takes no pointers.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(Failure::new("invalid", format!("{fd} is no open descriptor")));
    }
    // SAFETY: it is open, and its owner has given it away.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
