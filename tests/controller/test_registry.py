"""Who is up, by this machine's clock; who is master, under which term."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.controller.world import A, B, C, World
from tests.fakes import unreachable, until
from vswitchd.controller.registry import DOWN_AFTER
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import SpId, T1Id
from vswitchd.model.view import NO_TROUBLE, Complaint, Trouble


async def test_an_sp_is_up_while_it_is_heard() -> None:
    world = World()
    controller = await world.controller()
    registry = controller.registry
    assert registry.up == [A, B, C]
    life = world.sps.lives[B].incarnation
    world.clock.now += DOWN_AFTER - 1
    assert registry.heartbeat(B, life)
    world.clock.now += 2
    assert registry.up == [B]
    assert not registry.heartbeat(B, "another life"), "it must register again"
    assert not registry.heartbeat(SpId("nobody"), life)


async def test_silence_is_noticed_and_another_becomes_master() -> None:
    world = World()
    controller = await world.controller()
    registry = controller.registry
    assert registry.master == A
    term = registry.election.term
    assert await world.store.term() == term, "durable before it is used"
    world.sps.down.add(A)
    watch = asyncio.create_task(registry.run())

    await until("b to be master", lambda: registry.master == B)
    watch.cancel()
    assert not registry.is_up(A)
    assert registry.election.term > term
    assert await world.store.term() == registry.election.term
    assert world.sps.lives[B].mvsm_term == registry.election.term
    world.sps.down.clear()
    await controller.join(A)
    assert registry.master == B, "no second one"
    await until("a to be told", lambda: world.sps.lives[A].mvsm_term is None)


async def test_each_controller_has_terms_of_its_own() -> None:
    world = World()
    first = await world.controller()
    term = first.registry.election.term
    await first.stop()
    second = await world.controller()
    assert second.registry.election.term > term
    with pytest.raises(VsError) as over:
        await world.sps.connect(world.sps.record(A), "", term).view()
    assert over.value.kind is Kind.STALE


async def test_a_new_life_is_remembered_and_told() -> None:
    world = World()
    controller = await world.controller()
    controller.joined.clear()
    world.sps.restart(C)
    assert not controller.registry.heartbeat(C, world.sps.lives[C].incarnation)
    await controller.join(C)
    assert controller.joined == [C]
    assert world.sps.record(C) in list(await world.store.processors())
    assert controller.registry.heartbeat(C, world.sps.lives[C].incarnation)


async def test_who_is_known_is_known_after_a_restart_and_up_when_heard() -> None:
    world = World()
    await (await world.controller()).stop()
    world.sps.down = {A, B, C}
    controller = await world.controller()
    assert sorted(controller.registry.records) == [A, B, C]
    assert controller.registry.up == [] and controller.registry.master is None


async def test_another_clusters_sp_is_refused() -> None:
    world = World()
    controller = await world.controller()
    stranger = replace(world.sps.record(A), sp=SpId("x"))
    with pytest.raises(VsError) as refused:
        await controller.registry.register(stranger, "another cluster")
    assert refused.value.kind is Kind.UNSAFE
    assert SpId("x") not in controller.registry.records


async def test_a_first_contact_learns_the_cluster_and_is_not_an_sp_yet() -> None:
    world = World()
    controller = await world.controller()
    first = replace(world.sps.record(A), sp=SpId("x"), vsm_address="")
    await controller.registry.register(first, "")
    assert SpId("x") not in controller.registry.records


async def test_an_sp_that_is_forgotten_has_to_join_anew() -> None:
    world = World()
    controller = await world.controller()
    await controller.inventory.remove_processor(C)
    assert controller.registry.up == [A, B]
    assert [record.sp for record in await world.store.processors()] == [A, B]
    assert not controller.registry.heartbeat(C, world.sps.lives[C].incarnation)
    with pytest.raises(VsError) as unknown:
        controller.registry.record(C)
    assert unknown.value.kind is Kind.NOT_FOUND


async def test_a_former_master_that_hangs_holds_nobody_up() -> None:
    world = World()
    controller = await world.controller()
    world.sps.refuses[A, "deactivate_mvsm"] = unreachable(A)
    world.sps.refuses[A, "activate_mvsm"] = unreachable(A)
    watch = asyncio.create_task(controller.registry.run())
    world.sps.restart(A)
    await controller.join(A)  # asked again, and does not answer

    await until("b to be master", lambda: controller.registry.master == B)
    watch.cancel()


async def test_a_term_that_was_not_made_durable_is_said_to_nobody() -> None:
    """Found by the simulation: with the store full, the term was given away all the same, and
    the next controller gave it to another SP."""
    world = World()
    first = await world.controller()
    said = first.registry.election.term
    world.store.full = True
    world.sps.restart(A)  # the master: it would be designated anew, under a new term
    with pytest.raises(VsError):
        await first.join(A)
    assert first.registry.election.term == said == await world.store.term()
    assert max(world.sps.terms.values()) == said
    await first.stop()
    world.store.full = False
    second = await world.controller()
    assert second.registry.election.term > said
    masters = [sp for sp, life in world.sps.lives.items() if life.mvsm_term is not None]
    assert masters == [second.registry.master]


async def test_legs_fail_by_the_owners_word_and_are_in_doubt_at_the_epoch_of_now() -> None:
    world = World()
    volume = await world.with_volume("mirror(a, b)")
    controller = await world.controller()
    registry = controller.registry
    first, second = (t1.id for t1 in volume.t1s)

    def complains(sp: SpId, complaint: Complaint) -> Trouble:
        assert registry.heartbeat(sp, world.sps.lives[sp].incarnation, complaint)
        return registry.trouble(volume)

    assert volume.owner == A
    fails = Complaint(frozenset({second, T1Id("another volume's")}))
    assert complains(B, fails) == NO_TROUBLE, "it may have been cut off from everybody"
    assert complains(A, fails) == Trouble(frozenset({second}))
    assert complains(A, Complaint()) == NO_TROUBLE
    older = Complaint(doubtful={first: volume.epoch - 1, second: volume.epoch})
    assert complains(A, older) == Trouble(doubtful=frozenset({second}))
    await registry.lose(A)
    assert registry.trouble(volume) == NO_TROUBLE
