"""vswitchctl in this process, against a fake controller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.cli.fake import Fake
from vswitchd.cli.app import main


class Ran(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


Ctl = Callable[..., Ran]


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A controller that answers."""
    made = Fake()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def ctl(fake: Fake, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """Runs a vswitchctl command against the fake."""

    def run(*argv: str) -> Ran:
        status = main(["--controller", fake.address, *argv])
        out, err = capsys.readouterr()
        return Ran(status, out, err)

    return run
