"""The store in memory: the same contract as SQLite's, for tests and simulations."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from time import time

from vswitchd.model.access import OPEN, Access
from vswitchd.model.objects import DeviceId, SpId, T1Id, Volume, VolumeId
from vswitchd.ports import (
    ENDED_KEPT,
    AccessRecord,
    DeviceRecord,
    OperationRecord,
    ProcessorRecord,
    VersionRecord,
)
from vswitchd.store import refusals


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
        self._drained: dict[SpId, bool] = {}
        self._ledger: set[T1Id] = set()
        self._accesses: dict[VolumeId, Access] = {}
        self._access_history: dict[VolumeId, list[AccessRecord]] = {}
        self._history: dict[VolumeId, list[VersionRecord]] = {}

    async def cluster_id(self) -> str:
        return self._cluster

    async def adopt_cluster(self, cluster: str) -> None:
        if self._history or self._processors or self._devices or self._operations:
            raise refusals.not_empty(cluster)
        self._cluster = cluster

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

    async def history(self, volume: VolumeId) -> Sequence[VersionRecord]:
        return list(self._history.get(volume, ()))

    async def put_volume(
        self, volume: Volume, *, expect_version: int | None, who: str, why: str
    ) -> None:
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
        row = VersionRecord(volume.version, time(), who, why, volume)
        self._history.setdefault(volume.id, []).append(row)

    async def delete_volume(self, volume: VolumeId, *, who: str) -> None:
        gone = self._volumes.pop(volume, None)
        self._accesses.pop(volume, None)
        self._listed = None
        if gone is not None:
            row = VersionRecord(gone.version + 1, time(), who, "deleted", None)
            self._history[volume].append(row)

    async def access(self, volume: VolumeId) -> Access:
        return self._accesses.get(volume, OPEN)

    async def put_access(
        self, volume: VolumeId, access: Access, *, expect_version: int, who: str, what: str
    ) -> None:
        if volume not in self._volumes:
            raise refusals.access_of_nothing(volume)
        found = self._accesses.get(volume, OPEN).version
        if found != expect_version:
            raise refusals.stale_access(volume, found, expect_version)
        self._accesses[volume] = access
        row = AccessRecord(access.version, time(), who, what)
        self._access_history.setdefault(volume, []).append(row)

    async def access_history(self, volume: VolumeId) -> Sequence[AccessRecord]:
        return list(self._access_history.get(volume, ()))

    async def processors(self) -> Sequence[ProcessorRecord]:
        return [record for _, record in sorted(self._processors.items())]

    async def put_processor(self, record: ProcessorRecord) -> None:
        self._processors[record.sp] = record

    async def delete_processor(self, sp: SpId) -> None:
        self._processors.pop(sp, None)
        self._drained.pop(sp, None)

    async def drained(self) -> Mapping[SpId, bool]:
        return dict(self._drained)

    async def set_drained(self, sp: SpId, keep_serving: bool | None) -> None:
        if keep_serving is None:
            self._drained.pop(sp, None)
        else:
            self._drained[sp] = keep_serving

    async def ledger(self) -> Collection[T1Id]:
        return set(self._ledger)

    async def forget_t1s(self, t1s: Collection[T1Id]) -> None:
        self._ledger -= set(t1s)

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

    async def add_operation(
        self, record: OperationRecord, creates: Collection[T1Id] = ()
    ) -> OperationRecord:
        for known in self._operations.values():
            if known.id == record.id or (
                record.request_id and known.request_id == record.request_id
            ):
                return known
        self._operations[record.id] = record
        self._ledger |= set(creates)
        self._forget_old()
        return record

    async def update_operation(
        self, record: OperationRecord, *, expect_cursor: int, creates: Collection[T1Id] = ()
    ) -> None:
        known = self._operations.get(record.id)
        if known is None or (known.cursor != expect_cursor and known != record):
            raise refusals.operation_moved(record.id)
        self._operations[record.id] = record
        self._ledger |= set(creates)
        self._forget_old()

    def _forget_old(self) -> None:
        ended = [known.id for known in self._operations.values() if known.ended is not None]
        for old in ended[: -self._ended_kept]:
            del self._operations[old]

    async def close(self) -> None:
        """Nothing to do."""
