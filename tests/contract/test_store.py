"""One contract over every store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from vswitchd.errors import Kind, VsError
from vswitchd.model.access import OPEN, Access, Chap, Entry
from vswitchd.model.objects import T1, DeviceId, Extent, Leaf, SpId, T1Id, Volume, VolumeId
from vswitchd.ports import DeviceRecord, OperationRecord, ProcessorRecord, Store
from vswitchd.store.memory import MemoryStore
from vswitchd.store.sqlite import SqliteStore

A, B = SpId("sp-a"), SpId("sp-b")
DB = VolumeId("db")
#: Ended operations that the stores here keep.
KEPT = 3
DISK = DeviceRecord(DeviceId("d"), "disk", 1 << 30, 1 << 20, {A: "file:/x"}, [A], True)


def volume(name: str = "db", version: int = 1) -> Volume:
    t1 = T1(T1Id("t-1"), VolumeId(name), 4096, (Extent(DeviceId("d"), 4 << 20, 1 << 20),), A)
    leaf = Leaf(t1.id, 4096)
    return Volume(VolumeId(name), name, 4096, version, version, leaf, (t1,), (A,), A)


def operation(number: int, request_id: str = "") -> OperationRecord:
    return OperationRecord(
        f"op-{number}", request_id, "grow", DB, "db", "running", "{}", 0, 0, float(number)
    )


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store = (
        MemoryStore(KEPT) if request.param == "memory" else SqliteStore(tmp_path, ended_kept=KEPT)
    )
    yield opened
    await opened.close()


async def test_a_cluster_keeps_its_id_and_its_term_rises(store: Store) -> None:
    assert await store.cluster_id() == await store.cluster_id() != ""
    assert [await store.term(), await store.raise_term(), await store.raise_term()] == [0, 1, 2]
    assert await store.term() == 2


async def test_a_volume_moves_by_compare_and_swap(store: Store) -> None:
    await store.put_volume(volume(), expect_version=None, who="me", why="create")
    await store.put_volume(volume(version=3), expect_version=1, who="me", why="grow")
    # Said once more after a crash, with what was expected then.
    await store.put_volume(volume(version=3), expect_version=1, who="me", why="grow")
    for late in (None, 1, 2):
        with pytest.raises(VsError) as stale:
            await store.put_volume(volume(version=4), expect_version=late, who="me", why="late")
        assert stale.value.kind is Kind.STALE
    assert list(await store.volumes()) == [volume(version=3)]


async def test_what_is_absent_cannot_be_expected(store: Store) -> None:
    with pytest.raises(VsError) as stale:
        await store.put_volume(volume(version=2), expect_version=1, who="me", why="of a ghost")
    assert stale.value.kind is Kind.STALE
    assert list(await store.volumes()) == []


async def test_names_of_volumes_are_unique(store: Store) -> None:
    await store.put_volume(volume(), expect_version=None, who="me", why="create")
    twin = replace(volume(), id=VolumeId("other"))
    with pytest.raises(VsError) as taken:
        await store.put_volume(twin, expect_version=None, who="me", why="create")
    assert taken.value.kind is Kind.EXISTS and "db" in taken.value.message
    await store.delete_volume(DB, who="me")
    await store.delete_volume(DB, who="me")
    await store.put_volume(twin, expect_version=None, who="me", why="create")
    assert list(await store.volumes()) == [twin]


async def test_lists_are_ordered_by_name(store: Store) -> None:
    for name in ("zeta", "alpha", "mid"):
        await store.put_volume(volume(name), expect_version=None, who="me", why="create")
        await store.put_device(replace(DISK, id=DeviceId(name), name=name))
        await store.put_processor(ProcessorRecord(SpId(name), "1", "v", "p", "n", "0"))
    assert [v.name for v in await store.volumes()] == ["alpha", "mid", "zeta"]
    assert [d.name for d in await store.devices()] == ["alpha", "mid", "zeta"]
    assert [p.sp for p in await store.processors()] == ["alpha", "mid", "zeta"]


async def test_an_sp_is_replaced_and_forgotten(store: Store) -> None:
    first = ProcessorRecord(A, "1", "h:1", "h:2", "h:3", "0.1")
    await store.put_processor(first)
    await store.put_processor(replace(first, incarnation="2", vsm_address="h:9"))
    assert list(await store.processors()) == [replace(first, incarnation="2", vsm_address="h:9")]
    await store.delete_processor(A)
    await store.delete_processor(A)
    assert list(await store.processors()) == []


async def test_a_device_keeps_its_paths_and_its_name_to_itself(store: Store) -> None:
    await store.put_device(DISK)
    both = replace(DISK, paths={A: "file:/x", B: "nbd://h/x"})
    await store.put_device(both)
    assert list(await store.devices()) == [both]
    with pytest.raises(VsError) as taken:
        await store.put_device(replace(DISK, id=DeviceId("e")))
    assert taken.value.kind is Kind.EXISTS
    await store.delete_device(DISK.id)
    assert list(await store.devices()) == []


async def test_one_request_makes_one_operation(store: Store) -> None:
    first = await store.add_operation(operation(1, "r"))
    assert await store.add_operation(operation(2, "r")) == first
    assert await store.add_operation(operation(1)) == first, "and one id"
    # Requests without an id are each their own.
    await store.add_operation(operation(3))
    await store.add_operation(operation(4))
    assert [o.id for o in await store.operations()] == ["op-1", "op-3", "op-4"], "oldest first"


async def test_the_journal_moves_by_compare_and_swap(store: Store) -> None:
    first = await store.add_operation(operation(1))
    moved = replace(first, cursor=2, copied=7, waiting_for="SP sp-a")
    await store.update_operation(moved, expect_cursor=0)
    await store.update_operation(moved, expect_cursor=0)  # the answer was lost
    for stale in (replace(first, cursor=1), replace(moved, state="done")):
        with pytest.raises(VsError) as refused:
            await store.update_operation(stale, expect_cursor=0)
        assert refused.value.kind is Kind.STALE
    with pytest.raises(VsError):
        await store.update_operation(operation(9), expect_cursor=0)
    done = replace(moved, cursor=5, state="done", ended=9.5)
    await store.update_operation(done, expect_cursor=2)
    assert list(await store.operations()) == [done]


async def test_one_volume_is_found_by_its_id(store: Store) -> None:
    assert await store.volume(DB) is None
    for name in ("db", "other"):
        await store.put_volume(volume(name), expect_version=None, who="me", why="create")
    await store.put_volume(volume(version=2), expect_version=1, who="me", why="grow")
    assert await store.volume(DB) == volume(version=2)
    await store.delete_volume(DB, who="me")
    assert await store.volume(DB) is None
    assert list(await store.volumes()) == [volume("other")]


async def test_what_was_refused_is_not_seen(store: Store) -> None:
    await store.put_volume(volume(), expect_version=None, who="me", why="create")
    with pytest.raises(VsError):
        await store.put_volume(volume(version=5), expect_version=4, who="me", why="late")
    with pytest.raises(VsError):
        await store.put_volume(
            replace(volume(), id=VolumeId("o")), expect_version=None, who="me", why="twin"
        )
    assert await store.volume(DB) == volume()
    assert list(await store.volumes()) == [volume()]


async def test_a_list_of_volumes_is_the_same_object_until_one_changes(store: Store) -> None:
    await store.put_volume(volume(), expect_version=None, who="me", why="create")
    before = await store.volumes()
    assert await store.volumes() is before
    await store.put_volume(volume(version=2), expect_version=1, who="me", why="grow")
    assert await store.volumes() is not before and list(before) == [volume()]


async def test_an_operation_is_found_by_its_id_and_by_its_request(store: Store) -> None:
    first = await store.add_operation(operation(1, "r"))
    plain = await store.add_operation(operation(2))
    assert await store.operation("op-1") == first == await store.operation_of("r")
    assert await store.operation("op-2") == plain
    assert await store.operation("op-9") is None
    assert await store.operation_of("q") is None and await store.operation_of("") is None


async def test_open_operations_are_those_without_an_end(store: Store) -> None:
    for number in (1, 2, 3):
        await store.add_operation(operation(number))
    ended = replace(operation(2), state="done", ended=5.0)
    await store.update_operation(ended, expect_cursor=0)
    assert [o.id for o in await store.operations(open_only=True)] == ["op-1", "op-3"]
    assert [o.id for o in await store.operations()] == ["op-1", "op-2", "op-3"]


async def test_only_the_last_ended_operations_are_kept(store: Store) -> None:
    await store.add_operation(operation(0, "still open"))
    for number in range(1, KEPT + 3):
        added = await store.add_operation(operation(number, f"r-{number}"))
        await store.update_operation(replace(added, state="done", ended=9.0), expect_cursor=0)
    kept = [o.id for o in await store.operations()]
    assert kept == ["op-0", *(f"op-{number}" for number in range(3, KEPT + 3))]
    assert await store.operation_of("r-1") is None and await store.operation("op-2") is None
    assert await store.operation_of("still open") is not None
    # The request of one that is forgotten makes a new one.
    assert (await store.add_operation(operation(9, "r-1"))).id == "op-9"


SECRET = Chap("host", "a-secret-of-a-host")
ACCESS = Access(2, False, (Entry("iqn.2026-11.test:host", SECRET),))


async def test_who_may_use_a_volume_is_kept_with_its_history(store: Store) -> None:
    with pytest.raises(VsError, match="VS3047"):
        await store.put_access(DB, ACCESS, expect_version=0, who="me", what="allowed")
    await store.put_volume(volume(), expect_version=None, who="me", why="create")
    assert await store.access(DB) == OPEN
    await store.put_access(DB, ACCESS, expect_version=0, who="me", what="allowed")
    assert await store.access(DB) == ACCESS
    with pytest.raises(VsError, match="VS3047"):
        await store.put_access(DB, ACCESS, expect_version=0, who="you", what="allowed")
    later = replace(ACCESS, version=5, entries=())
    await store.put_access(DB, later, expect_version=2, who="you", what="denied")
    await store.delete_volume(DB, who="me")
    assert await store.access(DB) == OPEN
    told = [(row.version, row.who, row.what) for row in await store.access_history(DB)]
    assert told == [(2, "me", "allowed"), (5, "you", "denied")]


def files(root: Path) -> list[Path]:
    return list(root.iterdir())


async def test_secrets_are_in_files_that_their_owner_reads_alone(tmp_path: Path) -> None:
    # As an older version may have left it.
    (tmp_path / "store.sqlite").touch(0o644)
    store = SqliteStore(tmp_path)
    await store.put_volume(volume(), expect_version=None, who="me", why="create")
    await store.put_access(DB, ACCESS, expect_version=0, who="me", what="allowed")
    modes = {path.name: path.stat().st_mode & 0o777 for path in files(tmp_path)}
    assert len(modes) >= 3 and set(modes.values()) == {0o600}, modes
    await store.close()
    store = SqliteStore(tmp_path)
    assert await store.access(DB) == ACCESS
    await store.delete_volume(DB, who="me")
    await store.close()
    left = b"".join(path.read_bytes() for path in files(tmp_path))
    assert SECRET.secret.encode() not in left
