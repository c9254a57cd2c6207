"""One test for each row of the list of claims, against real processes.

Numbers in a test's name are the row's own first, then those of the same thing said as a method.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import grpc
import pytest

from tests.e2e.agree import no_dangling, shape
from tests.e2e.cluster import MIB, Cluster, leaves
from tests.e2e.nbd import Client
from tests.e2e.process import wait_for
from tests.e2e.trail import Trail, trail
from vswitchd.rpc import common_pb2, operation_pb2, volume_pb2, vsm_pb2

SIZE = 8 * MIB
DATA = b"what a host wrote".ljust(4096, b".")

_names = itertools.count()


@pytest.fixture
def name(shared: Cluster) -> Iterator[str]:
    """A name for a volume, which is deleted again if the test made it."""
    fresh = f"claim{next(_names)}"
    yield fresh
    if any(v.record.name == fresh for v in shared.volumes()):
        shared.ctl("volume", "delete", fresh)


def create(cluster: Cluster, name: str, layout: str, *also_on: str) -> str:
    """Creates a volume, serves it on further SPs; its id."""
    cluster.ctl("volume", "create", name, "--size", str(SIZE), "--layout", layout)
    for sp in also_on:
        cluster.ctl("volume", "serve", name, "--on", sp)
    return cluster.volume(name).record.volume_id


def host(cluster: Cluster, name: str, sp: str) -> Client:
    """A host's connection to a volume at an SP."""
    return Client(cluster.sps[sp].addresses["--nbd"], name)


def t2(cluster: Cluster, volume_id: str, sp: str) -> common_pb2.T2Object | None:
    """The active T2 object of a volume at an SP, by that SP's own word."""
    return next(
        (v.t2 for v in cluster.view(sp).t2s if v.active and v.t2.volume_id == volume_id), None
    )


def references(cluster: Cluster, volume_id: str, sp: str) -> dict[str, str]:
    """T1 id -> 'LRN' or 'RRN', as the T2 object at `sp` refers to it."""
    found = t2(cluster, volume_id, sp)
    assert found is not None, f"{sp} holds no T2 object of {volume_id}"
    return {leaf.t1_id: "LRN" if leaf.home == sp else "RRN" for leaf in leaves(found.root)}


def t1_ids(cluster: Cluster, sp: str) -> set[str]:
    """The T1 objects at an SP, by its own word."""
    return {t1.t1.t1_id for t1 in cluster.view(sp).t1s}


def only_t1(cluster: Cluster, name: str) -> common_pb2.T1Object:
    """The one T1 object of a volume."""
    (t1,) = cluster.volume(name).record.t1s
    return t1


def in_order(found: Trail, *steps: tuple[str, int]) -> None:
    """The (words, position) pairs must rise."""
    for (one, before), (other, after) in itertools.pairwise(steps):
        assert before < after, f"{other} came before {one} in\n{found}"


def test_claim_01_30_59_60_objects_change_while_the_volume_runs(shared: Cluster, name: str) -> None:
    volume_id = create(shared, name, "sp-a/a0", "sp-b")
    with host(shared, name, "sp-a") as client:
        client.write(MIB, DATA)
        client.flush()
        # The device holds the block, where the T1 object says.
        extent = only_t1(shared, name).extents[0]
        with (shared.devices / "a0.img").open("rb") as device:
            device.seek(extent.offset + MIB)
            assert device.read(len(DATA)) == DATA
        for layout in ("mirror(sp-a/a0, sp-b/b0)", "stripe(sp-b/b0, sp-c/c0)", "sp-c/c0"):
            before = t2(shared, volume_id, "sp-a")
            shared.ctl("volume", "apply", name, "--layout", layout)
            assert t2(shared, volume_id, "sp-a") != before
            no_dangling(shared.views())
            # The same connection uses the updated volume.
            assert client.read(MIB, len(DATA)) == DATA
            client.write(MIB, DATA)
        extents = [e for t1 in shared.volume(name).record.t1s for e in t1.extents]
        with (shared.devices / "c0.img").open("rb") as device:
            client.flush()
            device.seek(extents[0].offset + MIB)
            assert device.read(len(DATA)) == DATA
        shared.ctl("volume", "grow", name, "--size", str(2 * SIZE))
        client.write(2 * SIZE - 4096, DATA)
        assert client.read(2 * SIZE - 4096, 4096) == DATA


def test_claim_02_the_update_follows_a_request(shared: Cluster, name: str) -> None:
    create(shared, name, "sp-a/a0")
    before = shared.volume(name).record
    count = len(shared.operations())
    with host(shared, name, "sp-a") as client:
        client.write(0, DATA)
    assert shared.volume(name).record == before, "nobody asked, yet it changed"
    request = volume_pb2.GrowVolumeRequest(request_id=f"{name}-grow", name=name, size=2 * SIZE)
    operation = shared.api.volumes.GrowVolume(request, timeout=30)
    again = shared.api.volumes.GrowVolume(request, timeout=30)
    assert again.operation_id == operation.operation_id, "one request is one update"
    shared.settled()
    assert len(shared.operations()) == count + 1
    after = shared.volume(name).record
    assert after.size == 2 * SIZE and after.version > before.version
    ended = shared.operation(operation.operation_id)
    assert ended.request_id == f"{name}-grow" and ended.kind == "grow"


def test_claim_03_37_an_update_adds_removes_or_moves_an_object(shared: Cluster, name: str) -> None:
    volume_id = create(shared, name, "sp-a/ab")
    t1 = only_t1(shared, name).t1_id
    assert t2(shared, volume_id, "sp-c") is None
    shared.ctl("volume", "serve", name, "--on", "sp-c")
    assert t2(shared, volume_id, "sp-c") is not None, "added"
    shared.ctl("volume", "unserve", name, "--on", "sp-c")
    assert t2(shared, volume_id, "sp-c") is None, "removed"
    assert t1 in t1_ids(shared, "sp-a")
    shared.ctl("volume", "move", name, "--from", "sp-a", "--to", "sp-b")
    assert t1 in t1_ids(shared, "sp-b") - t1_ids(shared, "sp-a"), "moved, its device shared"
    with host(shared, name, "sp-a") as client:
        client.write(0, DATA)
        shared.ctl("volume", "move", name, "--from", "sp-b", "--to", "sp-c")
        moved = only_t1(shared, name)
        assert moved.t1_id in t1_ids(shared, "sp-c"), "moved by a copy"
        assert t1 not in t1_ids(shared, "sp-b")
        assert client.read(0, len(DATA)) == DATA


def test_claim_04_34_35_36_who_is_connected_to_what(shared: Cluster, name: str) -> None:
    volume_id = create(shared, name, "stripe(sp-a/a0, sp-b/b0)", "sp-c")
    views = shared.views()
    for sp, view in views.items():
        reached = {device.device_id for device in view.devices if device.up}
        for t1 in view.t1s:
            assert {e.device_id for e in t1.t1.extents} <= reached, f"{sp} cannot reach its T1"
    serving = set(shared.volume(name).record.serving)
    for sp in shared.sps:
        with Client(shared.sps[sp].addresses["--nbd"]) as client:
            assert (name in client.list()) == (sp in serving)
        assert (t2(shared, volume_id, sp) is not None) == (sp in serving)
    for sp in serving:
        found = t2(shared, volume_id, sp)
        assert found is not None and found.root == shared.volume(name).record.root
        assert [leaf.home for leaf in leaves(found.root)] == ["sp-a", "sp-b"]


def test_claim_05_31_38_vbm_restructures_the_tree(shared: Cluster, name: str) -> None:
    create(shared, name, "sp-a/a0")
    old = shared.volume(name).record
    shared.ctl("volume", "apply", name, "--layout", "mirror(stripe(sp-a/a0, sp-b/b0), sp-c/c0)")
    new = shared.volume(name).record
    assert new.version > old.version
    first, second = new.root.mirror.legs
    assert [leaf.home for leaf in leaves(first.node)] == ["sp-a", "sp-b"]
    assert first.node.WhichOneof("kind") == "stripe" and second.node.WhichOneof("kind") == "leaf"
    assert {t1.t1_id for t1 in new.t1s} == {leaf.t1_id for leaf in leaves(new.root)}


def test_claim_06_32_vcm_assigns_the_objects_to_sps(shared: Cluster, name: str) -> None:
    volume_id = create(shared, name, "concat(sp-b/b0, sp-c/c0)")
    record = shared.volume(name).record
    for t1 in record.t1s:
        assert [sp for sp in shared.sps if t1.t1_id in t1_ids(shared, sp)] == [t1.home]
    assert [t1.home for t1 in record.t1s] == ["sp-b", "sp-c"]
    assert [sp for sp in shared.sps if t2(shared, volume_id, sp)] == sorted(record.serving)


def test_claim_33_an_update_changes_at_least_one_definition(shared: Cluster, name: str) -> None:
    create(shared, name, "sp-a/ab")

    def definitions() -> set[str]:
        record = shared.volume(name).record
        found = {str(v.t2) for sp in shared.sps for v in shared.view(sp).t2s if v.active}
        return found | {str(shape(t1)) for t1 in record.t1s}

    for request in (
        ("serve", name, "--on", "sp-c"),
        ("grow", name, "--size", str(2 * SIZE)),
        ("mirror", "add", name, "--sp", "sp-b"),
        ("mirror", "remove", name, "--leg", "sp-b"),
        ("move", name, "--from", "sp-a", "--to", "sp-b"),
        ("apply", name, "--layout", "stripe(sp-a, sp-b)"),
        ("unserve", name, "--on", "sp-c"),
    ):
        before = definitions()
        shared.ctl("volume", *request)
        assert definitions() != before, request


def test_claim_07_39_40_new_t2_where_the_t1_is_has_an_lrn(shared: Cluster, name: str) -> None:
    volume_id = create(shared, name, "sp-a/a0")
    shared.ctl("volume", "serve", name, "--on", "sp-b")
    shared.ctl("volume", "unserve", name, "--on", "sp-a")
    assert t2(shared, volume_id, "sp-a") is None
    t1 = only_t1(shared, name).t1_id
    shared.ctl("volume", "serve", name, "--on", "sp-a")
    assert references(shared, volume_id, "sp-a") == {t1: "LRN"}


def test_claim_08_41_the_same_t2_has_an_rrn_to_what_is_elsewhere(
    shared: Cluster, name: str
) -> None:
    volume_id = create(shared, name, "mirror(sp-a/a0, sp-b/b0)")
    homes = {t1.t1_id: t1.home for t1 in shared.volume(name).record.t1s}
    found = references(shared, volume_id, "sp-a")
    assert {found[t1] for t1, home in homes.items() if home == "sp-a"} == {"LRN"}
    assert {found[t1] for t1, home in homes.items() if home == "sp-b"} == {"RRN"}


def test_claim_09_42_43_new_t1_where_a_t2_is_gets_an_lrn(shared: Cluster, name: str) -> None:
    volume_id = create(shared, name, "sp-a/a0", "sp-b")
    old = only_t1(shared, name).t1_id
    with trail(shared) as found:
        shared.ctl("volume", "mirror", "add", name, "--sp", "sp-b")
    (new,) = {t1.t1_id for t1 in shared.volume(name).record.t1s} - {old}
    assert references(shared, volume_id, "sp-b") == {old: "RRN", new: "LRN"}
    in_order(
        found,
        ("the T1", found.first("put_t1", "sp-b", new)),
        ("the T2", found.first("activate_t2", "sp-b", volume_id)),
    )


def test_claim_10_44_45_new_t1_elsewhere_gets_an_rrn(shared: Cluster, name: str) -> None:
    volume_id = create(shared, name, "sp-a/a0")
    old = only_t1(shared, name).t1_id
    with trail(shared) as found:
        shared.ctl("volume", "mirror", "add", name, "--sp", "sp-c")
    (new,) = {t1.t1_id for t1 in shared.volume(name).record.t1s} - {old}
    assert references(shared, volume_id, "sp-a") == {old: "LRN", new: "RRN"}
    in_order(
        found,
        ("the T1", found.first("put_t1", "sp-c", new)),
        ("the T2", found.first("activate_t2", "sp-a", volume_id)),
    )


def test_claim_11_46_47_t2_objects_go_before_t1_objects(shared: Cluster, name: str) -> None:
    volume_id = create(shared, name, "mirror(sp-a/a0, sp-b/b0)", "sp-c")
    t1s = {t1.t1_id for t1 in shared.volume(name).record.t1s}
    with trail(shared) as found:
        shared.ctl("volume", "delete", name)
    gone = [found.first("remove_t2", sp, volume_id) for sp in ("sp-a", "sp-b", "sp-c")]
    freed = [found.first("delete_t1", None, t1) for t1 in t1s]
    in_order(found, ("the last T2", max(gone)), ("the first T1", min(freed)))
    assert all(t1s.isdisjoint(t1_ids(shared, sp)) for sp in shared.sps)


def test_claim_12_48_a_t1_that_another_sp_refers_to_stays(shared: Cluster, name: str) -> None:
    volume_id = create(shared, name, "sp-a/a0", "sp-b")
    t1 = only_t1(shared, name).t1_id
    with trail(shared) as found, host(shared, name, "sp-b") as client:
        client.write(0, DATA)
        shared.ctl("volume", "unserve", name, "--on", "sp-a")
        assert client.read(0, len(DATA)) == DATA
    assert t2(shared, volume_id, "sp-a") is None
    assert t1 in t1_ids(shared, "sp-a") and not found.of("delete_t1", None, t1)
    assert references(shared, volume_id, "sp-b") == {t1: "RRN"}


def test_claim_13_49_50_references_go_before_the_t1(shared: Cluster, name: str) -> None:
    volume_id = create(shared, name, "mirror(sp-a/a0, sp-b/b0)", "sp-c")
    leaving = next(t1.t1_id for t1 in shared.volume(name).record.t1s if t1.home == "sp-b")
    with trail(shared) as found:
        shared.ctl("volume", "mirror", "remove", name, "--leg", "sp-b")
    freed = found.first("delete_t1", "sp-b", leaving)
    for sp in ("sp-a", "sp-b", "sp-c"):
        swapped = found.first("activate_t2", sp, volume_id)
        in_order(found, (f"the T2 at {sp}", swapped), ("the T1", freed))
        assert leaving not in references(shared, volume_id, sp)
    assert leaving not in t1_ids(shared, "sp-b")


@pytest.fixture(scope="module")
def moved(shared: Cluster) -> Iterator[tuple[Trail, str, str, operation_pb2.Operation]]:
    """A T1 object moved from sp-a to sp-b, which both reach its device, sp-c serving too.

    The calls made, the T1's id, the volume's id, and the operation.
    """
    volume_id = create(shared, "moved", "sp-a/ab", "sp-b", "sp-c")
    t1 = only_t1(shared, "moved").t1_id
    assert references(shared, volume_id, "sp-b") == {t1: "RRN"}
    with trail(shared) as found, host(shared, "moved", "sp-c") as client:
        client.write(0, DATA)
        operation = shared.ctl("volume", "move", "moved", "--from", "sp-a", "--to", "sp-b").json
        assert client.read(0, len(DATA)) == DATA
    yield found, t1, volume_id, shared.operation(operation["operation_id"])
    shared.ctl("volume", "delete", "moved")


Moved = tuple[Trail, str, str, operation_pb2.Operation]


def test_claim_14_51_52_first_new_trees_without_the_reference(moved: Moved) -> None:
    found, t1, volume_id, _ = moved
    for sp in ("sp-a", "sp-b", "sp-c"):
        swaps = found.of("activate_t2", sp, volume_id)
        assert len(swaps) == 2, f"one tree without, one with the reference:\n{found}"
        in_order(
            found,
            (f"the tree without at {sp}", swaps[0]),
            ("the dropped reference", found.first("drop_reference", "sp-b", t1)),
        )


def test_claim_15_53_then_the_second_drops_its_remote_reference(moved: Moved) -> None:
    found, t1, _, _ = moved
    in_order(
        found,
        ("the dropped reference", found.first("drop_reference", "sp-b", t1)),
        ("the copied object", found.first("adopt_t1", "sp-b", t1)),
    )


def test_claim_16_54_then_the_object_goes_to_the_second(shared: Cluster, moved: Moved) -> None:
    found, t1, volume_id, _ = moved
    adopted = found.first("adopt_t1", "sp-b", t1)
    in_order(
        found,
        ("sp-a's fence", found.first("fence_t1", "sp-a", t1)),
        ("the copied object", adopted),
        ("the tree with an LRN", found.last("activate_t2", "sp-b", volume_id)),
        ("sp-a's object deleted", found.first("delete_t1", "sp-a", t1)),
    )
    assert t1 in t1_ids(shared, "sp-b") and t1 not in t1_ids(shared, "sp-a")


def test_claim_17_55_then_a_tree_with_a_local_reference(shared: Cluster, moved: Moved) -> None:
    found, t1, volume_id, _ = moved
    in_order(
        found,
        ("the copied object", found.first("adopt_t1", "sp-b", t1)),
        ("the tree with an LRN", found.last("activate_t2", "sp-b", volume_id)),
    )
    assert references(shared, volume_id, "sp-b") == {t1: "LRN"}


def test_claim_18_56_and_to_a_third_a_tree_with_a_remote_one(shared: Cluster, moved: Moved) -> None:
    found, t1, volume_id, operation = moved
    in_order(
        found,
        ("the tree with an LRN", found.last("activate_t2", "sp-b", volume_id)),
        ("the third SP's", found.last("activate_t2", "sp-c", volume_id)),
    )
    third = t2(shared, volume_id, "sp-c")
    assert third is not None
    assert [(leaf.t1_id, leaf.home) for leaf in leaves(third.root)] == [(t1, "sp-b")]
    assert references(shared, volume_id, "sp-c") == {t1: "RRN"}
    assert all(step.state == operation_pb2.STEP_STATE_DONE for step in operation.steps)


def test_claim_19_plans_are_made_from_what_sps_say(cluster: Cluster) -> None:
    """An SP that cannot be asked stops the planning of what concerns it; asked, it is planned."""
    create(cluster, "db", "mirror(sp-a/a0, sp-b/b0)")
    cluster.sps["sp-b"].kill()
    request = volume_pb2.GrowVolumeRequest(request_id="g", name="db", size=2 * SIZE, dry_run=True)

    def refused() -> bool:
        try:
            cluster.api.volumes.GrowVolume(request, timeout=30)
        except grpc.RpcError as error:
            assert "sp-b" in str(error.details())
            return True
        return False

    def planned() -> operation_pb2.Operation | None:
        try:
            return cluster.api.volumes.GrowVolume(request, timeout=30)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
            return None

    wait_for("the plan to be refused", refused)
    cluster.sps["sp-b"].start()
    cluster.wait_joined()
    # It may have been given up meanwhile, and has then to get what it lacks.
    wait_for("all of it to be back", lambda: not cluster.volume("db").conditions, 60)
    plan = wait_for("it to be planned", planned)
    assert plan.state == operation_pb2.OPERATION_STATE_PLANNED
    # What the view holds comes out in the plan: the T1 objects where they are now.
    touched = {(s.sp, s.object) for s in plan.steps if s.kind in ("put_t1", "fence_t1")}
    for sp in ("sp-a", "sp-b"):
        (t1,) = t1_ids(cluster, sp)
        assert any(where == sp and t1 in what for where, what in touched), plan.steps


def test_claim_20_the_view_says_who_holds_what(shared: Cluster, name: str) -> None:
    volume_id = create(shared, name, "stripe(sp-a/a0, sp-b/b0)", "sp-c")
    record = shared.volume(name).record
    assert {(t1.t1_id, t1.home) for t1 in record.t1s} == {
        (t1.t1_id, sp) for sp in shared.sps for t1 in record.t1s if t1.t1_id in t1_ids(shared, sp)
    }
    told = {seen.sp: seen for seen in shared.volume(name).t2s}
    assert set(told) == set(record.serving)
    for sp, seen in told.items():
        assert seen == t2(shared, volume_id, sp)


def test_claim_21_22_each_vsm_manages_its_local_version(cluster: Cluster) -> None:
    volume_id = create(cluster, "db", "mirror(sp-a/a0, sp-b/b0)", "sp-c")
    caller = cluster.caller()
    before = cluster.views()
    cluster.controller.kill()
    for sp in cluster.sps:
        stub, channel = cluster.vsm(sp)
        with channel:
            alone = stub.GetView(vsm_pb2.GetViewRequest(caller=caller), timeout=10)
        assert alone.sp == sp
        assert [v.t2 for v in alone.t2s] == [v.t2 for v in before[sp].t2s]
        assert all(v.t2.sp == sp for v in alone.t2s)
        assert {t1.t1.home for t1 in alone.t1s} <= {sp}
        with host(cluster, "db", sp) as client:
            client.write(0, DATA)
    # What it manages survives its own death, without anybody's help.
    cluster.sps["sp-c"].kill()
    cluster.sps["sp-c"].start()
    with host(cluster, "db", "sp-c") as client:
        assert client.read(0, len(DATA)) == DATA
    stub, channel = cluster.vsm("sp-c")
    with channel:
        again = stub.GetView(vsm_pb2.GetViewRequest(caller=caller), timeout=10)
    assert [v.t2.volume_id for v in again.t2s if v.active] == [volume_id]


def test_claim_23_26_27_one_master_is_designated_by_activating_its_mvsm(cluster: Cluster) -> None:
    def active() -> list[str]:
        return [sp for sp, view in cluster.views().items() if view.mvsm_active]

    first = cluster.master()
    assert active() == [first]
    caller = cluster.caller()
    for sp in set(cluster.sps) - {first}:
        stub, channel = cluster.vsm(sp)
        with channel, pytest.raises(grpc.RpcError) as refused:
            stub.Determine(vsm_pb2.DetermineRequest(caller=caller), timeout=10)
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    term = cluster.status().term
    cluster.sps[first].kill()

    def designated() -> str:
        found = next((p.sp for p in cluster.processors() if p.master and p.up), "")
        return found if found != first else ""

    second = wait_for("another master", designated, 30.0)
    assert cluster.view(second).mvsm_active
    assert cluster.status().term > term
    cluster.sps[first].start()
    cluster.wait_joined()
    assert active() == [second]


def test_claim_24_57_the_updated_tree_goes_to_the_master(shared: Cluster, name: str) -> None:
    master = shared.master()
    create(shared, name, "sp-a/a0")
    with trail(shared) as found:
        shared.ctl("volume", "mirror", "add", name, "--sp", "sp-b")
    asked = found.first("determine", master)
    assert {found.calls[index].sp for index in found.of("determine")} == {master}
    pushes = [i for i, call in enumerate(found.calls) if call.name in ("put_t1", "stage_t2")]
    in_order(found, ("the master's answer", asked), ("the first push", min(pushes)))
    # And the answer names the affected objects.
    record = shared.volume(name).record
    target = volume_pb2.Volume(record=record).record
    target.serving.append("sp-c")
    target.version += 1
    target.epoch += 1
    stub, channel = shared.vsm(master)
    with channel:
        answer = stub.Determine(
            vsm_pb2.DetermineRequest(caller=shared.caller(), current=record, target=target),
            timeout=10,
        )
    added = [(a.sp, a.kind) for a in answer.affected if a.change == vsm_pb2.CHANGE_ADDED]
    assert added == [("sp-c", vsm_pb2.OBJECT_KIND_T2)]
    assert {a.object_id for a in answer.affected} >= {record.volume_id}


def test_claim_25_58_the_assignment_follows_from_the_answer(shared: Cluster, name: str) -> None:
    """What is pushed is what the master named, on the SPs that it named, and nothing else."""
    volume_id = create(shared, name, "sp-a/a0", "sp-b")
    before = shared.volume(name).record
    with trail(shared) as found:
        shared.ctl("volume", "serve", name, "--on", "sp-c")
    after = shared.volume(name).record
    stub, channel = shared.vsm(shared.master())
    with channel:
        answer = stub.Determine(
            vsm_pb2.DetermineRequest(caller=shared.caller(), current=before, target=after),
            timeout=10,
        )
    named = {a.sp for a in answer.affected if a.kind == vsm_pb2.OBJECT_KIND_T2}
    staged = {found.calls[i].sp for i in found.of("stage_t2", None, volume_id)}
    assert staged == named == {"sp-a", "sp-b", "sp-c"}
    assert not found.of("put_t1") and not found.of("delete_t1"), str(found)


def test_claim_28_vcm_updates_the_assignments_on_the_request(shared: Cluster, name: str) -> None:
    volume_id = create(shared, name, "mirror(sp-a/ab, sp-c/c0)")
    stays = next(t1 for t1 in shared.volume(name).record.t1s if t1.home == "sp-c")
    shared.ctl("volume", "move", name, "--from", "sp-a", "--to", "sp-b")
    shared.ctl("volume", "serve", name, "--on", "sp-b")
    record = shared.volume(name).record
    assert sorted(t1.home for t1 in record.t1s) == ["sp-b", "sp-c"]
    assert shape(next(t1 for t1 in record.t1s if t1.home == "sp-c")) == shape(stays)
    found = references(shared, volume_id, "sp-b")
    assert sorted(found.values()) == ["LRN", "RRN"] and found[stays.t1_id] == "RRN"


def test_claim_29_vbm_creates_objects_on_a_users_request(shared: Cluster, name: str) -> None:
    held = {sp: t1_ids(shared, sp) for sp in shared.sps}
    done = shared.ctl("volume", "create", name, "--size", str(SIZE), "--layout", "mirror(2)").json
    assert done["kind"] == "create"
    record = shared.volume(name).record
    new = {sp: t1_ids(shared, sp) - held[sp] for sp in shared.sps}
    assert {t1 for ids in new.values() for t1 in ids} == {t1.t1_id for t1 in record.t1s}
    assert len(record.t1s) == 2 and len({t1.home for t1 in record.t1s}) == 2
    for sp in record.serving:
        assert t2(shared, record.volume_id, sp) is not None
        with host(shared, name, sp) as client:
            assert client.size == SIZE and client.read(0, 4096) == bytes(4096)
