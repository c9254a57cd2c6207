"""What the SQLite store does beyond the contract (`tests/contract/test_store.py`): it lasts, it
is one controller's alone, and it says what is wrong with its file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.contract.test_store import DB, DISK, A, operation, volume
from vswitchd.errors import Kind, VsError
from vswitchd.ports import ProcessorRecord
from vswitchd.store.sqlite import SqliteStore

SP = ProcessorRecord(A, "i", "v:1", "p:1", "n:1", "0")


async def test_what_was_written_is_there_after_a_reopening(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    cluster = await store.cluster_id()
    await store.put_volume(volume(), expect_version=None, who="me", why="create")
    await store.put_processor(SP)
    await store.put_device(DISK)
    await store.add_operation(operation(1))
    assert await store.raise_term() == 1
    await store.close()

    again = SqliteStore(tmp_path)
    assert await again.cluster_id() == cluster
    assert list(await again.volumes()) == [volume()]
    assert list(await again.processors()) == [SP]
    assert list(await again.devices()) == [DISK]
    assert list(await again.operations()) == [operation(1)]
    assert await again.term() == 1
    await again.close()


async def test_the_history_tells_every_version_and_is_append_only(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await store.put_volume(volume(), expect_version=None, who="me", why="create")
    await store.put_volume(volume(version=2), expect_version=1, who="me", why="grow")
    await store.put_volume(volume(version=2), expect_version=1, who="me", why="said twice")
    await store.delete_volume(DB, who="me")
    await store.delete_volume(DB, who="me")
    await store.close()
    db = sqlite3.connect(tmp_path / "store.sqlite")
    rows = db.execute("SELECT version, why FROM history ORDER BY version").fetchall()
    assert rows == [(1, "create"), (2, "grow"), (3, "deleted")]
    for change in ("UPDATE history SET why = 'never said'", "DELETE FROM history"):
        with pytest.raises(sqlite3.IntegrityError):
            db.execute(change)
    db.close()


async def test_one_controller_at_a_time(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    with pytest.raises(VsError) as second:
        SqliteStore(tmp_path)
    assert second.value.kind is Kind.PRECONDITION and "another controller" in str(second.value)
    await store.close()
    await SqliteStore(tmp_path).close()


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"this is no database" * 1000)
    with pytest.raises(VsError) as damaged:
        SqliteStore(tmp_path)
    assert damaged.value.code == "VS9030" and "store.sqlite" in damaged.value.message


async def test_a_store_of_another_version_is_left_alone(tmp_path: Path) -> None:
    await SqliteStore(tmp_path).close()
    db = sqlite3.connect(tmp_path / "store.sqlite")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(VsError) as newer:
        SqliteStore(tmp_path)
    assert newer.value.code == "VS3041" and "99" in newer.value.message


async def test_a_full_disk_is_an_error_and_room_made_later_is_used(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    pages = await store._do(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    await store._do(lambda db: db.execute(f"PRAGMA max_page_count={pages}").fetchall())
    full = None
    for number in range(1000):
        try:
            await store.add_operation(operation(number))
        except VsError as error:
            full = error
            break
    assert full is not None and full.code == "VS9031" and "full" in full.message
    held = len(await store.operations())
    await store._do(lambda db: db.execute(f"PRAGMA max_page_count={pages * 10}").fetchall())
    await store.add_operation(operation(number))
    assert len(await store.operations()) == held + 1
    await store.close()
