"""What happens in a run: a list of actions made from a seed, any of which may be left out."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from vswitchd.model.objects import BLOCK, SpId
from vswitchd.restructure.requests import (
    AddLeg,
    Evacuate,
    Grow,
    Move,
    Relayout,
    RemoveLeg,
    Request,
    Serve,
    Unserve,
)

SPS = ("a", "b", "c")
#: Layouts for when the controller is away: mirrors that may lose a leg without it, and one that may
#: not.
_AWAY = (
    "mirror(2)",
    "mirror(3)",
    "mirror(3)",
    "mirror(a, b, c)",
    "stripe(2, mirror(3), chunk=8K)",
    "concat(mirror(3), any)",
    "mirror(3, stripe(2, chunk=4K))",
)
CLUSTERS = (
    {"a": {"a0": 60, "a1": 60}, "b": {"b0": 60, "b1": 40}, "c": {"c0": 80}},
    {"a": {"a0": 40, "ab": 80}, "b": {"ab": 80, "b0": 40}, "c": {"c0": 90}},
    {"a": {"s": 200}, "b": {"s": 200}, "c": {"s": 200, "c0": 50}},
)
LAYOUTS = (
    "",
    "mirror(2)",
    "mirror(2)",
    "mirror(a, b)",
    "mirror(3)",
    "stripe(2, chunk=4K)",
    "mirror(2, stripe(2, chunk=4K))",
    "stripe(2, mirror(2), chunk=8K)",
    "concat(a:12K, b)",
    "concat(mirror(2), any)",
)
#: Seconds of a run's busy part, after which all heals.
BUSY = 40.0


@dataclass(frozen=True, slots=True)
class Action:
    """Something that is done at a time. `kind` is a method of `run.Run`; `detail` its words."""

    at: float
    kind: str
    detail: tuple[object, ...] = ()

    def __str__(self) -> str:
        return f"{self.at:7.3f} {self.kind} {' '.join(map(str, self.detail))}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A cluster, its first volumes, and what happens to them."""

    devices: dict[str, dict[str, int]]
    volumes: tuple[tuple[str, str, int, tuple[str, ...]], ...]
    actions: tuple[Action, ...]


def scenario(seed: int) -> Scenario:
    """The seed's."""
    rng = random.Random(f"scenario {seed}")
    volumes = tuple(
        (f"v{number}", rng.choice(LAYOUTS), rng.randint(4, 10), _some(rng))
        for number in range(rng.choice((1, 1, 2)))
    )
    names = [name for name, *_ in volumes]
    actions: list[Action] = []
    for _ in range(rng.randint(2, 6)):
        at, volume = rng.uniform(1.0, BUSY * 0.8), rng.choice(names)
        actions.append(Action(at, "request", (volume, _request(rng))))
        if rng.random() < 0.25:
            # What the request sends comes again, late; and its controller may be gone by then.
            actions.append(Action(at, "repeats", (0.5, 4.0)))
            if rng.random() < 0.5:
                actions.append(_kill_controller(rng, at + rng.expovariate(1.0)))
        if rng.random() < 0.25:
            wish = rng.choice(("pause", "cancel", "throttle"))
            actions.append(Action(at + rng.expovariate(2.0), wish, (volume,)))
            if wish == "pause":
                actions.append(Action(at + 1.0 + rng.expovariate(0.3), "resume", (volume,)))
    if rng.random() < 0.15:
        actions.append(Action(rng.uniform(1.0, BUSY), "drain", (rng.choice(SPS),)))
    if rng.random() < 0.15:
        actions.append(Action(rng.uniform(BUSY / 2, BUSY), "delete", (rng.choice(names),)))
    for _ in range(rng.randint(0, 6)):
        actions.append(rng.choice(_FAULTS)(rng, rng.uniform(1.0, BUSY)))
    if rng.random() < 0.4:
        volumes = tuple((name, rng.choice(_AWAY), *rest) for name, _, *rest in volumes)
        if rng.random() < 0.5:
            layout, found = _both_about_to_go_on(rng)
            volumes = ((names[0], layout, 6, SPS), *volumes[1:])
        else:
            found = _controller_away(rng)
        actions += found
    devices = rng.choice(CLUSTERS)
    if rng.random() < 0.1:
        layout, found = _owner_unheard(rng)
        volumes = ((names[0], layout, 4, SPS), *volumes[1:])
        actions += found
    return Scenario(
        devices=devices,
        volumes=volumes,
        actions=tuple(sorted(actions, key=lambda action: action.at)),
    )


def _some(rng: random.Random) -> tuple[str, ...]:
    return tuple(sp for sp in SPS if rng.random() < 0.4)


def _request(rng: random.Random) -> Request:
    sp, other = (SpId(name) for name in rng.sample(SPS, 2))
    return rng.choice(
        (
            Grow(rng.randint(2, 20) * BLOCK),
            AddLeg(rng.choice(LAYOUTS[:2]), rng.choice((None, sp))),
            RemoveLeg(rng.choice(("0", "1", *SPS))),
            Move(sp, other),
            Move(sp, other),
            Serve(sp),
            Unserve(sp),
            Relayout(rng.choice(LAYOUTS[1:])),
            Evacuate(sp),
        )
    )


def _kill_sp(rng: random.Random, at: float) -> Action:
    return Action(at, "kill_sp", (rng.choice(SPS), round(rng.expovariate(0.3), 3)))


def _kill_controller(rng: random.Random, at: float) -> Action:
    return Action(at, "kill_controller", (round(rng.expovariate(0.5), 3),))


def _kill_master(rng: random.Random, at: float) -> Action:
    return Action(at, "kill_master", (round(rng.expovariate(0.2), 3),))


def _partition(rng: random.Random, at: float) -> Action:
    ends = rng.sample((*SPS, "controller"), 2)
    return Action(at, "partition", (*ends, rng.random() < 0.3, round(rng.expovariate(0.2), 3)))


def _loss(rng: random.Random, at: float) -> Action:
    share = rng.choice((0.05, 0.2, 0.5))
    return Action(at, "loss", (share, round(rng.expovariate(0.3), 3)))


def _repeats(rng: random.Random, at: float) -> Action:
    share = rng.choice((0.1, 0.5))
    return Action(at, "repeats", (share, round(rng.expovariate(0.1), 3)))


def _store_full(rng: random.Random, at: float) -> Action:
    return Action(at, "store_full", (round(rng.expovariate(0.3), 3),))


def _die_at_store_write(rng: random.Random, at: float) -> Action:
    side = rng.choice(("before", "after"))
    return Action(at, "die_at_store_write", (rng.randrange(12), side))


def _file_fault(rng: random.Random, at: float) -> Action:
    fault = rng.choice(("before", "after", "fail"))
    return Action(at, "file_fault", (rng.choice(SPS), rng.randrange(4), fault))


def _both_about_to_go_on(rng: random.Random) -> tuple[str, list[Action]]:
    """An owner hears neither the controller nor one leg; of three the other hears both sides, and
    each is about to go on without the other when it asks that one."""
    layout, other = rng.choice(
        (("mirror(a, b)", "b"), ("mirror(a, b, c)", "b"), ("mirror(a, b, c)", "c"))
    )
    at, lasts = rng.uniform(1.0, BUSY / 2), round(rng.uniform(6.0, 15.0), 3)
    later = rng.choice((0.0, rng.uniform(0.0, 2.0)))
    return layout, [
        Action(at, "partition", ("a", "controller", False, lasts)),
        Action(at + later, "partition", ("a", other, False, lasts)),
    ]


def _owner_unheard(rng: random.Random) -> tuple[str, list[Action]]:
    """The controller alone does not hear an owner, and makes another: it serves until its lease is
    over, while hosts are keen on the blocks that the other writes by then."""
    at = rng.uniform(1.0, BUSY / 2)
    return rng.choice(("mirror(a, b)", "mirror(a, b, c)")), [
        Action(at, "partition", ("a", "controller", False, round(rng.uniform(8.0, 12.0), 3))),
        Action(at + 4.0, "keen", (4.0,)),
    ]


def _controller_away(rng: random.Random) -> list[Action]:
    """The controller is away, or cut off with none, some or all of the SPs but one, for long
    enough that owners leave behind what is lost meanwhile; it comes back at any moment."""
    at = rng.uniform(1.0, BUSY / 2)
    away = rng.uniform(6.0, 25.0)
    some = rng.sample(SPS, rng.choice((3, 3, 2, 2, 1)))
    found: list[Action] = []
    if rng.random() < 0.5:
        found.append(Action(at, "kill_controller", (round(away, 3),)))
    else:
        for sp in some:
            for_long = round(away + rng.uniform(0.0, 3.0), 3)
            found.append(Action(at, "partition", (sp, "controller", False, for_long)))
    for _ in range(rng.choice((1, 1, 2))):
        begins = at + rng.uniform(-1.0, away / 2)
        sp, other = rng.sample(SPS, 2)
        lasts = round(rng.uniform(6.0, 20.0), 3)
        if rng.random() < 0.6:
            found.append(Action(begins, "kill_sp", (sp, lasts)))
        else:
            found.append(Action(begins, "partition", (sp, other, False, lasts)))
            if rng.random() < 0.5:
                (third,) = set(SPS) - {sp, other}
                found.append(Action(begins, "partition", (sp, third, False, lasts)))
    if rng.random() < 0.3:
        # An owner that dies in the middle of it, or thereafter.
        begins = at + rng.uniform(5.0, 12.0)
        found.append(Action(begins, "kill_sp", (rng.choice(SPS), round(rng.expovariate(0.5), 3))))
    if rng.random() < 0.2:
        fault = rng.choice(("before", "after", "fail"))
        begins = at + rng.uniform(3.0, 8.0)
        found.append(Action(begins, "file_fault", (rng.choice(SPS), rng.randrange(3), fault)))
    return found


_FAULTS: tuple[Callable[[random.Random, float], Action], ...] = (
    _kill_sp,
    _kill_sp,
    _kill_controller,
    _kill_master,
    _partition,
    _partition,
    _loss,
    _repeats,
    _repeats,
    _store_full,
    _die_at_store_write,
    _die_at_store_write,
    _file_fault,
    _file_fault,
)
