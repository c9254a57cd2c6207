"""Who may use a volume, from the store to the SPs: pushed, missed, and caught up with."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.controller.world import A, B, C, Controller, World
from tests.fakes import unreachable
from vswitchd.errors import VsError
from vswitchd.model.access import Access, Chap, Entry
from vswitchd.model.objects import VolumeId
from vswitchd.restructure.requests import AddLeg, Serve

HOST, OTHER = "iqn.2026-11.test:host", "iqn.2026-11.test:other"
CHAP = Chap("host", "hidden-secret-1")


async def begun(layout: str = "mirror(a, b)") -> tuple[World, Controller, VolumeId]:
    world = World()
    volume = await world.with_volume(layout)
    return world, await world.controller(), volume.id


async def test_a_change_is_in_the_store_and_at_every_sp_when_it_returns() -> None:
    world, controller, volume = await begun()
    told = await controller.admission.allow("v1", HOST, CHAP, None, "me")
    assert told.access == Access(1, True, (Entry(HOST, CHAP),))
    assert told.held == {A: 1, B: 1}
    assert world.accesses(volume) == {A: told.access, B: told.access}
    # Said twice, it has happened once.
    assert (await controller.admission.allow("v1", HOST, CHAP, None, "you")).access == told.access
    assert [row.who for row in await world.store.access_history(volume)] == ["me"]
    assert "access_changed" in controller.events
    await controller.stop()


async def test_the_last_one_is_not_denied_by_the_way() -> None:
    _, controller, _ = await begun()
    admission = controller.admission
    await admission.allow("v1", HOST, CHAP, None, "me")
    with pytest.raises(VsError, match="VS6050"):
        await admission.deny("v1", HOST, whoever=False, who="me")
    # Who is not there is not there already.
    assert (await admission.deny("v1", OTHER, whoever=False, who="me")).access.version == 1
    assert (await admission.deny("v1", HOST, whoever=True, who="me")).access.entries == ()
    await controller.stop()


async def test_an_sp_that_begins_to_serve_has_it_with_its_tree() -> None:
    world, controller, volume = await begun()
    await controller.admission.set_nbd("v1", False, "me")
    record = await controller.ended(await controller.change(Serve(C)))
    assert record.state == "done", record
    assert world.accesses(volume)[C] == Access(1, nbd=False)
    await controller.stop()


async def test_an_sp_that_missed_a_change_is_told_when_it_is_back() -> None:
    world, controller, volume = await begun()
    world.sps.down.add(B)
    told = await controller.admission.allow("v1", HOST, CHAP, None, "me")
    assert told.held == {A: 1, B: None}
    world.sps.down.discard(B)
    await controller.reconciler.reconcile()
    assert world.accesses(volume)[B] == told.access
    assert (await controller.admission.told("v1")).held == {A: 1, B: 1}
    await controller.stop()


async def test_an_sp_is_told_while_an_operation_goes_on() -> None:
    world, controller, volume = await begun("a")
    world.sps.hold_copies = True
    copying = asyncio.create_task(controller.change(AddLeg("", B)))
    await world.copying()
    world.sps.refuses[A, "set_access"] = unreachable(A)
    told = await controller.admission.allow("v1", HOST, CHAP, None, "me")
    assert told.held == {A: None}
    del world.sps.refuses[A, "set_access"]
    await controller.reconciler.reconcile()
    assert world.accesses(volume)[A] == told.access
    world.sps.hold_copies = False
    await controller.ended(await copying)
    await controller.stop()


async def test_a_later_word_than_the_stores_holds_until_the_next() -> None:
    world, controller, volume = await begun()
    await controller.admission.allow("v1", HOST, CHAP, None, "me")
    later = Access(7, False, (Entry(OTHER),))
    world.sps.accesses[A, volume] = later
    await controller.reconciler.reconcile()
    assert world.accesses(volume)[A] == later
    assert (await controller.admission.told("v1")).held[A] == 7
    told = await controller.admission.set_nbd("v1", False, "me")
    assert told.access == Access(8, False, (Entry(HOST, CHAP),))
    assert set(world.accesses(volume).values()) == {told.access}
    await controller.stop()


async def test_a_change_in_the_middle_of_staging_reaches_the_sp() -> None:
    world, controller, volume = await begun()
    fake = type(world.sps.connect(world.sps.record(C), "", 0))
    stage, late = fake.stage_t2, replace(Access(1), nbd=False)

    async def interrupted(self: object, t2: object, access: Access) -> None:
        await stage(self, t2, access)  # type: ignore[arg-type]
        if (await world.store.access(volume)).version == 0:
            # The change is made between the SP's answer and the look at the store.
            await world.store.put_access(volume, late, expect_version=0, who="me", what="late")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake, "stage_t2", interrupted)
        await controller.ended(await controller.change(Serve(C)))
    assert world.accesses(volume)[C] == late
    await controller.stop()
