"""The store on SQLite: WAL, synchronous=FULL, one connection on one thread."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, time
from typing import TypeVar

from vswitchd.errors import Kind, VsError
from vswitchd.model.access import OPEN, Access, decode_access, encode_access
from vswitchd.model.codec import decode_volume, encode_volume
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

R = TypeVar("R")

SCHEMA_VERSION = 4
SCHEMA = """
CREATE TABLE cluster (id TEXT NOT NULL, term INTEGER NOT NULL);
CREATE TABLE volume (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, version INTEGER NOT NULL,
                     body TEXT NOT NULL);
CREATE TABLE history (volume TEXT NOT NULL, version INTEGER NOT NULL, at REAL NOT NULL,
                      who TEXT NOT NULL, why TEXT NOT NULL, body TEXT NOT NULL,
                      PRIMARY KEY (volume, version));
CREATE TRIGGER history_never_changes BEFORE UPDATE ON history
    BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
CREATE TRIGGER history_never_shrinks BEFORE DELETE ON history
    BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
CREATE TABLE access (volume TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE access_history (volume TEXT NOT NULL, version INTEGER NOT NULL, at REAL NOT NULL,
                             who TEXT NOT NULL, what TEXT NOT NULL,
                             PRIMARY KEY (volume, version));
CREATE TRIGGER access_history_never_changes BEFORE UPDATE ON access_history
    BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
CREATE TRIGGER access_history_never_shrinks BEFORE DELETE ON access_history
    BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
CREATE TABLE processor (sp TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE drained (sp TEXT PRIMARY KEY, keep_serving INTEGER NOT NULL);
CREATE TABLE ledger (t1 TEXT PRIMARY KEY);
CREATE TABLE device (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TABLE operation (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
                        request_id TEXT UNIQUE, cursor INTEGER NOT NULL, ended INTEGER NOT NULL,
                        body TEXT NOT NULL);
CREATE INDEX operation_ended ON operation (ended, number);
"""


class SqliteStore:
    """`ports.Store`. Every write is durable when it returns. `observe` is told each request's
    seconds.

    Nobody else writes to the file, so volumes are decoded once: a thousand would take longer
    than most of what is asked about them."""

    def __init__(
        self,
        directory: Path,
        observe: Callable[[float], None] = lambda _: None,
        ended_kept: int = ENDED_KEPT,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._observe = observe
        self._ended_kept = ended_kept
        #: As of the last commit; replaced whole by the store's thread alone, ...
        self._volumes: dict[VolumeId, Volume] = {}
        self._accesses: dict[VolumeId, Access] = {}
        #: ... and what was last listed of which, by the event loop's.
        self._listed: tuple[dict[VolumeId, Volume], tuple[Volume, ...]] = ({}, ())
        self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise VsError(
                "VS3040",
                Kind.PRECONDITION,
                f"another controller uses {directory}; stop it, or name another --state",
            ) from None
        self._path = directory / "store.sqlite"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._thread.submit(self._open).result()

    def _open(self) -> None:
        try:
            # CHAP secrets are in it. SQLite gives its other files the modes of this one.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._path.chmod(0o600)
        except OSError as error:
            raise self._unreadable(error) from None
        self._db = sqlite3.connect(self._path, isolation_level=None)
        try:
            # What is deleted is overwritten: nothing that was secret stays.
            self._db.execute("PRAGMA secure_delete=ON")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.executescript(
                    f"BEGIN;{SCHEMA}INSERT INTO cluster VALUES ('{uuid.uuid4()}', 0);"
                    f"PRAGMA user_version={SCHEMA_VERSION};COMMIT;"
                )
            elif version != SCHEMA_VERSION:
                raise VsError(
                    "VS3041",
                    Kind.PRECONDITION,
                    f"{self._path} has schema {version}, this program knows {SCHEMA_VERSION}; "
                    "run the version that wrote it",
                )
            for (body,) in self._db.execute("SELECT body FROM volume").fetchall():
                volume = decode_volume(body)
                self._volumes[volume.id] = volume
            for id_, body in self._db.execute("SELECT volume, body FROM access").fetchall():
                self._accesses[VolumeId(id_)] = decode_access(body)
        except sqlite3.DatabaseError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> VsError:
        return VsError(
            "VS9030",
            Kind.INTERNAL,
            f"{self._path} can't be read: {error}; restore it from a copy",
        )

    async def _do(
        self, work: Callable[[sqlite3.Connection], R], done: Callable[[], None] = lambda: None
    ) -> R:
        """Runs `work` in one transaction on the store's thread, and `done` when it is committed,
        whether or not anybody still waits for it."""

        def transaction() -> R:
            begun = perf_counter()
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    result = work(self._db)
                    self._db.execute("COMMIT")
                except BaseException:
                    # A COMMIT that fails leaves the transaction open; an error such as a full
                    # disk may have closed it already.
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
                done()
                return result
            except sqlite3.OperationalError as error:
                raise VsError(
                    "VS9031",
                    Kind.INTERNAL,
                    f"{self._path}: {error}; is the disk full or read-only?",
                ) from None
            except sqlite3.DatabaseError as error:
                raise self._unreadable(error) from None
            finally:
                self._observe(perf_counter() - begun)

        return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)

    async def cluster_id(self) -> str:
        return str(await self._do(lambda db: db.execute("SELECT id FROM cluster").fetchone()[0]))

    async def adopt_cluster(self, cluster: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            for table in ("history", "processor", "device", "operation"):
                if db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():
                    raise refusals.not_empty(cluster)
            db.execute("UPDATE cluster SET id = ?", (cluster,))

        await self._do(work)

    async def term(self) -> int:
        return int(await self._do(lambda db: db.execute("SELECT term FROM cluster").fetchone()[0]))

    async def raise_term(self) -> int:
        def work(db: sqlite3.Connection) -> int:
            return int(
                db.execute("UPDATE cluster SET term = term + 1 RETURNING term").fetchone()[0]
            )

        return await self._do(work)

    async def volumes(self) -> Sequence[Volume]:
        held = self._volumes
        if self._listed[0] is not held:
            self._listed = held, tuple(sorted(held.values(), key=lambda volume: volume.name))
        return self._listed[1]

    async def volume(self, volume: VolumeId) -> Volume | None:
        return self._volumes.get(volume)

    async def history(self, volume: VolumeId) -> Sequence[VersionRecord]:
        rows = await self._do(
            lambda db: db.execute(
                "SELECT version, at, who, why, body FROM history WHERE volume = ? ORDER BY version",
                (volume,),
            ).fetchall()
        )
        return [
            VersionRecord(version, at, who, why, decode_volume(body) if body else None)
            for version, at, who, why, body in rows
        ]

    async def put_volume(
        self, volume: Volume, *, expect_version: int | None, who: str, why: str
    ) -> None:
        def work(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT version FROM volume WHERE id = ?", (volume.id,)).fetchone()
            found = None if row is None else int(row[0])
            if found == volume.version:
                return
            if found != expect_version:
                raise refusals.stale_volume(volume.name, found, expect_version)
            body = encode_volume(volume)
            try:
                db.execute(
                    "INSERT INTO volume VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                    " name = excluded.name, version = excluded.version, body = excluded.body",
                    (volume.id, volume.name, volume.version, body),
                )
            except sqlite3.IntegrityError:
                raise refusals.volume_exists(volume.name) from None
            db.execute(
                "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?)",
                (volume.id, volume.version, time(), who, why, body),
            )

        def done() -> None:
            self._volumes = {**self._volumes, volume.id: volume}

        await self._do(work, done)

    async def delete_volume(self, volume: VolumeId, *, who: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            row = db.execute(
                "DELETE FROM volume WHERE id = ? RETURNING version", (volume,)
            ).fetchone()
            db.execute("DELETE FROM access WHERE volume = ?", (volume,))
            if row is not None:
                db.execute(
                    "INSERT INTO history VALUES (?, ?, ?, ?, 'deleted', '')",
                    (volume, row[0] + 1, time(), who),
                )

        def done() -> None:
            self._volumes = {id_: held for id_, held in self._volumes.items() if id_ != volume}
            self._accesses = {id_: held for id_, held in self._accesses.items() if id_ != volume}

        await self._do(work, done)

    async def access(self, volume: VolumeId) -> Access:
        return self._accesses.get(volume, OPEN)

    async def put_access(
        self, volume: VolumeId, access: Access, *, expect_version: int, who: str, what: str
    ) -> None:
        def work(db: sqlite3.Connection) -> None:
            if volume not in self._volumes:
                raise refusals.access_of_nothing(volume)
            found = self._accesses.get(volume, OPEN).version
            if found != expect_version:
                raise refusals.stale_access(volume, found, expect_version)
            db.execute("REPLACE INTO access VALUES (?, ?)", (volume, encode_access(access)))
            row = (volume, access.version, time(), who, what)
            db.execute("INSERT INTO access_history VALUES (?, ?, ?, ?, ?)", row)

        def done() -> None:
            self._accesses = {**self._accesses, volume: access}

        await self._do(work, done)

    async def access_history(self, volume: VolumeId) -> Sequence[AccessRecord]:
        rows = await self._do(
            lambda db: db.execute(
                "SELECT version, at, who, what FROM access_history WHERE volume = ?"
                " ORDER BY version",
                (volume,),
            ).fetchall()
        )
        return [AccessRecord(*row) for row in rows]

    async def processors(self) -> Sequence[ProcessorRecord]:
        rows = await self._do(
            lambda db: db.execute("SELECT body FROM processor ORDER BY sp").fetchall()
        )
        return [ProcessorRecord(**json.loads(body)) for (body,) in rows]

    async def put_processor(self, record: ProcessorRecord) -> None:
        body = json.dumps(asdict(record))
        await self._do(
            lambda db: db.execute("REPLACE INTO processor VALUES (?, ?)", (record.sp, body))
        )

    async def delete_processor(self, sp: SpId) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM processor WHERE sp = ?", (sp,))
            db.execute("DELETE FROM drained WHERE sp = ?", (sp,))

        await self._do(work)

    async def drained(self) -> Mapping[SpId, bool]:
        rows = await self._do(lambda db: db.execute("SELECT * FROM drained").fetchall())
        return {SpId(sp): bool(keep) for sp, keep in rows}

    async def set_drained(self, sp: SpId, keep_serving: bool | None) -> None:
        def work(db: sqlite3.Connection) -> None:
            if keep_serving is None:
                db.execute("DELETE FROM drained WHERE sp = ?", (sp,))
            else:
                db.execute("REPLACE INTO drained VALUES (?, ?)", (sp, keep_serving))

        await self._do(work)

    async def ledger(self) -> Collection[T1Id]:
        rows = await self._do(lambda db: db.execute("SELECT t1 FROM ledger").fetchall())
        return {T1Id(t1) for (t1,) in rows}

    async def forget_t1s(self, t1s: Collection[T1Id]) -> None:
        await self._do(
            lambda db: db.executemany("DELETE FROM ledger WHERE t1 = ?", [(t1,) for t1 in t1s])
        )

    async def devices(self) -> Sequence[DeviceRecord]:
        rows = await self._do(
            lambda db: db.execute("SELECT body FROM device ORDER BY name").fetchall()
        )
        return [DeviceRecord(**json.loads(body)) for (body,) in rows]

    async def put_device(self, record: DeviceRecord) -> None:
        body = json.dumps(asdict(record))

        def work(db: sqlite3.Connection) -> None:
            try:
                db.execute(
                    "INSERT INTO device VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                    " name = excluded.name, body = excluded.body",
                    (record.id, record.name, body),
                )
            except sqlite3.IntegrityError:
                raise refusals.device_exists(record.name) from None

        await self._do(work)

    async def delete_device(self, device: DeviceId) -> None:
        await self._do(lambda db: db.execute("DELETE FROM device WHERE id = ?", (device,)))

    async def operations(self, *, open_only: bool = False) -> Sequence[OperationRecord]:
        which = "WHERE ended = 0" if open_only else ""
        return await self._operations(f"{which} ORDER BY number")

    async def operation(self, operation: str) -> OperationRecord | None:
        return next(iter(await self._operations("WHERE id = ?", operation)), None)

    async def operation_of(self, request_id: str) -> OperationRecord | None:
        return next(iter(await self._operations("WHERE request_id = ?", request_id)), None)

    async def _operations(self, which: str, *values: str) -> list[OperationRecord]:
        rows = await self._do(
            lambda db: db.execute(f"SELECT body FROM operation {which}", values).fetchall()
        )
        return [OperationRecord(**json.loads(body)) for (body,) in rows]

    async def add_operation(
        self, record: OperationRecord, creates: Collection[T1Id] = ()
    ) -> OperationRecord:
        def work(db: sqlite3.Connection) -> OperationRecord:
            row = db.execute(
                "SELECT body FROM operation WHERE id = ? OR request_id = ?",
                (record.id, record.request_id or None),
            ).fetchone()
            if row is not None:
                return OperationRecord(**json.loads(row[0]))
            db.execute(
                "INSERT INTO operation (id, request_id, cursor, ended, body)"
                " VALUES (?, ?, ?, ?, ?)",
                (
                    record.id,
                    record.request_id or None,
                    record.cursor,
                    record.ended is not None,
                    json.dumps(asdict(record)),
                ),
            )
            _enter(db, creates)
            self._forget_old(db)
            return record

        return await self._do(work)

    async def update_operation(
        self, record: OperationRecord, *, expect_cursor: int, creates: Collection[T1Id] = ()
    ) -> None:
        body = json.dumps(asdict(record))

        def work(db: sqlite3.Connection) -> None:
            changed = db.execute(
                "UPDATE operation SET request_id = ?, cursor = ?, ended = ?, body = ?"
                " WHERE id = ? AND (cursor = ? OR body = ?)",
                (
                    record.request_id or None,
                    record.cursor,
                    record.ended is not None,
                    body,
                    record.id,
                    expect_cursor,
                    body,
                ),
            ).rowcount
            if not changed:
                raise refusals.operation_moved(record.id)
            _enter(db, creates)
            if record.ended is not None:
                self._forget_old(db)

        await self._do(work)

    def _forget_old(self, db: sqlite3.Connection) -> None:
        db.execute(
            "DELETE FROM operation WHERE ended = 1 AND number <= (SELECT number"
            " FROM operation WHERE ended = 1 ORDER BY number DESC LIMIT 1 OFFSET ?)",
            (self._ended_kept,),
        )

    async def close(self) -> None:
        """Ends; what was written stays."""
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: self._db.close())
        self._thread.shutdown()
        os.close(self._lock)


def _enter(db: sqlite3.Connection, t1s: Collection[T1Id]) -> None:
    db.executemany("INSERT OR IGNORE INTO ledger VALUES (?)", [(t1,) for t1 in t1s])
