"""The store: durable over a reopening, compare-and-swap, one controller at a time."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import T1, DeviceId, Extent, Leaf, SpId, T1Id, Volume, VolumeId
from vswitchd.ports import DeviceRecord, OperationRecord, ProcessorRecord
from vswitchd.store.sqlite import SqliteStore

A = SpId("sp-a")


def volume(name: str = "db", version: int = 1) -> Volume:
    """A volume of one leaf."""
    t1 = T1(T1Id("t-1"), VolumeId(name), 4096, (Extent(DeviceId("d"), 4 << 20, 1 << 20),), A)
    leaf = Leaf(t1.id, 4096)
    return Volume(VolumeId(name), name, 4096, version, version, leaf, (t1,), (A,), A)


def operation(number: int, request_id: str = "") -> OperationRecord:
    """A journal entry."""
    return OperationRecord(
        f"op-{number}", request_id, "grow", VolumeId("db"), "db", "running", "{}", 0, 0, 1.0
    )


async def test_what_was_written_is_there_after_a_reopening(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    cluster = await store.cluster_id()
    await store.put_volume(volume(), expect_version=None, why="create")
    record = ProcessorRecord(A, "i", "v:1", "p:1", "n:1", "0")
    await store.put_processor(record)
    device = DeviceRecord(DeviceId("d"), "disk", 1 << 30, 1 << 20, {A: "file:/x"})
    await store.put_device(device)
    await store.add_operation(operation(1))
    assert await store.raise_term() == 1
    await store.close()

    again = SqliteStore(tmp_path)
    assert await again.cluster_id() == cluster
    assert list(await again.volumes()) == [volume()]
    assert list(await again.processors()) == [record]
    assert list(await again.devices()) == [device]
    assert list(await again.operations()) == [operation(1)]
    assert await again.term() == 1
    await again.close()


async def test_versions_move_by_compare_and_swap(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await store.put_volume(volume(), expect_version=None, why="create")
    await store.put_volume(volume(version=2), expect_version=1, why="grow")
    await store.put_volume(volume(version=2), expect_version=1, why="said twice")
    with pytest.raises(VsError) as stale:
        await store.put_volume(volume(version=3), expect_version=1, why="late")
    assert stale.value.kind is Kind.STALE
    other = replace(volume(), id=VolumeId("other"))
    with pytest.raises(VsError) as taken:
        await store.put_volume(other, expect_version=None, why="create")
    assert taken.value.kind is Kind.EXISTS
    assert [v.version for v in await store.volumes()] == [2]
    await store.close()
    db = sqlite3.connect(tmp_path / "store.sqlite")
    assert db.execute("SELECT version FROM history ORDER BY version").fetchall() == [(1,), (2,)]
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("UPDATE history SET why = 'never said'")
    db.close()


async def test_the_journal_moves_by_compare_and_swap(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    first = await store.add_operation(operation(1, "r"))
    assert await store.add_operation(operation(2, "r")) == first, "one request, one operation"
    await store.add_operation(operation(3))
    await store.add_operation(operation(4))
    await store.update_operation(replace(first, cursor=2), expect_cursor=0)
    with pytest.raises(VsError) as moved:
        await store.update_operation(replace(first, cursor=1), expect_cursor=0)
    assert moved.value.kind is Kind.STALE
    assert [(o.id, o.cursor) for o in await store.operations()] == [
        ("op-1", 2),
        ("op-3", 0),
        ("op-4", 0),
    ]
    await store.close()


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
    assert "store.sqlite" in str(damaged.value)
