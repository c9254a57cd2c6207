//! What there is: two storage processors with a leg each, the controller's store, three writes.

use crate::history::History;

/// An SP, and the leg at home there.
pub type Id = usize;
/// A fence epoch; the first tree's is 1.
pub type Epoch = u8;
/// 0: nothing was written yet; otherwise the write that left it.
pub type Value = u8;

pub const WRITES: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leg {
    InSync,
    WriteOnly,
    Away,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tree {
    pub epoch: Epoch,
    pub owner: u8,
    pub legs: [Leg; 2],
}

impl Tree {
    pub fn is_owner(&self, sp: Id) -> bool {
        usize::from(self.owner) == sp
    }

    pub fn in_sync(&self, leg: Id) -> bool {
        self.legs[leg] == Leg::InSync
    }

    pub fn whole(&self) -> bool {
        self.in_sync(0) && self.in_sync(1)
    }

    /// The leg that resyncs copy from, and that reads have alone until that is done.
    pub fn first(&self) -> Id {
        usize::from(!self.in_sync(0))
    }
}

/// A region on its way from one leg to the other, under the range lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Copy {
    pub to: u8,
    pub value: Value,
}

/// What a storage processor knows. A crash leaves it the tree alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sp {
    pub up: bool,
    pub tree: Tree,
    /// A resync is to be made; reads have one leg alone.
    pub pinned: bool,
    pub lease: bool,
    /// A write has ended on some legs alone.
    pub torn: bool,
    pub copy: Option<Copy>,
    /// The write-only leg has what it missed.
    pub copied: bool,
}

/// A leg's device. All of it outlives a crash of its SP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    pub value: Value,
    pub epoch: Epoch,
    /// The write-intent map has the block.
    pub dirty: bool,
    /// Writes that an owner sent before it crashed, which may still land, unless it says hello
    /// again: a bit for each (epoch, value).
    pub orphans: u32,
    /// Writes that a living owner no longer waits for, which may still land.
    pub given_up: u32,
}

/// The bit of a late write.
pub fn late(epoch: Epoch, value: Value) -> u32 {
    1 << ((epoch - 1) * 4 + value)
}

/// A write's part for one leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    None,
    Sent,
    Done,
    Stale,
}

/// Where one try of a write is. `gone`: nobody waits for its answer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Try {
    None,
    /// At the front end, in no tree yet.
    Here,
    /// At the front end until it has a tree later than this.
    Parked(Epoch),
    /// On its way to the owner, who is the other SP.
    Forwarded(Epoch, bool),
    /// At the owner, with the range lock.
    Running {
        owner: u8,
        epoch: Epoch,
        parts: [Part; 2],
        gone: bool,
    },
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// The front ends of its tries.
    pub at: [u8; 2],
    pub tries: [Try; 2],
    pub acknowledged: bool,
}

/// What the controller is doing; it becomes the store's tree with the commit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    pub next: Tree,
    /// Legs that are fenced, by bit.
    pub fenced: u8,
    /// The leg whose SP is left behind.
    pub without: Option<u8>,
}

/// A read that has its data and is not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Read {
    pub owner: u8,
    pub value: Value,
}

/// How often what may happen does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    pub writes: u8,
    /// By SP.
    pub crashes: [u8; 2],
    /// SPs left behind, crashed or not.
    pub ejects: u8,
    pub rejoins: u8,
    /// Moves of the owner.
    pub moves: u8,
    /// Second tries of writes.
    pub again: u8,
    pub reads: bool,
}

/// Rules that can be left out.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Homes refuse lower epochs.
    pub fence: bool,
    /// The lost owner's lease is waited for.
    pub await_lease: bool,
    /// Reads are answered under a lease.
    pub lease: bool,
    /// A write is acknowledged when all legs have it.
    pub all_legs: bool,
    /// Overlapping writes and copies take turns.
    pub lock: bool,
    /// The map has a region before it is written.
    pub intent: bool,
    /// The map is kept while a leg is away.
    pub keep_map: bool,
    /// Who begins as owner has the legs made alike.
    pub resync: bool,
    /// Until that is done reads have one leg at most.
    pub pin: bool,
    /// What a resync has not made alike yet is not read at all.
    pub made_alike: bool,
    /// A read beside a write waits for it.
    pub settled: bool,
    /// What was written in part is not read.
    pub torn: bool,
    /// A leg that was away gets what it missed before it is read.
    pub write_only: bool,
    /// A leg that comes back is fenced before it is written.
    pub fence_returning: bool,
    /// What waits at a path that its host has left never begins.
    pub expiry: bool,
    /// A new session of an owner ends what its older one left.
    pub hello: bool,
}

impl Rules {
    pub const ALL: Rules = Rules {
        fence: true,
        await_lease: true,
        lease: true,
        all_legs: true,
        lock: true,
        intent: true,
        keep_map: true,
        resync: true,
        pin: true,
        made_alike: true,
        settled: true,
        torn: true,
        write_only: true,
        fence_returning: true,
        expiry: true,
        hello: true,
    };
}

/// Everything at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub store: Tree,
    pub plan: Option<Plan>,
    pub sps: [Sp; 2],
    pub devices: [Device; 2],
    pub writes: [Write; WRITES],
    pub read: Option<Read>,
    pub history: History,
    pub left: Budget,
}

impl State {
    pub fn begin(budget: Budget) -> State {
        let tree = Tree { epoch: 1, owner: 0, legs: [Leg::InSync; 2] };
        let sp = Sp {
            up: true,
            tree,
            pinned: false,
            lease: false,
            torn: false,
            copy: None,
            copied: false,
        };
        let device = Device { value: 0, epoch: 1, dirty: false, orphans: 0, given_up: 0 };
        let write = Write { at: [0; 2], tries: [Try::None; 2], acknowledged: false };
        State {
            store: tree,
            plan: None,
            sps: [sp; 2],
            devices: [device; 2],
            writes: [write; WRITES],
            read: None,
            history: History::begin(),
            left: budget,
        }
    }

    /// Somebody holds the range lock at this owner.
    pub fn is_locked(&self, owner: Id) -> bool {
        self.sps[owner].copy.is_some() || self.is_writing(owner)
    }

    /// A write holds it.
    pub fn is_writing(&self, owner: Id) -> bool {
        let runs =
            |held: &Try| matches!(held, Try::Running { owner: o, .. } if usize::from(*o) == owner);
        self.writes.iter().flat_map(|write| &write.tries).any(runs)
    }

    /// True if the home of the leg serves this epoch.
    pub fn serves(&self, rules: &Rules, leg: Id, epoch: Epoch) -> bool {
        !rules.fence || epoch >= self.devices[leg].epoch
    }

    /// An owner speaks to the other home: its older session ends.
    pub fn hello(&mut self, rules: &Rules, to: Id) {
        if rules.hello {
            self.devices[to].orphans = 0;
        }
    }

    /// A read there is given up, to be made again.
    pub fn end_read(&mut self, owner: Id) {
        if self.read.is_some_and(|read| usize::from(read.owner) == owner) {
            self.read = None;
            self.history.read_ends(None);
        }
    }

    /// Why this state must not be, if so.
    pub fn wrong(&self) -> Option<&'static str> {
        if self.history.is_impossible() {
            return Some("a read gave what no order of the writes allows");
        }
        let [one, other] = &self.devices;
        let whole = self.store.whole() && self.plan.is_none();
        if whole && one.value != other.value && !one.dirty && !other.dirty {
            return Some("legs differ, and no map says so");
        }
        None
    }

    /// Nothing is under way, and everybody knows it.
    pub fn is_quiet(&self) -> bool {
        let over = |held: &Try| matches!(held, Try::None | Try::Over);
        let at_rest = |sp: &Sp| sp.up && sp.tree == self.store && !sp.pinned && sp.copy.is_none();
        self.plan.is_none()
            && self.read.is_none()
            && self.store.whole()
            && self.sps.iter().all(at_rest)
            && self.writes.iter().flat_map(|write| &write.tries).all(over)
    }
}
