//! What a connection has still to send: small things gathered, large ones as they are.

use std::collections::VecDeque;
use std::io;

use crate::socket::Stream;

/// Pieces of at least this are sent from where they are instead of being gathered.
const LARGE: usize = 32 << 10;
/// iovecs in one send.
const GATHER: usize = 64;

/// An output queue.
#[derive(Default)]
pub struct Out {
    full: VecDeque<Vec<u8>>,
    tail: Vec<u8>,
    /// Bytes of the first piece that have been sent.
    sent: usize,
    bytes: usize,
}

impl Out {
    /// Where small things are appended; call `grown` with the length from before.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Counts what has been appended to the tail since it had this length.
    pub fn grown(&mut self, before: usize) {
        self.bytes += self.tail.len() - before;
    }

    pub fn push(&mut self, data: Vec<u8>) {
        if data.len() < LARGE {
            self.tail.extend_from_slice(&data);
        } else {
            let tail = std::mem::take(&mut self.tail);
            if !tail.is_empty() {
                self.full.push_back(tail);
            }
            self.bytes += data.len();
            self.full.push_back(data);
            return;
        }
        self.bytes += data.len();
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn clear(&mut self) {
        *self = Out::default();
    }

    /// Sends until all is gone or the socket is full. True: all is gone.
    pub fn flush(&mut self, stream: &Stream) -> io::Result<bool> {
        while self.bytes > 0 {
            let mut pieces: Vec<libc::iovec> = Vec::with_capacity(8);
            let whole = self.full.iter().chain(std::iter::once(&self.tail));
            for (index, piece) in whole.filter(|piece| !piece.is_empty()).take(GATHER).enumerate() {
                let rest = if index == 0 { &piece[self.sent..] } else { &piece[..] };
                let iov_base = rest.as_ptr().cast_mut().cast();
                pieces.push(libc::iovec { iov_base, iov_len: rest.len() });
            }
            match stream.send(&pieces) {
                Ok(count) => self.consume(count),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn consume(&mut self, mut count: usize) {
        self.bytes -= count;
        while count > 0 {
            if let Some(first) = self.full.front() {
                let rest = first.len() - self.sent;
                if count < rest {
                    self.sent += count;
                    return;
                }
                count -= rest;
                self.sent = 0;
                self.full.pop_front();
            } else {
                self.sent += count;
                count = 0;
            }
        }
        if self.full.is_empty() && self.sent == self.tail.len() {
            self.tail.clear();
            self.sent = 0;
        }
    }
}
