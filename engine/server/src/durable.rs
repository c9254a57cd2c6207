//! Flushes, and FUA writes to files. A few of them are written through to the disk each on its own
//! (RWF_DSYNC), which waits for nobody else's bytes; many share one commit, which is cheaper for
//! each, though it waits for all that is dirty.

use std::sync::Arc;

use vs_io::{Committer, Device, Kind as DeviceKind, T1Object};

use crate::event_loop::Loop;
use crate::mailbox::{Committed, Message, SubData, Waiting, fail};
use crate::op::{Fail, Kind};
use crate::remote::{Object, RemoteKey, Submit};
use crate::slab::Token;

/// Most FUA writes of a wake-up to one device that are written through one by one.
const FEW: usize = 8;
/// Longest one that is.
const SHORT: u64 = 64 << 10;

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

impl Loop {
    /// Carries out the FUA writes that this wake-up has brought.
    pub fn write_durably(&mut self) {
        while let Some(first) = self.durables.first() {
            let slot = first.device.slot;
            let (these, others) = std::mem::take(&mut self.durables)
                .into_iter()
                .partition::<Vec<Durable>, _>(|durable| durable.device.slot == slot);
            self.durables = others;
            if these.len() <= FEW && these.iter().all(|durable| durable.length <= SHORT) {
                these.into_iter().for_each(|durable| self.write_through(durable));
            } else {
                self.write_and_commit(these);
            }
        }
    }

    fn write_through(&mut self, durable: Durable) {
        let Durable { op, part, t1, device, start, at, length } = durable;
        let Some(shown) = self.ops.get(op) else { return };
        let data = shown.data[at as usize..(at + length) as usize].to_vec();
        self.pool_part(op, part, &t1, &device, move |device| {
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
            self.commit(&device, waiting);
        }
    }

    /// Flushes a device on behalf of an operation.
    pub fn flush_device(&mut self, token: Token, device: &Arc<Device>, leaf: u32) {
        let Some(op) = self.ops.get_mut(token) else { return };
        // One flush of a device is enough, however many leaves lie on it.
        if op.touch(device) {
            self.commit_device(token, device, leaf);
        }
    }

    /// Has what an operation wrote to a device become durable.
    pub fn commit_device(&mut self, token: Token, device: &Arc<Device>, leaf: u32) {
        let Some(op) = self.ops.get_mut(token) else { return };
        if matches!(device.kind, DeviceKind::Nbd(_)) {
            let key = RemoteKey::Nbd(Arc::from(device.id.as_str()));
            let kind = Kind::Flush;
            let to = Submit { op: token, kind, leaf, epoch: 0, offset: 0, length: 0, at: 0 };
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
    pub fn commit(&mut self, device: &Arc<Device>, waiting: Waiting) {
        let (mailbox, committed) = (self.mailbox.clone(), Arc::clone(device));
        let done = Box::new(move |result: Result<f64, vs_io::DeviceError>| {
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
