"""What a plan is made of: values that the controller's executor carries out in order.

Every step is idempotent: carried out again after a crash it finds its work done.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from vswitchd.model.objects import T1, T2, Hole, Path, SpId, T1Id, Volume, VolumeId, walk
from vswitchd.model.view import CopyMode


@dataclass(frozen=True, slots=True)
class PutT1:
    """Create or extend a T1 object at its home; new bytes read as zeroes."""

    t1: T1
    epoch: int


@dataclass(frozen=True, slots=True)
class FenceT1:
    """Raise the epoch that a T1 object serves, then wait for lower epochs' I/O to end. Refused
    at an SP that has recorded a tree of a higher epoch than `known`, that of the latest tree that
    the plan was made from: the volume's owner has left legs behind by itself since."""

    sp: SpId
    t1: T1Id
    epoch: int
    known: int


@dataclass(frozen=True, slots=True)
class AdoptT1:
    """Make `t1.home` the home of a T1 object whose devices it reaches."""

    t1: T1
    epoch: int


@dataclass(frozen=True, slots=True)
class DeleteT1:
    """Forget a T1 object at an SP; if that is its home, free its extents. It is refused for an
    object at a higher epoch: a request that comes late must not hit what is in use anew."""

    sp: SpId
    t1: T1Id
    epoch: int


@dataclass(frozen=True, slots=True)
class StageT2:
    """Keep a T2 object durably at its SP, inactive."""

    t2: T2


@dataclass(frozen=True, slots=True)
class Commit:
    """The commit record: the store's volume becomes this one."""

    volume: Volume


@dataclass(frozen=True, slots=True)
class ActivateT2:
    """Swap an SP to its staged T2 object of that version."""

    sp: SpId
    volume: VolumeId
    version: int


@dataclass(frozen=True, slots=True)
class RemoveT2:
    """Take the volume out of service at an SP: drain, flush, forget. Trees up to that version
    are refused there from then on."""

    sp: SpId
    volume: VolumeId
    version: int


@dataclass(frozen=True, slots=True)
class DropReference:
    """Tell an SP to close its remote reference to a T1 object."""

    sp: SpId
    volume: VolumeId
    t1: T1Id


@dataclass(frozen=True, slots=True)
class AwaitSync:
    """Wait until no resync of the volume runs at its owner."""

    sp: SpId
    volume: VolumeId


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy onto the write-only leg at `path`, run by the owner; ends flushed. Or hold the legs
    against each other, with an empty path."""

    sp: SpId
    volume: VolumeId
    version: int
    path: Path
    bytes: int
    mode: CopyMode = CopyMode.FULL


@dataclass(frozen=True, slots=True)
class AwaitLease:
    """Wait until the lease of an owner that can't be reached is over: it reads nothing then."""

    sp: SpId
    volume: VolumeId


@dataclass(frozen=True, slots=True)
class Forget:
    """The deleted volume leaves the store."""

    volume: VolumeId


Step: TypeAlias = (
    PutT1
    | FenceT1
    | AdoptT1
    | DeleteT1
    | StageT2
    | Commit
    | ActivateT2
    | RemoveT2
    | DropReference
    | AwaitSync
    | AwaitLease
    | Copy
    | Forget
)


def place(step: Step) -> SpId | None:
    """The SP that a step is carried out at; None for the store, and for what only waits."""
    match step:
        case PutT1(t1) | AdoptT1(t1):
            return t1.home
        case StageT2(t2):
            return t2.sp
        case Commit() | Forget() | AwaitLease():
            return None
        case _:
            return step.sp


@dataclass(frozen=True, slots=True)
class Plan:
    """A request's whole work, in order.

    `base` is the volume as it was when planned (None: it did not exist); applying is
    refused when its version has moved. Steps from index `no_return` on can only be
    carried on; before it the plan can be undone. Steps of one `groups` entry (start,
    end) may run at the same time.
    """

    base: Volume | None
    steps: tuple[Step, ...]
    no_return: int
    groups: tuple[tuple[int, int], ...] = ()


def journal_points(plan: Plan) -> frozenset[int]:
    """Ends of groups after which it is journalled how far a plan has come. Not between the
    fences, the commit record and the activations: hosts wait there, and steps carried out once
    more find their work done."""
    points = {end for _, end in plan.groups}
    for (before_at, _), (after_at, _) in pairwise(plan.groups):
        before, after = plan.steps[before_at], plan.steps[after_at]
        if isinstance(before, FenceT1 | Commit | ActivateT2) and (
            isinstance(after, Commit | ActivateT2)
        ):
            points.discard(after_at)
    return frozenset(points)


def begun(plan: Plan, cursor: int, stored: Volume | None) -> int:
    """The end of the last group that may have begun, by the journal's cursor and the volume that
    the store holds."""
    journalled, last = journal_points(plan), cursor
    for start, end in plan.groups:
        if start < cursor:
            continue
        step = plan.steps[start]
        if isinstance(step, Commit) and (stored is None or stored.version < step.volume.version):
            break
        last = end
        if end in journalled:
            break
    return last


def pause_points(plan: Plan) -> frozenset[int]:
    """Indices before which a plan may rest for as long as it likes: no host's I/O waits there,
    neither for trees that are being swapped nor for a range that is out."""
    points: set[int] = set()
    swapping = out = False
    for start, end in plan.groups:
        steps = plan.steps[start:end]
        activating = any(isinstance(step, ActivateT2) for step in steps)
        if not (swapping or out or activating):
            points.add(start)
        for step in steps:
            if isinstance(step, Commit):
                out = any(isinstance(node, Hole) for _, node in walk(step.volume.root))
        swapping = not activating and (
            swapping or any(isinstance(step, FenceT1 | Commit) for step in steps)
        )
    return frozenset(points)
