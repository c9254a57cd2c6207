"""A small model of a cluster that plans are run on, step by step and byte by byte (a block
stands for its first byte). It refuses what coherency.md forbids, at every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vswitchd.model.invariants import cluster_problems
from vswitchd.model.objects import (
    BLOCK,
    T1,
    T2,
    Concat,
    DeviceId,
    Extent,
    Hole,
    Leaf,
    LegState,
    Mirror,
    Node,
    SpId,
    Stripe,
    T1Id,
    Volume,
    VolumeId,
    at,
    leaves,
    node_size,
)
from vswitchd.model.view import DeviceView, LabelView, T1View, T2View, View
from vswitchd.restructure.steps import (
    ActivateT2,
    AdoptT1,
    AwaitSync,
    Commit,
    Copy,
    DeleteT1,
    DropReference,
    FenceT1,
    Forget,
    PutT1,
    RemoveT2,
    StageT2,
    Step,
)


class ParkedError(Exception):
    """The request waits: a hole, or an epoch that is over."""


@dataclass
class Sp:
    """One SP's objects. `references`: remote ones, open until it is told to close them."""

    name: SpId
    devices: dict[DeviceId, int]
    t1s: dict[T1Id, tuple[T1, int]] = field(default_factory=dict)
    staged: dict[VolumeId, T2] = field(default_factory=dict)
    active: dict[VolumeId, T2] = field(default_factory=dict)
    references: set[T1Id] = field(default_factory=set)


@dataclass
class Cluster:
    """SPs, the store, what is on the devices, and what hosts must read."""

    sps: dict[SpId, Sp]
    store: dict[VolumeId, Volume] = field(default_factory=dict)
    content: dict[T1Id, list[int]] = field(default_factory=dict)
    expected: dict[VolumeId, list[int]] = field(default_factory=dict)
    writes: int = 0
    #: Whose each T1 object is by the labels.
    homes: dict[T1Id, SpId] = field(default_factory=dict)

    @classmethod
    def of(cls, devices: Mapping[str, Mapping[str, int]]) -> Cluster:
        """A cluster from SP -> device -> blocks."""
        return cls(
            {
                SpId(sp): Sp(SpId(sp), {DeviceId(d): n * BLOCK for d, n in has.items()})
                for sp, has in devices.items()
            }
        )

    @property
    def peers(self) -> dict[SpId, str]:
        return {sp: f"{sp}:9460" for sp in self.sps}

    def views(self) -> tuple[View, ...]:
        return tuple(self._view(sp) for sp in self.sps.values())

    def _view(self, sp: Sp) -> View:
        t2s = [T2View(t2, True) for t2 in sp.active.values()]
        t2s += [T2View(t2, False) for t2 in sp.staged.values()]
        return View(
            sp=sp.name,
            incarnation="1",
            term=1,
            mvsm_active=False,
            devices=tuple(
                DeviceView(d, f"file:/{d}", size, BLOCK, True, self._free(d, size))
                for d, size in sp.devices.items()
            ),
            t1s=tuple(T1View(t1, epoch) for t1, epoch in sp.t1s.values()),
            t2s=tuple(t2s),
        )

    def _free(self, device: DeviceId, size: int) -> tuple[Extent, ...]:
        held = {t1.id: t1 for sp in self.sps.values() for t1, _ in sp.t1s.values()}
        runs: list[Extent] = []
        last = 0
        used = [e for t1 in held.values() for e in t1.extents if e.device == device]
        for extent in sorted(used, key=lambda e: e.offset):
            assert extent.offset >= last, "extents overlap"
            if extent.offset > last:
                runs.append(Extent(device, last, extent.offset - last))
            last = extent.offset + extent.length
        if last < size:
            runs.append(Extent(device, last, size - last))
        assert last <= size, "an extent beyond the device"
        return tuple(runs)

    def labels(self, sp: SpId) -> tuple[LabelView, ...]:
        """What the labels of an SP's devices say."""
        # An old home that has not been told to forget still shows the object; its label does not.
        held = [
            one
            for each in self.sps.values()
            for one in each.t1s.values()
            if self.homes[one[0].id] == each.name
        ]
        return tuple(
            LabelView(
                device,
                f"file:/{device}",
                copies=2,
                t1s=tuple(
                    T1View(t1, epoch)
                    for t1, epoch in held
                    if any(extent.device == device for extent in t1.extents)
                ),
            )
            for device in self.sps[sp].devices
        )

    def apply(self, step: Step) -> None:
        """Carries out a step; AssertionError if an order is broken."""
        match step:
            case PutT1(t1, epoch):
                self._put(t1, epoch)
            case FenceT1(sp, t1_id, epoch, _):
                if t1_id in self.sps[sp].t1s:
                    t1, old = self.sps[sp].t1s[t1_id]
                    self.sps[sp].t1s[t1_id] = t1, max(old, epoch)
            case AdoptT1(t1, epoch):
                self._adopt(t1, epoch)
            case DeleteT1(sp, t1_id, upto):
                assert self.sps[sp].t1s.get(t1_id, (None, 0))[1] <= upto, "in use anew"
                assert not self._referred(t1_id, home=sp), f"{t1_id} is still referred to"
                self.sps[sp].t1s.pop(t1_id, None)
            case StageT2(t2):
                self._stage(t2)
            case Commit(volume):
                stored = self.store.get(volume.id)
                if stored is None or stored.version < volume.version:
                    self.store[volume.id] = volume
                have = self.expected.setdefault(volume.id, [])
                have += [0] * (volume.size // BLOCK - len(have))
            case ActivateT2(sp, volume_id, version):
                self._activate(self.sps[sp], volume_id, version)
            case RemoveT2(sp, volume_id, version):
                held = self.sps[sp].active.get(volume_id)
                assert held is None or held.version <= version, "a later tree is there"
                gone = self.sps[sp].active.pop(volume_id, None)
                self.sps[sp].staged.pop(volume_id, None)
                if gone:
                    self.sps[sp].references -= set(gone.homes)
            case DropReference(sp, volume_id, t1_id):
                assert t1_id not in self.sps[sp].active[volume_id].homes, "still in use"
                self.sps[sp].references.discard(t1_id)
            case AwaitSync():
                pass
            case Copy():
                self._copy(step)
            case Forget(volume_id):
                assert not any(volume_id in sp.active for sp in self.sps.values())
                self.store.pop(volume_id, None)
                self.expected.pop(volume_id, None)
        found = list(cluster_problems(self.views()))
        assert not found, found

    def _put(self, t1: T1, epoch: int) -> None:
        sp = self.sps[t1.home]
        assert all(extent.device in sp.devices for extent in t1.extents)
        old = sp.t1s.get(t1.id)
        if old:
            assert t1.extents[: len(old[0].extents)] == old[0].extents, "not an extension"
            assert t1.size >= old[0].size
        sp.t1s[t1.id] = t1, max(epoch, old[1] if old else 0)
        self.homes[t1.id] = t1.home
        have = self.content.setdefault(t1.id, [])
        have += [0] * (t1.size // BLOCK - len(have))
        for extent in t1.extents:
            self._free(extent.device, sp.devices[extent.device])

    def _adopt(self, t1: T1, epoch: int) -> None:
        sp = self.sps[t1.home]
        assert all(extent.device in sp.devices for extent in t1.extents)
        assert not self._referred(t1.id), "adopted while a tree refers to it (claim 14)"
        for other in self.sps.values():
            assert t1.id not in other.references, "a reference is left (claim 15)"
            if other is not sp and t1.id in other.t1s:
                assert other.t1s[t1.id][1] >= epoch, "adopted before it was fenced (claim 16)"
        sp.t1s[t1.id] = t1, max(epoch, sp.t1s.get(t1.id, (t1, 0))[1])
        self.homes[t1.id] = t1.home

    def _stage(self, t2: T2) -> None:
        needed = (set(t2.homes.values()) | {t2.owner}) - {t2.sp}
        assert set(t2.peers) == needed
        assert set(t2.homes) == {leaf.t1 for leaf in leaves(t2.root)}
        active = self.sps[t2.sp].active.get(t2.volume)
        if active is None or active.version < t2.version:
            self.sps[t2.sp].staged[t2.volume] = t2

    def _activate(self, sp: Sp, volume: VolumeId, version: int) -> None:
        old = sp.active.get(volume)
        if old and old.version == version:
            return
        assert self.store[volume].version == version, "activated before the commit record"
        new = sp.staged.pop(volume)
        assert new.version == version
        sp.active[volume] = new
        for t1, home in new.homes.items():
            assert t1 in self.sps[home].t1s, "T1 first (claims 9 and 10)"
            if home != sp.name:
                sp.references.add(t1)

    def _referred(self, t1: T1Id, home: SpId | None = None) -> bool:
        homes = [sp.active[v].homes.get(t1) for sp in self.sps.values() for v in sp.active]
        return any(found is not None and home in (None, found) for found in homes)

    def differing(self, t2: T2) -> int:
        """Bytes that the legs in sync of the root mirror do not have alike."""
        held = [
            [self._values(t2, leg, block)[0] for block in range(node_size(leg) // BLOCK)]
            for leg in _in_sync(t2.root)
        ]
        return sum(len(set(values)) > 1 for values in zip(*held, strict=True)) * BLOCK

    def _repair(self, t2: T2) -> None:
        first, *others = _in_sync(t2.root)
        for leg in others:
            for block in range(node_size(leg) // BLOCK):
                for leaf, index, _ in locate(leg, block):
                    self._at_epoch(t2, leaf)[index] = self._values(t2, first, block)[0]

    def _copy(self, step: Copy) -> None:
        t2 = self.sps[step.sp].active[step.volume]
        assert t2.owner == step.sp and t2.version == step.version
        if not step.path:
            self._repair(t2)
            return
        mirror = at(t2.root, step.path[:-1])
        assert isinstance(mirror, Mirror)
        leg = mirror.legs[step.path[-1]]
        assert leg.state is LegState.WRITE_ONLY
        assert step.bytes == node_size(mirror)
        for block in range(node_size(mirror) // BLOCK):
            # What hosts cannot reach need not be copied.
            source = next(o for o in mirror.legs if o.state is LegState.IN_SYNC)
            data = self._values(t2, source.node, block)[0]
            for leaf, index, _ in locate(leg.node, block):
                self._at_epoch(t2, leaf)[index] = data

    def _at_epoch(self, t2: T2, leaf: Leaf) -> list[int]:
        """A T1 object's blocks, if its home still serves the tree's epoch."""
        _, epoch = self.sps[t2.homes[leaf.t1]].t1s[leaf.t1]
        if epoch > t2.epoch:
            raise ParkedError
        return self.content[leaf.t1]

    def _values(self, t2: T2, node: Node, block: int) -> list[int]:
        """What each leg that may be read holds of a block."""
        return [
            self._at_epoch(t2, leaf)[i] for leaf, i, readable in locate(node, block) if readable
        ]

    def host_io(self, volume: VolumeId) -> int:
        """Reads and writes every block at every serving SP; how many were answered."""
        answered = 0
        for sp in self.sps.values():
            t2 = sp.active.get(volume)
            for block in range(t2.size // BLOCK if t2 else 0):
                assert t2 is not None
                try:
                    by = self._by(t2, block)
                    have = self._values(by, by.root, block)
                    want = self.expected[volume][block]
                    assert set(have) == {want}, f"{sp.name} reads {have} at {block}, not {want}"
                    pieces = [
                        (self._at_epoch(by, leaf), i) for leaf, i, _ in locate(by.root, block)
                    ]
                except ParkedError:
                    continue
                self.writes += 1
                for data, index in pieces:
                    data[index] = self.writes
                self.expected[volume][block] = self.writes
                answered += 1
        return answered

    def _by(self, t2: T2, block: int) -> T2:
        """The tree that the request runs on: what is mirrored is the owner's to do."""
        if t2.owner == t2.sp or not is_mirrored(t2.root, block):
            return t2
        owner = self.sps[t2.owner].active.get(t2.volume)
        if owner is None or owner.epoch != t2.epoch:
            raise ParkedError
        return owner


def is_mirrored(node: Node, block: int) -> bool:
    """Whether a block lies under a mirror."""
    match node:
        case Mirror():
            return True
        case Stripe(chunk, columns):
            per = chunk // BLOCK
            row, column = divmod(block // per, len(columns))
            return is_mirrored(columns[column], row * per + block % per)
        case Concat(parts):
            for part in parts:
                if block < node_size(part) // BLOCK:
                    return is_mirrored(part, block)
                block -= node_size(part) // BLOCK
    return False


def locate(node: Node, block: int, readable: bool = True) -> Iterator[tuple[Leaf, int, bool]]:
    """Every leaf that holds a block, the block's index in it, and whether it may be read."""
    match node:
        case Leaf():
            yield node, block, readable
        case Hole():
            raise ParkedError
        case Mirror(legs):
            for leg in legs:
                if leg.state is not LegState.AWAY:
                    yield from locate(leg.node, block, readable and leg.state is LegState.IN_SYNC)
        case Stripe(chunk, columns):
            per = chunk // BLOCK
            row, column = divmod(block // per, len(columns))
            yield from locate(columns[column], row * per + block % per, readable)
        case Concat(parts):
            for part in parts:
                if block < node_size(part) // BLOCK:
                    yield from locate(part, block, readable)
                    return
                block -= node_size(part) // BLOCK
            raise AssertionError("beyond the tree")


def _in_sync(root: Node) -> list[Node]:
    assert isinstance(root, Mirror)
    return [leg.node for leg in root.legs if leg.state is LegState.IN_SYNC]
