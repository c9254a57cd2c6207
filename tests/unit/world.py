"""Short ways to say what unit tests are about."""

from __future__ import annotations

from itertools import count

from tests.prop.cluster import Cluster
from vswitchd.model.objects import BLOCK, SpId, Volume, VolumeId
from vswitchd.restructure import vcm
from vswitchd.restructure.codec import describe
from vswitchd.restructure.mvsm import determine
from vswitchd.restructure.requests import Create, Request
from vswitchd.restructure.steps import Plan
from vswitchd.restructure.vbm import restructure

VOLUME = VolumeId("7d9f0000-0000-4000-8000-000000000001")
PRIVATE = {"a": {"a0": 60, "a1": 60}, "b": {"b0": 60, "b1": 60}, "c": {"c0": 60, "c1": 60}}
SHARED = {"a": {"s": 200}, "b": {"s": 200}, "c": {"c0": 200}}


class World:
    """A model cluster with one volume, `v1`."""

    def __init__(
        self,
        devices: dict[str, dict[str, int]] = PRIVATE,
        layout: str = "",
        blocks: int = 8,
        serving: tuple[str, ...] = (),
    ) -> None:
        self.cluster = Cluster.of(devices)
        self._ids = count(1)
        self.do(Create(VOLUME, "v1", blocks * BLOCK, layout, tuple(map(SpId, serving))))

    @property
    def volume(self) -> Volume:
        return self.cluster.store[VOLUME]

    def plan(self, request: Request) -> Plan:
        base = self.cluster.store.get(VOLUME)
        stages = restructure(base, self.cluster.views(), request, lambda: f"{next(self._ids)}")
        answers = [determine(*pair) if pair else () for pair in vcm.transitions(base, stages)]
        return vcm.plan(base, stages, answers, self.cluster.peers)

    def do(self, request: Request) -> Plan:
        plan = self.plan(request)
        for step in plan.steps:
            self.cluster.apply(step)
            self.cluster.host_io(VOLUME)
        return plan


def words(plan: Plan) -> list[str]:
    """A plan's steps as `kind@sp`."""
    return [f"{kind}@{sp}" for kind, sp, _, _ in map(describe, plan.steps)]
