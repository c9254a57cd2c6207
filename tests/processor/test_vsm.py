"""What the VSM answers: whom it obeys, what it keeps, and that asking twice is asking once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_engine import Device, Disk
from tests.processor.conftest import (
    DEVICE,
    SP,
    URI,
    VOLUME,
    Life,
    caller,
    mirror,
    t1,
    t2,
)
from vswitchd.errors import Kind, VsError
from vswitchd.model.access import OPEN
from vswitchd.model.codec import t1_to_json
from vswitchd.model.objects import DeviceId, Hole, Leaf, LegState, SpId, T1Id, VolumeId
from vswitchd.model.view import CopyMode, CopyState
from vswitchd.processor import files
from vswitchd.processor.files import write_durably

IN, OUT = LegState.IN_SYNC, LegState.WRITE_ONLY
MIB = 1 << 20


async def refused(code: str, work: Awaitable[object]) -> VsError:
    with pytest.raises(VsError) as error:
        await work
    assert error.value.code == code, str(error.value)
    return error.value


# Whom it obeys.


async def test_another_clusters_controller_is_refused(life: Life) -> None:
    error = await refused("VS6021", life.vsm.put_t1(caller(cluster="c-2"), t1(), 1))
    assert error.kind is Kind.UNSAFE
    assert not life.engine.calls[1:]


async def test_a_term_that_is_over_is_refused_even_after_a_restart(
    life: Life, live: Callable[[], Life]
) -> None:
    await life.vsm.put_t1(caller(7), t1(), 1)
    await refused("VS3023", life.vsm.put_t1(caller(6), t1(), 1))
    life.crash()
    again = live()
    await again.vsm.start()
    await refused("VS3023", again.vsm.delete_t1(caller(6), T1Id("t-0"), 9))
    await again.vsm.delete_t1(caller(7), T1Id("t-0"), 9)


async def test_a_call_whose_term_ends_while_it_waits_is_refused(life: Life) -> None:
    """It waits for another call of its object; meanwhile a new controller has spoken."""
    async with life.vsm._turn(caller(1), "t-0"):
        late = asyncio.create_task(life.vsm.put_t1(caller(1), t1(), 1))
        await asyncio.sleep(0)
        life.vsm.activate_mvsm(caller(2))
    await refused("VS3023", late)
    assert not [call for call in life.engine.calls if call[0] == "t1_put"]


async def test_locks_of_objects_are_forgotten(life: Life) -> None:
    for n in range(20):
        await life.vsm.fence_t1(caller(), T1Id(f"t-{n}"), 1, 1)
    assert not life.vsm._locks


# The master.


async def test_only_the_active_mvsm_of_that_term_determines(
    life: Life, live: Callable[[], Life]
) -> None:
    def determine(term: int) -> Callable[[], object]:
        return lambda: life.vsm.determine(caller(term), None, None)

    with pytest.raises(VsError, match="VS3026"):
        determine(1)()
    life.vsm.activate_mvsm(caller(1))
    assert determine(1)() == ()
    with pytest.raises(VsError, match="VS3026"):
        determine(2)()
    with pytest.raises(VsError, match="VS3023"):
        determine(1)()
    life.vsm.activate_mvsm(caller(2))
    assert (await life.vsm.view()).mvsm_active
    life.crash()
    again = live()
    assert not (await again.vsm.view()).mvsm_active
    assert (await again.vsm.view()).term == 2


# T2 objects.


async def test_staging_and_activating_twice_is_doing_it_once(life: Life) -> None:
    await life.vsm.put_t1(caller(), t1(), 1)
    for _ in range(2):
        await life.vsm.stage_t2(caller(), t2(1), OPEN)
    staged = await life.vsm.view()
    assert [(v.t2, v.active) for v in staged.t2s] == [(t2(1), False)]
    for _ in range(2):
        await life.vsm.activate_t2(caller(), VOLUME, 1)
    # Staged again after the swap, as a controller does that crashed between the two.
    await life.vsm.stage_t2(caller(), t2(1), OPEN)
    await life.vsm.activate_t2(caller(), VOLUME, 1)
    view = await life.vsm.view()
    assert [(v.t2, v.active, v.resync_percent) for v in view.t2s] == [(t2(1), True, 100)]


async def test_a_view_may_be_of_one_volume(life: Life) -> None:
    other = VolumeId("v-2")
    theirs = replace(t1("t-9", slot=1), volume=other)
    for one in (t1(), theirs):
        await life.vsm.put_t1(caller(), one, 1)
    for tree in (t2(1), replace(t2(1, Leaf(theirs.id, theirs.size), name="o"), volume=other)):
        await life.vsm.stage_t2(caller(), tree, OPEN)
        await life.vsm.activate_t2(caller(), tree.volume, 1)
        await life.vsm.stage_t2(caller(), replace(tree, version=2), OPEN)
        await life.vsm.start_copy(
            caller(), tree.volume, 1, (1,), start=0, rate=0, adaptive=True, mode=CopyMode.FULL
        )
    whole, part = await life.vsm.view(), await life.vsm.view(other)
    assert (len(whole.t1s), len(whole.t2s), len(whole.copies), whole.other_t1s) == (2, 4, 2, 0)
    assert [held.t1 for held in part.t1s] == [theirs] and part.other_t1s == 1
    assert [(held.t2.version, held.active) for held in part.t2s] == [(1, True), (2, False)]
    assert part.t2s_of(other) == list(part.t2s) == whole.t2s_of(other)
    assert list(part.t1s) == list(whole.t1s_of(other)) and not part.t1s_of(VOLUME)
    assert [copy.volume for copy in part.copies] == [other]
    assert part.devices == whole.devices, "free space is everybody's"
    none = await life.vsm.view(VolumeId("v-3"))
    assert (none.t1s, none.t2s, none.copies, none.other_t1s) == ((), (), (), 2)


async def test_the_same_version_with_another_peers_address_is_taken(life: Life) -> None:
    await life.push(t2(1))
    moved = t2(1)
    moved.peers[SpId("sp-b")] = "127.0.0.1:2"
    await life.push(moved)
    found = (await life.vsm.view()).t2(VOLUME)
    assert found is not None
    assert found.t2 == moved
    assert life.engine.volumes[VOLUME]["peers"] == {"sp-b": "127.0.0.1:2"}


async def test_what_is_not_staged_or_is_older_is_refused(life: Life) -> None:
    await refused("VS3025", life.vsm.activate_t2(caller(), VOLUME, 1))
    await life.push(t2(2))
    await refused("VS3024", life.vsm.stage_t2(caller(), t2(1), OPEN))
    await refused("VS3025", life.vsm.activate_t2(caller(), VOLUME, 3))
    other = t2(3)
    wrong = type(other)(
        **{f: getattr(other, f) for f in other.__slots__ if f != "sp"}, sp=SpId("x")
    )
    await refused("VS1031", life.vsm.stage_t2(caller(), wrong, OPEN))


async def test_a_late_staging_does_not_displace_a_later_tree(life: Life) -> None:
    await life.push(t2(1))
    await life.vsm.stage_t2(caller(), t2(3), OPEN)
    await refused("VS3024", life.vsm.stage_t2(caller(), t2(2), OPEN))
    await life.vsm.activate_t2(caller(), VOLUME, 3)


async def test_a_swap_that_does_not_drain_changes_nothing(life: Life) -> None:
    await life.push(t2(1))
    await life.vsm.stage_t2(caller(), t2(2), OPEN)
    life.engine.busy.add(VOLUME)
    error = await refused("VS5010", life.vsm.activate_t2(caller(), VOLUME, 2))
    assert error.kind is Kind.TIMEOUT
    found = (await life.vsm.view()).t2(VOLUME)
    assert found is not None
    assert found.t2.version == 1
    life.engine.busy.clear()
    await life.vsm.activate_t2(caller(), VOLUME, 2)


async def test_removing_is_for_good_and_may_be_repeated(
    life: Life, live: Callable[[], Life]
) -> None:
    await life.push(t2(1))
    await life.vsm.stage_t2(caller(), t2(2), OPEN)
    for _ in range(2):
        await life.vsm.remove_t2(caller(), VOLUME, 9)
    assert (await life.vsm.view()).t2s == ()
    life.crash()
    again = live()
    await again.vsm.start()
    assert (await again.vsm.view()).t2s == ()


async def test_a_reference_in_use_is_not_dropped(life: Life) -> None:
    await life.push(t2(1))
    await refused("VS3021", life.vsm.drop_reference(caller(), VOLUME, T1Id("t-0")))
    await life.push(t2(2, Hole(4 * MIB)))
    await life.vsm.drop_reference(caller(), VOLUME, T1Id("t-0"))


async def test_copies_are_in_the_view(life: Life) -> None:
    await refused(
        "VS3028",
        life.vsm.start_copy(
            caller(), VOLUME, 1, (1,), start=0, rate=0, adaptive=True, mode=CopyMode.FULL
        ),
    )
    await life.push(t2(1, mirror(IN, OUT)))
    await life.vsm.start_copy(
        caller(), VOLUME, 1, (1,), start=0, rate=0, adaptive=True, mode=CopyMode.FULL
    )
    (copy,) = (await life.vsm.view()).copies
    assert (copy.volume, copy.path, copy.state) == (VOLUME, (1,), CopyState.RUNNING)
    assert 0 < copy.copied < copy.total
    await life.vsm.stop_copy(caller(), VOLUME, (1,))
    assert (await life.vsm.view()).copies == ()


# Requests that come late: a network may deliver one long after its sender gave it up.


async def test_a_tree_that_was_removed_does_not_come_back(
    life: Life, live: Callable[[], Life]
) -> None:
    await life.push(t2(1))
    await life.vsm.stage_t2(caller(), t2(2), OPEN)
    await life.vsm.remove_t2(caller(), VOLUME, 3)
    await refused("VS3024", life.vsm.stage_t2(caller(), t2(2), OPEN))
    await refused("VS3025", life.vsm.activate_t2(caller(), VOLUME, 1))
    life.crash()
    again = live()
    await again.vsm.start()
    await refused("VS3024", again.vsm.stage_t2(caller(), t2(3), OPEN))
    await again.push(t2(4))
    assert again.engine.volumes


async def test_a_removal_does_not_hit_a_later_tree(life: Life) -> None:
    await life.push(t2(5))
    await refused("VS3024", life.vsm.remove_t2(caller(), VOLUME, 4))
    assert life.engine.volumes
    await life.vsm.remove_t2(caller(), VOLUME, 5)
    assert not life.engine.volumes


async def test_an_object_that_is_in_use_anew_is_not_deleted(life: Life) -> None:
    await life.vsm.put_t1(caller(), t1(), 1)
    await life.vsm.fence_t1(caller(), t1().id, 4, 1)
    await refused("VS3022", life.vsm.delete_t1(caller(), t1().id, 3))
    assert (await life.vsm.view()).t1s
    await life.vsm.delete_t1(caller(), t1().id, 4)
    assert not (await life.vsm.view()).t1s


async def test_a_copy_for_another_tree_is_not_begun(life: Life) -> None:
    """Its checkpoint would be another leg's."""
    await life.push(t2(2, mirror(IN, OUT)))
    late = life.vsm.start_copy(
        caller(), VOLUME, 1, (1,), start=4096, rate=0, adaptive=True, mode=CopyMode.FULL
    )
    await refused("VS3028", late)
    assert not (await life.vsm.view()).copies


# Restarts.


async def test_what_was_committed_is_served_again_and_staged_objects_are_kept(
    life: Life, live: Callable[[], Life]
) -> None:
    await life.vsm.put_t1(caller(), t1(), 1)
    await life.push(t2(1))
    await life.vsm.stage_t2(caller(), t2(2), OPEN)
    life.crash()
    again = live()
    await again.vsm.start()
    view = await again.vsm.view()
    assert [(v.t2.version, v.active) for v in view.t2s] == [(1, True), (2, False)]
    assert [v.t1 for v in view.t1s] == [t1()]
    assert view.incarnation == "life-1"
    await again.vsm.activate_t2(caller(), VOLUME, 2)


async def test_an_owner_that_did_not_end_cleanly_resyncs(
    life: Life, live: Callable[[], Life]
) -> None:
    await life.push(t2(1, mirror(IN, IN)))
    life.crash()
    again = live()
    await again.vsm.start()
    assert again.engine.calls[-1] == ("t2_activate", VOLUME, 1, True)
    view = (await again.vsm.view()).t2(VOLUME)
    assert view is not None
    assert view.resync_percent == 0
    assert await again.vsm.resyncing()


async def test_after_a_clean_end_nothing_is_resynced(life: Life, live: Callable[[], Life]) -> None:
    await life.push(t2(1, mirror(IN, IN)))
    life.end()
    again = live()
    await again.vsm.start()
    assert again.engine.calls[-1] == ("t2_activate", VOLUME, 1, False)
    assert not await again.vsm.resyncing()
    # Served again, so it may be unclean again.
    again.crash()
    third = live()
    await third.vsm.start()
    assert third.engine.calls[-1] == ("t2_activate", VOLUME, 1, True)


async def test_many_mirrors_are_remembered_at_once(
    life: Life, live: Callable[[], Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = [VolumeId(f"v-{number}") for number in range(20)]
    for volume in volumes:
        tree = replace(t2(1, mirror(IN, IN), name=volume), volume=volume)
        await life.vsm.stage_t2(caller(), tree, OPEN)
        await life.vsm.activate_t2(caller(), volume, 1)
    life.end()
    again = live()
    written: list[Path] = []

    def write(path: Path, text: str) -> None:
        assert not again.engine.volumes, "before the first of them is served"
        written.append(path)
        write_durably(path, text)

    monkeypatch.setattr(files, "write_durably", write)
    await again.vsm.start()
    assert len(again.engine.volumes) == len(volumes) and len(written) == 1
    assert set(again.state.identity.mirrored) == set(volumes)


async def test_only_a_mirrors_owner_can_be_unclean(life: Life, live: Callable[[], Life]) -> None:
    await life.push(t2(1))
    await life.push(t2(2, mirror(IN, IN), owner=SpId("sp-b")))
    life.crash()
    again = live()
    await again.vsm.start()
    assert again.engine.calls[-1] == ("t2_activate", VOLUME, 2, False)


async def test_a_leg_that_comes_into_sync_after_an_unclean_end_is_made_alike_once_more(
    life: Life, live: Callable[[], Life]
) -> None:
    """Its copy may have ended before the crash, which left writes on some legs only."""
    await life.push(t2(1, mirror(IN, OUT)))
    life.crash()
    again = live()
    await again.vsm.start()
    await again.push(t2(2, mirror(IN, IN)))
    assert again.engine.calls[-1] == ("t2_activate", VOLUME, 2, True)
    await again.push(t2(3, mirror(IN, IN)))
    assert again.engine.calls[-1] == ("t2_activate", VOLUME, 3, False)


async def test_one_volume_that_cannot_be_served_does_not_stop_the_rest(
    life: Life, live: Callable[[], Life]
) -> None:
    other = VolumeId("v-2")
    await life.push(t2(1))
    await life.push(replace(t2(1, name="other"), volume=other))
    life.crash()
    again = live()
    # The engine has something newer under that id, and refuses.
    again.engine.volumes[VOLUME] = {"version": 9, "epoch": 9}
    await again.vsm.start()
    assert again.engine.volumes[other]["name"] == "other"


# Devices.


async def test_a_device_that_is_away_is_down_and_comes_back(
    life: Life, live: Callable[[], Life], disk: Disk
) -> None:
    await life.vsm.put_t1(caller(), t1(), 1)
    life.crash()
    away = disk.devices.pop(URI)
    again = live()
    await again.vsm.start()
    (device,) = (await again.vsm.view()).devices
    assert (device.id, device.uri, device.up) == (DEVICE, URI, False)
    assert "no such file" in device.error
    # What lies on it may not be taken for fenced.
    await refused("VS2020", again.vsm.fence_t1(caller(), T1Id("t-0"), 2, 1))
    await again.vsm.reopen()
    assert not (await again.vsm.view()).devices[0].up
    disk.devices[URI] = away
    await again.vsm.reopen()
    view = await again.vsm.view()
    assert view.devices[0].up
    assert [v.t1.id for v in view.t1s] == ["t-0"]
    await again.vsm.fence_t1(caller(), T1Id("t-0"), 2, 1)


@pytest.mark.parametrize("now", [Device(), Device("c-1", "d-9")])
async def test_a_device_is_not_replaced_by_what_stands_in_its_place(
    life: Life, live: Callable[[], Life], disk: Disk, now: Device
) -> None:
    """Neither by a blank one, which must not get the old one's label, nor by another one."""
    life.crash()
    disk.devices[URI] = now
    again = live()
    await again.vsm.start()
    (device,) = (await again.vsm.view()).devices
    assert (device.id, device.up) == (DEVICE, False)
    with suppress(VsError):
        await again.vsm.add_device(caller(), URI, 0, DEVICE, direct=False, checksums=False)
    assert now.id != DEVICE


async def test_a_direct_device_is_direct_after_a_restart(
    life: Life, live: Callable[[], Life]
) -> None:
    uri = "file:/fast"
    added = await life.vsm.add_device(
        caller(), uri, 1 << 30, DeviceId("d-f"), direct=True, checksums=False
    )
    assert added.direct
    life.crash()
    again = live()
    await again.vsm.start()
    assert {d.id: d.direct for d in (await again.vsm.view()).devices} == {
        DEVICE: False,
        "d-f": True,
    }
    await again.vsm.remove_device(caller(), DeviceId("d-f"))
    await again.vsm.add_device(caller(), uri, 0, DeviceId("d-f"), direct=False, checksums=False)
    again.crash()
    third = live()
    await third.vsm.start()
    assert not any(device.direct for device in (await third.vsm.view()).devices)


async def test_a_device_with_checksums_is_known_as_such_while_it_is_down(
    life: Life, live: Callable[[], Life], disk: Disk
) -> None:
    uri, name = "file:/summed", DeviceId("d-s")
    added = await life.vsm.add_device(caller(), uri, 1 << 30, name, direct=False, checksums=True)
    assert added.checksums
    life.crash()
    held = disk.devices.pop(uri)
    again = live()
    await again.vsm.start()
    down = (await again.vsm.view()).device(name)
    assert down is not None
    assert (down.up, down.checksums) == (False, True)
    disk.devices[uri] = held
    await again.vsm.reopen()
    up = (await again.vsm.view()).device(name)
    assert up is not None
    assert (up.up, up.checksums) == (True, True)


async def test_a_removed_device_is_forgotten(life: Life, live: Callable[[], Life]) -> None:
    await life.vsm.put_t1(caller(), t1(), 1)
    await refused("VS3021", life.vsm.remove_device(caller(), DEVICE))
    await life.vsm.delete_t1(caller(), T1Id("t-0"), 9)
    await life.vsm.remove_device(caller(), DEVICE)
    life.crash()
    again = live()
    await again.vsm.start()
    assert (await again.vsm.view()).devices == ()


async def test_a_device_of_another_cluster_is_refused(life: Life, disk: Disk) -> None:
    disk.devices["file:/x"] = Device("c-9", "d-9")
    adding = life.vsm.add_device(
        caller(), "file:/x", 0, DeviceId("d-1"), direct=False, checksums=False
    )
    error = await refused("VS6020", adding)
    assert "c-9" in error.message


async def test_adopting_makes_an_object_this_sps(life: Life, disk: Disk) -> None:
    theirs = t1_to_json(t1(home=SpId("sp-b")))
    disk.devices[URI].t1s["t-0"] = (theirs, 1)
    assert (await life.vsm.view()).t1s == ()
    await refused("VS2020", life.vsm.adopt_t1(caller(), t1("t-9"), 2))
    for _ in range(2):
        await life.vsm.adopt_t1(caller(), t1(), 2)
    (held,) = (await life.vsm.view()).t1s
    assert (held.t1.home, held.epoch) == (SP, 2)
