//! The short way for requests that lie in files here and need not wait: no operation, no
//! copy of the payload.

use std::sync::Arc;
use std::time::Instant;

use vs_io::{Device, Kind as DeviceKind, Look, Put, T1Object, TryRead};
use vs_tree::{Access, ReadChoice, Routed, Target};

use crate::active::Leaf;
use crate::event_loop::Loop;
use crate::mailbox::fail;
use crate::metrics::{DeviceTable, OpName};
use crate::op::Fail;
use crate::out::Out;
use crate::slab::Token;
use crate::turns::Turns;

/// Longest read that is copied from the page cache at once; resident pages are sent from where
/// they are, however many.
const COPIED: u64 = 64 << 10;

/// What came of an attempt.
pub enum Inline {
    Done,
    Failed(Fail),
    /// It has to become an operation; nothing was done.
    No,
}

/// Has what is much used of a device become resident.
pub fn admit(device: &Arc<Device>) {
    let job = Arc::clone(device);
    // Not refused when many wait: nobody asks again before it has run, so there is only one.
    device.pool.post(move || {
        if let DeviceKind::File(file) = &job.kind {
            file.admit();
        }
    });
}

fn check(t1: &T1Object, epoch: u64, offset: u64, length: u64) -> Result<(), Fail> {
    if !t1.serves(epoch) {
        return Err(Fail::Stale);
    }
    if offset + length > t1.size() {
        return Err(Fail::Invalid);
    }
    Ok(())
}

/// The parts of a loop that a read needs.
struct Reader<'a> {
    /// Where the parts found so far are resident.
    found: &'a mut Vec<(usize, usize)>,
    devices: &'a mut DeviceTable,
}

impl Reader<'_> {
    /// Looks for a range; false if not all of it is resident.
    fn look(&mut self, t1: &T1Object, offset: u64, length: u64) -> bool {
        let found = t1.map(offset, length, |device, start, count, _| {
            let DeviceKind::File(file) = &device.kind else { return Err(()) };
            match file.look(start, count) {
                Look::Here(at) => {
                    self.found.push((at as usize, count as usize));
                    self.devices.of(device).done(OpName::Read, count, true);
                    return Ok(());
                }
                Look::Wanted => admit(device),
                Look::Away => {}
            }
            Err(())
        });
        found.is_ok()
    }

    /// Lends what was found.
    fn lend(&mut self, out: &mut Out, head: impl FnOnce(&mut Vec<u8>)) {
        out.append(head);
        for (at, length) in self.found.drain(..) {
            // SAFETY: resident pages of a device that is here. It stays mapped until the loop
            // has handled a message, and `Loop::own_all` comes before that.
            unsafe { out.lend(at as *const u8, length) };
        }
    }

    /// Reads what the page cache has; false if that is not all, or fails: the long way tries
    /// other legs.
    fn copy(&mut self, t1: &T1Object, offset: u64, buffer: &mut [u8]) -> bool {
        let length = buffer.len() as u64;
        let done = t1.map(offset, length, |device, start, count, at| {
            let DeviceKind::File(file) = &device.kind else { return Err(()) };
            match file.try_read(start, &mut buffer[at as usize..(at + count) as usize]) {
                Ok(TryRead::Done) => {
                    self.devices.of(device).done(OpName::Read, count, true);
                    Ok(())
                }
                _ => Err(()),
            }
        });
        done.is_ok()
    }
}

/// Appends `head` and what `read` puts into so many bytes after it; nothing if it says false.
fn append(
    out: &mut Out,
    head: impl FnOnce(&mut Vec<u8>),
    length: u64,
    read: impl FnOnce(&mut [u8]) -> bool,
) -> Inline {
    out.append(|out| {
        let before = out.len();
        head(out);
        let start = out.len();
        out.resize(start + length as usize, 0);
        if read(&mut out[start..]) {
            Inline::Done
        } else {
            out.truncate(before);
            Inline::No
        }
    })
}

/// True if a write to the range can be expected not to wait.
fn is_quick(t1: &T1Object, turns: &Turns, offset: u64, length: u64) -> bool {
    if turns.blocks(&t1.spec.id, offset, length) {
        return false;
    }
    let quick = t1.map(offset, length, |device, start, count, _| match &device.kind {
        DeviceKind::File(file) if !file.holds_up(start, count) => Ok(()),
        _ => Err(()),
    });
    quick.is_ok()
}

/// Writes; None if it would have to wait all the same. Some of it may have been written then.
fn write_t1(
    devices: &mut DeviceTable,
    t1: &T1Object,
    offset: u64,
    data: &[u8],
) -> Result<(), Option<Fail>> {
    t1.map(offset, data.len() as u64, |device, start, count, at| {
        let DeviceKind::File(file) = &device.kind else { return Err(Some(Fail::Io)) };
        let data = &data[at as usize..(at + count) as usize];
        let done = file.put(start, data, false);
        match done {
            Ok(Put::WouldBlock) => return Err(None),
            Ok(Put::Wanted) => admit(device),
            _ => {}
        }
        devices.of(device).done(OpName::Write, count, done.is_ok());
        done.map(drop).map_err(|error| Some(fail(&error)))
    })
}

impl Loop {
    /// Answers a read of a connection: `head`, then the data.
    pub fn inline_read(
        &mut self,
        conn: Token,
        volume: Token,
        offset: u64,
        length: u64,
        head: impl FnOnce(&mut Vec<u8>),
    ) -> Inline {
        let Loop { volumes, conns, pieces, found, devices, spread, now, .. } = self;
        let Some(volume) = volumes.get(volume) else { return Inline::No };
        let Some(conn) = conns.get_mut(conn) else { return Inline::No };
        let active = &volume.active;
        if volume.held {
            return Inline::No;
        }
        // The long way, if that is what it comes to, takes the same turn.
        let turn = spread.wrapping_add(1);
        let (leased, mirrored) = (!active.voters.is_empty(), active.tree.has_mirror());
        if (leased && !volume.lease.holds(*now)) || active.is_unlike(offset, length) {
            return Inline::No;
        }
        let choice = ReadChoice { pinned: active.pinned, avoid: &[], spread: turn };
        let routed = active.tree.route(Access::Read, offset, length, &choice, pieces);
        if routed != Routed::Ready {
            return Inline::No;
        }
        found.clear();
        let mut reader = Reader { found, devices };
        // What is lent leaves later: the lease may be over then, and a write under way.
        let mut resident = !mirrored;
        for piece in &*pieces {
            let Target::Leaf(leaf) = piece.target else { return Inline::No };
            let Leaf::Local(t1) = &active.leaves[leaf as usize] else { return Inline::No };
            if !t1.in_files() || check(t1, active.epoch, piece.offset, piece.length).is_err() {
                return Inline::No;
            }
            resident = resident && reader.look(t1, piece.offset, piece.length);
        }
        if resident {
            *spread = turn;
            reader.lend(&mut conn.out, head);
            return Inline::Done;
        }
        if length > COPIED {
            return Inline::No;
        }
        let settled = volume.volume.lock.settled();
        let copied = append(&mut conn.out, head, length, |buffer| {
            let read = pieces.iter().all(|piece| {
                let Target::Leaf(leaf) = piece.target else { return false };
                let Leaf::Local(t1) = &active.leaves[leaf as usize] else { return false };
                let span = piece.at as usize..(piece.at + piece.length) as usize;
                reader.copy(t1, piece.offset, &mut buffer[span])
            });
            // This process may have been stopped since the lease was looked at.
            let lock = &volume.volume.lock;
            let unsettled = || lock.is_unsettled(offset, length) || lock.settled() != settled;
            read && !(mirrored && unsettled()) && (!leased || volume.lease.holds(Instant::now()))
        });
        if matches!(copied, Inline::Done) {
            *spread = turn;
        }
        copied
    }

    /// Writes through to the files; for requests without FUA.
    pub fn inline_write(&mut self, token: Token, conn: Token, offset: u64, data: &[u8]) -> Inline {
        let Loop { volumes, pieces, devices, shared, .. } = self;
        let Some(volume) = volumes.get(token) else { return Inline::No };
        let active = &volume.active;
        if volume.held {
            return Inline::No;
        }
        let locked = active.tree.has_mirror();
        // Tokens of connections and operations may be equal; the loop's index past all loops
        // keeps the two kinds of holder apart.
        let holder = (self.index + shared.mailboxes.len(), conn);
        let length = data.len() as u64;
        let choice = ReadChoice::default();
        let routed = active.tree.route(Access::Write, offset, length, &choice, pieces);
        let t1_of = |target| match target {
            Target::Leaf(leaf) => match &active.leaves[leaf as usize] {
                Leaf::Local(t1) => Some(t1),
                _ => None,
            },
            Target::Owner => None,
        };
        // All of it is looked at before any of it is written: to stop half-way would leave the
        // legs of a mirror different. A fence that comes meanwhile waits for this loop.
        let ready = routed == Routed::Ready
            && pieces.iter().all(|piece| {
                t1_of(piece.target).is_some_and(|t1| {
                    check(t1, active.epoch, piece.offset, piece.length).is_ok()
                        && is_quick(t1, &shared.turns, piece.offset, piece.length)
                })
            })
            && Loop::noted(active, pieces);
        if !ready || (locked && !volume.volume.lock.try_acquire(offset, length, holder)) {
            return Inline::No;
        }
        if locked && active.recent.touch(offset, length) {
            shared.sweep(&volume.volume.id);
        }
        let mut result = Inline::Done;
        for piece in &*pieces {
            let Some(t1) = t1_of(piece.target) else { break };
            let part = &data[piece.at as usize..(piece.at + piece.length) as usize];
            match write_t1(devices, t1, piece.offset, part) {
                Ok(()) => {}
                Err(Some(error)) => result = Inline::Failed(error),
                // The long way writes all of it again.
                Err(None) if matches!(result, Inline::Done) => result = Inline::No,
                Err(None) => {}
            }
        }
        let failed = !matches!(result, Inline::Done);
        if locked {
            if failed {
                volume.volume.lock.tear(offset, length);
            }
            let granted = volume.volume.lock.release(holder);
            self.grant(granted);
        }
        // The long way knows what to do about a leg that fails.
        if locked && failed { Inline::No } else { result }
    }

    /// Answers a peer's read of a T1 object here; like `inline_read`.
    pub fn inline_t1_read(
        &mut self,
        conn: Token,
        t1: &T1Object,
        epoch: u64,
        offset: u64,
        length: u64,
        head: impl FnOnce(&mut Vec<u8>),
    ) -> Inline {
        if !t1.in_files() {
            return Inline::No;
        }
        if let Err(error) = check(t1, epoch, offset, length) {
            self.fencing_rejections += u64::from(error == Fail::Stale);
            return Inline::Failed(error);
        }
        let Loop { conns, found, devices, .. } = self;
        let Some(conn) = conns.get_mut(conn) else { return Inline::No };
        found.clear();
        let mut reader = Reader { found, devices };
        if reader.look(t1, offset, length) {
            reader.lend(&mut conn.out, head);
            return Inline::Done;
        }
        if length > COPIED {
            return Inline::No;
        }
        append(&mut conn.out, head, length, |buffer| reader.copy(t1, offset, buffer))
    }

    /// A peer's write to a T1 object here; for requests without FUA.
    pub fn inline_t1_write(
        &mut self,
        t1: &T1Object,
        epoch: u64,
        offset: u64,
        data: &[u8],
        intent: bool,
    ) -> Inline {
        if !t1.in_files() {
            return Inline::No;
        }
        let length = data.len() as u64;
        if let Err(error) = check(t1, epoch, offset, length) {
            self.fencing_rejections += u64::from(error == Fail::Stale);
            return Inline::Failed(error);
        }
        if !is_quick(t1, &self.shared.turns, offset, length)
            || (intent && !t1.intends(offset, length))
        {
            return Inline::No;
        }
        match write_t1(&mut self.devices, t1, offset, data) {
            Ok(()) => Inline::Done,
            Err(Some(error)) => Inline::Failed(error),
            Err(None) => Inline::No,
        }
    }
}
