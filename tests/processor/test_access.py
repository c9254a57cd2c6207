"""Who may use a volume at one SP: kept before it is obeyed, over restarts, and by its version."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.processor.conftest import SP, VOLUME, Life, caller, t1, t2
from vswitchd.errors import VsError
from vswitchd.model.access import OPEN, Access, Chap, Entry, access_to_json
from vswitchd.processor.files import Directory
from vswitchd.processor.state import State

CHAP = Chap("host", "hidden-secret-1")
FIRST = Access(1, True, (Entry("iqn.2026-11.test:host", CHAP),))
SECOND = replace(FIRST, version=2, nbd=False)


def obeyed(life: Life) -> object:
    """What the engine goes by."""
    return life.engine.accesses.get(VOLUME)


async def serving(life: Life, access: Access = FIRST) -> None:
    await life.vsm.put_t1(caller(), t1(), 1)
    await life.vsm.stage_t2(caller(), t2(1), access)
    await life.vsm.activate_t2(caller(), VOLUME, 1)


async def test_it_comes_with_the_tree_and_is_obeyed_before_it(life: Life) -> None:
    await serving(life)
    assert obeyed(life) == access_to_json(FIRST)
    changes = [call[0] for call in life.engine.calls]
    assert changes.index("access_set") < changes.index("t2_activate")
    (held,) = (await life.vsm.view()).t2s
    assert held.access == 1


async def test_a_later_word_holds_and_an_earlier_one_changes_nothing(life: Life) -> None:
    await serving(life)
    await life.vsm.set_access(caller(), VOLUME, SECOND)
    assert obeyed(life) == access_to_json(SECOND)
    for late in (FIRST, OPEN):
        await life.vsm.set_access(caller(), VOLUME, late)
        await life.vsm.stage_t2(caller(), t2(2), late)
        assert await life.vsm.access(caller(), VOLUME) == SECOND
        assert obeyed(life) == access_to_json(SECOND)


async def test_it_outlives_the_process(life: Life, live: Callable[[], Life]) -> None:
    await serving(life)
    await life.vsm.stage_t2(caller(), t2(2), SECOND)
    life.crash()
    again = live()
    await again.vsm.start()
    assert obeyed(again) == access_to_json(SECOND)
    await again.vsm.activate_t2(caller(), VOLUME, 2)
    assert obeyed(again) == access_to_json(SECOND)


async def test_only_its_owner_reads_it(life: Life, tmp_path: Path) -> None:
    await serving(life)
    found = list((tmp_path / "sp-a").rglob("*.json"))
    secret = [path for path in found if CHAP.secret in path.read_text()]
    assert len(secret) == 1
    assert {path.stat().st_mode & 0o777 for path in found} == {0o600}


async def test_it_goes_with_the_volume(life: Life, tmp_path: Path) -> None:
    await serving(life)
    await life.vsm.remove_t2(caller(), VOLUME, 1)
    assert obeyed(life) is None
    assert not list((tmp_path / "sp-a" / "access").iterdir())
    # What comes late finds nothing that it could be about.
    await life.vsm.set_access(caller(), VOLUME, SECOND)
    assert await life.vsm.access(caller(), VOLUME) == OPEN


async def test_what_is_damaged_does_not_open_the_volume(life: Life, tmp_path: Path) -> None:
    await serving(life)
    life.crash()
    (path,) = (tmp_path / "sp-a" / "access").iterdir()
    value = json.loads(path.read_text())
    value["entries"][0]["secret"] = ["hidden"]
    path.write_text(json.dumps(value))
    with pytest.raises(VsError) as error:
        State(Directory(tmp_path / "sp-a"), SP)
    assert error.value.code == "VS9020" and "hidden" not in str(error.value)
