//! Copies onto write-only legs, and resyncs: region by region, each under the range lock.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vs_io::planted;
use vs_tree::{LegState, Tree};

use crate::active::{Copy, CopyState, Mode};
use crate::event_loop::Loop;
use crate::mailbox::Message;
use crate::op::{Fail, Kind, Op, Scope, Source};
use crate::pace::{Hosts, Pace};
use crate::slab::Token;

/// Bytes that are copied under one hold of the lock.
pub const REGION: u64 = 1 << 20;
/// Regions under way at once.
const PARALLEL: u32 = 4;
/// The task number of the flush that ends a copy.
const FLUSH: usize = usize::MAX;
/// The task number of a look at the write-intent maps.
const LOOK: usize = usize::MAX - 2;
/// Bytes of which the maps are looked at in one go.
const WINDOW: u64 = 64 << 20;
/// The task number of a flush in its middle, after which what was copied before is durable.
const CHECKPOINT: usize = usize::MAX - 1;
/// A checkpoint is made after so many bytes, or after so long if there is anything new.
const CHECKPOINT_BYTES: u64 = 64 << 20;
const CHECKPOINT_TIME: Duration = Duration::from_secs(2);
/// A copy's rate is measured over this.
const MEASURED: Duration = Duration::from_secs(1);
/// A copy that met a stale tree looks again after this.
const AGAIN: Duration = Duration::from_millis(100);

/// Copy `size` bytes from the node at `source` to those at `targets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) source: Vec<usize>,
    targets: Vec<Vec<usize>>,
    /// The legs whose maps say what may be unlike.
    pub(crate) maps: Vec<Vec<usize>>,
    /// The T1 objects under `targets`: a tree that has others there needs another copy.
    onto: Vec<String>,
    size: u64,
}

/// Which regions from `start` on are dirty, of one task.
#[derive(Debug)]
struct Window {
    task: usize,
    start: u64,
    dirty: Vec<bool>,
}

impl Window {
    fn end(&self) -> u64 {
        self.start + self.dirty.len() as u64 * REGION
    }

    /// Of what the legs' maps have said: (offset in the window, runs).
    fn of(task: usize, start: u64, length: u64, found: &[(u64, Vec<(u64, u32)>)]) -> Window {
        let mut dirty = vec![false; length.div_ceil(REGION) as usize];
        let found = if planted("delta_finds_nothing") { &[] } else { found };
        for (at, runs) in found {
            let mut at = *at;
            for &(count, flag) in runs {
                if flag == 1 && count > 0 {
                    let last = ((at + count - 1) / REGION).min(dirty.len() as u64 - 1);
                    dirty[(at / REGION) as usize..=last as usize].fill(true);
                }
                at += count;
            }
        }
        Window { task, start, dirty }
    }
}

/// What a job does next.
enum Next {
    Region(usize, u64),
    Look(usize, u64),
    /// A look is under way.
    Wait,
    /// All has been begun.
    End,
}

/// A copy that this loop runs; what others see of it is in `Volume::copies`.
pub struct Job {
    pub(crate) path: Vec<usize>,
    pub(crate) resync: bool,
    pub(crate) tasks: Vec<Task>,
    task: usize,
    offset: u64,
    /// Regions to do again: (task, offset).
    again: Vec<(usize, u64)>,
    /// Regions under way: (task, offset).
    flying: Vec<(usize, u64)>,
    pub(crate) mode: Mode,
    window: Option<Window>,
    looking: bool,
    /// Bytes that were alike, since this was last told.
    skipped: u64,
    /// How far all was done when the checkpoint's flush began; None: none is under way.
    mark: Option<u64>,
    marked: Instant,
    pace: Pace,
    /// Bytes done since then.
    measured: (Instant, u64),
    inflight: u32,
    flushed: bool,
    flushing: bool,
    /// A region could not be copied: nothing more is begun.
    failed: bool,
    /// The loop has been told to look at the job again.
    kicked: bool,
    pub retry: Option<Instant>,
    epoch: u64,
}

impl Job {
    fn new(tree: &Tree, copy: &Copy, epoch: u64, now: Instant, hosts: Hosts) -> Job {
        Job {
            path: copy.path.clone(),
            resync: copy.resync,
            tasks: tasks(tree, copy),
            task: 0,
            offset: copy.start,
            again: Vec::new(),
            flying: Vec::new(),
            mode: copy.mode,
            window: None,
            looking: false,
            skipped: 0,
            mark: None,
            marked: now,
            // A resync has no limits: until it is done reads have one leg alone.
            pace: Pace::new(now, copy.limit, copy.adaptive && !copy.resync, hosts),
            measured: (now, 0),
            inflight: 0,
            flushed: false,
            flushing: false,
            failed: false,
            kicked: false,
            retry: None,
            epoch,
        }
    }

    /// What comes next; regions that are alike are passed over.
    fn next(&mut self) -> Next {
        if let Some((task, offset)) = self.again.pop() {
            return Next::Region(task, offset);
        }
        while let Some(task) = self.tasks.get(self.task) {
            if self.offset >= task.size {
                (self.task, self.offset) = (self.task + 1, 0);
                continue;
            }
            let offset = self.offset;
            if self.mode == Mode::Delta {
                let here =
                    |w: &&Window| w.task == self.task && (w.start..w.end()).contains(&offset);
                let Some(window) = self.window.as_ref().filter(here) else {
                    return if self.looking { Next::Wait } else { Next::Look(self.task, offset) };
                };
                if !window.dirty[((offset - window.start) / REGION) as usize] {
                    self.skipped += REGION.min(task.size - offset);
                    self.offset += REGION;
                    continue;
                }
            }
            self.offset += REGION;
            let skips = planted("copy_skips_regions") && !self.mode.compares();
            if skips && offset / REGION % 4 == 1 {
                continue;
            }
            return Next::Region(self.task, offset);
        }
        Next::End
    }

    /// Below this everything has been copied. Of a copy, which has one task.
    fn low(&self) -> u64 {
        let open = self.again.iter().chain(&self.flying).map(|(_, offset)| *offset);
        let size = self.tasks.first().map_or(0, |task| task.size);
        let end = if self.task > 0 { size } else { self.offset };
        open.fold(end, u64::min).min(size)
    }

    /// How far all is done if it is time to make that durable.
    fn due(&self, durable: u64, now: Instant) -> Option<u64> {
        let low = self.low();
        let late = now.saturating_duration_since(self.marked) >= CHECKPOINT_TIME;
        let due = low >= durable + CHECKPOINT_BYTES || (late && low > durable);
        (due && !self.resync && !self.mode.compares() && self.mark.is_none() && !self.flushing)
            .then_some(low)
    }
}

fn objects(tree: &Tree, targets: &[Vec<usize>]) -> Vec<String> {
    let leaves = targets.iter().filter_map(|path| tree.leaves_under(path).ok()).flatten();
    leaves.map(|leaf| tree.leaves()[leaf as usize].t1.clone()).collect()
}

fn tasks(tree: &Tree, copy: &Copy) -> Vec<Task> {
    let leg = |path: &[usize], index: usize| {
        let mut leg = path.to_vec();
        leg.push(index);
        leg
    };
    if !copy.resync && !copy.mode.compares() {
        let Some((_, parent)) = copy.path.split_last() else { return Vec::new() };
        let size = tree.node_size(parent).unwrap_or(0);
        let targets = vec![copy.path.clone()];
        let onto = objects(tree, &targets);
        let legs = tree.legs(parent).unwrap_or_default();
        let present = legs.iter().enumerate().filter(|(_, state)| **state != LegState::Away);
        let maps = present.map(|(index, _)| leg(parent, index)).collect();
        return vec![Task { source: parent.to_vec(), targets, maps, onto, size }];
    }
    let mut tasks = Vec::new();
    for path in tree.mirrors() {
        let legs = tree.legs(&path).unwrap_or_default();
        let in_sync = legs.iter().enumerate().filter(|(_, state)| **state == LegState::InSync);
        let mut in_sync = in_sync.map(|(index, _)| leg(&path, index));
        let Some(source) = in_sync.next() else { continue };
        let size = tree.node_size(&path).unwrap_or(0);
        let targets: Vec<Vec<usize>> = in_sync.collect();
        if targets.is_empty() && copy.mode.compares() {
            continue;
        }
        let onto = objects(tree, &targets);
        let maps = std::iter::once(&source).chain(&targets).cloned().collect();
        tasks.push(Task { source, targets, maps, onto, size });
    }
    tasks
}

/// How many bytes a copy or resync of this tree moves.
pub fn total(tree: &Tree, copy: &Copy) -> u64 {
    tasks(tree, copy).iter().map(|task| task.size).sum()
}

/// True if `path` is a write-only leg.
pub fn is_write_only(tree: &Tree, path: &[usize]) -> bool {
    let Some((index, parent)) = path.split_last() else { return false };
    tree.legs(parent).is_ok_and(|legs| legs.get(*index) == Some(&LegState::WriteOnly))
}

/// True if a copy onto `path` of the old tree has to do with the new tree too.
pub fn carries_on(old: &Tree, new: &Tree, path: &[usize]) -> bool {
    let leg = [path.to_vec()];
    new.is_owner() && is_write_only(new, path) && objects(old, &leg) == objects(new, &leg)
}

fn listed(copies: &[Copy], job: &Job) -> bool {
    copies.iter().any(|copy| {
        copy.path == job.path && copy.resync == job.resync && copy.state == CopyState::Running
    })
}

impl Loop {
    /// The loop that runs a volume's copies.
    pub fn copy_loop(volume: &str, loops: usize) -> usize {
        volume.bytes().fold(0, |sum: usize, byte| sum.wrapping_add(usize::from(byte))) % loops
    }

    /// Starts the copies that the volume lists, drops those that it does not, and goes on.
    pub fn copy_kick(&mut self, id: &str) {
        if Loop::copy_loop(id, self.shared.mailboxes.len()) != self.index {
            return;
        }
        let Some(&token) = self.volume_by_id.get(id) else { return };
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let mut copies = volume.volume.copies();
        volume.copies.retain(|job| job.inflight > 0 || (listed(&copies, job) && !job.failed));
        for job in &mut volume.copies {
            job.kicked = false;
        }
        for copy in copies.iter_mut().filter(|copy| copy.state == CopyState::Running) {
            let known = |job: &Job| job.path == copy.path && job.resync == copy.resync;
            if !volume.copies.iter().any(known) {
                copy.copied = copy.start;
                copy.total = total(&volume.active.tree, copy);
                let (tree, epoch) = (&volume.active.tree, volume.active.epoch);
                let hosts = volume.volume.all_hosts();
                volume.copies.push(Job::new(tree, copy, epoch, self.now, hosts));
            }
            for job in volume.copies.iter_mut().filter(|job| known(job)) {
                job.pace.set(copy.limit, copy.adaptive && !copy.resync);
                job.retry = None;
            }
        }
        drop(copies);
        for index in 0..volume.copies.len() {
            self.advance(token, index);
        }
    }

    pub fn tick_copies(&mut self) -> bool {
        let mut waiting = false;
        for token in self.volumes.tokens() {
            let Some(volume) = self.volumes.get_mut(token) else { continue };
            for index in 0..volume.copies.len() {
                waiting = true;
                self.advance(token, index);
                let Some(again) = self.volumes.get_mut(token) else { break };
                if index + 1 >= again.copies.len() {
                    break;
                }
            }
        }
        waiting
    }

    /// Has the loop look at the job again, after what else it has to do: a copy of what is in
    /// memory would otherwise run to its end while hosts wait.
    fn kick_job(&mut self, token: Token, index: usize) {
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let Some(job) = volume.copies.get_mut(index) else { return };
        if !std::mem::replace(&mut job.kicked, true) {
            self.mailbox.post(Message::Copy(volume.volume.id.clone()));
        }
    }

    /// Begins as many regions as may run.
    fn advance(&mut self, token: Token, index: usize) {
        for _ in 0..PARALLEL {
            let Some(volume) = self.volumes.get_mut(token) else { return };
            if volume.held {
                return;
            }
            let active = Arc::clone(&volume.active);
            let Some(job) = volume.copies.get_mut(index) else { return };
            if job.retry.is_some_and(|at| at > self.now) || job.inflight >= PARALLEL {
                return;
            }
            job.retry = None;
            let copies = volume.volume.copies();
            let entry = copies.iter().find(|c| c.path == job.path && c.resync == job.resync);
            let changed = job.epoch != active.epoch
                && entry.is_none_or(|copy| tasks(&active.tree, copy) != job.tasks);
            let ended = job.failed || changed || !listed(&copies, job);
            let durable = entry.map_or(0, |copy| copy.durable);
            drop(copies);
            if ended {
                // Wait for what runs; should the copy be listed again, it begins anew.
                if job.inflight == 0 {
                    volume.copies.remove(index);
                    self.mailbox.post(Message::Copy(volume.volume.id.clone()));
                }
                return;
            }
            job.epoch = active.epoch;
            if job.resync && active.tree.is_mirror() && job.tasks.len() == 1 {
                active.alike.store(job.low(), Ordering::SeqCst);
            }
            if job.pace.is_due(self.now) {
                job.pace.observe(self.now, volume.volume.all_hosts());
                self.ask_hosts(token);
                continue;
            }
            if let Some(low) = job.due(durable, self.now) {
                (job.mark, job.marked) = (Some(low), self.now);
                self.flush_copy(token, index, CHECKPOINT);
                continue;
            }
            let more = !job.again.is_empty() || job.task < job.tasks.len();
            if let Some(at) = job.pace.wait(self.now).filter(|_| more) {
                job.retry = Some(at);
                return self.want_tick();
            }
            let next = job.next();
            let (path, resync) = (job.path.clone(), job.resync);
            let skipped = std::mem::take(&mut job.skipped);
            if skipped > 0 {
                volume.volume.change_copy(&path, resync, |copy| {
                    copy.copied = (copy.copied + skipped).min(copy.total);
                });
            }
            let mut op = match next {
                Next::Region(task, offset) => {
                    let work = &job.tasks[task];
                    let length = REGION.min(work.size - offset);
                    let itself = planted("copy_from_itself") && !job.mode.compares();
                    let from = if itself { &work.targets[0] } else { &work.source };
                    let scope = Scope::Subtrees(vec![from.clone()]);
                    let source = Source::Copy { path, resync, task };
                    job.flying.push((task, offset));
                    job.pace.spend(length);
                    let mut op = Op::new(source, scope, Kind::Read, offset, length);
                    op.data = self.buffers.take(length as usize);
                    op
                }
                Next::Look(task, offset) => {
                    job.looking = true;
                    let work = &job.tasks[task];
                    let length = WINDOW.min(work.size - offset);
                    let scope = Scope::Subtrees(work.maps.clone());
                    let source = Source::Copy { path, resync, task: LOOK };
                    Op::new(source, scope, Kind::Dirty, offset, length)
                }
                Next::Wait => return,
                Next::End if job.inflight > 0 || job.flushing => return,
                Next::End if !job.flushed => {
                    job.flushing = true;
                    return self.flush_copy(token, index, FLUSH);
                }
                Next::End if !job.resync && !job.mode.compares() && !self.is_kept(token) => {
                    if let Some(volume) = self.volumes.get_mut(token)
                        && let Some(job) = volume.copies.get_mut(index)
                    {
                        job.retry = Some(self.now + AGAIN);
                    }
                    return self.want_tick();
                }
                Next::End => return self.copied(token, index),
            };
            job.inflight += 1;
            op.volume = token;
            self.submit(op);
            self.want_tick();
        }
    }

    /// Flushes the targets of a copy: at a checkpoint, or at its end.
    fn flush_copy(&mut self, token: Token, index: usize, task: usize) {
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let Some(job) = volume.copies.get_mut(index) else { return };
        job.inflight += 1;
        let targets = job.tasks.iter().flat_map(|task| task.targets.clone()).collect();
        let source = Source::Copy { path: job.path.clone(), resync: job.resync, task };
        let mut op = Op::new(source, Scope::Subtrees(targets), Kind::Flush, 0, 0);
        op.volume = token;
        self.submit(op);
        self.want_tick();
    }

    /// Has every other loop say what its hosts have met, in time for the next look.
    fn ask_hosts(&mut self, token: Token) {
        let Some(volume) = self.volumes.get(token) else { return };
        let id = volume.volume.id.clone();
        for (index, mailbox) in self.shared.mailboxes.iter().enumerate() {
            if index != self.index {
                mailbox.post(Message::Observe(id.clone()));
            }
        }
        self.tell_hosts(&id);
    }

    /// Says what this loop's hosts have met.
    pub fn tell_hosts(&mut self, id: &str) {
        let Some(&token) = self.volume_by_id.get(id) else { return };
        let Some(volume) = self.volumes.get(token) else { return };
        volume.volume.tell_hosts(self.index, volume.counters.hosts());
    }

    /// All of a copy is durable on its targets.
    fn copied(&mut self, token: Token, index: usize) {
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let shared = Arc::clone(&volume.volume);
        let Some(job) = volume.copies.get_mut(index) else { return };
        let done = |copy: &mut Copy| {
            copy.state = CopyState::Done;
            copy.copied = copy.total;
            (copy.durable, copy.rate) = (copy.total, 0);
        };
        if !job.resync {
            let path = job.path.clone();
            volume.copies.remove(index);
            shared.copies().iter_mut().filter(|c| !c.resync && c.path == path).for_each(done);
            return;
        }
        // Legs are alike again: reads may use all of them. A restructure under way decides
        // that itself, so try again when it is over.
        let Ok(_control) = shared.control.try_lock() else {
            job.retry = Some(self.now + AGAIN);
            return self.want_tick();
        };
        if job.epoch != shared.active().epoch {
            return;
        }
        volume.copies.remove(index);
        shared.copies().iter_mut().filter(|copy| copy.resync).for_each(done);
        shared.lock.settle();
        self.pin(&shared, false);
    }

    /// A region has been read: write it to the targets, under the same lock.
    pub fn copy_write(&mut self, token: Token) {
        let Some(op) = self.ops.get_mut(token) else { return };
        let Source::Copy { path, resync, task } = &op.source else { return };
        let Some(volume) = self.volumes.get(op.volume) else {
            return self.finish(token, Err(Fail::Shutdown));
        };
        let job = volume.copies.iter().find(|job| job.path == *path && job.resync == *resync);
        let Some(work) = job.and_then(|job| job.tasks.get(*task)) else {
            return self.finish(token, Err(Fail::Stale));
        };
        op.scope = Scope::Subtrees(work.targets.clone());
        let empty = op.data.iter().all(|&byte| byte == 0) || planted("copy_of_zeroes");
        // Regions that were never written stay holes.
        op.kind = if empty { Kind::Zero { no_hole: false, fast: false } } else { Kind::Write };
        op.rewind();
        op.avoid.clear();
        self.route(token);
    }

    /// A region, or the last flush, has ended.
    pub fn copy_region_done(
        &mut self,
        token: Token,
        path: &[usize],
        resync: bool,
        task: usize,
        op: &Op,
        result: Result<(), Fail>,
    ) {
        let now = self.now;
        let Some(volume) = self.volumes.get_mut(token) else { return };
        let shared = Arc::clone(&volume.volume);
        let at = volume.copies.iter().position(|job| job.path == path && job.resync == resync);
        let Some(index) = at else { return };
        let job = &mut volume.copies[index];
        job.inflight -= 1;
        let mark = if task == CHECKPOINT { job.mark.take() } else { None };
        if task == FLUSH {
            job.flushing = false;
        }
        job.flying.retain(|region| *region != (task, op.offset));
        let region = task < LOOK;
        if task == LOOK {
            job.looking = false;
        }
        match result {
            // Its failure is told already; what else was under way changes nothing.
            _ if job.failed => {}
            Ok(()) if task == LOOK => {
                job.window = Some(Window::of(job.task, op.offset, op.length, &op.status));
            }
            Ok(()) if task == FLUSH => job.flushed = true,
            Ok(()) => {
                let length = if region { op.length } else { 0 };
                // A comparison writes what it repairs, and nothing else.
                let written = if job.mode.compares() && op.kind == Kind::Read { 0 } else { length };
                shared.moved.fetch_add(written, Ordering::Relaxed);
                job.measured.1 += length;
                let passed = now.saturating_duration_since(job.measured.0);
                let rate = (passed >= MEASURED).then(|| {
                    let bytes = std::mem::replace(&mut job.measured, (now, 0)).1;
                    (bytes as f64 / passed.as_secs_f64()) as u64
                });
                shared.change_copy(path, resync, |copy| {
                    copy.copied = (copy.copied + length).min(copy.total);
                    copy.rate = rate.unwrap_or(copy.rate);
                    copy.durable = mark.unwrap_or(0).max(copy.durable);
                });
            }
            Err(Fail::Stale | Fail::Shutdown) => {
                if region {
                    job.again.push((task, op.offset));
                }
                job.retry = Some(now + AGAIN);
            }
            Err(_) if resync => {
                // Reads stay pinned and the resync goes on trying: there is no other way to
                // make the legs alike again.
                if region {
                    job.again.push((task, op.offset));
                }
                job.retry = Some(now + AGAIN * 10);
            }
            Err(error) => {
                job.failed = true;
                shared.change_copy(path, resync, |copy| {
                    copy.state = CopyState::Failed;
                    copy.error = format!("at {}: {}", op.offset, error.name());
                });
            }
        }
        self.want_tick();
        self.kick_job(token, index);
    }
}
