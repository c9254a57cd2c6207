"""What a plan will do, before it is done: what it takes, how safe the data is meanwhile, how long
hosts wait, and what takes it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vswitchd.model.objects import (
    DeviceId,
    Extent,
    LegState,
    Mirror,
    Node,
    SpId,
    Volume,
    children,
)
from vswitchd.restructure.steps import ActivateT2, Commit, Forget, Plan, PutT1, RemoveT2


@dataclass(frozen=True, slots=True)
class StepPreview:
    """`redundancy`: in how many places each byte of the volume is in sync while the step runs, 0
    where there is no volume. `pause`: whether hosts' I/O waits until this step is done."""

    redundancy: int
    pause: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """A plan's preview; `steps` has one for each of its steps, `reserved` is in bytes for each
    (SP, device), `target` the volume in the end, None if it is gone."""

    steps: tuple[StepPreview, ...]
    reserved: dict[tuple[SpId, DeviceId], int]
    target: Volume | None
    undone_by: str


def preview(plan: Plan) -> Preview:
    """Of a plan that goes forward; an undo's has the same shape."""
    current, waiting = plan.base, False
    steps: list[StepPreview] = []
    for index, step in enumerate(plan.steps):
        first = not any(
            isinstance(before, ActivateT2) for before in _of_group(plan, index)
        ) and isinstance(step, ActivateT2)
        if isinstance(step, Commit):
            current, waiting = step.volume, current is not None
        steps.append(
            StepPreview(0 if current is None else redundancy(current.root), first and waiting)
        )
        if isinstance(step, ActivateT2):
            waiting = False
        if isinstance(step, RemoveT2) and any(isinstance(one, Forget) for one in plan.steps):
            current = None
    return Preview(tuple(steps), _reserved(plan), current, _undone_by(plan, current))


def redundancy(node: Node) -> int:
    """In how many places each byte under the node is in sync, at least."""
    match node:
        case Mirror(legs):
            return sum(redundancy(leg.node) for leg in legs if leg.state is LegState.IN_SYNC)
        case _:
            return min(map(redundancy, children(node)), default=1)


def taken(plan: Plan) -> list[tuple[SpId, Extent]]:
    """The extents that a plan takes and that its base does not have, and where."""
    held = {t1.id: t1.extents for t1 in plan.base.t1s} if plan.base else {}
    return [
        (step.t1.home, extent)
        for step in plan.steps
        if isinstance(step, PutT1)
        for extent in step.t1.extents[len(held.get(step.t1.id, ())) :]
    ]


def _of_group(plan: Plan, index: int) -> Sequence[object]:
    start = next(start for start, end in plan.groups if start <= index < end)
    return plan.steps[start:index]


def _reserved(plan: Plan) -> dict[tuple[SpId, DeviceId], int]:
    found: dict[tuple[SpId, DeviceId], int] = {}
    for sp, extent in taken(plan):
        found[sp, extent.device] = found.get((sp, extent.device), 0) + extent.length
    return found


def _undone_by(plan: Plan, target: Volume | None) -> str:
    if not plan.steps:
        return "nothing needs to be: there is nothing to do"
    if target is not None and target is plan.base:
        return "nothing needs to be: the volume stays as it is"
    if target is None:
        return "nothing: the data is gone with it"
    if plan.base is None:
        return f"volume delete {target.name}"
    if target.size != plan.base.size:
        return "nothing: hosts may use what was added, and a volume that is in use can't shrink"
    return f"volume restore {target.name} --version {plan.base.version}"
