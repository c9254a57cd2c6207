"""The bench's pure parts: ratios within a round, verdicts, plots."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.bench import growth
from tests.bench.ours import PLAIN
from tests.bench.peers import REFERENCE
from tests.bench.plot import Line, chart
from tests.bench.report import Results, Verdict, verdict_table
from tests.bench.targets import verdicts
from tests.bench.work import COMPARED, LAYOUTS, OVER_ISCSI, PEERS_GET, Work

READ = Work("4k read qd32", "rr")


def figures(iops: float, cpu: float = 1.0, p99: float = 1.0) -> dict[str, float]:
    return {"iops": iops, "server_cpu_us": cpu, "p99_us": p99}


def test_a_ratio_is_the_median_of_those_within_a_round() -> None:
    results = Results()
    # The machine slows down over the rounds; the third has a hiccup on one side only.
    for ours, theirs in ((300.0, 100.0), (150.0, 50.0), (10.0, 25.0)):
        results.add(READ, PLAIN, figures(ours))
        results.add(READ, REFERENCE, figures(theirs))
    assert results.ratio(READ.key, PLAIN, REFERENCE, "iops") == 3.0
    results.add(READ, PLAIN, "it broke")
    results.add(READ, REFERENCE, figures(1.0))
    assert results.ratio(READ.key, PLAIN, REFERENCE, "iops") == 3.0, "a failed run counts for none"
    assert results.ratio(READ.key, PLAIN, "nobody", "iops") is None
    assert results.failures == [f"{READ.key}: {PLAIN}: it broke"]


@pytest.mark.parametrize(
    ("verdict", "met"),
    [
        (Verdict("x", 3.0, 3.0), True),
        (Verdict("x", 3.0, 2.996), True),
        (Verdict("x", 3.0, 2.98), False),
        (Verdict("x", 0.33, 0.334, at_most=True), True),
        (Verdict("x", 0.33, 0.34, at_most=True), False),
        (Verdict("x", 3.0, None), None),
    ],
)
def test_a_verdict_is_that_of_the_printed_figure(verdict: Verdict, met: bool | None) -> None:
    assert verdict.met is met
    words = {True: "met", False: "missed", None: "not measured"}
    assert verdict_table([verdict]).endswith(words[met])


def test_every_row_is_judged_and_its_workload_exists() -> None:
    empty = list(verdicts(Results()))
    assert empty and all(verdict.met is None for verdict in empty)
    results = Results()
    results.add(READ, PLAIN, figures(300, cpu=2, p99=5))
    results.add(READ, REFERENCE, figures(100, cpu=8, p99=10))
    found = {verdict.name: verdict.found for verdict in verdicts(results) if verdict.found}
    assert found == {READ.key: 3.0, f"{READ.key}, CPU per I/O": 0.25, f"{READ.key}, p99": 0.5}
    measured = {work.key for work in COMPARED + OVER_ISCSI} | {
        f"{READ.name} fio unix",
        f"{READ.name} fio unix x4",
    }
    named = {verdict.name.split(":")[0].split(",")[0] for verdict in empty}
    assert named <= measured
    assert set(LAYOUTS) <= set(COMPARED) >= set(PEERS_GET)


def test_a_chart_is_xml_with_a_spot_for_each_point() -> None:
    lines = [Line("a & b", [(1, 8e5), (10, 4e5), (100, 0.0)]), Line("c", [(1, 900_000.0)])]
    root = ET.fromstring(chart("How <it> grows", "volumes", "IOPS", lines))
    names = [element.tag.partition("}")[2] for element in root]
    assert (names.count("circle"), names.count("path")) == (4, 5 + 2)
    texts = {element.text for element in root if element.text}
    assert {"How <it> grows", "a & b", "1M", "100"} <= texts
    heights = [float(element.attrib["cy"]) for element in root if element.tag.endswith("circle")]
    assert heights[0] < heights[2] and max(heights) <= 320


def test_growth_is_written_as_a_table_and_plots(tmp_path: Path) -> None:
    rows = [
        growth.Growth(
            "Volumes on one SP", "volumes", [(1, 500_000.0, 2.0), (1000, 400_000.0, 2.1)]
        ),
        growth.Growth("Start of an SP", "volumes", [(1, 0.25, 0.0)], note="so it was"),
        growth.Growth("Nothing", "nothing"),
    ]
    text = growth.table(rows)
    assert "| volumes | 1 | 1,000 |" in text and "| IOPS | 500,000 | 400,000 |" in text
    assert "| seconds | 0.25 |" in text and "so it was" in text
    growth.write(rows, tmp_path / "plots")
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "start.svg",
        "volumes.svg",
    ]
