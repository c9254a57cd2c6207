"""Having an SP keep a tree, with who may use the volume."""

from __future__ import annotations

from vswitchd.model.objects import T2
from vswitchd.ports import Processor, Store


async def stage(store: Store, at: Processor, t2: T2) -> None:
    """Has an SP keep a tree, with who may use the volume as it is when this returns. A change that
    is made later finds the SP among those that have a tree, and is told to it."""
    while True:
        access = await store.access(t2.volume)
        await at.stage_t2(t2, access)
        if (await store.access(t2.volume)).version == access.version:
            return
