"""An SP without a network: the VSM over its real state directory and the engine in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.fake_engine import Disk, FakeEngine
from vswitchd.model.access import OPEN
from vswitchd.model.objects import (
    T1,
    T2,
    DeviceId,
    Extent,
    Leaf,
    Leg,
    LegState,
    Mirror,
    Node,
    SpId,
    T1Id,
    VolumeId,
    leaves,
)
from vswitchd.obs import log
from vswitchd.processor import engine as adapter
from vswitchd.processor.files import Directory
from vswitchd.processor.state import State
from vswitchd.processor.vsm import Caller, Vsm

CLUSTER = "c-1"
MIB = 1 << 20
SP = SpId("sp-a")
VOLUME = VolumeId("v-1")
DEVICE = DeviceId("d-0")
URI = "file:/devices/a0"


def caller(term: int = 1, cluster: str = CLUSTER) -> Caller:
    return Caller(cluster, term)


def t1(name: str = "t-0", *, slot: int = 0, home: SpId = SP) -> T1:
    """A T1 object of 4 MiB, the `slot`th of the device."""
    return T1(T1Id(name), VOLUME, 4 * MIB, (Extent(DEVICE, (4 + 4 * slot) * MIB, 4 * MIB),), home)


def mirror(*states: LegState) -> Mirror:
    """Legs on T1 objects t-0, t-1, ..."""
    return Mirror(
        tuple(Leg(Leaf(T1Id(f"t-{n}"), 4 * MIB), state) for n, state in enumerate(states))
    )


def t2(version: int, root: Node | None = None, owner: SpId = SP, name: str = "db") -> T2:
    root = root or Leaf(T1Id("t-0"), 4 * MIB)
    homes = {leaf.t1: SP for leaf in leaves(root)}
    return T2(VOLUME, name, 4 * MIB, version, version, SP, owner, root, homes)


class Life:
    """One run of an SP's process."""

    def __init__(self, state: State, engine: FakeEngine, vsm: Vsm) -> None:
        self.state = state
        self.engine = engine
        self.vsm = vsm

    def crash(self) -> None:
        """`kill -9`: the lock goes with the process, nothing else is done."""
        self.state.close()

    def end(self) -> None:
        """A clean end."""
        self.vsm.ended()
        self.state.close()

    async def push(self, t2: T2, term: int = 1) -> None:
        """Stages and activates."""
        await self.vsm.stage_t2(caller(term), t2, OPEN)
        await self.vsm.activate_t2(caller(term), t2.volume, t2.version)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def live(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Life]]:
    """Makes the next life of the SP."""
    lives: list[Life] = []
    made: list[FakeEngine] = []

    def native(config: str) -> FakeEngine:
        made.append(FakeEngine(config, disk))
        return made[-1]

    monkeypatch.setattr(adapter, "Native", native)

    def begin() -> Life:
        state = State(Directory(tmp_path / "sp-a"), SP)
        if not state.identity.cluster_id:
            state.set_cluster(CLUSTER)
        engine = adapter.Engine({"cluster_id": CLUSTER, "sp": SP})
        vsm = Vsm(state, engine, f"life-{len(lives)}", log.set_up("error"))
        lives.append(Life(state, made[-1], vsm))
        return lives[-1]

    yield begin
    for life in lives:
        life.state.close()


@pytest.fixture
async def life(live: Callable[[], Life]) -> AsyncIterator[Life]:
    """A started SP with a device."""
    first = live()
    await first.vsm.start()
    await first.vsm.add_device(caller(), URI, 1 << 30, DEVICE, direct=False, checksums=False)
    yield first
