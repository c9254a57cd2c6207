"""Who may touch a volume: a request that is being planned, or the reconciler. One at a time."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from vswitchd.model.objects import VolumeId


class Turns:
    """A lock for each volume, there as long as somebody holds or awaits it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[VolumeId, asyncio.Lock] = WeakValueDictionary()

    def of(self, volume: VolumeId) -> asyncio.Lock:
        """The volume's lock, for `async with`."""
        lock = self._locks.get(volume)
        if lock is None:
            lock = self._locks[volume] = asyncio.Lock()
        return lock
