"""The MVSM's decision: which objects on which SPs an updated tree affects. It runs in the MVSP."""

from __future__ import annotations

from vswitchd.model.objects import Volume
from vswitchd.model.view import Affected, Change, ObjectKind


def determine(current: Volume | None, target: Volume | None) -> tuple[Affected, ...]:
    """Every T1 and T2 object that differs between two volumes, in a fixed order.

    `current` is None for a volume that is being created, `target` for one being deleted.
    A T1 object that gets another home is removed at the old and added at the new one.
    """
    found: set[Affected] = set()
    before = {t1.id: t1 for t1 in current.t1s} if current else {}
    after = {t1.id: t1 for t1 in target.t1s} if target else {}
    for old in before.values():
        new = after.get(old.id)
        if new is None or new.home != old.home:
            found.add(Affected(old.home, ObjectKind.T1, old.id, Change.REMOVED))
        elif new != old:
            found.add(Affected(old.home, ObjectKind.T1, old.id, Change.CHANGED))
    for new in after.values():
        if new.id not in before or before[new.id].home != new.home:
            found.add(Affected(new.home, ObjectKind.T1, new.id, Change.ADDED))

    served = set(current.serving) if current else set()
    to_serve = set(target.serving) if target else set()
    volume = target or current
    if volume is not None:
        for sp in served | to_serve:
            if sp not in served:
                found.add(Affected(sp, ObjectKind.T2, volume.id, Change.ADDED))
            elif sp not in to_serve:
                found.add(Affected(sp, ObjectKind.T2, volume.id, Change.REMOVED))
            elif current != target:
                found.add(Affected(sp, ObjectKind.T2, volume.id, Change.CHANGED))
    return tuple(sorted(found))
