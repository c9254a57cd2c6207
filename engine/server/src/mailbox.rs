//! How other threads talk to a loop: a queue and an eventfd.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use vs_io::{Device, DeviceError};

use crate::active::Volume;
use crate::control::Lost;
use crate::handover::{Basket, Handed};
use crate::metrics::{LoopMetrics, Transport};
use crate::op::Fail;
use crate::reserve::Ask;
use crate::slab::Token;
use crate::socket::Stream;

/// What a pool job brings back.
#[derive(Debug)]
pub enum SubData {
    None,
    Bytes(Vec<u8>),
    /// Block status: (length, flags).
    Status(Vec<(u64, u32)>),
    /// Of kinds that tell something.
    Answer(Vec<u8>),
}

/// Parts that wait for a commit: (operation, its part).
pub type Waiting = Vec<(Token, u32)>;

/// How a commit of a device went, and the parts that waited for it.
pub struct Committed {
    pub device: Arc<Device>,
    pub waiting: Waiting,
    /// Seconds of the fdatasync.
    pub result: Result<f64, Fail>,
}

/// What a loop can be told.
pub enum Message {
    Accept(Stream, Transport),
    /// A part of an operation has ended on another thread.
    SubDone {
        op: Token,
        piece: u32,
        result: Result<SubData, Fail>,
    },
    /// A commit that this loop asked for has ended.
    Committed(Committed),
    /// The range lock is this operation's now.
    Granted(Token),
    /// It is this operation's turn at its T1 object.
    Turn(Token, u64),
    /// Say when all writes that were begun before have been done, or are counted at their T1 objects.
    Pass {
        from: usize,
        op: Token,
        serial: u64,
    },
    Passed {
        op: Token,
        serial: u64,
    },
    /// The turn that this operation's writes have met is over.
    Unblocked(Token, u64),
    /// End the volume's sessions; answer when none is left.
    Leave(String, Sender<()>),
    /// End those of the volume's sessions that its access does not admit, then answer.
    Readmit(String, Sender<()>),
    /// Start no new operations of the volume, and give up what waits for these objects; answer
    /// when none is in flight.
    Quiesce(String, Arc<Lost>, Sender<()>),
    /// Use the volume's current tree, and run what was parked.
    Adopt(Arc<Volume>, Sender<()>),
    /// The volume is gone: end its sessions.
    Forget(String, Sender<()>),
    /// Answer when all that was begun before has been done.
    Barrier(Sender<()>),
    /// Close the handles of a T1 object.
    DropReference(String, Sender<()>),
    /// Look for copy work of this volume.
    Copy(String),
    /// The volume has been written to: clear its write-intent map after a while.
    Sweep(String),
    /// Say what hosts of this volume have met here.
    Observe(String),
    /// End the peer session of that connection, then tell the other loop's connection.
    EndPeer {
        conn: Token,
        waiter: (usize, Token),
    },
    PeerEnded(Token),
    /// A newer session of its nexus has come: close the connection, then tell that session's.
    EndIscsi {
        conn: Token,
        waiter: (usize, Token),
    },
    IscsiEnded(Token),
    /// Something is asked of the volume's reservations, for the loop that keeps them.
    Ask(Box<Ask>),
    /// Somebody wants to know this volume's reservations.
    Want(String),
    /// The volume's reservations are others, or known again: the round of this.
    Reserved(String, u64),
    /// A loop has nothing more under way that it began before that round.
    Drained(String, u64),
    Metrics(Sender<LoopMetrics>),
    /// Go on with a session that another process has handed over.
    Take(Box<Handed>),
    /// Take no new requests of hosts; answer when theirs are answered and their sessions have ended,
    /// or are in the basket, if there is one. Peers are served meanwhile.
    Part(Option<Basket>, Sender<()>),
    /// Take no new connections and requests; answer when all is answered.
    Shutdown(Sender<()>),
    Exit,
}

impl Message {
    /// True if pages that replies lie in may be somebody else's once it is answered.
    pub fn takes_away(&self) -> bool {
        !matches!(
            self,
            Message::Accept(..)
                | Message::SubDone { .. }
                | Message::Committed(_)
                | Message::Granted(_)
                | Message::Turn(..)
                | Message::Pass { .. }
                | Message::Passed { .. }
                | Message::Unblocked(..)
                | Message::Copy(_)
                | Message::Observe(_)
                | Message::EndPeer { .. }
                | Message::PeerEnded(_)
                | Message::Ask(_)
                | Message::Want(_)
                | Message::Reserved(..)
                | Message::Drained(..)
                | Message::Metrics(_)
        )
    }
}

struct Inner {
    queue: Mutex<Vec<Message>>,
    event: OwnedFd,
}

/// A loop's mailbox; clones are the same box.
#[derive(Clone)]
pub struct Mailbox(Arc<Inner>);

impl Mailbox {
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> std::io::Result<Mailbox> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and nobody else owns it.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Mailbox(Arc::new(Inner { queue: Mutex::default(), event })))
    }

    pub fn fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }

    pub fn post(&self, message: Message) {
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let wake = queue.is_empty();
        queue.push(message);
        drop(queue);
        if wake {
            let one = 1u64.to_ne_bytes();
            // SAFETY: writes 8 bytes from `one`. It can only fail when the counter is full,
            // and then the loop is awake anyway.
            unsafe { libc::write(self.fd(), one.as_ptr().cast(), 8) };
        }
    }

    /// All that has come, and quiets the eventfd.
    pub fn take(&self) -> Vec<Message> {
        let mut count = [0u8; 8];
        // SAFETY: reads at most 8 bytes into `count`; EAGAIN is fine.
        unsafe { libc::read(self.fd(), count.as_mut_ptr().cast(), 8) };
        std::mem::take(&mut *self.0.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Makes a device's error an operation's.
pub fn fail(error: &DeviceError) -> Fail {
    use vs_io::ErrorKind as K;
    match error.kind {
        K::NoSpace => Fail::NoSpace,
        K::Invalid => Fail::Invalid,
        K::Stale => Fail::Stale,
        _ => Fail::Io,
    }
}
