//! What a target says of a command that is done.

use super::{Session, Status, Task, WINDOW};
use crate::iscsi::pdu::{self, HEADER, Header};
use crate::iscsi::{MAX_BURST, NONE, opcode};

/// A header with its digest.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; HEADER + 4],
    length: usize,
}

impl Head {
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Session {
    /// What comes before the data of a command that gives so many bytes, if it is one PDU with the
    /// status in it and nothing behind the data. Nothing has happened yet; `answered` says that
    /// it was sent.
    #[must_use]
    pub fn head(&self, number: u32, length: usize) -> Option<Head> {
        let task = self.tasks.get(&number)?;
        let most = self.agreed.max_send.min(self.agreed.max_burst) as usize;
        let whole = task.reads && !task.aborted && task.expected as usize == length;
        if !whole
            || length == 0
            || length > most
            || !length.is_multiple_of(4)
            || self.agreed.digests.data
        {
            return None;
        }
        // As `count` will leave them.
        let open = WINDOW.saturating_sub(self.tasks.len() as u32 - 1);
        let most = self.expected.wrapping_add(open).wrapping_sub(1);
        let ahead = (most.wrapping_sub(self.most) as i32) > 0;
        let mut header = Header::new(opcode::DATA_IN, 0x01, number);
        header.put(20, NONE);
        header.put(24, self.status);
        header.put(28, self.expected);
        header.put(32, if ahead { most } else { self.most });
        let mut head = Head { bytes: [0; HEADER + 4], length: 0 };
        head.length = pdu::begin_in(&mut head.bytes, &header, length, self.digests());
        Some(head)
    }

    /// A command's `head` and data are on their way.
    pub fn answered(&mut self, number: u32, out: &mut Vec<u8>) {
        self.forget(number);
        let mut header = Header::new(opcode::DATA_IN, 0, number);
        self.count(&mut header, true);
        self.ended(number, out);
    }

    /// Answers a command. `data`: what it gives, all of it. What the initiator did not expect is left
    /// out, and told.
    pub fn answer(&mut self, number: u32, status: Status<'_>, data: &[u8], out: &mut Vec<u8>) {
        let Some(mut task) = self.forget(number) else { return };
        if !task.aborted {
            self.say(number, &mut task, status, data, out);
        }
        self.ended(number, out);
    }

    fn say(
        &mut self,
        number: u32,
        task: &mut Task,
        status: Status<'_>,
        data: &[u8],
        out: &mut Vec<u8>,
    ) {
        let most = if task.reads { task.expected as usize } else { 0 };
        let sent = &data[..data.len().min(most)];
        let moved = if status.code == 0 && !task.reads { task.needs } else { data.len() as u64 };
        let (flag, rest) = residual(moved, task.expected);
        let plain = status.code == 0 && !sent.is_empty();
        let mut at = 0;
        while at < sent.len() {
            let burst = (self.agreed.max_burst as usize).min(MAX_BURST as usize);
            let left = (sent.len() - at).min(burst - at % burst);
            let length = left.min(self.agreed.max_send as usize);
            let last = at + length == sent.len();
            let ends = last || length == left;
            let mut header = Header::new(opcode::DATA_IN, 0, number);
            header.0[1] = if ends { 0x80 } else { 0 };
            header.put(20, NONE);
            let with_status = last && plain;
            if with_status {
                header.0[1] |= 0x01 | flag;
                header.put(44, rest);
            }
            self.count(&mut header, with_status);
            header.put(36, task.asked);
            header.put(40, at as u32);
            if !with_status {
                header.put(24, 0);
            }
            task.asked += 1;
            pdu::emit(out, &header, &sent[at..at + length], self.digests());
            at += length;
        }
        if plain {
            return;
        }
        let mut header = Header::new(opcode::RESPONSE, flag, number);
        header.0[3] = status.code;
        self.count(&mut header, true);
        header.put(36, task.asked);
        header.put(44, rest);
        let mut sense = Vec::new();
        if !status.sense.is_empty() {
            sense.extend_from_slice(&(status.sense.len() as u16).to_be_bytes());
            sense.extend_from_slice(status.sense);
        }
        pdu::emit(out, &header, &sense, self.digests());
    }

    fn ended(&mut self, number: u32, out: &mut Vec<u8>) {
        self.task_ended(number, out);
        self.ask(out);
    }
}

/// The residual's flag and count (RFC 7143, 11.4.5).
fn residual(moved: u64, expected: u32) -> (u8, u32) {
    let expected = u64::from(expected);
    if moved > expected {
        (0x04, (moved - expected).min(u64::from(u32::MAX)) as u32)
    } else if moved < expected {
        (0x02, (expected - moved) as u32)
    } else {
        (0, 0)
    }
}
