//! Which part of volume space a range of an inner node stands for.

use crate::compile::{Kind, Tree, TreeError};

impl Tree {
    /// The smallest interval (offset, length) of volume space that holds every byte of
    /// [offset, offset+length) of the node at `path`, cut off at the volume's size: what a
    /// copy has to lock. Empty when the range lies wholly in slack behind the volume's end.
    ///
    /// # Errors
    /// `NoPath` if there is no such node.
    pub fn cover(&self, path: &[usize], offset: u64, length: u64) -> Result<(u64, u64), TreeError> {
        let (mut start, mut end) = (offset, offset + length);
        for depth in (0..path.len()).rev() {
            if start == end {
                break;
            }
            let index = path[depth];
            match &self.node(&path[..depth])?.kind {
                Kind::Concat { starts, .. } => {
                    let begin =
                        starts.get(index).ok_or_else(|| TreeError::NoPath(path.to_vec()))?;
                    (start, end) = (start + begin, end + begin);
                }
                Kind::Stripe { chunk, columns } => {
                    let count = columns.len() as u64;
                    let up =
                        |byte: u64| (byte / chunk * count + index as u64) * chunk + byte % chunk;
                    (start, end) = (up(start), up(end - 1) + 1);
                }
                Kind::Mirror { .. } | Kind::Leaf(_) | Kind::Hole => {}
            }
        }
        self.node_id(path)?;
        let end = end.min(self.size());
        let start = start.min(end);
        Ok((start, end - start))
    }
}
