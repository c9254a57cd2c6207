//! Checksums of a device's data: crc32c of every block of 4 KiB, held against what is read.
//!
//! They lie between the label and the data, a page of 4 KiB for each region of 1 MiB. A region is
//! an allocation unit, so it belongs to one T1 object, and so to one SP: SPs that share a device
//! never write the same page. A page says of itself whether it can be trusted:
//!
//! - *closed*: its sums are those of the data, and both are durable or were written in that order.
//! - *open*: the region is being written; the sums are in memory alone. A page is durably open before
//!   the first write to its region, and is closed some time after the last, when the data is durable.
//!
//! So after an unclean end, wherever it falls, the sums of regions that were open are unknown, and
//! those of all others are right. A page that is not whole, or another device's, knows nothing
//! either: no loss of sums makes data unreadable. What is unknown is learned when it is next read.

mod page;
mod rounds;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::device::{LABEL_AREA, UNIT};
use crate::error::{DeviceError, ErrorKind};
use crate::planted::planted;
use crate::spans::Spans;
use page::State;

/// Bytes under one checksum.
pub const BLOCK: u64 = 4096;
/// Bytes that one page of checksums is for.
pub const REGION: u64 = UNIT;
/// Bytes of such a page.
pub const PAGE: u64 = 4096;
const BLOCKS: usize = (REGION / BLOCK) as usize;
/// Pages that are written at once.
const BATCH: usize = 256;
/// Locks of pages, each for every so many-th.
const LOCKS: usize = 64;

/// The sums are in memory.
const LOADED: u32 = 1;
/// The page is durably open.
const OPEN: u32 = 2;
/// Some sums were learned that the page does not have.
const LEARNED: u32 = 4;

/// Bytes that the checksums of a device of `size` bytes take.
#[must_use]
pub fn area(size: u64) -> u64 {
    (size.div_ceil(REGION) * PAGE).next_multiple_of(UNIT)
}

/// Where the pages for the data range lie: (offset, length).
#[must_use]
pub fn pages(offset: u64, length: u64) -> (u64, u64) {
    let (first, end) = (offset / REGION, (offset + length).div_ceil(REGION));
    (LABEL_AREA + first * PAGE, (end - first) * PAGE)
}

/// What data and checksums lie on.
pub trait Medium: Send + Sync + std::fmt::Debug {
    /// # Errors
    /// Whatever the device says; a short read is an error.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError>;
    /// The same if it need not wait; false if it would have to.
    /// # Errors
    /// As `read`.
    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, DeviceError>;
    /// # Errors
    /// Whatever the device says; some may have been written.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;
    /// Writes these bytes durably, without waiting for others.
    /// # Errors
    /// As `write`.
    fn write_durably(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;
}

/// The sums of one region; 0 is one that is not known.
#[derive(Debug)]
struct Region {
    state: AtomicU32,
    /// Counts up before and after each write.
    writes: AtomicU32,
    /// That count at the last round.
    seen: AtomicU32,
    sums: [AtomicU32; BLOCKS],
}

impl Region {
    fn new() -> Region {
        Region {
            state: AtomicU32::new(0),
            writes: AtomicU32::new(0),
            seen: AtomicU32::new(0),
            sums: [const { AtomicU32::new(0) }; BLOCKS],
        }
    }

    fn has(&self, flag: u32) -> bool {
        self.state.load(Ordering::SeqCst) & flag != 0
    }
}

/// What is kept of a block: its crc32c, 1 where that is 0.
fn sum(block: &[u8]) -> u32 {
    crc32c::crc32c(block).max(1)
}

/// The blocks that a range touches: (start, end).
fn whole(offset: u64, length: u64) -> (u64, u64) {
    (offset / BLOCK * BLOCK, (offset + length).next_multiple_of(BLOCK))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they protect is changed by single calls: a panic can't leave it torn.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Live {
    /// Regions that are open, or have learned something.
    regions: BTreeSet<usize>,
    /// The device is no longer used.
    gone: bool,
}

/// The checksums of one device.
#[derive(Debug)]
pub struct Checksums {
    name: String,
    id: page::Id,
    medium: Box<dyn Medium>,
    regions: Box<[OnceLock<Box<Region>>]>,
    /// Held while a page is read, or written.
    pages: [Mutex<()>; LOCKS],
    spans: Spans,
    live: Mutex<Live>,
    changed: Condvar,
    errors: AtomicU64,
}

impl Checksums {
    /// Those of the device `id` of `size` bytes, called `name` in errors, whose pages lie on `medium`.
    #[must_use]
    pub fn new(name: &str, id: &str, size: u64, medium: Box<dyn Medium>) -> Checksums {
        Checksums {
            name: name.to_owned(),
            id: page::id(id),
            medium,
            regions: (0..size.div_ceil(REGION)).map(|_| OnceLock::new()).collect(),
            pages: [const { Mutex::new(()) }; LOCKS],
            spans: Spans::default(),
            live: Mutex::default(),
            changed: Condvar::new(),
            errors: AtomicU64::new(0),
        }
    }

    /// Blocks that did not match, each time that they were read.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    fn region(&self, index: usize) -> &Region {
        self.regions[index].get_or_init(|| Box::new(Region::new()))
    }

    fn indices(start: u64, end: u64) -> std::ops::Range<usize> {
        (start / REGION) as usize..end.div_ceil(REGION) as usize
    }

    /// Takes the locks of these pages, always in the same order.
    fn lock_pages(&self, indices: std::ops::Range<usize>) -> Vec<MutexGuard<'_, ()>> {
        let wanted = |slot: usize| {
            indices.len() >= LOCKS || indices.clone().any(|index| index % LOCKS == slot)
        };
        (0..LOCKS).filter(|slot| wanted(*slot)).map(|slot| lock(&self.pages[slot])).collect()
    }

    fn encode(&self, index: usize, state: State, region: &Region) -> page::Bytes {
        let sums = region.sums.iter().map(|sum| sum.load(Ordering::SeqCst));
        page::encode(&self.id, index, state, sums)
    }

    /// Has the sums of a region in memory.
    fn load(&self, index: usize) -> Result<&Region, DeviceError> {
        let region = self.region(index);
        if region.has(LOADED) {
            return Ok(region);
        }
        let _page = lock(&self.pages[index % LOCKS]);
        self.load_locked(index, region)?;
        Ok(region)
    }

    fn load_locked(&self, index: usize, region: &Region) -> Result<(), DeviceError> {
        if region.has(LOADED) {
            return Ok(());
        }
        let mut page = [0; PAGE as usize];
        self.medium.read(LABEL_AREA + index as u64 * PAGE, &mut page)?;
        let state = page::state(&self.id, index, &page);
        let trusted =
            state == Some(State::Closed) || (state.is_some() && planted("checksum_open_trusted"));
        for (place, sum) in region.sums.iter().zip(page::sums(&page)) {
            place.store(if trusted { sum } else { 0 }, Ordering::SeqCst);
        }
        if state == Some(State::Open) {
            // Of an earlier process. What it wrote may not be durable yet, so it is closed like
            // one that was opened now.
            region.state.fetch_or(LOADED | OPEN, Ordering::SeqCst);
            self.enlist(index);
        } else {
            region.state.fetch_or(LOADED, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Has the region looked at in later rounds.
    fn enlist(&self, index: usize) {
        let mut live = lock(&self.live);
        if live.regions.is_empty() {
            self.changed.notify_all();
        }
        live.regions.insert(index);
    }

    fn touch(&self, start: u64, end: u64) {
        for index in Self::indices(start, end) {
            self.region(index).writes.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// True if the range may be written without a page being opened first.
    #[must_use]
    pub fn is_open(&self, offset: u64, length: u64) -> bool {
        let open = |index: usize| self.regions[index].get().is_some_and(|r| r.has(OPEN));
        Self::indices(offset, offset + length).all(open)
    }

    /// Durably opens the pages of all regions of the range that are not.
    fn open(&self, start: u64, end: u64) -> Result<(), DeviceError> {
        let all = Self::indices(start, end);
        for first in all.clone().step_by(BATCH) {
            let mut next = first;
            let end = (first + BATCH).min(all.end);
            let _pages = self.lock_pages(first..end);
            while next < end {
                let mut run: Vec<u8> = Vec::new();
                let from = next;
                while next < end {
                    let region = self.region(next);
                    self.load_locked(next, region)?;
                    if region.has(OPEN) {
                        break;
                    }
                    run.extend_from_slice(&self.encode(next, State::Open, region));
                    next += 1;
                }
                if !run.is_empty() {
                    if !planted("checksum_page_not_opened") {
                        self.medium.write_durably(LABEL_AREA + from as u64 * PAGE, &run)?;
                    }
                    for index in from..next {
                        self.region(index).state.fetch_or(OPEN, Ordering::SeqCst);
                        self.enlist(index);
                    }
                }
                next += usize::from(next < end && from == next);
            }
        }
        Ok(())
    }

    /// The sum of a block, 0 if it is not known, or its region not in memory.
    fn known(&self, at: u64) -> u32 {
        let region = self.regions[(at / REGION) as usize].get();
        region
            .map_or(0, |region| region.sums[(at % REGION / BLOCK) as usize].load(Ordering::SeqCst))
    }

    fn set(&self, at: u64, sum: u32) {
        let region = self.region((at / REGION) as usize);
        region.sums[(at % REGION / BLOCK) as usize].store(sum, Ordering::SeqCst);
    }

    fn matches(&self, at: u64, block: &[u8]) -> bool {
        self.known(at) == sum(block) || planted("checksum_not_verified")
    }

    /// True if these are the bytes of whole blocks as they should be; false if one is not, or is
    /// not known, or is just being written: `read` tells.
    #[must_use]
    pub fn confirm(&self, offset: u64, blocks: &[u8]) -> bool {
        let mut at = (offset..).step_by(BLOCK as usize);
        blocks
            .chunks(BLOCK as usize)
            .all(|block| at.next().is_some_and(|at| self.matches(at, block)))
    }

    /// Looks at a block that this thread has a span of, so that nobody writes it.
    fn judge(&self, at: u64, block: &[u8]) -> Result<(), DeviceError> {
        if self.known(at) == 0 {
            self.set(at, sum(block));
            let index = (at / REGION) as usize;
            // An open page is written when it is closed.
            if !self.region(index).has(OPEN | LEARNED) {
                self.region(index).state.fetch_or(LEARNED, Ordering::SeqCst);
                self.enlist(index);
            }
            return Ok(());
        }
        if self.matches(at, block) {
            return Ok(());
        }
        let count = self.errors.fetch_add(1, Ordering::Relaxed) + 1;
        let text = format!(
            "{}: the block at {at} is not what was written there: its checksum does not match",
            self.name
        );
        // A disk that rots has many of them: the metric counts them all.
        if count.is_power_of_two() {
            eprintln!("vswitchd engine: {text} ({count} so far)");
        }
        Err(DeviceError::new(ErrorKind::Io, text))
    }

    /// Reads any range, and holds it against the checksums.
    ///
    /// # Errors
    /// Whatever the device says; `Io` for a block that does not match.
    pub fn read(&self, data: &dyn Medium, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        let (start, end) = whole(offset, into.len() as u64);
        for index in Self::indices(start, end) {
            self.load(index)?;
        }
        if start == offset && end == offset + into.len() as u64 {
            return self.read_blocks(data, start, into);
        }
        let mut blocks = vec![0; (end - start) as usize];
        self.read_blocks(data, start, &mut blocks)?;
        let skip = (offset - start) as usize;
        into.copy_from_slice(&blocks[skip..skip + into.len()]);
        Ok(())
    }

    fn read_blocks(
        &self,
        data: &dyn Medium,
        start: u64,
        blocks: &mut [u8],
    ) -> Result<(), DeviceError> {
        data.read(start, blocks)?;
        let (mut at, end) = (0, blocks.len());
        let size = BLOCK as usize;
        let fine = |at: usize, block: &[u8]| self.matches(start + at as u64, block);
        while at < end {
            if fine(at, &blocks[at..at + size]) {
                at += size;
                continue;
            }
            let from = at;
            while at < end && !fine(at, &blocks[at..at + size]) {
                at += size;
            }
            // Unknown, rotten, or in the middle of a write: nobody writes it now.
            let (first, last) = (start + from as u64, start + at as u64);
            let _span = self.spans.claim(first, last);
            data.read(first, &mut blocks[from..at])?;
            let mut result = Ok(());
            for from in (from..at).step_by(size) {
                let judged = self.judge(start + from as u64, &blocks[from..from + size]);
                result = result.and(judged);
            }
            result?;
        }
        Ok(())
    }

    /// Reads any range if that need not wait and all of it is known to be right; false if not.
    ///
    /// # Errors
    /// Whatever the device says.
    pub fn try_read(
        &self,
        data: &dyn Medium,
        offset: u64,
        into: &mut [u8],
    ) -> Result<bool, DeviceError> {
        let (start, end) = whole(offset, into.len() as u64);
        if start == offset && end == offset + into.len() as u64 {
            return Ok(data.try_read(offset, into)? && self.confirm(offset, into));
        }
        let mut blocks = vec![0; (end - start) as usize];
        if !data.try_read(start, &mut blocks)? || !self.confirm(start, &blocks) {
            return Ok(false);
        }
        let skip = (offset - start) as usize;
        into.copy_from_slice(&blocks[skip..skip + into.len()]);
        Ok(true)
    }

    /// Writes any range. With `wait` false it does nothing, and says so, where it would have to wait.
    ///
    /// # Errors
    /// Whatever the device says; `Io` where a part of a block is written whose rest does not match.
    pub fn write(
        &self,
        data: &dyn Medium,
        offset: u64,
        bytes: &[u8],
        wait: bool,
    ) -> Result<bool, DeviceError> {
        let (start, end) = whole(offset, bytes.len() as u64);
        let _span = if wait {
            self.spans.claim(start, end)
        } else {
            let Some(span) = self.spans.try_claim(start, end) else { return Ok(false) };
            span
        };
        self.write_claimed(data, offset, bytes, wait)
    }

    /// Makes a range read as zeroes: whole blocks by `make`.
    ///
    /// # Errors
    /// As `write`, and `make`'s.
    pub fn zero(
        &self,
        data: &dyn Medium,
        offset: u64,
        length: u64,
        make: impl FnOnce(u64, u64) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let end = offset + length;
        let (first, last) = (offset.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
        let (start, stop) = whole(offset, length);
        let _span = self.spans.claim(start, stop);
        if first >= last {
            return self.write_claimed(data, offset, &vec![0; length as usize], true).map(drop);
        }
        self.write_claimed(data, offset, &vec![0; (first - offset) as usize], true)?;
        self.write_claimed(data, last, &vec![0; (end - last) as usize], true)?;
        self.touch(first, last);
        self.open(first, last)?;
        let done = make(first, last - first);
        let zeroes = sum(&[0; BLOCK as usize]);
        for at in (first..last).step_by(BLOCK as usize) {
            self.set(at, if done.is_ok() { zeroes } else { 0 });
        }
        self.touch(first, last);
        done
    }

    /// Writes within a span of this thread.
    fn write_claimed(
        &self,
        data: &dyn Medium,
        offset: u64,
        bytes: &[u8],
        wait: bool,
    ) -> Result<bool, DeviceError> {
        if bytes.is_empty() {
            return Ok(true);
        }
        let (start, end) = whole(offset, bytes.len() as u64);
        // Before the look whether it is open: whoever closes it looks for this afterwards.
        self.touch(start, end);
        if !self.is_open(start, end - start) {
            if !wait {
                return Ok(false);
            }
            self.open(start, end)?;
        }
        let finish = offset + bytes.len() as u64;
        let mut edges: [Option<(u64, [u8; BLOCK as usize])>; 2] = [None, None];
        let last = end - BLOCK;
        let first_cut = offset > start || finish < start + BLOCK;
        let cut = [(start, first_cut), (last, finish < end && last > start)];
        for (edge, (at, part)) in edges.iter_mut().zip(cut) {
            if !part {
                continue;
            }
            let mut block = [0; BLOCK as usize];
            if wait {
                data.read(at, &mut block)?;
                self.judge(at, &block)?;
            } else if !data.try_read(at, &mut block)? || !self.confirm(at, &block) {
                return Ok(false);
            }
            let (from, to) = (offset.max(at), finish.min(at + BLOCK));
            block[(from - at) as usize..(to - at) as usize]
                .copy_from_slice(&bytes[(from - offset) as usize..(to - offset) as usize]);
            *edge = Some((at, block));
        }
        let done = data.write(offset, bytes);
        for at in (start..end).step_by(BLOCK as usize) {
            let edge = edges.iter().flatten().find(|edge| edge.0 == at);
            let now = match (&done, edge) {
                // Nobody knows how much of it was written.
                (Err(_), _) => 0,
                (_, Some((_, block))) => sum(block),
                _ => sum(&bytes[(at - offset) as usize..][..BLOCK as usize]),
            };
            self.set(at, now);
        }
        // What is written after a flush has begun is not made durable by it.
        self.touch(start, end);
        done.map(|()| true)
    }
}
