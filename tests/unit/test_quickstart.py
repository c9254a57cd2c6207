"""The quickstart's ports: the defaults if they are free, and the same for ever after."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vswitchd.errors import VsError
from vswitchd.quickstart import ports
from vswitchd.quickstart.text import welcome


@pytest.fixture
def busy() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as server:
        server.bind((ports.HOST, 0))
        server.listen(1)
        yield server.getsockname()[1]


@pytest.fixture
def free() -> int:
    with socket.socket() as server:
        server.bind((ports.HOST, 0))
        port: int = server.getsockname()[1]
        return port


def test_a_default_that_is_taken_is_replaced_once_and_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: int, free: int
) -> None:
    monkeypatch.setattr(ports, "WANTED", {"controller.listen": busy, "sp-a.nbd": free})
    file = tmp_path / "ports.json"
    chosen = ports.choose(file)
    assert chosen["sp-a.nbd"] == free
    assert chosen["controller.listen"] not in (busy, free)
    assert ports.choose(file) == chosen
    with socket.socket() as other:
        other.bind((ports.HOST, free))
        other.listen(1)
        with pytest.raises(VsError, match=rf"VS3070.*{free} \(sp-a.nbd\)") as error:
            ports.choose(file)
    assert str(file) in error.value.message


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"controller.listen": 1}'])
def test_damage_is_said(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ports.json"
    file.write_text(text)
    with pytest.raises(VsError, match="VS1071"):
        ports.choose(file)


def test_the_text_names_the_ports_in_use(tmp_path: Path) -> None:
    chosen = {name: port + 1000 for name, port in ports.WANTED.items()}
    (tmp_path / "ports.json").write_text(json.dumps(chosen))
    text = welcome(tmp_path, chosen)
    assert "nbd://127.0.0.1:11809/demo" in text
    assert "VSWITCHD_CONTROLLER=127.0.0.1:10440" in text
    assert "modprobe nbd" in text
    assert str(ports.WANTED["sp-a.nbd"]) not in text
