//! The targets that iSCSI's initiators find here: the volumes that are served.

use std::sync::atomic::Ordering;

use vs_wire::iscsi::access::{Door, Nonce, Targets};

use crate::access::Accesses;
use crate::control::lock;
use crate::event_loop::LoopVolume;
use crate::iscsi_sessions::Sessions;
use crate::slab::{Slab, Token};
use crate::socket::Stream;

/// What comes before a volume's name in its target's.
pub const PREFIX: &str = "iqn.2026-11.io.vswitchd:";

/// They, as one connection finds them.
pub struct Offered<'a> {
    pub volumes: &'a Slab<LoopVolume>,
    pub access: &'a Accesses,
    pub sessions: &'a Sessions,
    /// The connection by which the initiator has come.
    pub stream: &'a Stream,
}

impl Offered<'_> {
    pub fn find(&self, target: &str) -> Option<(Token, &LoopVolume)> {
        let name = target.strip_prefix(PREFIX)?;
        self.volumes.iter().find(|(_, v)| v.volume.name == name && !v.leaving)
    }
}

impl Targets for Offered<'_> {
    fn all(&self, initiator: &str) -> Vec<(String, Vec<String>)> {
        let tag = self.sessions.tag.load(Ordering::Relaxed);
        let mut own = lock(&self.sessions.advertised).clone();
        if own.is_empty() {
            own = self.stream.local();
        }
        let admits = |v: &LoopVolume| self.access.demand(&v.volume.id, initiator).is_some();
        let served = self.volumes.iter().filter(|(_, v)| !v.leaving && admits(v));
        let mut names: Vec<_> = served
            .map(|(_, volume)| {
                let mut portals = vec![format!("{own},{tag}")];
                let known = volume.volume.guard.known();
                let others = known
                    .portals
                    .iter()
                    .filter(|portal| !portal.address.is_empty() && portal.tag != tag);
                portals.extend(others.map(|other| format!("{},{}", other.address, other.tag)));
                (format!("{PREFIX}{}", volume.volume.name), portals)
            })
            .collect();
        names.sort();
        names
    }

    fn door(&self, target: &str, initiator: &str) -> Door {
        let Some((_, volume)) = self.find(target) else { return Door::Absent };
        let demand = self.access.demand(&volume.volume.id, initiator);
        demand.map_or(Door::Closed, Door::Open)
    }

    fn nonce(&self) -> Option<Nonce> {
        let mut nonce = Nonce::from([0; 33]);
        getrandom::fill(&mut nonce).ok().map(|()| nonce)
    }
}
