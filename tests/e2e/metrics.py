"""Reads a process's /metrics."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.process import Daemon


def samples(daemon: Daemon, name: str, **labels: str) -> list[float]:
    """The values of every sample of that name that carries those labels."""
    address = daemon.addresses["--metrics"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
