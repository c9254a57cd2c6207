"""The samples under deploy/ fit the program."""

from __future__ import annotations

import re
import subprocess
import tomllib
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from vswitchd import config
from vswitchd.__main__ import COMMANDS, main

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
        "vswitchd-host": [said["host"]["metrics"]],
    }


def test_prometheus_reads_the_file_as_it_is_meant() -> None:
    yaml = pytest.importorskip("yaml")
    whole = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert set(whole) == {"global", "scrape_configs"}
    for job in whole["scrape_configs"]:
        assert set(job) == {"job_name", "static_configs"}
        for group in job["static_configs"]:
            assert group["targets"] and set(group) <= {"targets", "labels"}


SAMPLES = sorted([*DEPLOY.glob("one-machine/*.toml"), *DEPLOY.glob("three-machines/*.toml")])


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_samples_of_clusters_are_good(sample: Path) -> None:
    said = config.read_file(sample)
    assert said["processor"]["name"]


def test_three_machines_fit_together() -> None:
    machines = [config.read_file(path) for path in sorted(DEPLOY.glob("three-machines/*.toml"))]
    (controller,) = [one["controller"]["listen"] for one in machines if "controller" in one]
    assert {one["processor"]["controller"] for one in machines} == {controller}
    assert {one["host"]["controller"] for one in machines} == {controller}
    for key in ("name", "vsm", "peer", "metrics"):
        assert len({one["processor"][key] for one in machines}) == len(machines) == 3


def test_the_containers_commands_are_understood() -> None:
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(services) == {"controller", "sp-a", "sp-b", "sp-c"}
    for name, service in services.items():
        program, *argv = service["command"]
        app = import_module(
            {"controller": "vswitchd.controller.app", "sp": "vswitchd.processor.app"}[program]
        )
        parsed = app.arguments(argv)
        if program == "sp":
            assert parsed.name == name
            port = parsed.nbd_advertised.rpartition(":")[2]
            assert service["ports"] == [f"127.0.0.1:{port}:{parsed.nbd[0].rpartition(':')[2]}"]
            assert parsed.controller.startswith("controller:")


UNITS = Path(__file__).resolve().parents[2] / "systemd"


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda path: path.stem)
def test_units_start_commands_that_there_are(unit: Path) -> None:
    text = unit.read_text()
    (start,) = re.findall(r"^ExecStart=/usr/bin/vswitchd (\S+)", text, re.MULTILINE)
    assert start in COMMANDS
    assert "Type=notify" in text
    assert "WatchdogSec=" in text
    # What it writes is its own state: what the sample says is where systemd makes room.
    state = {"controller": config.Controller, "sp": config.Processor, "host": config.Host}[
        start
    ]().state
    made = re.findall(r"^StateDirectory=(.*)", text, re.MULTILINE)[0].split()
    assert f"/var/lib/{made[-1].replace('/%i', '')}" == str(state)


def test_the_installer_is_a_shell_script() -> None:
    done = subprocess.run(["sh", "-n", str(DEPLOY / "install.sh")], check=False, timeout=30)
    assert done.returncode == 0
    done = subprocess.run(
        [str(DEPLOY / "install.sh"), "nowhere.whl"], check=False, timeout=30, capture_output=True
    )
    assert done.returncode == 1
    assert b"is no file" in done.stderr
