//! What a loop does for its connections: receive, send, end.

use std::time::{Duration, Instant};

use vs_io::{Kind as DeviceKind, planted};
use vs_wire::iscsi::login::Login;
use vs_wire::nbd::handshake::Handshake;

use crate::conn::{Conn, Protocol};
use crate::event_loop::{Loop, TAG_CONN};
use crate::metrics::Transport;
use crate::out::{Failed, Out};
use crate::peer_server::PeerSession;
use crate::slab::Token;
use crate::socket::{ENDED, IN, OUT, Stream};

/// Bytes of output that are worth a send of their own.
const ENOUGH: usize = 32 << 10;
/// How long a session that is to end waits for a moment of rest.
const PARTING: Duration = Duration::from_millis(500);
/// How long an initiator may take to log out when it is asked to.
const LOGOUT: Duration = Duration::from_secs(2);
/// Receives of one connection in one wake-up.
const RECEIVES: usize = 16;

impl Loop {
    pub fn accepted(&mut self, stream: Stream, transport: Transport) {
        let mut out = Out::default();
        let protocol = match transport {
            Transport::Peer => Protocol::Peer(PeerSession::default()),
            Transport::Iscsi => {
                let tag = self.shared.iscsi.tag.load(std::sync::atomic::Ordering::Relaxed);
                Protocol::IscsiLogin(Box::new(Login::new(tag)))
            }
            Transport::NbdTcp | Transport::NbdUnix => {
                let unavailable = vs_wire::nbd::handshake::Tls::Unavailable;
                let handshake = out.append(|out| Handshake::new(unavailable, out));
                Protocol::NbdHandshake(Box::new(handshake))
            }
        };
        let fd = stream.fd();
        let conn = Conn {
            out,
            closing: self.shutdown.is_some() || self.is_parting() && transport != Transport::Peer,
            ..Conn::new(stream, transport, protocol, self.now)
        };
        let token = self.conns.insert(conn);
        if self.epoll.add(fd, IN | ENDED, token.pack(TAG_CONN)).is_err() {
            self.close(token);
            return;
        }
        self.mark(token);
        self.want_tick();
    }

    /// Has a connection's output sent before the loop sleeps; at once if there is enough of it
    /// for the other side to be busy with while the loop goes on.
    pub fn mark(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(token);
        }
        if conn.out.len() >= ENOUGH && conn.events & OUT == 0 && !conn.closing {
            self.send(token);
        }
    }

    pub fn conn_event(&mut self, token: Token, bits: u32) {
        if bits & OUT != 0 {
            self.mark(token);
        }
        let ended = bits & ENDED != 0 && !planted("last_words_obeyed");
        if ended {
            if self.conns.get_mut(token).is_some_and(Conn::is_cut_off) {
                return self.close(token);
            }
            self.mark(token);
        }
        if bits & !OUT != 0 {
            // A header that was received alone has its payload behind it, and that the next one.
            for _ in 0..RECEIVES {
                if !self.receive(token) {
                    break;
                }
            }
        }
    }

    /// Receives once; true if there is likely more.
    fn receive(&mut self, token: Token) -> bool {
        let Some(conn) = self.conns.get_mut(token) else { return false };
        if conn.closing {
            // Only an error or the other side's end brings us here: nobody wants the answers. What
            // is to be handed over keeps its bytes.
            if self.basket.is_some() {
                return false;
            }
            if !conn.stream.recv(&mut [0; 64]).is_ok_and(|count| count > 0) {
                self.close(token);
            }
            return false;
        }
        if conn.stalled {
            return false;
        }
        match conn.receive(&mut self.spare) {
            Ok((0, _)) => self.close(token),
            Ok((_, more)) => {
                if conn.large.as_ref().is_none_or(|large| large.filled == large.data.len()) {
                    self.process_input(token);
                }
                if let Some(conn) = self.conns.get_mut(token) {
                    conn.input.release(&mut self.spare);
                }
                return more;
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                conn.input.release(&mut self.spare);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => self.close(token),
        }
        false
    }

    pub fn process_input(&mut self, token: Token) {
        if !self.may_read(token) {
            return;
        }
        let Some(conn) = self.conns.get(token) else { return };
        match conn.protocol {
            Protocol::NbdHandshake(_) => self.nbd_negotiate(token),
            Protocol::Nbd(_) => self.nbd_input(token),
            Protocol::IscsiLogin(_) | Protocol::Iscsi(_) => self.iscsi_input(token),
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
        let waits = matches!(&conn.protocol, Protocol::Iscsi(session) if session.waits);
        waits || conn.inflight_bytes + conn.out.len() as u64 > bound || conn.inflight > 4096
    }

    pub fn flush_conn(&mut self, token: Token) {
        if let Some(conn) = self.conns.get_mut(token) {
            conn.dirty = false;
            self.send(token);
        }
    }

    fn send(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let sent = match conn.out.flush(&conn.stream, &mut self.room) {
            Ok(sent) => sent,
            Err(Failed::Socket) => return self.close(token),
            Err(Failed::Fault) => return self.faulted(token),
        };
        conn.out.recycle(&mut self.buffers);
        if conn.out.is_lent() {
            self.lending.push(token);
        }
        let rests = !matches!(conn.protocol, Protocol::Iscsi(_)) && conn.is_quiet();
        let parts = conn.closing || conn.parting.is_some() && rests;
        if parts && sent && conn.inflight == 0 {
            return self.done_with(token);
        }
        let Some(conn) = self.conns.get(token) else { return };
        let full = self.is_full(conn);
        let end = if conn.closing || conn.farewell { 0 } else { ENDED };
        let wanted = end | if conn.closing || full { 0 } else { IN } | if sent { 0 } else { OUT };
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

    /// Closes a host's session at a moment at which it has asked for nothing that it has not been
    /// answered, so that its next request finds the connection closed instead of being lost with it:
    /// a kernel sends that again at once, and a lost one only after its time-out. Ends it if there
    /// is no such moment for a while.
    pub fn part(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        if conn.parting.is_some() {
            return;
        }
        match &mut conn.protocol {
            Protocol::Nbd(_) => conn.parting = Some(Instant::now() + PARTING),
            // An initiator is asked to log out, and comes back by another portal.
            Protocol::Iscsi(found) if found.volume.is_some() => {
                conn.parting = Some(Instant::now() + LOGOUT);
                conn.out.append(|out| found.session.ask_logout(LOGOUT.as_secs() as u16, out));
            }
            _ => return self.end(token),
        }
        self.mark(token);
        self.want_tick();
    }

    /// Ends the sessions for which no such moment came; true if some still wait for theirs.
    pub fn tick_parting(&mut self) -> bool {
        let mut waiting = false;
        for token in self.conns.tokens() {
            match self.conns.get(token).and_then(|conn| conn.parting) {
                Some(until) if until > self.now => waiting = true,
                Some(_) => self.end(token),
                None => {}
            }
        }
        waiting
    }

    /// Stops reading; closes when all is answered.
    pub fn end(&mut self, token: Token) {
        if let Some(conn) = self.conns.get_mut(token) {
            conn.closing = true;
            conn.parting = None;
            self.mark(token);
        }
    }

    /// Closes at once. Operations in flight go on, their replies are dropped.
    pub fn close(&mut self, token: Token) {
        let Some(conn) = self.conns.remove(token) else { return };
        self.shared.connections.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        self.epoll.remove(conn.stream.fd());
        match conn.protocol {
            Protocol::Peer(session) => self.peer_closed(token, session, conn.inflight),
            Protocol::Iscsi(session) => self.iscsi_closed(token, &session),
            _ => {}
        }
        if conn.inflight > 0 {
            self.cancel_ops(token);
        }
    }

    /// Takes the bytes of all resident pages that connections have still to send. To be called
    /// before anything that may give the pages to somebody else: a fence, a swap, the removal of
    /// a device. All of these come as messages.
    pub fn own_all(&mut self) {
        for token in std::mem::take(&mut self.lending) {
            let Some(conn) = self.conns.get_mut(token) else { continue };
            if conn.out.own().is_err() {
                self.faulted(token);
            }
        }
    }

    /// A resident page that a reply lies in could not be had: the connection is lost, and whoever
    /// asks again is told by the kernel.
    fn faulted(&mut self, token: Token) {
        let Some(conn) = self.conns.get(token) else { return };
        for device in self.shared.devices().values() {
            let DeviceKind::File(file) = &device.kind else { continue };
            for (address, length) in conn.out.lent() {
                file.faulted(address, length as u64);
            }
        }
        self.close(token);
    }
}
