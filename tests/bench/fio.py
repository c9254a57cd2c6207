"""fio's nbd engine as a second opinion. It burns a core by itself: against a server that does no
I/O at all it reaches about 1.5 times what it does with nbdkit, with four jobs about 2.1 times."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.bench.work import Figures, Target, Work
from tests.e2e.process import guarded

WORKS = [Work("4k read qd32 fio", "rr"), Work("4k read qd32 fio", "rr", conns=4)]


def check() -> None:
    """OSError if there is no fio with that engine."""
    if shutil.which("fio") is None:
        raise FileNotFoundError("fio is not installed")
    if subprocess.run(["fio", "--enghelp=nbd"], capture_output=True).returncode:
        raise FileNotFoundError("this fio has no nbd engine")


def _cpu(pids: Iterable[int]) -> float:
    """Seconds that these processes have used."""
    used = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        used += (int(fields[11]) + int(fields[12])) / 100
    return used


def measure(target: Target, work: Work, span: int, seconds: float) -> Figures:
    """One run; latencies are fio's own."""
    argv = ["fio", "--name=bench", "--ioengine=nbd", "--rw=randread", "--time_based"]
    argv += [f"--uri=nbd+unix:///{target.export}?socket={target.unix}", f"--bs={work.block}"]
    argv += [f"--iodepth={work.depth}", f"--numjobs={work.conns}", f"--size={span}"]
    argv += [f"--runtime={seconds}s", "--ramp_time=200ms", "--group_reporting"]
    begun = _cpu(target.pids)
    done = subprocess.run(
        guarded(*argv, "--output-format=json"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:
        raise OSError(f"{target.name}: {done.stderr.strip()[-200:]}")
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    read = job["read"]
    percentiles = read["clat_ns"]["percentile"]
    requests = max(read["total_ios"], 1)
    busy = (job["usr_cpu"] + job["sys_cpu"]) / 100
    return {
        "iops": read["iops"],
        "mb_s": read["bw_bytes"] / 1e6,
        "p50_us": percentiles["50.000000"] / 1e3,
        "p99_us": percentiles["99.000000"] / 1e3,
        "server_cpu_us": (_cpu(target.pids) - begun) * 1e6 / requests,
        "client_cpu_us": busy * work.conns * 1e6 / max(read["iops"], 1),
        "other_cores": 0.0,
    }
