//! Legs held against each other, region by region under the range lock: hosts' writes are on all
//! of them then or on none, so what differs has rotted, or was written past the product.

use vs_io::planted;

use crate::active::{Copy, Mode, Range};
use crate::event_loop::Loop;
use crate::op::{Fail, Kind, Scope, Source};
use crate::slab::Token;

/// What differs is told in these units: the smallest that devices write.
const UNIT: usize = 4096;
/// Most ranges that are told apart; what else differs is counted.
const RANGES: usize = 64;

/// What legs hold of one region, compared.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    /// (offset, length) of what is not the same everywhere.
    ranges: Vec<(u64, u64)>,
    /// What most legs have, the first of them where as many have something else; None if some of
    /// it can be read from no leg.
    right: Option<Vec<u8>>,
    /// Legs that have anything else, or can't be read.
    wrong: Vec<usize>,
}

/// Compares what legs hold; None is a leg that can't be read.
fn compare(legs: &[Option<&[u8]>]) -> Verdict {
    let length = legs.iter().flatten().map(|leg| leg.len()).max().unwrap_or(0);
    let mut right = Vec::with_capacity(length);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut wrong = vec![false; legs.len()];
    let unread = legs.iter().any(Option::is_none);
    for start in (0..length).step_by(UNIT) {
        let end = (start + UNIT).min(length);
        let held: Vec<Option<&[u8]>> =
            legs.iter().map(|leg| leg.map(|bytes| &bytes[start..end])).collect();
        let votes = |one: &[u8]| held.iter().flatten().filter(|other| **other == one).count();
        let most = held.iter().flatten().map(|one| votes(one)).max().unwrap_or(0);
        let Some(chosen) = held.iter().flatten().find(|one| votes(one) == most) else { continue };
        for (leg, one) in held.iter().enumerate() {
            wrong[leg] |= *one != Some(*chosen);
        }
        if unread || most < held.len() {
            match ranges.last_mut() {
                Some(last) if last.0 + last.1 == start as u64 => last.1 += (end - start) as u64,
                _ => ranges.push((start as u64, (end - start) as u64)),
            }
        }
        right.extend_from_slice(chosen);
    }
    let wrong = wrong.iter().enumerate().filter(|(_, wrong)| **wrong).map(|(leg, _)| leg);
    let readable = legs.iter().any(Option::is_some);
    Verdict { ranges, wrong: wrong.collect(), right: readable.then_some(right) }
}

/// Adds what was found in the region at `offset` of the mirror at `path`.
fn note(copy: &mut Copy, path: &[usize], offset: u64, verdict: &Verdict) {
    for &(at, length) in &verdict.ranges {
        copy.differing_bytes += length;
        let start = offset + at;
        let room = copy.differing.len() < RANGES;
        match copy.differing.last_mut() {
            Some(last) if last.path == path && last.offset + last.length == start => {
                last.length += length;
            }
            _ if room => {
                copy.differing.push(Range { path: path.to_vec(), offset: start, length });
            }
            _ => {}
        }
    }
}

impl Loop {
    /// A leg has been read, or can't be: the next, and after the last the comparison. False if
    /// the operation is none of these.
    pub fn compared_leg(&mut self, token: Token) -> bool {
        let Some(op) = self.ops.get_mut(token) else { return false };
        let Source::Copy { path, resync: false, task } = &op.source else { return false };
        let unreadable = op.fail == Some(Fail::Io);
        if op.kind != Kind::Read || !(unreadable || op.fail.is_none()) {
            return false;
        }
        let Some(volume) = self.volumes.get(op.volume) else { return false };
        let job = volume.copies.iter().find(|job| job.path == *path && !job.resync);
        let Some((job, work)) = job.and_then(|job| Some((job, job.tasks.get(*task)?))) else {
            return false;
        };
        if !job.mode.compares() {
            return false;
        }
        let data = std::mem::take(&mut op.data);
        op.legs.push((!unreadable).then_some(data));
        op.rewind();
        op.avoid.clear();
        if let Some(next) = work.maps.get(op.legs.len()) {
            op.scope = Scope::Subtrees(vec![next.clone()]);
            op.data = self.buffers.take(op.length as usize);
            self.route(token);
            return true;
        }
        let legs: Vec<Option<&[u8]>> = op.legs.iter().map(Option::as_deref).collect();
        let legs = if planted("comparison_is_blind") { &legs[..1] } else { &legs[..] };
        let verdict = compare(legs);
        // What a write has left on some legs alone is no difference to be told: nobody has read it.
        let (start, length) = op.range(&volume.active.tree);
        let torn = volume.volume.lock.is_torn(start, length);
        if (!verdict.ranges.is_empty() && !torn) || verdict.right.is_none() {
            let mirror = &work.source[..work.source.len() - 1];
            volume.volume.change_copy(&job.path, false, |copy| {
                note(copy, mirror, op.offset, &verdict);
            });
        }
        op.legs.clear();
        let Some(right) = verdict.right else {
            self.finish(token, Err(Fail::Io));
            return true;
        };
        let repairs = torn || job.mode == Mode::Repair;
        if !repairs || verdict.wrong.is_empty() {
            self.finish(token, Ok(()));
            return true;
        }
        op.scope =
            Scope::Subtrees(verdict.wrong.iter().map(|leg| work.maps[*leg].clone()).collect());
        op.kind = Kind::Write;
        op.data = right.into();
        self.route(token);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_legs_are_right_and_of_two_the_first() {
        let (a, b) = (vec![1u8; 3 * UNIT], vec![2u8; 3 * UNIT]);
        let mut mixed = a.clone();
        mixed[UNIT + 7] = 9;
        let of = |legs: &[Option<&[u8]>]| compare(legs);
        let same = of(&[Some(&a), Some(&a)]);
        assert_eq!((same.ranges, same.wrong), (vec![], vec![]));
        let two = of(&[Some(&mixed), Some(&a)]);
        assert_eq!(two.ranges, [(UNIT as u64, UNIT as u64)]);
        assert_eq!((two.right, two.wrong), (Some(mixed.clone()), vec![1]));
        let three = of(&[Some(&mixed), Some(&a), Some(&a)]);
        assert_eq!((three.right, three.wrong), (Some(a.clone()), vec![0]));
        let unread = of(&[None, Some(&b), Some(&b)]);
        assert_eq!(unread.ranges, [(0, 3 * UNIT as u64)]);
        assert_eq!((unread.right, unread.wrong), (Some(b), vec![0]));
        assert_eq!(of(&[None, None]).right, None);
    }

    #[test]
    fn ranges_that_touch_are_one_and_too_many_are_counted() {
        let mut copy = Copy::new("v", Vec::new(), false);
        let found = |at| Verdict { ranges: vec![(at, 4096)], right: None, wrong: vec![] };
        note(&mut copy, &[], 0, &found(4096));
        note(&mut copy, &[], 0, &found(8192));
        assert_eq!(copy.differing.len(), 1);
        for region in 1..100 {
            note(&mut copy, &[], region << 20, &found(0));
        }
        assert_eq!((copy.differing.len(), copy.differing_bytes), (RANGES, 101 * 4096));
    }
}
