//! Which leaves a request touches, and where.

use crate::compile::{Kind, Tree, TreeError};
use crate::spec::LegState;

/// What a request does, as far as routing cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To one in-sync leg of each mirror.
    Read,
    /// Block status: routed as `Read` is, since it describes what a read would return.
    Status,
    /// With a payload, to every leg of each mirror that is not away.
    Write,
    /// Trim and write-zeroes: like `Write`, but without a payload, so that each column of a
    /// stripe gets one piece; `Piece::at` means nothing.
    Span,
}

/// Who a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Index into `Tree::leaves`; the offset is in the leaf's space.
    Leaf(u32),
    /// The volume's owner; the offset is in volume space.
    Owner,
}

/// A part of a request that one target carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub target: Target,
    pub offset: u64,
    pub length: u64,
    /// Where the piece's bytes lie in the request's buffer.
    pub at: u64,
}

/// How reads choose among a mirror's legs.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadChoice<'a> {
    /// Only ever the first in-sync leg.
    pub pinned: bool,
    /// Leaves that failed already; a leg that holds one is left out.
    pub avoid: &'a [u32],
    /// Any number; legs that are equally good are taken in turn by it.
    pub spread: u64,
}

/// What came of routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    /// All of the request is in the pieces.
    Ready,
    /// A hole is in the way: wait for another tree. The pieces mean nothing.
    Parked,
    /// Every way to read some byte meets a leaf in `ReadChoice::avoid`: the error is the reply's.
    /// The pieces mean nothing.
    NoLeg,
}

struct Walk<'a, 'o> {
    tree: &'a Tree,
    access: Access,
    choice: &'a ReadChoice<'a>,
    /// Where the request's buffer begins in volume space; None below a copy's own subtree.
    volume: Option<u64>,
    out: &'o mut Vec<Piece>,
}

impl Tree {
    /// Routes a request on the volume. At an SP that is not the owner, mirrored ranges go to
    /// `Target::Owner`; a span over a stripe with mirrors in it goes there whole, its single-copy
    /// columns too. `out` is cleared first. The range must lie within
    /// the volume (`debug_assert`); a request of no length gives no piece.
    pub fn route(
        &self,
        access: Access,
        offset: u64,
        length: u64,
        choice: &ReadChoice<'_>,
        out: &mut Vec<Piece>,
    ) -> Routed {
        debug_assert!(offset + length <= self.size());
        out.clear();
        let mut walk = Walk { tree: self, access, choice, volume: Some(offset), out };
        walk.node(self.root, offset, length, 0)
    }

    /// Routes within the subtree at `path`, in that node's own space. For copies, which run
    /// at the owner: nothing is ever sent to an owner.
    ///
    /// # Errors
    /// `NoPath` if there is no such node.
    pub fn route_at(
        &self,
        path: &[usize],
        access: Access,
        offset: u64,
        length: u64,
        choice: &ReadChoice<'_>,
        out: &mut Vec<Piece>,
    ) -> Result<Routed, TreeError> {
        let id = self.node_id(path)?;
        debug_assert!(offset + length <= self.nodes[id as usize].size);
        out.clear();
        Ok(Walk { tree: self, access, choice, volume: None, out }.node(id, offset, length, 0))
    }
}

impl Walk<'_, '_> {
    /// Recursion is bounded by `compile::MAX_DEPTH`.
    fn node(&mut self, id: u32, offset: u64, length: u64, at: u64) -> Routed {
        if length == 0 {
            return Routed::Ready;
        }
        let tree = self.tree;
        match &tree.nodes[id as usize].kind {
            Kind::Hole => Routed::Parked,
            Kind::Leaf(leaf) if self.reads() && self.choice.avoid.contains(leaf) => Routed::NoLeg,
            Kind::Leaf(leaf) => {
                self.push(Target::Leaf(*leaf), offset, length, at);
                Routed::Ready
            }
            Kind::Concat { parts, starts } => {
                let mut index = starts.partition_point(|&start| start <= offset) - 1;
                let (mut offset, mut left, mut at) = (offset, length, at);
                while left > 0 {
                    let within = offset - starts[index];
                    let room = tree.nodes[parts[index] as usize].size - within;
                    let take = left.min(room);
                    match self.node(parts[index], within, take, at) {
                        Routed::Ready => {}
                        other => return other,
                    }
                    (offset, left, at) = (offset + take, left - take, at + take);
                    index += 1;
                }
                Routed::Ready
            }
            Kind::Stripe { .. } if self.access == Access::Span && self.is_owners(id) => {
                // Chunk by chunk this could be millions of pieces; the owner does it in a few.
                if tree.nodes[id as usize].has_hole {
                    return Routed::Parked;
                }
                self.push_owner(length, at)
            }
            Kind::Stripe { chunk, columns } if self.access == Access::Span => {
                self.span(*chunk, columns, offset, length)
            }
            Kind::Stripe { chunk, columns } => {
                let count = columns.len() as u64;
                let (mut offset, mut left, mut at) = (offset, length, at);
                while left > 0 {
                    let (number, within) = (offset / chunk, offset % chunk);
                    let take = left.min(chunk - within);
                    let column = columns[(number % count) as usize];
                    match self.node(column, number / count * chunk + within, take, at) {
                        Routed::Ready => {}
                        other => return other,
                    }
                    (offset, left, at) = (offset + take, left - take, at + take);
                }
                Routed::Ready
            }
            Kind::Mirror { .. } if self.is_owners(id) => self.push_owner(length, at),
            Kind::Mirror { legs, turns } if self.reads() => {
                if self.choice.avoid.is_empty() && !self.choice.pinned {
                    let turn = (self.choice.spread % turns.len() as u64) as usize;
                    return self.node(turns[turn], offset, length, at);
                }
                self.read(legs, offset, length, at)
            }
            Kind::Mirror { legs, .. } => {
                for &(leg, _) in legs.iter().filter(|leg| leg.1 != LegState::Away) {
                    match self.node(leg, offset, length, at) {
                        Routed::Ready => {}
                        other => return other,
                    }
                }
                Routed::Ready
            }
        }
    }

    /// One piece for each column that the range touches.
    fn span(&mut self, chunk: u64, columns: &[u32], offset: u64, length: u64) -> Routed {
        for (index, &column) in columns.iter().enumerate() {
            let start = column_before(chunk, columns.len() as u64, index as u64, offset);
            let end = column_before(chunk, columns.len() as u64, index as u64, offset + length);
            match self.node(column, start, end - start, 0) {
                Routed::Ready => {}
                other => return other,
            }
        }
        Routed::Ready
    }

    fn reads(&self) -> bool {
        matches!(self.access, Access::Read | Access::Status)
    }

    /// True if what is mirrored under this node is the owner's to do, and this SP is not it.
    fn is_owners(&self, id: u32) -> bool {
        self.volume.is_some() && !self.tree.is_owner() && self.tree.nodes[id as usize].mirrored
    }

    fn push_owner(&mut self, length: u64, at: u64) -> Routed {
        if let Some(volume) = self.volume {
            self.push(Target::Owner, volume + at, length, at);
        }
        Routed::Ready
    }

    /// Reads from one in-sync leg where legs are pinned or there are leaves to avoid: a leg
    /// without any of those if there is one, else the first where they lie outside the range
    /// or have an in-sync twin further down.
    fn read(&mut self, legs: &[(u32, LegState)], offset: u64, length: u64, at: u64) -> Routed {
        if let Some(leg) = self.choose(legs) {
            return self.node(leg, offset, length, at);
        }
        let limit = if self.choice.pinned { 1 } else { legs.len() };
        for leg in in_sync(legs).take(limit) {
            let (count, last) = (self.out.len(), self.out.last().copied());
            match self.node(leg, offset, length, at) {
                Routed::NoLeg => {
                    // A failed try may also have made the last piece before it longer.
                    self.out.truncate(count);
                    if let (Some(slot), Some(last)) = (self.out.last_mut(), last) {
                        *slot = last;
                    }
                }
                other => return other,
            }
        }
        Routed::NoLeg
    }

    /// The best leg of those that hold no leaf to avoid.
    fn choose(&self, legs: &[(u32, LegState)]) -> Option<u32> {
        let nodes = &self.tree.nodes;
        let avoid = self.choice.avoid;
        let good = |id: &u32| !avoid.iter().any(|leaf| nodes[*id as usize].leaves.contains(leaf));
        let local = |id: &u32| nodes[*id as usize].local;
        if self.choice.pinned {
            return in_sync(legs).next().filter(good);
        }
        let pick = |count: usize| (self.choice.spread % count as u64) as usize;
        match in_sync(legs).filter(good).filter(local).count() {
            0 => match in_sync(legs).filter(good).count() {
                0 => None,
                count => in_sync(legs).filter(good).nth(pick(count)),
            },
            count => in_sync(legs).filter(good).filter(local).nth(pick(count)),
        }
    }

    fn push(&mut self, target: Target, offset: u64, length: u64, at: u64) {
        if let Some(last) = self.out.last_mut() {
            let buffers_meet = self.access == Access::Span || last.at + last.length == at;
            if last.target == target && last.offset + last.length == offset && buffers_meet {
                last.length += length;
                return;
            }
        }
        self.out.push(Piece { target, offset, length, at });
    }
}

fn in_sync(legs: &[(u32, LegState)]) -> impl Iterator<Item = u32> {
    legs.iter().filter(|leg| leg.1 == LegState::InSync).map(|leg| leg.0)
}

/// How many bytes of column `index` lie before `offset` of the stripe's own space.
fn column_before(chunk: u64, count: u64, index: u64, offset: u64) -> u64 {
    let (number, within) = (offset / chunk, offset % chunk);
    let (row, column) = (number / count, number % count);
    match index.cmp(&column) {
        std::cmp::Ordering::Less => (row + 1) * chunk,
        std::cmp::Ordering::Equal => row * chunk + within,
        std::cmp::Ordering::Greater => row * chunk,
    }
}
