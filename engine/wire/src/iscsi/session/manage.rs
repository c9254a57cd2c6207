//! Task management (RFC 7143, 11.5 and 11.6), and what a target says unasked (11.9).

use super::{Event, Session, WINDOW};
use crate::iscsi::pdu::{self, Header};
use crate::iscsi::{NONE, opcode};
use crate::scsi::LUN;

const ABORT_TASK: u8 = 1;
const ABORT_TASK_SET: u8 = 2;
const CLEAR_TASK_SET: u8 = 4;
const LUN_RESET: u8 = 5;
const TARGET_WARM_RESET: u8 = 6;
const REASSIGN: u8 = 8;

/// Answers (RFC 7143, 11.6.1).
const COMPLETE: u8 = 0;
const NO_TASK: u8 = 1;
const NO_LUN: u8 = 2;
const NO_REASSIGN: u8 = 4;
const UNKNOWN: u8 = 5;
const REJECTED: u8 = 255;

/// A task management request that waits for tasks to end.
#[derive(Debug)]
pub(super) struct Abort {
    task: u32,
    waits: Vec<u32>,
    /// For those of other sessions too.
    others: bool,
}

impl Session {
    pub(super) fn manage(&mut self, header: &Header, out: &mut Vec<u8>) -> Event {
        let all = || self.tasks.keys().copied().collect::<Vec<u32>>();
        let function = header.0[1] & 0x7f;
        let others = matches!(function, CLEAR_TASK_SET | LUN_RESET | TARGET_WARM_RESET);
        let (waits, answer) = match function {
            ABORT_TASK if self.tasks.contains_key(&header.get(20)) => {
                (vec![header.get(20)], COMPLETE)
            }
            ABORT_TASK => (Vec::new(), NO_TASK),
            ABORT_TASK_SET | CLEAR_TASK_SET | LUN_RESET if header.lun() != LUN => {
                (Vec::new(), NO_LUN)
            }
            ABORT_TASK_SET | CLEAR_TASK_SET | LUN_RESET | TARGET_WARM_RESET => (all(), COMPLETE),
            REASSIGN => (Vec::new(), NO_REASSIGN),
            _ => (Vec::new(), UNKNOWN),
        };
        let others = others && answer == COMPLETE && self.agreed.target.is_some();
        let full = self.aborts.len() >= WINDOW as usize;
        let left = self.abort(&waits);
        if full && (others || !left.is_empty()) {
            self.managed(header.task(), REJECTED, out);
            return Event::Nothing;
        }
        if left.is_empty() && !others {
            self.managed(header.task(), answer, out);
            return Event::Nothing;
        }
        self.aborts.push(Abort { task: header.task(), waits: left, others });
        let (task, clears) = (header.task(), function == CLEAR_TASK_SET);
        if others { Event::Reset { task, clears } } else { Event::Nothing }
    }

    /// Nobody waits for these any more; gives those that are being carried out.
    fn abort(&mut self, tasks: &[u32]) -> Vec<u32> {
        let mut left = Vec::new();
        for &number in tasks {
            let Some(task) = self.tasks.get_mut(&number) else { continue };
            if task.running {
                task.aborted = true;
                left.push(number);
            } else {
                self.forget(number);
            }
        }
        left
    }

    /// Another session has ended all that this one has under way.
    pub fn abort_all(&mut self) {
        let all: Vec<u32> = self.tasks.keys().copied().collect();
        self.abort(&all);
    }

    /// True if nobody waits for its answer, or it is no task any more.
    #[must_use]
    pub fn is_aborted(&self, number: u32) -> bool {
        self.tasks.get(&number).is_none_or(|task| task.aborted)
    }

    /// What others had under way for an `Event::Reset` has ended, or will not.
    pub fn reset_done(&mut self, task: u32, ended: bool, out: &mut Vec<u8>) {
        let Some(at) = self.aborts.iter().position(|abort| abort.task == task && abort.others)
        else {
            return;
        };
        self.aborts[at].others = false;
        if !ended {
            self.aborts.remove(at);
            return self.managed(task, REJECTED, out);
        }
        if self.aborts[at].waits.is_empty() {
            self.aborts.remove(at);
            self.managed(task, COMPLETE, out);
        }
    }

    /// Tells those who wait for a task's end.
    pub(super) fn task_ended(&mut self, number: u32, out: &mut Vec<u8>) {
        for abort in &mut self.aborts {
            abort.waits.retain(|waited| *waited != number);
        }
        let (done, open) = std::mem::take(&mut self.aborts)
            .into_iter()
            .partition::<Vec<_>, _>(|abort| abort.waits.is_empty() && !abort.others);
        self.aborts = open;
        for abort in done {
            self.managed(abort.task, COMPLETE, out);
        }
    }

    fn managed(&mut self, task: u32, answer: u8, out: &mut Vec<u8>) {
        let mut header = Header::new(opcode::TASK_RESPONSE, 0, task);
        header.0[2] = answer;
        self.count(&mut header, true);
        pdu::emit(out, &header, &[], self.digests());
        self.ask(out);
    }

    /// Asks the initiator to log out within so many seconds: the connection is closed then.
    pub fn ask_logout(&mut self, seconds: u16, out: &mut Vec<u8>) {
        let mut header = Header::new(opcode::ASYNC, 0, NONE);
        self.count(&mut header, true);
        header.put(36, 1 << 24);
        header.put(40, u32::from(seconds));
        pdu::emit(out, &header, &[], self.digests());
    }
}
