"""VCM: target states and the MVSM's answers -> an ordered plan (design/coherency.md, the orders).

One transition from tree to tree is always: T1 objects first; T2 objects staged at every
serving SP; every T1 object of the old tree fenced to the new epoch, those that leave
included, so that from then on nothing is read or written by an old tree anywhere; the
commit record; activation; T2 objects removed; T1 objects removed. A T1 object that changes
its home is first taken out of all trees (`vbm` answers with a tree that has a hole), its
references are dropped, it is fenced and adopted, and trees that refer to it come back: its
new home first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace as with_fields

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import (
    Hole,
    Mirror,
    SpId,
    T1Id,
    Volume,
    VolumeId,
    at,
    next_epoch,
    node_size,
    own_epoch,
    project,
    walk,
)
from vswitchd.model.view import Affected, Change, ObjectKind
from vswitchd.restructure.alone import is_own, without
from vswitchd.restructure.away import ejected, lost
from vswitchd.restructure.requests import Become, CopyOnto, Stage
from vswitchd.restructure.steps import (
    ActivateT2,
    AdoptT1,
    AwaitLease,
    AwaitSync,
    Commit,
    Copy,
    DeleteT1,
    DropReference,
    FenceT1,
    Forget,
    Plan,
    PutT1,
    RemoveT2,
    StageT2,
    Step,
    place,
)

Peers = Mapping[SpId, str]


def transitions(
    base: Volume | None, stages: Sequence[Stage]
) -> tuple[tuple[Volume | None, Volume | None] | None, ...]:
    """For each stage what the MVSM is to be asked: (current, target); None for a copy."""
    asked: list[tuple[Volume | None, Volume | None] | None] = []
    current = base
    for stage in stages:
        match stage:
            case Become(target):
                asked.append((current, target))
                current = target
            case CopyOnto():
                asked.append(None)
    return tuple(asked)


def plan(
    base: Volume | None,
    stages: Sequence[Stage],
    affected: Sequence[Iterable[Affected]],
    peers: Peers,
    gone: Collection[SpId] = (),
) -> Plan:
    """The whole plan. `affected` holds the MVSM's answer for each stage (empty for a copy);
    `peers` the peer address of every SP; SPs that are `gone` are asked for nothing. VsError VS3010
    names an SP without an address."""
    draft = _Draft(frozenset(gone), () if base is None else base.serving)
    current = base
    if base is not None and base.owner not in gone and _needs_sync(base, stages):
        draft.add(AwaitSync(base.owner, base.id))
    for stage, answer in zip(stages, affected, strict=True):
        match stage:
            case CopyOnto(path, mode):
                assert current is not None, "a copy follows a tree"
                # What a copy moves is bounded by the mirror, the smallest of its legs.
                size = node_size(at(current.root, path[:-1]))
                draft.add(Copy(current.owner, current.id, current.version, path, size, mode))
            case Become(None):
                assert current is not None, "only what exists is deleted"
                _delete(draft, current)
                current = None
            case Become(target):
                assert target is not None
                if current is not None and current is not base and _drops_legs(current, target):
                    # The owner may have restarted since the copy: the legs that joined are
                    # then being made alike once more, and the old ones have to wait for it.
                    draft.add(AwaitSync(current.owner, current.id))
                _become(draft, current, target, tuple(answer), peers)
                current = target
    return draft.plan(base)


def created(plan: Plan) -> dict[T1Id, SpId]:
    """The T1 objects that a plan creates, and where."""
    known = frozenset() if plan.base is None else _ids(plan.base)
    return {
        step.t1.id: step.t1.home
        for step in plan.steps
        if isinstance(step, PutT1) and step.t1.id not in known
    }


def _made(plan: Plan) -> dict[T1Id, SpId]:
    """The T1 objects that a plan creates, or that it deletes since it undoes one that did."""
    known = frozenset() if plan.base is None else _ids(plan.base)
    deleted = {
        step.t1: step.sp
        for step in plan.steps
        if isinstance(step, DeleteT1) and step.t1 not in known
    }
    return {**deleted, **created(plan)}


def is_overtaken(plan: Plan, stored: Volume | None) -> bool:
    """True if the owner has left legs behind by itself on a tree that the plan knows, and the store
    has learnt it."""
    if stored is None or not is_own(stored.epoch):
        return False
    known = {step.volume.epoch for step in plan.steps if isinstance(step, Commit)}
    known |= {step.known for step in plan.steps if isinstance(step, FenceT1)}
    return stored.epoch not in known and (plan.base is None or plan.base.epoch != stored.epoch)


def overtaken(done: Plan, current: Volume, peers: Peers, gone: Collection[SpId] = ()) -> Plan:
    """What becomes of a plan past `no_return` when the owner has left legs behind meanwhile
    (`current`: what the store has learnt). A deletion goes on with what is there now. Else the
    volume stays as it is, under an epoch above all that were used; what is left over of the plan
    the reconciler finds."""
    if any(isinstance(step, Forget) for step in done.steps):
        draft = _Draft(frozenset(gone), current.serving)
        _delete(draft, current)
        return draft.plan(current)
    draft = _Draft(frozenset(gone), current.serving)
    seen = [step.volume for step in done.steps if isinstance(step, Commit)]
    _back(draft, current, [*seen, current], {}, peers)
    draft.no_return = 0
    return draft.plan(current)


def undo(done: Plan, current: Volume | None, peers: Peers, gone: Collection[SpId] = ()) -> Plan:
    """The plan that takes back one that has not passed `no_return`, wherever it stands, or one
    that undoes such a plan. SPs that are `gone` are asked for nothing: the volume goes on without
    them, if it can.

    It does not ask how far `done` came: every step finds its work done or not needed. The
    base's tree comes back under a version and epoch above all that `done` may have used
    (`current`: the volume as the store has it). What is away in `current`, since the owner has
    left it behind by itself, is away then too. T1 objects that `done` extended stay extended; the
    next request uses that room.
    """
    base = done.base
    if all(isinstance(step, AwaitSync | Copy) for step in done.steps):
        # Legs held against each other: no tree has changed.
        return Plan(base, (), 0)
    if base is not None and current is not None and is_own(current.epoch):
        base = without(base, lost(current.root) - lost(base.root))
    if base is not None and gone:
        try:
            base = ejected(base, gone)
        except VsError:
            # Nothing but their return helps.
            gone = ()
    new = _made(done)
    staged = {step.t2.sp for step in done.steps if isinstance(step, StageT2)}
    staged |= {step.sp for step in done.steps if isinstance(step, RemoveT2)}
    draft = _Draft(frozenset(gone), staged)
    if base is None:
        made = (step.volume for step in done.steps if isinstance(step, Commit))
        volume = current or next(made)
        draft.group(RemoveT2(sp, volume.id, volume.version) for sp in sorted(staged))
    else:
        seen = [step.volume for step in done.steps if isinstance(step, Commit)]
        seen += [base] if current is None else [base, current]
        target = _back(draft, base, seen, new, peers)
        left = sorted(staged - set(base.serving))
        draft.group(RemoveT2(sp, base.id, target.version) for sp in left)
    epoch = own_epoch(volume.epoch) if base is None else target.epoch
    draft.group(DeleteT1(home, t1, epoch) for t1, home in sorted(new.items()))
    if base is None:
        draft.add(Forget(volume.id))
    draft.no_return = 0
    return draft.plan(done.base)


def _back(
    draft: _Draft, base: Volume, seen: Sequence[Volume], new: Mapping[T1Id, SpId], peers: Peers
) -> Volume:
    """Brings a tree (back) under a version and epoch above all that were used; the last one `seen`
    is the store's."""
    target = with_fields(
        base,
        version=max(volume.version for volume in seen) + 1,
        epoch=next_epoch(max(volume.epoch for volume in seen)),
    )
    order = _owner_first(target)
    _stage(draft, target, order, peers)
    # What was created too: a tree of it may be in use still, and must not read there.
    away = lost(target.root)
    fenced = {**{t1.id: t1.home for t1 in target.t1s if t1.id not in away}, **new}
    known = seen[-1].epoch
    draft.group(FenceT1(home, t1, target.epoch, known) for t1, home in fenced.items())
    # Whoever of them came last: it may have been owner when it was lost.
    _outlast(draft, base.id, {volume.owner for volume in seen})
    draft.add(Commit(target))
    _activate(draft, target, order)
    return target


class _Draft:
    """Steps being gathered, with the groups that may run at once; none for SPs that are gone.
    Trees of theirs may refer to objects that go: those stay until the reconciler has seen to the
    trees."""

    def __init__(self, gone: frozenset[SpId], serving: Iterable[SpId]) -> None:
        self.gone = gone
        self._leaves = not gone.isdisjoint(serving)
        self.steps: list[Step] = []
        self.groups: list[tuple[int, int]] = []
        self.no_return: int | None = None

    def add(self, step: Step) -> None:
        self.group((step,))

    def group(self, steps: Iterable[Step]) -> None:
        """Steps that may run at the same time, after all that came before."""
        start = len(self.steps)
        for step in steps:
            sp = place(step)
            if sp in self.gone and isinstance(step, PutT1 | AdoptT1 | Copy | AwaitSync):
                # Without it what follows would be wrong.
                raise VsError(
                    "VS3010", Kind.PRECONDITION, f"SP {sp} is needed for this; bring it back first"
                )
            kept = isinstance(step, DeleteT1) and self._leaves
            if not kept and sp not in self.gone:
                self.steps.append(step)
        if len(self.steps) > start:
            self.groups.append((start, len(self.steps)))

    def pass_no_return(self) -> None:
        """From the next step on there is no way back."""
        if self.no_return is None:
            self.no_return = len(self.steps)

    def plan(self, base: Volume | None) -> Plan:
        no_return = len(self.steps) if self.no_return is None else self.no_return
        return Plan(base, tuple(self.steps), no_return, tuple(self.groups))


def _become(
    draft: _Draft, old: Volume | None, new: Volume, affected: tuple[Affected, ...], peers: Peers
) -> None:
    """One transition, by the MVSM's answer."""
    t1_added = _objects(affected, ObjectKind.T1, Change.ADDED)
    t1_changed = _objects(affected, ObjectKind.T1, Change.CHANGED)
    t1_removed = _objects(affected, ObjectKind.T1, Change.REMOVED)
    t2_removed = _objects(affected, ObjectKind.T2, Change.REMOVED)
    t2_staged = {sp for sp, _ in _objects(affected, ObjectKind.T2, Change.ADDED)}
    t2_staged |= {sp for sp, _ in _objects(affected, ObjectKind.T2, Change.CHANGED)}
    known = _ids(old) if old else frozenset()
    moved = {t1: sp for sp, t1 in t1_added if t1 in known}
    order = [sp for sp in _owner_first(new) if sp in t2_staged]

    if old is not None and moved:
        order = _new_homes_first(order, moved)
        _adopt(draft, old, new, moved)
    draft.group(PutT1(new.t1(t1), new.epoch) for _, t1 in t1_added if t1 not in moved)
    # An extension must not raise the epoch: the old tree is still in use.
    draft.group(PutT1(new.t1(t1), old.epoch if old else new.epoch) for _, t1 in t1_changed)
    _stage(draft, new, order, peers)
    if old is not None:
        # What is away by the new tree is neither read nor written, and may be past fencing.
        spared = {*moved, *lost(new.root)}
        fences = [
            FenceT1(t1.home, t1.id, new.epoch, old.epoch) for t1 in old.t1s if t1.id not in spared
        ]
        # What has been away first: no host waits for it yet, should its device not answer.
        returning = lost(old.root)
        draft.group(fence for fence in fences if fence.t1 in returning)
        draft.group(fence for fence in fences if fence.t1 not in returning)
        _outlast(draft, old.id, {old.owner})
        leaves = any(t1 not in moved for _, t1 in t1_removed)
        # What is acknowledged from then on the legs that were left behind do not have.
        behind = bool(lost(new.root) - lost(old.root))
        if leaves or behind or new.size > old.size:
            draft.pass_no_return()
    draft.add(Commit(new))
    _activate(draft, new, order)
    draft.group(RemoveT2(sp, new.id, new.version) for sp, _ in t2_removed)
    draft.group(DeleteT1(sp, t1, new.epoch) for sp, t1 in t1_removed)


def _outlast(draft: _Draft, volume: VolumeId, owners: Collection[SpId]) -> None:
    """An owner that can't be reached was not fenced where it is home: it must have stopped to
    read before another may write."""
    draft.group(AwaitLease(sp, volume) for sp in sorted(set(owners) & draft.gone))


def _adopt(draft: _Draft, old: Volume, new: Volume, moved: Mapping[T1Id, SpId]) -> None:
    """Claims 15 and 16: references dropped, new homes first; fenced at the old; adopted."""
    for t1, home in sorted(moved.items()):
        others = [sp for sp in old.serving if sp not in (old.t1(t1).home, home)]
        if home in old.serving:
            draft.add(DropReference(home, old.id, t1))
        draft.group(DropReference(sp, old.id, t1) for sp in others)
    draft.group(FenceT1(old.t1(t1).home, t1, new.epoch, old.epoch) for t1 in sorted(moved))
    draft.pass_no_return()
    draft.group(AdoptT1(new.t1(t1), new.epoch) for t1 in sorted(moved))


def _delete(draft: _Draft, volume: Volume) -> None:
    """Claim 11: all T2 objects first, then the T1 objects, then the record."""
    draft.pass_no_return()
    draft.group(RemoveT2(sp, volume.id, volume.version) for sp in volume.serving)
    # Its owner may have fenced them by itself, and have come no further.
    draft.group(DeleteT1(t1.home, t1.id, own_epoch(volume.epoch)) for t1 in volume.t1s)
    draft.add(Forget(volume.id))


def _stage(draft: _Draft, volume: Volume, order: Sequence[SpId], peers: Peers) -> None:
    addresses = dict(peers)
    try:
        t2s = [project(volume, sp, addresses) for sp in order]
    except KeyError as missing:
        raise VsError(
            "VS3010",
            Kind.PRECONDITION,
            f"SP {missing.args[0]} is not known to be up; start it, then try again",
        ) from None
    draft.group(StageT2(t2) for t2 in t2s)


def _activate(draft: _Draft, volume: Volume, order: Sequence[SpId]) -> None:
    """The first alone: the owner, or the new home of a T1 object that moved."""
    steps = [ActivateT2(sp, volume.id, volume.version) for sp in order if sp not in draft.gone]
    draft.group(steps[:1])
    draft.group(steps[1:])


def _owner_first(volume: Volume) -> list[SpId]:
    return sorted(volume.serving, key=lambda sp: (sp != volume.owner, sp))


def _new_homes_first(order: list[SpId], moved: Mapping[T1Id, SpId]) -> list[SpId]:
    homes = set(moved.values())
    return sorted(order, key=lambda sp: sp not in homes)


def _objects(
    affected: tuple[Affected, ...], kind: ObjectKind, change: Change
) -> list[tuple[SpId, T1Id]]:
    return sorted(
        (a.sp, T1Id(a.object_id)) for a in affected if a.kind is kind and a.change is change
    )


def _ids(volume: Volume) -> frozenset[T1Id]:
    return frozenset(t1.id for t1 in volume.t1s)


def _drops_legs(old: Volume, new: Volume) -> bool:
    """A mirror's legs leave, or their owner does."""
    mirrored = any(isinstance(node, Mirror) for _, node in walk(old.root))
    return mirrored and (new.owner != old.owner or bool(_ids(old) - _ids(new)))


def _needs_sync(base: Volume, stages: Sequence[Stage]) -> bool:
    """Copying from legs, dropping some, or another owner: a resync must have ended."""
    if not any(isinstance(node, Mirror) for _, node in walk(base.root)):
        return False
    for stage in stages:
        match stage:
            case CopyOnto():
                return True
            case Become(Volume() as target):
                if target.owner != base.owner or _ids(base) - _ids(target):
                    return True
                if any(isinstance(node, Hole) for _, node in walk(target.root)):
                    return True
            case Become(None):
                return False
    return False
