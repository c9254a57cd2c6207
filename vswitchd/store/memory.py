"""The store in memory: the same contract as SQLite's, for tests and simulations."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from vswitchd.model.objects import DeviceId, SpId, Volume, VolumeId
from vswitchd.ports import ENDED_KEPT, DeviceRecord, OperationRecord, ProcessorRecord
from vswitchd.store import refusals


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the history; `volume` None: deleted."""

    id: VolumeId
    version: int
    why: str
    volume: Volume | None


class MemoryStore:
    """`ports.Store`; what it holds lasts as long as the object."""

    def __init__(self, ended_kept: int = ENDED_KEPT) -> None:
        self._ended_kept = ended_kept
        self._cluster = str(uuid.uuid4())
        self._term = 0
        self._volumes: dict[VolumeId, Volume] = {}
        self._listed: tuple[Volume, ...] | None = None
        self._processors: dict[SpId, ProcessorRecord] = {}
        self._devices: dict[DeviceId, DeviceRecord] = {}
        self._operations: dict[str, OperationRecord] = {}
        self.history: list[Change] = []

    async def cluster_id(self) -> str:
        return self._cluster

    async def term(self) -> int:
        return self._term

    async def raise_term(self) -> int:
        self._term += 1
        return self._term

    async def volumes(self) -> Sequence[Volume]:
        if self._listed is None:
            self._listed = tuple(sorted(self._volumes.values(), key=lambda volume: volume.name))
        return self._listed

    async def volume(self, volume: VolumeId) -> Volume | None:
        return self._volumes.get(volume)

    async def put_volume(self, volume: Volume, *, expect_version: int | None, why: str) -> None:
        stored = self._volumes.get(volume.id)
        found = None if stored is None else stored.version
        if found == volume.version:
            return
        if found != expect_version:
            raise refusals.stale_volume(volume.name, found, expect_version)
        if any(v.name == volume.name and v.id != volume.id for v in self._volumes.values()):
            raise refusals.volume_exists(volume.name)
        self._volumes[volume.id] = volume
        self._listed = None
        self.history.append(Change(volume.id, volume.version, why, volume))

    async def delete_volume(self, volume: VolumeId) -> None:
        gone = self._volumes.pop(volume, None)
        self._listed = None
        if gone is not None:
            self.history.append(Change(volume, gone.version + 1, "deleted", None))

    async def processors(self) -> Sequence[ProcessorRecord]:
        return [record for _, record in sorted(self._processors.items())]

    async def put_processor(self, record: ProcessorRecord) -> None:
        self._processors[record.sp] = record

    async def delete_processor(self, sp: SpId) -> None:
        self._processors.pop(sp, None)

    async def devices(self) -> Sequence[DeviceRecord]:
        return sorted(self._devices.values(), key=lambda record: record.name)

    async def put_device(self, record: DeviceRecord) -> None:
        if any(d.name == record.name and d.id != record.id for d in self._devices.values()):
            raise refusals.device_exists(record.name)
        self._devices[record.id] = record

    async def delete_device(self, device: DeviceId) -> None:
        self._devices.pop(device, None)

    async def operations(self, *, open_only: bool = False) -> Sequence[OperationRecord]:
        return [r for r in self._operations.values() if r.ended is None or not open_only]

    async def operation(self, operation: str) -> OperationRecord | None:
        return self._operations.get(operation)

    async def operation_of(self, request_id: str) -> OperationRecord | None:
        every = self._operations.values()
        return next((r for r in every if request_id and r.request_id == request_id), None)

    async def add_operation(self, record: OperationRecord) -> OperationRecord:
        for known in self._operations.values():
            if known.id == record.id or (
                record.request_id and known.request_id == record.request_id
            ):
                return known
        self._operations[record.id] = record
        return record

    async def update_operation(self, record: OperationRecord, *, expect_cursor: int) -> None:
        known = self._operations.get(record.id)
        if known is None or (known.cursor != expect_cursor and known != record):
            raise refusals.operation_moved(record.id)
        self._operations[record.id] = record
        ended = [known.id for known in self._operations.values() if known.ended is not None]
        for old in ended[: -self._ended_kept]:
            del self._operations[old]

    async def close(self) -> None:
        """Nothing to do."""
