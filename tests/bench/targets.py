"""What the engine is to reach, row by row, as ratios within one run."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.ours import MAPPED, NO_MAP, PLAIN, SUMMED
from tests.bench.peers import FRONT, REFERENCE
from tests.bench.report import Results, Verdict
from tests.bench.tgt import NAME as TGT

#: Of the reference: (workload, IOPS at least, CPU per I/O at most).
PLAIN_ROWS: list[tuple[str, float, float | None]] = [
    ("4k read qd32 unix", 3.0, 0.33),
    ("4k read qd32 tcp", 3.0, 0.33),
    ("4k write qd32 unix", 2.0, 0.5),
    ("4k write qd32 tcp", 2.0, 0.5),
    ("4k read qd32 unix x4", 2.8, 0.4),
    ("4k read qd32 tcp x4", 2.8, 0.4),
    ("4k write qd32 unix x4", 1.8, 0.5),
    ("4k write qd32 tcp x4", 1.8, 0.5),
    *(
        (f"{size} seq {way} qd8 {by}", 1.2 if by == "unix" else 1.1, None)
        for size in ("128k", "1M")
        for way in ("read", "write")
        for by in ("unix", "tcp")
    ),
    ("4k write FUA unix", 1.8, None),
    ("4k write FUA unix x4", 3.5, None),
    ("4k write 1/8 FUA unix", 1.2, None),
    ("4k read qd32 fio unix", 1.4, None),
    ("4k read qd32 fio unix x4", 1.9, None),
]
#: Of our plain volume: (layout, workload, IOPS at least).
LAYOUT_ROWS = [
    ("stripe of 4, local", "4k read qd32 unix", 0.9),
    ("half remote", "4k read qd32 unix", 0.85),
    ("half remote", "4k read qd32 tcp", 0.85),
    ("mirror, both local", "4k write qd32 unix", 0.7),
    ("mirror, local+remote", "4k write qd32 unix", 0.52),
    ("all remote", "4k read qd32 unix", 0.5),
    ("all remote", "4k read qd32 tcp", 0.5),
]
#: Over iSCSI, of tgt: (workload, IOPS at least, CPU per I/O at most).
ISCSI_ROWS: list[tuple[str, float, float | None]] = [
    ("4k read qd32 iscsi", 2.5, 0.35),
    ("4k write qd32 iscsi", 2.5, 0.35),
    ("128k seq read qd8 iscsi", 1.5, None),
    ("128k seq write qd8 iscsi", 1.5, None),
]
#: Of our plain volume, with checksums: (workload, IOPS at least). Nothing stays resident there.
SUMMED_ROWS = [
    ("4k read qd32 unix", 0.5),
    ("4k write qd32 unix", 0.5),
    ("128k seq read qd8 unix", 0.5),
    ("128k seq write qd8 unix", 0.5),
]
#: Those whose 99th percentile is to be below the reference's.
PROMPT = [
    f"4k {way} qd32 {by}{many}"
    for way in ("read", "write")
    for by in ("unix", "tcp")
    for many in ("", " x4")
]


def verdicts(results: Results) -> Iterator[Verdict]:
    """Every row, measured or not."""
    for key, iops, cpu in PLAIN_ROWS:
        yield Verdict(key, iops, results.ratio(key, PLAIN, REFERENCE, "iops"))
        if cpu is not None:
            found = results.ratio(key, PLAIN, REFERENCE, "server_cpu_us")
            yield Verdict(f"{key}, CPU per I/O", cpu, found, at_most=True)
    for key, iops, cpu in ISCSI_ROWS:
        yield Verdict(f"{key}, of {TGT}", iops, results.ratio(key, PLAIN, TGT, "iops"))
        if cpu is not None:
            found = results.ratio(key, PLAIN, TGT, "server_cpu_us")
            yield Verdict(f"{key}, CPU per I/O, of {TGT}", cpu, found, at_most=True)
    for layout, key, least in LAYOUT_ROWS:
        found = results.ratio(key, layout, PLAIN, "iops")
        yield Verdict(f"{key}: {layout}, of {PLAIN}", least, found)
    for key, least in SUMMED_ROWS:
        found = results.ratio(key, SUMMED.name, PLAIN, "iops")
        yield Verdict(f"{key}: {SUMMED.name}, of {PLAIN}", least, found)
    for key in ("4k read qd32 unix", "4k read qd32 tcp"):
        found = results.ratio(key, "all remote", FRONT, "iops")
        yield Verdict(f"{key}: all remote, of {FRONT}", 4.0, found)
    for key in ("4k write qd32 unix", "4k write qd32 tcp"):
        found = results.ratio(key, MAPPED, NO_MAP.name, "iops")
        yield Verdict(f"{key}: {MAPPED}, of the same without map", 0.9, found)
    for key in PROMPT:
        found = results.ratio(key, PLAIN, REFERENCE, "p99_us")
        yield Verdict(f"{key}, p99", 1.0, found, at_most=True)
