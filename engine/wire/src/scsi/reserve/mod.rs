//! Reservations of a logical unit (SPC-4, 5.13; SPC-2, 5.5): who is registered, who holds it, and
//! which commands that forbids. Pure: a record and a request in, the next record out.

mod change;
mod code;
mod rules;
mod tell;
mod view;

pub use change::{Outcome, Request, What, apply};
pub use rules::allows;
pub use tell::{reply, transport};
pub use view::{Look, Portal, Shown};

/// Most registrations of one unit.
pub const MOST: usize = 256;
/// Longest name of an initiator's port, in bytes.
pub const LONGEST: usize = 255;
/// Requests that are remembered, so that one that comes again is not carried out twice.
const REMEMBERED: usize = 16;
/// Most news that are kept for those who look at the record now and then.
const NEWS: usize = 2 * MOST;

/// An initiator's port with the port of the target that it has logged in at (SAM-5, 4.7).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nexus {
    /// `NAME,i,0xISID` (SPC-4, 7.6.4.6).
    pub initiator: String,
    /// The relative target port: the tag of the portal group.
    pub tag: u16,
}

impl Nexus {
    #[must_use]
    pub fn new(name: &str, isid: &[u8; 6], tag: u16) -> Nexus {
        let number = isid.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        let name = crate::prefix(name, LONGEST - 17);
        Nexus { initiator: format!("{name},i,0x{number:012x}"), tag }
    }
}

/// The type of a persistent reservation (SPC-4, 6.15.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrants = 5,
    ExclusiveAccessRegistrants = 6,
    WriteExclusiveAll = 7,
    ExclusiveAccessAll = 8,
}

impl Type {
    #[must_use]
    pub fn of(code: u8) -> Option<Type> {
        Some(match code {
            1 => Type::WriteExclusive,
            3 => Type::ExclusiveAccess,
            5 => Type::WriteExclusiveRegistrants,
            6 => Type::ExclusiveAccessRegistrants,
            7 => Type::WriteExclusiveAll,
            8 => Type::ExclusiveAccessAll,
            _ => return None,
        })
    }

    /// Everybody who is registered holds it.
    #[must_use]
    pub fn is_all(self) -> bool {
        matches!(self, Type::WriteExclusiveAll | Type::ExclusiveAccessAll)
    }

    /// Everybody who is registered may do what its holder may.
    #[must_use]
    pub fn is_shared(self) -> bool {
        let registrants =
            matches!(self, Type::WriteExclusiveRegistrants | Type::ExclusiveAccessRegistrants);
        registrants || self.is_all()
    }

    /// Reading is forbidden too.
    #[must_use]
    pub fn is_exclusive(self) -> bool {
        matches!(
            self,
            Type::ExclusiveAccess | Type::ExclusiveAccessRegistrants | Type::ExclusiveAccessAll
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    pub nexus: Nexus,
    pub key: u64,
}

/// A persistent reservation; of one of the "all registrants" types, by whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub nexus: Nexus,
    pub kind: Type,
}

/// What a change has to tell others: a unit attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Of the record that it came with.
    pub version: u64,
    /// Additional sense code with its qualifier.
    pub code: u16,
    /// What they have under way ends, and is not answered.
    pub aborts: bool,
    /// Whom it is for; None: everybody.
    pub to: Option<Nexus>,
    /// Who has done it: of that nothing is aborted, and it is told of resets alone.
    pub by: Nexus,
}

impl News {
    #[must_use]
    pub fn is_for(&self, nexus: &Nexus) -> bool {
        let all = self.code == crate::scsi::sense::RESET.code || *nexus != self.by;
        self.to.as_ref().map_or(all, |to| to == nexus)
    }

    /// True if what this one has under way ends, and is not answered.
    #[must_use]
    pub fn ends(&self, nexus: &Nexus) -> bool {
        self.aborts && *nexus != self.by && self.is_for(nexus)
    }
}

/// All that is known of a unit's reservations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Of the tree whose owner made it.
    pub epoch: u64,
    /// Rises with every change.
    pub version: u64,
    /// PRGENERATION.
    pub generation: u32,
    /// The last registration asked for persistence through a loss of power.
    pub aptpl: bool,
    pub registrations: Vec<Registration>,
    pub held: Option<Held>,
    /// By RESERVE(6) or (10).
    pub reserved: Option<Nexus>,
    /// Requests that have been carried out, the latest last.
    pub done: Vec<u128>,
    /// Not stored: whoever takes over has nothing to tell.
    pub news: Vec<News>,
}

impl Record {
    /// The later of two records is the one with the higher stamp.
    #[must_use]
    pub fn stamp(&self) -> (u64, u64) {
        (self.epoch, self.version)
    }

    /// True if it forbids anybody anything.
    #[must_use]
    pub fn restricts(&self) -> bool {
        self.held.is_some() || self.reserved.is_some()
    }

    #[must_use]
    pub fn key(&self, nexus: &Nexus) -> Option<u64> {
        let mut registrations = self.registrations.iter();
        registrations.find(|known| known.nexus == *nexus).map(|known| known.key)
    }

    /// True if the persistent reservation that there is is this one's.
    #[must_use]
    pub fn holds(&self, nexus: &Nexus) -> bool {
        self.held.as_ref().is_some_and(|held| {
            if held.kind.is_all() { self.key(nexus).is_some() } else { held.nexus == *nexus }
        })
    }
}
