"""Where T1 objects go: what a layout says first, then failure domains, free space, load.

The legs of a mirror keep to different SPs, and to different devices, as far as there are
such; a leg keeps to few SPs so that the others have some left. Deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as with_fields

from vswitchd.errors import Kind, VsError
from vswitchd.model.layout import (
    ConcatOf,
    Layout,
    MirrorOf,
    Place,
    StripeOf,
    format_size,
    places,
)
from vswitchd.model.objects import (
    BLOCK,
    T1,
    Concat,
    DeviceId,
    Extent,
    Leaf,
    Leg,
    Mirror,
    Node,
    SpId,
    Stripe,
    T1Id,
    VolumeId,
)
from vswitchd.restructure.space import Space


@dataclass(slots=True)
class _Domain:
    """What a leaf should keep away from, and what it should stay with."""

    #: SPs and devices of the other legs of every mirror around the leaf.
    other_sps: frozenset[SpId] = frozenset()
    other_devices: frozenset[DeviceId] = frozenset()
    #: How many SPs the leg may spread over; None outside of mirrors.
    budget: int | None = None
    #: What the leaf's own leg uses so far.
    own: list[T1] = field(default_factory=list)


class Placement:
    """Places new T1 objects of one volume and extends old ones; collects them in `t1s`."""

    def __init__(
        self,
        volume: VolumeId,
        space: Space,
        new_id: Callable[[], str],
        device_names: Mapping[DeviceId, str],
        only: Collection[SpId] = (),
    ) -> None:
        self.t1s: list[T1] = []
        self._volume = volume
        self._space = space
        self._new_id = new_id
        self._names = device_names
        self._only = frozenset(only)

    def place(self, layout: Layout, avoid: Collection[T1] = (), sp: SpId | None = None) -> Node:
        """The tree of a layout whose sizes are all known (see `sized`).

        `avoid`: T1 objects that hold the same data already; `sp`: where places without an
        SP go. VsError VS4010 says how much is free where.
        """
        if sp is not None:
            layout = _at(layout, sp)
        domain = _Domain(*_used(avoid), budget=None)
        if avoid:
            taken = len(domain.other_sps)
            domain.budget = max(1, len(self._eligible()) - taken)
        return self._node(layout, domain)

    def extend(self, t1: T1, size: int) -> T1 | None:
        """The T1 object made as large as `size`, on its home's devices, its own first; None
        if there is no room. Slack in its extents is used up before more is taken."""
        if size <= t1.size:
            return t1
        missing = size - sum(extent.length for extent in t1.extents)
        if missing <= 0:
            return with_fields(t1, size=size)
        reached = self._space.devices(t1.home)
        own = [d for d in dict.fromkeys(e.device for e in reversed(t1.extents)) if d in reached]
        others = sorted(set(reached) - set(own), key=lambda d: (-self._space.free(d), d))
        more = self._space.take([*own, *others], missing)
        if more is None:
            return None
        # PutT1 wants the old extents as a prefix, so runs that touch stay two.
        return with_fields(t1, size=size, extents=(*t1.extents, *more))

    def _node(self, layout: Layout, domain: _Domain) -> Node:
        match layout:
            case Place():
                return self._leaf(layout, domain)
            case StripeOf(columns, chunk):
                return Stripe(chunk, tuple(self._node(c, domain) for c in columns))
            case ConcatOf(parts):
                return Concat(tuple(self._node(p, domain) for p in parts))
            case MirrorOf(legs):
                return self._mirror(legs, domain)

    def _mirror(self, legs: tuple[Layout, ...], domain: _Domain) -> Node:
        """Legs one by one, each away from those placed and from where later ones must be."""
        available = domain.budget or len(self._eligible())
        named = [{SpId(p.sp) for p in places(leg) if p.sp is not None} for leg in legs]
        done: list[Leg] = []
        placed: list[T1] = []
        for index, leg in enumerate(legs):
            sps, devices = _used(placed)
            later = frozenset(sp for those in named[index + 1 :] for sp in those)
            inner = _Domain(
                domain.other_sps | sps | later,
                domain.other_devices | devices,
                max(1, available // len(legs)),
            )
            done.append(Leg(self._node(leg, inner)))
            placed += inner.own
        domain.own += placed
        return Mirror(tuple(done))

    def _leaf(self, place: Place, domain: _Domain) -> Leaf:
        assert place.size is not None, "sizes are resolved before placement"
        sp, extents = self._choose(place, place.size, domain)
        t1 = T1(T1Id(f"t-{self._new_id()}"), self._volume, place.size, extents, sp)
        self._space.homed(sp)
        self.t1s.append(t1)
        domain.own.append(t1)
        return Leaf(t1.id, t1.size)

    def _choose(self, place: Place, size: int, domain: _Domain) -> tuple[SpId, tuple[Extent, ...]]:
        space = self._space
        sps = self._candidates(place)
        whole = [
            (sp, device)
            for sp in sps
            for device in self._devices(place, sp)
            if space.fits(device, size)
        ]
        own_sps, own_devices = _used(domain.own)

        def sp_rank(sp: SpId) -> tuple[bool, bool]:
            full = domain.budget is not None and len(own_sps) >= domain.budget
            return sp in domain.other_sps, full and sp not in own_sps

        def rank(choice: tuple[SpId, DeviceId]) -> tuple[object, ...]:
            sp, device = choice
            # The same device for two columns costs speed; for two legs, the data.
            return (
                sp_rank(sp)[0],
                device in domain.other_devices,
                sp_rank(sp)[1],
                device in own_devices,
                -space.free(device),
                space.objects(sp),
                sp,
                device,
            )

        for sp, device in sorted(whole, key=rank):
            extents = space.take([device], size)
            if extents is not None:
                return sp, extents
        # No device alone has the room: several of one SP.
        for sp in sorted(sps, key=lambda sp: (*sp_rank(sp), space.objects(sp), sp)):
            devices = sorted(
                self._devices(place, sp),
                key=lambda d: (d in domain.other_devices, -space.free(d), d),
            )
            extents = space.take(devices, size)
            if extents is not None:
                return sp, extents
        raise self._no_space(place, size, sps)

    def _eligible(self) -> list[SpId]:
        return [sp for sp in self._space.sps() if not self._only or sp in self._only]

    def _candidates(self, place: Place) -> list[SpId]:
        if place.sp is None:
            return self._eligible()
        if place.sp in self._space.drained:
            raise drained_error(SpId(place.sp))
        if place.sp not in self._space.sps():
            raise VsError(
                "VS3010",
                Kind.PRECONDITION,
                f"SP {place.sp} is not known to be up; `vswitchctl sp list` shows those that are",
            )
        return [SpId(place.sp)]

    def _devices(self, place: Place, sp: SpId) -> list[DeviceId]:
        reached = self._space.devices(sp)
        if place.device is None:
            return reached
        found = [d for d in reached if place.device in (d, self._names.get(d))]
        if not found:
            raise VsError(
                "VS2011",
                Kind.NOT_FOUND,
                f"SP {sp} reaches no device {place.device} that is up; "
                "`vswitchctl device list` shows them",
            )
        return found

    def _no_space(self, place: Place, size: int, sps: list[SpId]) -> VsError:
        rows = [
            f"{sp}/{self._names.get(device, device)} {format_size(self._space.free(device))}"
            for sp in sps
            for device in self._devices(place, sp)
        ]
        free = ", ".join(rows) or "no device that is up"
        return VsError(
            "VS4010",
            Kind.NO_SPACE,
            f"no room for {format_size(size)} on {place.sp or 'any SP'}; free: {free}; "
            "add a device or choose another place",
        )


def drained_error(sp: SpId) -> VsError:
    """Nothing new may go to the SP."""
    return VsError(
        "VS3078",
        Kind.PRECONDITION,
        f"SP {sp} is drained, so nothing new goes there; choose another, or `vswitchctl sp "
        f"undrain {sp}`",
    )


def sized(layout: Layout, need: int) -> Layout:
    """The layout with every size filled in so that it holds at least `need` bytes.

    Stripes are rounded up to whole rows; the parts of a concat that say no size share what
    the others leave. VsError VS1014 if given sizes do not come to `need`.
    """
    filled = _fill(layout, need)
    if layout_size(filled) < need:
        raise VsError(
            "VS1014",
            Kind.INVALID,
            f"the layout's sizes come to {format_size(layout_size(filled))}, "
            f"below {format_size(need)}; give larger ones or leave them out",
        )
    for place in places(filled):
        check_size(place.size or 0)
    return filled


def layout_size(layout: Layout) -> int:
    """How many bytes a layout holds by the sizes in it; 0 if one is missing."""
    match layout:
        case Place(_, _, size):
            return size or 0
        case MirrorOf(legs):
            return min(map(layout_size, legs))
        case StripeOf(columns, chunk):
            return len(columns) * min(layout_size(c) // chunk * chunk for c in columns)
        case ConcatOf(parts):
            sizes = [layout_size(part) for part in parts]
            return sum(sizes) if all(sizes) else 0


def check_size(size: int) -> None:
    """VsError VS1011 unless the size can be that of a volume or a T1 object."""
    if size <= 0 or size % BLOCK or size >= 1 << 62:
        raise VsError(
            "VS1011",
            Kind.INVALID,
            f"the size {size} is not a positive multiple of {BLOCK} bytes; use one like 20G",
        )


def _fill(layout: Layout, need: int) -> Layout:
    match layout:
        case Place(sp, device, size):
            return Place(sp, device, need if size is None else size)
        case MirrorOf(legs):
            return MirrorOf(tuple(_fill(leg, need) for leg in legs))
        case StripeOf(columns, chunk):
            column = -(-need // (len(columns) * chunk)) * chunk
            return StripeOf(tuple(_fill(c, column) for c in columns), chunk)
        case ConcatOf(parts):
            given = [layout_size(part) for part in parts]
            left = max(0, need - sum(given))
            open_parts = given.count(0)
            share = -(-left // max(1, open_parts) // BLOCK) * BLOCK
            filled: list[Layout] = []
            for part, size in zip(parts, given, strict=True):
                mine = size or min(share, left)
                left -= 0 if size else mine
                filled.append(_fill(part, mine))
            return ConcatOf(tuple(filled))


def _at(layout: Layout, sp: SpId) -> Layout:
    match layout:
        case Place(None, None, size):
            return Place(sp, None, size)
        case Place():
            return layout
        case MirrorOf(legs):
            return MirrorOf(tuple(_at(leg, sp) for leg in legs))
        case StripeOf(columns, chunk):
            return StripeOf(tuple(_at(c, sp) for c in columns), chunk)
        case ConcatOf(parts):
            return ConcatOf(tuple(_at(p, sp) for p in parts))


def _used(t1s: Collection[T1]) -> tuple[frozenset[SpId], frozenset[DeviceId]]:
    return (
        frozenset(t1.home for t1 in t1s),
        frozenset(extent.device for t1 in t1s for extent in t1.extents),
    )
