"""The samples under deploy/ fit the program."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from vswitchd import config
from vswitchd.__main__ import main

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SAMPLE = DEPLOY / "vswitchd.toml"
#: What a user has to choose; the rest of the sample shows the defaults.
YOURS = {"name", "device_root"}


def test_the_sample_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", str(SAMPLE)]) == 0
    assert capsys.readouterr().out.endswith(": good\n")


def test_the_check_would_see_a_slip(tmp_path: Path) -> None:
    slip = tmp_path / "vswitchd.toml"
    slip.write_text(SAMPLE.read_text().replace("hold_seconds", "hold_second"))
    assert main(["config", "check", str(slip)]) == 1


def test_the_sample_shows_every_key() -> None:
    shown = {name: set(body) for name, body in tomllib.loads(SAMPLE.read_text()).items()}
    there = {name: {key.name for key in fields(kind)} for name, kind in config.SECTIONS.items()}
    assert shown == there


@pytest.mark.parametrize("name", config.SECTIONS)
def test_the_sample_shows_the_defaults(name: str) -> None:
    kind = config.SECTIONS[name]
    loaded, default = config.load(kind, {}, SAMPLE, {}), kind()
    for key in (one.name for one in fields(kind)):
        assert (getattr(loaded, key) == getattr(default, key)) == (key not in YOURS), key


def test_prometheus_scrapes_what_the_configuration_says() -> None:
    said = config.read_file(SAMPLE)
    text = (DEPLOY / "prometheus.yml").read_text()
    jobs = {
        name: re.findall(r'"([^"]+)"', targets)
        for name, targets in re.findall(r"job_name: (\S+)\n.*?targets: \[(.*?)\]", text, re.DOTALL)
    }
    assert jobs == {
        "vswitchd-controller": [said["controller"]["metrics"]],
        "vswitchd-sp": [said["processor"]["metrics"]],
    }


def test_prometheus_reads_the_file_as_it_is_meant() -> None:
    yaml = pytest.importorskip("yaml")
    whole = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert set(whole) == {"global", "scrape_configs"}
    for job in whole["scrape_configs"]:
        assert set(job) == {"job_name", "static_configs"}
        for group in job["static_configs"]:
            assert group["targets"] and set(group) <= {"targets", "labels"}
