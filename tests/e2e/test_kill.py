"""`kill -9` of one process at a random moment of a random request, and what must be true after.

VSWITCHD_SEED replays a run, VSWITCHD_KILL_ROUNDS sets its length (`make soak`).
"""

from __future__ import annotations

import os
import random
import secrets
import threading
from dataclasses import dataclass
from typing import Any

import grpc

from tests.e2e import agree
from tests.e2e.cluster import MIB, Cluster, leaves
from tests.e2e.nbd import Client
from tests.e2e.process import Daemon, wait_for
from tests.e2e.stamps import BLOCK, Stamper, Writer
from vswitchd.rpc import operation_pb2, volume_pb2

ROUNDS = int(os.environ.get("VSWITCHD_KILL_ROUNDS", "50"))
SEED = int(os.environ.get("VSWITCHD_SEED", "0")) or secrets.randbelow(1 << 31) + 1

NAME = "db"
SIZE = 8 * MIB
#: Seconds after the request was sent in which the kill falls.
MOMENT = 0.4
SPS = ("sp-a", "sp-b", "sp-c")
SHAPES = {
    "mirror": ("mirror(sp-a/a0, sp-b/b0)", "mirror(sp-b/b0, sp-c/c0)"),
    "stripe": ("stripe(sp-a/a0, sp-b/b0, chunk=64K)", "stripe(sp-c/c0, sp-a/a0, chunk=4K)"),
    "concat": ("concat(sp-a/a0, sp-c/c0)", "concat(sp-b/b0, sp-a/a0)"),
    "leaf": ("sp-a/ab", "sp-b/ab", "sp-c/c0"),
}


@dataclass(frozen=True)
class Ask:
    """A request on its way: the rpc's name, the message, and the volume that it is about."""

    method: str
    message: Any
    volume: str = NAME

    def __str__(self) -> str:
        return f"{self.method}({str(self.message).strip().replace(chr(10), ' ')})"


def choose(rng: random.Random, record: volume_pb2.Volume, request_id: str) -> Ask:
    """A request that the volume's present state allows."""
    volume = record.record
    root = volume.root.WhichOneof("kind")
    homes = [leaf.home for leaf in leaves(volume.root)]
    idle = [sp for sp in SPS if sp not in volume.serving]
    head: dict[str, Any] = {"request_id": request_id, "name": NAME}
    may: list[Ask] = [
        Ask(
            "ChangeLayout",
            volume_pb2.ChangeLayoutRequest(**head, layout=rng.choice(layouts)),
        )
        for kind, layouts in SHAPES.items()
        if kind != root
    ]
    source = rng.choice(homes)
    target = rng.choice([sp for sp in SPS if sp not in homes] or [""])
    if target:
        may.append(
            Ask("MoveVolume", volume_pb2.MoveVolumeRequest(**head, from_sp=source, to_sp=target))
        )
        may.append(Ask("AddMirrorLeg", volume_pb2.AddMirrorLegRequest(**head, sp=target)))
    if root == "mirror":
        may.append(Ask("RemoveMirrorLeg", volume_pb2.RemoveMirrorLegRequest(**head, leg="0")))
    if idle:
        may.append(Ask("ServeVolume", volume_pb2.ServeVolumeRequest(**head, sp=rng.choice(idle))))
    if len(volume.serving) > 1:
        # sp-a stays: the writer needs one address that is always right.
        leaving = rng.choice([sp for sp in volume.serving if sp != "sp-a"])
        may.append(Ask("UnserveVolume", volume_pb2.UnserveVolumeRequest(**head, sp=leaving)))
    if volume.size < 2 * SIZE:
        may.append(Ask("GrowVolume", volume_pb2.GrowVolumeRequest(**head, size=volume.size + MIB)))
    other = {**head, "name": f"{NAME}-{request_id}"}
    may.append(
        Ask("CreateVolume", volume_pb2.CreateVolumeRequest(**other, size=MIB), other["name"])
    )
    return rng.choice(may)


def core(volume: volume_pb2.Volume | None) -> object:
    """What must be as before if a request had no effect: all but version and epoch."""
    if volume is None:
        return None
    record = volume.record
    shapes = sorted(agree.shape(t1) for t1 in record.t1s)
    return record.size, str(record.root), shapes, sorted(record.serving)


def is_done(ask: Ask, before: volume_pb2.Volume | None, after: volume_pb2.Volume | None) -> bool:
    """Whether `after` is what the request asks for, whole."""
    if after is None:
        return False
    record, m = after.record, ask.message
    root = record.root.WhichOneof("kind")
    homes = [leaf.home for leaf in leaves(record.root)]
    legs = list(record.root.mirror.legs)
    in_sync = all(leg.state == 1 for leg in legs)
    if ask.method == "CreateVolume":
        return bool(record.size == m.size)
    assert before is not None
    was = before.record
    match ask.method:
        case "ChangeLayout":
            kind = m.layout.partition("(")[0]
            return bool(root == (kind if "(" in m.layout else "leaf") and in_sync)
        case "MoveVolume":
            return bool(m.to_sp in homes and m.from_sp not in homes and in_sync)
        case "AddMirrorLeg":
            old = len(was.root.mirror.legs) or 1
            return bool(len(legs) == old + 1 and m.sp in homes and in_sync)
        case "RemoveMirrorLeg":
            old = len(was.root.mirror.legs)
            return len(legs) == old - 1 or (old == 2 and root != "mirror")
        case "ServeVolume":
            return bool(m.sp in record.serving)
        case "UnserveVolume":
            return bool(m.sp not in record.serving)
        case "GrowVolume":
            return bool(record.size == m.size)
    raise AssertionError(ask.method)


def find(cluster: Cluster, name: str) -> volume_pb2.Volume | None:
    """The volume of that name, or None."""
    return next((v for v in cluster.volumes() if v.record.name == name), None)


def made(cluster: Cluster, request_id: str) -> operation_pb2.Operation | None:
    """The journalled operation of a request, or None if it never got that far."""
    return next((o for o in cluster.operations() if o.request_id == request_id), None)


def one_round(cluster: Cluster, rng: random.Random, number: int, stamper: Stamper) -> str:
    """Asks, kills, restarts, judges; what happened, in a line."""
    request_id = f"r{number}"
    start = find(cluster, NAME)
    assert start is not None
    ask = choose(rng, start, request_id)
    before = find(cluster, ask.volume)
    victim: Daemon = rng.choice(cluster.daemons)
    moment = rng.random() * MOMENT

    call = getattr(cluster.api.volumes, ask.method).future(ask.message, timeout=30.0)
    # The moment of the kill is the one thing here that is meant to depend on the clock.
    threading.Event().wait(moment)
    victim.kill()
    victim.start()
    cluster.wait_joined()
    try:
        call.result()
        answer = "answered"
    except grpc.RpcError as error:
        answer = error.code().name
    cluster.settled(60.0)
    # One that took long to come back was left behind meanwhile: its legs catch up first.
    wait_for("all legs", lambda: not any(v.conditions for v in cluster.volumes()), 90.0)
    cluster.settled(60.0)

    operation = made(cluster, request_id)
    after = find(cluster, ask.volume)
    story = f"{number}: {ask}, {victim.name} killed at {moment * 1000:.0f} ms, {answer}"
    if operation is not None and operation.state == operation_pb2.OPERATION_STATE_DONE:
        assert is_done(ask, before, after), f"{story}: said done\n{before}\n{after}"
        story += ", done"
    else:
        assert core(after) == core(before), f"{story}: not done, yet changed\n{before}\n{after}"
        story += ", nothing"
    wait_for(
        f"store and SPs to agree after {story}",
        lambda: agree.serving(cluster.volumes(), cluster.views()),
    )
    with Client(cluster.sps["sp-a"].addresses["--nbd"], NAME, seconds=130.0) as client:
        assert client.size >= SIZE
    if ask.volume != NAME and after is not None:
        cluster.ctl("volume", "delete", ask.volume)
    assert not stamper.faults, f"{story}: {stamper.faults[:5]}"
    return story


def test_kill_any_one_process_at_any_moment(cluster: Cluster) -> None:
    print(f"VSWITCHD_SEED={SEED} VSWITCHD_KILL_ROUNDS={ROUNDS}")
    rng = random.Random(SEED)
    cluster.ctl("volume", "create", NAME, "--size", str(SIZE), "--layout", SHAPES["mirror"][0])
    host = cluster.sps["sp-a"].addresses["--nbd"]
    stamper = Stamper(0, SIZE // BLOCK, SEED)
    with Writer(stamper, [(host, NAME)], keep=False):
        for number in range(ROUNDS):
            print(one_round(cluster, rng, number, stamper))
            if number % 10 == 9:
                wait_for("store, SPs and labels to agree", lambda: agree.agree(cluster), 40.0)
    with Client(host, NAME) as client:
        stamper.check_all(client)
    assert stamper.writes > ROUNDS
    wait_for("store, SPs and labels to agree", lambda: agree.agree(cluster), 40.0)
