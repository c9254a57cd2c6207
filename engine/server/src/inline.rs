//! The short way for requests that lie in files here and need not wait: no operation, no
//! copy of the payload.

use std::collections::HashMap;
use std::sync::Arc;

use vs_io::{Kind as DeviceKind, T1Object, TryRead};
use vs_tree::{Access, ReadChoice, Routed, Target};

use crate::active::{Active, Leaf};
use crate::event_loop::Loop;
use crate::mailbox::fail;
use crate::metrics::{DeviceCounters, OpName};
use crate::op::Fail;
use crate::slab::Token;

/// What came of an attempt.
pub enum Inline {
    Done,
    Failed(Fail),
    /// It has to become an operation; nothing was done.
    No,
}

/// Reads from a T1 object into `buffer` if all of it is in the page cache.
fn read_t1(t1: &T1Object, epoch: u64, offset: u64, buffer: &mut [u8]) -> Result<TryRead, Fail> {
    if !t1.serves(epoch) {
        return Err(Fail::Stale);
    }
    if offset + buffer.len() as u64 > t1.size() {
        return Err(Fail::Invalid);
    }
    let length = buffer.len() as u64;
    let done = t1.map(offset, length, |device, start, count, at| {
        let DeviceKind::File(file) = &device.kind else { return Err(None) };
        match file.try_read(start, &mut buffer[at as usize..(at + count) as usize]) {
            Ok(TryRead::Done) => Ok(()),
            Ok(TryRead::WouldBlock) => Err(None),
            Err(error) => Err(Some(fail(&error))),
        }
    });
    match done {
        Ok(()) => Ok(TryRead::Done),
        Err(None) => Ok(TryRead::WouldBlock),
        Err(Some(error)) => Err(error),
    }
}

fn write_t1(t1: &T1Object, epoch: u64, offset: u64, data: &[u8]) -> Result<(), Fail> {
    if !t1.serves(epoch) {
        return Err(Fail::Stale);
    }
    if offset + data.len() as u64 > t1.size() {
        return Err(Fail::Invalid);
    }
    t1.map(offset, data.len() as u64, |device, start, count, at| {
        let DeviceKind::File(file) = &device.kind else { return Err(Fail::Io) };
        file.write(start, &data[at as usize..(at + count) as usize]).map_err(|e| fail(&e))
    })
}

fn in_files(t1: &T1Object) -> bool {
    t1.devices().iter().all(|device| matches!(device.kind, DeviceKind::File(_)))
}

impl Loop {
    /// True if requests of the volume may take the short way now.
    fn can_inline(&self, volume: Token) -> Option<Arc<Active>> {
        let volume = self.volumes.get(volume)?;
        (volume.active.inline && !volume.held).then(|| Arc::clone(&volume.active))
    }

    /// Appends the data of a read to `out`; whatever the outcome but `Done`, `out` is as before.
    pub fn inline_read(
        &mut self,
        volume: Token,
        offset: u64,
        length: u64,
        out: &mut Vec<u8>,
    ) -> Inline {
        let Some(active) = self.can_inline(volume) else { return Inline::No };
        self.spread = self.spread.wrapping_add(1);
        let choice = ReadChoice { pinned: active.pinned, avoid: &[], spread: self.spread };
        let routed = active.tree.route(Access::Read, offset, length, &choice, &mut self.pieces);
        if routed != Routed::Ready {
            return Inline::No;
        }
        let start = out.len();
        out.resize(start + length as usize, 0);
        for piece in &self.pieces {
            let Target::Leaf(leaf) = piece.target else { break };
            let Leaf::Local(t1) = &active.leaves[leaf as usize] else { break };
            let at = start + piece.at as usize;
            let buffer = &mut out[at..at + piece.length as usize];
            if !matches!(read_t1(t1, active.epoch, piece.offset, buffer), Ok(TryRead::Done)) {
                // Errors too: the long way tries the other legs.
                out.truncate(start);
                return Inline::No;
            }
            count_device(&mut self.devices, t1, OpName::Read, piece.length);
        }
        Inline::Done
    }

    /// Writes through to the files; for requests without FUA.
    pub fn inline_write(&mut self, volume: Token, conn: Token, offset: u64, data: &[u8]) -> Inline {
        let Some(active) = self.can_inline(volume) else { return Inline::No };
        let length = data.len() as u64;
        let locked = active.tree.has_mirror();
        let Some(shared) = self.volumes.get(volume).map(|v| Arc::clone(&v.volume)) else {
            return Inline::No;
        };
        // Tokens of connections and operations may be equal; the loop's index past all loops
        // keeps the two kinds of holder apart.
        let holder = (self.index + self.shared.mailboxes.len(), conn);
        if locked && !shared.lock.try_acquire(offset, length, holder) {
            return Inline::No;
        }
        let choice = ReadChoice::default();
        let routed = active.tree.route(Access::Write, offset, length, &choice, &mut self.pieces);
        let mut result = if routed == Routed::Ready { Inline::Done } else { Inline::No };
        for piece in &self.pieces {
            let Target::Leaf(leaf) = piece.target else { break };
            let Leaf::Local(t1) = &active.leaves[leaf as usize] else { break };
            let part = &data[piece.at as usize..(piece.at + piece.length) as usize];
            match write_t1(t1, active.epoch, piece.offset, part) {
                Ok(()) => count_device(&mut self.devices, t1, OpName::Write, piece.length),
                // What was written is written again by the long way, on the next tree.
                Err(Fail::Stale) => {
                    result = Inline::No;
                    break;
                }
                Err(error) => {
                    result = Inline::Failed(error);
                    break;
                }
            }
        }
        if locked {
            let granted = shared.lock.release(holder);
            self.grant(granted);
        }
        result
    }

    /// A peer's read of a T1 object here; like `inline_read`.
    pub fn inline_t1_read(
        &mut self,
        t1: &T1Object,
        epoch: u64,
        offset: u64,
        length: u64,
        out: &mut Vec<u8>,
    ) -> Inline {
        if !in_files(t1) {
            return Inline::No;
        }
        let start = out.len();
        out.resize(start + length as usize, 0);
        match read_t1(t1, epoch, offset, &mut out[start..]) {
            Ok(TryRead::Done) => {
                count_device(&mut self.devices, t1, OpName::Read, length);
                return Inline::Done;
            }
            Ok(TryRead::WouldBlock) => {}
            Err(error) => {
                out.truncate(start);
                return self.rejected(error);
            }
        }
        out.truncate(start);
        Inline::No
    }

    /// A peer's write to a T1 object here, without FUA.
    pub fn inline_t1_write(
        &mut self,
        t1: &T1Object,
        epoch: u64,
        offset: u64,
        data: &[u8],
    ) -> Inline {
        if !in_files(t1) {
            return Inline::No;
        }
        match write_t1(t1, epoch, offset, data) {
            Ok(()) => {
                count_device(&mut self.devices, t1, OpName::Write, data.len() as u64);
                Inline::Done
            }
            Err(error) => self.rejected(error),
        }
    }

    fn rejected(&mut self, error: Fail) -> Inline {
        if error == Fail::Stale {
            self.fencing_rejections += 1;
        }
        Inline::Failed(error)
    }
}

fn count_device(
    devices: &mut HashMap<String, DeviceCounters>,
    t1: &T1Object,
    op: OpName,
    bytes: u64,
) {
    let Some(extent) = t1.spec.extents.first() else { return };
    if let Some(counters) = devices.get_mut(&extent.device) {
        counters.done(op, bytes, true);
    } else {
        devices.entry(extent.device.clone()).or_default().done(op, bytes, true);
    }
}
