"""Settings: where they come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vswitchd import config
from vswitchd.errors import VsError


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "vswitchd.toml"
    file.write_text('[processor]\nname = "f"\nvsm = "f:1"\npeer = "f:2"\nnbd = ["f:3"]\n')
    environment = {"VSWITCHD_PROCESSOR_VSM": "e:1", "VSWITCHD_PROCESSOR_PEER": "e:2"}
    found = config.load(config.Processor, {"peer": "flag:2", "vsm": None}, file, environment)
    assert (found.name, found.vsm, found.peer, found.nbd) == ("f", "e:1", "flag:2", ["f:3"])
    assert found.metrics == config.Processor().metrics


def test_numbers_and_lists_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("")
    environment = {
        "VSWITCHD_PROCESSOR_LOOPS": "3",
        "VSWITCHD_PROCESSOR_HOLD_SECONDS": "1.5",
        "VSWITCHD_PROCESSOR_NBD": "a:1,unix:/s",
    }
    found = config.load(config.Processor, {}, tmp_path / "c", environment)
    assert (found.loops, found.hold_seconds, found.nbd) == (3, 1.5, ["a:1", "unix:/s"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[procesor]\n", "did you mean 'processor'?"),
        ("[processor]\npear = 'x'\n", "did you mean 'peer'?"),
        ("[processor]\nloops = 'many'\n", "loops: 'many' is not a number"),
        ("[processor]\nnbd = 'x'\nnbd = 'y'\n", "overwrite"),
        ("processor = 1\n", "processor is a section"),
        ("[log\n", "expected"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(VsError) as bad:
        config.read_file(file)
    assert said.lower() in str(bad.value).lower() and str(file) in str(bad.value)
    assert config.main(["check", str(file)]) == 1
    assert said.lower() in capsys.readouterr().err.lower()


def test_a_good_file_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[controller]\nlisten = "127.0.0.1:1"\n[limits]\nconnections = 5\n')
    assert config.main(["check", str(file)]) == 0
    assert "good" in capsys.readouterr().out
