//! Which part of volume space a range of an inner node stands for.

use crate::compile::{Kind, Tree, TreeError};

impl Tree {
    /// The smallest interval (offset, length) of volume space that holds every byte of
    /// [offset, offset+length) of the node at `path`: what a copy has to lock. Bytes that no
    /// volume address reaches (slack of a leg or column that is larger than its mirror or stripe
    /// uses, or behind the volume's end) do not count; the interval of slack alone is empty.
    ///
    /// # Errors
    /// `NoPath` if there is no such node.
    pub fn cover(&self, path: &[usize], offset: u64, length: u64) -> Result<(u64, u64), TreeError> {
        self.node_id(path)?;
        // From the node upwards: every ancestor with the index that leads down to the node.
        let mut chain = Vec::with_capacity(path.len());
        let mut id = self.root;
        for &index in path {
            let parent = &self.nodes[id as usize];
            chain.push((parent, index));
            id = parent.kind.child(index).ok_or_else(|| TreeError::NoPath(path.to_vec()))?;
        }
        let up = |byte: u64| -> Option<u64> {
            let at = chain.iter().rev().try_fold(byte, |byte, (parent, index)| {
                let at = match &parent.kind {
                    Kind::Concat { starts, .. } => starts[*index].checked_add(byte)?,
                    Kind::Stripe { chunk, columns } => (byte / chunk)
                        .checked_mul(columns.len() as u64)?
                        .checked_add(*index as u64)?
                        .checked_mul(*chunk)?
                        .checked_add(byte % chunk)?,
                    Kind::Mirror { .. } | Kind::Leaf(_) | Kind::Hole => byte,
                };
                (at < parent.size).then_some(at)
            })?;
            (at < self.size()).then_some(at)
        };
        // `up` rises strictly and slack is at the end of a node's space at every level, so the
        // bytes that have an address are a prefix, and its ends map to the interval's ends.
        let limit = self.nodes[id as usize].size.min(offset.saturating_add(length));
        let (mut reached, mut beyond) = (offset, limit.max(offset));
        while reached < beyond {
            let middle = reached + (beyond - reached) / 2;
            if up(middle).is_some() {
                reached = middle + 1;
            } else {
                beyond = middle;
            }
        }
        match (reached > offset).then(|| Some((up(offset)?, up(reached - 1)?))).flatten() {
            Some((start, last)) => Ok((start, last + 1 - start)),
            None => Ok((self.size(), 0)),
        }
    }
}
