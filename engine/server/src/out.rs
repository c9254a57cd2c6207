//! What a connection has still to send: small things gathered, large ones as they are, and
//! resident pages lent by a device.

use std::collections::VecDeque;
use std::io;

use vs_io::guard;

use crate::buffers::{Buffer, Buffers};
use crate::socket::Stream;

/// Pieces of at least this are sent from where they are instead of being gathered.
const LARGE: usize = 1 << 10;
/// Room that a connection keeps for its next replies.
const ROOM: usize = 160 << 10;
/// Bytes that have left and may stay in memory for a while.
const KEPT: usize = 32 << 10;
/// iovecs in one send.
const GATHER: usize = 256;

#[derive(Debug)]
enum Piece {
    /// So many bytes of `Out::gathered`.
    Gathered(usize),
    Owned(Buffer),
    /// Resident pages. Not for long: `own` takes their bytes before anything may happen that
    /// gives the pages to somebody else.
    Lent(*const u8, usize),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Gathered(length) | Piece::Lent(_, length) => *length,
            Piece::Owned(data) => data.len(),
        }
    }
}

/// Room for the list of what one send sends; empty between sends.
#[derive(Debug, Default)]
pub struct Room(Vec<libc::iovec>);

// SAFETY: what it holds between sends is nothing.
unsafe impl Send for Room {}

/// Why not all was sent.
#[derive(Debug)]
pub enum Failed {
    Socket,
    /// A resident page could not be had, and its reply may have begun.
    Fault,
}

/// An output queue.
#[derive(Debug, Default)]
pub struct Out {
    pieces: VecDeque<Piece>,
    gathered: Vec<u8>,
    /// Bytes of `gathered` that belong to pieces which have left.
    gone: usize,
    /// Bytes of the first piece that have been sent.
    sent: usize,
    bytes: usize,
    lent: usize,
    /// Buffers whose bytes have left.
    sent_buffers: Vec<Buffer>,
}

// SAFETY: the addresses of lent pieces are of mappings, which belong to no thread.
unsafe impl Send for Out {}

impl Out {
    /// Appends what `write` appends.
    pub fn append<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let before = self.gathered.len();
        let result = write(&mut self.gathered);
        let more = self.gathered.len() - before;
        if more > 0 {
            self.bytes += more;
            match self.pieces.back_mut() {
                Some(Piece::Gathered(length)) => *length += more,
                _ => self.pieces.push_back(Piece::Gathered(more)),
            }
        }
        result
    }

    pub fn push(&mut self, data: Buffer) {
        if data.len() < LARGE {
            self.append(|out| out.extend_from_slice(&data));
            return self.sent_buffers.push(data);
        }
        self.bytes += data.len();
        self.pieces.push_back(Piece::Owned(data));
    }

    /// Appends resident pages.
    ///
    /// # Safety
    /// They must stay mapped until `own` or until all is sent.
    pub unsafe fn lend(&mut self, from: *const u8, length: usize) {
        self.bytes += length;
        self.lent += 1;
        self.pieces.push_back(Piece::Lent(from, length));
    }

    /// True if some of it is in resident pages.
    pub fn is_lent(&self) -> bool {
        self.lent > 0
    }

    /// The resident pages that are still to be sent.
    pub fn lent(&self) -> impl Iterator<Item = (*const u8, usize)> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Lent(from, length) => Some((*from, *length)),
            _ => None,
        })
    }

    /// Takes the bytes of all resident pages that are still to be sent.
    ///
    /// # Errors
    /// `Fault` if a page could not be had: the stream can't go on.
    pub fn own(&mut self) -> Result<(), Failed> {
        if self.lent == 0 {
            return Ok(());
        }
        for piece in &mut self.pieces {
            let Piece::Lent(from, length) = *piece else { continue };
            let mut data = Buffer::from(vec![0; length]);
            // SAFETY: the pages are mapped (`lend`), `data` has the room, and a mapping does not
            // overlap the heap.
            unsafe { guard::copy(data.as_mut_ptr(), from, length) }.map_err(|_| Failed::Fault)?;
            *piece = Piece::Owned(data);
        }
        self.lent = 0;
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Gives back the buffers whose bytes have left.
    pub fn recycle(&mut self, buffers: &mut Buffers) {
        for buffer in self.sent_buffers.drain(..) {
            buffers.give(buffer);
        }
    }

    pub fn clear(&mut self) {
        *self = Out::default();
    }

    /// Sends until all is gone or the socket is full. True: all is gone.
    pub fn flush(&mut self, stream: &Stream, room: &mut Room) -> Result<bool, Failed> {
        let room = &mut room.0;
        while self.bytes > 0 {
            self.gather(room);
            match stream.send(room) {
                Ok(count) => self.consume(count),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(libc::EFAULT) => {
                    return Err(Failed::Fault);
                }
                Err(_) => return Err(Failed::Socket),
            }
        }
        Ok(true)
    }

    fn gather(&self, room: &mut Vec<libc::iovec>) {
        room.clear();
        let (mut gathered, mut skip) = (self.gone, self.sent);
        for piece in self.pieces.iter().take(GATHER) {
            let base = match piece {
                Piece::Gathered(length) => {
                    let base = self.gathered[gathered..].as_ptr();
                    gathered += length;
                    base
                }
                Piece::Owned(data) => data.as_ptr(),
                Piece::Lent(base, _) => *base,
            };
            let iov_base = base.wrapping_add(skip).cast_mut().cast();
            room.push(libc::iovec { iov_base, iov_len: piece.len() - skip });
            skip = 0;
        }
    }

    fn consume(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(first) = self.pieces.front() {
            let rest = first.len() - self.sent;
            if count < rest {
                self.sent += count;
                break;
            }
            count -= rest;
            self.sent = 0;
            match self.pieces.pop_front() {
                Some(Piece::Gathered(length)) => self.gone += length,
                Some(Piece::Lent(..)) => self.lent -= 1,
                Some(Piece::Owned(data)) => self.sent_buffers.push(data),
                None => {}
            }
        }
        // A queue that is never quite empty must not keep all that has left.
        if self.gone == self.gathered.len() {
            self.gone = 0;
            if self.gathered.capacity() > ROOM {
                self.gathered = Vec::new();
            } else {
                self.gathered.clear();
            }
        } else if self.gone > KEPT && self.gone * 2 > self.gathered.len() {
            self.gathered.drain(..self.gone);
            self.gone = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Stream, UnixStream) {
        let (mine, other) = UnixStream::pair().unwrap();
        (Stream::unix(mine).unwrap(), other)
    }

    #[test]
    fn pieces_leave_in_their_order_however_full_the_socket_is() {
        let (stream, mut other) = pair();
        let pages: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let mut out = Out::default();
        let mut wanted = Vec::new();
        let mut got = Vec::new();
        let mut room = Room::default();
        for round in 0..20u8 {
            out.append(|tail| tail.extend_from_slice(&[round; 16]));
            wanted.extend_from_slice(&[round; 16]);
            // SAFETY: `pages` outlives `out`.
            unsafe { out.lend(pages.as_ptr(), pages.len()) };
            wanted.extend_from_slice(&pages);
            out.push(vec![round; 40_000].into());
            wanted.extend_from_slice(&vec![round; 40_000]);
            let done = out.flush(&stream, &mut room).unwrap();
            assert_eq!(done, out.len() == 0);
            if round % 3 == 0 {
                out.own().unwrap();
                assert!(!out.is_lent());
            }
            let mut part = vec![0; 200_000];
            let count = other.read(&mut part).unwrap();
            got.extend_from_slice(&part[..count]);
        }
        while got.len() < wanted.len() {
            out.flush(&stream, &mut room).unwrap();
            let mut part = vec![0; 200_000];
            let count = other.read(&mut part).unwrap();
            got.extend_from_slice(&part[..count]);
        }
        assert!(got == wanted && out.len() == 0 && !out.is_lent());
    }
}
