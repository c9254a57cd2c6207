//! Requests to remotes as bytes.

use std::time::{Duration, Instant};

use vs_wire::change::Change;
use vs_wire::nbd::transmission::{Request as NbdRequest, encode_request};
use vs_wire::nbd::{command, command_flag};
use vs_wire::peer;

use crate::event_loop::{Loop, Shared};
use crate::op::Kind;
use crate::remote::{Object, Remote, RemoteKey, Submit};

/// Clocks part by less than this: one in so many milliseconds.
const DRIFT: u32 = 1000;

impl Remote {
    /// The other side has told its clock: it was not less ahead of ours then.
    pub fn learn(&mut self, clock: u32, shared: &Shared) {
        let now = Instant::now();
        self.ahead = (clock.wrapping_sub(shared.millis(now)), now);
    }

    /// The end of `forward_seconds` after that moment, by the other side's clock; rather too
    /// early than too late.
    fn until(&self, vouched: Instant, shared: &Shared) -> u32 {
        let (ahead, learned) = self.ahead;
        let age = learned.elapsed().as_millis() as u32;
        let span = Duration::from_secs_f64(shared.config.forward_seconds);
        shared.millis(vouched + span).wrapping_add(ahead).wrapping_sub(age / DRIFT)
    }

    /// Appends a request to the output, opening its object first if this session has not.
    pub fn encode(&mut self, id: u64, op: &crate::op::Op, shared: &Shared) {
        let Some(sent) = self.sent.get_mut(id) else { return };
        sent.tried = true;
        let object = sent.object.clone();
        let Submit { kind, epoch, offset, length, at, intent, .. } = sent.to;
        let data = match kind {
            Kind::Write => &op.data[at as usize..(at + length) as usize],
            kind if kind.brings() => &op.data[..],
            // One part is all of it.
            Kind::Change(_) => &op.data,
            _ => &[],
        };
        // What goes to one of several legs holds the range lock until it ends: nothing newer is
        // written there meanwhile, but by an owner that has fenced this one.
        let expires =
            (kind.changes() || kind == Kind::Reserve) && object != Object::Device && !intent;
        let until = if expires { self.until(op.vouched.unwrap_or(op.begun), shared) } else { 0 };
        let Remote { key, handles, next_handle, out, .. } = self;
        out.append(|tail| {
            if let (RemoteKey::Nbd(_), Object::Device) = (&*key, &object) {
                let (command, flags) = match kind {
                    // Block status of NBD devices is not asked for: see `device_part`.
                    // A change is none by then, but what it reads or writes.
                    Kind::Write | Kind::Change(_) => (command::WRITE, 0),
                    Kind::Flush | Kind::Clean { .. } => (command::FLUSH, 0),
                    // A trim may leave anything behind, and all legs have to read alike.
                    Kind::Trim => (command::WRITE_ZEROES, 0),
                    Kind::Zero { no_hole, .. } => {
                        (command::WRITE_ZEROES, if no_hole { command_flag::NO_HOLE } else { 0 })
                    }
                    _ => (command::READ, 0),
                };
                let request = NbdRequest { flags, command, cookie: id, offset, length };
                encode_request(&request, false, tail);
            } else {
                let (class, name) = match &object {
                    Object::T1(name) => (0, name),
                    Object::Volume(name) => (1, name),
                    Object::Device => return,
                };
                let next = next_handle;
                let handle = *handles.entry(object.clone()).or_insert_with(|| {
                    *next += 1;
                    let fresh = *next;
                    let open = peer::Request {
                        op: peer::Op::Open,
                        flags: 0,
                        handle: fresh,
                        id: 0,
                        epoch: 0,
                        offset: class,
                        length: 0,
                        payload: name.len() as u32,
                        until: 0,
                    };
                    open.encode(tail);
                    tail.extend_from_slice(name.as_bytes());
                    fresh
                });
                let mut flags = if op.fua { peer::FUA } else { 0 };
                flags |= if intent { peer::INTENT } else { 0 };
                flags |= if expires { peer::EXPIRES } else { 0 };
                let code = match kind {
                    Kind::Read => peer::Op::Read,
                    Kind::Write => peer::Op::Write,
                    Kind::Change(Change::CompareWrite) => peer::Op::CompareWrite,
                    Kind::Change(Change::Or) => peer::Op::Or,
                    Kind::Flush => peer::Op::Flush,
                    Kind::Trim => peer::Op::Trim,
                    Kind::Status => peer::Op::Status,
                    Kind::Dirty => peer::Op::Dirty,
                    Kind::Clean { .. } => peer::Op::Clean,
                    Kind::Recall => peer::Op::Recall,
                    Kind::Keep => peer::Op::Keep,
                    Kind::Reserve => peer::Op::Reserve,
                    Kind::View => peer::Op::View,
                    Kind::Zero { no_hole, fast } => {
                        flags |= if no_hole { peer::NO_HOLE } else { 0 };
                        flags |= if fast { peer::FAST_ZERO } else { 0 };
                        peer::Op::Zero
                    }
                };
                let payload = data.len() as u32;
                let op = code;
                peer::Request { op, flags, handle, id, epoch, offset, length, payload, until }
                    .encode(tail);
            }
            tail.extend_from_slice(data);
        });
    }
}

impl Loop {
    /// Closes the handles of a T1 object.
    pub fn drop_reference(&mut self, object: &str) {
        let object = Object::T1(object.into());
        for token in self.remotes.tokens() {
            let Some(remote) = self.remotes.get_mut(token) else { continue };
            let Some(handle) = remote.handles.remove(&object) else { continue };
            let request = peer::Request {
                op: peer::Op::Close,
                flags: 0,
                handle,
                id: 0,
                epoch: 0,
                offset: 0,
                length: 0,
                payload: 0,
                until: 0,
            };
            remote.out.append(|out| request.encode(out));
            self.mark_remote(token);
        }
    }
}
