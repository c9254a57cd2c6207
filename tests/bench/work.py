"""What is measured: the workloads and the generator that runs them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.process import guarded

SOURCES = sorted(Path(__file__).parent.glob("load*.c"))
#: One measurement: what `load` printed.
Figures = dict[str, float]


@dataclass(frozen=True)
class Work:
    """One workload. `mode`: random or sequential, read or write; `fua`: on every n-th write."""

    name: str
    mode: str
    depth: int = 32
    conns: int = 1
    tcp: bool = False
    block: int = 4096
    fua: int = 0
    iscsi: bool = False

    @property
    def key(self) -> str:
        """Its name with the way it comes in."""
        conns = f" x{self.conns}" if self.conns > 1 else ""
        way = "iscsi" if self.iscsi else "tcp" if self.tcp else "unix"
        return f"{self.name} {way}{conns}"


def _random(tcp: bool, conns: int) -> list[Work]:
    return [
        Work("4k read qd32", "rr", conns=conns, tcp=tcp),
        Work("4k write qd32", "rw", conns=conns, tcp=tcp),
    ]


def _sequential(tcp: bool) -> list[Work]:
    sizes = (("128k", 128 << 10), ("1M", 1 << 20))
    ways = (("read", "sr"), ("write", "sw"))
    return [
        Work(f"{size} seq {way} qd8", mode, depth=8, block=block, tcp=tcp)
        for size, block in sizes
        for way, mode in ways
    ]


#: What our plain volume and tgt get.
OVER_ISCSI = [
    Work("4k read qd32", "rr", iscsi=True),
    Work("4k write qd32", "rw", iscsi=True),
    Work("128k seq read qd8", "sr", depth=8, block=128 << 10, iscsi=True),
    Work("128k seq write qd8", "sw", depth=8, block=128 << 10, iscsi=True),
]
#: What our plain volume and nbdkit file get.
COMPARED = [
    Work("4k write FUA", "rw", fua=1),
    Work("4k write FUA", "rw", fua=1, conns=4),
    Work("4k write 1/8 FUA", "rw", fua=8),
    *_random(tcp=False, conns=1),
    *_random(tcp=False, conns=4),
    *_random(tcp=True, conns=1),
    *_random(tcp=True, conns=4),
    Work("4k read qd1", "rr", depth=1),
    Work("4k write qd1", "rw", depth=1),
    *_sequential(tcp=False),
    *_sequential(tcp=True),
]


def _is_plain(work: Work) -> bool:
    return work.conns == 1 and work.depth == 32 and not work.fua


#: Those that our other layouts get; a subset of COMPARED, so that each has its reference.
LAYOUTS = [work for work in COMPARED if _is_plain(work)]
#: Those that every peer gets, and those for nbdkit in front of another nbdkit.
PEERS_GET = [*LAYOUTS, *_sequential(tcp=False)[:2]]
#: What our volume with checksums gets.
SUMMED_GETS = [*LAYOUTS, *(work for work in _sequential(tcp=False) if work.block == 128 << 10)]
FRONT_GETS = [work for work in LAYOUTS if work.mode == "rr"]


def build(into: Path) -> Path:
    """Compiles the generator."""
    binary = into / "load"
    subprocess.run(["cc", "-O2", "-Wall", "-o", str(binary), *map(str, SOURCES)], check=True)
    return binary


@dataclass(frozen=True)
class Target:
    """A server's export as the generator reaches it. `files`: what holds its bytes. `iscsi` and
    `unit`: where and as what it is served over iSCSI.
    """

    name: str
    unix: str
    tcp: str
    export: str
    pids: tuple[int, ...]
    files: tuple[Path, ...]
    iscsi: str = ""
    unit: str = ""


class Load:
    """The compiled generator with what all its runs share."""

    def __init__(self, binary: Path, span: int, seconds: float, warmup: float) -> None:
        self.binary = binary
        self.span = span
        self.seconds = seconds
        self.warmup = warmup

    def fill(self, target: Target) -> None:
        """Writes every page of the span once, singly: the page cache keeps what it was first given
        in one piece together, and small writes into large pieces measure ext4."""
        self._run(target, target.unix or target.iscsi, "-1", "-b", "4096", "-d", "32")

    def prepare(self, target: Target, work: Work, everybody: Sequence[Target]) -> None:
        """The same state for everybody: nothing waits for the disk, so that nobody pays for
        another's writes; but plain writes then find pages that are dirty already."""
        sync(everybody)
        if work.mode.endswith("w") and not work.fua:
            self.fill(target)

    def measure(self, target: Target, work: Work) -> Figures:
        """One run of one workload."""
        argv = ["-m", work.mode, "-c", str(work.conns), "-d", str(work.depth)]
        argv += ["-b", str(work.block), "-f", str(work.fua)]
        argv += ["-t", str(self.seconds), "-w", str(self.warmup)]
        argv += ["-p", ",".join(map(str, target.pids))]
        address = target.iscsi if work.iscsi else target.tcp if work.tcp else target.unix
        found = json.loads(self._run(target, address, *argv))
        assert isinstance(found, dict)
        return found

    def _run(self, target: Target, address: str, *argv: str) -> str:
        export = target.unit if address == target.iscsi else target.export
        common = ["-a", address, "-e", export, "-n", str(self.span)]
        done = subprocess.run(
            guarded(str(self.binary), *common, *argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise OSError(f"{target.name}: {done.stderr.strip()}")
        return done.stdout


def sync(targets: Sequence[Target]) -> None:
    """Brings what is dirty to the disk."""
    files = {str(file) for target in targets for file in target.files}
    subprocess.run(["sync", "--data", *sorted(files)], check=True)
