"""Settings: which source wins, and what a mistake is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from vswitchd import config
from vswitchd.errors import VsError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vswitchd.toml"


def test_flag_over_environment_over_file_over_default(file: Path) -> None:
    file.write_text(
        '[processor]\nname = "from-file"\nvsm = "f:1"\npeer = "f:2"\nnbd = ["f:3", "unix:/f"]\n'
        "hold_seconds = 5\n[limits]\nconnections = 7\n"
    )
    environment = {"VSWITCHD_PROCESSOR_VSM": "e:1", "VSWITCHD_PROCESSOR_PEER": "e:2"}
    flags = {"vsm": "flag:1", "peer": None, "command": "sp"}
    found = config.load(config.Processor, flags, file, environment)
    assert (found.name, found.vsm, found.peer) == ("from-file", "flag:1", "e:2")
    assert found.nbd == ["f:3", "unix:/f"]
    assert found.hold_seconds == 5.0
    assert found.metrics == config.Processor().metrics
    assert config.load(config.Limits, {}, file, {}).connections == 7


def test_lists_and_numbers_in_the_environment() -> None:
    environment = {"VSWITCHD_PROCESSOR_NBD": "h:1,unix:/p", "VSWITCHD_PROCESSOR_LOOPS": "3"}
    found = config.load(config.Processor, {}, None, environment)
    assert found.nbd == ["h:1", "unix:/p"]
    assert found.loops == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[procesor]\nname = "x"', "did you mean 'processor'"),
        ("[processor]\nnmae = 1", "did you mean 'name'"),
        ("[processor]\nfrobnicate = 1", "known are"),
        ('[processor]\nloops = "many"', "'many' is not a whole number"),
        ("[processor]\nloops = true", "True is not a whole number"),
        ("[processor]\nloops = 1.5", "1.5 is not a whole number"),
        ("[processor]\nloops = -1", "-1 is not a whole number"),
        ("[processor]\nhold_seconds = inf", "inf is not a number"),
        ("[processor]\nhold_seconds = nan", "nan is not a number"),
        ("[processor]\nname = 5", "5 is not a string"),
        ('[processor]\nnbd = "h:1"', "not a list of strings"),
        ("[processor]\nnbd = [1]", "not a list of strings"),
        ("processor = 1", "is a section"),
        ("[processor\n", "line 1"),
    ],
)
def test_what_is_wrong_is_said_with_the_place(
    file: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    with pytest.raises(VsError) as error:
        config.load(config.Processor, {}, file, {})
    assert said in error.value.message
    assert str(file) in error.value.message
    assert config.main(["check", str(file)]) == 1
    assert said in capsys.readouterr().err


def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(VsError, match="No such file"):
        config.load(config.Log, {}, file, {})


def test_a_mistyped_variable_is_refused() -> None:
    with pytest.raises(VsError, match="did you mean 'VSWITCHD_PROCESSOR_NAME'"):
        config.load(config.Processor, {}, None, {"VSWITCHD_PROCESSOR_NMAE": "x"})


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        ({"hold_seconds": -1.0}, {}, "--hold-seconds: -1.0 is not a number"),
        ({}, {"VSWITCHD_PROCESSOR_LOOPS": "2.5"}, "VSWITCHD_PROCESSOR_LOOPS: '2.5' is not a whole"),
    ],
)
def test_flags_and_variables_are_checked_too(
    flags: dict[str, object], environment: dict[str, str], said: str
) -> None:
    with pytest.raises(VsError, match=said):
        config.load(config.Processor, flags, None, environment)


def test_a_good_file_is_good(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('[controller]\nlisten = "h:1"\n[log]\nlevel = "debug"\n')
    assert config.main(["check", str(file)]) == 0
    assert "good" in capsys.readouterr().out
