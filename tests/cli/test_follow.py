"""Waiting for an operation: its end, the end of patience, the end of the controller."""

from __future__ import annotations

import json
import threading

import pytest

from tests.cli.conftest import Ctl
from tests.cli.fake import Fake
from tests.cli.samples import CANCELLED, DONE, FAILED, GIB, operation
from vswitchd.api import client
from vswitchd.rpc import operation_pb2

DELETE = ("volume", "delete", "db1")


def test_a_request_is_followed_to_its_end(fake: Fake, ctl: Ctl) -> None:
    fake.starts = operation(total=GIB)
    fake.operations["op-1"] = [operation(copied=n, total=GIB) for n in range(3)]
    fake.operations["op-1"].append(operation(DONE, copied=GIB, total=GIB))
    ran = ctl(*DELETE)
    assert (ran.status, ran.out) == (0, "")
    assert ran.err == "mirror_add of db1 is done (op-1)\n"
    ran = ctl(*DELETE, "-o", "json")
    assert json.loads(ran.out)["state"] == "OPERATION_STATE_DONE"
    assert ran.err == ""


@pytest.mark.parametrize("state", [FAILED, CANCELLED])
@pytest.mark.parametrize("argv", [DELETE, ("operation", "watch", "op-1")])
def test_what_failed_or_was_cancelled_is_exit_1_and_says_why(
    fake: Fake, ctl: Ctl, state: operation_pb2.OperationState.ValueType, argv: tuple[str, ...]
) -> None:
    fake.starts = operation()
    ended = operation(state, code="VS4010", message="no room at sp-b")
    fake.operations["op-1"] = [operation(waiting_for="sp-b"), ended]
    ran = ctl(*argv)
    assert (ran.status, ran.out) == (1, "")
    assert "VS4010" in ran.err and "no room at sp-b" in ran.err and "op-1" in ran.err
    ran = ctl(*argv, "-o", "json")
    assert ran.status == 1
    assert json.loads(ran.out)["error"]["code"] == "VS4010"


def test_the_end_of_patience_is_exit_7_and_prints_the_id(fake: Fake, ctl: Ctl) -> None:
    fake.starts = operation()
    fake.operations["op-1"] = [operation()]
    ran = ctl(*DELETE, "--timeout", "0.2")
    assert (ran.status, ran.out) == (7, "op-1\n")
    assert "VS5030" in ran.err and "operation watch op-1" in ran.err
    ran = ctl(*DELETE, "--timeout", "0.2", "-o", "json")
    assert ran.status == 7
    assert json.loads(ran.out)["operation_id"] == "op-1"


def test_a_controller_that_restarts_is_waited_for(fake: Fake, ctl: Ctl) -> None:
    fake.starts = operation()
    fake.operations["op-1"] = [operation()]

    def restart() -> None:
        assert fake.watched.wait(30)
        fake.stop()
        fake.operations["op-1"] = [operation(), operation(DONE)]
        fake.start()

    other = threading.Thread(target=restart)
    other.start()
    ran = ctl(*DELETE)
    other.join()
    assert (ran.status, ran.err) == (0, "mirror_add of db1 is done (op-1)\n")
    assert [method for method, _ in fake.asked].count("WatchOperation") == 2


def test_a_controller_that_stays_away_is_exit_6_and_names_the_operation(
    fake: Fake, ctl: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE", 0.3)
    fake.starts = operation()
    fake.operations["op-1"] = [operation()]

    def end() -> None:
        assert fake.watched.wait(30)
        fake.stop()

    other = threading.Thread(target=end)
    other.start()
    ran = ctl(*DELETE)
    other.join()
    assert ran.status == 6
    assert "VS5001" in ran.err and "op-1 goes on" in ran.err


def test_the_end_of_patience_counts_while_the_controller_is_away(fake: Fake, ctl: Ctl) -> None:
    fake.starts = operation()
    fake.operations["op-1"] = [operation()]

    def end() -> None:
        assert fake.watched.wait(30)
        fake.stop()

    other = threading.Thread(target=end)
    other.start()
    ran = ctl(*DELETE, "--timeout", "2")
    other.join()
    assert (ran.status, ran.out) == (7, "op-1\n")


def test_an_operation_that_is_not_there(fake: Fake, ctl: Ctl) -> None:
    for verb in ("show", "watch"):
        assert ctl("operation", verb, "op-9").status == 3
