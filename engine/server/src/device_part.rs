//! What an operation does on a device here: at once, on the device's pool, or over its session.

use std::sync::Arc;

use vs_io::{Device, Full, Kind as DeviceKind, Put, T1Object, TryRead};

use crate::durable::Durable;
use crate::event_loop::Loop;
use crate::inline::admit;
use crate::mailbox::{Message, SubData, fail};
use crate::op::{Fail, Kind, NO_LEAF};
use crate::remote::{Object, RemoteKey, Submit};
use crate::slab::Token;

impl Loop {
    #[allow(clippy::too_many_arguments)]
    pub fn device_part(
        &mut self,
        token: Token,
        t1: &Arc<T1Object>,
        device: &Arc<Device>,
        leaf: u32,
        start: u64,
        count: u64,
        at: u64,
    ) {
        let Some(op) = self.ops.get_mut(token) else { return };
        match op.kind {
            Kind::Dirty => return op.status.push((at, device.regions.runs(start, count))),
            Kind::Clean { .. } => {
                let part = op.part(at, leaf);
                return self.pool_part(token, part, t1, device, move |device| {
                    let mut blocking = device.blocking().map_err(|e| fail(&e))?;
                    let done = device.regions.clear(&mut *blocking, start, count);
                    done.map(|()| SubData::None).map_err(|e| fail(&e))
                });
            }
            _ => {}
        }
        let DeviceKind::File(file) = &device.kind else {
            if op.kind == Kind::Status {
                return op.status.push((at, vec![(count, 0)]));
            }
            if op.fua && op.kind.changes() {
                op.touch(device, leaf);
            }
            let key = RemoteKey::Nbd(Arc::from(device.id.as_str()));
            let kind = op.kind;
            let (offset, length) = (start, count);
            let to = Submit { op: token, kind, leaf, epoch: 0, offset, length, at, intent: false };
            return self.send_remote(key, &device.uri, Object::Device, Some(Arc::clone(t1)), to);
        };
        let span = at as usize..(at + count) as usize;
        let (kind, name) = (op.kind, op.kind.name());
        let counters = self.devices.of(device);
        let done = match kind {
            Kind::Read => match file.try_read(start, &mut op.data[span]) {
                Ok(TryRead::Done) => Ok(()),
                Err(error) => Err(fail(&error)),
                Ok(TryRead::WouldBlock) => {
                    let part = op.part(at, leaf);
                    return self.pool_part(token, part, t1, device, move |device| {
                        let DeviceKind::File(file) = &device.kind else { return Err(Fail::Io) };
                        let mut data = vec![0; count as usize];
                        file.read(start, &mut data).map_err(|e| fail(&e))?;
                        Ok(SubData::Bytes(data))
                    });
                }
            },
            Kind::Write if op.fua && !file.is_slow() && file.checksums().is_none() => {
                let part = op.part(at, leaf);
                op.pending += 1;
                counters.done(name, count, true);
                counters.mixture.plain -= count;
                let (t1, device) = (Arc::clone(t1), Arc::clone(device));
                let durable = Durable { op: token, part, t1, device, start, at, length: count };
                return self.durables.push(durable);
            }
            Kind::Write => {
                if op.fua {
                    op.touch(device, leaf);
                }
                let put = if file.is_slow() {
                    Ok(Put::WouldBlock)
                } else {
                    file.put(start, &op.data[span.clone()], op.fua)
                };
                match put {
                    Ok(Put::WouldBlock) => {
                        let data = op.data[span].to_vec();
                        let part = op.part(at, leaf);
                        counters.done(name, count, true);
                        return self.pool_part(token, part, t1, device, move |device| {
                            let DeviceKind::File(file) = &device.kind else { return Err(Fail::Io) };
                            file.write(start, &data).map(|()| SubData::None).map_err(|e| fail(&e))
                        });
                    }
                    Ok(Put::Wanted) => {
                        admit(device);
                        Ok(())
                    }
                    Ok(Put::Done) => Ok(()),
                    Err(error) => Err(fail(&error)),
                }
            }
            Kind::Status => {
                let part = op.part(at, leaf);
                counters.done(name, count, true);
                return self.pool_part(token, part, t1, device, move |device| {
                    let DeviceKind::File(file) = &device.kind else { return Err(Fail::Io) };
                    let mut runs = Vec::new();
                    let done = file.status(start, count, &mut runs);
                    done.map(|()| SubData::Status(runs)).map_err(|e| fail(&e))
                });
            }
            Kind::Trim | Kind::Zero { .. } => {
                if op.fua {
                    op.touch(device, leaf);
                }
                let part = op.part(at, leaf);
                counters.done(name, count, true);
                return self.pool_part(token, part, t1, device, move |device| {
                    let DeviceKind::File(file) = &device.kind else { return Err(Fail::Io) };
                    let done = match kind {
                        Kind::Zero { no_hole, .. } => file.zero(start, count, !no_hole),
                        _ => file.trim(start, count),
                    };
                    done.map(|()| SubData::None).map_err(|e| fail(&e))
                });
            }
            // It has become a read or a write by now.
            Kind::Change(_) => Err(Fail::Invalid),
            Kind::Flush | Kind::Dirty | Kind::Clean { .. } => Ok(()),
            // Not of a device.
            Kind::Recall | Kind::Keep | Kind::Reserve | Kind::View => Ok(()),
        };
        counters.done(name, count, done.is_ok());
        match done {
            Ok(()) => op.wrote |= kind.changes(),
            Err(error) => op.note(error, leaf),
        }
    }

    /// Puts a range of a T1 object into the write-intent map, for an operation that runs again
    /// afterwards.
    pub fn mark_part(
        &mut self,
        token: Token,
        t1: &Arc<T1Object>,
        leaf: u32,
        from: u64,
        count: u64,
    ) {
        let _: Result<(), ()> = t1.map(from, count, |device, start, count, _| {
            if device.regions.hold(start, count) {
                return Ok(());
            }
            let Some(op) = self.ops.get_mut(token) else { return Err(()) };
            let part = op.part(0, leaf);
            self.pool_part(token, part, t1, device, move |device| {
                let mut blocking = device.blocking().map_err(|e| fail(&e))?;
                let done = device.regions.set(&mut *blocking, start, count);
                done.map(|()| SubData::None).map_err(|e| fail(&e))
            });
            Ok(())
        });
    }

    /// Runs a part on the device's pool; a fence of the T1 object waits for it. If too many wait
    /// for that device already, the operation goes on after a moment: it keeps its place in its
    /// connection's admission, so that a device that does not answer fills its own queue, then
    /// the connections that want it, and nothing else.
    pub fn pool_part(
        &mut self,
        op: Token,
        piece: u32,
        t1: &Arc<T1Object>,
        device: &Arc<Device>,
        job: impl FnOnce(&Device) -> Result<SubData, Fail> + Send + 'static,
    ) {
        let (gate, on, mailbox) = (Arc::clone(t1), Arc::clone(device), self.mailbox.clone());
        let side = t1.begin();
        let taken = device.pool.submit(move || {
            let result = job(&on);
            gate.end(side);
            mailbox.post(Message::SubDone { op, piece, result });
        });
        let Some(op) = self.ops.get_mut(op) else { return };
        match taken {
            // Its end comes through the mailbox, which this loop reads later.
            Ok(()) => op.pending += 1,
            Err(Full) => {
                t1.end(side);
                op.end_part(piece);
                op.note(Fail::NotFound, NO_LEAF);
            }
        }
    }
}
