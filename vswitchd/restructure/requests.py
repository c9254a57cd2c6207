"""What may be asked of a volume, and the target states that VBM answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from vswitchd.model.objects import Path, SpId, T1Id, Volume, VolumeId
from vswitchd.model.view import NO_TROUBLE, CopyMode, Trouble


@dataclass(frozen=True, slots=True)
class Create:
    """A new volume. Empty `layout`: one T1 object; empty `serving`: the homes of its T1
    objects; empty `place_on`: any SP. `size` 0: what the layout's sizes come to."""

    id: VolumeId
    name: str
    size: int
    layout: str = ""
    serving: tuple[SpId, ...] = ()
    place_on: tuple[SpId, ...] = ()


@dataclass(frozen=True, slots=True)
class Delete:
    """The volume and all its data go."""


@dataclass(frozen=True, slots=True)
class Grow:
    """`size` is the new size in bytes."""

    size: int


@dataclass(frozen=True, slots=True)
class AddLeg:
    """One more copy of the whole volume. Empty `layout`: one T1 object; `sp` places what
    the layout leaves open."""

    layout: str = ""
    sp: SpId | None = None


@dataclass(frozen=True, slots=True)
class RemoveLeg:
    """`leg`: the SP that homes the whole leg, a T1 id in it, or its index in the root mirror."""

    leg: str


@dataclass(frozen=True, slots=True)
class Move:
    """T1 objects change their home: the one given, or all that `from_sp` homes."""

    from_sp: SpId
    to_sp: SpId
    t1: T1Id | None = None


@dataclass(frozen=True, slots=True)
class Serve:
    """Hosts may connect at `sp` as well."""

    sp: SpId


@dataclass(frozen=True, slots=True)
class Unserve:
    """Hosts may no longer connect at `sp`."""

    sp: SpId


@dataclass(frozen=True, slots=True)
class Own:
    """`sp`, which serves the volume, becomes its owner."""

    sp: SpId


@dataclass(frozen=True, slots=True)
class Relayout:
    """The volume takes this layout."""

    layout: str


@dataclass(frozen=True, slots=True)
class Restore:
    """The volume takes the layout that `version` of it had."""

    version: Volume


@dataclass(frozen=True, slots=True)
class Evacuate:
    """All that `sp` has of the volume goes elsewhere. `keep_serving`: hosts may go on connecting
    there, if another SP is owner then."""

    sp: SpId
    keep_serving: bool = False


@dataclass(frozen=True, slots=True)
class Recover:
    """The volume's trees are pushed anew under a higher version and epoch, whatever of them the
    SPs hold now."""


@dataclass(frozen=True, slots=True)
class Eject:
    """The volume goes on without SPs that are lost, and T1 objects in trouble: their legs are
    away; an SP that was owner is not any more. `forced`: whether or not they are needed."""

    sps: tuple[SpId, ...]
    trouble: Trouble = NO_TROUBLE
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Verify:
    """The legs in sync of every mirror are held against each other; `repair`: and made alike."""

    repair: bool = False


@dataclass(frozen=True, slots=True)
class Rejoin:
    """Legs that are away and whose SPs are all among these come back."""

    sps: tuple[SpId, ...]


@dataclass(frozen=True, slots=True)
class Replace:
    """A new leg takes the place of the one at `path`, which is away."""

    path: Path


Request: TypeAlias = (
    Create
    | Delete
    | Grow
    | AddLeg
    | RemoveLeg
    | Move
    | Serve
    | Unserve
    | Own
    | Relayout
    | Restore
    | Evacuate
    | Recover
    | Eject
    | Rejoin
    | Replace
    | Verify
)


@dataclass(frozen=True, slots=True)
class Become:
    """The volume becomes this (None: it is gone), in one swap of trees."""

    volume: Volume | None


@dataclass(frozen=True, slots=True)
class CopyOnto:
    """The write-only leg at `path` of the volume as it then is gets its data, or what it has
    missed since it was in sync; or legs are held against each other, `path` being empty."""

    path: Path
    mode: CopyMode = CopyMode.FULL


Stage: TypeAlias = Become | CopyOnto
