"""The layout that an earlier version of a volume asks for today."""

from __future__ import annotations

from dataclasses import replace as with_fields

from vswitchd.errors import Kind, VsError
from vswitchd.model.layout import ConcatOf, Layout, MirrorOf, Place, StripeOf, layout_of
from vswitchd.model.objects import Hole, Leg, LegState, Mirror, Node, Volume, children, walk
from vswitchd.restructure.twins import with_children


def restored(version: Volume, size: int) -> Layout:
    """Its places; its sizes too, unless the volume has another size today. Legs that were not in
    sync then are left out. VsError VS3074 for a version within a move."""
    if any(isinstance(node, Hole) for _, node in walk(version.root)):
        raise VsError(
            "VS3074",
            Kind.PRECONDITION,
            f"version {version.version} of volume {version.name} was a moment within a move; "
            "restore the version before or after it",
        )
    whole = with_fields(version, root=_in_sync_only(version.root))
    layout = layout_of(whole)
    return layout if version.size == size else _unsized(layout)


def _in_sync_only(node: Node) -> Node:
    if isinstance(node, Mirror):
        legs = [Leg(_in_sync_only(leg.node)) for leg in node.legs if leg.state is LegState.IN_SYNC]
        return legs[0].node if len(legs) == 1 else Mirror(tuple(legs))
    return with_children(node, tuple(map(_in_sync_only, children(node))))


def _unsized(layout: Layout) -> Layout:
    match layout:
        case Place(sp, device, _):
            return Place(sp, device)
        case MirrorOf(legs):
            return MirrorOf(tuple(map(_unsized, legs)))
        case StripeOf(columns, chunk):
            return StripeOf(tuple(map(_unsized, columns)), chunk)
        case ConcatOf(parts):
            return ConcatOf(tuple(map(_unsized, parts)))
