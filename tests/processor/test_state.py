"""The state directory: whose it is, what a crash leaves, what damage looks like."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.processor.conftest import SP, VOLUME, t2
from vswitchd.errors import Kind, VsError
from vswitchd.model.objects import DeviceId
from vswitchd.processor.files import Directory
from vswitchd.processor.state import State


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "sp-a"


def reopened(state: State, directory: Path) -> State:
    """The next life's."""
    state.close()
    return State(Directory(directory), SP)


def test_everything_is_remembered(directory: Path) -> None:
    state = State(Directory(directory), SP)
    state.set_cluster("c-1")
    state.set_term(7)
    state.set_device(DeviceId("d-0"), "file:/a", direct=True)
    state.set_device(DeviceId("d-1"), "file:/b", direct=True, checksums=True)
    state.set_device(DeviceId("d-2"), "file:/c", checksums=True)
    state.set_device(DeviceId("d-1"), None)
    state.set_mirrored({VOLUME})
    state.stage(t2(1))
    state.commit(t2(1))
    state.stage(t2(2))
    again = reopened(state, directory)
    assert again.identity == state.identity
    assert again.identity.devices == {"d-0": "file:/a", "d-2": "file:/c"}
    assert again.identity.checksums == ["d-2"]
    assert again.identity.direct == ["d-0"]
    assert again.unclean == {VOLUME}
    assert again.committed == {VOLUME: t2(1)}
    assert again.staged == {VOLUME: t2(2)}
    again.remove(VOLUME)
    last = reopened(again, directory)
    assert not last.committed
    assert not last.staged
    last.close()


def test_another_sps_directory_is_refused(directory: Path) -> None:
    state = State(Directory(directory), SP)
    state.set_cluster("c-1")
    state.close()
    with pytest.raises(VsError, match=r"VS3020.*sp-a, not of sp-b"):
        State(Directory(directory), "sp-b")


def test_two_processes_cannot_share_it(directory: Path) -> None:
    state = State(Directory(directory), SP)
    with pytest.raises(VsError, match="VS3027"):
        State(Directory(directory), SP)
    reopened(state, directory).close()


def test_a_committed_object_whose_staged_file_came_back_is_not_staged(directory: Path) -> None:
    """`commit` does not wait until the staged file's removal is durable."""
    state = State(Directory(directory), SP)
    state.stage(t2(1))
    staged = directory / "t2" / f"{VOLUME}.staged.json"
    text = staged.read_text()
    state.commit(t2(1))
    assert not staged.exists()
    staged.write_text(text)
    again = reopened(state, directory)
    assert again.staged == {}
    again.close()


def test_a_half_written_file_is_no_harm(directory: Path) -> None:
    state = State(Directory(directory), SP)
    state.commit(t2(1))
    (directory / "t2" / f"{VOLUME}.json.new").write_text('{"half')
    (directory / "processor.json.new").write_text("")
    again = reopened(state, directory)
    assert again.committed == {VOLUME: t2(1)}
    again.close()


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", '{"sp": "sp-a"}', '{"sp": 1}', "\x00" * 64, "\udcff"]
)
def test_damage_says_which_file_and_what_to_do(directory: Path, damage: str) -> None:
    state = State(Directory(directory), SP)
    state.set_cluster("c-1")
    state.commit(t2(1))
    state.close()
    for file in (directory / "processor.json", directory / "t2" / f"{VOLUME}.json"):
        whole = file.read_bytes()
        file.write_bytes(damage.encode(errors="surrogateescape"))
        with pytest.raises(VsError, match=r"VS9020.*damaged") as error:
            State(Directory(directory), SP)
        assert str(file) in error.value.message
        assert "start again" in error.value.message
        file.write_bytes(whole)
    State(Directory(directory), SP).close()


def test_unknown_fields_of_a_newer_version_are_refused(directory: Path) -> None:
    state = State(Directory(directory), SP)
    state.set_cluster("c-1")
    state.close()
    file = directory / "processor.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "votes": 3}))
    with pytest.raises(VsError, match="votes"):
        State(Directory(directory), SP)


def test_what_cannot_be_written_has_not_happened(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(Directory(directory), SP)
    state.set_term(1)

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for change in (lambda: state.set_term(2), lambda: state.stage(t2(1))):
            with pytest.raises(VsError, match=r"VS9022.*No space") as error:
                change()
            assert error.value.kind is Kind.INTERNAL
    assert state.identity.term == 1
    assert state.staged == {}
    again = reopened(state, directory)
    assert again.identity.term == 1
    assert again.staged == {}
    again.close()
