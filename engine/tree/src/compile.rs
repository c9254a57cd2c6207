//! From a T2 object to an arena of nodes that can be walked without allocation.

use thiserror::Error;

use crate::spec::{LegState, Node, Spec};

/// Leaves and holes are multiples of this; so is every boundary inside a tree.
pub const BLOCK: u64 = 4096;
/// Deepest nesting taken; routing recurses no deeper.
pub const MAX_DEPTH: usize = 16;
/// Most nodes in one tree.
pub const MAX_NODES: usize = 65_536;

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
}

#[derive(Debug)]
pub(crate) enum Kind {
    Leaf(u32),
    Hole,
    Mirror {
        legs: Vec<(u32, LegState)>,
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

#[derive(Debug)]
pub(crate) struct Compiled {
    pub kind: Kind,
    pub size: u64,
    /// Leaves are numbered left to right, so a subtree's are an interval [lo, hi).
    pub leaf_lo: u32,
    pub leaf_hi: u32,
    pub local: bool,
    pub mirrored: bool,
}

/// A compiled tree. Immutable; a restructure replaces it whole.
#[derive(Debug)]
pub struct Tree {
    pub(crate) nodes: Vec<Compiled>,
    pub(crate) root: u32,
    leaves: Vec<LeafRef>,
    peers: Vec<Peer>,
    owner: Option<u16>,
    has_hole: bool,
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
            has_hole: false,
        };
        let root = build.add(&spec.root, &mut Vec::new())?;
        let owner =
            if spec.owner == spec.sp { None } else { Some(build.peer(&spec.owner.clone())?) };
        let Builder { nodes, leaves, peers, has_hole, .. } = build;
        let room = nodes[root as usize].size;
        if spec.size > room {
            return Err(TreeError::Size { size: spec.size, room });
        }
        Ok(Tree { nodes, root, leaves, peers, owner, has_hole, spec })
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

    /// True if any range is parked.
    #[must_use]
    pub fn has_hole(&self) -> bool {
        self.has_hole
    }

    /// True if some mirror's leg is write-only.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.nodes.iter().any(|node| match &node.kind {
            Kind::Mirror { legs } => legs.iter().any(|leg| leg.1 == LegState::WriteOnly),
            _ => false,
        })
    }

    /// Paths of the mirrors whose legs a resync compares: those with two or more in-sync
    /// legs, outermost first, not looking inside a leg of such a mirror twice.
    #[must_use]
    pub fn mirrors(&self) -> Vec<Vec<usize>> {
        let mut found = Vec::new();
        let mut todo = vec![(self.root, Vec::new())];
        while let Some((id, path)) = todo.pop() {
            let children: Vec<u32> = match &self.nodes[id as usize].kind {
                Kind::Mirror { legs } => {
                    if legs.iter().filter(|leg| leg.1 == LegState::InSync).count() > 1 {
                        found.push(path.clone());
                    }
                    legs.iter().map(|leg| leg.0).collect()
                }
                Kind::Stripe { columns, .. } => columns.clone(),
                Kind::Concat { parts, .. } => parts.clone(),
                Kind::Leaf(_) | Kind::Hole => Vec::new(),
            };
            for (index, child) in children.into_iter().enumerate() {
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
            Kind::Mirror { legs } => Ok(legs.iter().map(|leg| leg.1).collect()),
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
    pub fn leaves_under(&self, path: &[usize]) -> Result<std::ops::Range<u32>, TreeError> {
        let node = self.node(path)?;
        Ok(node.leaf_lo..node.leaf_hi)
    }

    pub(crate) fn node(&self, path: &[usize]) -> Result<&Compiled, TreeError> {
        Ok(&self.nodes[self.node_id(path)? as usize])
    }

    pub(crate) fn node_id(&self, path: &[usize]) -> Result<u32, TreeError> {
        let mut id = self.root;
        for &index in path {
            let child = match &self.nodes[id as usize].kind {
                Kind::Mirror { legs } => legs.get(index).map(|leg| leg.0),
                Kind::Stripe { columns, .. } => columns.get(index).copied(),
                Kind::Concat { parts, .. } => parts.get(index).copied(),
                Kind::Leaf(_) | Kind::Hole => None,
            };
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
    has_hole: bool,
}

impl Builder<'_> {
    fn add(&mut self, node: &Node, path: &mut Vec<usize>) -> Result<u32, TreeError> {
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
                let home = self.spec.homes.get(t1).ok_or_else(|| TreeError::NoHome(t1.clone()))?;
                let place = if *home == self.spec.sp {
                    Place::Local
                } else {
                    Place::Remote(self.peer(home)?)
                };
                self.leaves.push(LeafRef { t1: t1.clone(), size: *size, place });
                (Kind::Leaf(leaf_lo), *size)
            }
            Node::Hole { size } => {
                self.has_hole = true;
                (Kind::Hole, *size)
            }
            Node::Mirror { legs } => {
                if !legs.iter().any(|leg| leg.state == LegState::InSync) {
                    return Err(bad("a mirror needs a leg in sync"));
                }
                let ids = self.children(legs.iter().map(|leg| &leg.node), path)?;
                let size = ids.iter().map(|&id| self.size(id)).min().unwrap_or(0);
                let states = legs.iter().map(|leg| leg.state);
                (Kind::Mirror { legs: ids.into_iter().zip(states).collect() }, size)
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
        let below = self.direct(&kind);
        let local = match &kind {
            Kind::Leaf(leaf) => self.leaves[*leaf as usize].place == Place::Local,
            _ => below.iter().all(|&id| self.nodes[id as usize].local),
        };
        let mirrored = matches!(kind, Kind::Mirror { .. })
            || below.iter().any(|&id| self.nodes[id as usize].mirrored);
        let leaf_hi = self.leaves.len() as u32;
        self.nodes.push(Compiled { kind, size, leaf_lo, leaf_hi, local, mirrored });
        Ok((self.nodes.len() - 1) as u32)
    }

    fn direct(&self, kind: &Kind) -> Vec<u32> {
        match kind {
            Kind::Mirror { legs } => legs.iter().map(|leg| leg.0).collect(),
            Kind::Stripe { columns, .. } => columns.clone(),
            Kind::Concat { parts, .. } => parts.clone(),
            Kind::Leaf(_) | Kind::Hole => Vec::new(),
        }
    }

    fn children<'n>(
        &mut self,
        nodes: impl Iterator<Item = &'n Node>,
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
        self.peers.push(Peer { sp: sp.to_owned(), address });
        Ok((self.peers.len() - 1) as u16)
    }
}
