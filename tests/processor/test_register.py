"""Joining the controller: for as long as it takes, but not against its will."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import SpId
from vswitchd.model.view import Complaint, fingerprint
from vswitchd.obs import log
from vswitchd.ports import ProcessorRecord
from vswitchd.processor import register
from vswitchd.processor.register import Registration

RECORD = ProcessorRecord(SpId("sp-a"), "i-1", "h:1", "h:2", "h:3", "1")
AWAY = VsError("VS5001", Kind.UNREACHABLE, "the controller can't be reached")
BUSY = VsError("VS9001", Kind.INTERNAL, "the controller failed")
WRONG = VsError("VS6030", Kind.UNSAFE, "SP sp-a belongs to another cluster")


class Book:
    """Addresses in memory, and how often they were set."""

    def __init__(self) -> None:
        self.managers: dict[SpId, str] = {}
        self.sets = 0

    def set_managers(self, managers: Mapping[SpId, str]) -> None:
        self.managers, self.sets = dict(managers), self.sets + 1


class Controller:
    """Answers as scripted, then well; `enough` ends the test after so many heartbeats."""

    def __init__(self, registrations: list[VsError | None], beats: list[VsError | bool]) -> None:
        self.registrations = registrations
        self.beats = beats
        self.trail: list[str] = []
        self.enough = asyncio.Event()

    async def register(self, record: ProcessorRecord, cluster: str) -> tuple[str, float]:
        error = self.registrations.pop(0) if self.registrations else None
        self.trail.append(error.code if error else "registered")
        if error:
            raise error
        return cluster or "c-1", 0.0

    async def heartbeat(
        self, record: ProcessorRecord, complaint: Complaint, known: int
    ) -> tuple[bool, dict[SpId, str] | None]:
        where = {SpId("sp-b"): "h:4"}
        told = None if known == fingerprint(where) else where
        if not self.beats:
            self.enough.set()
            return True, told
        answer = self.beats.pop(0)
        self.trail.append(answer.code if isinstance(answer, VsError) else f"beat {answer}")
        if isinstance(answer, VsError):
            raise answer
        return answer, told


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "FIRST_RETRY", 0.0)


async def nothing() -> Complaint:
    return Complaint()


async def kept(controller: Controller) -> list[str]:
    """Keeps the registration until the script is at its end."""
    keeping = asyncio.create_task(
        Registration(controller, Book(), log.set_up("error")).keep(RECORD, "c-1", nothing)
    )
    enough = asyncio.create_task(controller.enough.wait())
    async with asyncio.timeout(10):
        await asyncio.wait({keeping, enough}, return_when=asyncio.FIRST_COMPLETED)
    if keeping.done():
        keeping.result()
    keeping.cancel()
    enough.cancel()
    return controller.trail


async def test_it_waits_for_a_controller_that_is_away() -> None:
    trail = await kept(Controller([AWAY, BUSY, AWAY], [True]))
    assert trail == ["VS5001", "VS9001", "VS5001", "registered", "beat True"]


async def test_it_registers_again_when_it_is_forgotten_or_the_controller_was_away() -> None:
    trail = await kept(Controller([], [True, False, AWAY]))
    assert trail == ["registered", "beat True", "beat False", "registered", "VS5001", "registered"]


async def test_a_first_refusal_is_final() -> None:
    with pytest.raises(VsError, match="another cluster"):
        await kept(Controller([AWAY, WRONG], []))


async def test_a_later_refusal_does_not_take_hosts_their_volumes() -> None:
    trail = await kept(Controller([None, WRONG], [False]))
    assert trail == ["registered", "beat False", "VS6030", "registered"]


async def test_waits_between_tries_grow_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(register, "FIRST_RETRY", 0.1)
    real: Callable[[float], object] = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await real(0)  # type: ignore[misc]

    monkeypatch.setattr(asyncio, "sleep", sleep)
    tries: list[VsError | None] = [AWAY] * 8
    joined = await Registration(Controller(tries, []), Book(), log.set_up("error")).join(RECORD, "")
    assert joined[0] == "c-1"
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


async def test_it_learns_where_others_are_once_and_how_long_nobody_was_heard() -> None:
    book = Book()
    registration = Registration(Controller([], [True, True, True]), book, log.set_up("error"))
    controller = registration._registry
    keeping = asyncio.create_task(registration.keep(RECORD, "c-1", nothing))
    assert isinstance(controller, Controller)
    async with asyncio.timeout(10):
        await controller.enough.wait()
    keeping.cancel()
    assert book.managers == {"sp-b": "h:4"} and book.sets == 1
    assert registration.silent() < 10
    away = Registration(Controller([], []), book, log.set_up("error"))
    assert away.silent() == 0.0
