//! EXTENDED COPY: blocks that go from volume to volume without their host.
//!
//! A copy is carried out as its session's reads and writes, one piece after the other: so it holds one
//! piece of memory, is ordered with hosts' writes like any, waits for trees as they do, and ends with its
//! connection.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vs_wire::iscsi::session::Status;
use vs_wire::scsi::cdb::Extent;
use vs_wire::scsi::sense::{self, Sense};
use vs_wire::scsi::xcopy::{self, List, Progress, Question, Segment};
use vs_wire::scsi::{BLOCK, status as code};

use crate::conn::Protocol;
use crate::event_loop::{Loop, Shared};
use crate::iscsi::{Then, Work, failure, unit};
use crate::op::{Fail, Kind, Op, Scope, Source};
use crate::slab::Token;

/// Blocks of one piece.
const PIECE: u64 = (1 << 20) / BLOCK;

/// One of the SP's copies at a time; given back when it is dropped.
struct Permit(Arc<Shared>);

impl Permit {
    fn take(shared: &Arc<Shared>) -> Option<Permit> {
        let count = &shared.iscsi.copies;
        if count.fetch_add(1, Ordering::Relaxed) >= xcopy::AT_ONCE {
            count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Permit(Arc::clone(shared)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.iscsi.copies.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A copy that is being carried out.
pub struct Copying {
    list: List,
    /// The volumes that its targets are; None: none here.
    volumes: Vec<Option<Token>>,
    /// Which segment, and how many of its blocks are done.
    segment: usize,
    done: u64,
    bytes: u64,
    _permit: Permit,
}

impl Copying {
    /// The next piece of a segment: the blocks to be read and those to be written. What overlaps
    /// further on is copied from its end.
    fn piece(segment: &Segment, done: u64, same: bool) -> (Extent, Extent) {
        let blocks = PIECE.min(segment.blocks - done);
        let backwards = same && segment.from < segment.to;
        let at = if backwards { segment.blocks - done - blocks } else { done };
        let (from, to) = (segment.from + at, segment.to + at);
        (Extent { lba: from, blocks }, Extent { lba: to, blocks })
    }

    fn progress(&self, running: bool, failed: Option<Sense>) -> Progress {
        Progress { running, segments: self.segment as u16, bytes: self.bytes, failed }
    }
}

impl Loop {
    /// Begins what an EXTENDED COPY asks for.
    pub fn iscsi_copy(&mut self, token: Token, task: u32, cdb: [u8; 16], list: List) {
        let Some(conn) = self.conns.get(token) else { return };
        let Protocol::Iscsi(found) = &conn.protocol else { return };
        let same = |known: &&(u8, Progress)| Some(known.0) == list.id && known.1.running;
        if found.copies.iter().any(|known| same(&known)) {
            return self.iscsi_fail(token, task, sense::COPY_UNDER_WAY);
        }
        let Some(permit) = Permit::take(&self.shared) else {
            let status = Status { code: code::BUSY, sense: &[] };
            return self.iscsi_answer(token, task, status, &[]);
        };
        // Of others only what it might have logged in to as it has to this one.
        let agreed = &found.session.agreed;
        let admits = |volume: &str| self.shared.access.admits(volume, agreed);
        let served = self.volumes.iter().filter(|(_, v)| !v.leaving && admits(&v.volume.id));
        let served: Vec<_> = served
            .map(|(at, volume)| (at, unit(&volume.volume.id, "", 0, volume.active.tree.size())))
            .collect();
        let volume = |target: &xcopy::Target| {
            served.iter().find(|(_, unit)| target.is(unit)).map(|(at, _)| *at)
        };
        let volumes = list.targets.iter().map(volume).collect();
        let copying = Copying { list, volumes, segment: 0, done: 0, bytes: 0, _permit: permit };
        let work = Work { then: Then::Copy(Box::new(copying)), steps: Vec::new(), cdb };
        self.copy_goes_on(token, task, work);
    }

    /// Notes how far a list is, for who asks.
    fn note_copy(&mut self, token: Token, copying: &Copying, running: bool, failed: Option<Sense>) {
        let (Some(id), Some(conn)) = (copying.list.id, self.conns.get_mut(token)) else { return };
        let Protocol::Iscsi(found) = &mut conn.protocol else { return };
        let progress = copying.progress(running, failed);
        if let Some(known) = found.copies.iter_mut().find(|known| known.0 == id) {
            known.1 = progress;
            return;
        }
        if found.copies.len() >= xcopy::REMEMBERED {
            // Those under way are fewer.
            let oldest = found.copies.iter().position(|known| !known.1.running);
            found.copies.remove(oldest.unwrap_or(0));
        }
        found.copies.push((id, progress));
    }

    /// Begins the next piece, or answers.
    fn copy_goes_on(&mut self, token: Token, task: u32, mut work: Work) {
        let Then::Copy(copying) = &mut work.then else { return };
        while copying.list.segments.get(copying.segment).is_some_and(|s| s.blocks <= copying.done) {
            (copying.segment, copying.done) = (copying.segment + 1, 0);
        }
        let Some(segment) = copying.list.segments.get(copying.segment).copied() else {
            self.note_copy(token, copying, false, None);
            return self.iscsi_answer(token, task, Status::default(), &[]);
        };
        match self.copy_sides(copying, &segment) {
            Ok((source, destination)) => {
                let same = source == destination;
                let (from, _) = Copying::piece(&segment, copying.done, same);
                self.note_copy(token, copying, true, None);
                let by = Source::Iscsi { conn: token, task };
                let mut op = Op::new(by, Scope::Volume, Kind::Read, from.offset(), from.bytes());
                op.volume = source;
                // What is reserved there is looked at with each piece.
                op.vouched = Some(self.now);
                op.data = self.buffers.take(from.bytes() as usize);
                self.iscsi_submit(token, task, work, op);
            }
            Err(sense) => {
                self.note_copy(token, copying, false, Some(sense));
                self.iscsi_fail(token, task, sense);
            }
        }
    }

    /// The volumes that a segment is from and to, which have these blocks.
    fn copy_sides(&self, copying: &Copying, segment: &Segment) -> Result<(Token, Token), Sense> {
        let side = |index: u16, lba: u64| {
            let index = usize::from(index);
            let found = copying.volumes.get(index).ok_or(sense::NO_SUCH_TARGET)?;
            let token = found.ok_or(sense::TARGET_AWAY)?;
            let volume = self.volumes.get(token).filter(|volume| !volume.leaving);
            let blocks = volume.ok_or(sense::TARGET_AWAY)?.active.tree.size() / BLOCK;
            let end = lba.checked_add(segment.blocks).filter(|end| *end <= blocks);
            end.map(|_| token).ok_or(sense::COPY_FAILED)
        };
        Ok((side(segment.source, segment.from)?, side(segment.destination, segment.to)?))
    }

    /// A piece was read or written.
    pub fn copy_piece_done(
        &mut self,
        token: Token,
        task: u32,
        mut work: Work,
        op: &mut Op,
        result: Result<(), Fail>,
    ) {
        let Then::Copy(copying) = &mut work.then else { return };
        if result == Err(Fail::Conflict) {
            self.note_copy(token, copying, false, Some(sense::COPY_FAILED));
            return self.iscsi_conflict(token, task);
        }
        if let Err(fail) = result {
            let sense = Sense { key: sense::COPY_FAILED.key, ..failure(fail, op.kind) };
            self.note_copy(token, copying, false, Some(sense));
            return self.iscsi_fail(token, task, sense);
        }
        let wanted = self.conns.get(token).is_some_and(|conn| match &conn.protocol {
            Protocol::Iscsi(found) => !found.session.is_aborted(task),
            _ => false,
        });
        if !wanted {
            self.note_copy(token, copying, false, Some(sense::COPY_FAILED));
            return self.iscsi_answer(token, task, Status::default(), &[]);
        }
        let Some(segment) = copying.list.segments.get(copying.segment).copied() else { return };
        if op.kind != Kind::Read {
            let blocks = op.length / BLOCK;
            copying.done += blocks;
            copying.bytes += op.length;
            return self.copy_goes_on(token, task, work);
        }
        let (source, destination) = match self.copy_sides(copying, &segment) {
            Ok(sides) => sides,
            Err(sense) => {
                self.note_copy(token, copying, false, Some(sense));
                return self.iscsi_fail(token, task, sense);
            }
        };
        let (_, to) = Copying::piece(&segment, copying.done, source == destination);
        // What was never written stays a hole.
        let empty = op.data.iter().all(|&byte| byte == 0);
        let kind = if empty { Kind::Zero { no_hole: false, fast: false } } else { Kind::Write };
        let by = Source::Iscsi { conn: token, task };
        let mut write = Op::new(by, Scope::Volume, kind, to.offset(), to.bytes());
        write.volume = destination;
        write.vouched = Some(self.now);
        if !empty {
            write.data = std::mem::take(&mut op.data);
        }
        self.iscsi_submit(token, task, work, write);
    }

    /// Answers how a list went.
    pub fn iscsi_copied(
        &mut self,
        token: Token,
        task: u32,
        list: u8,
        question: Question,
        most: usize,
    ) {
        let Some(conn) = self.conns.get(token) else { return };
        let Protocol::Iscsi(found) = &conn.protocol else { return };
        let Some((_, progress)) = found.copies.iter().find(|known| known.0 == list) else {
            return self.iscsi_fail(token, task, sense::INVALID_FIELD);
        };
        let mut data = xcopy::answer(question, progress);
        data.truncate(most);
        self.iscsi_answer(token, task, Status::default(), &data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_segment_once_and_read_nothing_that_they_have_written() {
        for (from, to) in [(0, 10_000), (100, 3000), (3000, 100), (5, 4), (4, 5)] {
            let segment = Segment { source: 0, destination: 0, blocks: 7001, from, to };
            let (mut done, mut written) = (0, Vec::<Extent>::new());
            while done < segment.blocks {
                let (read, write) = Copying::piece(&segment, done, true);
                assert_eq!(read.lba - from, write.lba - to);
                let meets = |other: &Extent| {
                    other.lba < read.lba + read.blocks && read.lba < other.lba + other.blocks
                };
                assert!(!written.iter().any(meets), "{from} to {to}");
                written.push(write);
                done += read.blocks;
            }
            let mut blocks: Vec<u64> =
                written.iter().flat_map(|e| e.lba..e.lba + e.blocks).collect();
            blocks.sort_unstable();
            assert_eq!(blocks, (to..to + 7001).collect::<Vec<_>>());
        }
    }
}
