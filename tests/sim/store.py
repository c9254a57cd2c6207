"""The store: durable, slow, sometimes full; and the place where a controller may die."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import SpId, T1Id, Volume, VolumeId
from vswitchd.ports import OperationRecord, ProcessorRecord
from vswitchd.store.memory import MemoryStore

#: Mean seconds of a write.
DELAY = 0.002


class SimStore(MemoryStore):
    """Every write takes a while before and after it is made, so a controller that is killed at
    any moment dies on either side. `dies` is asked at each: "before", "after" or ""."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        # One that a seed repeats.
        self._cluster = "c-sim"
        self._rng = rng
        self.full = False
        self.dies: Callable[[], str] = lambda: ""
        self.kill: Callable[[], None] = lambda: None
        self.committed: Callable[[Volume], None] = lambda _: None

    async def _write(self, make: Callable[[], Any]) -> Any:
        if self.full:
            raise VsError("VS9031", Kind.INTERNAL, "store: disk full")
        death = self.dies()
        if death == "before":
            self.kill()
        await asyncio.sleep(self._rng.expovariate(1 / DELAY))
        result = await make()
        if death == "after":
            self.kill()
        await asyncio.sleep(self._rng.expovariate(1 / DELAY))
        return result

    async def raise_term(self) -> int:
        make = super().raise_term
        return int(await self._write(make))

    async def put_volume(
        self, volume: Volume, *, expect_version: int | None, who: str, why: str
    ) -> None:
        make = super().put_volume

        async def put() -> None:
            before = self._volumes.get(volume.id)
            await make(volume, expect_version=expect_version, who=who, why=why)
            if self._volumes.get(volume.id) is not before:
                self.committed(volume)

        await self._write(put)

    async def delete_volume(self, volume: VolumeId, *, who: str) -> None:
        make = super().delete_volume
        await self._write(lambda: make(volume, who=who))

    async def put_processor(self, record: ProcessorRecord) -> None:
        make = super().put_processor
        await self._write(lambda: make(record))

    async def set_drained(self, sp: SpId, keep_serving: bool | None) -> None:
        make = super().set_drained
        await self._write(lambda: make(sp, keep_serving))

    async def forget_t1s(self, t1s: Collection[T1Id]) -> None:
        make = super().forget_t1s
        await self._write(lambda: make(t1s))

    async def add_operation(
        self, record: OperationRecord, creates: Collection[T1Id] = ()
    ) -> OperationRecord:
        make = super().add_operation
        added: OperationRecord = await self._write(lambda: make(record, creates))
        return added

    async def update_operation(
        self, record: OperationRecord, *, expect_cursor: int, creates: Collection[T1Id] = ()
    ) -> None:
        make = super().update_operation
        await self._write(lambda: make(record, expect_cursor=expect_cursor, creates=creates))

    def now(self) -> Sequence[Volume]:
        """What is stored, for checks."""
        return tuple(self._volumes.values())

    def epochs(self, volume: VolumeId) -> set[int]:
        """Those of all commit records of a volume."""
        rows = self._history.get(volume, ())
        return {row.volume.epoch for row in rows if row.volume is not None}

    def stored(self, volume: VolumeId) -> Volume | None:
        """The volume as stored, for checks."""
        return self._volumes.get(volume)

    def open(self) -> list[OperationRecord]:
        """Operations that have not ended, for checks."""
        return [record for record in self._operations.values() if record.ended is None]
