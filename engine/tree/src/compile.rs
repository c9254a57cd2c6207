//! From a T2 object to an arena of nodes that can be walked without allocation.

use std::collections::HashSet;
use std::ops::Range;

use thiserror::Error;

use crate::route::Target;
use crate::spec::{LegState, Node, Spec};

/// Leaves and holes are multiples of this; so is every boundary inside a tree.
pub const BLOCK: u64 = 4096;
/// Deepest nesting taken; routing recurses no deeper.
pub const MAX_DEPTH: usize = 16;
/// Most nodes in one tree.
pub const MAX_NODES: usize = 65_536;
/// Most other SPs that one tree refers to.
pub const MAX_PEERS: usize = 1024;

/// Why a T2 object was not taken. The text names the node by its path of child indices.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TreeError {
    #[error("{path}: {what}")]
    Node { path: String, what: String },
    #[error("the volume's size {size} is above the {room} bytes that its tree holds")]
    Size { size: u64, room: u64 },
    #[error("the volume's size {0} is not a multiple of {BLOCK}")]
    Unaligned(u64),
    #[error("no home is given for T1 object {0}")]
    NoHome(String),
    #[error("no peer address is given for {0}")]
    NoPeer(String),
    #[error("the tree refers to more than {MAX_PEERS} other SPs")]
    TooManyPeers,
    #[error("there is no node at path {0:?}")]
    NoPath(Vec<usize>),
}

/// Another SP that this tree refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub sp: String,
    pub address: String,
}

/// Where a leaf's T1 object is: here (an LRN) or at a peer (an RRN; index into `Tree::peers`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Local,
    Remote(u16),
}

/// A reference to a T1 object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafRef {
    pub t1: String,
    pub size: u64,
    pub place: Place,
    /// It is under a mirror: writes to it are noted in the write-intent map.
    pub mirrored: bool,
    /// It is under a leg that is away.
    pub away: bool,
    /// Every leg above it is in sync.
    pub in_sync: bool,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Leaf(u32),
    Hole,
    Mirror {
        legs: Vec<(u32, LegState)>,
        /// The legs that reads take turns at while none has failed: of those in sync the
        /// local ones, or all if none is. Never empty.
        turns: Vec<u32>,
    },
    Stripe {
        chunk: u64,
        columns: Vec<u32>,
    },
    /// `starts[i]` is where part i begins; ascending from 0.
    Concat {
        parts: Vec<u32>,
        starts: Vec<u64>,
    },
}

impl Kind {
    pub fn child(&self, index: usize) -> Option<u32> {
        match self {
            Kind::Mirror { legs, .. } => legs.get(index).map(|leg| leg.0),
            Kind::Stripe { columns, .. } => columns.get(index).copied(),
            Kind::Concat { parts, .. } => parts.get(index).copied(),
            Kind::Leaf(_) | Kind::Hole => None,
        }
    }

    fn children(&self) -> Vec<u32> {
        (0..).map_while(|index| self.child(index)).collect()
    }
}

#[derive(Debug)]
pub(crate) struct Compiled {
    pub kind: Kind,
    pub size: u64,
    /// Leaves are numbered left to right, so a subtree's are an interval.
    pub leaves: Range<u32>,
    /// Every leaf of the subtree is here.
    pub local: bool,
    pub mirrored: bool,
    pub has_hole: bool,
}

/// A compiled tree. Immutable; a restructure replaces it whole.
#[derive(Debug)]
pub struct Tree {
    pub(crate) nodes: Vec<Compiled>,
    pub(crate) root: u32,
    leaves: Vec<LeafRef>,
    peers: Vec<Peer>,
    owner: Option<u16>,
    spec: Spec,
}

impl Tree {
    /// Checks a T2 object and compiles it.
    ///
    /// # Errors
    /// The first thing wrong with it.
    pub fn compile(spec: Spec) -> Result<Tree, TreeError> {
        if !spec.size.is_multiple_of(BLOCK) || spec.size == 0 {
            return Err(TreeError::Unaligned(spec.size));
        }
        let mut build = Builder {
            spec: &spec,
            nodes: Vec::new(),
            leaves: Vec::new(),
            peers: Vec::new(),
            seen: HashSet::new(),
        };
        let root = build.add(&spec.root, &mut Vec::new())?;
        let owner = if spec.owner == spec.sp { None } else { Some(build.peer(&spec.owner)?) };
        let Builder { nodes, leaves, peers, .. } = build;
        let room = nodes[root as usize].size;
        if spec.size > room {
            return Err(TreeError::Size { size: spec.size, room });
        }
        Ok(Tree { nodes, root, leaves, peers, owner, spec })
    }

    /// The T2 object that this was compiled from.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// What hosts see, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.spec.size
    }

    /// Every reference to a T1 object, left to right; `Target::Leaf` indexes this.
    #[must_use]
    pub fn leaves(&self) -> &[LeafRef] {
        &self.leaves
    }

    /// Every other SP that the tree refers to; `Place::Remote` indexes this.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// The owner as an index into `peers`, or None when this SP is the owner.
    #[must_use]
    pub fn owner(&self) -> Option<u16> {
        self.owner
    }

    /// True if this SP sequences the writes to the volume's mirrors.
    #[must_use]
    pub fn is_owner(&self) -> bool {
        self.owner.is_none()
    }

    /// True if any node is a mirror.
    #[must_use]
    pub fn has_mirror(&self) -> bool {
        self.nodes[self.root as usize].mirrored
    }

    /// True if the root is a mirror, whose legs then have the volume's own offsets.
    #[must_use]
    pub fn is_mirror(&self) -> bool {
        matches!(self.nodes[self.root as usize].kind, Kind::Mirror { .. })
    }

    /// True if any range is parked.
    #[must_use]
    pub fn has_hole(&self) -> bool {
        self.nodes[self.root as usize].has_hole
    }

    /// Where a flush of the volume has to go: every leaf, and, if this SP sends what is mirrored
    /// to the owner, the owner too.
    pub fn flush_targets(&self) -> impl Iterator<Item = Target> + '_ {
        let owner = (!self.is_owner() && self.has_mirror()).then_some(Target::Owner);
        self.present(0..self.leaves.len() as u32).map(Target::Leaf).chain(owner)
    }

    /// Those of these leaves that are not under a leg that is away.
    pub fn present(&self, leaves: Range<u32>) -> impl Iterator<Item = u32> + '_ {
        leaves.filter(|leaf| !self.leaves[*leaf as usize].away)
    }

    /// True if all of the volume can still be read without these leaves.
    #[must_use]
    pub fn survives(&self, lost: &[u32]) -> bool {
        self.whole(self.root, lost)
    }

    fn whole(&self, id: u32, lost: &[u32]) -> bool {
        match &self.nodes[id as usize].kind {
            Kind::Leaf(leaf) => !lost.contains(leaf),
            Kind::Hole => true,
            Kind::Mirror { legs, .. } => {
                let mut in_sync = legs.iter().filter(|leg| leg.1 == LegState::InSync);
                in_sync.any(|leg| self.whole(leg.0, lost))
            }
            Kind::Stripe { columns: below, .. } | Kind::Concat { parts: below, .. } => {
                below.iter().all(|&id| self.whole(id, lost))
            }
        }
    }

    /// True if some mirror's leg is not in sync.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.nodes.iter().any(|node| match &node.kind {
            Kind::Mirror { legs, .. } => legs.iter().any(|leg| leg.1 != LegState::InSync),
            _ => false,
        })
    }

    /// Paths of the mirrors whose legs a resync compares: those with two or more in-sync
    /// legs, outermost first.
    #[must_use]
    pub fn mirrors(&self) -> Vec<Vec<usize>> {
        let mut found = Vec::new();
        let mut todo = vec![(self.root, Vec::new())];
        while let Some((id, path)) = todo.pop() {
            let kind = &self.nodes[id as usize].kind;
            if let Kind::Mirror { legs, .. } = kind
                && legs.iter().filter(|leg| leg.1 == LegState::InSync).count() > 1
            {
                found.push(path.clone());
            }
            for (index, child) in kind.children().into_iter().enumerate() {
                let mut below = path.clone();
                below.push(index);
                todo.push((child, below));
            }
        }
        found.sort_by_key(Vec::len);
        found
    }

    /// The legs of the mirror at `path` with their states.
    ///
    /// # Errors
    /// `NoPath` if there is no mirror there.
    pub fn legs(&self, path: &[usize]) -> Result<Vec<LegState>, TreeError> {
        match &self.node(path)?.kind {
            Kind::Mirror { legs, .. } => Ok(legs.iter().map(|leg| leg.1).collect()),
            _ => Err(TreeError::NoPath(path.to_vec())),
        }
    }

    /// How many bytes the node at `path` holds.
    ///
    /// # Errors
    /// `NoPath` if there is no such node.
    pub fn node_size(&self, path: &[usize]) -> Result<u64, TreeError> {
        Ok(self.node(path)?.size)
    }

    /// The leaves under the node at `path`, as indices into `leaves`.
    ///
    /// # Errors
    /// `NoPath` if there is no such node.
    pub fn leaves_under(&self, path: &[usize]) -> Result<Range<u32>, TreeError> {
        Ok(self.node(path)?.leaves.clone())
    }

    pub(crate) fn node(&self, path: &[usize]) -> Result<&Compiled, TreeError> {
        Ok(&self.nodes[self.node_id(path)? as usize])
    }

    pub(crate) fn node_id(&self, path: &[usize]) -> Result<u32, TreeError> {
        let mut id = self.root;
        for &index in path {
            let child = self.nodes[id as usize].kind.child(index);
            id = child.ok_or_else(|| TreeError::NoPath(path.to_vec()))?;
        }
        Ok(id)
    }
}

struct Builder<'a> {
    spec: &'a Spec,
    nodes: Vec<Compiled>,
    leaves: Vec<LeafRef>,
    peers: Vec<Peer>,
    /// Two leaves over the same blocks would overwrite one another.
    seen: HashSet<&'a str>,
}

impl<'a> Builder<'a> {
    fn add(&mut self, node: &'a Node, path: &mut Vec<usize>) -> Result<u32, TreeError> {
        let here = path.iter().map(|index| format!("/{index}")).collect::<String>();
        let bad = |what: &str| TreeError::Node { path: format!("{here}/"), what: what.into() };
        if path.len() > MAX_DEPTH {
            return Err(bad("nested too deeply"));
        }
        if self.nodes.len() >= MAX_NODES {
            return Err(bad("too many nodes"));
        }
        let leaf_lo = self.leaves.len() as u32;
        let (kind, size) = match node {
            Node::Leaf { size, .. } | Node::Hole { size }
                if *size == 0 || !size.is_multiple_of(BLOCK) =>
            {
                return Err(bad(&format!("size {size} is not a positive multiple of {BLOCK}")));
            }
            Node::Leaf { t1, size } => {
                if !self.seen.insert(t1) {
                    return Err(bad(&format!("T1 object {t1} stands in the tree twice")));
                }
                let home = self.spec.homes.get(t1).ok_or_else(|| TreeError::NoHome(t1.clone()))?;
                let place = if *home == self.spec.sp {
                    Place::Local
                } else {
                    Place::Remote(self.peer(home)?)
                };
                let (t1, size) = (t1.clone(), *size);
                self.leaves.push(LeafRef {
                    t1,
                    size,
                    place,
                    mirrored: false,
                    away: false,
                    in_sync: true,
                });
                (Kind::Leaf(leaf_lo), size)
            }
            Node::Hole { size } => (Kind::Hole, *size),
            Node::Mirror { legs } => {
                if !legs.iter().any(|leg| leg.state == LegState::InSync) {
                    return Err(bad("a mirror needs a leg in sync"));
                }
                let ids = self.children(legs.iter().map(|leg| &leg.node), path)?;
                let size = ids.iter().map(|&id| self.size(id)).min().unwrap_or(0);
                let states = legs.iter().map(|leg| leg.state);
                let legs: Vec<(u32, LegState)> = ids.into_iter().zip(states).collect();
                for &(id, state) in &legs {
                    for leaf in self.nodes[id as usize].leaves.clone() {
                        let leaf = &mut self.leaves[leaf as usize];
                        leaf.mirrored = true;
                        leaf.away |= state == LegState::Away;
                        leaf.in_sync &= state == LegState::InSync;
                    }
                }
                let in_sync = legs.iter().filter(|leg| leg.1 == LegState::InSync);
                let mut turns: Vec<u32> = in_sync.map(|leg| leg.0).collect();
                let local = |id: &u32| self.nodes[*id as usize].local;
                if turns.iter().any(local) {
                    turns.retain(local);
                }
                (Kind::Mirror { legs, turns }, size)
            }
            Node::Stripe { chunk, columns } => {
                if !chunk.is_power_of_two() || *chunk < BLOCK {
                    return Err(bad("a stripe's chunk is a power of two from 4096"));
                }
                let ids = self.children(columns.iter(), path)?;
                let rows = ids.iter().map(|&id| self.size(id) / chunk).min().unwrap_or(0);
                let size = rows
                    .checked_mul(*chunk)
                    .and_then(|column| column.checked_mul(ids.len() as u64))
                    .filter(|&size| size > 0)
                    .ok_or_else(|| bad("a stripe needs columns of at least one chunk"))?;
                (Kind::Stripe { chunk: *chunk, columns: ids }, size)
            }
            Node::Concat { parts } => {
                let ids = self.children(parts.iter(), path)?;
                let mut starts = Vec::with_capacity(ids.len());
                let mut end = 0u64;
                for &id in &ids {
                    starts.push(end);
                    end = end.checked_add(self.size(id)).ok_or_else(|| bad("too large"))?;
                }
                if ids.is_empty() {
                    return Err(bad("a concat needs a part"));
                }
                (Kind::Concat { parts: ids, starts }, end)
            }
        };
        let below: Vec<&Compiled> =
            kind.children().into_iter().map(|id| &self.nodes[id as usize]).collect();
        let local = match &kind {
            Kind::Leaf(leaf) => self.leaves[*leaf as usize].place == Place::Local,
            _ => below.iter().all(|node| node.local),
        };
        let mirrored =
            matches!(kind, Kind::Mirror { .. }) || below.iter().any(|node| node.mirrored);
        let has_hole = matches!(kind, Kind::Hole) || below.iter().any(|node| node.has_hole);
        let leaves = leaf_lo..self.leaves.len() as u32;
        self.nodes.push(Compiled { kind, size, leaves, local, mirrored, has_hole });
        Ok((self.nodes.len() - 1) as u32)
    }

    fn children(
        &mut self,
        nodes: impl Iterator<Item = &'a Node>,
        path: &mut Vec<usize>,
    ) -> Result<Vec<u32>, TreeError> {
        let mut ids = Vec::new();
        for (index, node) in nodes.enumerate() {
            path.push(index);
            ids.push(self.add(node, path)?);
            path.pop();
        }
        Ok(ids)
    }

    fn size(&self, id: u32) -> u64 {
        self.nodes[id as usize].size
    }

    fn peer(&mut self, sp: &str) -> Result<u16, TreeError> {
        if let Some(index) = self.peers.iter().position(|peer| peer.sp == sp) {
            return Ok(index as u16);
        }
        let address =
            self.spec.peers.get(sp).ok_or_else(|| TreeError::NoPeer(sp.to_owned()))?.clone();
        if self.peers.len() == MAX_PEERS {
            return Err(TreeError::TooManyPeers);
        }
        self.peers.push(Peer { sp: sp.to_owned(), address });
        Ok((self.peers.len() - 1) as u16)
    }
}
