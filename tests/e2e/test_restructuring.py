"""Restructuring that can be seen beforehand, stopped, slowed down, and survives the store's loss:
real processes, hosts that write all the while."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import grpc
import pytest

from tests.e2e import iscsi
from tests.e2e.cluster import MIB, Cluster
from tests.e2e.nbd import Client
from tests.e2e.process import wait_for
from tests.e2e.stamps import Stamper, Writer
from tests.e2e.test_requests import fio
from vswitchd.rpc import cluster_pb2, operation_pb2, volume_pb2

SIZE = 32 * MIB
LAYOUTS = 30


def writing(cluster: Cluster) -> Writer:
    """A host that stamps and checks the first blocks of `db` through sp-a."""
    return Writer(Stamper(0, 24, seed=5), [(cluster.sps["sp-a"].addresses["--nbd"], "db")])


def random_layout(rng: random.Random) -> str:
    """Any that the cluster has room for."""

    def sp() -> str:
        return rng.choice(("sp-a", "sp-b", "sp-c", "any"))

    chunk = rng.choice(("", ", chunk=4K", ", chunk=16K", ", chunk=256K"))
    return rng.choice(
        (
            sp(),
            f"{rng.choice(('sp-a', 'sp-b'))}/ab",
            f"mirror({sp()}, {sp()})",
            f"mirror({sp()}, {sp()}, {sp()})",
            f"stripe({sp()}, {sp()}{chunk})",
            f"stripe({sp()}, {sp()}, {sp()}{chunk})",
            f"mirror(stripe({sp()}, {sp()}{chunk}), {sp()})",
            f"stripe(mirror({sp()}, {sp()}), {sp()}{chunk})",
            f"concat({sp()}:8M, {sp()})",
            f"concat({sp()}:8M, mirror({sp()}, {sp()}))",
        )
    )


def applied(cluster: Cluster, name: str, layout: str) -> operation_pb2.Operation:
    """Plans a layout, looks at it, applies just that, and waits for its end."""
    ask = volume_pb2.ChangeLayoutRequest(name=name, layout=layout, dry_run=True)
    plan = cluster.api.volumes.ChangeLayout(ask, timeout=30)
    assert plan.state == operation_pb2.OPERATION_STATE_PLANNED
    request = volume_pb2.ApplyPlanRequest(name=name, plan_id=plan.operation_id)
    begun = cluster.api.volumes.ApplyPlan(request, timeout=30)
    assert [step.object for step in begun.steps] == [step.object for step in plan.steps]

    def ended() -> operation_pb2.Operation | None:
        found = cluster.operation(begun.operation_id)
        return found if found.HasField("ended") else None

    done = wait_for(f"{layout}", ended, 60)
    assert done.state == operation_pb2.OPERATION_STATE_DONE, done
    return done


def test_thirty_random_layouts_under_fio(cluster: Cluster, tmp_path: Path) -> None:
    """fio writes and verifies all the while; not one error, and each layout comes out."""
    cluster.ctl("volume", "create", "db", "--size", str(SIZE), "--on", "sp-a,sp-b")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    copied = 0
    with (
        fio("via-a", cluster.uri("db", "sp-a"), 0, tmp_path),
        fio("via-b", cluster.uri("db", "sp-b"), SIZE // 2, tmp_path),
    ):
        for _ in range(LAYOUTS):
            copied += applied(cluster, "db", random_layout(rng)).total_bytes
            printed = cluster.volume("db").layout
            same = volume_pb2.ChangeLayoutRequest(name="db", layout=printed, dry_run=True)
            again = cluster.api.volumes.ChangeLayout(same, timeout=30)
            assert not again.steps, f"{printed} typed back is a change"
    assert copied > 0
    assert cluster.ctl("fsck").json["findings"] == []


def test_a_copy_is_paused_slowed_and_cancelled(cluster: Cluster) -> None:
    cluster.ctl("volume", "create", "db", "--size", "96M", "--layout", "sp-a/a0")
    with Client(cluster.sps["sp-a"].addresses["--nbd"], "db") as host:
        for at in range(MIB, 96 * MIB, MIB):
            host.write(at, bytes([at // MIB + 1]) * MIB)
        with writing(cluster) as stamper:
            ran = cluster.ctl(
                *("volume", "mirror", "add", "db", "--sp", "sp-b", "--rate", "8M", "--no-wait")
            )
            name = str(ran.json["operation_id"])
            wait_for("bytes", lambda: cluster.operation(name).copied_bytes > 4 * MIB)
            cluster.ctl("operation", "pause", name)
            wait_for("it to rest", lambda: _state(cluster, name) == "PAUSED")
            rested = cluster.operation(name).copied_bytes
            assert not cluster.view("sp-a").copies
            before = stamper.writes
            wait_for("hosts to go on", lambda: stamper.wrote_more_than(before + 5))
            # A restart of the controller leaves it resting.
            cluster.controller.kill()
            cluster.controller.start()
            cluster.wait_joined()
            assert _state(cluster, name) == "PAUSED"
            cluster.ctl("operation", "resume", name)
            cluster.ctl("operation", "throttle", name, "--rate", "none", "--priority", "9")
            wait_for("its end", lambda: _state(cluster, name) == "DONE", 60)
            assert cluster.operation(name).copied_bytes >= rested
            layout = cluster.volume("db").layout
            # Another one is cancelled in its middle, and leaves nothing.
            third = cluster.ctl(
                *("volume", "mirror", "add", "db", "--sp", "sp-c", "--rate", "4M", "--no-wait")
            )
            name = str(third.json["operation_id"])
            wait_for("bytes", lambda: cluster.operation(name).copied_bytes > MIB)
            cluster.ctl("operation", "cancel", name)
            wait_for("its end", lambda: _state(cluster, name) == "CANCELLED", 60)
            assert cluster.volume("db").layout == layout
            assert not cluster.view("sp-c").t1s
            for at in range(MIB, 96 * MIB, MIB):
                assert host.read(at, 4096) == bytes([at // MIB + 1]) * 4096


def _state(cluster: Cluster, name: str) -> str:
    number = cluster.operation(name).state
    return operation_pb2.OperationState.Name(number).removeprefix("OPERATION_STATE_")


def test_a_stale_plan_is_refused_with_exit_4(cluster: Cluster) -> None:
    cluster.ctl("volume", "create", "db", "--size", "8M", "--layout", "sp-a/a0")
    plan = cluster.ctl("volume", "plan", "db", "--layout", "mirror(sp-a, sp-b)").json
    cluster.ctl("volume", "serve", "db", "--on", "sp-c")
    late = cluster.ctl("volume", "apply", "db", "--plan", plan["operation_id"], status=4)
    assert "VS3075" in late.err
    history = cluster.ctl("volume", "history", "db").json["versions"]
    assert [one["version"] for one in history] == ["1", "2"]
    assert "@" in history[0]["who"], "who asked is remembered"
    told = cluster.ctl("explain", "db").json["explanations"]
    assert [one["kind"] for one in told] == ["volume"]


def test_an_sp_is_drained_while_hosts_write(cluster: Cluster) -> None:
    cluster.ctl("volume", "create", "db", "--size", "16M", "--layout", "mirror(sp-a/a0, sp-b/b0)")
    cluster.ctl("volume", "create", "log", "--size", "16M", "--layout", "sp-b/b0")
    with writing(cluster):
        cluster.ctl("sp", "drain", "sp-b")
        assert not cluster.view("sp-b").t1s and not cluster.view("sp-b").t2s
        cluster.controller.kill()
        cluster.controller.start()
        cluster.wait_joined()
        refused = cluster.ctl("volume", "serve", "db", "--on", "sp-b", status=4)
        assert "VS3078" in refused.err
        cluster.ctl("sp", "undrain", "sp-b")
        cluster.ctl("volume", "serve", "db", "--on", "sp-b")
    assert cluster.ctl("fsck").json["findings"] == []


def test_a_lost_store_is_recovered_while_hosts_write(cluster: Cluster) -> None:
    cluster.ctl("volume", "create", "db", "--size", "16M", "--layout", "mirror(sp-a/a0, sp-b/ab)")
    cluster.ctl("volume", "create", "log", "--size", "8M", "--layout", "stripe(sp-b, sp-c)")
    secret = cluster.root / "secret"
    secret.write_text("a secret of a host")
    allow = ("volume", "access", "allow", "db", "--initiator", "iqn.2026-11.test:host")
    admitted = cluster.ctl(*allow, "--chap-user", "host", "--chap-secret-file", str(secret)).json
    before = {volume.record.name: volume for volume in cluster.volumes()}
    with writing(cluster) as stamper:
        cluster.controller.kill()
        shutil.rmtree(cluster.root / "controller")
        cluster.controller.start()

        def recoverable() -> cluster_pb2.RecoverResponse | None:
            try:
                found = cluster.api.cluster.Recover(
                    cluster_pb2.RecoverRequest(dry_run=True), timeout=20
                )
            except grpc.RpcError:
                return None
            return found if len(found.sps) == 3 else None

        shown = wait_for("the SPs to come", recoverable)
        assert {one.name for one in shown.volumes} == {"db", "log"}
        assert not cluster.volumes(), "a dry run changes nothing"
        cluster.ctl("recover", "--no-wait")
        cluster.settled()
        writes = stamper.writes
        wait_for("hosts to go on", lambda: stamper.wrote_more_than(writes + 5))
        for name, volume in before.items():
            now = cluster.volume(name).record
            was = volume.record
            assert (now.size, list(now.serving)) == (was.size, list(was.serving))
            assert {t1.t1_id for t1 in now.t1s} == {t1.t1_id for t1 in was.t1s}
            assert now.version > was.version and now.epoch > was.epoch
        assert cluster.ctl("volume", "access", "list", "db").json == admitted
        target = iscsi.Initiator(
            cluster.sps["sp-a"].addresses["--iscsi"], "db", chap=("host", "a secret of a host")
        )
        with target:
            target.ready()
        cluster.ctl("volume", "grow", "db", "--size", "24M")
        applied(cluster, "db", "mirror(sp-a, sp-c)")
    assert cluster.ctl("fsck").json["findings"] == []
    with pytest.raises(grpc.RpcError, match="no SP of another cluster"):
        cluster.api.cluster.Recover(cluster_pb2.RecoverRequest(), timeout=20)
