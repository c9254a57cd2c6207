//! Legs held against each other, region by region under the range lock: hosts' writes are on all
//! of them then or on none, so what differs has rotted, or was written past the product.

use vs_io::planted;

use crate::active::{Copy, Mode, Range};
use crate::buffers::Buffer;
use crate::event_loop::Loop;
use crate::op::{Fail, Kind, Scope, Source};
use crate::slab::Token;

/// What differs is told in these units: the smallest that devices write.
const UNIT: usize = 4096;
/// Most ranges that are told apart; what else differs is counted.
const RANGES: usize = 64;

/// What one leg holds of a region.
#[derive(Debug, Default)]
pub struct Held {
    bytes: Buffer,
    /// Units that can't be read, if there are any.
    bad: Vec<bool>,
}

impl Held {
    fn unit(&self, start: usize, end: usize) -> Option<&[u8]> {
        let bad = self.bad.get(start / UNIT).copied().unwrap_or(false);
        (!bad).then(|| &self.bytes[start..end])
    }
}

/// A leg of whose region something can't be read is read unit by unit: what of it is bad is told,
/// and the rest counts.
#[derive(Debug)]
pub struct Sieve {
    /// The region.
    offset: u64,
    length: u64,
    held: Held,
}

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

/// Compares what legs hold.
fn compare(legs: &[Held]) -> Verdict {
    let length = legs.iter().map(|leg| leg.bytes.len()).max().unwrap_or(0);
    let mut right = Vec::with_capacity(length);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut wrong = vec![false; legs.len()];
    for start in (0..length).step_by(UNIT) {
        let end = (start + UNIT).min(length);
        let held: Vec<Option<&[u8]>> = legs.iter().map(|leg| leg.unit(start, end)).collect();
        let votes = |one: &[u8]| held.iter().flatten().filter(|other| **other == one).count();
        let most = held.iter().flatten().map(|one| votes(one)).max().unwrap_or(0);
        if most < held.len() {
            match ranges.last_mut() {
                Some(last) if last.0 + last.1 == start as u64 => last.1 += (end - start) as u64,
                _ => ranges.push((start as u64, (end - start) as u64)),
            }
        }
        let Some(chosen) = held.iter().flatten().find(|one| votes(one) == most) else { continue };
        for (leg, one) in held.iter().enumerate() {
            wrong[leg] |= *one != Some(*chosen);
        }
        right.extend_from_slice(chosen);
    }
    let wrong = wrong.iter().enumerate().filter(|(_, wrong)| **wrong).map(|(leg, _)| leg);
    let whole = right.len() == length && length > 0;
    Verdict { ranges, wrong: wrong.collect(), right: whole.then_some(right) }
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
            // It is parked, or ends: as if the leg had not been begun.
            if let Some(sieve) = op.sieve.take() {
                (op.offset, op.length) = (sieve.offset, sieve.length);
                op.data = sieve.held.bytes;
            }
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
        op.rewind();
        op.avoid.clear();
        let data = std::mem::take(&mut op.data);
        if unreadable && op.sieve.is_none() && op.length > UNIT as u64 {
            let held = Held { bytes: data, bad: Vec::new() };
            op.sieve = Some(Sieve { offset: op.offset, length: op.length, held });
            op.length = UNIT as u64;
            op.data = self.buffers.take(UNIT);
            self.route(token);
            return true;
        }
        if let Some(sieve) = &mut op.sieve {
            let at = (op.offset - sieve.offset) as usize;
            sieve.held.bad.push(unreadable);
            sieve.held.bytes[at..at + data.len()].copy_from_slice(&data);
            let next = op.offset + op.length;
            let left = sieve.offset + sieve.length - next;
            if left > 0 {
                (op.offset, op.length) = (next, left.min(UNIT as u64));
                let length = op.length as usize;
                op.data = if length == data.len() { data } else { self.buffers.take(length) };
                self.route(token);
                return true;
            }
        }
        let held = match op.sieve.take() {
            Some(sieve) => {
                (op.offset, op.length) = (sieve.offset, sieve.length);
                sieve.held
            }
            None => Held { bytes: data, bad: if unreadable { vec![true] } else { Vec::new() } },
        };
        op.legs.push(held);
        if let Some(next) = work.maps.get(op.legs.len()) {
            op.scope = Scope::Subtrees(vec![next.clone()]);
            op.data = self.buffers.take(op.length as usize);
            self.route(token);
            return true;
        }
        let legs = if planted("comparison_is_blind") { &op.legs[..1] } else { &op.legs[..] };
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
        let held =
            |bytes: &Vec<u8>, bad: &[bool]| Held { bytes: bytes.clone().into(), bad: bad.to_vec() };
        let good = |bytes| held(bytes, &[]);
        let none = held(&b, &[true; 3]);
        let same = compare(&[good(&a), good(&a)]);
        assert_eq!((same.ranges, same.wrong), (vec![], vec![]));
        let two = compare(&[good(&mixed), good(&a)]);
        assert_eq!(two.ranges, [(UNIT as u64, UNIT as u64)]);
        assert_eq!((two.right, two.wrong), (Some(mixed.clone()), vec![1]));
        let three = compare(&[good(&mixed), good(&a), good(&a)]);
        assert_eq!((three.right, three.wrong), (Some(a.clone()), vec![0]));
        let unread = compare(&[none, good(&b), good(&b)]);
        assert_eq!(unread.ranges, [(0, 3 * UNIT as u64)]);
        assert_eq!((unread.right, unread.wrong), (Some(b.clone()), vec![0]));
        // A unit that can't be read is wrong alone, and not where the other leg is.
        let each = compare(&[held(&a, &[true, false, false]), held(&a, &[false, false, true])]);
        assert_eq!(each.ranges, [(0, UNIT as u64), (2 * UNIT as u64, UNIT as u64)]);
        assert_eq!((each.right, each.wrong), (Some(a.clone()), vec![0, 1]));
        let both = compare(&[held(&a, &[false, true]), held(&a, &[false, true])]);
        assert_eq!((both.right, both.ranges), (None, vec![(UNIT as u64, UNIT as u64)]));
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
