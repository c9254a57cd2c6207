//! Carrying out operations: routing, parts, retries, parking, replies.

use std::sync::Arc;
use std::time::Instant;

use vs_io::{T1Object, planted};
use vs_tree::{Access, Piece, ReadChoice, Routed, Target};

use crate::active::{Active, Leaf};
use crate::event_loop::{Loop, LoopVolume};
use crate::mailbox::SubData;
use crate::op::{Fail, Kind, NO_LEAF, Op, Scope, Source};
use crate::parking::AGAIN;
use crate::remote::{Object, RemoteKey, Submit};
use crate::slab::Token;

/// Most parts of one block status; a longer request is answered for its beginning.
const STATUS_PARTS: usize = 512;

impl Loop {
    /// Takes an operation on and runs it as far as it goes.
    pub fn submit(&mut self, mut op: Op) {
        op.fua &= !planted("fua_ignored");
        let token = self.ops.insert(op);
        self.run_op(token);
    }

    /// Runs an operation from its beginning: when it is new, and after it was parked.
    pub fn run_op(&mut self, token: Token) {
        if !self.vouch(token) {
            return;
        }
        let Some(op) = self.ops.get_mut(token) else { return };
        op.rewind();
        op.unchange();
        op.differs = None;
        if std::mem::take(&mut op.settles) {
            op.kind = Kind::Read;
        }
        if let Scope::T1(t1) = &op.scope {
            let t1 = Arc::clone(t1);
            let Source::Peer { epoch, .. } = op.source else { return };
            let (offset, length) = (op.offset, op.length);
            op.pending = 1;
            if op.intent && op.kind.changes() && t1.serves(epoch) && !t1.intends(offset, length) {
                op.marking = true;
                self.mark_part(token, &t1, NO_LEAF, offset, length);
                return self.part_ended(token);
            }
            self.local_parts(token, &t1, epoch, NO_LEAF, offset, length, 0);
            return self.part_ended(token);
        }
        let Some(volume) = self.volumes.get_mut(op.volume) else {
            return self.finish(token, Err(Fail::Shutdown));
        };
        if volume.held {
            volume.parked.push_back(token);
            return self.want_tick();
        }
        if matches!(op.source, Source::Viewer) && volume.held {
            return self.finish(token, Err(Fail::Stale));
        }
        if let Source::Peer { epoch, .. } = op.source {
            if epoch < volume.active.epoch {
                return self.finish(token, Err(Fail::Stale));
            }
            if epoch > volume.active.epoch {
                volume.parked.push_back(token);
                return self.want_tick();
            }
            if !volume.active.tree.is_owner() {
                return self.finish(token, Err(Fail::NotFound));
            }
        }
        if op.kind.asks_owner() {
            return self.ask_owner(token);
        }
        let tree = &volume.active.tree;
        if matches!(op.kind, Kind::Zero { fast: true, .. })
            && !(volume.active.fast_zero && matches!(op.scope, Scope::Volume))
        {
            // Before any leg is touched: one that can't would leave the legs different.
            return self.finish(token, Err(Fail::NotSupported));
        }
        if matches!(op.scope, Scope::Volume)
            && op.offset.checked_add(op.length).is_none_or(|end| end > tree.size())
        {
            let error = if op.kind.changes() { Fail::NoSpace } else { Fail::Invalid };
            return self.finish(token, Err(error));
        }
        let reads = matches!(op.kind, Kind::Read | Kind::Status);
        let leased = reads && matches!(op.scope, Scope::Volume) && !volume.active.voters.is_empty();
        if leased && !volume.lease.holds(self.now) {
            op.retry = Some(self.now + AGAIN);
            let of = op.volume;
            volume.parked.push_back(token);
            self.want_tick();
            return self.ask_lease(of);
        }
        volume.inflight += 1;
        op.running = true;
        op.settled = volume.volume.lock.settled();
        let copies = matches!(op.source, Source::Copy { .. }) && op.kind != Kind::Dirty;
        let ordered = op.kind.changes()
            || op.ordered
            || matches!(op.kind, Kind::Clean { .. })
            || matches!(op.source, Source::Heal)
            || copies;
        if ordered && tree.has_mirror() && tree.is_owner() && !op.locked {
            let range = op.range(tree);
            let holder = (self.index, token);
            if !volume.volume.lock.acquire(range.0, range.1, holder, op.kind.changes()) {
                return;
            }
            op.locked = true;
        }
        self.route(token);
    }

    /// The range lock has come to this operation.
    pub fn granted(&mut self, token: Token) {
        if let Some(op) = self.ops.get_mut(token) {
            op.locked = true;
            self.route(token);
        }
    }

    /// Sends the operation's parts on their way; for the second half of a copied region too.
    pub fn route(&mut self, token: Token) {
        let Some(op) = self.ops.get_mut(token) else { return };
        let Some(volume) = self.volumes.get(op.volume) else {
            return self.finish(token, Err(Fail::Shutdown));
        };
        let active = Arc::clone(&volume.active);
        let access = match op.kind {
            Kind::Read | Kind::Status | Kind::Flush | Kind::Change(_) => Access::Read,
            Kind::Write | Kind::Dirty => Access::Write,
            Kind::Trim | Kind::Zero { .. } | Kind::Clean { .. } => Access::Span,
            _ => Access::Read,
        };
        self.spread = self.spread.wrapping_add(1);
        let mut pieces = std::mem::take(&mut self.pieces);
        let choice = ReadChoice { pinned: active.pinned, avoid: &op.avoid, spread: self.spread };
        let tree = &active.tree;
        let (offset, length) = (op.offset, op.length);
        let host = matches!(op.scope, Scope::Volume) && tree.has_mirror() && tree.is_owner();
        if host && op.kind.changes() && active.recent.touch(offset, length) {
            self.shared.sweep(&volume.volume.id);
        }
        if matches!(op.kind, Kind::Clean { flushed: true }) && active.recent.touched(offset, length)
        {
            self.pieces = pieces;
            return self.finish(token, Err(Fail::Stale));
        }
        let routed = if op.kind.of_objects() {
            pieces.clear();
            let offset = if op.kind == Kind::Keep { offset } else { 0 };
            let whole = |leaf| Piece { target: Target::Leaf(leaf), offset, length: 0, at: 0 };
            match &op.scope {
                Scope::Subtrees(paths) => {
                    let under = paths.iter().filter_map(|path| tree.leaves_under(path).ok());
                    pieces.extend(under.flat_map(|under| tree.present(under)).map(whole));
                }
                _ => pieces.extend(tree.present(0..active.leaves.len() as u32).map(whole)),
            }
            if op.kind == Kind::Keep && planted("reservation_not_kept") && !pieces.is_empty() {
                pieces.pop();
            }
            if op.kind != Kind::Flush {
            } else if planted("flush_skipped") {
                pieces.clear();
            } else if planted("flush_skips_a_leg") && !pieces.is_empty() {
                pieces.remove(0);
            }
            Routed::Ready
        } else if let Scope::Subtrees(paths) = &op.scope {
            let mut all = Vec::new();
            let mut result = Routed::Ready;
            let used = if access == Access::Read { 1 } else { paths.len() };
            for path in &paths[..used] {
                match tree.route_at(path, access, offset, length, &choice, &mut pieces) {
                    Ok(Routed::Ready) => all.append(&mut pieces),
                    Ok(other) => result = other,
                    Err(_) => result = Routed::Parked,
                }
            }
            pieces = all;
            result
        } else {
            tree.route(access, offset, length, &choice, &mut pieces)
        };
        match routed {
            Routed::Parked => self.park(token, Fail::Stale),
            Routed::NoLeg => self.finish(token, Err(Fail::Io)),
            Routed::Ready => {
                if op.kind == Kind::Status && pieces.len() > STATUS_PARTS {
                    pieces.truncate(STATUS_PARTS);
                    op.length = pieces.last().map_or(0, |last| last.at + last.length);
                }
                if matches!(op.kind, Kind::Change(_)) {
                    let under = |piece: &Piece| match piece.target {
                        Target::Leaf(leaf) => tree.leaves()[leaf as usize].mirrored,
                        Target::Owner => false,
                    };
                    if pieces.len() != 1 {
                        self.pieces = pieces;
                        return self.finish(token, Err(Fail::NotSupported));
                    }
                    if host && pieces.iter().all(under) {
                        self.change_mirror(token);
                    }
                }
                let Some(op) = self.ops.get_mut(token) else { return };
                // One more than the parts, so that it can't end before all have begun.
                op.pending = 1;
                op.routed = self.now;
                Self::healed_only(&op.heals, &mut pieces);
                if op.settles {
                    pieces.retain(|piece| {
                        matches!(piece.target, Target::Leaf(leaf) if tree.leaves()[leaf as usize].mirrored)
                    });
                }
                if host && op.kind.changes() && !Self::noted(&active, &pieces) {
                    op.marking = true;
                    self.mark_pieces(token, &active, &pieces);
                    pieces.clear();
                    self.pieces = pieces;
                    self.time_legs();
                    return self.part_ended(token);
                }
                for piece in &pieces {
                    self.piece(token, &active, piece);
                }
                self.time_legs();
                self.part_ended(token);
            }
        }
        pieces.clear();
        self.pieces = pieces;
    }

    /// The T1 object here that a piece of a mirrored write goes to.
    fn noted_in<'a>(active: &'a Active, piece: &Piece) -> Option<(u32, &'a Arc<T1Object>)> {
        let Target::Leaf(leaf) = piece.target else { return None };
        match &active.leaves[leaf as usize] {
            Leaf::Local(t1) if active.tree.leaves()[leaf as usize].mirrored => Some((leaf, t1)),
            _ => None,
        }
    }

    /// True if the write-intent maps here have all that these pieces change; other SPs see to
    /// theirs.
    pub fn noted(active: &Active, pieces: &[Piece]) -> bool {
        planted("map_not_set")
            || pieces.iter().all(|piece| {
                Self::noted_in(active, piece)
                    .is_none_or(|(_, t1)| t1.intends(piece.offset, piece.length))
            })
    }

    /// Puts into the maps what the pieces change.
    fn mark_pieces(&mut self, token: Token, active: &Active, pieces: &[Piece]) {
        for piece in pieces {
            if let Some((leaf, t1)) = Self::noted_in(active, piece) {
                self.mark_part(token, t1, leaf, piece.offset, piece.length);
            }
        }
    }

    pub fn piece(&mut self, token: Token, active: &Active, piece: &Piece) {
        let epoch = active.epoch;
        let Some(op) = self.ops.get(token) else { return };
        let kind = op.kind.of_leaf();
        let changes = kind.changes() && !matches!(op.source, Source::Copy { .. });
        let Piece { mut offset, length, at, .. } = *piece;
        if let Target::Leaf(leaf) = piece.target
            && active.tree.leaves()[leaf as usize].mirrored
        {
            let write = changes && kind == Kind::Write;
            if write && leaf == 1 && planted("leg_off_by_a_block") && offset >= 4096 {
                offset -= 4096;
            }
            let away = matches!(active.leaves[leaf as usize], Leaf::Remote(..));
            if write && away && planted("remote_leg_skipped") {
                return;
            }
            if kind == Kind::Read && planted("read_off_by_a_block") && offset >= 4096 {
                offset -= 4096;
            }
        }
        match piece.target {
            Target::Owner => {
                let Some(owner) = active.tree.owner() else { return };
                let peer = &active.tree.peers()[owner as usize];
                let object = Object::Volume(active.tree.spec().volume.as_str().into());
                let key = RemoteKey::Owner(Arc::clone(&active.peers[owner as usize]));
                let (leaf, intent) = (NO_LEAF, false);
                let to = Submit { op: token, kind, leaf, epoch, offset, length, at, intent };
                self.send_remote(key, &peer.address, object, None, to);
            }
            Target::Leaf(leaf) => match &active.leaves[leaf as usize] {
                Leaf::Local(t1) => self.local_parts(token, t1, epoch, leaf, offset, length, at),
                Leaf::Missing => self.note(token, Fail::NotFound, NO_LEAF),
                Leaf::Remote(peer, t1) => {
                    let address = &active.tree.peers()[*peer as usize].address;
                    let key = RemoteKey::Home(Arc::clone(&active.peers[*peer as usize]));
                    let intent = changes && active.tree.leaves()[leaf as usize].mirrored;
                    let to = Submit { op: token, kind, leaf, epoch, offset, length, at, intent };
                    self.send_remote(key, address, Object::T1(Arc::clone(t1)), None, to);
                }
            },
        }
    }

    fn note(&mut self, token: Token, error: Fail, leaf: u32) {
        if let Some(op) = self.ops.get_mut(token) {
            op.note(error, leaf);
        }
    }

    /// The parts of an operation that fall to one T1 object here.
    #[allow(clippy::too_many_arguments)]
    fn local_parts(
        &mut self,
        token: Token,
        t1: &Arc<T1Object>,
        epoch: u64,
        leaf: u32,
        offset: u64,
        length: u64,
        at: u64,
    ) {
        if !t1.serves(epoch) {
            self.fencing_rejections += 1;
            return self.note(token, Fail::Stale, NO_LEAF);
        }
        let Some(op) = self.ops.get(token) else { return };
        if matches!(op.kind, Kind::Recall | Kind::Keep) {
            return self.kept_part(token, t1, epoch, leaf);
        }
        if op.kind.of_leaf() == Kind::Flush {
            for device in t1.devices() {
                self.flush_device(token, device, leaf);
            }
            return;
        }
        if offset.checked_add(length).is_none_or(|end| end > t1.size()) {
            return self.note(token, Fail::Invalid, leaf);
        }
        if matches!(op.kind, Kind::Change(_)) {
            return self.change_t1(token, t1, epoch, leaf, offset, length);
        }
        if op.kind.changes() && self.waits_for_turn(token, t1, epoch, leaf, offset, length, at) {
            return;
        }
        self.leaf_parts(token, t1, epoch, leaf, offset, length, at);
    }

    /// The parts of a T1 object's range by its devices.
    #[allow(clippy::too_many_arguments)]
    pub fn leaf_parts(
        &mut self,
        token: Token,
        t1: &Arc<T1Object>,
        epoch: u64,
        leaf: u32,
        offset: u64,
        length: u64,
        at: u64,
    ) {
        if !t1.serves(epoch) {
            self.fencing_rejections += 1;
            return self.note(token, Fail::Stale, NO_LEAF);
        }
        let _: Result<(), ()> = t1.map(offset, length, |device, start, count, done| {
            self.device_part(token, t1, device, leaf, start, count, at + done);
            Ok(())
        });
    }

    /// A part that was under way has ended.
    pub fn sub_done(&mut self, token: Token, piece: u32, result: Result<SubData, Fail>) {
        let Some(op) = self.ops.get_mut(token) else { return };
        // What was given up is no part of it any more, whatever comes of it.
        let Some(part) = op.end_part(piece) else { return };
        match result {
            Ok(SubData::None) => op.wrote |= op.kind.changes() && !op.marking,
            Ok(SubData::Status(runs)) => op.status.push((part.at, runs)),
            Ok(SubData::Answer(bytes)) => op.answers.push((part.leaf, bytes)),
            Ok(SubData::Bytes(bytes)) => {
                let at = part.at as usize;
                op.data[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            Err(error) => {
                if matches!(error, Fail::Io | Fail::NoSpace) {
                    op.unsure();
                }
                op.note(error, part.leaf);
            }
        }
        self.part_ended(token);
    }

    pub fn part_ended(&mut self, token: Token) {
        let Some(op) = self.ops.get_mut(token) else { return };
        op.pending -= 1;
        if op.pending == 0 {
            self.complete(token);
        }
    }

    fn complete(&mut self, token: Token) {
        let Some(op) = self.ops.get_mut(token) else { return };
        let direct = matches!(op.scope, Scope::T1(_));
        let copy = matches!(op.source, Source::Copy { .. });
        if op.marking && op.fail.is_none() {
            // In the map now: once more, in earnest.
            if direct {
                return self.run_op(token);
            }
            op.rewind();
            return self.route(token);
        }
        let keeper = matches!(op.source, Source::Keeper);
        let (fail, changes) = (op.fail, op.kind.changes() || op.kind == Kind::Flush || keeper);
        let hosts = Source::is_hosts;
        let host = (hosts(&op.source) || matches!(op.source, Source::Peer { .. })) && !direct;
        // That its label is full is no fault of a leg.
        let failed = matches!(fail, Some(Fail::Io)) || fail == Some(Fail::NoSpace) && !keeper;
        if failed && (host || keeper) && changes && self.blame_failed(token) {
            if self.ops.get(token).is_some_and(Op::is_unsure) {
                return self.finish(token, Err(Fail::Unsure));
            }
            return self.park(token, Fail::NotFound);
        }
        if copy && self.compared_leg(token) {
            return;
        }
        let Some(op) = self.ops.get_mut(token) else { return };
        match op.fail {
            Some(Fail::Stale | Fail::NotFound) if op.is_unsure() => {
                return self.finish(token, Err(Fail::Unsure));
            }
            Some(why @ (Fail::Stale | Fail::NotFound)) if !direct => {
                return self.park(token, why);
            }
            Some(Fail::Io)
                if matches!(op.kind, Kind::Read | Kind::Status)
                    && !direct
                    && !matches!(op.source, Source::Lease) =>
            {
                // Another in-sync leg may have it; `avoid` grows each time, so this ends.
                let failed = std::mem::take(&mut op.failed_leaves);
                if !failed.is_empty() && !planted("read_not_tried_elsewhere") {
                    op.rewind();
                    op.avoid.extend(failed);
                    return self.route(token);
                }
            }
            None if op.fua && op.kind.changes() && !op.touched.is_empty() => {
                op.pending = 1;
                for (device, leaf) in std::mem::take(&mut op.touched) {
                    self.commit_device(token, &device, leaf);
                }
                return self.part_ended(token);
            }
            _ => {}
        }
        let result = op.fail.map_or(Ok(()), Err);
        if op.changing.is_some() {
            if result.is_err() || !self.change_goes_on(token) {
                self.finish(token, result);
            }
            return;
        }
        if matches!(op.source, Source::Heal) {
            match (result, op.kind) {
                (Ok(()), Kind::Read) => return self.heal_write(token),
                (Err(Fail::Io | Fail::NoSpace), Kind::Write) => drop(self.blame_failed(token)),
                _ => {}
            }
            return self.finish(token, result);
        }
        if result.is_ok() && op.kind == (Kind::Clean { flushed: false }) {
            op.kind = Kind::Clean { flushed: true };
            op.rewind();
            return self.route(token);
        }
        if op.settles && result.is_ok() {
            op.kind = Kind::Read;
            if let Some(volume) = self.volumes.get(op.volume) {
                volume.volume.lock.settle();
            }
        } else if result.is_ok() && host && op.kind == Kind::Read && self.is_unsettled(token) {
            return self.settle_read(token);
        }
        let Some(op) = self.ops.get_mut(token) else { return };
        let read =
            matches!(op.kind, Kind::Read | Kind::Status) && matches!(op.scope, Scope::Volume);
        if result.is_ok() && read && !matches!(op.source, Source::Lease) {
            let now = Instant::now();
            let unsure =
                |volume: &LoopVolume| !volume.active.voters.is_empty() && !volume.lease.holds(now);
            if self.volumes.get(op.volume).is_some_and(unsure) {
                return self.confirm_read(token);
            }
        }
        if copy && result.is_ok() && op.kind == Kind::Read {
            return self.copy_write(token);
        }
        if result.is_ok() && host && op.kind == Kind::Read && !op.avoid.is_empty() {
            let (of, offset, length) = (op.volume, op.offset, op.length);
            let leaves = op.avoid.clone();
            self.finish(token, result);
            return self.heal(of, offset, length, leaves);
        }
        self.finish(token, result);
    }
}
