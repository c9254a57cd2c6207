//! Buffers for payloads, used again instead of being allocated and zeroed for each request.

use std::ops::{Deref, DerefMut};

/// The smallest, and the bytes that a loop keeps at most.
const SMALLEST: usize = 4096;
const KEPT: usize = 16 << 20;
/// Powers of two from `SMALLEST` on; the largest is all that is kept.
const CLASSES: usize = 13;

/// Bytes of one payload. What it held before is never shown: whoever takes one writes all of it
/// before it is read.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Box<[u8]>,
    length: usize,
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Buffer {
        Buffer { length: bytes.len(), bytes: bytes.into_boxed_slice() }
    }
}

/// Those of one loop that nobody uses.
#[derive(Debug, Default)]
pub struct Buffers {
    free: [Vec<Buffer>; CLASSES],
    kept: usize,
}

fn class(size: usize) -> usize {
    (size.max(SMALLEST).next_power_of_two() / SMALLEST).trailing_zeros() as usize
}

impl Buffers {
    /// One of `length` bytes of any content.
    pub fn take(&mut self, length: usize) -> Buffer {
        let class = class(length);
        if let Some(mut buffer) = self.free.get_mut(class).and_then(Vec::pop) {
            self.kept -= buffer.bytes.len();
            buffer.length = length;
            return buffer;
        }
        let size = if class < CLASSES { SMALLEST << class } else { length };
        Buffer { bytes: vec![0; size].into_boxed_slice(), length }
    }

    /// One with these bytes.
    pub fn copy(&mut self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.take(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Keeps a buffer for the next, if there is room for it.
    pub fn give(&mut self, buffer: Buffer) {
        let size = buffer.bytes.len();
        let class = class(size);
        if class < CLASSES && size == SMALLEST << class && self.kept + size <= KEPT {
            self.kept += size;
            self.free[class].push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_with_the_length_that_is_asked_for() {
        let mut buffers = Buffers::default();
        let first = buffers.take(5000);
        assert_eq!(first.len(), 5000);
        let place = first.as_ptr();
        buffers.give(first);
        let again = buffers.take(8192);
        assert_eq!((again.len(), again.as_ptr()), (8192, place));
        assert_eq!(&*buffers.copy(b"abc"), b"abc");
        buffers.give(Buffer::from(vec![0; 5000]));
        assert_eq!(buffers.kept, 0, "of no class");
        for _ in 0..5 {
            buffers.give(Buffer::from(vec![0; 8 << 20]));
        }
        assert_eq!(buffers.kept, 16 << 20);
        assert_eq!(buffers.take(0).len(), 0);
        assert_eq!(buffers.take(40 << 20).len(), 40 << 20);
    }
}
