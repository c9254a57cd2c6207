//! Flushes, and FUA writes to files. These are written through to the disk each on its own
//! (RWF_DSYNC), which waits for nobody else's bytes, or share one commit, which is cheaper for
//! each, though it waits for all that is dirty: whichever is likely to be done sooner.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vs_io::{Committer, Device, Kind as DeviceKind, T1Object};

use crate::event_loop::Loop;
use crate::mailbox::{Committed, Message, SubData, Waiting, fail};
use crate::op::{Fail, Kind};
use crate::remote::{Object, RemoteKey, Submit};
use crate::slab::Token;

/// Longest FUA write that is written through alone.
const SHORT: u64 = 64 << 10;
/// Microseconds of a commit, of each page that it writes, and of a write alone, as four run at a
/// time: measured on a disk where one alone takes 130. Only their ratios matter.
const COMMIT: u64 = 100;
const PAGE: u64 = 10;
const ALONE: u64 = 58;
/// Writes that are worth a commit: the disk is busy with it while the loop writes the next.
const COMMITTED: usize = 16;
/// FUA writes after which what was before counts half.
const MEMORY: u64 = 256;

/// A part that is to be written and made durable before it ends.
pub struct Durable {
    pub op: Token,
    pub part: u32,
    pub t1: Arc<T1Object>,
    pub device: Arc<Device>,
    /// Where it goes on the device, and where it lies in the operation's data.
    pub start: u64,
    pub at: u64,
    pub length: u64,
}

/// What decides how FUA writes to a device are done, as one loop sees it: how many plain writes
/// come with them, since a commit has to write those too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mixture {
    /// Bytes of plain writes, and FUA writes; of late.
    pub plain: u64,
    fua: u64,
}

impl Mixture {
    /// True if so many writes are better done one by one than by a commit which all that are
    /// under way, they among them, would share.
    fn alone(&mut self, writes: u64, under_way: u64) -> bool {
        self.fua += writes;
        let shared =
            COMMIT / under_way.max(1) + PAGE + PAGE * (self.plain / 4096) / self.fua.max(1);
        if self.fua > MEMORY {
            self.fua /= 2;
            self.plain /= 2;
        }
        ALONE < shared
    }
}

/// Counts FUA writes of a device that are under way, until they have ended or were not begun.
pub struct Through(Arc<Device>, u64);

impl Through {
    fn new(device: &Arc<Device>, writes: u64) -> Through {
        device.through.fetch_add(writes, Ordering::Relaxed);
        Through(Arc::clone(device), writes)
    }
}

impl Drop for Through {
    fn drop(&mut self) {
        self.0.through.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl Loop {
    /// Carries out the FUA writes that this wake-up has brought.
    pub fn write_durably(&mut self) {
        while let Some(first) = self.durables.first() {
            let slot = first.device.slot;
            let (these, others) = std::mem::take(&mut self.durables)
                .into_iter()
                .partition::<Vec<Durable>, _>(|durable| durable.device.slot == slot);
            self.durables = others;
            let device = &these[0].device;
            let writes = these.len() as u64;
            let under_way = device.through.load(Ordering::Relaxed) + writes;
            let mixture = &mut self.devices.of(device).mixture;
            if mixture.alone(writes, under_way)
                && these.iter().all(|durable| durable.length <= SHORT)
            {
                these.into_iter().for_each(|durable| self.write_through(durable));
            } else {
                let mut these = these.into_iter().peekable();
                while these.peek().is_some() {
                    let some = these.by_ref().take(COMMITTED).collect();
                    self.write_and_commit(some);
                }
            }
        }
    }

    fn write_through(&mut self, durable: Durable) {
        let Durable { op, part, t1, device, start, at, length } = durable;
        let Some(shown) = self.ops.get(op) else { return };
        let data = shown.data[at as usize..(at + length) as usize].to_vec();
        let through = Through::new(&device, 1);
        self.pool_part(op, part, &t1, &device, move |device| {
            let _through = through;
            let DeviceKind::File(file) = &device.kind else { return Err(Fail::Io) };
            let done = file.write_through(start, &data);
            done.map(|()| SubData::None).map_err(|error| fail(&error))
        });
        // The job is counted in this one's place.
        self.part_ended(op);
    }

    fn write_and_commit(&mut self, durables: Vec<Durable>) {
        let Some(device) = durables.first().map(|first| Arc::clone(&first.device)) else { return };
        let DeviceKind::File(file) = &device.kind else { return };
        let mut waiting = Vec::with_capacity(durables.len());
        for Durable { op, part, start, at, length, .. } in durables {
            let Some(shown) = self.ops.get(op) else { continue };
            match file.write(start, &shown.data[at as usize..(at + length) as usize]) {
                Ok(()) => waiting.push((op, part)),
                Err(error) => self.sub_done(op, part, Err(fail(&error))),
            }
        }
        if !waiting.is_empty() {
            let through = Through::new(&device, waiting.len() as u64);
            self.commit(&device, waiting, Some(through));
        }
    }

    /// Flushes a device on behalf of an operation.
    pub fn flush_device(&mut self, token: Token, device: &Arc<Device>, leaf: u32) {
        let Some(op) = self.ops.get_mut(token) else { return };
        // One flush of a device is enough, however many leaves lie on it.
        if op.touch(device, leaf) {
            self.commit_device(token, device, leaf);
        }
    }

    /// Has what an operation wrote to a device become durable.
    pub fn commit_device(&mut self, token: Token, device: &Arc<Device>, leaf: u32) {
        let Some(op) = self.ops.get_mut(token) else { return };
        if matches!(device.kind, DeviceKind::Nbd(_)) {
            let key = RemoteKey::Nbd(Arc::from(device.id.as_str()));
            let kind = Kind::Flush;
            let (offset, length, at) = (0, 0, 0);
            let to = Submit { op: token, kind, leaf, epoch: 0, offset, length, at, intent: false };
            return self.send_remote(key, &device.uri, Object::Device, None, to);
        }
        op.pending += 1;
        let piece = op.part(0, leaf);
        // Asked for when this wake-up's requests have been dealt with: one commit for them all.
        match self.commits.iter_mut().find(|(known, _)| known.slot == device.slot) {
            Some((_, waiting)) => waiting.push((token, piece)),
            None => self.commits.push((Arc::clone(device), vec![(token, piece)])),
        }
    }

    /// Asks for a commit on behalf of these parts.
    pub fn commit(&mut self, device: &Arc<Device>, waiting: Waiting, through: Option<Through>) {
        let (mailbox, committed) = (self.mailbox.clone(), Arc::clone(device));
        let done = Box::new(move |result: Result<f64, vs_io::DeviceError>| {
            drop(through);
            let result = result.map_err(|error| {
                eprintln!("vswitchd engine: {error}");
                Fail::Io
            });
            mailbox.post(Message::Committed(Committed { device: committed, waiting, result }));
        });
        Committer::flush(device, done);
    }

    /// A commit that this loop asked for has ended.
    pub fn committed(&mut self, done: Committed) {
        let Committed { device, waiting, result } = done;
        if let Ok(seconds) = result {
            self.devices.of(&device).flush.add(seconds, waiting.len() as u64);
        }
        for (op, piece) in waiting {
            self.sub_done(op, piece, result.map(|_| SubData::None));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Mixture;

    fn after(plain: u64, fua: u64) -> Mixture {
        Mixture { plain: plain * 4096, fua }
    }

    #[test]
    fn what_comes_with_them_decides() {
        assert!(after(0, 100).alone(1, 1), "one waits for nobody");
        assert!(!after(0, 100).alone(1, 8), "many share a commit, as they come");
        assert!(!after(0, 100).alone(32, 32), "or at once");
        assert!(after(700, 100).alone(4, 30), "one in eight goes alone");
        // What was written before they began is forgotten.
        let mut mixture = after(16384, 0);
        let first = (0..1000).position(|_| !mixture.alone(1, 32));
        assert!(first.is_some_and(|count| (200..1000).contains(&count)), "{first:?}");
    }
}
