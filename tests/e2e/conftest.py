"""Fixtures of the end-to-end tests; logs of a failed test's cluster are printed with it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder starts real processes."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the end of every process's log to the report of a test that failed."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Cluster):
                report.sections.append(("processes", value.logs()))
    return report


def make(root: Path, sps: tuple[str, ...] = ("sp-a", "sp-b", "sp-c")) -> Cluster:
    """A started cluster in which each SP has a device of its own (`a0`, ...) and sp-a and sp-b
    both reach `ab`."""
    cluster = Cluster(root, sps)
    try:
        cluster.start()
        for sp in sps:
            cluster.add_device(sp, f"{sp.removeprefix('sp-')}0")
        for sp in sps[:2]:
            cluster.add_device(sp, "ab")
    except BaseException:
        print(cluster.logs())
        cluster.end()
        raise
    return cluster


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for a module's tests, each with volumes of its own."""
    with_processes = make(tmp_path_factory.mktemp("cluster"))
    yield with_processes
    with_processes.end()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of this test's own."""
    own = make(tmp_path)
    yield own
    own.end()
