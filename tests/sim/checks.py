"""What must hold after every event, and in the end. A breach is a sentence in `World.breaches`."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tests.sim.tree import behind, in_sync, locate
from vswitchd.model.objects import BLOCK, T1, T2, SpId, T1Id, Volume, VolumeId, project
from vswitchd.restructure.alone import is_own, stays
from vswitchd.restructure.away import away, lost

if TYPE_CHECKING:
    from tests.sim.world import World


#: Seconds within which a plan that was made without a lost SP is carried out.
LATELY = 60.0


class Checks:
    """Called by engines at everything that changes what SPs hold."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: The highest term that each SP is known to have seen.
        self._terms: dict[SpId, int] = {}
        #: The highest version that was active at an SP, and with which the volume was removed.
        self._seen: dict[tuple[SpId, VolumeId], int] = {}
        self._removed: dict[tuple[SpId, VolumeId], int] = {}
        #: Trees of SPs that were lost with them: nobody waits for those. They are fenced off where
        #: it matters, and go when their SP is back.
        self._left: set[tuple[SpId, VolumeId, int]] = set()
        #: What owners have made of volumes, by themselves, by epoch.
        self._own: dict[tuple[VolumeId, int], T2] = {}
        #: When SPs were last known to be lost.
        self._lost: dict[SpId, float] = {}

    def __call__(self, event: str, sp: SpId, what: object) -> None:
        controller = self._world.controller
        if controller is not None and controller.registry.lost:
            lost = controller.registry.lost
            found = ((sp, t2) for sp, t2 in self._trees() if sp in lost)
            self._left |= {(sp, t2.volume, t2.version) for sp, t2 in found}
            self._lost |= dict.fromkeys(lost, self._world.loop.time())
        match event:
            case "io":
                assert isinstance(what, tuple)
                self._one_tree_at_a_time(sp, what[0], what[1])
                if what[1] < what[2]:
                    self._breach(f"{what[0]}, fenced at {what[2]}, works for epoch {what[1]}")
                return
            case "adopt_t1":
                assert isinstance(what, T1)
                self._may_adopt(sp, what)
            case "delete_t1":
                assert isinstance(what, T1)
                self._may_delete(sp, what)
            case "activate_t2":
                assert isinstance(what, T2)
                self._is_committed(sp, what)
                self._one_owner(what.volume)
                self._older_trees_are_fenced(what)
            case "remove_t2":
                key = sp, VolumeId(str(what))
                self._removed[key] = self._seen.get(key, 0)
        self._no_dangling_reference(event)
        self.one_master()

    def _breach(self, text: str) -> None:
        self._world.breach(text)

    def _trees(self, volume: VolumeId | None = None) -> list[tuple[SpId, T2]]:
        return [
            (sp.name, active.t2)
            for sp in self._world.sps.values()
            if sp.process is not None and sp.process.alive and sp.engine is not None
            for id_, active in sp.engine.volumes.items()
            if volume in (None, id_) and (sp.name, id_, active.t2.version) not in self._left
        ]

    def _no_dangling_reference(self, event: str) -> None:
        """Claim 1: no active T2 object refers to a T1 object that its home does not hold."""
        for sp, t2 in self._trees():
            for t1, home in t2.homes.items():
                found = self._world.sps[home].disks.find(t1)
                if found is None or found[0].home != home:
                    self._breach(
                        f"after {event}: the tree of {t2.name} v{t2.version} at {sp} refers to "
                        f"{t1} at {home}, which does not hold it (claim 1)"
                    )

    def _one_owner(self, volume: VolumeId) -> None:
        """One owner and one tree in an epoch."""
        seen: dict[int, T2] = {}
        for sp, t2 in self._trees(volume):
            other = seen.setdefault(t2.epoch, t2)
            if (other.owner, other.version, other.root) != (t2.owner, t2.version, t2.root):
                self._breach(
                    f"epoch {t2.epoch} of {t2.name} has two trees or owners, at {other.sp} "
                    f"(v{other.version}, {other.owner}) and {sp} (v{t2.version}, {t2.owner})"
                )

    def _is_committed(self, sp: SpId, t2: T2) -> None:
        """Activated only after the commit record, or when all that stays has recorded what
        the owner has made of it."""
        stored = self._world.store.stored(t2.volume)
        known = self._world.store.epochs(t2.volume)
        if is_own(t2.epoch) and t2.epoch not in known:
            self._is_recorded(sp, t2, 0 if stored is None else stored.epoch)
        elif stored is None or stored.version < t2.version:
            self._breach(f"v{t2.version} of {t2.name} active at {sp} before its commit record")
        if t2.version <= self._removed.get((sp, t2.volume), 0):
            self._breach(f"v{t2.version} of {t2.name} is back at {sp}, where it was removed")
        seen = self._seen.get((sp, t2.volume), 0)
        self._seen[sp, t2.volume] = max(seen, t2.version)

    def _is_recorded(self, sp: SpId, t2: T2, stored: int) -> None:
        key = t2.volume, t2.epoch
        if key not in self._own:
            self._own[key] = t2
            self._world.counts["left behind by an owner"] += 1
            if self._world.controller is not None and self._world.controller.process.alive:
                self._world.counts["left behind by an owner beside a controller"] += 1
        if stored > t2.epoch:
            self._breach(f"v{t2.version} of {t2.name} at {sp}: the store has gone another way")
        for home in {*stays(t2).values(), t2.owner}:
            state = self._world.sps[home].state
            found = None if state is None else state.ejections.get(t2.volume)
            if found is None or found.t2.epoch < t2.epoch:
                self._breach(f"v{t2.version} of {t2.name} active at {sp}, not recorded at {home}")

    def committed(self, volume: Volume) -> None:
        """A commit record follows all that owners have made of the volume: one side goes on."""
        known = self._world.store.epochs(volume.id)
        if is_own(volume.epoch):
            self._world.counts["learnt by the controller"] += 1
        for id_, epoch in self._own:
            if id_ == volume.id and epoch < volume.epoch and epoch not in known:
                self._breach(
                    f"v{volume.version} of {volume.name} is committed at epoch {volume.epoch}, but "
                    f"its owner has gone on at epoch {epoch}"
                )

    def _older_trees_are_fenced(self, t2: T2) -> None:
        """Before a tree is active anywhere, no other tree's epoch is served any more, and nothing
        of it is on its way: no range is served under two unlike trees. Legs that are away by it
        are not served at all, and whoever still does must not answer (`SimEngine._vouched_for`).
        A home that was lost lately may not have been fenced: what is mirrored has fenced legs
        beside it, and what is not is the same by both trees."""
        now = self._world.loop.time()
        gone = lost(t2.root)
        for sp, other in self._trees(t2.volume):
            if other.epoch >= t2.epoch:
                continue
            for t1, home in other.homes.items():
                found = self._world.sps[home].disks.find(t1)
                # Of legs that are behind and then leave nothing is ever read.
                if t1 in gone or (t1 not in t2.homes and t1 in behind(other.root)):
                    continue
                if now - self._lost.get(home, -LATELY) < LATELY:
                    continue
                if found is not None and found[0].home == home and found[1] <= other.epoch:
                    self._breach(
                        f"v{t2.version} of {t2.name} is active while {t1} still serves epoch "
                        f"{other.epoch} of v{other.version} at {sp}"
                    )
        for node in self._world.sps.values():
            if node.process is None or not node.process.alive or node.engine is None:
                continue
            for (t1, epoch), count in node.engine.running.items():
                held = node.disks.find(t1)
                if t1 in gone or now - self._lost.get(node.name, -LATELY) < LATELY:
                    continue
                if count and epoch < t2.epoch and held is not None and held[0].volume == t2.volume:
                    self._breach(
                        f"v{t2.version} of {t2.name} is active while {t1} at {node.name} still "
                        f"works for epoch {epoch}"
                    )

    def _one_tree_at_a_time(self, sp: SpId, t1: T1Id, epoch: int) -> None:
        """No range is served under two unlike trees: a T1 object works for one epoch at a time. One
        that is not mirrored is the same by all trees: its home may have been lost, and not fenced,
        while what is mirrored beside it went on."""
        if self._world.loop.time() - self._lost.get(sp, -LATELY) < LATELY:
            trees = [t2 for _, t2 in self._trees() if t1 in t2.homes]
            if all(t1 not in in_sync(t2.root) for t2 in trees):
                return
        for other in self._world.sps.values():
            if other.process is None or not other.process.alive or other.engine is None:
                continue
            for (id_, at), count in other.engine.running.items():
                if count and id_ == t1 and at != epoch:
                    self._breach(
                        f"{t1} works for epoch {epoch} at {sp} and for {at} at {other.name}"
                    )

    def _may_adopt(self, sp: SpId, t1: T1) -> None:
        """Claims 14 to 16: no tree refers to it, no reference is open, its old home fenced it."""
        for at, t2 in self._trees(t1.volume):
            if t1.id in t2.homes:
                self._breach(f"{t1.id} adopted by {sp} while the tree at {at} has it (claim 14)")
        for other in self._world.sps.values():
            if other.process is None or not other.process.alive or other.engine is None:
                continue
            if t1.id in other.engine.references.get(t1.volume, set()):
                self._breach(f"{t1.id} adopted while {other.name} has a reference (claim 15)")
            if any(n and id_ == t1.id for (id_, _), n in other.engine.running.items()):
                self._breach(f"{t1.id} adopted while {other.name} works on it (claim 16)")

    def _may_delete(self, sp: SpId, t1: T1) -> None:
        """Claims 11 to 13: references first."""
        for at, t2 in self._trees(t1.volume):
            if t2.homes.get(t1.id) == sp:
                self._breach(
                    f"{t1.id} deleted at {sp} while v{t2.version} at {at} refers to it (claim 13)"
                )

    def one_master(self) -> None:
        """One active MVSM in a term; no SP's term goes down."""
        masters: dict[int, SpId] = {}
        for sp in self._world.sps.values():
            if not sp.up or sp.vsm is None:
                continue
            term = sp.vsm.mvsm_term
            if term is not None and masters.setdefault(term, sp.name) != sp.name:
                self._breach(f"{sp.name} and {masters[term]} are both master in term {term}")
            seen = sp.vsm.term
            if seen < self._terms.get(sp.name, 0):
                self._breach(f"{sp.name} forgot term {self._terms[sp.name]}, has {seen}")
            self._terms[sp.name] = seen


def settled(world: World) -> list[str]:
    """What SPs hold beside what the store says, once all has healed, a sentence each."""
    found: list[str] = []
    volumes = {volume.id: volume for volume in world.store.now()}
    peers = {sp: str(sp) for sp in world.sps}
    for sp in world.sps.values():
        assert sp.engine is not None and sp.vsm is not None
        homed = {t1.id: t1.home for volume in volumes.values() for t1 in volume.t1s}
        here = {t1 for t1, home in homed.items() if home == sp.name}
        if set(sp.engine.held()) != here:
            found.append(
                f"{sp.name} homes {sorted(sp.engine.held())}, the store says {sorted(here)}"
            )
        served = {v.id: v for v in volumes.values() if sp.name in v.serving}
        if set(sp.engine.volumes) != set(served):
            found.append(f"{sp.name} serves {set(sp.engine.volumes)}, the store says {set(served)}")
        for volume_id, active in sp.engine.volumes.items():
            if volume_id in served and active.t2 != project(served[volume_id], sp.name, peers):
                found.append(
                    f"{sp.name} has v{active.t2.version} of {active.t2.name}, the store "
                    f"v{served[volume_id].version}"
                )
    found += [f"operation {record.id} is open" for record in world.store.open()]
    for volume in volumes.values():
        found += [f"leg {path} of {volume.name} is away" for path, _ in away(volume.root)]
    return found + _overlaps(world)


def legs_differ(world: World) -> list[str]:
    """Blocks whose legs are unlike though nothing is on its way, a sentence each."""
    found = []
    for volume in world.store.now():
        for block in range(volume.size // BLOCK):
            values = set()
            for piece in locate(volume.root, block):
                t1 = volume.t1(piece.t1)
                values.add(world.sps[t1.home].disks.get(t1, piece.index))
            if len(values) != 1:
                found.append(f"block {block} of {volume.name} has unlike legs: {values}")
    return found


def _overlaps(world: World) -> list[str]:
    taken: dict[tuple[str, int], set[T1Id]] = defaultdict(set)
    for disk in world.disks.values():
        for t1, _ in disk.t1s.values():
            for extent in t1.extents:
                for block in range(
                    extent.offset // BLOCK, (extent.offset + extent.length) // BLOCK
                ):
                    taken[extent.device, block].add(t1.id)
    return [f"{where} belongs to {sorted(ids)}" for where, ids in taken.items() if len(ids) > 1]
