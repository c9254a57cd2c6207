//! An operation: one request on its way through the tree.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;
use vs_io::{Device, T1Object, planted};
use vs_tree::Tree;
use vs_wire::change::Change;
use vs_wire::nbd::errno;
use vs_wire::nbd::transmission::Request;
use vs_wire::peer;

use crate::buffers::Buffer;
use crate::change::{Blocked, Changing};
use crate::compare::{Held, Sieve};
use crate::metrics::OpName;
use crate::slab::Token;

/// How a part of an operation, or all of it, failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fail {
    /// The tree is out of date: wait for the next.
    Stale,
    /// Whoever should carry it out does not have the object (yet): ask again before long.
    NotFound,
    Io,
    NoSpace,
    Invalid,
    NotSupported,
    /// The volume is going away.
    Shutdown,
    /// A reservation forbids it.
    Conflict,
    /// Of a COMPARE AND WRITE: it may have been carried out, or not.
    Unsure,
}

impl Fail {
    pub fn errno(self) -> u32 {
        match self {
            Fail::Stale | Fail::NotFound | Fail::Io | Fail::Unsure => errno::EIO,
            Fail::NoSpace => errno::ENOSPC,
            Fail::Invalid => errno::EINVAL,
            Fail::NotSupported => errno::ENOTSUP,
            Fail::Shutdown => errno::ESHUTDOWN,
            Fail::Conflict => errno::EPERM,
        }
    }

    pub fn status(self) -> peer::Status {
        match self {
            Fail::Stale => peer::Status::Stale,
            Fail::Io => peer::Status::Io,
            // The peer's request has not failed: another SP, or a later tree, will serve it.
            Fail::NotFound | Fail::Shutdown => peer::Status::NotFound,
            Fail::NoSpace => peer::Status::NoSpace,
            Fail::Invalid | Fail::Conflict => peer::Status::Invalid,
            Fail::NotSupported => peer::Status::NotSupported,
            Fail::Unsure => peer::Status::Unsure,
        }
    }

    pub fn from_status(status: peer::Status) -> Option<Fail> {
        match status {
            // What differs is told behind it.
            peer::Status::Ok | peer::Status::Differs => None,
            peer::Status::Unsure => Some(Fail::Unsure),
            peer::Status::Stale => Some(Fail::Stale),
            peer::Status::NotFound => Some(Fail::NotFound),
            peer::Status::Io | peer::Status::Busy => Some(Fail::Io),
            peer::Status::NoSpace => Some(Fail::NoSpace),
            peer::Status::Invalid => Some(Fail::Invalid),
            peer::Status::NotSupported => Some(Fail::NotSupported),
        }
    }

    pub fn from_errno(error: u32) -> Fail {
        match error {
            errno::ENOSPC => Fail::NoSpace,
            errno::EINVAL | errno::EOVERFLOW => Fail::Invalid,
            errno::ENOTSUP => Fail::NotSupported,
            _ => Fail::Io,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Fail::Stale | Fail::NotFound => "held_too_long",
            Fail::Io => "io",
            Fail::NoSpace => "no_space",
            Fail::Invalid => "invalid",
            Fail::NotSupported => "not_supported",
            Fail::Shutdown => "shutdown",
            Fail::Conflict => "reservation_conflict",
            Fail::Unsure => "unsure",
        }
    }
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Flush,
    Trim,
    Zero {
        no_hole: bool,
        fast: bool,
    },
    Status,
    /// Depends on what is there (`change.rs`).
    Change(Change),
    /// Which regions the write-intent maps of the legs have; answered as `Status` is.
    Dirty,
    /// Takes regions out of the maps, once all legs are flushed.
    Clean {
        flushed: bool,
    },
    /// What is kept with every T1 object: the volume's reservations.
    Recall,
    /// Keeps its data there; `offset` is their version.
    Keep,
    /// A change of the reservations, for the volume's owner.
    Reserve,
    /// A look at them, there.
    View,
}

impl Kind {
    pub fn name(self) -> OpName {
        match self {
            Kind::Read => OpName::Read,
            Kind::Write | Kind::Change(_) => OpName::Write,
            Kind::Flush => OpName::Flush,
            Kind::Trim => OpName::Trim,
            Kind::Zero { .. } => OpName::WriteZeroes,
            // Looks at a map and changes of it are nobody's requests, and counted nowhere.
            Kind::Status | Kind::Dirty | Kind::Recall | Kind::Reserve | Kind::View => {
                OpName::BlockStatus
            }
            Kind::Clean { .. } | Kind::Keep => OpName::Flush,
        }
    }

    /// What is asked of a leaf.
    pub fn of_leaf(self) -> Kind {
        match self {
            Kind::Clean { flushed: false } => Kind::Flush,
            other => other,
        }
    }

    /// True if every T1 object is asked as a whole.
    pub fn of_objects(self) -> bool {
        matches!(self.of_leaf(), Kind::Flush | Kind::Recall | Kind::Keep)
    }

    /// True if it is the owner who answers it, without looking at what is stored.
    pub fn asks_owner(self) -> bool {
        matches!(self, Kind::Reserve | Kind::View)
    }

    /// True if an answer of any length comes of it.
    pub fn tells(self) -> bool {
        self.asks_owner() || self == Kind::Recall
    }

    /// True if what it carries are reservations.
    pub fn brings(self) -> bool {
        self.asks_owner() || self == Kind::Keep
    }

    /// True if mirrors have to order it.
    pub fn changes(self) -> bool {
        matches!(self, Kind::Write | Kind::Trim | Kind::Zero { .. } | Kind::Change(_))
    }
}

/// Who waits for it.
#[derive(Clone, Debug)]
pub enum Source {
    Nbd {
        conn: Token,
        request: Request,
    },
    Iscsi {
        conn: Token,
        /// The initiator's name for it.
        task: u32,
    },
    Peer {
        conn: Token,
        id: u64,
        epoch: u64,
    },
    /// A region of a copy: the job is found by volume and path.
    Copy {
        path: Vec<usize>,
        resync: bool,
        task: usize,
    },
    /// The clearing of the write-intent map.
    Sweep,
    /// The question whether this owner still is one.
    Lease,
    /// The repair of what a leg could not read.
    Heal,
    /// The owner's keeping of the reservations.
    Keeper,
    /// A look at the owner's reservations.
    Viewer,
    /// A change of them that follows from something else; the task management request that waits
    /// for it, if one does.
    Errand(Option<(Token, u32)>),
}

impl Source {
    /// The connection of the host that asked.
    pub fn host(&self) -> Option<Token> {
        match self {
            Source::Nbd { conn, .. } | Source::Iscsi { conn, .. } => Some(*conn),
            _ => None,
        }
    }

    pub fn is_hosts(&self) -> bool {
        self.host().is_some()
    }
}

/// What it acts on.
#[derive(Clone, Debug)]
pub enum Scope {
    /// The volume, in volume space.
    Volume,
    /// Subtrees, each in its own space: reads use the first.
    Subtrees(Vec<Vec<usize>>),
    /// One T1 object, for a peer.
    T1(Arc<T1Object>),
}

/// A part that one device or peer carries out.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Where its bytes lie in `Op::data`.
    pub at: u64,
    /// Index of the leaf, or `NO_LEAF`.
    pub leaf: u32,
    /// Done, failed or given up.
    ended: bool,
}

/// A part's name is its index, and above these bits the run that it is of: one that was given up
/// may end when the operation has others.
const INDEX_BITS: u32 = 20;
const INDEX: u32 = (1 << INDEX_BITS) - 1;

pub const NO_LEAF: u32 = u32::MAX;

/// One request, from admission to reply.
#[derive(Debug)]
pub struct Op {
    pub source: Source,
    pub scope: Scope,
    pub kind: Kind,
    pub fua: bool,
    /// Of a peer's write to one of several legs: its regions go into the map first.
    pub intent: bool,
    /// Some part of it has been written, or may have been.
    pub wrote: bool,
    /// A read that waits in line with writes: legs may differ where it reads.
    pub ordered: bool,
    /// It has, and gives all legs what it read.
    pub settles: bool,
    /// `RangeLock::settled` when this run began.
    pub settled: usize,
    /// Its regions are being put into the map; then it is run again.
    pub marking: bool,
    /// The loop's volume; meaningless for a T1 scope.
    pub volume: Token,
    pub offset: u64,
    pub length: u64,
    /// A write's payload or a read's result.
    pub data: Buffer,
    /// Block status as it comes in: (offset in the request, runs).
    pub status: Vec<(u64, Vec<(u64, u32)>)>,
    /// Answers of kinds that tell something, each with its leaf, or `NO_LEAF`.
    pub answers: Vec<(u32, Vec<u8>)>,
    pub parts: SmallVec<[Part; 3]>,
    pub pending: u32,
    /// Counts its runs, and wraps.
    run: u32,
    /// When the parts of this run were sent on their way.
    pub routed: Instant,
    pub fail: Option<Fail>,
    pub failed_leaves: Vec<u32>,
    pub avoid: Vec<u32>,
    /// Of a comparison, what the legs read so far hold, and of a leg that it reads unit by unit.
    pub legs: Vec<Held>,
    pub sieve: Option<Sieve>,
    /// Of a change: how far it is here; the first byte that was not as it should be.
    pub changing: Option<Box<Changing>>,
    pub differs: Option<u32>,
    /// Parts that wait for the end of somebody's turn at their T1 objects.
    pub blocked: Vec<Blocked>,
    /// Only these leaves are written: they get again what they could not give back.
    pub heals: Vec<u32>,
    /// Devices written to by a FUA request, to be flushed before the reply, each with a leaf on it.
    pub touched: Vec<(Arc<Device>, u32)>,
    pub locked: bool,
    /// Counted in the volume's requests in flight.
    pub running: bool,
    pub begun: Instant,
    /// When whoever asked was last known to wait for it: what is sent on says so, so that it is
    /// not begun when they may have asked again elsewhere.
    pub vouched: Option<Instant>,
    /// A peer's request is not to be begun after this.
    pub until: Option<Instant>,
    /// While it is parked: run it again then, even if the tree is still the same.
    pub retry: Option<Instant>,
}

impl Op {
    pub fn new(source: Source, scope: Scope, kind: Kind, offset: u64, length: u64) -> Op {
        let now = Instant::now();
        Op {
            source,
            scope,
            kind,
            fua: false,
            intent: false,
            wrote: false,
            ordered: false,
            settles: false,
            settled: 0,
            marking: false,
            volume: Token::default(),
            offset,
            length,
            data: Buffer::default(),
            status: Vec::new(),
            answers: Vec::new(),
            parts: SmallVec::new(),
            pending: 0,
            run: 0,
            routed: now,
            fail: None,
            failed_leaves: Vec::new(),
            avoid: Vec::new(),
            legs: Vec::new(),
            changing: None,
            differs: None,
            blocked: Vec::new(),
            sieve: None,
            heals: Vec::new(),
            touched: Vec::new(),
            locked: false,
            running: false,
            begun: now,
            vouched: None,
            until: None,
            retry: None,
        }
    }

    /// What it locks, in volume space: (offset, length).
    pub fn range(&self, tree: &Tree) -> (u64, u64) {
        let Scope::Subtrees(paths) = &self.scope else { return (self.offset, self.length) };
        let cover = paths.first().map(|path| tree.cover(path, self.offset, self.length));
        cover.and_then(Result::ok).unwrap_or((0, tree.size()))
    }

    /// Remembers a part's failure. What has the whole run again outweighs all, and what
    /// needs another tree for that outweighs the rest.
    pub fn note(&mut self, fail: Fail, leaf: u32) {
        let failed = matches!(fail, Fail::Io | Fail::NoSpace) && self.kind.changes();
        if failed && planted("failed_write_acknowledged") {
            return;
        }
        let rank = |fail| match fail {
            Fail::Stale => 2,
            Fail::NotFound => 1,
            _ => 0,
        };
        if self.fail.is_none_or(|known| rank(fail) > rank(known)) {
            self.fail = Some(fail);
        }
        if leaf != NO_LEAF {
            self.failed_leaves.push(leaf);
        }
    }

    /// A part of it has ended, and nobody knows how.
    pub fn unsure(&mut self) {
        self.wrote |= self.kind.changes() && !self.marking;
    }

    /// Forgets what a run left, for the next.
    pub fn rewind(&mut self) {
        self.status.clear();
        self.answers.clear();
        self.parts.clear();
        self.run = (self.run + 1) & (u32::MAX >> INDEX_BITS);
        self.pending = 0;
        self.fail = None;
        self.marking = false;
        self.failed_leaves.clear();
        self.touched.clear();
        self.retry = None;
    }

    /// Remembers a device to be flushed; false if it is known already.
    pub fn touch(&mut self, device: &Arc<Device>, leaf: u32) -> bool {
        let new = !self.touched.iter().any(|(known, _)| known.slot == device.slot);
        if new {
            self.touched.push((Arc::clone(device), leaf));
        }
        new
    }

    /// Adds a part to this run; gives its name.
    pub fn part(&mut self, at: u64, leaf: u32) -> u32 {
        self.parts.push(Part { at, leaf, ended: false });
        self.run << INDEX_BITS | (self.parts.len() - 1) as u32
    }

    /// The part of that name, unless it has ended or is of an earlier run.
    pub fn expects(&self, name: u32) -> Option<Part> {
        let part = self.parts.get((name & INDEX) as usize).copied();
        part.filter(|part| name >> INDEX_BITS == self.run && !part.ended)
    }

    /// The same, which it has then been waited for long enough.
    pub fn end_part(&mut self, name: u32) -> Option<Part> {
        let part = self.expects(name)?;
        self.parts[(name & INDEX) as usize].ended = true;
        Some(part)
    }

    /// Leaves that this run still waits for.
    pub fn waits_for(&self) -> impl Iterator<Item = (u32, u32)> {
        let open = self.parts.iter().enumerate().filter(|(_, part)| !part.ended);
        let open = open.filter(|(_, part)| part.leaf != NO_LEAF);
        open.map(|(index, part)| (self.run << INDEX_BITS | index as u32, part.leaf))
    }
}
